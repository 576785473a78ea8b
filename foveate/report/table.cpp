#include "foveate/report/table.h"

#include <algorithm>
#include <utility>

#include "foveate/base/error.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

std::string padded(const std::string& text, int width, Align align) {
  const std::string spaces(size_t(width - display_width(text)), ' ');
  return align == Align::kRight ? spaces + text : text + spaces;
}

}  // namespace

std::string format_table(const std::vector<Column>& columns, const std::vector<std::vector<std::string>>& rows) {
  require(!columns.empty(), "table: needs at least one column, got none");
  std::vector<std::vector<std::string>> lines(1);
  for (const Column& column : columns) lines[0].push_back(clean_text(column.title));
  for (const auto& row : rows) {
    require(row.size() == columns.size(), "table: a row must have {} cells, got {}", columns.size(), row.size());
    auto& line = lines.emplace_back();
    for (const std::string& cell : row) line.push_back(cell.empty() ? "-" : clean_text(cell));
  }

  std::vector<int> widths(columns.size(), 0);
  for (const auto& line : lines)
    for (size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], display_width(line[c]));

  std::string text;
  const auto add = [&text](std::string line) {
    while (line.ends_with(' ')) line.pop_back();
    text += line + "\n";
  };
  for (size_t r = 0; r < lines.size(); ++r) {
    std::string line, rule;
    for (size_t c = 0; c < columns.size(); ++c) {
      if (c > 0) line += "  ", rule += "  ";
      line += padded(lines[r][c], widths[c], columns[c].align);
      for (int i = 0; i < widths[c]; ++i) rule += "─";
    }
    add(std::move(line));
    if (r == 0) add(std::move(rule));
  }
  return text;
}

}  // namespace foveate::report
