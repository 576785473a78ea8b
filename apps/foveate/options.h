// Options of the command line that many subcommands have.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "foveate/base/options.h"

namespace foveate::app {

// An option of the command line for every field: --weight-decay for weight_decay.
template <class T>
void add_fields(CLI::App& command, T& options) {
  T::fields(options, [&]<class V>(std::string_view name, V& value, Range range, std::string_view doc) {
    std::string flag = "--" + std::string(name);
    std::replace(flag.begin(), flag.end(), '_', '-');
    const auto read = [range](const std::string& text, V& into) {
      if constexpr (std::is_enum_v<V>)
        return detail::parse_value(text, into);
      else
        return CLI::detail::lexical_cast(text, into) && double(into) >= range.low && double(into) <= range.high;
    };
    CLI::Option* option = command.add_option_function<std::string>(
        flag, [read, &value](const std::string& text) { read(text, value); }, std::string(doc));
    option->default_str(detail::option_text(value));
    option->check(CLI::Validator(
        [read, range](const std::string& text) -> std::string {
          V other{};
          return read(text, other) ? "" : fmt::format("must be {}, got {}", detail::legal_text(other, range), text);
        },
        detail::legal_text(value, range)));
  });
}

void add_threads(CLI::App& command, int& threads);
void use_threads(int threads);  // 0: as many as torch takes

// Throws Error: a folder that cannot be written to; "" is no file.
void check_output(const std::string& file);

}  // namespace foveate::app
