#include "foveate/io/bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace foveate::io {

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 80;
  std::string escaped = fmt::format("{:?}", text.substr(0, kLongest));
  escaped.front() = escaped.back() = '\'';
  return text.size() > kLongest ? escaped + "..." : escaped;
}

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK: a pipe without a writer must give an error, not wait.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  require(file >= 0, "{}: cannot be opened: {}", path, std::strerror(errno));
  struct stat status {};
  const bool is_regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  void* start = nullptr;
  if (is_regular && status.st_size > 0)
    start = ::mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  const int reason = errno;
  ::close(file);
  require(is_regular, "{}: must be a regular file, got {}", path,
          S_ISDIR(status.st_mode) ? "a folder" : "a pipe or device");
  require(start != MAP_FAILED, "{}: cannot be mapped into memory: {}", path, std::strerror(reason));
  data_ = static_cast<const std::byte*>(start);
  size_ = size_t(status.st_size);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

}  // namespace foveate::io
