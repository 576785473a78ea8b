#include "foveate/io/chat.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "foveate/base/error.h"
#include "foveate/io/gguf.h"
#include "foveate/io/tokenizer.h"
#include "tests/support/real_model.h"

namespace foveate {
namespace {

using io::chat_prompt;
using io::ChatFamily;
using io::Message;
using Messages = std::vector<Message>;

// As in the file of SmolLM2-135M-Instruct.
const std::string kSmollm2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const std::string kChatmlWithoutSystem =
    R"({% for message in messages %}{{ "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>" + "\n" }})"
    R"({% endfor %}{% if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif %})";

// As in the tokenizer_config.json of Llama-3-8B-Instruct.
const std::string kLlama3 =
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const std::string kGemma =
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first_user_prefix = messages[0]['content'] + "
    "'\n\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = \"\" -%}{%- endif -%}"
    "{%- for message in loop_messages -%}{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "
    "\"\") }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}";

const Message kSystem{"system", "Be brief."}, kUser{"user", " Hi \"you\"\n"}, kReply{"assistant", "It's\tme "};

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Chat, llama3_trims_contents) {
  const Messages messages = {{"system", " Be brief.\n"}, {"user", "Hi"}};
  EXPECT_EQ(
      chat_prompt(kLlama3, messages),
      "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
      "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(io::chat_family(kLlama3), ChatFamily::llama3);
  EXPECT_THROW(io::chat_family("{{ strftime_now('%d') }}" + kLlama3), Error);  // a date changes every prompt
}

TEST(Chat, recognises_the_family_from_the_template) {
  EXPECT_EQ(io::chat_family(std::nullopt), ChatFamily::plain);
  EXPECT_EQ(io::chat_family(kSmollm2), ChatFamily::chatml);
  EXPECT_EQ(io::chat_family(kChatmlWithoutSystem), ChatFamily::chatml);
  EXPECT_EQ(io::chat_family(kGemma), ChatFamily::gemma);
}

TEST(Chat, chatml_starts_with_the_templates_own_system_message) {
  const std::string default_system =
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
  EXPECT_EQ(chat_prompt(kSmollm2, Messages{kUser}),
            default_system + "<|im_start|>user\n Hi \"you\"\n<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(chat_prompt(kChatmlWithoutSystem, Messages{kUser}),
            "<|im_start|>user\n Hi \"you\"\n<|im_end|>\n<|im_start|>assistant\n");
}

TEST(Chat, chatml_takes_a_given_system_message_instead_and_keeps_the_turns) {
  EXPECT_EQ(chat_prompt(kSmollm2, Messages{kSystem, kUser, kReply, kUser}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \"you\"\n<|im_end|>\n"
            "<|im_start|>assistant\nIt's\tme <|im_end|>\n<|im_start|>user\n Hi \"you\"\n<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(chat_prompt(kSmollm2, Messages{kSystem, kUser, kReply}, {.add_generation_prompt = false}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \"you\"\n<|im_end|>\n"
            "<|im_start|>assistant\nIt's\tme <|im_end|>\n");
}

TEST(Chat, keeps_quotes_of_the_default_system_message) {
  std::string quoted = kSmollm2;
  const std::string from = "named SmolLM, trained";
  quoted.replace(quoted.find(from), from.size(), "named \"Smol\" + LM, trained");
  EXPECT_EQ(
      chat_prompt(quoted, Messages{{"user", "x"}}, {.add_generation_prompt = false}),
      "<|im_start|>system\nYou are a helpful AI assistant named \"Smol\" + LM, trained by Hugging Face<|im_end|>\n"
      "<|im_start|>user\nx<|im_end|>\n");
}

TEST(Chat, gemma_trims_contents_and_folds_the_system_text_into_the_first_turn) {
  EXPECT_EQ(chat_prompt(kGemma, Messages{kUser}),
            "<start_of_turn>user\nHi \"you\"<end_of_turn>\n<start_of_turn>model\n");
  EXPECT_EQ(chat_prompt(kGemma, Messages{kSystem, kUser, kReply, kUser}),
            "<start_of_turn>user\nBe brief.\n\nHi \"you\"<end_of_turn>\n<start_of_turn>model\nIt's\tme<end_of_turn>\n"
            "<start_of_turn>user\nHi \"you\"<end_of_turn>\n<start_of_turn>model\n");
}

TEST(Chat, gemma_refuses_turns_that_do_not_alternate) {
  const std::string rule = "chat: after a system message Gemma's turns must alternate user, assistant; got ";
  EXPECT_EQ(message_of([] { chat_prompt(kGemma, Messages{kUser, kUser}); }), rule + "'user' as turn 2");
  EXPECT_EQ(message_of([] { chat_prompt(kGemma, Messages{kReply}); }), rule + "'assistant' as turn 1");
  EXPECT_EQ(message_of([] { chat_prompt(kGemma, Messages{kUser, kSystem}); }), rule + "'system' as turn 2");
  EXPECT_EQ(message_of([] { chat_prompt(kGemma, Messages{kSystem}); }),
            "chat: Gemma needs a user message beside the system message, got none");
}

TEST(Chat, a_base_model_gets_the_plain_text) {
  EXPECT_EQ(chat_prompt(std::nullopt, Messages{kUser}), kUser.content);
  EXPECT_EQ(chat_prompt(std::nullopt, Messages{{"system", ""}, {"user", "a"}, {"assistant", "b"}}), "\na\nb");
}

TEST(Chat, refuses_templates_it_does_not_know_and_names_the_way_out) {
  EXPECT_EQ(
      message_of([] { chat_prompt("{{ bos }}\n[INST] x [/INST]", Messages{kUser}); }),
      "chat: the file's chat template must be ChatML, Qwen 3's, Llama 3's or Gemma's (use --raw for plain text), got "
      "'{{ bos }}\\n[INST] x [/INST]'");
  EXPECT_NE(message_of([] { chat_prompt(kSmollm2 + "{{ enable_thinking }}", Messages{kUser}); }), "no error");
  EXPECT_NE(message_of([] { chat_prompt("{{ '<|im_start|>system\n' }}" + kSmollm2, Messages{kUser}); }), "no error");
  EXPECT_NE(message_of([] { chat_prompt("", Messages{kUser}); }), "no error");
}

TEST(Chat, refuses_an_empty_conversation_and_unknown_roles) {
  EXPECT_EQ(message_of([] { chat_prompt(kSmollm2, Messages{}); }),
            "chat: a conversation must have at least one message, got none");
  EXPECT_EQ(message_of([] {
              chat_prompt(kSmollm2, Messages{{"User", "x"}});
            }),
            "chat: a role must be one of: system user assistant; got 'User'");
}

TEST(Chat, smollm2_prompt_becomes_the_control_tokens_of_its_file) {
  if (!test::real_model("smollm2")) GTEST_SKIP() << test::no_model("smollm2");
  const auto tokenizer = io::make_tokenizer(read_vocabulary(io::Gguf::open(*test::real_model("smollm2"))));
  EXPECT_EQ(tokenizer->chat_template(), kSmollm2);
  const std::string prompt = chat_prompt(tokenizer->chat_template(), Messages{{"user", "Hi"}});
  const std::vector<int32_t> ids = tokenizer->encode(prompt, {.parse_special = true});
  // llama.cpp's ids for the same text.
  EXPECT_EQ(ids, (std::vector<int32_t>{1,    9690,  198,   2683, 359, 253, 5356,  5646, 11173, 3365, 3511,
                                       308,  34519, 28,    7018, 411, 407, 19712, 8182, 2,     198,  1,
                                       4093, 198,   26843, 2,    198, 1,   520,   9531, 198}));
}

TEST(Chat, gemma3_base_has_no_template) {
  if (!test::real_model("gemma3")) GTEST_SKIP() << test::no_model("gemma3");
  const auto tokenizer = io::make_tokenizer(read_vocabulary(io::Gguf::open(*test::real_model("gemma3"))));
  EXPECT_EQ(io::chat_family(tokenizer->chat_template()), ChatFamily::plain);
}

}  // namespace
}  // namespace foveate
