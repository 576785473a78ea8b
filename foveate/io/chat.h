// Chat prompts: messages written as the text a model was trained on.  The template in the file is recognised, not run.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace foveate::io {

struct Message {
  std::string role;  // system, user, assistant
  std::string content;
};

enum class ChatFamily {
  plain,   // a base model: no template in the file
  chatml,  // SmolLM2, Qwen2.5: <|im_start|>role, the text, <|im_end|>
  llama3,  // <|start_header_id|>role<|end_header_id|>, the text, <|eot_id|>
  gemma,   // <start_of_turn>user or model, the text, <end_of_turn>; system text opens the first user turn
};

struct ChatOptions {
  bool add_generation_prompt = true;  // open the assistant's turn at the end
};

// The family of tokenizer.chat_template.  Throws Error for a template of no known family, naming --raw.
ChatFamily chat_family(const std::optional<std::string>& chat_template);

// The prompt for a conversation.  Encode it with EncodeOptions{.parse_special = true}: the marks are control tokens,
// and BOS is encode's to add, so it is not in the text.  Marks that a message contains become control tokens as well.
//   plain:  the contents, joined by newlines; no marks and nothing to open a turn.
//   chatml: the template's default system message comes first if the first message is not a system message.
//   llama3: contents are trimmed of white space.
//   gemma:  contents are trimmed of white space; user and assistant must alternate, user first.
// Throws Error: no messages, a role that the family does not know, Gemma turns that do not alternate.
std::string chat_prompt(const std::optional<std::string>& chat_template, std::span<const Message> messages,
                        ChatOptions options = {});

}  // namespace foveate::io
