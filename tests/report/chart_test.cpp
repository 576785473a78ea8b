#include "foveate/report/chart.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>

#include "foveate/base/error.h"
#include "tests/report/markup.h"

namespace foveate::report {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

LineChart lines(std::vector<double> first, std::vector<double> second) {
  return {.title = "t",
          .x_label = "position",
          .y_label = "nats",
          .x = {512, 1536, 2560, 3584},
          .x_end = 4096,
          .series = {{"one", 0, std::move(first)}, {"two", 1, std::move(second)}}};
}

ScatterChart points(std::vector<ChartPoint> list) {
  return {.title = "t", .x_label = "speed", .y_label = "loss", .points = std::move(list), .x_origin = 1, .x_unit = "x"};
}

int occurrences(std::string_view text, std::string_view word) {
  int count = 0;
  for (size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + 1)) ++count;
  return count;
}

TEST(LineChart, is_balanced_and_has_one_curve_per_series_and_a_mark_per_value) {
  const std::string svg = line_chart(lines({3, 2.5, 2.4, 2.3}, {3, 2.6, 2.5, 2.5}));
  const Markup markup = parse_markup(svg);
  EXPECT_EQ(markup.problem, "");
  EXPECT_EQ(markup.count("path"), 2);
  EXPECT_EQ(markup.count("circle"), 4);
  EXPECT_EQ(markup.count("polygon"), 4);
  EXPECT_NE(markup.text.find("4,096"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(LineChart, breaks_the_curve_where_a_value_is_missing) {
  const std::string svg = line_chart(lines({3, kNaN, 2, 2}, {kInf, 2, 2, 1e300}));
  EXPECT_EQ(parse_markup(svg).problem, "");
  EXPECT_EQ(occurrences(svg, "M"), 3);
  EXPECT_EQ(occurrences(svg, "nan") + occurrences(svg, "inf"), 0);
}

TEST(LineChart, of_equal_values_still_has_an_axis) {
  for (const double value : {0.0, 2.5, -1e-12, 1e9}) {
    const std::string svg = line_chart(lines({value, value, value, value}, {value, value, value, value}));
    EXPECT_EQ(parse_markup(svg).problem, "");
    EXPECT_GE(occurrences(svg, "class=\"grid\""), 2) << value;
    EXPECT_LE(occurrences(svg, "class=\"grid\""), 16) << value;
    EXPECT_EQ(occurrences(svg, "nan") + occurrences(svg, "inf"), 0);
  }
}

TEST(LineChart, without_a_value_is_empty_and_with_ragged_series_refused) {
  EXPECT_EQ(line_chart(lines({kNaN, kNaN, kNaN, kNaN}, {kNaN, kNaN, kNaN, kNaN})), "");
  EXPECT_EQ(line_chart({}), "");
  EXPECT_THROW(line_chart(lines({1, 2}, {1, 2, 3, 4})), Error);
}

TEST(ScatterChart, shows_every_finite_point_with_its_label_inside_the_drawing) {
  std::vector<ChartPoint> list;
  for (int i = 0; i < 12; ++i) list.push_back({fmt::format("mechanism:{}", i), i, 1 + 0.01 * i, 0.001 * i, i % 2 == 0});
  list.push_back({"broken", 12, kNaN, 0, false});
  const std::string svg = scatter_chart(points(std::move(list)));
  EXPECT_EQ(parse_markup(svg).problem, "");
  EXPECT_EQ(occurrences(svg, "class=\"label\""), 12);
  EXPECT_EQ(occurrences(svg, "hollow"), 6);
  EXPECT_EQ(occurrences(svg, "broken"), 0);
}

TEST(ScatterChart, of_dense_alone_or_of_nothing_is_no_problem) {
  const std::string svg = scatter_chart(points({{"dense", 0, 1, 0, false}}));
  EXPECT_EQ(parse_markup(svg).problem, "");
  EXPECT_NE(svg.find("1.00x"), std::string::npos);
  EXPECT_EQ(scatter_chart(points({})), "");
  EXPECT_EQ(scatter_chart(points({{"broken", 0, kNaN, kNaN, false}})), "");
}

TEST(ScatterChart, draws_a_larger_loss_lower) {
  const std::string svg = scatter_chart(points({{"good", 0, 2, 0.01, false}, {"bad", 5, 3, 0.09, false}}));
  const auto height = [&](std::string_view name) {
    const size_t circle = svg.find("cy=\"", svg.find(fmt::format("<title>{}</title>", name)));
    return std::stod(svg.substr(circle + 4));
  };
  EXPECT_LT(height("good"), height("bad"));
}

TEST(Charts, escape_names) {
  const std::string bad = "<script>\"'&";
  LineChart chart = lines({1, 2, 3, 4}, {1, 2, 3, 4});
  chart.series[0].name = chart.title = chart.x_label = chart.y_label = bad;
  for (const std::string& svg : {line_chart(chart), scatter_chart(points({{bad, 0, 1, 0, false}}))}) {
    const Markup markup = parse_markup(svg);
    EXPECT_EQ(markup.problem, "");
    EXPECT_EQ(markup.count("script"), 0);
    EXPECT_NE(markup.text.find("&lt;script&gt;"), std::string::npos);
  }
}

TEST(Charts, tell_twenty_styles_apart) {
  std::vector<std::string> marks;
  for (int style = 0; style < 20; ++style) {
    marks.push_back(legend_mark(style));
    EXPECT_EQ(parse_markup(marks.back()).problem, "");
    for (int other = 0; other < style; ++other) EXPECT_NE(marks[size_t(other)], marks[size_t(style)]);
  }
}

}  // namespace
}  // namespace foveate::report
