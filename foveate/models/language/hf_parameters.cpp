#include "foveate/models/language/hf_parameters.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <span>

#include "foveate/base/error.h"

namespace foveate::models {
namespace {

struct Name {
  std::string_view gguf, stored;
};

constexpr Name kLlamaBlock[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};
constexpr Name kPhi3Block[] = {
    {"attn_qkv", "self_attn.qkv_proj"},
    {"ffn_up", "mlp.gate_up_proj"},
};
constexpr Name kBranchNorms[] = {
    // what is added to the residual stream is normed as well, or alone
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};
constexpr Name kGpt2Block[] = {
    {"attn_norm", "ln_1"}, {"attn_qkv", "attn.c_attn"}, {"attn_output", "attn.c_proj"},
    {"ffn_norm", "ln_2"},  {"ffn_up", "mlp.c_fc"},      {"ffn_down", "mlp.c_proj"},
};
constexpr Name kNeoxBlock[] = {
    {"attn_norm", "input_layernorm"},   {"attn_qkv", "attention.query_key_value"},
    {"attn_output", "attention.dense"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_up", "mlp.dense_h_to_4h"},    {"ffn_down", "mlp.dense_4h_to_h"},
};

constexpr Name kBertBlock[] = {
    {"attn_q", "attention.self.query"},
    {"attn_k", "attention.self.key"},
    {"attn_v", "attention.self.value"},
    {"attn_output", "attention.output.dense"},
    {"attn_output_norm", "attention.output.LayerNorm"},
    {"ffn_up", "intermediate.dense"},
    {"ffn_down", "output.dense"},
    {"layer_output_norm", "output.LayerNorm"},
};

constexpr Name kLlamaOuter[] = {{"token_embd", "embed_tokens"}, {"output_norm", "norm"}, {"output", "lm_head"}};
constexpr Name kGpt2Outer[] = {
    {"token_embd", "wte"}, {"position_embd", "wpe"}, {"output_norm", "ln_f"}, {"output", "lm_head"}};
constexpr Name kNeoxOuter[] = {
    {"token_embd", "embed_in"}, {"output_norm", "final_layer_norm"}, {"output", "embed_out"}};
constexpr Name kBertOuter[] = {{"token_embd", "embeddings.word_embeddings"},
                               {"position_embd", "embeddings.position_embeddings"},
                               {"token_types", "embeddings.token_type_embeddings"},
                               {"token_embd_norm", "embeddings.LayerNorm"}};

// Outer names, and the lists of names in a block, the first that knows one counts.
struct Names {
  std::string_view prefix, blocks;
  std::span<const Name> outer;
  std::vector<std::span<const Name>> block;
};

Names names_of(const std::string& architecture) {
  if (architecture == "gpt2") return {"transformer.", "h.", kGpt2Outer, {kGpt2Block}};
  if (architecture == "gptneox") return {"gpt_neox.", "layers.", kNeoxOuter, {kNeoxBlock}};
  if (architecture == "bert") return {"bert.", "encoder.layer.", kBertOuter, {kBertBlock}};
  Names names{"model.", "layers.", kLlamaOuter, {}};
  if (architecture == "gemma2" || architecture == "gemma3" || architecture == "olmo2")
    names.block = {kBranchNorms, kLlamaBlock};
  else if (architecture == "phi3")
    names.block = {kPhi3Block, kLlamaBlock};
  else
    names.block = {kLlamaBlock};
  return names;
}

}  // namespace

at::Tensor to_tensor(const io::StoredTensor& stored, const std::vector<int64_t>& shape) {
  require(stored.shape == shape, "{}: tensor {} must be {}, got {}", stored.file, io::printable(stored.name),
          io::print_sizes(shape), io::print_sizes(stored.shape));
  const at::Tensor values = at::empty(shape, at::kFloat);
  io::to_floats(stored, {values.mutable_data_ptr<float>(), size_t(values.numel())});
  return values;
}

HfParameters::HfParameters(io::Safetensors file, std::string architecture, int64_t heads)
    : file_(std::move(file)), architecture_(std::move(architecture)), heads_(heads) {
  const Names names = names_of(architecture_);
  if (!file_.find(std::string(names.outer.front().stored) + ".weight")) prefix_ = names.prefix;
}

std::string HfParameters::stored_name(const std::string& name) const {
  const size_t dot = name.rfind('.');
  const std::string base = name.substr(0, dot), kind = name.substr(dot);  // ".weight" or ".bias"
  const Names names = names_of(architecture_);
  for (const Name& known : names.outer)
    if (known.gguf == base) return (base == "output" ? "" : prefix_) + std::string(known.stored) + kind;
  if (!base.starts_with("blk.")) return "";
  const size_t end = base.find('.', 4);
  const std::string layer = base.substr(4, end - 4), field = base.substr(end + 1);
  for (const std::span<const Name> list : names.block)
    for (const Name& known : list)
      if (known.gguf == field) return fmt::format("{}{}{}.{}{}", prefix_, names.blocks, layer, known.stored, kind);
  return "";
}

at::Tensor HfParameters::read(const std::string& name, const std::vector<int64_t>& shape) const {
  std::string stored_as = stored_name(name);
  if (architecture_ == "bert" && stored_as.find("LayerNorm") != std::string::npos && !file_.find(stored_as))
    stored_as = stored_as.substr(0, stored_as.rfind('.')) + (stored_as.ends_with(".bias") ? ".beta" : ".gamma");
  const io::StoredTensor& stored = file_.tensor(stored_as);
  const bool in_block = name.starts_with("blk.");
  if (architecture_ == "gpt2" && in_block && shape.size() == 2)
    return to_tensor(stored, {shape[1], shape[0]}).transpose(0, 1).contiguous();
  const at::Tensor values = to_tensor(stored, shape);
  if (architecture_ == "gptneox" && name.find("attn_qkv") != std::string::npos)
    return values.unflatten(0, {heads_, 3, -1}).transpose(0, 1).flatten(0, 2).contiguous();
  if (architecture_.starts_with("gemma") && name.find("norm") != std::string::npos) return values + 1;
  return values;
}

}  // namespace foveate::models
