// HTML pages that stand alone: nothing is fetched or run.
#pragma once

#include <string>
#include <string_view>

namespace foveate::report {

// A page with the style of all pages and charts.  `title` is text; `main` and `footer` are HTML.
std::string page(std::string_view title, const std::string& main, const std::string& footer = "");

std::string code(std::string_view text);
// A caption with a chart and its legend; "" without a chart.
std::string figure(std::string_view caption, const std::string& chart, const std::string& legend = "");

}  // namespace foveate::report
