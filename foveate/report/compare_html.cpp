// The page of a comparison, for someone who has never seen the tool.
#include <algorithm>
#include <cmath>
#include <span>

#include "foveate/base/error.h"
#include "foveate/report/chart.h"
#include "foveate/report/compare_columns.h"
#include "foveate/report/compare_parts.h"
#include "foveate/report/compare_report.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

// The first dense row has the neutral style; the others count up in order.
std::vector<int> styles_of(const CompareReport& report) {
  std::vector<int> styles;
  bool is_dense_seen = false;
  int next = 1;
  for (const CompareRow& row : report.rows) {
    const bool is_yardstick = is_dense(row) && !is_dense_seen;
    is_dense_seen = is_dense_seen || is_yardstick;
    styles.push_back(is_yardstick ? 0 : next++);
  }
  return styles;
}

std::string heading(const CompareReport& report) {
  const std::string parameters = report.model.parameters > 0
                                     ? fmt::format("{:.0f} million parameters, ", double(report.model.parameters) / 1e6)
                                     : "";
  std::string html = fmt::format(
      "<h1>What each attention costs, and what it loses</h1>\n<p class=\"lead\">{} ({}{}) reading {} with a context of "
      "{} "
      "tokens</p>\n",
      escape_html(report.model.name), parameters, escape_html(report.model.dtype), escape_html(report.text.name),
      format_count(report.context));
  html +=
      "<p>A language model reads by letting every token (a word or a part of one) look back at earlier tokens; this is "
      "called "
      "attention. <b>Dense</b> attention looks at all of them, so its work grows with the square of the length. The "
      "other "
      "mechanisms on this page look at fewer tokens, or at all of them in a cheaper way. Each was put into the same "
      "model and "
      "read the same text on the same machine. Dense is the yardstick: the question is how much faster or smaller the "
      "others "
      "are, and how far their predictions move away from it.</p>\n";
  if (!report.complete)
    html +=
        "<p class=\"warn\"><b>This comparison was stopped before its end.</b> What had been finished is shown; a dash "
        "means "
        "not measured.</p>\n";
  return html;
}

std::string needle_sentence(const CompareRow& row) {
  if (!row.needle_vs_dense_low || !row.needle_vs_dense_high) return "";
  const double low = *row.needle_vs_dense_low * 100, high = *row.needle_vs_dense_high * 100;
  if (low <= 0 && high >= 0)
    return fmt::format(" On hidden facts, {} questions show no clear difference to dense.",
                       format_count(row.needle_total));
  return fmt::format(" On hidden facts it scores {:.1f} to {:.1f} points {} dense.",
                     std::min(std::fabs(low), std::fabs(high)), std::max(std::fabs(low), std::fabs(high)),
                     high < 0 ? "below" : "above");
}

std::string loss_phrase(double nats) {
  if (std::fabs(nats) < 5e-5) return "no measurable loss";
  return fmt::format("{} of {:.4f} nats per token (perplexity {}%)", nats > 0 ? "a loss" : "a gain", std::fabs(nats),
                     format_signed(std::expm1(nats) * 100, 1));
}

// One sentence or two per mechanism, from what was measured.
std::string glance(const CompareReport& report) {
  std::string items;
  for (const CompareRow& row : report.rows) {
    if (is_dense(row)) continue;
    std::vector<std::string> parts;
    if (row.prefill_vs_dense)
      parts.push_back(fmt::format("reads the prompt at {} the speed of dense", format_ratio(row.prefill_vs_dense)));
    if (row.density) parts.push_back(fmt::format("looks at {} of the pairs of tokens", format_percent(row.density)));
    if (const std::optional<double> loss = loss_of(row))
      parts.push_back(
          fmt::format("shows {}{}", loss_phrase(*loss), row.continuation_nats_vs_dense ? " on a continuation" : ""));
    if (parts.empty()) continue;
    std::string sentence;
    for (size_t i = 0; i < parts.size(); ++i)
      sentence += (i == 0 ? " " : i + 1 == parts.size() ? " and " : ", ") + parts[i];
    items += "<li>" + code(row.attention) + sentence + "." + needle_sentence(row) + "</li>\n";
  }
  return items.empty() ? "" : "<h2>At a glance</h2>\n<ul class=\"glance\">\n" + items + "</ul>\n";
}

std::vector<const CompareColumn*> shown_columns(const CompareReport& report, std::span<const std::string_view> groups) {
  std::vector<const CompareColumn*> columns;
  for (const CompareColumn& column : compare_columns()) {
    const bool is_listed = std::find(groups.begin(), groups.end(), column.group) != groups.end();
    if (is_listed && is_measured(column, report)) columns.push_back(&column);
  }
  return columns;
}

// A spec in a narrow cell breaks after its separators, not within words.
std::string breakable_code(const std::string& spec) {
  std::string html;
  for (const char c : escape_html(spec)) {
    html += c;
    if (c == ',' || c == ':') html += "<wbr/>";
  }
  return "<code>" + html + "</code>";
}

constexpr std::string_view kClassMeaning =
    "What the choice of tokens depends on. row: each token alone. block: a block of tokens chooses together. prompt: "
    "the "
    "choice is fixed when the prompt ends.";

std::string table_head(const std::vector<const CompareColumn*>& columns) {
  std::string groups, titles;
  for (size_t c = 0; c < columns.size();) {
    size_t end = c;
    while (end < columns.size() && columns[end]->group == columns[c]->group) ++end;
    groups += fmt::format("<th class=\"edge\" colspan=\"{}\" scope=\"colgroup\">{}</th>", end - c,
                          escape_html(columns[c]->group));
    for (; c < end; ++c) {
      const bool is_edge = c == 0 || columns[c]->group != columns[c - 1]->group;
      titles += fmt::format("<th{} scope=\"col\" title=\"{}\">{}</th>", is_edge ? " class=\"edge\"" : "",
                            escape_html(columns[c]->meaning), escape_html(columns[c]->title));
    }
  }
  return fmt::format(
      "<thead><tr class=\"group\"><th class=\"first\"></th><th></th>{}</tr>\n<tr><th class=\"first\" "
      "scope=\"col\">attention</th><th scope=\"col\" title=\"{}\">class</th>{}</tr></thead>\n",
      groups, escape_html(kClassMeaning), titles);
}

enum class Remarks { kShown, kHidden };  // notes and errors stand in the first table alone

std::string table_body(const CompareReport& report, const std::vector<const CompareColumn*>& columns, Remarks remarks) {
  const auto aside = [&](std::string_view kind, const std::string& text) {
    return fmt::format("<tr class=\"aside\"><td class=\"{}\" colspan=\"{}\">{}</td></tr>\n", kind, columns.size() + 2,
                       escape_html(text));
  };
  std::string html = "<tbody>\n";
  for (const CompareRow& row : report.rows) {
    html += "<tr><td class=\"first\">" + breakable_code(row.attention) + "</td><td>" +
            escape_html(row.mechanism_class.empty() ? "-" : row.mechanism_class) + "</td>";
    for (size_t c = 0; c < columns.size(); ++c) {
      const bool is_edge = c == 0 || columns[c]->group != columns[c - 1]->group;
      html += fmt::format("<td{}>{}</td>", is_edge ? " class=\"edge\"" : "", escape_html(columns[c]->cell(row)));
    }
    html += "</tr>\n";
    if (remarks == Remarks::kHidden) continue;
    if (!row.error.empty()) html += aside("bad", "Not finished: " + row.error);
    if (!row.note.empty()) html += aside("remark", row.note);
  }
  return html + "</tbody>";
}

// A table of some groups and, below it, one line on each of its columns.
std::string section(const CompareReport& report, std::string_view title, std::span<const std::string_view> groups,
                    Remarks remarks) {
  const std::vector<const CompareColumn*> columns = shown_columns(report, groups);
  if (columns.empty() && remarks == Remarks::kHidden) return "";
  std::string html = fmt::format("<h2>{}</h2>\n<div class=\"scroll\"><table>\n", title) + table_head(columns) +
                     table_body(report, columns, remarks) + "</table></div>\n<dl class=\"meanings\">\n";
  if (remarks == Remarks::kShown) html += fmt::format("<dt>class</dt><dd>{}</dd>\n", escape_html(kClassMeaning));
  for (const CompareColumn* column : columns)
    html += fmt::format("<dt>{}</dt><dd>{}</dd>\n", escape_html(column->title), escape_html(column->meaning));
  return html + "</dl>\n";
}

std::string tables(const CompareReport& report) {
  constexpr std::string_view kCosts[] = {kSpeed, kMemory}, kLosses[] = {kQuality, kContinuation},
                             kFinds[] = {kRetrieval};
  if (report.rows.empty()) return "<p class=\"warn\">No mechanism was finished.</p>\n";
  return section(report, "What each one costs", kCosts, Remarks::kShown) +
         section(report, "What each one loses", kLosses, Remarks::kHidden) +
         section(report, "What each one still finds", kFinds, Remarks::kHidden);
}

std::string legend(const std::vector<ChartSeries>& series) {
  std::string items;
  for (const ChartSeries& one : series) items += "<li>" + legend_mark(one.style) + code(one.name) + "</li>";
  return "<ul class=\"legend\">" + items + "</ul>\n";
}

std::string position_charts(const CompareReport& report) {
  LineChart chart{.title = "Mean loss by position in the context",
                  .x_label = "position in the context, tokens",
                  .y_label = "nats per token",
                  .x = {},
                  .series = {}};
  for (size_t i = 0; i < report.bucket_positions.size(); ++i)
    chart.x.push_back(double(report.bucket_positions[i] + (i > 0 ? report.bucket_positions[i - 1] : 0)) / 2);
  chart.x_end = report.bucket_positions.empty() ? 0 : double(report.bucket_positions.back());
  const std::vector<int> styles = styles_of(report);
  const std::vector<double>* dense = nullptr;
  for (size_t r = 0; r < report.rows.size(); ++r) {
    const CompareRow& row = report.rows[r];
    if (row.nll_by_position.empty() || row.nll_by_position.size() != chart.x.size()) continue;
    chart.series.push_back({row.attention, styles[r], row.nll_by_position});
    if (styles[r] == 0) dense = &row.nll_by_position;
  }
  std::string html = figure(
      "<b>Surprise by position</b>: mean nats per token (lower is better), by how many tokens stood before. All lines "
      "fall and "
      "rise together where the text is easy or hard. The vertical axis does not start at 0.",
      line_chart(chart), legend(chart.series));
  if (!dense || chart.series.size() < 2) return html;

  LineChart differences = chart;
  differences.title = "Difference to dense by position in the context";
  differences.y_label = "nats per token above dense";
  for (ChartSeries& series : differences.series)
    for (size_t i = 0; i < series.y.size(); ++i) series.y[i] -= (*dense)[i];
  return html + figure("<b>The same, less dense</b>: how much each mechanism loses, and from which length on.",
                       line_chart(differences), legend(differences.series));
}

std::string trade_chart(const CompareReport& report) {
  ScatterChart chart{.title = "Speed against quality",
                     .x_label = "prefill speed relative to dense (right is faster)",
                     .y_label = "nats above dense (up is better)",
                     .points = {},
                     .x_origin = 1,
                     .y_origin = 0,
                     .x_unit = "x"};
  const std::vector<int> styles = styles_of(report);
  bool has_hollow = false;
  for (size_t r = 0; r < report.rows.size(); ++r) {
    const CompareRow& row = report.rows[r];
    const std::optional<double> loss = loss_of(row);
    if (!row.prefill_vs_dense || !loss) continue;
    const bool is_hollow = row.continuation_nats_vs_dense.has_value();
    has_hollow = has_hollow || is_hollow;
    chart.points.push_back({row.attention, styles[r], *row.prefill_vs_dense, *loss, is_hollow});
  }
  const std::string caption =
      "<b>Speed against quality</b>: dense stands where the dotted lines cross; further right is faster, further up is "
      "closer to "
      "dense, so the upper right corner is the best place.";
  return figure(has_hollow
                    ? caption + " Hollow marks: quality on a continuation, through the rule used to write answers."
                    : caption,
                scatter_chart(chart), "");
}

std::string trust(const CompareReport& report) {
  std::string html = "<h2>How far to trust these numbers</h2>\n<ul class=\"glance\">\n";
  html +=
      "<li>Speeds are from single runs on the machine named below. Expect a few percent of noise, and more when other "
      "programs ran at the same time.</li>\n";
  html += fmt::format(
      "<li>{} Only differences to dense, in this model on this text, are meant to be read; another model, text or "
      "length can "
      "change the order.</li>\n",
      report.model.parameters > 0 && report.model.parameters < 1'000'000'000
          ? "This is a small model, and it answers fewer questions than the ones in daily use."
          : "This is one model and one text.");
  html += fmt::format(
      "<li><b>Needle first</b> does not ask the model to write the answer. The question is put behind the long text, "
      "and the "
      "right answer and {} wrong ones, most of them the answers to other facts hidden in the same text, are each "
      "scored as the "
      "next words; what counts is whether the right one scores highest. Guessing gives {:.1f}%. It shows whether the "
      "fact got "
      "through, even when a model is too small to answer by itself; <b>needle hits</b> and <b>passkey</b> count what "
      "it really "
      "wrote.</li>\n",
      report.needle_distractors, 100.0 / (report.needle_distractors + 1));
  html +=
      "<li>Mechanisms of class <i>block</i> and <i>prompt</i> choose with knowledge of tokens that come later in the "
      "text "
      "they are scored on, which flatters them. Where continuation columns are shown, those do not have this "
      "flaw.</li>\n";
  return html + "</ul>\n";
}

std::string footer(const CompareReport& report) {
  std::string items;
  const auto add = [&items](std::string_view name, const std::string& html) {
    if (!html.empty()) items += fmt::format("<dt>{}</dt><dd>{}</dd>\n", name, html);
  };
  const auto& machine = report.machine;
  add("machine", escape_html(fmt::format("{}, {} cores, {} memory, {}", machine.cpu, machine.cores,
                                         format_bytes(machine.memory_bytes), machine.os)));
  add("run with",
      escape_html(fmt::format("{} threads, kernel level {}, seed {}", report.threads, report.level, report.seed)));
  add("versions", escape_html(fmt::format("foveate {}, torch {}, {}", report.versions.foveate, report.versions.torch,
                                          report.versions.compiler)));
  add("model",
      escape_html(fmt::format("{} ({}), {}", report.model.name, report.model.architecture, report.model.path)));
  add("text", escape_html(fmt::format("{}, {} tokens, {}", report.text.name, format_count(report.text.tokens),
                                      report.text.path)));
  add("date", escape_html(report.date));
  if (!report.command.empty()) add("command", code(report.command));
  return "<footer><dl>\n" + items + "</dl></footer>\n";
}

}  // namespace

bool is_dense(const CompareRow& row) { return row.attention == "dense"; }

std::optional<double> loss_of(const CompareRow& row) {
  return row.continuation_nats_vs_dense ? row.continuation_nats_vs_dense : row.nats_vs_dense;
}

std::string to_html(const CompareReport& report) {
  std::string html = heading(report) + glance(report) + tables(report) + ruler_section(report) + heat_section(report);
  const std::string charts = frontier_charts(report) + position_charts(report) + trade_chart(report);
  if (!charts.empty()) html += "<h2>Charts</h2>\n" + charts;
  return page("foveate compare: " + report.model.name, html + trust(report), footer(report));
}

}  // namespace foveate::report
