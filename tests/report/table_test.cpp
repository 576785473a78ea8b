#include "foveate/report/table.h"

#include <gtest/gtest.h>

#include "foveate/base/error.h"

namespace foveate::report {
namespace {

TEST(Table, aligns_numbers_right_and_shows_a_dash_for_what_is_missing) {
  EXPECT_EQ(format_table({{"name", Align::kLeft}, {"tok/s"}}, {{"dense", "412"}, {"window", ""}, {"d", "1,758"}}),
            "name    tok/s\n"
            "──────  ─────\n"
            "dense     412\n"
            "window      -\n"
            "d       1,758\n");
}

TEST(Table, aligns_by_terminal_columns_not_bytes) {
  EXPECT_EQ(format_table({{"n", Align::kLeft}, {"v"}}, {{"Zürich", "1"}, {"東京", "22"}}),
            "n        v\n"
            "──────  ──\n"
            "Zürich   1\n"
            "東京    22\n");
}

TEST(Table, keeps_terminal_escapes_and_line_breaks_out) {
  EXPECT_EQ(format_table({{"n", Align::kLeft}}, {{"a\x1b[2Jb\nc"}}), "n\n────────\na [2Jb c\n");
}

TEST(Table, without_rows_is_its_head) { EXPECT_EQ(format_table({{"ab"}}, {}), "ab\n──\n"); }

TEST(Table, refuses_ragged_rows_and_no_columns) {
  EXPECT_THROW(format_table({{"a"}, {"b"}}, {{"1"}}), Error);
  EXPECT_THROW(format_table({}, {}), Error);
}

}  // namespace
}  // namespace foveate::report
