// A small checker of markup: enough to see that tags are balanced and what elements and attributes there are.
#pragma once

#include <cctype>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::report {

struct Markup {
  std::string problem;                // empty when every tag is closed in order
  std::vector<std::string> elements;  // names of the opening tags, in order
  std::string text;                   // everything outside tags

  int count(std::string_view name) const {
    int found = 0;
    for (const std::string& element : elements) found += element == name ? 1 : 0;
    return found;
  }
};

inline Markup parse_markup(std::string_view source) {
  Markup markup;
  std::vector<std::string> open;
  for (size_t at = 0; at < source.size();) {
    if (source[at] != '<') {
      markup.text += source[at++];
      continue;
    }
    size_t end = at + 1;
    for (char quote = 0; end < source.size() && (quote != 0 || source[end] != '>'); ++end) {
      if (quote == 0 && source[end] == '<') markup.problem = "'<' within a tag";
      if (source[end] == '"') quote = quote == 0 ? '"' : 0;
    }
    if (end == source.size()) markup.problem = "a tag without end";
    const std::string_view tag = source.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag.starts_with('!')) continue;
    const bool is_closing = tag.starts_with('/');
    const std::string_view body = tag.substr(is_closing ? 1 : 0);
    const std::string name(body.substr(0, body.find_first_of(" \n/")));
    if (name.empty()) markup.problem = "a tag without name";
    if (!is_closing) {
      markup.elements.push_back(name);
      if (!tag.ends_with('/')) open.push_back(name);
    } else if (open.empty() || open.back() != name) {
      markup.problem = "</" + name + "> closes " + (open.empty() ? "nothing" : open.back());
    } else {
      open.pop_back();
    }
  }
  if (markup.problem.empty() && !open.empty()) markup.problem = "<" + open.back() + "> is never closed";
  return markup;
}

}  // namespace foveate::report
