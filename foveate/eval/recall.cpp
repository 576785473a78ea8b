#include "foveate/eval/recall.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

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

// The share of references that rank first, each read behind those before it.
double rank_references(models::Session& session, const Codec& codec, const RulerSample& sample, at::Tensor hidden) {
  double firsts = 0;
  const auto read = [&](std::span<const int32_t> tokens) { hidden = last_row(session.decode(tokens)); };
  for (size_t r = 0; r < sample.references.size(); ++r) {
    if (!sample.leads[r].empty()) read(codec.encode(sample.leads[r]));
    const at::Tensor first = models::log_probabilities(session.decoder(), hidden);
    const std::vector<int32_t> reference = codec.encode(" " + sample.references[r]);
    std::vector<double> wrong;
    for (const std::string& distractor : sample.distractors[r])
      wrong.push_back(answer_logprob(session, first, codec.encode(" " + distractor)));
    firsts += rank_of_answer(answer_logprob(session, first, reference), wrong) == 0;
    if (r + 1 < sample.references.size()) read(reference);
  }
  return firsts / double(sample.references.size());
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

std::vector<double> run_passkeys(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                                 const io::Tokenizer& tokenizer, const std::vector<Passkey>& passkeys,
                                 attention::CacheType cache, const Progress& progress) {
  const bool can_share =
      std::ranges::all_of(mechanisms, [](const auto& m) { return m.kind() == attention::Kind::row; });
  size_t longest = 0;
  for (const Passkey& passkey : passkeys) longest = std::max(longest, passkey.tokens.size());
  std::optional<models::Session> session;
  std::vector<double> hits;
  for (const Passkey& passkey : passkeys) {
    if (!can_share || !session)
      session.emplace(decoder, mechanisms,
                      models::SessionOptions{.rollback = can_share ? int64_t(longest) + 16 : 0, .cache = cache});
    const std::span<const int32_t> prompt(passkey.tokens);
    const auto shared_end = std::ranges::mismatch(session->tokens(), prompt.first(prompt.size() - 1)).in2;
    const auto shared = size_t(shared_end - prompt.begin());
    if (session->length() > int64_t(shared)) session->truncate(int64_t(shared));
    const at::Tensor hidden = last_row(session->prefill(prompt.subspan(shared)));
    hits.push_back(passkey_hit(models::generate(*session, tokenizer, hidden, {.max_tokens = 10}).text, passkey.key));
    if (progress) progress(double(hits.size()) / double(passkeys.size()));
  }
  return hits;
}

std::vector<RulerResult> run_ruler(const models::Decoder& decoder, const std::vector<attention::Mechanism>& mechanisms,
                                   const io::Tokenizer& tokenizer, std::span<const RulerSample> samples,
                                   attention::CacheType cache, const Progress& progress) {
  const Codec codec = codec_of(tokenizer);
  std::vector<RulerResult> results;
  for (const RulerSample& sample : samples) {
    int64_t answer = 0;  // the longest that is read or written behind the prompt
    for (size_t r = 0; r < sample.references.size(); ++r)
      answer += std::ssize(codec.encode(sample.leads[r] + " " + sample.references[r])) + 16;
    models::Session session(decoder, mechanisms,
                            {.rollback = std::max(answer, sample.answer_budget) + 64, .cache = cache});
    const at::Tensor hidden = last_row(session.prefill(sample.tokens));
    const auto generated = models::generate(session, tokenizer, hidden, {.max_tokens = sample.answer_budget});
    session.truncate(std::ssize(sample.tokens));
    results.push_back(
        {ruler_score(generated.text, sample.references), rank_references(session, codec, sample, hidden)});
    if (progress) progress(double(results.size()) / double(samples.size()));
  }
  return results;
}

}  // namespace foveate::eval
