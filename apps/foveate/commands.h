// The subcommands: each adds itself to the command line and runs when chosen.  They hold no logic of their own.
#pragma once

#include <CLI/CLI.hpp>

namespace foveate::eval {
struct MechanismBenchOptions;
}

namespace foveate::app {

void add_compare(CLI::App& app);
void add_run(CLI::App& app);
void add_score(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_list(CLI::App& app);
void add_find_patterns(CLI::App& app);
void add_bench(CLI::App& app);
void add_embed(CLI::App& app);
void add_train(CLI::App& app);
void add_upscale(CLI::App& app);
void add_upsample_features(CLI::App& app);
void add_windows(CLI::App& app);

void bench_mechanisms(const eval::MechanismBenchOptions& options, bool as_json);  // a suite of `bench attention`

}  // namespace foveate::app
