// The page of a training run.
#include "foveate/report/training.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/report/markup.h"

namespace foveate::report {
namespace {

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

TEST(TrainingPage, has_a_curve_for_every_name_and_needs_nothing_from_outside) {
  const std::vector<TrainingRecord> records = {{100, {{"loss", 2.5}, {"lr", 0.001}}},
                                               {200, {{"loss", 1.25}, {"lr", 0.0005}, {"accuracy", 0.75}}}};
  const std::string html = training_page("foveate train x", records);
  const Markup markup = parse_markup(html);
  EXPECT_EQ(markup.problem, "");
  EXPECT_EQ(markup.count("figure"), 3);
  EXPECT_EQ(markup.count("script") + markup.count("img") + markup.count("link"), 0);
  for (const char* part : {"After 200 steps", "1.25", "0.75", "foveate train x"})
    EXPECT_TRUE(contains(markup.text, part)) << part;
  EXPECT_LT(html.find("<b>loss"), html.find("<b>lr"));
  EXPECT_FALSE(contains(html, "nan"));
}

TEST(TrainingPage, makes_texts_inert_and_bears_what_is_no_number) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<TrainingRecord> records = {{1, {{"<script>", inf}}}, {2, {{"<script>", 1}}}};
  const std::string html = training_page("<script>alert(1)</script>", records);
  EXPECT_EQ(parse_markup(html).problem, "");
  EXPECT_FALSE(contains(html, "<script"));
  EXPECT_EQ(parse_markup(training_page("x", {})).problem, "");
}

TEST(TrainingPage, of_many_steps_has_curves_without_marks) {
  std::vector<TrainingRecord> records;
  for (int64_t step = 1; step <= 500; ++step) records.push_back({step, {{"loss", 1.0 / double(step)}}});
  const std::string html = training_page("x", records);
  EXPECT_EQ(parse_markup(html).count("polygon"), 0);
  for (const char* tick : {">100<", ">500<"}) EXPECT_TRUE(contains(html, tick)) << tick;
}

}  // namespace
}  // namespace foveate::report
