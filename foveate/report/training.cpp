#include "foveate/report/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "foveate/report/chart.h"
#include "foveate/report/page.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

std::vector<std::string> names_in(std::span<const TrainingRecord> records) {
  std::vector<std::string> names;
  for (const TrainingRecord& record : records)
    for (const auto& [name, value] : record.values)
      if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  return names;
}

double value_of(const TrainingRecord& record, const std::string& name) {
  for (const auto& [own, value] : record.values)
    if (own == name) return value;
  return kMissing;
}

}  // namespace

std::string training_page(std::string_view command, std::span<const TrainingRecord> records, const std::string& more) {
  std::string html = "<h1>How the training went</h1>\n<p class=\"lead\">" + code(command) + "</p>\n";
  LineChart chart{.x_label = "step", .ticks = LineChart::Ticks::round};
  for (const TrainingRecord& record : records) chart.x.push_back(double(record.step));
  if (records.empty()) return page("foveate train", html + "<p>No step was made.</p>\n" + more);
  chart.x_end = chart.x.back();
  std::string last, figures;
  for (const std::string& name : names_in(records)) {
    ChartSeries series{name, 1, {}};
    for (const TrainingRecord& record : records) series.y.push_back(value_of(record, name));
    last += fmt::format("<dt>{}</dt><dd>{:.6g}</dd>\n", escape_html(name), series.y.back());
    chart.title = name + " by step", chart.y_label = name, chart.series = {series};
    figures += figure("<b>" + escape_html(name) + "</b>", line_chart(chart));
  }
  html += fmt::format("<h2>After {} steps</h2>\n<dl>\n{}</dl>\n<h2>Step by step</h2>\n{}",
                      format_count(records.back().step), last, figures);
  return page("foveate train", html + more);
}

}  // namespace foveate::report
