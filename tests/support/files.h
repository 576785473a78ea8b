// Bytes, files and folders for the tests of readers.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace foveate::test {

// Little-endian bytes that grow at the end.
class ByteWriter {
 public:
  template <class T>
  requires std::is_arithmetic_v<T> ByteWriter& put(T value) {
    data_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  ByteWriter& put(std::string_view text) { return put(uint64_t(text.size())).raw(text); }  // length, then bytes
  ByteWriter& raw(std::string_view bytes) {
    data_ += bytes;
    return *this;
  }
  ByteWriter& pad_to(uint64_t alignment) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  const std::string& data() const { return data_; }

 private:
  std::string data_;
};

inline std::span<const std::byte> as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

// A path in the system's temporary folder that no other running test uses.
inline std::string temporary_path(std::string_view name) {
  const std::string unique = "foveate-" + std::to_string(::getpid()) + "-" + std::string(name);
  return (std::filesystem::temp_directory_path() / unique).string();
}

// A file at temporary_path(name), removed at the end.
class TemporaryFile {
 public:
  TemporaryFile(std::string_view name, std::string_view bytes) : path_(temporary_path(name)) {
    std::ofstream(path_, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// While it lives no file of this process can grow beyond so many bytes: a disk that is full.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit tight{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &tight);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

// An empty folder at temporary_path(name), removed with what is in it at the end.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(std::string_view name) : path_(temporary_path(name)) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  TemporaryFolder& add(std::string_view name, std::string_view bytes) {
    std::ofstream(file(name), std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
    return *this;
  }

 private:
  std::string path_;
};

}  // namespace foveate::test
