#include "foveate/base/write_file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "foveate/base/error.h"

namespace foveate {
namespace {

namespace fs = std::filesystem;

class Write : public testing::Test {
 protected:
  Write() {
    folder_ = fs::temp_directory_path() / fmt::format("foveate_write_test_{}", ::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Write() override { fs::remove_all(folder_); }

  static std::string read(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }
  int files() const { return int(std::distance(fs::directory_iterator(folder_), fs::directory_iterator())); }
  template <class Call>
  static std::string error_of(Call call) {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  fs::path folder_;
};

TEST_F(Write, replaces_the_file_and_leaves_nothing_else_behind) {
  const fs::path path = folder_ / "compare.json";
  write_file_atomically(path, "first, and longer");
  write_file_atomically(path, std::string_view("a\0b", 3));
  EXPECT_EQ(read(path), std::string_view("a\0b", 3));
  EXPECT_EQ(files(), 1);
}

TEST_F(Write, gives_the_file_the_usual_permissions) {
  const mode_t mask = ::umask(022);
  write_file_atomically(folder_ / "x", "");
  ::umask(mask);
  EXPECT_EQ(int(fs::status(folder_ / "x").permissions()), 0644);
}

TEST_F(Write, names_the_path_and_the_reason_when_the_folder_is_missing) {
  const fs::path path = folder_ / "missing" / "compare.json";
  EXPECT_EQ(error_of([&] { write_file_atomically(path, "x"); }),
            "write: the file must be writable, got '" + path.string() + "': No such file or directory");
}

TEST_F(Write, keeps_the_old_content_and_no_temporary_file_when_it_fails) {
  const fs::path path = folder_ / "taken";
  fs::create_directory(path);
  EXPECT_TRUE(error_of([&] { write_file_atomically(path, "x"); }).ends_with("Is a directory"));
  EXPECT_EQ(files(), 1);
}

TEST_F(Write, makes_an_output_folder_with_its_parents_and_leaves_it_empty) {
  require_writable_directory(folder_ / "a" / "b");
  EXPECT_TRUE(fs::is_empty(folder_ / "a" / "b"));
  require_writable_directory(folder_ / "a" / "b");
  require_writable_directory(folder_ / "a" / "c" / "");
}

TEST_F(Write, refuses_an_output_folder_that_is_a_file_or_has_no_name) {
  write_file_atomically(folder_ / "file", "x");
  for (const fs::path& path : {folder_ / "file", folder_ / "file" / "below"}) {
    const std::string error = error_of([&] { require_writable_directory(path); });
    EXPECT_TRUE(error.starts_with("output folder: must be ")) << error;
    EXPECT_NE(error.find("got '" + path.string() + "': "), std::string::npos) << error;
  }
  EXPECT_NE(error_of([] { require_writable_directory(""); }), "no error");
}

TEST_F(Write, refuses_an_output_folder_without_write_permission) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  const std::string error = error_of([&] { require_writable_directory(folder_); });
  fs::permissions(folder_, fs::perms::owner_all);
  EXPECT_TRUE(error.ends_with("Permission denied")) << error;
}

}  // namespace
}  // namespace foveate
