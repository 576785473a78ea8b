#include "foveate/report/compare_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "foveate/base/error.h"
#include "foveate/report/compare_columns.h"
#include "foveate/report/compare_parts.h"
#include "foveate/report/table.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSpecColumns = 32;  // of a terminal line; the rest is for numbers

Json json_count(std::optional<int64_t> count) { return count ? Json(*count) : Json(nullptr); }

Json json_text(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json json_of(const std::vector<double>& numbers) {
  Json json = Json::array();
  for (const double number : numbers) json.push_back(json_number(number));
  return json;
}

Json json_of(const std::vector<std::vector<double>>& grid) {
  Json json = Json::array();
  for (const std::vector<double>& numbers : grid) json.push_back(json_of(numbers));
  return json;
}

Json json_of(const CompareRow& row) {
  Json json;
  json["attention"] = row.attention;
  json["mechanism_class"] = json_text(row.mechanism_class);
  json["prefill_tokens_per_s"] = json_number(row.prefill_tokens_per_s);
  json["prefill_vs_dense"] = json_number(row.prefill_vs_dense);
  json["decode_tokens_per_s"] = json_number(row.decode_tokens_per_s);
  json["kv_bytes"] = json_count(row.kv_bytes);
  json["kv_bytes_read_per_token"] = json_count(row.kv_bytes_read_per_token);
  json["peak_bytes"] = json_count(row.peak_bytes);
  json["density"] = json_number(row.density);
  json["kept_mass"] = json_number(row.kept_mass);
  json["perplexity"] = json_number(row.perplexity);
  json["nats_vs_dense"] = json_number(row.nats_vs_dense);
  json["top1_agreement"] = json_number(row.top1_agreement);
  json["kl_vs_dense"] = json_number(row.kl_vs_dense);
  json["continuation_nats_vs_dense"] = json_number(row.continuation_nats_vs_dense);
  json["continuation_top1_agreement"] = json_number(row.continuation_top1_agreement);
  json["continuation_kl_vs_dense"] = json_number(row.continuation_kl_vs_dense);
  json["needle_score"] = json_number(row.needle_score);
  json["needle_total"] = json_count(row.needle_total);
  json["needle_vs_dense_low"] = json_number(row.needle_vs_dense_low);
  json["needle_vs_dense_high"] = json_number(row.needle_vs_dense_high);
  json["needle_hits"] = json_count(row.needle_hits);
  json["passkey_hits"] = json_count(row.passkey_hits);
  json["passkey_total"] = json_count(row.passkey_total);
  json["nll_by_position"] = json_of(row.nll_by_position);
  json["kept_mass_by_layer"] = json_of(row.kept_mass_by_layer);
  json["sweep"] = json_text(row.sweep);
  json["sweep_value"] = json_text(row.sweep_value);
  json["ruler"] = Json::array();
  for (const RulerCell& cell : row.ruler)
    json["ruler"].push_back({{"task", cell.task},
                             {"length", cell.length},
                             {"samples", cell.samples},
                             {"score", json_number(cell.score)},
                             {"ranked_first", json_number(cell.ranked_first)}});
  json["needle_heat"] = json_of(row.needle_heat);
  json["passkey_heat"] = json_of(row.passkey_heat);
  json["note"] = json_text(row.note);
  json["error"] = json_text(row.error);
  return json;
}

// One block of the terminal's output; empty when nothing in it was measured.
std::string group_table(const CompareReport& report, std::span<const std::string_view> groups) {
  std::vector<Column> titles = {{"attention", Align::kLeft}};
  std::vector<std::vector<std::string>> rows;
  for (const CompareRow& row : report.rows) rows.push_back({shorten(clean_text(row.attention), kSpecColumns)});
  for (const CompareColumn& column : compare_columns()) {
    const bool is_listed = std::find(groups.begin(), groups.end(), column.group) != groups.end();
    if (!is_listed || !is_measured(column, report)) continue;
    titles.push_back({std::string(column.title), Align::kRight});
    for (size_t r = 0; r < rows.size(); ++r) rows[r].push_back(column.cell(report.rows[r]));
  }
  return titles.size() > 1 ? format_table(titles, rows) + "\n" : "";
}

}  // namespace

std::string to_json(const CompareReport& report) {
  Json json;
  json["machine"] = {{"cpu", report.machine.cpu},
                     {"cores", report.machine.cores},
                     {"memory_bytes", report.machine.memory_bytes},
                     {"os", report.machine.os}};
  json["versions"] = {
      {"foveate", report.versions.foveate}, {"torch", report.versions.torch}, {"compiler", report.versions.compiler}};
  json["level"] = report.level;
  json["model"] = {{"name", report.model.name},
                   {"path", report.model.path},
                   {"architecture", report.model.architecture},
                   {"parameters", report.model.parameters},
                   {"dtype", report.model.dtype}};
  json["text"] = {{"name", report.text.name}, {"path", report.text.path}, {"tokens", report.text.tokens}};
  json["context"] = report.context;
  json["seed"] = report.seed;
  json["threads"] = report.threads;
  json["date"] = report.date;
  json["command"] = report.command;
  json["complete"] = report.complete;
  json["needle_distractors"] = report.needle_distractors;
  json["bucket_positions"] = report.bucket_positions;
  json["heat_map"] = {
      {"lengths", report.heat_lengths}, {"depth_percent", report.heat_depths}, {"prompts", report.heat_prompts}};
  json["rows"] = Json::array();
  for (const CompareRow& row : report.rows) json["rows"].push_back(json_of(row));
  // File names need not be UTF-8; the replacement keeps the rest of the report readable.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string to_table(const CompareReport& report) {
  constexpr std::string_view kCost[] = {kSpeed, kMemory}, kLoss[] = {kQuality}, kLater[] = {kContinuation},
                             kFound[] = {kRetrieval};
  std::string text =
      fmt::format("{} ({}), context {}, text {}\n\n", clean_text(report.model.name), clean_text(report.model.dtype),
                  format_count(report.context), clean_text(report.text.name));
  text += group_table(report, kCost) + group_table(report, kLoss) + group_table(report, kLater) +
          group_table(report, kFound) + ruler_table(report) + heat_table(report);
  for (const CompareRow& row : report.rows) {
    if (!row.error.empty())
      text += fmt::format("not finished: {}: {}\n", clean_text(row.attention), clean_text(row.error));
    if (!row.note.empty()) text += fmt::format("note: {}: {}\n", clean_text(row.attention), clean_text(row.note));
  }
  if (!report.complete) text += "The comparison was stopped before its end; what was finished is shown.\n";
  return text;
}

}  // namespace foveate::report
