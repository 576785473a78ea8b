// Where models, texts and images lie that tools/fetch.py has fetched, and how a user names them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace foveate::io {

// FOVEATE_CACHE, or ~/.cache/foveate.
std::string cache_folder();

// The file of a model or a text, or the folder of a model: a path as it is, or the name of a fetched one ("smollm2",
// "book").  Throws Error: no such file (names the fetched ones and how to fetch).
std::string find_model(std::string_view name_or_path);
std::string find_text(std::string_view name_or_path);
// The same for a folder of images ("fashion-mnist", "photos").
std::string find_images(std::string_view name_or_path);

// The whole file as bytes; "-" reads standard input.  Throws Error: missing, a folder, unreadable.
std::string read_text(const std::string& path);

}  // namespace foveate::io
