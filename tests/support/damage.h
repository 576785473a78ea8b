// What every reader of files must bear: a good file cut short anywhere, and one with bytes changed at random.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "foveate/base/random.h"

namespace foveate::test {

// `error_of(bytes)` gives the reader's message, "no error" for a good file; `place` is how messages begin.
template <class ErrorOf>
void expect_truncations_are_refused(const std::string& good, const std::string& place, const ErrorOf& error_of) {
  ASSERT_EQ(error_of(good), "no error");
  for (size_t size = 0; size < good.size(); ++size) {
    const std::string message = error_of(std::string(good.data(), size));
    EXPECT_TRUE(message.starts_with(place)) << size << " bytes: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

template <class ErrorOf>
void expect_damage_gives_a_file_or_one_line(const std::string& good, const ErrorOf& error_of) {
  Random random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    for (uint64_t changes = 1 + random.below(4); changes > 0; --changes)
      bytes[random.below(bytes.size())] = char(random.below(256));
    EXPECT_EQ(error_of(bytes).find('\n'), std::string::npos);
  }
}

}  // namespace foveate::test
