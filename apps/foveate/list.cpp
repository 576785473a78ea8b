// foveate list [NAME]: mechanisms, their classes and options.
#include "commands.h"
#include "foveate/attention/registry.h"
#include "foveate/report/table.h"

namespace foveate::app {
namespace {

std::string kind_name(attention::Kind kind) { return std::string(enum_names(kind)[size_t(kind)]); }

void print_all(const std::vector<attention::MechanismInfo>& infos) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& info : infos) rows.push_back({info.name, kind_name(info.kind), info.summary});
  fmt::print("{}", report::format_table({{"mechanism", report::Align::kLeft},
                                         {"class", report::Align::kLeft},
                                         {"what it does", report::Align::kLeft}},
                                        rows));
  fmt::print(
      "\nclass: row = each row depends on its own past alone; block, prompt = selection may use later rows of the\n"
      "block or the prompt, decode has a rule of its own.  Options: foveate list NAME\n");
}

void print_one(const attention::MechanismInfo& info) {
  fmt::print("{}: {}\nclass: {}\n", info.name, info.summary, kind_name(info.kind));
  std::vector<std::vector<std::string>> rows;
  for (const OptionInfo& option : info.options)
    rows.push_back({option.name, option.default_value, option.range, option.doc});
  if (rows.empty()) return fmt::print("no options\n");
  fmt::print("\n{}", report::format_table({{"option", report::Align::kLeft},
                                           {"default", report::Align::kRight},
                                           {"legal", report::Align::kLeft},
                                           {"meaning", report::Align::kLeft}},
                                          rows));
}

}  // namespace

void add_list(CLI::App& app) {
  struct Options {
    std::string name;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("list", "mechanisms and their options");
  command->add_option("name", options->name, "one mechanism, with every option");
  command->add_flag("--json", options->json, "for machines");
  command->footer("Examples:\n  foveate list\n  foveate list window\n  foveate list --json");
  command->callback([options] {
    auto infos = attention::list_mechanisms();
    if (!options->name.empty()) {
      attention::make_mechanism({.name = options->name, .options = {}});  // names the known ones if it is none of them
      std::erase_if(infos, [&](const auto& info) { return info.name != options->name; });
    }
    if (options->json) return fmt::print("{}\n", attention::mechanisms_as_json(infos));
    options->name.empty() ? print_all(infos) : print_one(infos.front());
  });
}

}  // namespace foveate::app
