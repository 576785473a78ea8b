#include "foveate/io/chat.h"

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::io {

namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

// Some templates spell a line break with a backslash, some have a real one.
std::string with_line_breaks(std::string text) {
  replace_all(text, "\\n", "\n");
  return text;
}

// Single quotes, message['role'] for message.role and no spaces around '+', so that one spelling is to be looked for.
std::string normalised(const std::string& chat_template) {
  std::string text = with_line_breaks(chat_template);
  replace_all(text, "\"", "'");
  replace_all(text, "message.role", "message['role']");
  replace_all(text, "message.content", "message['content']");
  replace_all(text, " + ", "+");
  replace_all(text, "'+ ", "'+");
  return text;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

bool is_chatml(std::string_view text) {
  // Thinking modes and dates change what a plain conversation becomes: such a template is another family.
  for (const std::string_view feature : {"enable_thinking", "reasoning_content", "strftime", "<think>"})
    if (contains(text, feature)) return false;
  // A system turn opened outside any message is for lists of tools; where no condition guards it, every prompt has one.
  if (contains(text, "'<|im_start|>system\n'") && !contains(text, "if tools")) return false;
  return contains(text, "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'") &&
         contains(text, "<|im_start|>assistant\n");
}

bool is_llama3(std::string_view text) {
  // Llama 3.1 and later write the date into the system turn.
  for (const std::string_view feature : {"date_string", "strftime", "tools"})
    if (contains(text, feature)) return false;
  return contains(
             text,
             "'<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content'] | trim+'<|eot_id|>'") &&
         contains(text, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

bool is_gemma(std::string_view text) {
  return contains(text, "'<start_of_turn>'+role+'\n'") && contains(text, "'<end_of_turn>\n'") &&
         contains(text, "message['content'] | trim") && contains(text, "<start_of_turn>model\n");
}

// The system message that a ChatML template writes where the conversation has none: the one string literal that is a
// whole system turn.
std::optional<std::string> default_system(const std::string& chat_template) {
  constexpr std::string_view kOpen = "<|im_start|>system\n", kClose = "<|im_end|>\n";
  const std::string text = with_line_breaks(chat_template);
  for (size_t at = text.find(kOpen, 1); at != std::string::npos; at = text.find(kOpen, at + 1)) {
    const char quote = text[at - 1];
    const size_t begin = at + kOpen.size(), end = text.find(quote, begin);
    if ((quote != '\'' && quote != '"') || end == std::string::npos) continue;
    const std::string literal = text.substr(begin, end - begin);
    if (literal.ends_with(kClose)) return literal.substr(0, literal.size() - kClose.size());
  }
  return std::nullopt;
}

void check_roles(std::span<const Message> messages) {
  for (const Message& message : messages)
    require(message.role == "system" || message.role == "user" || message.role == "assistant",
            "chat: a role must be one of: system user assistant; got '{}'", message.role);
}

std::string plain_prompt(std::span<const Message> messages) {
  std::string prompt;
  for (size_t i = 0; i < messages.size(); ++i) prompt += (i == 0 ? "" : "\n") + messages[i].content;
  return prompt;
}

std::string chatml_prompt(const std::string& chat_template, std::span<const Message> messages, ChatOptions options) {
  std::string prompt;
  const auto add = [&](std::string_view role, std::string_view content) {
    prompt += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, content);
  };
  if (messages[0].role != "system")
    if (const auto system = default_system(chat_template)) add("system", *system);
  for (const Message& message : messages) add(message.role, message.content);
  if (options.add_generation_prompt) prompt += "<|im_start|>assistant\n";
  return prompt;
}

// Jinja's trim: white space as Python's str.strip sees it, of which ASCII and U+001C .. U+001F matter here.
std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\n\v\f\r\x1c\x1d\x1e\x1f";
  const size_t begin = text.find_first_not_of(kSpaces);
  return begin == std::string_view::npos ? "" : text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin);
}

std::string llama3_prompt(std::span<const Message> messages, ChatOptions options) {
  std::string prompt;
  for (const Message& message : messages)
    prompt +=
        fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", message.role, trimmed(message.content));
  if (options.add_generation_prompt) prompt += "<|start_header_id|>assistant<|end_header_id|>\n\n";
  return prompt;
}

std::string gemma_prompt(std::span<const Message> messages, ChatOptions options) {
  std::string prefix;
  if (messages[0].role == "system") {
    prefix = messages[0].content + "\n\n";
    messages = messages.subspan(1);
  }
  require(!messages.empty(), "chat: Gemma needs a user message beside the system message, got none");
  std::string prompt;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string_view expected = i % 2 == 0 ? "user" : "assistant";
    require(messages[i].role == expected,
            "chat: after a system message Gemma's turns must alternate user, assistant; got '{}' as turn {}",
            messages[i].role, i + 1);
    prompt += fmt::format("<start_of_turn>{}\n{}{}<end_of_turn>\n", i % 2 == 0 ? "user" : "model", i == 0 ? prefix : "",
                          trimmed(messages[i].content));
  }
  if (options.add_generation_prompt) prompt += "<start_of_turn>model\n";
  return prompt;
}

}  // namespace

ChatFamily chat_family(const std::optional<std::string>& chat_template) {
  if (!chat_template) return ChatFamily::plain;
  const std::string text = normalised(*chat_template);
  if (is_chatml(text)) return ChatFamily::chatml;
  if (is_llama3(text)) return ChatFamily::llama3;
  if (is_gemma(text)) return ChatFamily::gemma;
  constexpr size_t kShown = 60;
  std::string shown = chat_template->substr(0, kShown);
  std::ranges::replace(shown, '\n', ' ');
  fail("chat: the file's chat template must be ChatML, Llama 3's or Gemma's (use --raw for plain text), got '{}{}'",
       shown, chat_template->size() > kShown ? "..." : "");
}

std::string chat_prompt(const std::optional<std::string>& chat_template, std::span<const Message> messages,
                        ChatOptions options) {
  const ChatFamily family = chat_family(chat_template);
  require(!messages.empty(), "chat: a conversation must have at least one message, got none");
  check_roles(messages);
  switch (family) {
    case ChatFamily::plain:
      return plain_prompt(messages);
    case ChatFamily::chatml:
      return chatml_prompt(*chat_template, messages, options);
    case ChatFamily::llama3:
      return llama3_prompt(messages, options);
    case ChatFamily::gemma:
      break;
  }
  return gemma_prompt(messages, options);
}

}  // namespace foveate::io
