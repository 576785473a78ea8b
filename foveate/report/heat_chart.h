// A grid of shares as inline SVG, each cell with its number: colour is never the only sign.
#pragma once

#include <string>
#include <vector>

namespace foveate::report {

struct HeatChart {
  std::string title;  // for those who cannot see the chart
  std::string x_label, y_label;
  std::vector<std::string> columns, rows;   // names along the two axes
  std::vector<std::vector<double>> values;  // [row][column]: shares in 0 .. 1, or differences in -1 .. 1; NaN: unknown
  bool is_difference = false;               // losses and gains in two colours, with their signs
};

// "" when there is nothing to draw.  Throws Error: another number of rows or columns than names.
std::string heat_chart(const HeatChart& chart);

}  // namespace foveate::report
