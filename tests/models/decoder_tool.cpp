// Shows a decoder's insides to the Python tests, which hold them against an independent implementation.
// MODEL: a GGUF file or a Hugging Face folder.  DTYPE: fp32 or bf16, with "-packed" behind it weights stay packed.
//   decoder_tool logits MODEL DTYPE       ids (JSON, standard input) -> fp32 [ids, vocabulary] on standard output
//   decoder_tool both_logits MODEL DTYPE  the same, and behind it the same with the ids given one by one
//   decoder_tool greedy MODEL DTYPE N     ids -> JSON array of N greedy tokens
//   decoder_tool gradients MODEL          ids -> one JSON line [[name, shape], ...], then the gradients of the mean
//                                         loss of predicting each next id, fp32, in that order
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/tensor.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "foveate/attention/dense.h"
#include "foveate/models/language/generate.h"
#include "foveate/ops/level.h"

namespace {

using namespace foveate;

void write(const at::Tensor& values) {
  const at::Tensor flat = values.to(at::kFloat).contiguous();
  std::fwrite(flat.const_data_ptr(), 4, size_t(flat.numel()), stdout);
}

models::Decoder load(const std::string& path, const std::string& dtype) {
  return models::Decoder::load(models::Checkpoint::open(path), dtype.starts_with("bf16") ? at::kBFloat16 : at::kFloat,
                               dtype.ends_with("-packed") ? models::WeightForm::packed : models::WeightForm::dense);
}

std::vector<attention::Mechanism> dense(const models::Decoder& decoder) {
  return std::vector<attention::Mechanism>(size_t(decoder.layers()), attention::Dense{});
}

void logits(const models::Decoder& decoder, const std::vector<int32_t>& ids) {
  models::Session session(decoder, dense(decoder));
  const at::Tensor hidden = session.prefill(ids).squeeze(0);
  const at::NoGradGuard no_grad;
  for (const at::Tensor& rows : hidden.split(64)) write(decoder.logits(rows));
}

void decoded_logits(const models::Decoder& decoder, const std::vector<int32_t>& ids) {
  models::Session session(decoder, dense(decoder));
  write(decoder.logits(session.prefill({ids.data(), 1}).squeeze(0)));
  for (size_t i = 1; i < ids.size(); ++i) write(decoder.logits(session.decode({&ids[i], 1}).squeeze(0)));
}

void greedy(const models::Decoder& decoder, const std::vector<int32_t>& ids, int64_t count) {
  models::Session session(decoder, dense(decoder));
  at::Tensor hidden = session.prefill(ids).select(1, -1);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(int32_t(decoder.logits(hidden).argmax().item<int64_t>()));
    hidden = session.decode({&tokens.back(), 1}).select(1, 0);
  }
  std::cout << nlohmann::json(tokens) << "\n";
}

void gradients(const models::Decoder& decoder, const std::vector<int32_t>& ids) {
  const auto named = decoder.weights().named();
  for (const auto& [name, weight] : named) weight.requires_grad_(true);
  const at::Tensor tokens = at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong);
  const at::Tensor hidden = decoder.forward(tokens.narrow(0, 0, tokens.size(0) - 1).unsqueeze(0), dense(decoder));
  at::cross_entropy_loss(decoder.logits(hidden.squeeze(0)), tokens.narrow(0, 1, tokens.size(0) - 1)).backward();
  nlohmann::json index;
  for (const auto& [name, weight] : named) index.push_back({name, weight.sizes().vec()});
  std::cout << index << std::endl;
  for (const auto& [name, weight] : named) write(weight.grad());
}

}  // namespace

int main(int argc, char** argv) {
  ops::avoid_faulty_products();
  const std::vector<std::string> words(argv + 1, argv + argc);
  const auto ids = nlohmann::json::parse(std::cin).get<std::vector<int32_t>>();
  if (words.at(0) == "logits") logits(load(words.at(1), words.at(2)), ids);
  if (words.at(0) == "both_logits") {
    const models::Decoder decoder = load(words.at(1), words.at(2));
    logits(decoder, ids);
    decoded_logits(decoder, ids);
  }
  if (words.at(0) == "greedy") greedy(load(words.at(1), words.at(2)), ids, std::stol(words.at(3)));
  if (words.at(0) == "gradients") gradients(load(words.at(1), "fp32"), ids);
}
