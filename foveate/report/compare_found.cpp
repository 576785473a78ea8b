// RULER's tasks and heat maps of a comparison, for the page and for a terminal.
#include <algorithm>
#include <limits>

#include "foveate/base/error.h"
#include "foveate/report/compare_parts.h"
#include "foveate/report/heat_chart.h"
#include "foveate/report/table.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

constexpr int kSpecColumns = 26;

using Grid = std::vector<std::vector<double>>;  // [length][depth]

const CompareRow* first_with_ruler(const CompareReport& report) {
  for (const CompareRow& row : report.rows)
    if (!row.ruler.empty()) return &row;
  return nullptr;
}

std::string cell_text(const RulerCell& cell) {
  return fmt::format("{} / {}", format_percent(cell.score), format_percent(cell.ranked_first));
}

// Means over the tasks of each length.
std::vector<RulerCell> with_means(const std::vector<RulerCell>& cells) {
  std::vector<RulerCell> all;
  for (size_t i = 0; i < cells.size(); ++i) {
    all.push_back(cells[i]);
    if (i + 1 < cells.size() && cells[i + 1].length == cells[i].length) continue;
    RulerCell mean{.task = "mean", .length = cells[i].length};
    const auto count = double(std::ranges::count(cells, mean.length, &RulerCell::length));
    for (const RulerCell& cell : cells) {
      if (cell.length != mean.length) continue;
      mean.samples += cell.samples, mean.score += cell.score / count, mean.ranked_first += cell.ranked_first / count;
    }
    all.push_back(mean);
  }
  return all;
}

HeatChart chart_of(const CompareReport& report, const Grid& grid, std::string title) {
  HeatChart chart{.title = std::move(title),
                  .x_label = "length of the prompt, tokens",
                  .y_label = "depth",
                  .columns = {},
                  .rows = {},
                  .values = {}};
  for (const int64_t length : report.heat_lengths) chart.columns.push_back(format_count(length));
  for (size_t depth = 0; depth < report.heat_depths.size(); ++depth) {
    chart.rows.push_back(fmt::format("{}%", report.heat_depths[depth]));
    std::vector<double>& values = chart.values.emplace_back();
    for (size_t length = 0; length < report.heat_lengths.size(); ++length)
      values.push_back(length < grid.size() && depth < grid[length].size() ? grid[length][depth]
                                                                           : std::numeric_limits<double>::quiet_NaN());
  }
  return chart;
}

Grid difference(const Grid& grid, const Grid& dense) {
  Grid result = grid;
  for (size_t l = 0; l < grid.size(); ++l)
    for (size_t d = 0; d < grid[l].size(); ++d) result[l][d] -= dense.at(l).at(d);
  return result;
}

std::string heat_figures(const CompareReport& report, Grid CompareRow::*test, std::string_view caption) {
  const auto dense = std::ranges::find_if(report.rows, is_dense);
  std::string html;
  for (const CompareRow& row : report.rows) {
    if ((row.*test).empty()) continue;
    std::string charts = heat_chart(chart_of(report, row.*test, fmt::format("{}: {}", row.attention, caption)));
    if (dense != report.rows.end() && &row != &*dense && !((*dense).*test).empty()) {
      HeatChart less = chart_of(report, difference(row.*test, (*dense).*test),
                                fmt::format("{} less dense: {}", row.attention, caption));
      less.is_difference = true;
      charts += heat_chart(less);
    }
    html += figure(fmt::format("{}: <b>{}</b>{}", code(row.attention), caption,
                               is_dense(row) ? "" : "; beside it the difference to dense in points"),
                   "<div class=\"pair\">" + charts + "</div>", "");
  }
  return html;
}

std::string heat_rows(const CompareReport& report, Grid CompareRow::*test, std::string_view title) {
  std::vector<Column> titles = {{fmt::format("{}, by depth", title), Align::kLeft}, {"depth"}};
  for (const int64_t length : report.heat_lengths) titles.push_back({format_count(length)});
  std::vector<std::vector<std::string>> rows;
  for (const CompareRow& row : report.rows)
    for (size_t depth = 0; depth < report.heat_depths.size() && !(row.*test).empty(); ++depth) {
      std::vector<std::string>& cells = rows.emplace_back();
      cells = {depth == 0 ? shorten(clean_text(row.attention), kSpecColumns) : " ",
               fmt::format("{}%", report.heat_depths[depth])};
      for (const std::vector<double>& length : row.*test) cells.push_back(format_percent(length.at(depth)));
    }
  return rows.empty() ? "" : format_table(titles, rows) + "\n";
}

}  // namespace

std::string ruler_table(const CompareReport& report) {
  const CompareRow* first = first_with_ruler(report);
  if (!first) return "";
  std::vector<Column> titles = {{"RULER: score / ranked first", Align::kLeft}, {"tokens"}};
  std::vector<std::vector<std::string>> rows;
  for (const RulerCell& cell : with_means(first->ruler)) rows.push_back({cell.task, format_count(cell.length)});
  for (const CompareRow& row : report.rows) {
    titles.push_back({shorten(clean_text(row.attention), kSpecColumns)});
    const std::vector<RulerCell> cells = with_means(row.ruler);
    for (size_t i = 0; i < rows.size(); ++i) rows[i].push_back(i < cells.size() ? cell_text(cells[i]) : "");
  }
  return format_table(titles, rows) + "\n";
}

std::string ruler_section(const CompareReport& report) {
  const CompareRow* first = first_with_ruler(report);
  if (!first) return "";
  std::string html =
      "<h2>RULER</h2>\n<p>Generated tasks of a chosen length (Hsieh et al., 2404.06654). Score: the share of right "
      "answers that the model wrote out. Ranked first: the share of right answers that score above 20 wrong ones, each "
      "behind the right ones before it; a small model shows more there. The two tasks made from question-answering "
      "data "
      "sets are left out, and the texts around the tasks are foveate's own: compare mechanisms, not "
      "papers.</p>\n<div class=\"scroll\"><table>\n<thead><tr><th class=\"first\" scope=\"col\">task</th><th "
      "scope=\"col\">tokens</th>";
  for (const CompareRow& row : report.rows) html += "<th scope=\"col\">" + code(row.attention) + "</th>";
  html += "</tr></thead>\n<tbody>\n";
  const std::vector<RulerCell> names = with_means(first->ruler);
  for (size_t i = 0; i < names.size(); ++i) {
    html += fmt::format("<tr><td class=\"first\">{}</td><td>{}</td>", escape_html(names[i].task),
                        format_count(names[i].length));
    for (const CompareRow& row : report.rows) {
      const std::vector<RulerCell> cells = with_means(row.ruler);
      html += fmt::format("<td>{}</td>", i < cells.size() ? cell_text(cells[i]) : "-");
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string heat_table(const CompareReport& report) {
  return heat_rows(report, &CompareRow::needle_heat, "needle first") +
         heat_rows(report, &CompareRow::passkey_heat, "passkey");
}

std::string heat_section(const CompareReport& report) {
  const std::string maps = heat_figures(report, &CompareRow::needle_heat, "needles ranked first, percent") +
                           heat_figures(report, &CompareRow::passkey_heat, "passkeys repeated, percent");
  if (maps.empty()) return "";
  return fmt::format(
             "<h2>Where it still finds things</h2>\n<p>Each cell: {} prompts of that length, with what is to be found "
             "at "
             "that depth (0% is the beginning).</p>\n",
             report.heat_prompts) +
         maps;
}

}  // namespace foveate::report
