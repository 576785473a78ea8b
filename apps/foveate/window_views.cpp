#include "window_views.h"

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::app {

report::WindowView view_windows(std::string title, const Neighborhood& neighborhood) {
  check_neighborhood(neighborhood);
  report::WindowView view{std::move(title), {}};
  for (const NeighborhoodAxis& axis : neighborhood.axes) {
    auto& windows = view.axes.emplace_back();
    for (int64_t x = 0; x < axis.length; ++x) {
      const int64_t group = x % axis.dilation;
      const auto [first, end] = axis.window(x / axis.dilation, axis.group_length(group));
      windows.push_back({first * axis.dilation + group, end - first, axis.dilation});
    }
  }
  return view;
}

report::WindowView view_windows(std::string title, const attention::Halo& halo, int64_t height, int64_t width) {
  require(halo.block >= 1 && halo.halo >= 0, "windows: block must be >= 1 and halo >= 0, got {} and {}", halo.block,
          halo.halo);
  report::WindowView view{std::move(title), {}};
  for (const int64_t length : {height, width}) {
    auto& windows = view.axes.emplace_back();
    for (int64_t x = 0; x < length; ++x) {
      const int64_t start = x / halo.block * halo.block - halo.halo, window = halo.window();
      const bool shifts = halo.padding == attention::HaloPadding::shift;
      const int64_t first = std::max<int64_t>(shifts ? std::min(start, length - window) : start, 0);
      const int64_t end = std::min(shifts ? first + window : start + window, length);
      windows.push_back({first, end - first});
    }
  }
  return view;
}

}  // namespace foveate::app
