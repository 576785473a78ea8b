// The command line: parses, calls the library, turns an Error into one line and exit status 2.
#include <ATen/Version.h>
#include <torch/version.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <CLI/CLI.hpp>
#include <cstdio>

#include "commands.h"
#include "common.h"
#include "foveate/base/error.h"
#include "foveate/ops/level.h"

namespace {

// Every layer allocates the same activations anew: given back to the system in between, their pages cost a long prompt
// up to a tenth of its time.
void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr int kMost = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kMost);
  mallopt(M_TRIM_THRESHOLD, kMost);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  CLI::App app(
      "Every attention, one engine: run language models with any attention, and see what it costs and loses.\n",
      "foveate");
  app.require_subcommand(1);
  app.set_version_flag("--version", [] {
    return fmt::format("foveate {}, kernel level {}, torch {}", FOVEATE_VERSION, foveate::ops::kernel_level(),
                       TORCH_VERSION);
  });
  app.footer(
      "Examples:\n"
      "  foveate compare --model smollm2 --text book --context 4096 --attention dense --attention window:size=512\n"
      "  foveate run --model smollm2 \"Why is the sky blue?\"\n"
      "  foveate list dhsa");
  foveate::app::add_compare(app);
  foveate::app::add_run(app);
  foveate::app::add_score(app);
  foveate::app::add_tokenize(app);
  foveate::app::add_embed(app);
  foveate::app::add_list(app);
  foveate::app::add_find_patterns(app);
  foveate::app::add_bench(app);
  foveate::app::add_train(app);
  foveate::app::add_upscale(app);
  foveate::app::add_upsample_features(app);
  foveate::app::add_windows(app);
  try {
    foveate::ops::avoid_faulty_products();
    app.parse(argc, argv);
    foveate::app::print_kernel_uses();
  } catch (const CLI::Success& done) {  // --help, --version
    return app.exit(done);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "foveate: {}\n", error.what());
    return 2;
  } catch (const foveate::Error& error) {
    fmt::print(stderr, "foveate: {}\n", error.what());
    return 2;
  } catch (const foveate::app::Interrupted&) {
    fmt::print(stderr, "foveate: interrupted\n");
    return 130;
  } catch (const std::exception& error) {  // a fault of ours or of torch: the first line says which
    const std::string text = error.what();
    fmt::print(stderr, "foveate: internal error: {}\n", text.substr(0, text.find('\n')));
    return 1;
  }
  return 0;
}
