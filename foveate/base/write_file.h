// Writing results so that nothing is lost: checked before the long work, and never half a file.
#pragma once

#include <filesystem>
#include <span>
#include <string_view>

namespace foveate {

// Makes the folder (with its parents) when it is missing and proves with a short-lived file that it can be written to.
// Throws Error: not a folder, or not writable, with the system's reason.
void require_writable_directory(const std::filesystem::path& directory);

// Writes to a new file beside `path` and renames it over: a reader sees the old content or the new, never a part.
// Throws Error: with the path and the system's reason; the old content then stays as it was.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);
// The same of parts, one after the other.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::string_view> parts);

}  // namespace foveate
