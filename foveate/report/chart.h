// Charts as inline SVG: no script, no external resource, colours from the page's style so that they follow dark and
// light.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace foveate::report {

// A style is a small number: the same number gives the same colour and mark in every chart and legend of a page.
// Style 0 is the neutral one, for the yardstick.  Colours can be told apart with the common colour blindnesses; beyond
// 8 they repeat with a dashed line, and the mark differs as well.
struct ChartSeries {
  std::string name;
  int style = 0;
  std::vector<double> y;  // one per x; a value that is not finite leaves a gap
};

struct LineChart {
  std::string title;  // for those who cannot see the chart
  std::string x_label, y_label;
  std::vector<double> x;  // ascending
  double x_end = 0;       // the axis runs from 0 to here
  std::vector<ChartSeries> series;
  enum class Ticks { powers_of_two, round } ticks = Ticks::powers_of_two;  // of x: for tokens, for all else
};

struct ChartPoint {
  std::string name;
  int style = 0;
  double x = 0, y = 0;
  bool is_hollow = false;
};

struct ChartPath {
  int style = 0;
  bool is_dashed = false;
  std::vector<std::pair<double, double>> points;  // x, y; joined in order
};

struct ScatterChart {
  std::string title, x_label, y_label;
  std::vector<ChartPoint> points;     // those that are not finite are left out
  double x_origin = 0, y_origin = 0;  // always in view, with a line each
  std::string x_unit{};               // behind the numbers of the x axis
  std::vector<ChartPath> paths{};     // drawn under the points, of which they join some
};

// "" when there is nothing to draw.  Throws Error: a series of another length than x.
std::string line_chart(const LineChart& chart);

// Larger y is drawn lower: with a loss on that axis the best place is the upper right.  Labels keep clear of each other
// where there is room.  "" when there is nothing to draw.
std::string scatter_chart(const ScatterChart& chart);

// A short line with the mark of a style, for a legend.
std::string legend_mark(int style);

// The CSS that all of these need.
std::string chart_style();

}  // namespace foveate::report
