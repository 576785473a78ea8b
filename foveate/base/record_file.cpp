#include "foveate/base/record_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "foveate/base/error.h"

namespace foveate {
namespace {

std::string reason(int code) { return std::generic_category().message(code); }

// Tells changed records apart, at the speed of memory: four sums of words side by side.  Never 0.
uint64_t sum_of(std::span<const std::byte> data) {
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15;
  uint64_t sums[4] = {1, 2, 3, 4}, word = 0;
  size_t i = 0;
  for (; i + 32 <= data.size(); i += 32)
    for (size_t lane = 0; lane < 4; ++lane) {
      std::memcpy(&word, data.data() + i + 8 * lane, 8);
      sums[lane] = (sums[lane] ^ word) * kPrime;
      sums[lane] ^= sums[lane] >> 29;
    }
  for (; i < data.size(); ++i) sums[0] = (sums[0] ^ uint64_t(data[i])) * kPrime;
  for (const size_t lane : {1, 2, 3}) sums[0] = ((sums[0] >> 31 ^ sums[0]) + sums[lane]) * kPrime;
  return sums[0] | 1;
}

}  // namespace

RecordFile::RecordFile(const std::filesystem::path& directory, size_t record_bytes)
    : directory_(directory), record_bytes_(record_bytes) {
  std::string name = (directory / ".foveate-XXXXXX").string();
  descriptor_ = ::mkostemp(name.data(), O_CLOEXEC);
  const int error = errno;
  require(descriptor_ >= 0, "offload: the folder must exist and be writable, got '{}': {}", directory.string(),
          reason(error));
  ::unlink(name.c_str());
}

RecordFile::~RecordFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

RecordFile::RecordFile(RecordFile&& other) noexcept
    : directory_(std::move(other.directory_)),
      record_bytes_(other.record_bytes_),
      descriptor_(std::exchange(other.descriptor_, -1)),
      sums_(std::move(other.sums_)) {}

RecordFile& RecordFile::operator=(RecordFile&& other) noexcept {
  std::swap(directory_, other.directory_);
  std::swap(record_bytes_, other.record_bytes_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(sums_, other.sums_);
  return *this;
}

void RecordFile::write(int64_t record, std::span<const std::byte> data) {
  require(record >= 0 && data.size() == record_bytes_, "offload: a record must be {} bytes, got {} for record {}",
          record_bytes_, data.size(), record);
  if (size_t(record) < sums_.size()) sums_[size_t(record)] = 0;
  size_t done = 0;
  while (done < data.size()) {
    const off_t at = off_t(record) * off_t(record_bytes_) + off_t(done);
    const ssize_t written = ::pwrite(descriptor_, data.data() + done, data.size() - done, at);
    if (written < 0 && errno == EINTR) continue;
    const int error = written < 0 ? errno : ENOSPC;
    require(written > 0, "offload: the disk of '{}' must take {} bytes more, got: {}; free some, or bound the blocks",
            directory_.string(), data.size() - done, reason(error));
    done += size_t(written);
  }
  if (sums_.size() <= size_t(record)) sums_.resize(size_t(record) + 1);
  sums_[size_t(record)] = sum_of(data);
}

void RecordFile::read(int64_t record, std::span<std::byte> to) const {
  require(record >= 0 && size_t(record) < sums_.size() && sums_[size_t(record)] != 0 && to.size() == record_bytes_,
          "offload: record {} of {} bytes was never written", record, to.size());
  size_t done = 0;
  while (done < to.size()) {
    const off_t at = off_t(record) * off_t(record_bytes_) + off_t(done);
    const ssize_t got = ::pread(descriptor_, to.data() + done, to.size() - done, at);
    if (got < 0 && errno == EINTR) continue;
    const int error = errno;
    require(got > 0, "offload: record {} in '{}' must be readable, got: {}", record, directory_.string(),
            got < 0 ? reason(error) : "the file is cut off");
    done += size_t(got);
  }
  require(sum_of(to) == sums_[size_t(record)],
          "offload: record {} in '{}' must be as written, got other bytes: damaged", record, directory_.string());
}

}  // namespace foveate
