#include "foveate/base/sweep.h"

#include <gtest/gtest.h>

#include "foveate/base/error.h"

namespace foveate {
namespace {

using Texts = std::vector<std::string>;

std::string error_of(std::string_view text) {
  try {
    parse_sweep(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Sweep, a_range_doubles_and_ends_with_its_end) {
  const Sweep sweep = parse_sweep("dhsa:budget=256..2000,chunk=8");
  EXPECT_EQ(sweep.option, "budget");
  EXPECT_EQ(sweep.values, (Texts{"256", "512", "1024", "2000"}));
  EXPECT_EQ(sweep.specs.front(), "dhsa:budget=256,chunk=8");
  EXPECT_EQ(sweep.specs.back(), "dhsa:budget=2000,chunk=8");
  EXPECT_EQ(parse_sweep("a:b=1..4").values, (Texts{"1", "2", "4"}));
  EXPECT_EQ(parse_sweep("a:b=0.125..0.5").values, (Texts{"0.125", "0.25", "0.5"}));
}

TEST(Sweep, doubling_stops_before_the_largest_number) {
  const Sweep sweep = parse_sweep("a:b=4611686018427387904..9223372036854775807");
  EXPECT_EQ(sweep.values, (Texts{"4611686018427387904", "9223372036854775807"}));
  EXPECT_EQ(parse_sweep("a:b=9e307..1.5e308").values.size(), 2u);
}

TEST(Sweep, a_list_may_stand_anywhere_and_hold_words_and_ranges) {
  EXPECT_EQ(parse_sweep("a:mask=x,y,z").specs, (Texts{"a:mask=x", "a:mask=y", "a:mask=z"}));
  EXPECT_EQ(parse_sweep("a:c=1,b=2,3,d=4").specs, (Texts{"a:c=1,b=2,d=4", "a:c=1,b=3,d=4"}));
  EXPECT_EQ(parse_sweep("a:b=1..2,8").values, (Texts{"1", "2", "8"}));
  EXPECT_EQ(parse_sweep("dense@0-1,29;window:size=64,128@2-3,5").specs,
            (Texts{"dense@0-1,29;window:size=64@2-3,5", "dense@0-1,29;window:size=128@2-3,5"}));
  EXPECT_EQ(parse_sweep("flux:cheap=(window:size=64..128,sinks=4),x=1").specs,
            (Texts{"flux:cheap=(window:size=64,sinks=4),x=1", "flux:cheap=(window:size=128,sinks=4),x=1"}));
}

TEST(Sweep, says_what_is_wrong) {
  for (const char* text : {"dense", "dhsa:budget=4", ""})
    EXPECT_NE(error_of(text).find("needs several values"), std::string::npos) << text;
  EXPECT_NE(error_of("dhsa:budget=1..2,chunk=1..2").find("a second one"), std::string::npos);
  for (const char* text : {"a:b=4..2", "a:b=4..4", "a:b=0..4", "a:b=x..4", "a:b=1..", "a:b=1..2..4", "a:b=1..inf",
                           "a:b=1..nan", "a:b=nan..2", "a:b=1..1e999"})
    EXPECT_NE(error_of(text).find("ascending numbers above 0"), std::string::npos) << text;
  EXPECT_NE(error_of("a:b=1,2,1").find("1 twice"), std::string::npos);
}

}  // namespace
}  // namespace foveate
