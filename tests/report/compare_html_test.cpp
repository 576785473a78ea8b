#include <fmt/format.h>
#include <gtest/gtest.h>

#include "foveate/report/compare_columns.h"
#include "foveate/report/compare_report.h"
#include "tests/report/markup.h"
#include "tests/report/sample_report.h"

namespace foveate::report {
namespace {

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

TEST(CompareHtml, is_balanced_and_needs_nothing_from_outside) {
  const std::string html = to_html(sample_report());
  const Markup markup = parse_markup(html);
  EXPECT_EQ(markup.problem, "");
  for (const char* element : {"script", "link", "img", "iframe", "object", "embed", "image", "use"})
    EXPECT_EQ(markup.count(element), 0) << element;
  for (const char* part : {"http://", "https://", "src=", "href=", "url(", "@import", " onload", "javascript:"})
    EXPECT_FALSE(contains(html, part)) << part;
  EXPECT_EQ(markup.count("table"), 3);
  EXPECT_EQ(markup.count("figure"), 3);
}

TEST(CompareHtml, makes_every_text_of_the_report_inert) {
  const std::string bad = "<script>alert(\"1\")</script>'&\"><img src=x onerror=alert(2)>";
  CompareReport report = sample_report();
  for (std::string* text :
       {&report.machine.cpu, &report.machine.os, &report.versions.foveate, &report.versions.torch,
        &report.versions.compiler, &report.level, &report.model.name, &report.model.path, &report.model.architecture,
        &report.model.dtype, &report.text.name, &report.text.path, &report.date, &report.command,
        &report.rows[1].attention, &report.rows[1].mechanism_class, &report.rows[1].note, &report.rows[1].error})
    *text = bad;
  const std::string html = to_html(report);
  const Markup markup = parse_markup(html);
  EXPECT_EQ(markup.problem, "");
  EXPECT_EQ(markup.count("script"), 0);
  EXPECT_EQ(markup.count("img"), 0);
  EXPECT_FALSE(contains(html, "<script"));
  EXPECT_FALSE(contains(html, "<img"));
}

TEST(CompareHtml, shows_every_mechanism_every_measured_value_and_what_each_column_means) {
  const CompareReport report = sample_report();
  const std::string html = to_html(report);
  for (const char* part :
       {"dense", "dhsa:<wbr/>budget=512", "15.520", "+0.0421", "1.84x", "23/100", "18/20", "-29.5 to -11.6", "93.0%",
        "94.4 MB", "A CPU", "foveate compare --model smollm2 --text book"})
    EXPECT_TRUE(contains(html, part)) << part;
  for (const CompareColumn& column : compare_columns()) {
    EXPECT_TRUE(contains(html, fmt::format("title=\"{}\"", column.meaning))) << column.title;
    EXPECT_TRUE(contains(html, fmt::format("<dd>{}</dd>", column.meaning))) << column.title;
  }
}

TEST(CompareHtml, says_in_words_what_was_lost_and_how_sure_that_is) {
  CompareReport report = sample_report();
  EXPECT_TRUE(contains(to_html(report),
                       "reads the prompt at 1.84x the speed of dense, looks at 23.4% of the pairs of tokens "
                       "and shows a loss of 0.0421 nats per token (perplexity +4.3%). On hidden facts it "
                       "scores 11.6 to 29.5 points below dense."));
  EXPECT_TRUE(contains(to_html(report), "0.0095 nats per token (perplexity +1.0%) on a continuation."));
  report.rows[1].needle_vs_dense_high = 0.02;
  report.rows[1].nats_vs_dense = -0.01;
  EXPECT_TRUE(contains(to_html(report), "a gain of 0.0100 nats"));
  EXPECT_TRUE(contains(to_html(report), "100 questions show no clear difference to dense."));
  EXPECT_TRUE(contains(to_html(report), "Guessing gives 4.8%"));
}

TEST(CompareHtml, of_an_interrupted_run_says_so_and_keeps_what_was_finished) {
  CompareReport report = sample_report();
  report.complete = false;
  report.rows[2] = CompareRow{.attention = "hisa", .mechanism_class = "row"};
  report.rows[2].error = "interrupted";
  const std::string html = to_html(report);
  EXPECT_EQ(parse_markup(html).problem, "");
  EXPECT_TRUE(contains(html, "stopped before its end"));
  EXPECT_TRUE(contains(html, "Not finished: interrupted"));
  EXPECT_TRUE(contains(html, "15.520"));
  EXPECT_FALSE(contains(to_html(sample_report()), "stopped before its end"));
}

TEST(CompareHtml, of_nothing_or_of_failures_alone_is_still_a_page) {
  CompareReport report = sample_report();
  report.rows.clear();
  EXPECT_EQ(parse_markup(to_html(report)).problem, "");
  EXPECT_TRUE(contains(to_html(report), "No mechanism was finished."));
  report.rows = {CompareRow{.attention = "hisa", .mechanism_class = "row"}};
  report.rows[0].error = "out of memory";
  EXPECT_EQ(parse_markup(to_html(report)).problem, "");
  EXPECT_TRUE(contains(to_html(report), "out of memory"));
  EXPECT_EQ(parse_markup(to_html(CompareReport{})).problem, "");
}

TEST(CompareHtml, leaves_out_curves_that_do_not_match_the_buckets) {
  CompareReport report = sample_report();
  report.rows[1].nll_by_position = {1, 2};
  const Markup markup = parse_markup(to_html(report));
  EXPECT_EQ(markup.problem, "");
  report.bucket_positions.clear();
  EXPECT_EQ(parse_markup(to_html(report)).count("figure"), 1);
}

}  // namespace
}  // namespace foveate::report
