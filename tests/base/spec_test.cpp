#include "foveate/base/spec.h"

#include <gtest/gtest.h>

#include "foveate/base/error.h"

namespace foveate {
namespace {

std::string message_of(auto&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Spec, reads_a_name_and_its_options_in_order) {
  const Spec spec = parse_spec(" dhsa:budget=512, chunk=16 ");
  EXPECT_EQ(spec.name, "dhsa");
  EXPECT_EQ(spec.options, (std::vector<std::pair<std::string, std::string>>{{"budget", "512"}, {"chunk", "16"}}));
}

TEST(Spec, nests_in_brackets_and_writes_itself_back) {
  const Spec spec = parse_spec("flux:cheap=(window:size=2048,sinks=4),share=0.5");
  EXPECT_EQ(spec.options[0].second, "window:size=2048,sinks=4");
  EXPECT_EQ(parse_spec(spec.options[0].second).name, "window");
  EXPECT_EQ(spec.text(), "flux:cheap=(window:size=2048,sinks=4),share=0.5");
  EXPECT_EQ(parse_spec(spec.text()), spec);
}

TEST(Spec, gives_layers_to_mechanisms_and_the_rest_to_the_one_without_layers) {
  const auto layers = parse_layered_spec("dense@0-1,4;window:size=8", 6);
  std::string names;
  for (const Spec& spec : layers) names += spec.name[0];
  EXPECT_EQ(names, "ddwwdw");
}

TEST(Spec, leaves_unnamed_layers_dense) {
  const auto layers = parse_layered_spec("window:size=8@1", 3);
  EXPECT_EQ(layers[0].name, "dense");
  EXPECT_EQ(layers[1].name, "window");
}

TEST(Spec, refuses_what_it_cannot_mean) {
  for (const auto& [text, part] :
       std::vector<std::pair<std::string, std::string>>{{"", "needs a name"},
                                                        {":a=1", "needs a name"},
                                                        {"dhsa:budget", "key=value"},
                                                        {"dhsa:=1", "key=value"},
                                                        {"dhsa:budget=1,budget=2", "given once"},
                                                        {"flux:cheap=(window", "balance"},
                                                        {"window)", "balance"},
                                                        {"dense@3", "layer must be < 3"},
                                                        {"dense@2-1", "ascend"},
                                                        {"dense@x", "numbers or ranges"},
                                                        {"dense@-1", "numbers or ranges"},
                                                        {"dense@99999999999999999999", "numbers or ranges"},
                                                        {"dense@0;window@0-1", "named once"},
                                                        {"dense;window", "only one mechanism"},
                                                        {"dense@0@1", "one '@'"}}) {
    EXPECT_NE(message_of([&] { parse_layered_spec(text, 3); }).find(part), std::string::npos)
        << text << ": " << message_of([&] { parse_layered_spec(text, 3); });
  }
}

}  // namespace
}  // namespace foveate
