#include "foveate/report/window_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "foveate/base/error.h"
#include "foveate/report/page.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

// With one-place axes in front: planes, rows, columns.
using Axes = std::array<std::vector<AxisWindow>, 3>;

Axes checked(const WindowView& view) {
  require(!view.axes.empty() && view.axes.size() <= 3, "window_view: the grid must have 1 .. 3 axes, got {}",
          view.axes.size());
  require(view.places() >= 1 && view.places() <= kMostWindowPlaces,
          "window_view: the grid must have 1 .. {} places, got {}; take a smaller one", kMostWindowPlaces,
          view.places());
  Axes axes;
  axes.fill({{.first = 0, .count = 1}});
  std::ranges::copy(view.axes, axes.end() - std::ssize(view.axes));
  for (const auto& axis : axes)
    for (const AxisWindow& w : axis)
      require(w.count >= 0 && w.step >= 1 &&
                  (w.count == 0 || (w.first >= 0 && w.first + (w.count - 1) * w.step < std::ssize(axis))),
              "window_view: keys must be in 0 .. {}, got {} from {} by {}", axis.size() - 1, w.count, w.first, w.step);
  return axes;
}

// Lines of squares: a dash for every key of a row.
std::string window_path(const Axes& axes, const std::array<AxisWindow, 3>& window) {
  const auto& [planes, rows, columns] = window;
  const int64_t width = std::ssize(axes[2]) + 1;  // a gap between planes
  std::string path;
  for (int64_t p = 0; p < planes.count; ++p)
    for (int64_t r = 0; r < rows.count; ++r)
      path += fmt::format("M{} {}.5h{}", (planes.first + p * planes.step) * width + columns.first,
                          rows.first + r * rows.step, (columns.count - 1) * columns.step + 1);
  const std::string dashes = columns.step > 1 ? fmt::format(" stroke-dasharray=\"1 {}\"", columns.step - 1) : "";
  return fmt::format("<path d=\"{}\"{}/>", columns.count > 0 ? path : "", dashes);
}

std::string place_name(size_t axes, const std::array<int64_t, 3>& place) {
  return fmt::format("{}", fmt::join(place.end() - std::ptrdiff_t(axes), place.end(), ", "));
}

}  // namespace

int64_t WindowView::places() const {
  int64_t count = axes.empty() ? 0 : 1;
  for (const auto& axis : axes) count *= std::ssize(axis);
  return count;
}

std::string window_view(const WindowView& view) {
  const Axes axes = checked(view);
  const int64_t planes = std::ssize(axes[0]), rows = std::ssize(axes[1]), columns = std::ssize(axes[2]);
  std::string grid;
  for (int64_t p = 0; p < planes; ++p)
    grid += fmt::format("<rect class=\"plane\" x=\"{}\" y=\"0\" width=\"{}\" height=\"{}\"/>", p * (columns + 1),
                        columns, rows);
  std::string queries;
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        const std::array<AxisWindow, 3> window{axes[0][size_t(p)], axes[1][size_t(r)], axes[2][size_t(c)]};
        const bool is_middle = p == planes / 2 && r == rows / 2 && c == columns / 2;
        const int64_t keys = window[0].count * window[1].count * window[2].count;
        queries += fmt::format(
            "<g class=\"query{}\" tabindex=\"0\"><title>{}: {} keys</title>{}<rect x=\"{}\" y=\"{}\" width=\"1\" "
            "height=\"1\"/></g>\n",
            is_middle ? " middle" : "", place_name(view.axes.size(), {p, r, c}), keys, window_path(axes, window),
            p * (columns + 1) + c, r);
      }
  const int64_t wide = planes * (columns + 1) - 1;
  const double cell = std::clamp(720.0 / double(wide), 2.0, 20.0);
  return figure(
      escape_html(view.title),
      fmt::format("<svg class=\"windows\" role=\"img\" viewBox=\"0 0 {} {}\" width=\"{:.0f}\" "
                  "height=\"{:.0f}\"><title>{}</title>{}\n{}</svg>",
                  wide, rows, double(wide) * cell, double(rows) * cell, escape_html(view.title), grid, queries));
}

std::string window_view_style() {
  return R"(
.windows{display:block;min-width:10rem}
.windows .plane{fill:var(--band);stroke:var(--line);stroke-width:.06}
.windows path{stroke:#4c8dd6;stroke-width:1;fill:none;visibility:hidden;pointer-events:none}
.windows .query rect{fill:transparent;stroke:var(--line);stroke-width:.03}
.windows .query:is(:hover,:focus,.middle) path{visibility:visible}
.windows .query:is(:hover,:focus,.middle) rect{fill:#e08a1e}
.windows:is(:hover,:focus-within) .middle:not(:hover,:focus) path{visibility:hidden}
.windows:is(:hover,:focus-within) .middle:not(:hover,:focus) rect{fill:transparent}
.windows .query:focus{outline:none}
)";
}

}  // namespace foveate::report
