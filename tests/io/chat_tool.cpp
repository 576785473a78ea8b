// Writes chat prompts for the Python tests.  Reads one JSON value: a list of {"template", "messages", "open", "date"};
// writes a list of prompts, of {"error": ..} where one is refused.
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "foveate/base/error.h"
#include "foveate/io/chat.h"

int main() {
  const auto conversations = nlohmann::json::parse(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  auto prompts = nlohmann::json::array();
  for (const auto& conversation : conversations) {
    std::vector<foveate::io::Message> messages;
    for (const auto& message : conversation["messages"]) messages.push_back({message["role"], message["content"]});
    const foveate::io::ChatOptions options{.add_generation_prompt = conversation["open"],
                                           .date = conversation["date"].get<std::string>()};
    try {
      prompts.push_back(foveate::io::chat_prompt(conversation["template"].get<std::string>(), messages, options));
    } catch (const foveate::Error& error) {
      prompts.push_back({{"error", error.what()}});
    }
  }
  std::cout << prompts.dump() << "\n";
  return 0;
}
