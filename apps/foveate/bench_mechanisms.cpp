// foveate bench attention --suite mechanisms: what choosing keys saves and costs, for every mechanism.
#include "foveate/eval/bench_mechanisms.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common.h"
#include "foveate/base/error.h"
#include "foveate/ops/level.h"
#include "foveate/report/table.h"
#include "foveate/report/text.h"
#include "machine.h"

namespace foveate::app {
namespace {

nlohmann::ordered_json json_of(const eval::MechanismTiming& t) {
  nlohmann::ordered_json line = {{"attention", t.attention},
                                 {"tokens", t.problem.length},
                                 {"heads", t.problem.heads},
                                 {"kv_heads", t.problem.kv_heads},
                                 {"dim", t.problem.dim},
                                 {"threads", t.threads},
                                 {"dense_prefill_seconds", t.dense_prefill_seconds},
                                 {"dense_decode_seconds", t.dense_decode_seconds}};
  if (t.sdpa_prefill_seconds > 0) {
    line["sdpa_prefill_seconds"] = t.sdpa_prefill_seconds;
    line["sdpa_decode_seconds"] = t.sdpa_decode_seconds;
  }
  if (t.full) line["full_budget"] = *t.full, line["full_budget_error"] = t.full_error;
  if (!t.error.empty()) {
    line["error"] = t.error;
    return line;
  }
  line["prefill_seconds"] = t.prefill_seconds;
  line["decode_seconds"] = t.decode_seconds;
  line["density"] = t.density;
  line["decode_read"] = t.decode_read;
  line["kept_mass"] = report::json_number(t.kept_mass);
  return line;
}

std::vector<std::string> cells_of(const eval::MechanismTiming& t) {
  const auto over = [](double other, double own) {
    return other > 0 ? report::format_ratio(other / own) : std::string();
  };
  std::vector<std::string> cells = {report::shorten(t.attention, 36), std::to_string(t.problem.length),
                                    t.full ? fmt::format("{:.1e}", t.full_error) : std::string()};
  if (!t.error.empty()) {
    cells.resize(12);
    return cells;
  }
  for (std::string cell :
       {report::format_percent(t.density), report::format_percent(t.kept_mass),
        fmt::format("{:.1f}", t.prefill_seconds * 1e3), over(t.dense_prefill_seconds, t.prefill_seconds),
        over(t.sdpa_prefill_seconds, t.prefill_seconds), fmt::format("{:.0f}", t.decode_seconds * 1e6),
        over(t.dense_decode_seconds, t.decode_seconds), over(t.sdpa_decode_seconds, t.decode_seconds),
        report::format_percent(t.decode_read)})
    cells.push_back(std::move(cell));
  return cells;
}

}  // namespace

void bench_mechanisms(const eval::MechanismBenchOptions& options, bool as_json) {
  options.validate();
  if (as_json)
    fmt::print("{}\n", nlohmann::ordered_json({{"cpu", this_machine().cpu},
                                               {"level", ops::kernel_level()},
                                               {"torch", this_build().torch},
                                               {"dtype", options.type == at::kFloat  ? "fp32"
                                                         : options.type == at::kHalf ? "fp16"
                                                                                     : "bf16"},
                                               {"date", today()},
                                               {"command", command_line()}})
                           .dump());
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> errors;
  ProgressLine progress;
  eval::bench_mechanisms(options, [&](const eval::MechanismTiming& t) {
    throw_if_interrupted();
    if (!t.error.empty()) errors.push_back(fmt::format("{}, {}: {}", t.attention, t.problem.name(), t.error));
    if (as_json) {
      fmt::print("{}\n", json_of(t).dump());
      std::fflush(stdout);
      return;
    }
    progress.show("bench", fmt::format("{}, {}", t.attention, t.problem.name()), 0);
    rows.push_back(cells_of(t));
  });
  progress.finish();
  if (!as_json)
    fmt::print("{}", report::format_table({{"attention", report::Align::kLeft},
                                           {"tokens"},
                                           {"error at full budget"},
                                           {"density"},
                                           {"kept mass"},
                                           {"prefill ms"},
                                           {"over dense"},
                                           {"over SDPA"},
                                           {"decode us"},
                                           {"over dense"},
                                           {"over SDPA"},
                                           {"of cache read"}},
                                          rows));
  for (const std::string& error : errors) fmt::print(stderr, "not timed: {}\n", error);
  require(errors.empty(), "bench: {} of the cases failed their check or could not run", errors.size());
}

}  // namespace foveate::app
