// foveate windows: which keys each query of local attention sees, as a page.
#include <algorithm>

#include "commands.h"
#include "common.h"
#include "foveate/base/write_file.h"
#include "foveate/report/page.h"
#include "window_views.h"

namespace foveate::app {
namespace {

struct Options {
  std::vector<int64_t> grid = {28, 28}, kernel = {7}, dilation = {1}, stride = {1};
  std::vector<int> causal = {0};
  int64_t block = 0, halo = 3;
  std::string out;
};

// One value for every axis, or one for all.
template <class T>
T of_axis(const char* name, const std::vector<T>& values, size_t axis, size_t axes) {
  require(values.size() == 1 || values.size() == axes, "windows: --{} must have 1 or {} numbers, got {}", name, axes,
          values.size());
  return values[values.size() == 1 ? 0 : axis];
}

report::WindowView neighborhood_view(const Options& options) {
  Neighborhood neighborhood;
  const size_t axes = options.grid.size();
  int64_t keys = 1;
  for (size_t i = 0; i < axes; ++i) {
    NeighborhoodAxis axis{.length = options.grid[i], .kernel = of_axis("kernel", options.kernel, i, axes)};
    axis.stride = of_axis("stride", options.stride, i, axes);
    axis.dilation = of_axis("dilation", options.dilation, i, axes);
    axis.is_causal = of_axis("causal", options.causal, i, axes) != 0;
    neighborhood.axes.push_back(axis);
    keys *= axis.kernel;
  }
  report::WindowView view = view_windows("", neighborhood);
  view.title = fmt::format("{} places, windows of {} keys ({}), dilation {}, stride {}", view.places(), keys,
                           fmt::join(options.kernel, " x "), fmt::join(options.dilation, " x "),
                           fmt::join(options.stride, " x "));
  return view;
}

report::WindowView halo_view(const Options& options) {
  require(options.grid.size() == 2, "windows: --grid must have 2 numbers with --block, got {}", options.grid.size());
  const attention::Halo halo{.block = options.block, .halo = options.halo};
  const std::string title = fmt::format("{} x {} pixels, blocks of {} with a halo of {}", options.grid[0],
                                        options.grid[1], options.block, options.halo);
  return view_windows(title, halo, options.grid[0], options.grid[1]);
}

void show_windows(const Options& options) {
  const report::WindowView view = options.block > 0 ? halo_view(options) : neighborhood_view(options);
  const std::string html = "<h1>Who sees whom</h1>\n<p class=\"lead\">Point at a place: it sees what is marked.</p>\n" +
                           report::window_view(view);
  write_file_atomically(options.out, report::page("foveate windows", html));
  fmt::print("{}\n{}\n", view.title, options.out);
}

}  // namespace

void add_windows(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("windows", "a page that shows which keys each query of local attention sees");
  const auto list = [&](const char* name, auto& values, const char* doc) {
    return command->add_option(name, values, doc)->delimiter(',')->capture_default_str();
  };
  list("--grid", options->grid, "places of each of 1 .. 3 axes")->check(CLI::PositiveNumber);
  list("--kernel", options->kernel, "keys of a window, of each axis or of all");
  list("--dilation", options->dilation, "distance of two keys");
  list("--stride", options->stride, "queries that share a window");
  list("--causal", options->causal, "1: no later keys")->check(CLI::Range(0, 1));
  command->add_option("--block", options->block, "halo attention instead: pixels of a block's side")
      ->check(CLI::PositiveNumber);
  command->add_option("--halo", options->halo, "pixels around a block")->capture_default_str();
  command->add_option("-o,--out", options->out, "HTML page")->required();
  command->footer(
      "Examples:\n"
      "  foveate windows --grid 28,28 --kernel 7 --dilation 4 -o windows.html\n"
      "  foveate windows --grid 4,14,14 --kernel 3,7,7 --causal 1,0,0 -o video.html\n"
      "  foveate windows --grid 32,32 --block 8 --halo 3 -o halo.html");
  command->callback([options] { show_windows(*options); });
}

}  // namespace foveate::app
