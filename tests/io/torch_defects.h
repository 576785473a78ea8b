// Damaged files of torch.save and what is said about them.
#pragma once

#include <cctype>
#include <functional>
#include <string>
#include <vector>

#include "foveate/io/torch_file.h"
#include "tests/support/torch_writer.h"

namespace foveate::test {

inline std::string file_error(const std::string& bytes) {
  try {
    io::TorchFile::parse(as_bytes(bytes), "f");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

inline const std::vector<Storage> kSix = {{"0", std::string(24, '\1')}};
inline const std::string kGoodPickle =
    PickleWriter().raw("}").text("w").tensor("0", 6, 0, {2, 3}, {3, 1}).raw("s").end();
inline constexpr uint64_t kPickleStart = 30 + 10 + 3;  // in the file

// The error of a pickle, with bytes counted from its own start.
inline std::string pickle_error(const std::string& pickle) {
  std::string message = file_error(torch_file(pickle, kSix));
  if (const size_t at = message.find("at byte "); at != std::string::npos) {
    size_t end = at + 8;
    while (end < message.size() && isdigit(message[end])) ++end;
    message.replace(at + 8, end - at - 8,
                    std::to_string(std::stoull(message.substr(at + 8, end - at - 8)) - kPickleStart));
  }
  return message;
}

inline std::string operations_error(std::string_view operations) {
  return pickle_error(PickleWriter().raw(operations).end());
}

// The error of an archive whose items `change` damages.
inline std::string items_error(const std::function<void(std::vector<ZipItem>&)>& change) {
  std::vector<ZipItem> items = torch_items(kGoodPickle, kSix);
  change(items);
  return file_error(zip_file(items));
}

inline std::string tensor_error(int64_t offset, const std::vector<int64_t>& shape,
                                const std::vector<int64_t>& strides) {
  return pickle_error(PickleWriter().tensor("0", 6, offset, shape, strides).end());
}

inline std::string storage_error(std::string_view key, int64_t count, std::string_view type = "FloatStorage") {
  return pickle_error(PickleWriter().tensor(key, count, 0, {1}, {1}, type).end());
}

}  // namespace foveate::test
