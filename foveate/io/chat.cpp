#include "foveate/io/chat.h"

#include <algorithm>
#include <ctime>

#include "foveate/base/error.h"
#include "foveate/io/bytes.h"

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

bool is_qwen3(std::string_view text) {
  for (const std::string_view part :
       {"set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1)",
        "not(message['content'].startswith('<tool_response>') and message['content'].endswith('</tool_response>'))",
        "if loop.index0 > ns.last_query_index", "if loop.last or (not loop.last and reasoning_content)",
        "'+message['role']+'\n<think>\n'+reasoning_content.strip('\n')+'\n</think>\n\n'+content.lstrip('\n')",
        "'<|im_start|>assistant\n'", "if enable_thinking is defined and enable_thinking is false"})
    if (!contains(text, part)) return false;
  return !contains(text, "strftime");
}

bool is_llama31(std::string_view text) {
  for (const std::string_view part :
       {"'<|start_header_id|>system<|end_header_id|>\n\n'", "'Cutting Knowledge Date: December 2023\n'",
        "'Today Date: '+date_string+'\n\n'", "set date_string = '26 Jul 2024'",
        "'<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content'] | trim+'<|eot_id|>'",
        "'<|start_header_id|>assistant<|end_header_id|>\n\n'"})
    if (!contains(text, part)) return false;
  return !contains(text, "if system_message");  // there are copies without the turn where it would be empty
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

std::string chatml_prompt(const std::string& chat_template, std::span<const Message> messages,
                          const ChatOptions& options) {
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

// What Python's strip, lstrip and rstrip do with '\n'.
std::string_view without_breaks(std::string_view text, bool left, bool right) {
  while (left && text.starts_with('\n')) text.remove_prefix(1);
  while (right && text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

struct Thought {
  std::string_view reasoning, content;
};

Thought split_thought(std::string_view text) {
  constexpr std::string_view kOpen = "<think>", kClose = "</think>";
  if (!contains(text, kClose)) return {"", text};
  std::string_view before = without_breaks(text.substr(0, text.find(kClose)), false, true);
  if (const size_t open = before.rfind(kOpen); open != std::string_view::npos)
    before.remove_prefix(open + kOpen.size());
  return {without_breaks(before, true, true),
          without_breaks(text.substr(text.rfind(kClose) + kClose.size()), true, false)};
}

std::string qwen3_prompt(std::span<const Message> messages, const ChatOptions& options) {
  size_t last_question = messages.size() - 1;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string_view content = messages[i].content;
    const bool is_response = content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
    if (messages[i].role == "user" && !is_response) last_question = i;
  }
  std::string prompt;
  for (size_t i = 0; i < messages.size(); ++i) {
    prompt += fmt::format("<|im_start|>{}\n", messages[i].role);
    if (messages[i].role == "assistant") {
      const Thought thought = split_thought(messages[i].content);
      if (i > last_question && (i + 1 == messages.size() || !thought.reasoning.empty()))
        prompt +=
            fmt::format("<think>\n{}\n</think>\n\n{}", thought.reasoning, without_breaks(thought.content, true, false));
      else
        prompt += thought.content;
    } else {
      prompt += messages[i].content;
    }
    prompt += "<|im_end|>\n";
  }
  if (options.add_generation_prompt) prompt += "<|im_start|>assistant\n";
  return prompt;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  constexpr std::string_view kMonths = "JanFebMarAprMayJunJulAugSepOctNovDec";
  return fmt::format("{:02} {} {}", local.tm_mday, kMonths.substr(size_t(local.tm_mon) * 3, 3), local.tm_year + 1900);
}

std::string llama3_prompt(std::span<const Message> messages, const ChatOptions& options) {
  std::string prompt;
  for (const Message& message : messages)
    prompt +=
        fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", message.role, trimmed(message.content));
  if (options.add_generation_prompt) prompt += "<|start_header_id|>assistant<|end_header_id|>\n\n";
  return prompt;
}

std::string llama31_prompt(const std::string& chat_template, std::span<const Message> messages,
                           const ChatOptions& options) {
  const std::string date = contains(chat_template, "strftime_now") ? options.date.value_or(today()) : "26 Jul 2024";
  std::string_view system;
  if (messages[0].role == "system") {
    system = trimmed(messages[0].content);
    messages = messages.subspan(1);
  }
  return fmt::format(
             "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: {}\n\n"
             "{}<|eot_id|>",
             date, system) +
         llama3_prompt(messages, options);
}

std::string gemma_prompt(const std::string& chat_template, std::span<const Message> messages,
                         const ChatOptions& options) {
  std::string prefix;
  if (messages[0].role == "system") {
    const std::string text = normalised(chat_template);
    const bool apart = contains(text, "messages[0]['content']+'\n\n'");
    require(apart || contains(text, "messages[0]['content']+'\n'"),
            "chat: the file's chat template takes no system message, got one");
    prefix = messages[0].content + (apart ? "\n\n" : "\n");
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
  if (is_qwen3(text)) return ChatFamily::qwen3;
  if (is_llama3(text)) return ChatFamily::llama3;
  if (is_llama31(text)) return ChatFamily::llama31;
  if (is_gemma(text)) return ChatFamily::gemma;
  fail(
      "chat: the file's chat template must be ChatML, Qwen 3's, Llama 3's or Gemma's (use --raw for plain text), got "
      "{}",
      printable(*chat_template));
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
    case ChatFamily::qwen3:
      return qwen3_prompt(messages, options);
    case ChatFamily::llama3:
      return llama3_prompt(messages, options);
    case ChatFamily::llama31:
      return llama31_prompt(*chat_template, messages, options);
    case ChatFamily::gemma:
      break;
  }
  return gemma_prompt(*chat_template, messages, options);
}

}  // namespace foveate::io
