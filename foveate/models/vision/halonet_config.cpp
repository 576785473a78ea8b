// The published HaloNets, and what a network costs.
#include <cmath>
#include <map>

#include "foveate/base/error.h"
#include "foveate/models/vision/halonet.h"

namespace foveate::models {
namespace {

// Table 2 of the paper, with the structure that gives its parameter counts.
struct Row {
  std::string_view name;
  int64_t block, halo;
  double value_ratio, bottleneck_ratio;
  int64_t blocks_of_stage_3, image, features;
};
constexpr Row kRows[] = {
    {"h0", 8, 3, 1, 0.5, 7, 256, 0},      {"h1", 8, 3, 1, 1, 10, 256, 0},       {"h2", 8, 3, 1, 1.25, 11, 256, 0},
    {"h3", 10, 3, 1, 1.5, 12, 320, 1024}, {"h4", 12, 2, 1, 3, 12, 384, 1280},   {"h5", 14, 2, 2.5, 2, 23, 448, 1536},
    {"h6", 8, 4, 3, 2.75, 24, 512, 1536}, {"h7", 10, 3, 4, 3.5, 26, 600, 2048},
};

HaloNetConfig attention_everywhere(const Row& row) {
  HaloNetConfig config{.features = row.features, .image = row.image};
  for (int stage = 0; stage < 4; ++stage) {
    const int64_t width = int64_t{64} << stage, heads = stage == 0 ? 4 : 8;
    config.stages.emplace_back();
    for (int64_t i = 0; i < (stage == 2 ? row.blocks_of_stage_3 : 3); ++i) {
      HaloBlock block{.width = width, .out = int64_t(double(width) * row.bottleneck_ratio)};
      block.stride = stage > 0 && i == 0 ? 2 : 1;
      block.projects = i == 0;
      block.attention = HaloAttnOptions{.dim_in = width,
                                        .dim_out = int64_t(double(width) * row.value_ratio),
                                        .heads = heads,
                                        .dim_head_qk = width / heads,
                                        .halo = {.block = row.block, .halo = row.halo, .auto_pad = true}};
      config.stages.back().push_back(block);
    }
  }
  return config;
}

// A stage of a hybrid: 'c' for a block with a convolution, 'a' for one with attention.
struct Stage {
  std::string_view blocks;
  int64_t out, width, heads = 8;
};

struct Hybrid {
  std::vector<Stage> stages;
  int64_t halo, group_size = 0;
  std::optional<int64_t> dim_head_qk = {};
};

std::vector<std::vector<HaloBlock>> stages_of(const Hybrid& hybrid) {
  std::vector<std::vector<HaloBlock>> stages;
  for (const Stage& stage : hybrid.stages) {
    stages.emplace_back();
    for (size_t i = 0; i < stage.blocks.size(); ++i) {
      HaloBlock block{.width = stage.width, .out = stage.out};
      block.stride = stages.size() > 1 && i == 0 ? 2 : 1;
      if (stage.blocks[i] == 'a')
        block.attention =
            HaloAttnOptions{.dim_in = stage.width,
                            .heads = stage.heads,
                            .dim_head_qk = hybrid.dim_head_qk,
                            .halo = {.block = 8, .halo = hybrid.halo, .strided_index = true, .auto_pad = true}};
      else if (hybrid.group_size > 0)
        block.groups = stage.width / hybrid.group_size;
      stages.back().push_back(block);
    }
  }
  return stages;
}

using Maker = HaloNetConfig (*)();

const std::map<std::string_view, Maker>& hybrids() {
  static const std::map<std::string_view, Maker> all = {
      {"halonet26t",
       [] {
         HaloNetConfig c{.has_tiered_stem = true, .activation = Activation::relu};
         c.stages = stages_of({{{"cc", 256, 64}, {"cc", 512, 128}, {"ca", 1024, 256}, {"aa", 2048, 512}}, 2});
         return c;
       }},
      {"halonet50ts",
       [] {
         HaloNetConfig c{.has_tiered_stem = true};
         c.stages =
             stages_of({{{"ccc", 256, 64}, {"ccca", 512, 128, 4}, {"cacaca", 1024, 256}, {"cac", 2048, 512}}, 3});
         return c;
       }},
      {"sehalonet33ts",
       [] {
         HaloNetConfig c{.has_tiered_stem = true, .stem_end = StemEnd::stride, .gate = ChannelGate::squeeze_excite};
         c.stages = stages_of({{{"cc", 256, 64}, {"cca", 512, 128}, {"cca", 1024, 256}, {"aa", 1536, 512}}, 3});
         c.features = 1280;
         return c;
       }},
      {"eca_halonext26ts",
       [] {
         HaloNetConfig c{.has_tiered_stem = true, .gate = ChannelGate::efficient};
         c.stages = stages_of({{{"cc", 256, 64}, {"cc", 512, 128}, {"ca", 1024, 256}, {"aa", 2048, 512}}, 2, 16, 16});
         return c;
       }},
  };
  return all;
}

}  // namespace

HaloNetConfig halonet_config(std::string_view name) {
  std::string known;
  for (const Row& row : kRows) {
    if (row.name == name) return attention_everywhere(row);
    known += fmt::format("{} ", row.name);
  }
  for (const auto& [other, make] : hybrids()) {
    if (other == name) return make();
    known += fmt::format("{} ", other);
  }
  known.pop_back();
  fail("halonet: the name must be one of {}, got '{}'", known, name);
}

namespace {

// A map on its way through a network, and what it has cost.
struct Walk {
  int64_t channels, height, width;
  double macs = 0;

  double pixels() const { return double(height) * double(width); }
  void stride(int64_t by) { height = (height + by - 1) / by, width = (width + by - 1) / by; }
  void convolve(int64_t to, int64_t kernel, int64_t by = 1, int64_t groups = 1) {
    stride(by);
    macs += pixels() * double(channels / groups * to * kernel * kernel);
    channels = to;
  }
  void run(const HaloBlock& block, ChannelGate gate) {
    Walk shortcut = *this;
    if (block.projects || channels != block.out || block.stride != 1) shortcut.convolve(block.out, 1, block.stride);
    const double before = macs;
    convolve(block.width, 1);
    if (block.attention) {
      HaloAttnOptions o = *block.attention;
      o.halo.stride = block.stride;
      const HaloCost cost = halo_cost(o, height, width);
      macs += cost.projections + cost.attention;
      stride(block.stride);
      channels = block.attended();
    } else {
      convolve(block.width, 3, block.stride, block.groups);
      if (gate == ChannelGate::squeeze_excite) macs += 2 * double(channels * squeezed_channels(channels));
    }
    convolve(block.out, 1);
    macs += shortcut.macs - before;
  }
};

}  // namespace

double count_macs(const HaloNetConfig& config, int64_t height, int64_t width) {
  Walk walk{3, height, width};
  if (config.has_tiered_stem) {
    walk.convolve(24, 3, 2);
    walk.convolve(32, 3);
    walk.convolve(64, 3, config.stem_end == StemEnd::stride ? 2 : 1);
  } else {
    walk.convolve(64, 7, 2);
  }
  if (config.stem_end == StemEnd::pool) walk.stride(2);
  for (const auto& stage : config.stages)
    for (const HaloBlock& block : stage) walk.run(block, config.gate);
  if (config.features > 0) walk.convolve(config.features, 1);
  return walk.macs + double(walk.channels * config.classes);
}

}  // namespace foveate::models
