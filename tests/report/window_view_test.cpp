// The picture of who sees whom.
#include "foveate/report/window_view.h"

#include <gtest/gtest.h>

#include "tests/report/markup.h"
#include "tests/support/messages.h"

namespace foveate::report {
namespace {

using test::message_of;

// The three keys nearest to a place of five.
std::vector<AxisWindow> nearest() { return {{0, 3}, {0, 3}, {1, 3}, {2, 3}, {2, 3}}; }

TEST(WindowView, draws_every_place_of_every_plane_without_scripts) {
  const std::string html = window_view({"a < b", {{{0, 1}, {1, 1}}, nearest(), nearest()}});
  const Markup markup = parse_markup(html);
  EXPECT_EQ(markup.problem, "");
  EXPECT_EQ(markup.count("path"), 2 * 5 * 5);
  EXPECT_EQ(markup.count("script"), 0);
  EXPECT_NE(html.find("a &lt; b"), std::string::npos);
  EXPECT_NE(html.find("<title>1, 4, 2: 9 keys</title>"), std::string::npos);
}

TEST(WindowView, joins_a_row_of_keys_into_one_line_with_gaps) {
  const std::string html = window_view({"", {{{0, 3, 2}, {1, 1}, {0, 3, 2}, {1, 1}, {0, 2, 4}}}});
  EXPECT_NE(html.find("<path d=\"M0 0.5h5\" stroke-dasharray=\"1 3\"/>"), std::string::npos) << html;
  EXPECT_NE(html.find("<path d=\"M0 0.5h5\" stroke-dasharray=\"1 1\"/>"), std::string::npos) << html;
}

TEST(WindowView, says_what_it_cannot_draw) {
  EXPECT_EQ(message_of([] { window_view({"", {}}); }), "window_view: the grid must have 1 .. 3 axes, got 0");
  const std::vector<AxisWindow> long_axis(65);
  EXPECT_EQ(message_of([&] {
              window_view({"", {long_axis, long_axis}});
            }),
            "window_view: the grid must have 1 .. 4096 places, got 4225; take a smaller one");
  EXPECT_EQ(message_of([] {
              window_view({"", {{{.first = 1, .count = 1}}}});
            }),
            "window_view: keys must be in 0 .. 0, got 1 from 1 by 1");
}

}  // namespace
}  // namespace foveate::report
