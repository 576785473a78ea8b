#include "foveate/report/text.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "foveate/base/error.h"

namespace foveate::report {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

TEST(CleanText, keeps_valid_utf8_and_replaces_broken_bytes_and_control_characters) {
  EXPECT_EQ(clean_text("Zürich 東京 😀"), "Zürich 東京 😀");
  EXPECT_EQ(clean_text("a\n\x1b[31mb\x7f"), "a  [31mb ");
  EXPECT_EQ(clean_text("\xff|\xc3|\xe2\x82|\xc0\xaf|\xed\xa0\x80|\xf5"), "�|�|��|��|���|�");
  EXPECT_EQ(clean_text("\xc2\x9b"
                       "31m"),
            " 31m")
      << "the one-byte escape introducer is a control character too";
}

TEST(EscapeHtml, leaves_no_character_that_opens_a_tag_or_ends_an_attribute) {
  EXPECT_EQ(escape_html("<a href=\"x\" id='y'>&"), "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;");
}

TEST(DisplayWidth, counts_terminal_columns) {
  EXPECT_EQ(display_width("abc"), 3);
  EXPECT_EQ(display_width("Zürich"), 6);
  EXPECT_EQ(display_width("Zu\u0308rich"), 6) << "a combining mark has no column";
  EXPECT_EQ(display_width("東京"), 4);
  EXPECT_EQ(display_width("😀"), 2);
  EXPECT_EQ(display_width(""), 0);
}

TEST(Shorten, cuts_at_characters_and_never_exceeds_the_width) {
  EXPECT_EQ(shorten("window:size=512", 15), "window:size=512");
  EXPECT_EQ(shorten("window:size=512", 8), "window:…");
  EXPECT_EQ(shorten("東京都", 4), "東…");
  EXPECT_EQ(shorten("東京都", 1), "…");
  EXPECT_THROW(shorten("x", 0), Error);
}

TEST(Numbers, have_units_and_thousands) {
  EXPECT_EQ(format_fixed(1234.5678, 2), "1,234.57");
  EXPECT_EQ(format_fixed(-0.00001, 3), "0.000");
  EXPECT_EQ(format_signed(0.0421, 4), "+0.0421");
  EXPECT_EQ(format_signed(-0.0421, 4), "-0.0421");
  EXPECT_EQ(format_signed(0.000001, 4), "0.0000");
  EXPECT_EQ(format_rate(1234.4), "1,234");
  EXPECT_EQ(format_rate(99.97), "100");
  EXPECT_EQ(format_rate(81.26), "81.3");
  EXPECT_EQ(format_rate(0.524), "0.52");
  EXPECT_EQ(format_percent(0.125), "12.5%");
  EXPECT_EQ(format_ratio(1.836), "1.84x");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(-1234), "-1,234");
  EXPECT_EQ(format_count(999), "999");
}

TEST(Bytes, count_a_megabyte_as_a_million) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(12'345'678), "12.3 MB");
  EXPECT_EQ(format_bytes(94'371'840), "94.4 MB");
  EXPECT_EQ(format_bytes(999'999), "1.00 MB");
  EXPECT_EQ(format_bytes(1'200'000'000), "1.20 GB");
  EXPECT_EQ(format_bytes(123'000), "123 kB");
}

TEST(Numbers, that_are_missing_or_not_finite_are_a_dash_and_null) {
  for (const std::optional<double> value : {std::optional<double>(), std::optional(kNaN), std::optional(kInf)}) {
    EXPECT_EQ(format_fixed(value, 2), "-");
    EXPECT_EQ(format_signed(value, 2), "-");
    EXPECT_EQ(format_rate(value), "-");
    EXPECT_EQ(format_percent(value), "-");
    EXPECT_EQ(format_ratio(value), "-");
    EXPECT_TRUE(json_number(value).is_null());
  }
  EXPECT_EQ(format_count({}), "-");
  EXPECT_EQ(format_bytes({}), "-");
  EXPECT_EQ(json_number(0.5).dump(), "0.5");
}

}  // namespace
}  // namespace foveate::report
