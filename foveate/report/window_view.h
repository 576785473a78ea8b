// Which keys each query of a grid sees, as a picture that answers to the pointer: inline SVG and CSS, no script.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace foveate::report {

// Keys first, first + step, .. : count of them.
struct AxisWindow {
  int64_t first = 0, count = 0, step = 1;
};

// A query sees the product of what it sees along each axis, the last axis inner.
struct WindowView {
  std::string title;                          // text
  std::vector<std::vector<AxisWindow>> axes;  // of each place along 1 .. 3 axes

  int64_t places() const;
};

inline constexpr int64_t kMostWindowPlaces = 4096;

// A figure: planes of the first axis side by side, a square for every place; its window shows while it is pointed at or
// has the focus, that of the place in the middle before.  Throws Error: no axis or more than three, more places than
// kMostWindowPlaces, keys outside of the grid.
std::string window_view(const WindowView& view);

// The CSS that it needs.
std::string window_view_style();

}  // namespace foveate::report
