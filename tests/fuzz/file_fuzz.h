// What the fuzz targets of readers share: any bytes give a file that can be read, or an Error of one line.  A target
// defines LLVMFuzzerTestOneInput and, for compilers without libFuzzer, a main that mutates built-in files:
//   clang++ -fsanitize=fuzzer,address,undefined -DFOVEATE_LIBFUZZER ...     libFuzzer
//   g++ -fsanitize=address,undefined ... && NAME_fuzz [SECONDS] [SEED]      mutate_files()
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/base/random.h"
#include "foveate/base/timer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace foveate::test {

// Runs `action`; an Error must be one line of at most `longest` bytes, anything else is a crash.
template <class Action>
bool succeeds(Action&& action, size_t longest = 1000) {
  try {
    action();
    return true;
  } catch (const foveate::Error& error) {
    const std::string message = error.what();
    if (message.find('\n') != std::string::npos || message.size() > longest) std::abort();
    return false;
  }
}

// A copy of its own, so that the address sanitizer sees every byte read outside of it.
inline std::vector<std::byte> copy_of(const uint8_t* data, size_t size) {
  const auto* first = reinterpret_cast<const std::byte*>(data);
  return {first, first + size};
}

inline uint64_t interesting_number(Random& random, size_t size) {
  const uint64_t numbers[] = {0,
                              1,
                              2,
                              4,
                              9,
                              31,
                              32,
                              size,
                              size - 1,
                              size / 8,
                              0x7FFFFFFF,
                              0xFFFFFFFF,
                              uint64_t(1) << 62,
                              uint64_t(1) << 63,
                              ~uint64_t{0},
                              ~uint64_t{0} - 31};
  return numbers[random.below(std::size(numbers))];
}

inline void mutate(std::string& bytes, const std::vector<std::string>& seeds, Random& random) {
  if (bytes.empty()) bytes = "x";
  const size_t at = random.below(bytes.size()), length = random.below(std::min<size_t>(bytes.size() - at, 64) + 1);
  switch (random.below(8)) {
    case 0:
      bytes[at] = char(bytes[at] ^ (1 << random.below(8)));
      break;
    case 1:
      bytes[at] = char(random.below(256));
      break;
    case 2:
    case 3: {  // a count, size or offset
      const uint64_t number = interesting_number(random, bytes.size());
      const size_t width = std::min<size_t>(bytes.size() - at, random.below(2) ? 8 : 4);
      std::memcpy(bytes.data() + at, &number, width);
      break;
    }
    case 4:
      bytes.resize(at);
      break;
    case 5:
      bytes.erase(at, length);
      break;
    case 6:
      bytes.insert(random.below(bytes.size()), bytes.substr(at, length));
      break;
    default: {
      const std::string& other = seeds[random.below(seeds.size())];
      bytes = bytes.substr(0, at) + other.substr(random.below(other.size()));
    }
  }
}

// Runs the target on what next(random) makes for SECONDS with SEED; `is_good` tells which of it is a good file.
template <class IsGood, class Next>
int run_target(int count, char** arguments, const std::vector<std::string>& seeds, const IsGood& is_good,
               const Next& next) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 10;
  Random random(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
  for (size_t i = 0; i < seeds.size(); ++i) {
    if (is_good(seeds[i])) continue;
    std::fprintf(stderr, "seed %zu is not a good file\n", i);
    return 1;
  }
  uint64_t runs = 0, accepted = 0;
  for (const Timer timer; timer.seconds() < seconds; ++runs) {
    const std::string bytes = next(random);
    accepted += is_good(bytes);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  std::printf("%llu files, %llu of them good\n", (unsigned long long)runs, (unsigned long long)accepted);
  return 0;
}

// The same with mutations of the seeds.
template <class IsGood>
int mutate_files(int count, char** arguments, const std::vector<std::string>& seeds, const IsGood& is_good) {
  return run_target(count, arguments, seeds, is_good, [&](Random& random) {
    std::string bytes = seeds[random.below(seeds.size())];
    for (uint64_t changes = random.below(5); changes > 0; --changes) mutate(bytes, seeds, random);
    return bytes;
  });
}

}  // namespace foveate::test
