#include "foveate/base/write_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "foveate/base/error.h"

namespace foveate {
namespace {

std::string reason(int code) { return std::generic_category().message(code); }

// A file that exists under its temporary name only as long as this object, unless it was renamed.
class TemporaryFile {
 public:
  // Throws nothing: on failure is_open() is false and errno tells why.
  explicit TemporaryFile(const std::filesystem::path& target) : path_(target) {
    for (int attempt = 0; attempt < 100 && descriptor_ < 0; ++attempt) {
      path_ = target;
      path_ += fmt::format(".{}-{}.tmp", ::getpid(), attempt);
      descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (descriptor_ < 0 && errno != EEXIST) return;
    }
    exists_ = descriptor_ >= 0;
  }
  ~TemporaryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (exists_) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  bool is_open() const { return descriptor_ >= 0; }
  // All return false with errno set.
  bool write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(descriptor_, text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return false;
      text.remove_prefix(size_t(written));
    }
    return true;
  }
  bool close() {
    const int closing = descriptor_;
    descriptor_ = -1;
    const bool is_synced = ::fsync(closing) == 0 || errno == EINVAL;  // some file systems cannot sync
    return ::close(closing) == 0 && is_synced;
  }
  bool rename_to(const std::filesystem::path& target) {
    if (::rename(path_.c_str(), target.c_str()) != 0) return false;
    exists_ = false;
    return true;
  }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  bool exists_ = false;
};

}  // namespace

void require_writable_directory(const std::filesystem::path& directory) {
  std::error_code code;
  std::filesystem::create_directories(directory, code);
  require(!code, "output folder: must be a folder that can be made, got '{}': {}", directory.string(), code.message());
  TemporaryFile probe(directory / ".foveate");
  const int error = errno;
  require(probe.is_open(), "output folder: must be writable, got '{}': {}", directory.string(), reason(error));
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::span(&text, 1));
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::string_view> parts) {
  TemporaryFile file(path);
  const auto write = [&] {
    return std::ranges::all_of(parts, [&](std::string_view text) { return file.write(text); });
  };
  const bool is_written = file.is_open() && write() && file.close() && file.rename_to(path);
  const int error = errno;
  require(is_written, "write: the file must be writable, got '{}': {}", path.string(), reason(error));
}

}  // namespace foveate
