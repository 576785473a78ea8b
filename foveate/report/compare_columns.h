// The measured columns of a comparison, declared once: the terminal's table, the page's table and its explanations all
// follow this list.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "foveate/report/compare_report.h"

namespace foveate::report {

struct CompareColumn {
  std::string_view group;    // "Speed"
  std::string_view title;    // "prefill tok/s"
  std::string_view meaning;  // one sentence for a reader who has never seen the tool
  std::string (*cell)(const CompareRow& row);
};

inline constexpr std::string_view kSpeed = "Speed", kMemory = "Memory and work", kQuality = "Quality",
                                  kContinuation = "Quality on a continuation", kRetrieval = "Retrieval";

std::span<const CompareColumn> compare_columns();

// False when every row shows "-": the column can be left out.
bool is_measured(const CompareColumn& column, const CompareReport& report);

}  // namespace foveate::report
