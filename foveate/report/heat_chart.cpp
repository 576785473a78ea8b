#include "foveate/report/heat_chart.h"

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

constexpr int kCellWidth = 62, kCellHeight = 28, kLeft = 78, kTop = 10, kBottom = 48;

std::string text_at(int x, int y, std::string_view anchor, const std::string& text, std::string_view extra = "") {
  return fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, extra,
                     escape_html(text));
}

// Blue for shares and gains, red-brown for losses (chart.h: styles 1 and 2), stronger where the number is larger.
std::string cell(int x, int y, double value, bool is_difference) {
  const bool is_known = std::isfinite(value);
  const double strength = is_known ? std::min(std::fabs(value), 1.0) : 0;
  std::string svg =
      fmt::format("<rect class=\"solid c{}\" fill-opacity=\"{:.2f}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n",
                  is_difference && value < 0 ? 2 : 1, 0.04 + 0.76 * strength, x, y, kCellWidth, kCellHeight);
  const std::string number = !is_known       ? "-"
                             : is_difference ? format_signed(value * 100, 0)
                                             : format_fixed(value * 100, 0);
  return svg + text_at(x + kCellWidth / 2, y + kCellHeight / 2 + 4, "middle", number, " class=\"label\"");
}

}  // namespace

std::string heat_chart(const HeatChart& chart) {
  require(chart.values.size() == chart.rows.size(), "heat_chart: needs one row of values per name, got {} for {}",
          chart.values.size(), chart.rows.size());
  if (chart.rows.empty() || chart.columns.empty()) return "";
  const int columns = int(chart.columns.size()), rows = int(chart.rows.size());
  const int width = kLeft + columns * kCellWidth + 10, height = kTop + rows * kCellHeight + kBottom;
  const std::string name = escape_html(chart.title);
  std::string svg = fmt::format(
      "<svg class=\"chart heat\" style=\"max-width:{0}px;min-width:{0}px\" viewBox=\"0 0 {0} {1}\" role=\"img\" "
      "aria-label=\"{2}\">\n<title>{2}</title>\n",
      width, height, name);
  for (int row = 0; row < rows; ++row) {
    const std::vector<double>& values = chart.values[size_t(row)];
    require(std::ssize(values) == columns, "heat_chart: needs one value per column, got {} for {}", values.size(),
            columns);
    const int y = kTop + row * kCellHeight;
    svg += text_at(kLeft - 8, y + kCellHeight / 2 + 4, "end", chart.rows[size_t(row)]);
    for (int column = 0; column < columns; ++column)
      svg += cell(kLeft + column * kCellWidth, y, values[size_t(column)], chart.is_difference);
  }
  const int bottom = kTop + rows * kCellHeight, middle = kTop + rows * kCellHeight / 2;
  for (int column = 0; column < columns; ++column)
    svg += text_at(kLeft + column * kCellWidth + kCellWidth / 2, bottom + 18, "middle", chart.columns[size_t(column)]);
  svg += text_at(kLeft + columns * kCellWidth / 2, bottom + 38, "middle", chart.x_label, " class=\"name\"");
  svg += text_at(14, middle, "middle", chart.y_label,
                 fmt::format(" class=\"name\" transform=\"rotate(-90 14 {})\"", middle));
  return svg + "</svg>\n";
}

}  // namespace foveate::report
