// Aligned plain-text tables for terminals.
#pragma once

#include <string>
#include <vector>

namespace foveate::report {

enum class Align { kLeft, kRight };

struct Column {
  std::string title;
  Align align = Align::kRight;  // numbers to the right
};

// One line of titles, a rule, one line per row; an empty cell shows "-".  Cells may hold any text: control characters
// and broken UTF-8 are made harmless.  Lines end in "\n" and have no spaces at the end. Throws Error: no columns, or a
// row of another width.
std::string format_table(const std::vector<Column>& columns, const std::vector<std::vector<std::string>>& rows);

}  // namespace foveate::report
