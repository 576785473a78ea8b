// Mechanisms with which the contract is tested, and their calls.
#pragma once

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "foveate/attention/registry.h"
#include "tests/support/compare.h"

namespace foveate::attention {

constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 16, kWidth = 24;

// A spec that really drops keys at the test's lengths, and one whose budget covers everything, perhaps only where some
// learned parts hold certain numbers.
struct Case {
  std::string spec, full;
  std::map<std::string, double> full_parts = {};
};
inline std::vector<Case> fixed_cases() {
  return {
      {"dense", "dense"},
      {"window:size=9,sinks=2", "window:size=1000"},
      {"window:size=8,sinks=4,block=4", "window:size=1000,block=4"},
      {"window:size=9,sinks=2,positions=cache", "window:size=1000,positions=cache"},
      {"neighborhood:kernel=9", "neighborhood:kernel=1000"},
      {"neighborhood:kernel=5,dilation=3", "neighborhood:kernel=1000,stride=7"},
      {"neighborhood:kernel=6,dilation=2,stride=4", "neighborhood:kernel=1000"},
      {"triangle:size=9,sinks=2,last=5", "triangle:size=1000"},
  };
}
inline std::vector<Case> selecting_cases() {
  return {
      {"dhsa:query_block=8,budget=16,global_tokens=2,local_tokens=3,chunk=4", "dhsa:query_block=8,budget=1000,chunk=4"},
      {"dhsa:query_block=8,budget=16,global_tokens=2,local_tokens=3,chunk=4,head_share=false,decode=sparse",
       "dhsa:query_block=8,budget=1000,chunk=4,head_share=false,decode=sparse"},
      {"dhsa:query_block=8,budget=12,global_tokens=1,local_tokens=3,chunk=3,pooling=maxpool,local_anchor=block_end,"
       "decode=sparse",
       "dhsa:query_block=8,budget=1000,pooling=maxpool,local_anchor=block_end,decode=sparse"},
      {"dhsa:chunks=learned,query_block=8,budget=16,global_tokens=2,local_tokens=3,theta=0,nms_window=2,"
       "boundary_heads=2,decode=sparse",
       "dhsa:chunks=learned,query_block=8,budget=1000,theta=0,nms_window=2,boundary_heads=2,decode=sparse"},
      {"dhsa_blocks:mask=topk,query_block=16,key_block=16,density=0.2", "dhsa_blocks:mask=topk,density=1"},
      {"dhsa_blocks:mask=a,query_block=16,key_block=16,density=0.2", "dhsa_blocks:mask=a,density=1,key_block=64"},
      {"dhsa_blocks:mask=vs,query_block=16,key_block=16,density=0.2", "dhsa_blocks:mask=vs,density=1,query_block=16"},
      {"dhsa_blocks:mask=vsb,query_block=16,key_block=16,density=0.2", "dhsa_blocks:mask=vsb,density=1"},
      {"nsa:compress=8,stride=4,block=8,blocks=4,window=6,phi=weighted", "nsa:gates=selected,phi=mean,blocks=100"},
      {"nsa:compress=8,stride=4,block=8,blocks=3,phi=mean,rope=before,gates=selected",
       "nsa:gates=selected,phi=mlp,blocks=100,rope=before"},
      {"duo:size=9,sinks=2,full_heads=1", "duo:full_heads=all"},
      {"duo:size=9,sinks=2", "duo:size=1000"},
      {"flux:full=(dhsa:query_block=8,budget=16,global_tokens=2,local_tokens=3,chunk=4),cheap=(window:size=9,sinks=2)",
       "flux:cheap=(window:size=1000)"},
      {"flux:route=cheap,cheap=(window:size=9,sinks=2)", "flux:route=full"},
      {"vertical_slash:vertical=4,slash=3,last_queries=8,first_columns=1,first_distances=2,block=8",
       "vertical_slash:vertical=1,slash=301"},
      {"flexprefill:gamma=0.3,tau=0,min_budget=1,block=8", "flexprefill:gamma=1,tau=0,min_budget=1,block=8"},
      {"flexprefill:gamma=0.3,tau=1,min_budget=1,block=8", "flexprefill:gamma=1,tau=1,min_budget=1,block=8"},
      {"hisa:topk=9,block=4,block_topk=3,heads=3,dim=16,dtype=fp32", "hisa:topk=1000,heads=3,dim=16"},
      {"hisa:topk=9,block=4,block_topk=4,heads=2,dim=32,dtype=bf16,force_ends=false,pooling=max",
       "hisa:topk=301,heads=2,dim=32,dtype=bf16"},
      {"hisa:indexer=flat,topk=7,heads=2,dim=16,rope_dims=8,hadamard=false",
       "hisa:indexer=flat,topk=500,heads=2,dim=16"},
      {"hyper:min_seq_len=6,block_size=4,sample_size=5", "hyper"},
      {"hyper:min_seq_len=6,block_size=0,sample_size=5,seed=1", "hyper:min_seq_len=3,block_size=1000"},
      {"hyper:min_seq_len=6,block_size=3,sample_size=4,residual=capped",
       "hyper:min_seq_len=3,block_size=2,sample_size=1000,replacement=false"},
      {"block_topk:query_block=8,block=4,blocks=3", "block_topk:query_block=8,block=4,blocks=1000"},
      {"block_topk:query_block=1,block=8,density=0.3,head_share=all", "block_topk:density=1,query_block=3,block=5"},
      {"block_topk:query_block=8,block=8,blocks=2,head_share=group,decode=dense", "block_topk:blocks=9,decode=dense"},
      {"xattention:block=16,stride=4,tau=0.4", "xattention:tau=1,block=32,stride=8"},
      {"xattention:block=8,stride=2,tau=0.5,select=triple", "xattention:head_tau=1/1/1/1,block=8,stride=8"},
      {"quest:page=4,budget=12", "quest:budget=1000"},
      {"quest:page=4,budget=12,rows=each", "quest:page=3,budget=1000,rows=each"},
      {"quest:page=5,budget=5,least_pages=1,rows=each,share=group,force_latest=false", "quest:page=2,budget=400"},
      {"cca:group=4,window=6", "cca:window=1000"},
      {"cca:group=3,window=5,pool_stage=pre_rope,gqa_pool=per_kv_head,sink_groups=1", "cca:group=1,window=3"},
      {"cca:group=4,window=6,pool=max,log_count_bias=true,keep_raw=true", "cca:window=1000,pool=max,keep_raw=true"},
      {"superlinear:num_spans=2,sw_index=2,backward_factor=1,forward_factor=0.5,search_power=0.5",
       "superlinear:num_spans=1,sw_index=2,backward_factor=1000,forward_factor=1000,search_power=0.5"},
      {"superlinear:num_spans=16,sw_index=0,backward_factor=0.3,forward_factor=0,search=learned",
       "superlinear:search=learned"},
      {"landmark:block=4,top_k=2,chunk=8", "landmark:block=1000,chunk=1000"},
      {"landmark:block=4,top_k=2,chunk=8,select=max_over_tokens,positions=text", "landmark:mode=nomem"},
  };
}

inline std::vector<Case> cases() {
  std::vector<Case> all = fixed_cases();
  const std::vector<Case> selecting = selecting_cases();
  all.insert(all.end(), selecting.begin(), selecting.end());
  return all;
}

// Learned parts a little off their start, where all would be alike.
inline const Learned* learned_of(const Mechanism& m) {
  static std::map<std::string, Learned> all;
  const auto parts = m.learned_parts({kWidth, kHeads, kKvHeads, kDim, kDim + 4});
  if (parts.empty()) return nullptr;
  const auto [found, is_new] = all.try_emplace(m.spec().text(), make_learned(parts, 5));
  if (is_new)
    for (auto& [name, part] : found->second)
      part += 0.3 * test::random_tensor(part.sizes().vec(), 6).to(part.scalar_type());
  return &found->second;
}

inline Inputs make_inputs(const Mechanism& m, int64_t length, const Rule& rule = {}) {
  static const ops::Rotary rotary(kDim, 100);
  Inputs in;
  in.q = test::random_tensor({1, kHeads, length, kDim}, 1);
  in.k = test::random_tensor({1, kKvHeads, length, kDim}, 2);
  in.v = test::random_tensor({1, kKvHeads, length, kDim + 4}, 3);
  in.rule = rule;
  in.rotary = &rotary;
  in.hidden = test::random_tensor({1, length, kWidth}, 4);
  in.learned = learned_of(m);
  return in;
}

class Contract : public testing::TestWithParam<Case> {
 protected:
  Mechanism mechanism() const { return make_mechanism(parse_spec(GetParam().spec)); }
};

inline std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.spec;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

}  // namespace foveate::attention
