#include "foveate/base/options.h"

#include <gtest/gtest.h>

#include <array>

namespace foveate {
namespace {

struct Sample {
  static constexpr std::string_view name = "sample";
  enum class Mode { fast, exact };
  friend constexpr auto enum_names(Mode) { return std::array<std::string_view, 2>{"fast", "exact"}; }

  int64_t budget = 1024;
  double share = 0.5;
  bool shared = true;
  Mode mode = Mode::fast;
  std::string inner = "dense";

  static void fields(auto& self, auto&& visit) {
    visit("budget", self.budget, at_least(1), "keys kept");
    visit("share", self.share, between(0, 1), "of heads");
    visit("shared", self.shared, any(), "one for all");
    visit("mode", self.mode, any(), "how");
    visit("inner", self.inner, any(), "nested spec");
  }
};

std::string message_of(const std::string& spec) {
  try {
    parse_options<Sample>(parse_spec(spec));
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Options, sets_every_kind_of_value) {
  const auto o =
      parse_options<Sample>(parse_spec("sample:budget=7,share=0.25,shared=false,mode=exact,inner=(window:size=2)"));
  EXPECT_EQ(o.budget, 7);
  EXPECT_EQ(o.share, 0.25);
  EXPECT_FALSE(o.shared);
  EXPECT_EQ(o.mode, Sample::Mode::exact);
  EXPECT_EQ(o.inner, "window:size=2");
  EXPECT_EQ(to_spec(o).text(), "sample:budget=7,share=0.25,shared=false,mode=exact,inner=(window:size=2)");
  EXPECT_EQ(to_spec(Sample{}).text(), "sample");
}

TEST(Options, names_the_known_options_when_one_is_unknown) {
  EXPECT_EQ(message_of("sample:bugdet=1"), "sample: unknown option 'bugdet', known: budget share shared mode inner");
}

TEST(Options, says_the_rule_and_the_value) {
  EXPECT_EQ(message_of("sample:budget=0"), "sample: budget must be >= 1, got 0");
  EXPECT_EQ(message_of("sample:budget=many"), "sample: budget must be >= 1, got 'many'");
  EXPECT_EQ(message_of("sample:budget=12x"), "sample: budget must be >= 1, got '12x'");
  EXPECT_EQ(message_of("sample:budget=99999999999999999999"),
            "sample: budget must be >= 1, got '99999999999999999999'");
  EXPECT_EQ(message_of("sample:share=1.5"), "sample: share must be 0 .. 1, got 1.5");
  EXPECT_EQ(message_of("sample:share=nan"), "sample: share must be 0 .. 1, got nan");
  EXPECT_EQ(message_of("sample:shared=maybe"), "sample: shared must be true | false, got 'maybe'");
  EXPECT_EQ(message_of("sample:mode=slow"), "sample: mode must be fast | exact, got 'slow'");
}

TEST(Options, describes_itself) {
  const auto infos = describe_options<Sample>();
  ASSERT_EQ(infos.size(), 5u);
  EXPECT_EQ(infos[0].name, "budget");
  EXPECT_EQ(infos[0].default_value, "1024");
  EXPECT_EQ(infos[0].range, ">= 1");
  EXPECT_EQ(infos[3].default_value, "fast");
  EXPECT_EQ(infos[3].range, "fast | exact");
}

}  // namespace
}  // namespace foveate
