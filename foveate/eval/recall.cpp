#include "foveate/eval/recall.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "foveate/models/language/generate.h"

namespace foveate::eval {
namespace {

at::Tensor last_row(const at::Tensor& hidden) { return hidden.select(1, -1).squeeze(0); }

// The log-probability of `answer` after a prompt whose last hidden state is `hidden`.  Leaves the session as it was.
double answer_logprob(models::Session& session, const at::Tensor& first, std::span<const int32_t> answer) {
  double sum = first[answer[0]].item<double>();
  if (answer.size() == 1) return sum;
  const int64_t length = session.length();
  const at::Tensor hidden = session.decode(answer.first(answer.size() - 1)).squeeze(0);
  for (size_t i = 1; i < answer.size(); ++i)
    sum += models::log_probabilities(session.decoder(), hidden[int64_t(i) - 1])[answer[i]].item<double>();
  session.truncate(length);
  return sum;
}

// Whether the right answer is ranked first, and whether greedy generation says it.
std::pair<bool, bool> ask(models::Session& session, const io::Tokenizer& tokenizer, const Needle& needle,
                          int64_t budget) {
  const int64_t length = session.length();
  const at::Tensor hidden = last_row(session.decode(needle.question));
  const at::Tensor first = models::log_probabilities(session.decoder(), hidden);
  const double right = answer_logprob(session, first, needle.answer);
  std::vector<double> wrong;
  for (const auto& distractor : needle.distractors) wrong.push_back(answer_logprob(session, first, distractor));
  const bool is_first = rank_of_answer(right, wrong) == 0;
  const auto generated = models::generate(session, tokenizer, hidden, {.max_tokens = budget, .stop = {"\n", "."}});
  session.truncate(length);
  return {is_first, contains_answer(generated.text, needle.value)};
}

}  // namespace

Codec codec_of(const io::Tokenizer& tokenizer) {
  return {.encode = [&](std::string_view text) { return tokenizer.encode(text, {.add_special = false}); },
          .decode = [&](std::span<const int32_t> ids) { return tokenizer.decode(ids); },
          .bos = tokenizer.encode("").empty() ? std::nullopt : std::optional(tokenizer.encode("").front())};
}

NeedleResult run_needles(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                         const io::Tokenizer& tokenizer, const NeedleSet& set, attention::CacheType cache,
                         const Progress& progress) {
  NeedleResult result;
  double done = 0, all = 0;
  for (const Haystack& haystack : set.haystacks) all += double(haystack.needles.size() + 1);
  const auto step = [&] {
    done += 1;
    if (progress) progress(done / all);
  };
  for (const Haystack& haystack : set.haystacks) {
    size_t longest = 0;
    for (const Needle& needle : haystack.needles) longest = std::max(longest, needle.question.size());
    models::Session session(decoder, mechanisms,
                            {.rollback = int64_t(longest) + set.answer_budget + 8, .cache = cache});
    session.prefill(haystack.tokens);
    step();
    for (const Needle& needle : haystack.needles) {
      const auto [is_first, is_hit] = ask(session, tokenizer, needle, set.answer_budget);
      result.ranked_first.push_back(is_first);
      result.hits += is_hit;
      step();
    }
  }
  return result;
}

int64_t run_passkeys(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                     const io::Tokenizer& tokenizer, const std::vector<Passkey>& passkeys, attention::CacheType cache,
                     const Progress& progress) {
  int64_t hits = 0;
  for (size_t i = 0; i < passkeys.size(); ++i) {
    models::Session session(decoder, mechanisms, {.cache = cache});
    const at::Tensor hidden = last_row(session.prefill(passkeys[i].tokens));
    const auto generated = models::generate(session, tokenizer, hidden, {.max_tokens = 10});
    hits += passkey_hit(generated.text, passkeys[i].key);
    if (progress) progress(double(i + 1) / double(passkeys.size()));
  }
  return hits;
}

}  // namespace foveate::eval
