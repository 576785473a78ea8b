// What sweeps, RULER and heat maps add to a comparison's written forms.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "foveate/base/error.h"
#include "foveate/report/compare_parts.h"
#include "foveate/report/heat_chart.h"
#include "tests/report/markup.h"
#include "tests/report/sample_report.h"

namespace foveate::report {
namespace {

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

CompareReport report_with_all() {
  CompareReport report = sample_report();
  report.heat_lengths = {1000, 2000};
  report.heat_depths = {0, 50, 100};
  report.heat_prompts = 4;
  for (CompareRow& row : report.rows) {
    row.ruler = {{"vt", 1000, 5, 0.4, 0.8}, {"fwe", 1000, 5, 0.2, 0.6}, {"vt", 2000, 5, 0.1, 0.3}};
    row.needle_heat = {{1, 1, 1}, {0.5, 0.25, 1}};
    row.passkey_heat = {{1, 0, 1}, {0, 0.5, 1}};
  }
  report.rows[1].needle_heat[1] = {0.25, 0.25, 0.75};
  report.rows[1].kept_mass_by_layer = {0.5, std::numeric_limits<double>::quiet_NaN()};
  for (const double budget : {256, 512, 1024}) {
    report.rows.push_back(sample_row(fmt::format("dhsa:budget={}", budget), "block", 2 - budget / 1000, 10 / budget));
    report.rows.back().sweep = "dhsa:budget=256..1024";
    report.rows.back().sweep_value = fmt::format("{}", budget);
  }
  return report;
}

TEST(Frontier, is_what_nothing_beats_in_both) {
  EXPECT_EQ(frontier({1, 2, 3, 2, 3}, {0, 1, 5, 2, 5}), (std::vector<size_t>{2, 1, 0}));
  EXPECT_EQ(frontier({}, {}), std::vector<size_t>{});
  EXPECT_EQ(frontier({1, 1}, {2, 1}), std::vector<size_t>{1});
  EXPECT_THROW(frontier({1}, {}), Error);
}

TEST(Frontier, has_a_mark_a_label_and_a_line_for_each_sweep) {
  EXPECT_EQ(frontier_charts(sample_report()), "");
  const std::string html = frontier_charts(report_with_all());
  const Markup markup = parse_markup("<div>" + html + "</div>");
  EXPECT_EQ(markup.problem, "");
  EXPECT_EQ(markup.count("figure"), 3);
  for (const char* label : {">256<", ">512<", ">1024<", "dhsa:budget=256..1024", ">dense<"})
    EXPECT_TRUE(contains(html, label)) << label;
  EXPECT_EQ(markup.count("svg"), 3 + 3 * 4);  // the charts, and a mark in each legend for three rows and the sweep
}

TEST(HeatChart, writes_every_number_and_the_sign_of_differences) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  HeatChart chart{
      .title = "t", .x_label = "x", .y_label = "y", .columns = {"a", "b"}, .rows = {"0%"}, .values = {{0.5, nan}}};
  const std::string shares = heat_chart(chart);
  EXPECT_EQ(parse_markup(shares).problem, "");
  EXPECT_EQ(parse_markup(shares).count("rect"), 2);
  EXPECT_TRUE(contains(shares, ">50<") && contains(shares, ">-<") && !contains(shares, "nan"));
  chart.is_difference = true, chart.values = {{-0.25, 0.5}};
  const std::string differences = heat_chart(chart);
  EXPECT_TRUE(contains(differences, ">-25<") && contains(differences, ">+50<"));
  EXPECT_TRUE(contains(differences, "solid c2") && contains(differences, "solid c1"));
  chart.values = {{1}};
  EXPECT_THROW(heat_chart(chart), Error);
  EXPECT_EQ(heat_chart({}), "");
}

TEST(CompareFound, is_in_the_page_the_table_and_the_json) {
  const CompareReport report = report_with_all();
  const std::string html = to_html(report);
  const Markup markup = parse_markup(html);
  EXPECT_EQ(markup.problem, "");
  EXPECT_EQ(markup.count("table"), 4);
  EXPECT_EQ(markup.count("figure"), 3 + 3 + 6);      // as ever, the frontier, two tests of three rows
  EXPECT_EQ(markup.count("rect"), (3 + 2) * 2 * 6);  // three maps and two differences of each test
  EXPECT_TRUE(contains(html, ">-25<"));
  const std::string table = to_table(report);
  for (const char* part :
       {"40.0% / 80.0%", "30.0% / 70.0%", "mean", "needle first, by depth", "passkey, by depth", "50%"})
    EXPECT_TRUE(contains(table, part)) << part;
  const auto json = nlohmann::json::parse(to_json(report));
  EXPECT_EQ(json["heat_map"]["lengths"], (std::vector<int>{1000, 2000}));
  EXPECT_EQ(json["rows"][1]["needle_heat"][1][0], 0.25);
  EXPECT_EQ(json["rows"][1]["ruler"][1]["task"], "fwe");
  EXPECT_EQ(json["rows"][1]["ruler"][1]["ranked_first"], 0.6);
  EXPECT_EQ(json["rows"][1]["kept_mass_by_layer"][0], 0.5);
  EXPECT_TRUE(json["rows"][1]["kept_mass_by_layer"][1].is_null());
  EXPECT_EQ(json["rows"][4]["sweep_value"], "512");
  EXPECT_TRUE(json["rows"][0]["sweep"].is_null());
}

}  // namespace
}  // namespace foveate::report
