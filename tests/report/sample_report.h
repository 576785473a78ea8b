// A comparison with everything in it, for the tests of its written forms.
#pragma once

#include <cmath>
#include <limits>

#include "foveate/report/compare_report.h"

namespace foveate::report {

inline CompareRow sample_row(std::string attention, std::string mechanism_class, double speed, double loss) {
  CompareRow row;
  row.attention = std::move(attention);
  row.mechanism_class = std::move(mechanism_class);
  row.prefill_tokens_per_s = 412 * speed;
  row.prefill_vs_dense = speed;
  row.decode_tokens_per_s = 31.5;
  row.kv_bytes = 94'371'840;
  row.kv_bytes_read_per_token = 22'100'000;
  row.peak_bytes = 1'200'000'000;
  row.density = 0.234;
  row.kept_mass = 0.876;
  row.perplexity = std::exp(2.7 + loss);
  row.nats_vs_dense = loss;
  row.top1_agreement = 1 - loss;
  row.kl_vs_dense = loss;
  row.needle_score = 0.71;
  row.needle_total = 100;
  row.needle_hits = 23;
  row.passkey_hits = 18;
  row.passkey_total = 20;
  row.nll_by_position = {3.1 + loss, 2.8 + loss, 2.7 + loss, std::numeric_limits<double>::quiet_NaN()};
  return row;
}

inline CompareReport sample_report() {
  CompareReport report;
  report.machine = {"A CPU", 2, 8'000'000'000, "Linux"};
  report.versions = {"0.1.0", "2.13.0", "g++ 12"};
  report.level = "portable";
  report.model = {"SmolLM2-135M-Instruct", "models/smollm2.gguf", "llama", 134'515'008, "bf16"};
  report.text = {"book", "texts/book.txt", 32768};
  report.context = 4096;
  report.seed = 7;
  report.threads = 2;
  report.date = "2026-01-02";
  report.command = "foveate compare --model smollm2 --text book";
  report.bucket_positions = {1024, 2048, 3072, 4096};
  report.rows = {sample_row("dense", "row", 1, 0), sample_row("window:size=512,sinks=4", "row", 1.84, 0.0421),
                 sample_row("dhsa:budget=512", "block", 1.31, 0.0073)};
  report.rows[1].needle_vs_dense_low = -0.295;
  report.rows[1].needle_vs_dense_high = -0.116;
  report.rows[2].continuation_nats_vs_dense = 0.0095;
  report.rows[2].continuation_top1_agreement = 0.93;
  report.rows[2].continuation_kl_vs_dense = 0.04;
  report.complete = true;
  return report;
}

}  // namespace foveate::report
