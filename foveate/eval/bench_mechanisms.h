// Every mechanism beside dense attention and torch's, called as a model's layer calls it: what is timed is the state's
// prefill and decode, so selection, summaries and cache are inside of every figure.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "foveate/attention/registry.h"

namespace foveate::eval {

struct LayerProblem {
  int64_t length, heads, kv_heads, dim, width;

  std::string name() const;  // "8,192 tokens, 9/3 heads of 64"
};
// Layers of models by length: SmolLM2's up to 8,192 tokens (9/3 heads of 64), Gemma 3's global ones up to 32,768 (4/1
// of 256), beyond that a made-up one (4/1 of 64).
LayerProblem layer_problem(int64_t length);

// Made-up queries, keys and values [1, heads, rows, dim], rotated, and hidden states [1, rows, width].  Segments of 64
// tokens have a topic; queries look for topics, their own and others, and for the first four keys (sinks): weights are
// as uneven as a model's, where random numbers would give nearly equal ones that nothing can select from.
attention::Inputs layer_inputs(const LayerProblem& problem, int64_t rows, at::ScalarType type);

struct MechanismBenchOptions {
  // A value n or n/16 is the length, or that part of it.  Empty: dense and every mechanism of the list at its defaults,
  // but with a budget that is a part of the length, where one is known: 1 to 18 % of all pairs, quest's prompts all.
  std::vector<std::string> attention;
  std::vector<int64_t> lengths = {8192, 32768, 65536};
  at::ScalarType type = at::kBFloat16;
  std::vector<int> threads = {1};
  int64_t repeats = 3, decoded = 16;  // prefills that are timed, and tokens decoded behind each
  bool peers = true;                  // torch's attention too

  void validate() const;  // Throws Error: numbers < 1, a spec that can be made at none of the lengths
};

struct MechanismTiming {
  std::string attention;  // as it ran at this length
  LayerProblem problem;
  int threads = 1;
  double prefill_seconds = 0, decode_seconds = 0;  // medians; of one token
  double dense_prefill_seconds = 0, dense_decode_seconds = 0;
  double sdpa_prefill_seconds = 0, sdpa_decode_seconds = 0;  // 0: not run; decode with a group's heads as rows
  double density = 0;                                        // visited / causal pairs of the prefill
  double decode_read = 0;                                    // bytes read for a token over those dense attention reads
  std::optional<double> kept_mass;                           // see kept_mass.h; made-up data
  std::optional<std::string> full;  // the spec whose budget covers everything, held against dense; none known: none
  double full_error = 0;            // its relative difference from dense, at most 1,000 tokens
  std::string error;                // why nothing was timed; empty: all is well
};

// Each spec is checked at up to 1,000 tokens before it is timed: with a budget that covers everything prefilled and
// decoded rows must equal dense attention's.  One that fails, or that throws, is reported with an error and not timed.
// Throws Error: an unknown mechanism or option.
void bench_mechanisms(const MechanismBenchOptions& options, const std::function<void(const MechanismTiming&)>& done);

// The pieces, public for tests.  The mechanism's default spec for a bench, and a spec's twin whose budget covers
// everything; lengths still as n.
std::string sparse_spec(const std::string& mechanism);
std::optional<std::string> full_spec(const std::string& spec);
// Replaces values n and n/16.  Throws Error: a part of n below 1.
std::string spec_at(const std::string& spec, int64_t length);

}  // namespace foveate::eval
