// Charts of a sweep: how much speed each loss buys.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>

#include "foveate/base/error.h"
#include "foveate/report/chart.h"
#include "foveate/report/compare_parts.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

using Value = std::function<std::optional<double>(const CompareRow&)>;

// A style for each sweep and for each single row; dense has the neutral one.
std::vector<int> styles_by_sweep(const CompareReport& report) {
  std::map<std::string, int> known;
  std::vector<int> styles;
  for (const CompareRow& row : report.rows) {
    const std::string name = row.sweep.empty() ? row.attention : row.sweep;
    const int next = int(known.size()) + (known.contains("dense") ? 0 : 1);
    styles.push_back(known.try_emplace(name, is_dense(row) ? 0 : next).first->second);
  }
  return styles;
}

ScatterChart make_chart(const CompareReport& report, ScatterChart chart, const Value& speed, const Value& loss) {
  const std::vector<int> styles = styles_by_sweep(report);
  std::vector<double> x, y;
  std::map<std::string, ChartPath> paths;
  for (size_t r = 0; r < report.rows.size(); ++r) {
    const CompareRow& row = report.rows[r];
    const std::optional<double> fast = speed(row), lost = loss(row);
    if (!fast || !lost || !std::isfinite(*fast) || !std::isfinite(*lost)) continue;
    x.push_back(*fast), y.push_back(*lost);
    chart.points.push_back({row.sweep.empty() ? row.attention : row.sweep_value, styles[r], *fast, *lost});
    if (row.sweep.empty()) continue;
    ChartPath& path = paths[row.sweep];
    path.style = styles[r];
    path.points.emplace_back(*fast, *lost);
  }
  for (const auto& [sweep, path] : paths) chart.paths.push_back(path);
  ChartPath best{.style = 0, .is_dashed = true, .points = {}};
  for (const size_t i : frontier(x, y)) best.points.emplace_back(x[i], y[i]);
  chart.paths.push_back(best);
  return chart;
}

std::string sweep_legend(const CompareReport& report) {
  const std::vector<int> styles = styles_by_sweep(report);
  std::map<int, std::string> names;
  for (size_t r = 0; r < report.rows.size(); ++r)
    names.try_emplace(styles[r], report.rows[r].sweep.empty() ? report.rows[r].attention : report.rows[r].sweep);
  std::string items;
  for (const auto& [style, name] : names) items += "<li>" + legend_mark(style) + code(name) + "</li>";
  return "<ul class=\"legend\">" + items + "</ul>\n";
}

}  // namespace

std::vector<size_t> frontier(const std::vector<double>& x, const std::vector<double>& y) {
  require(x.size() == y.size(), "frontier: needs as many x as y, got {} and {}", x.size(), y.size());
  std::vector<size_t> order(x.size()), kept;
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return x[a] != x[b] ? x[a] > x[b] : y[a] < y[b]; });
  for (const size_t i : order)
    if (kept.empty() || y[i] < y[kept.back()]) kept.push_back(i);
  return kept;
}

std::string frontier_charts(const CompareReport& report) {
  if (std::ranges::all_of(report.rows, [](const CompareRow& row) { return row.sweep.empty(); })) return "";
  const auto dense = std::ranges::find_if(report.rows, is_dense);
  const std::optional<double> dense_decode = dense == report.rows.end() ? std::nullopt : dense->decode_tokens_per_s;
  const Value prefill = [](const CompareRow& row) { return row.prefill_vs_dense; };
  const Value decode = [&](const CompareRow& row) -> std::optional<double> {
    if (!row.decode_tokens_per_s || !dense_decode) return std::nullopt;
    return *row.decode_tokens_per_s / *dense_decode;
  };
  const Value changed = [](const CompareRow& row) -> std::optional<double> {
    const std::optional<double> same =
        row.continuation_top1_agreement ? row.continuation_top1_agreement : row.top1_agreement;
    return same ? std::optional(1 - *same) : std::nullopt;
  };
  const std::string_view nats = "nats above dense (up is better)", share = "share of next tokens that change";
  const auto chart = [&](std::string_view title, std::string_view x, std::string_view y, const Value& speed,
                         const Value& loss) {
    const ScatterChart empty{.title = std::string(title),
                             .x_label = std::string(x),
                             .y_label = std::string(y),
                             .points = {},
                             .x_origin = 1,
                             .y_origin = 0,
                             .x_unit = "x",
                             .paths = {}};
    return scatter_chart(make_chart(report, empty, speed, loss));
  };
  const std::string legend = sweep_legend(report);
  return figure(
             "<b>The frontier</b>: each mark is a value of the option that was swept, with its number; the dashed line "
             "joins those that nothing else beats in both. Prompts: further right is faster, further up closer to "
             "dense.",
             chart("Prefill speed against loss, by budget", "prefill speed relative to dense", nats, prefill, loss_of),
             legend) +
         figure("<b>The frontier of writing</b>: the same against the speed of an answer's tokens.",
                chart("Decode speed against loss, by budget", "decode speed relative to dense", nats, decode, loss_of),
                legend) +
         figure("<b>The frontier in next tokens</b>: how often the most likely next token is another one than dense's.",
                chart("Prefill speed against changed tokens, by budget", "prefill speed relative to dense", share,
                      prefill, changed),
                legend);
}

}  // namespace foveate::report
