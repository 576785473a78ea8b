// Inside of compare_report.h: the pieces of the page of a comparison.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "foveate/report/compare_report.h"
#include "foveate/report/page.h"

namespace foveate::report {

bool is_dense(const CompareRow& row);
// The quality of use: through the decode rule where prefill rows alone could leak, else over the text.
std::optional<double> loss_of(const CompareRow& row);

// The points that no other beats in both: larger x and smaller y.  Indices by falling x; of equal points the first.
std::vector<size_t> frontier(const std::vector<double>& x, const std::vector<double>& y);
// Speed against quality for each sweep, with the frontier over all rows; "" without a sweep.
std::string frontier_charts(const CompareReport& report);

// RULER's tasks and heat maps, each with its heading; "" where nothing was measured.
std::string ruler_section(const CompareReport& report);
std::string heat_section(const CompareReport& report);
// The same for a terminal.
std::string ruler_table(const CompareReport& report);
std::string heat_table(const CompareReport& report);

}  // namespace foveate::report
