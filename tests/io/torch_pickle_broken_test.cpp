// Broken and hostile pickles in files of torch.save, each named after its defect: every one gives one line that says
// where and what, and nothing in them runs.
#include <gtest/gtest.h>

#include "tests/io/torch_defects.h"

namespace foveate::io {
namespace {

using namespace test;

// The pickle

TEST(BrokenTorchPickle, empty_pickle) {
  EXPECT_EQ(pickle_error(""), "f: pickle: a pickle of protocol 2 .. 5 must start at byte 0");
}

TEST(BrokenTorchPickle, pickle_of_protocol_0) {
  EXPECT_EQ(pickle_error("(dp0\nS'w'\n."), "f: pickle: a pickle of protocol 2 .. 5 must start at byte 0");
}

TEST(BrokenTorchPickle, pickle_of_protocol_6) {
  EXPECT_EQ(pickle_error(PickleWriter(6).raw("}").end()), "f: pickle: protocol at byte 1 must be 2 .. 5, got 6");
}

TEST(BrokenTorchPickle, pickle_without_an_end) {
  EXPECT_EQ(pickle_error("\x80\2}"), "f: pickle ends inside the operation at byte 3: 1 bytes needed, 0 left");
}

TEST(BrokenTorchPickle, pickle_that_goes_on_behind_its_end) {
  EXPECT_EQ(pickle_error(kGoodPickle + "N."),
            fmt::format("f: pickle: a pickle must end with its file at byte {}", kGoodPickle.size() - 1));
}

TEST(BrokenTorchPickle, pickle_of_two_values) {
  EXPECT_EQ(operations_error("NN"), "f: pickle: a pickle must end with one value at byte 4");
}

TEST(BrokenTorchPickle, pickle_of_no_value) {
  EXPECT_EQ(operations_error(""), "f: pickle: a pickle must end with one value at byte 2");
}

TEST(BrokenTorchPickle, pickle_with_an_open_mark) {
  EXPECT_EQ(operations_error("N("), "f: pickle: a pickle must end with one value at byte 4");
}

TEST(BrokenTorchPickle, unknown_operation) {
  EXPECT_EQ(operations_error("\xff"), "f: pickle: operation 0xff at byte 2 is not one of tensors and plain containers");
}

TEST(BrokenTorchPickle, operations_that_make_objects) {
  for (const char* operation : {"i", "o", "\x81", "\x92", "\x82", "\x83", "\x84", "P", "\x97", "\x98"})
    EXPECT_NE(operations_error(operation).find("at byte 2 is not one of tensors and plain containers"),
              std::string::npos);
}

TEST(BrokenTorchPickle, second_protocol_operation) {
  EXPECT_EQ(operations_error("\x80\2N"),
            "f: pickle: operation 0x80 at byte 2 is not one of tensors and plain containers");
}

TEST(BrokenTorchPickle, stack_underflow) {
  for (const char* operation : {"0", "\x85", "\x86", "\x87", "R", "Q", "b", "a", "s", "q\1", "\x93", "\x94"})
    EXPECT_EQ(operations_error(operation), "f: pickle: the stack must not be empty at byte 2");
}

TEST(BrokenTorchPickle, stack_underflow_below_a_mark) {
  EXPECT_EQ(operations_error("NN(\x86"), "f: pickle: the stack must not be empty at byte 5");
}

TEST(BrokenTorchPickle, missing_mark) {
  for (const char* operation : {"t", "e", "u", "1", "\x90", "\x91"})
    EXPECT_EQ(operations_error(std::string("}") + operation), "f: pickle: a mark must be on the stack at byte 3");
}

TEST(BrokenTorchPickle, memo_that_was_never_set) {
  EXPECT_EQ(operations_error("Nq\1h\2"), "f: pickle: memo 2 at byte 5 must have been set");
}

TEST(BrokenTorchPickle, absurd_memo_place_costs_nothing) {
  EXPECT_EQ(operations_error("Nr\xff\xff\xff\xff"), "no error");
}

TEST(BrokenTorchPickle, append_to_a_dict) {
  EXPECT_EQ(operations_error("}Na"), "f: pickle: items must be for a list, a set or a dict at byte 4");
}

TEST(BrokenTorchPickle, items_of_a_tuple) {
  EXPECT_EQ(operations_error(")NNs"), "f: pickle: items must be for a list, a set or a dict at byte 5");
}

TEST(BrokenTorchPickle, key_without_a_value) {
  EXPECT_EQ(operations_error("}(Nu"), "f: pickle: every key of a dict must have a value at byte 5");
}

TEST(BrokenTorchPickle, text_that_is_longer_than_the_pickle) {
  EXPECT_EQ(operations_error("X\xff\xff\xff\xff"),
            "f: pickle ends inside the operation at byte 2: 4294967295 bytes needed, 1 left");
}

TEST(BrokenTorchPickle, bytes_that_are_longer_than_the_file) {
  EXPECT_EQ(operations_error("\x8e\xff\xff\xff\xff\xff\xff\xff\xff"),
            "f: pickle ends inside the operation at byte 2: 18446744073709551615 bytes needed, 1 left");
}

TEST(BrokenTorchPickle, name_without_an_end) {
  EXPECT_EQ(operations_error("cos\nsystem"), "f: pickle ends inside the operation at byte 2: 1 bytes needed, 0 left");
}

TEST(BrokenTorchPickle, names_that_run_code) {
  const std::pair<const char*, const char*> names[] = {{"os", "system"},
                                                       {"posix", "system"},
                                                       {"builtins", "eval"},
                                                       {"__builtin__", "exec"},
                                                       {"builtins", "getattr"},
                                                       {"torch", "load"},
                                                       {"torch.serialization", "load"},
                                                       {"subprocess", "Popen"},
                                                       {"torch._utils", "_rebuild_qtensor"},
                                                       {"torch.hub", "load"},
                                                       {"collections", "OrderedDict.__init__.__globals__"},
                                                       {"torch", "FloatStorage.from_file"},
                                                       {"", "torch.Size.x"}};
  for (const auto& [module, name] : names)
    EXPECT_EQ(
        pickle_error(PickleWriter().global(module, name).raw("(").text("true").raw("tR").end()),
        fmt::format("f: pickle names '{}.{}' at byte 2: only tensors and plain containers are read", module, name));
}

TEST(BrokenTorchPickle, name_from_the_stack_that_runs_code) {
  EXPECT_EQ(pickle_error(PickleWriter(4).raw("\x8c\x02os\x8c\x06system\x93").end()),
            "f: pickle names 'os.system' at byte 14: only tensors and plain containers are read");
}

TEST(BrokenTorchPickle, chain_of_getattr_from_the_stack) {
  EXPECT_EQ(pickle_error(PickleWriter(4).raw("\x8c\x05torch\x8c\x0aSize.mro.x\x93").end()),
            "f: pickle names 'torch.Size.mro.x' at byte 21: only tensors and plain containers are read");
}

TEST(BrokenTorchPickle, name_from_the_stack_that_is_no_text) {
  EXPECT_EQ(operations_error("NN\x93"), "f: pickle: a global's name must be text at byte 4");
}

TEST(BrokenTorchPickle, name_with_control_characters) {
  EXPECT_EQ(operations_error("cos\x1B[31m\nsystem\n"),
            R"(f: pickle names 'os\x1b[31m.system' at byte 2: only tensors and plain containers are read)");
}

TEST(BrokenTorchPickle, call_of_something_that_is_no_name) {
  EXPECT_EQ(operations_error("])R"), "f: pickle: a call must be of a name with a tuple at byte 4");
}

TEST(BrokenTorchPickle, call_of_the_result_of_a_call) {
  EXPECT_EQ(operations_error("ctorch\nSize\n)R)R"), "f: pickle: a call must be of a name with a tuple at byte 17");
}

TEST(BrokenTorchPickle, call_with_a_list) {
  EXPECT_EQ(operations_error("ctorch\nSize\n]R"), "f: pickle: a call must be of a name with a tuple at byte 15");
}

TEST(BrokenTorchPickle, attributes_of_a_name) {
  EXPECT_EQ(operations_error("ctorch\nSize\n}b"), "f: pickle: attributes must be a dict's at byte 15");
}

TEST(BrokenTorchPickle, attributes_of_a_tensor) {
  EXPECT_NE(
      pickle_error(PickleWriter().tensor("0", 6, 0, {6}, {1}).raw("}b").end()).find("attributes must be a dict's"),
      std::string::npos);
}

TEST(BrokenTorchPickle, dict_that_is_made_of_arguments) {
  EXPECT_EQ(operations_error("ccollections\nOrderedDict\n]\x85R"),
            "f: pickle: an OrderedDict must be made empty at byte 29");
}

// Containers

TEST(BrokenTorchPickle, containers_nested_too_deep) {
  std::string operations(100'000, ']');
  operations += std::string(99'999, 'a');
  EXPECT_EQ(operations_error(operations), "f: pickle: containers at byte 67 must have <= 64 levels");
}

TEST(BrokenTorchPickle, list_that_holds_itself) {
  EXPECT_EQ(operations_error("]q\1h\1a"), "f: pickle: containers at byte 2 must have <= 64 levels");
}

TEST(BrokenTorchPickle, dict_that_holds_itself) {
  EXPECT_EQ(operations_error("}q\1K\1h\1s"), "f: pickle: containers at byte 2 must have <= 64 levels");
}

TEST(BrokenTorchPickle, containers_that_double_at_every_level) {
  std::string operations = "N";
  for (char level = 1; level < 60; ++level)
    operations += "q" + std::string(1, level) + "h" + std::string(1, level) + "\x86";
  EXPECT_EQ(operations_error(operations),
            "f: pickle: containers must not stand in so many places that their values take > 1086848 bytes");
}

TEST(BrokenTorchPickle, long_key_that_is_shared) {
  PickleWriter pickle;
  pickle.text(std::string(1'000'000, 'k')).raw("q\1\x30}(h\1](");
  for (int i = 0; i < 1000; ++i) pickle.raw("N");
  EXPECT_TRUE(pickle_error(pickle.raw("eu").end()).ends_with("must have <= 4096 bytes"));
}

TEST(BrokenTorchPickle, more_values_than_any_model_has) {
  EXPECT_EQ(operations_error("(" + std::string((1 << 22) + 1, 'N') + "t"),
            "f: pickle: a pickle must have <= 2^22 values, got more at byte 4194307");
}

TEST(BrokenTorchPickle, key_that_is_a_number) {
  EXPECT_EQ(operations_error("}G........Ns"), "f: pickle: a key at byte 3 must be an integer or text in UTF-8");
}

TEST(BrokenTorchPickle, key_that_is_not_utf_8) {
  EXPECT_EQ(pickle_error(PickleWriter().raw("}").text("w\xFF").raw("Ns").end()),
            "f: pickle: a key at byte 3 must be an integer or text in UTF-8");
}

TEST(BrokenTorchPickle, duplicate_key) {
  EXPECT_EQ(operations_error("}K\1NsK\1Ns"), "f: pickle: key '1' of the dict at byte 2 must stand once");
}

TEST(BrokenTorchPickle, integer_and_text_of_one_name) {
  EXPECT_EQ(pickle_error(PickleWriter().raw("}K\1Ns").text("1").raw("Ns").end()),
            "f: pickle: key '1' of the dict at byte 2 must stand once");
}

TEST(BrokenTorchPickle, two_tensors_of_one_path) {
  PickleWriter pickle;
  pickle.raw("}").text("a.b").tensor("0", 6, 0, {6}, {1}).raw("s");
  pickle.text("a").raw("}").text("b").tensor("0", 6, 0, {6}, {1}).raw("ss");
  EXPECT_EQ(pickle_error(pickle.end()), "f: tensor 'a.b' must stand once");
}

TEST(BrokenTorchPickle, every_truncation_of_its_pickle) {
  for (size_t size = 0; size < kGoodPickle.size(); ++size)
    EXPECT_TRUE(pickle_error(kGoodPickle.substr(0, size)).starts_with("f: pickle")) << size;
}

}  // namespace
}  // namespace foveate::io
