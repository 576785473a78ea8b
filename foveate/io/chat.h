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
  plain,    // a base model: no template in the file
  chatml,   // SmolLM2, Qwen2.5: <|im_start|>role, the text, <|im_end|>
  qwen3,    // the same, with thoughts before the answers that follow the last question
  llama3,   // <|start_header_id|>role<|end_header_id|>, the text, <|eot_id|>
  llama31,  // 3.1 to 3.3: the same, with dates at the head of a system turn that is always there
  gemma,    // <start_of_turn>user or model, the text, <end_of_turn>; system text opens the first user turn
};

struct ChatOptions {
  bool add_generation_prompt = true;     // open the assistant's turn at the end
  std::optional<std::string> date = {};  // "26 Jul 2024", for templates that ask for the day; not given: today
};

// The family of tokenizer.chat_template.  Throws Error for a template of no known family, naming --raw.
ChatFamily chat_family(const std::optional<std::string>& chat_template);

// The prompt for a conversation.  Encode it with EncodeOptions{.parse_special = true}: the marks are control tokens,
// and BOS is encode's to add, so it is not in the text.  Marks that a message contains become control tokens as well.
//   plain:  the contents, joined by newlines; no marks and nothing to open a turn.
//   chatml: the template's default system message comes first if the first message is not a system message.
//   qwen3:  of an assistant's message that holds </think> what is before it is its thought; thoughts are written only
//           behind the last user message, and there the last message has one even if it is empty.
//   llama3: contents are trimmed of white space.
//   llama31: contents are trimmed; the day is 26 Jul 2024 (3.1) or that of the options (3.2 and later).
//   gemma:  contents are trimmed of white space; user and assistant must alternate, user first.
// Throws Error: no messages, a role that the family does not know, Gemma turns that do not alternate, a system message
// for a Gemma that knows none (1 and 2).
std::string chat_prompt(const std::optional<std::string>& chat_template, std::span<const Message> messages,
                        ChatOptions options = {});

}  // namespace foveate::io
