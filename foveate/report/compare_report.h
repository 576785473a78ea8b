// What `foveate compare` found, as data, and its three written forms: JSON for machines, HTML and a table for people.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace foveate::report {

struct RulerCell {
  std::string task{};
  int64_t length = 0, samples = 0;
  double score = 0, ranked_first = 0;  // means of shares
};

// One mechanism.  A value that was not measured is absent: null in JSON, "-" for people.  Losses are in nats per token.
struct CompareRow {
  std::string attention;        // the spec string as the user gave it
  std::string mechanism_class;  // row, block or prompt
  std::optional<double> prefill_tokens_per_s{}, prefill_vs_dense{}, decode_tokens_per_s{};
  std::optional<int64_t> kv_bytes{}, kv_bytes_read_per_token{}, peak_bytes{};
  std::optional<double> density{};    // visited keys / causal keys
  std::optional<double> kept_mass{};  // share of dense attention's weight that lies on visited keys
  std::optional<double> perplexity{}, nats_vs_dense{}, top1_agreement{}, kl_vs_dense{};
  // The same through the decode rule, on a continuation of the text: classes block and prompt.
  std::optional<double> continuation_nats_vs_dense{}, continuation_top1_agreement{}, continuation_kl_vs_dense{};
  std::optional<double> needle_score{};  // share of prompts whose answer ranked first among the distractors
  std::optional<int64_t> needle_total{}, needle_hits{};
  std::optional<double> needle_vs_dense_low{},
      needle_vs_dense_high{};  // 95 % paired interval of the score's difference
  std::optional<int64_t> passkey_hits{}, passkey_total{};
  std::vector<double> nll_by_position{};     // mean of each bucket; NaN where nothing was scored
  std::vector<double> kept_mass_by_layer{};  // NaN where a layer gives none
  std::string sweep{}, sweep_value{};        // of a row that is a point of a sweep: "dhsa:budget=256..4096", "512"
  std::vector<RulerCell> ruler{};            // by length, then task
  std::vector<std::vector<double>> needle_heat{}, passkey_heat{};  // [length][depth], shares
  std::string note{};                                              // one sentence for the reader, may be empty
  std::string error{};  // why the row is unfinished, empty when it is finished
};

struct CompareReport {
  struct Machine {
    std::string cpu{};
    int cores = 0;
    int64_t memory_bytes = 0;
    std::string os{};
  };
  struct Versions {
    std::string foveate{}, torch{}, compiler{};
  };
  struct Model {
    std::string name{}, path{}, architecture{};
    int64_t parameters = 0;
    std::string dtype{};
  };
  struct Text {
    std::string name{}, path{};
    int64_t tokens = 0;  // scored or read of it
  };
  Machine machine{};
  Versions versions{};
  std::string level{};  // kernel level, e.g. "avx512_bf16"
  Model model{};
  Text text{};
  int64_t context = 0;
  uint64_t seed = 0;
  int threads = 0;
  std::string date{}, command{};
  int needle_distractors = 20;              // wrong answers that each right one was ranked among
  std::vector<int64_t> bucket_positions{};  // where each bucket of nll_by_position ends, in tokens
  std::vector<int64_t> heat_lengths{};      // of the heat maps' columns, in tokens
  std::vector<int> heat_depths{};           // and of their rows, in percent
  int64_t heat_prompts = 0;                 // in each cell
  std::vector<CompareRow> rows{};
  bool complete = false;  // false: stopped before every row was done
};

// Keys in a fixed order, two spaces of indent, a newline at the end.
std::string to_json(const CompareReport& report);

// One file that needs nothing else: styles and charts inside, no script.  Every text of the report is escaped.
std::string to_html(const CompareReport& report);

// Tables of at most about 120 columns for a terminal; longer specs are shortened.
std::string to_table(const CompareReport& report);

}  // namespace foveate::report
