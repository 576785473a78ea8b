#include "foveate/report/compare_report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "foveate/report/compare_columns.h"
#include "foveate/report/text.h"
#include "tests/report/sample_report.h"

namespace foveate::report {
namespace {

using Json = nlohmann::ordered_json;

TEST(CompareJson, parses_back_with_every_promised_key_and_value) {
  const std::string text = to_json(sample_report());
  const Json json = Json::parse(text);
  for (const char* key : {"machine", "versions", "level", "model", "text", "context", "seed", "rows"})
    EXPECT_TRUE(json.contains(key)) << key;
  ASSERT_EQ(json["rows"].size(), 3u);
  for (const char* key :
       {"attention", "prefill_tokens_per_s", "decode_tokens_per_s", "kv_bytes", "kv_bytes_read_per_token", "peak_bytes",
        "density", "perplexity", "nats_vs_dense", "top1_agreement", "kl_vs_dense", "needle_score", "needle_total"})
    for (const Json& row : json["rows"]) EXPECT_FALSE(row.value(key, Json()).is_null()) << key;
  EXPECT_EQ(json["context"], 4096);
  EXPECT_EQ(json["seed"], 7);
  EXPECT_EQ(json["complete"], true);
  EXPECT_EQ(json["model"]["parameters"], 134'515'008);
  EXPECT_EQ(json["rows"][1]["attention"], "window:size=512,sinks=4");
  EXPECT_EQ(json["rows"][1]["nats_vs_dense"], 0.0421);
  EXPECT_EQ(json["rows"][1]["kv_bytes"], 94'371'840);
  EXPECT_EQ(json["rows"][2]["continuation_nats_vs_dense"], 0.0095);
  EXPECT_EQ(json["bucket_positions"], Json({1024, 2048, 3072, 4096}));
  EXPECT_TRUE(text.starts_with("{\n  \"machine\": {\n    \"cpu\": \"A CPU\",\n"));
  EXPECT_TRUE(text.ends_with("}\n"));
}

TEST(CompareJson, writes_null_for_what_is_missing_or_not_finite) {
  CompareReport report = sample_report();
  report.rows = {CompareRow{.attention = "hisa", .mechanism_class = "row"}};
  report.rows[0].perplexity = std::numeric_limits<double>::infinity();
  report.rows[0].nll_by_position = {std::numeric_limits<double>::quiet_NaN(), 2.0};
  report.rows[0].error = "hisa: needs an indexer";
  report.complete = false;
  const Json json = Json::parse(to_json(report)), &row = json["rows"][0];
  EXPECT_TRUE(row["perplexity"].is_null());
  EXPECT_TRUE(row["kv_bytes"].is_null());
  EXPECT_TRUE(row["needle_score"].is_null());
  EXPECT_EQ(row["nll_by_position"], Json({nullptr, 2.0}));
  EXPECT_EQ(row["error"], "hisa: needs an indexer");
  EXPECT_EQ(json["complete"], false);
}

TEST(CompareJson, survives_names_that_are_not_utf8) {
  CompareReport report = sample_report();
  report.text.path = "caf\xe9.txt";
  EXPECT_EQ(Json::parse(to_json(report))["text"]["path"], "caf�.txt");
}

TEST(CompareTable, has_one_row_per_mechanism_in_every_block_and_fits_a_wide_terminal) {
  CompareReport report = sample_report();
  report.rows.push_back(sample_row(std::string(200, 'x'), "row", 1, 0));
  std::istringstream lines(to_table(report));
  int windows = 0;
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(display_width(line), 124) << line;
    windows += line.starts_with("window:size=512,sinks=4 ") ? 1 : 0;
  }
  EXPECT_EQ(windows, 4);
}

TEST(CompareTable, leaves_out_blocks_that_were_not_measured_and_tells_what_failed) {
  CompareReport report = sample_report();
  for (CompareRow& row : report.rows)
    row.continuation_nats_vs_dense = row.continuation_top1_agreement = row.continuation_kl_vs_dense = {};
  report.rows[2].error = "stopped";
  report.rows[1].note = "decodes densely";
  report.complete = false;
  const std::string table = to_table(report);
  EXPECT_EQ(table.find("cont."), std::string::npos);
  EXPECT_NE(table.find("not finished: dhsa:budget=512: stopped\n"), std::string::npos);
  EXPECT_NE(table.find("note: window:size=512,sinks=4: decodes densely\n"), std::string::npos);
  EXPECT_NE(table.find("stopped before its end"), std::string::npos);
}

TEST(CompareTable, of_no_rows_is_no_problem) {
  EXPECT_FALSE(to_table(CompareReport{}).empty());
  EXPECT_TRUE(Json::parse(to_json(CompareReport{}))["rows"].empty());
}

TEST(CompareColumns, show_each_value_of_a_full_row_and_dashes_for_an_empty_one) {
  CompareReport report = sample_report();
  CompareRow full = report.rows[1];
  full.continuation_nats_vs_dense = 0.1, full.continuation_top1_agreement = 0.9, full.continuation_kl_vs_dense = 0.2;
  for (const CompareColumn& column : compare_columns()) {
    EXPECT_NE(column.cell(full), "-") << column.title;
    EXPECT_EQ(column.cell(CompareRow{}), "-") << column.title;
    EXPECT_TRUE(column.meaning.ends_with('.')) << column.title;
  }
}

}  // namespace
}  // namespace foveate::report
