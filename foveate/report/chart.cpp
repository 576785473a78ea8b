#include "foveate/report/chart.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

constexpr double kWidth = 760, kHeight = 360, kLeft = 78, kRight = 24, kTop = 20, kBottom = 56;
constexpr double kLabelHeight = 15, kColumnWidth = 7.2;  // of a label's character at 12 px in a wide font
constexpr int kColours = 8, kLabelColumns = 40;
constexpr double kLargest = 1e12;  // beyond it a value says that something failed, and would flatten everything else

bool is_drawable(double value) { return std::fabs(value) <= kLargest; }  // false for NaN too

std::string colour_class(int style) { return fmt::format("c{}", style == 0 ? 0 : 1 + (style - 1) % (kColours - 1)); }

std::string dash(int style) { return style >= kColours ? " stroke-dasharray=\"7 4\"" : ""; }

// The marks differ so that colour is never the only sign.
std::string mark(int style, double x, double y, double size, bool is_hollow) {
  const char* fill = is_hollow ? "hollow" : "solid";
  const std::string colour = colour_class(style);
  const auto polygon = [&](std::string points) {
    return fmt::format("<polygon class=\"{} {}\" points=\"{}\"/>", fill, colour, points);
  };
  switch (style % 5) {
    case 0:
      return fmt::format("<circle class=\"{} {}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\"/>", fill, colour, x, y,
                         size);
    case 1:
      return polygon(fmt::format("{0:.1f},{2:.1f} {1:.1f},{2:.1f} {1:.1f},{3:.1f} {0:.1f},{3:.1f}", x - 0.9 * size,
                                 x + 0.9 * size, y - 0.9 * size, y + 0.9 * size));
    case 2:
      return polygon(fmt::format("{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}", x, y - 1.2 * size, x + 1.1 * size,
                                 y + 0.8 * size, x - 1.1 * size, y + 0.8 * size));
    case 3:
      return polygon(fmt::format("{0:.1f},{2:.1f} {3:.1f},{1:.1f} {0:.1f},{4:.1f} {5:.1f},{1:.1f}", x, y,
                                 y - 1.25 * size, x + 1.25 * size, y + 1.25 * size, x - 1.25 * size));
    default:
      return polygon(fmt::format("{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}", x, y + 1.2 * size, x + 1.1 * size,
                                 y - 0.8 * size, x - 1.1 * size, y - 0.8 * size));
  }
}

struct Axis {
  double low = 0, high = 1;  // values at the two ends
  double from = 0, to = 1;   // their places in the drawing
  double step = 1;           // between ticks
  int decimals = 0;

  double at(double value) const { return from + (value - low) / (high - low) * (to - from); }
  std::vector<double> ticks() const {
    std::vector<double> values;
    for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k) values.push_back(k * step);
    return values;
  }
};

// An axis over [low, high] with about `wanted` ticks at 1, 2, 2.5 or 5 times a power of ten.
Axis axis_over(double low, double high, int wanted) {
  const double smallest = std::max(1e-9, 1e-9 * std::max(std::fabs(low), std::fabs(high)));
  if (high - low < smallest) {
    const double pad = low == 0 ? 0.5 : 0.05 * std::fabs(low);
    low -= pad, high += pad;
  }
  const double raw = (high - low) / wanted, power = std::pow(10.0, std::floor(std::log10(raw)));
  Axis axis{.low = low, .high = high};
  for (const double factor : {1.0, 2.0, 2.5, 5.0, 10.0}) {
    axis.step = factor * power;
    if (axis.step >= raw * (1 - 1e-9)) break;
  }
  while (axis.decimals < 9 && std::fabs(std::remainder(axis.step, std::pow(10.0, -axis.decimals))) > 1e-6 * axis.step)
    ++axis.decimals;
  return axis;
}

// Token positions read best in powers of two.
Axis position_axis(double end, LineChart::Ticks ticks) {
  Axis axis{.low = 0, .high = std::max(1.0, end)};
  if (ticks == LineChart::Ticks::round) axis = axis_over(axis.low, axis.high, 8);
  while (axis.high / axis.step > 8 && ticks == LineChart::Ticks::powers_of_two) axis.step *= 2;
  axis.from = kLeft, axis.to = kWidth - kRight;
  return axis;
}

std::string open_svg(const std::string& title) {
  const std::string name = escape_html(title);
  return fmt::format("<svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n<title>{}</title>\n",
                     kWidth, kHeight, name, name);
}

std::string text_at(double x, double y, std::string_view anchor, const std::string& text, std::string_view extra = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, extra,
                     escape_html(text));
}

std::string frame(const Axis& x, const Axis& y, const std::string& x_label, const std::string& y_label,
                  const std::string& x_unit) {
  const double bottom = kHeight - kBottom, right = kWidth - kRight;
  std::string svg;
  for (const double value : y.ticks()) {
    svg += fmt::format("<line class=\"grid\" x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\"/>\n", kLeft, y.at(value),
                       right, y.at(value));
    svg += text_at(kLeft - 8, y.at(value) + 4, "end", format_fixed(value, y.decimals));
  }
  for (const double value : x.ticks()) {
    svg += fmt::format("<line class=\"axis\" x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\"/>\n", x.at(value),
                       bottom, bottom + 5);
    svg += text_at(x.at(value), bottom + 19, "middle", format_fixed(value, x.decimals) + x_unit);
  }
  svg += fmt::format("<line class=\"axis\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>\n", kLeft, bottom, right, bottom);
  svg += text_at((kLeft + right) / 2, kHeight - 10, "middle", x_label, " class=\"name\"");
  const double middle = (kTop + bottom) / 2;
  svg += text_at(16, middle, "middle", y_label, fmt::format(" class=\"name\" transform=\"rotate(-90 16 {})\"", middle));
  return svg;
}

// A path that stops and starts again at gaps, with a mark at every value where there is room for marks.
std::string curve(const ChartSeries& series, const std::vector<double>& positions, const Axis& x, const Axis& y) {
  constexpr size_t kMostMarks = 100;
  std::string path, marks;
  bool is_down = false;
  for (size_t i = 0; i < positions.size(); ++i) {
    if (!is_drawable(series.y[i])) {
      is_down = false;
      continue;
    }
    const double px = x.at(positions[i]), py = y.at(series.y[i]);
    path += fmt::format("{}{:.1f} {:.1f}", is_down ? "L" : "M", px, py);
    if (positions.size() <= kMostMarks) marks += mark(series.style, px, py, 3, false);
    is_down = true;
  }
  if (path.empty()) return "";
  return fmt::format("<g><title>{}</title><path class=\"curve {}\"{} d=\"{}\"/>{}</g>\n", escape_html(series.name),
                     colour_class(series.style), dash(series.style), path, marks);
}

std::string joined(const ChartPath& path, const Axis& x, const Axis& y) {
  std::string d;
  for (const auto& [px, py] : path.points)
    d += fmt::format("{}{:.1f} {:.1f}", d.empty() ? "M" : "L", x.at(px), y.at(py));
  if (path.points.size() < 2) return "";
  return fmt::format("<path class=\"curve {}\"{} d=\"{}\"/>\n", colour_class(path.style),
                     path.is_dashed ? " stroke-dasharray=\"3 4\"" : dash(path.style), d);
}

struct Box {
  double left, top, right, bottom;

  double overlap(const Box& other) const {
    const double width = std::min(right, other.right) - std::max(left, other.left);
    const double height = std::min(bottom, other.bottom) - std::max(top, other.top);
    return width > 0 && height > 0 ? width * height : 0;
  }
};

struct Label {
  Box box{};
  double x = 0;  // where the text is anchored: its width is only an estimate, so its near end is what is fixed
  std::string_view anchor = "start";
};

// The place for a label beside a point that covers least of what is there already.
Label place_label(double x, double y, double width, const std::vector<Box>& taken) {
  const Box inside{kLeft + 2, kTop - 16, kWidth - 2, kHeight - kBottom - 2};
  Label best;
  double least = std::numeric_limits<double>::infinity();
  for (const double lift : {0.0, -1.0, 1.0, -2.0, 2.0, -3.0, 3.0, -4.0, 4.0, -5.0, 5.0}) {
    const double middle = y + lift * (kLabelHeight + 1), top = middle - kLabelHeight / 2, bottom = top + kLabelHeight;
    const Label candidates[] = {{{x + 11, top, x + 11 + width, bottom}, x + 11, "start"},
                                {{x - 11 - width, top, x - 11, bottom}, x - 11, "end"},
                                {{x - width / 2, top, x + width / 2, bottom}, x, "middle"}};
    for (const Label& label : candidates) {
      if (lift == 0 && label.anchor == "middle") continue;  // it would cover its own point
      double cost = width * kLabelHeight - label.box.overlap(inside) + 0.01 * std::fabs(lift);
      for (const Box& other : taken) cost += label.box.overlap(other);
      if (cost < least - 1e-9) best = label, least = cost;
    }
  }
  return best;
}

}  // namespace

std::string line_chart(const LineChart& chart) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const ChartSeries& series : chart.series) {
    require(series.y.size() == chart.x.size(), "line_chart: a series needs one value per position, got {} for {}",
            series.y.size(), chart.x.size());
    for (const double value : series.y)
      if (is_drawable(value)) low = std::min(low, value), high = std::max(high, value);
  }
  if (low > high) return "";
  const double pad = 0.06 * (high - low);
  Axis y = axis_over(low - pad, high + pad, 6);
  y.from = kHeight - kBottom, y.to = kTop;
  const Axis x = position_axis(chart.x_end, chart.ticks);
  std::string svg = open_svg(chart.title) + frame(x, y, chart.x_label, chart.y_label, "");
  for (const ChartSeries& series : chart.series) svg += curve(series, chart.x, x, y);
  return svg + "</svg>\n";
}

std::string scatter_chart(const ScatterChart& chart) {
  std::vector<ChartPoint> points;
  double left = chart.x_origin, right = left, low = chart.y_origin, high = low;
  for (const ChartPoint& point : chart.points) {
    if (!is_drawable(point.x) || !is_drawable(point.y)) continue;
    points.push_back(point);
    left = std::min(left, point.x), right = std::max(right, point.x);
    low = std::min(low, point.y), high = std::max(high, point.y);
  }
  if (points.empty()) return "";
  const double x_pad = std::max(0.12 * (right - left), 0.02), y_pad = std::max(0.14 * (high - low), 1e-4);
  Axis x = axis_over(left - x_pad, right + x_pad, 7), y = axis_over(low - y_pad, high + y_pad, 6);
  x.from = kLeft, x.to = kWidth - kRight;
  y.from = kTop, y.to = kHeight - kBottom;

  std::string svg = open_svg(chart.title) + frame(x, y, chart.x_label, chart.y_label, chart.x_unit);
  svg += fmt::format("<line class=\"origin\" x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\"/>\n",
                     x.at(chart.x_origin), kTop, kHeight - kBottom);
  svg += fmt::format("<line class=\"origin\" x1=\"{0}\" y1=\"{1:.1f}\" x2=\"{2}\" y2=\"{1:.1f}\"/>\n", kLeft,
                     y.at(chart.y_origin), kWidth - kRight);
  for (const ChartPath& path : chart.paths) svg += joined(path, x, y);
  std::vector<Box> taken;
  for (const ChartPoint& point : points) {
    const double px = x.at(point.x), py = y.at(point.y);
    taken.push_back({px - 8, py - 8, px + 8, py + 8});
  }
  for (const ChartPoint& point : points) {
    const double px = x.at(point.x), py = y.at(point.y);
    const std::string label = shorten(clean_text(point.name), kLabelColumns);
    const Label place = place_label(px, py, kColumnWidth * display_width(label), taken);
    taken.push_back(place.box);
    const double middle = (place.box.top + place.box.bottom) / 2;
    svg += fmt::format("<g><title>{}</title>", escape_html(point.name));
    if (std::fabs(middle - py) > kLabelHeight * 1.5)
      svg += fmt::format("<line class=\"leader\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>", px, py,
                         place.x, middle < py ? place.box.bottom : place.box.top);
    svg += mark(point.style, px, py, 6, point.is_hollow);
    svg += text_at(place.x, middle + 4, place.anchor, label, " class=\"label\"") + "</g>\n";
  }
  return svg + "</svg>\n";
}

std::string legend_mark(int style) {
  return fmt::format(
      "<svg class=\"mark\" width=\"28\" height=\"12\" viewBox=\"0 0 28 12\" aria-hidden=\"true\"><path class=\"curve "
      "{}\"{} "
      "d=\"M1 6L27 6\"/>{}</svg>",
      colour_class(style), dash(style), mark(style, 14, 6, 4, false));
}

std::string chart_style() {
  constexpr std::array<const char*, kColours> kLight = {"#50555c", "#0072b2", "#d55e00", "#00876a",
                                                        "#a8479b", "#a87800", "#4a8fd0", "#7a2048"};
  constexpr std::array<const char*, kColours> kDark = {"#c4c9d0", "#56b4e9", "#ff9248", "#2fcb9a",
                                                       "#e08bd0", "#f0c24b", "#9bb7ff", "#f28ca5"};
  const auto colours = [](const std::array<const char*, kColours>& list) {
    std::string css;
    for (int i = 0; i < kColours; ++i) css += fmt::format("--c{}:{};", i, list[size_t(i)]);
    return css;
  };
  std::string css =
      ":root{" + colours(kLight) + "}\n@media (prefers-color-scheme:dark){:root{" + colours(kDark) + "}}\n";
  for (int i = 0; i < kColours; ++i)
    css += fmt::format(".curve.c{0},.hollow.c{0}{{stroke:var(--c{0})}}.solid.c{0}{{fill:var(--c{0})}}\n", i);
  return css +
         ".chart{display:block;width:100%;min-width:560px;height:auto;font:12px system-ui,sans-serif;fill:var(--dim)}\n"
         ".chart .name,.chart .label{fill:var(--ink)}.chart .name{font-size:13px}\n"
         ".chart .label{paint-order:stroke;stroke:var(--page);stroke-width:3px;stroke-linejoin:round}\n"
         ".curve{fill:none;stroke-width:2;stroke-linejoin:round}.solid{stroke:var(--page);stroke-width:1}\n"
         ".hollow{fill:var(--page);stroke-width:2.5}.grid{stroke:var(--line)}.axis{stroke:var(--dim)}\n"
         ".origin{stroke:var(--dim);stroke-dasharray:2 4}.leader{stroke:var(--dim);stroke-width:.75}\n"
         ".mark{vertical-align:-1px;margin-right:.4em}\n";
}

}  // namespace foveate::report
