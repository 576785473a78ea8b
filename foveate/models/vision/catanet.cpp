#include "foveate/models/vision/catanet.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pixel_shuffle.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "foveate/base/error.h"
#include "foveate/models/vision/initialise.h"
#include "foveate/models/vision/modules.h"

namespace foveate::models {
namespace {

using at::Tensor;
using torch::nn::Module;

Tensor pixels_last(const Tensor& x) { return x.permute({0, 2, 3, 1}).contiguous(); }  // [B, H, W, C]
Tensor pixels_first(const Tensor& x) { return x.permute({0, 3, 1, 2}); }

torch::nn::Linear add_linear(Module& parent, const std::string& name, int64_t from, int64_t to, bool bias = false) {
  return parent.register_module(name, torch::nn::Linear(torch::nn::LinearOptions(from, to).bias(bias)));
}

torch::nn::LayerNorm add_norm(Module& parent, const std::string& name, int64_t dim) {
  return parent.register_module(name, torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})));
}

torch::nn::Conv2d add_conv(Module& parent, const std::string& name, int64_t from, int64_t to) {
  return parent.register_module(name, torch::nn::Conv2d(torch::nn::Conv2dOptions(from, to, 3).padding(1)));
}

Tensor by_heads(const Tensor& tokens, int64_t heads) {  // [B, N, C] -> [B, heads, N, C / heads]
  return tokens.unflatten(2, {heads, -1}).transpose(1, 2);
}

// Linear maps truncated normal without biases, convolutions as torch's begin, norms the identity.
Fill filler() {
  return [bound = 0.0](std::string_view name, const Tensor& t, Random& random) mutable {
    if (t.dim() == 2) {
      bound = 0;
      fill_truncated_normal(t, 0.02, random);
    } else if (t.dim() == 4) {
      bound = 1 / std::sqrt(double(fan_in(t)));  // of the bias behind it as well
      fill_uniform(t, bound, random);
    } else if (name.find("norm") != name.npos) {
      t.fill_(name.ends_with("weight") ? 1 : 0);
    } else {
      fill_uniform(t, bound, random);
    }
  };
}

const CataNetConfig& checked(const CataNetConfig& c) {
  require(c.upscale >= 1 && c.upscale <= 4, "catanet: upscale must be 1 .. 4, got {}", c.upscale);
  require(c.heads >= 1 && c.dim % c.heads == 0 && c.qk_dim % c.heads == 0,
          "catanet: dim and qk_dim must be multiples of heads ({}), got {} and {}", c.heads, c.dim, c.qk_dim);
  const bool is_given = c.patches.size() == c.centres.size() && c.patches.size() == c.groups.size();
  require(!c.patches.empty() && (is_given || !c.aggregates),
          "catanet: patches, centres and groups must be given for every block, got {}, {} and {}", c.patches.size(),
          c.centres.size(), c.groups.size());
  require(*std::ranges::min_element(c.patches) >= 3, "catanet: patches must be >= 3, got {}",
          *std::ranges::min_element(c.patches));
  return c;
}

}  // namespace

int64_t CataNetConfig::smallest_side() const { return *std::ranges::max_element(patches); }

std::vector<int64_t> patch_starts(int64_t pixels, int64_t patch) {
  std::vector<int64_t> starts;
  for (int64_t start = 0;; start += patch - 2) {
    starts.push_back(std::min(start, pixels - patch));
    if (start + patch >= pixels) return starts;
  }
}

ConvFfnImpl::ConvFfnImpl(int64_t dim, int64_t hidden) {
  fc1_ = add_linear(*this, "fc1", dim, hidden, true);
  auto depthwise = add_folder(*add_folder(*this, "dwconv"), "depthwise_conv");
  depthwise_ = depthwise->register_module(
      "0", torch::nn::Conv2d(torch::nn::Conv2dOptions(hidden, hidden, 5).padding(2).groups(hidden)));
  fc2_ = add_linear(*this, "fc2", hidden, dim, true);
}

Tensor ConvFfnImpl::forward(const Tensor& x) {
  const Tensor y = at::gelu(fc1_(x));
  return fc2_(y + at::gelu(depthwise_(pixels_first(y))).permute({0, 2, 3, 1}));
}

TokenAggregationImpl::TokenAggregationImpl(const CataNetConfig& c, size_t block)
    : heads_(c.heads),
      iterations_(c.iterations),
      decay_(c.decay),
      uses_centres_(c.uses_centres),
      refines_always_(c.refines_always),
      groups_{.group = c.groups[block], .window = c.window, .merge = c.merge} {
  norm_ = add_norm(*this, "norm", c.dim);
  const auto mlp = add_folder(*this, "mlp");
  mlp_norm_ = add_norm(*mlp, "norm", c.dim);
  mlp_ = mlp->register_module("fn", std::make_shared<ConvFfnImpl>(c.dim, c.mlp_dim));
  const auto centres = add_folder(*this, "irca_attn"), tokens = add_folder(*this, "iasa_attn");
  centres_.k = add_linear(*centres, "to_k", c.dim, c.qk_dim);
  centres_.v = add_linear(*centres, "to_v", c.dim, c.dim);
  tokens_.q = add_linear(*tokens, "to_q", c.dim, c.qk_dim);
  tokens_.k = add_linear(*tokens, "to_k", c.dim, c.qk_dim);
  tokens_.v = add_linear(*tokens, "to_v", c.dim, c.dim);
  tokens_.out = add_linear(*tokens, "proj", c.dim, c.dim);
  means = register_buffer("means", at::zeros({c.centres[block], c.dim}));
  initted = register_buffer("initted", at::scalar_tensor(false, at::kBool));
  conv1x1_ = register_module("conv1x1", torch::nn::Conv2d(torch::nn::Conv2dOptions(c.dim, c.dim, 1).bias(false)));
}

void TokenAggregationImpl::keep(const Tensor& centres) {
  const at::NoGradGuard no_gradients;
  if (initted.item<bool>())
    means.mul_(decay_).add_(centres, 1 - decay_);
  else
    means.copy_(centres), initted.fill_(true);
}

Tensor TokenAggregationImpl::forward(const Tensor& x) {
  const int64_t height = x.size(1);
  const Tensor tokens = norm_(x).flatten(1, 2);  // [B, N, C]
  Tensor centres = initted.item<bool>() ? means : attention::first_centres(tokens, means.size(0)).detach();
  if (is_training() || refines_always_) centres = attention::refine_centres(tokens, centres, iterations_);
  const Tensor order = attention::sort_by_centre(attention::nearest_centres(tokens, centres));
  std::optional<attention::CentreRows> global;
  if (uses_centres_) {
    const Tensor rows = centres.to(tokens.scalar_type()).unsqueeze(0);
    global = attention::CentreRows{by_heads(centres_.k(rows), heads_)[0], by_heads(centres_.v(rows), heads_)[0]};
  }
  const auto project = [&](torch::nn::Linear& map) { return by_heads(map(tokens), heads_); };
  const Tensor attended = attention::sorted_group_attention(project(tokens_.q), project(tokens_.k), project(tokens_.v),
                                                            order, global, groups_);
  const Tensor mixed = tokens_.out(attended.transpose(1, 2).flatten(2)).unflatten(1, {height, -1});
  Tensor y = x + at::linear(mixed, conv1x1_->weight.flatten(1));
  y = y + mlp_->forward(mlp_norm_(y));
  if (is_training()) keep(centres);
  return y;
}

PatchAttentionImpl::PatchAttentionImpl(const CataNetConfig& c, size_t block)
    : heads_(c.heads), patch_(c.patches[block]), halves_overlaps_(c.halves_overlaps) {
  const auto layers = add_folder(*this, "layer");
  const auto first = add_folder(*layers, "0"), second = add_folder(*layers, "1");
  norm_ = add_norm(*first, "norm", c.dim);
  const auto maps = add_folder(*first, "fn");
  maps_.q = add_linear(*maps, "to_q", c.dim, c.qk_dim);
  maps_.k = add_linear(*maps, "to_k", c.dim, c.qk_dim);
  maps_.v = add_linear(*maps, "to_v", c.dim, c.dim);
  maps_.out = add_linear(*maps, "proj", c.dim, c.dim);
  mlp_norm_ = add_norm(*second, "norm", c.dim);
  mlp_ = second->register_module("fn", std::make_shared<ConvFfnImpl>(c.dim, c.mlp_dim));
}

namespace {

// Patches along an axis, how many of them each pixel is in, and what their sum is divided by.
struct PatchAxis {
  std::vector<int64_t> starts;
  std::vector<double> covers, divisors;

  PatchAxis(int64_t pixels, int64_t patch, bool halves)
      : starts(patch_starts(pixels, patch)), covers(size_t(pixels), 0), divisors(size_t(pixels), 1) {
    for (const int64_t start : starts)
      for (int64_t p = start; p < start + patch; ++p) ++covers[size_t(p)];
    if (!halves) {
      divisors = covers;
      return;
    }
    for (size_t n = 1; n < starts.size(); ++n)  // from the patch on, up to where the one before it ends unless moved
      for (int64_t p = starts[n]; p < int64_t(n) * (patch - 2) + 2; ++p) divisors[size_t(p)] *= 2;
  }
};

Tensor doubles(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

}  // namespace

// Queries, keys and values are made once for each pixel; a pixel in several patches is gathered for each.
Tensor PatchAttentionImpl::forward(const Tensor& x) {
  const int64_t height = x.size(1), width = x.size(2), rows = patch_ * patch_;
  const PatchAxis down(height, patch_, halves_overlaps_), across(width, patch_, halves_overlaps_);
  const auto pixels = [&](const PatchAxis& axis) {  // [patches, patch]
    return at::tensor(axis.starts, at::kLong).unsqueeze(1) + at::arange(patch_, at::kLong);
  };
  const Tensor ids =
      (pixels(down).view({-1, 1, patch_, 1}) * width + pixels(across).view({1, -1, 1, patch_})).flatten();
  const Tensor tokens = norm_(x).flatten(1, 2);        // [B, N, C]
  const auto by_patch = [&](torch::nn::Linear& map) {  // [B * patches, heads, pixels, d]
    return by_heads(map(tokens).index_select(1, ids).unflatten(1, {-1, rows}).flatten(0, 1), heads_);
  };
  const Tensor attended = ops::attend(by_patch(maps_.q), by_patch(maps_.k), by_patch(maps_.v), Rule::full()).out;
  const Tensor by_place = attended.transpose(1, 2).flatten(2).unflatten(0, {x.size(0), -1}).flatten(1, 2);
  const Tensor sums = at::zeros_like(tokens).index_add(1, ids, by_place);
  const auto of_map = [&](const Tensor& a, const Tensor& b) {
    return at::outer(a, b).to(x.scalar_type()).unsqueeze(2);  // [H, W, 1]
  };
  const Tensor share = of_map(1 / doubles(down.divisors), 1 / doubles(across.divisors));
  const Tensor kept = of_map(doubles(down.covers), doubles(across.covers)) * share;
  const Tensor y = x * kept + maps_.out(sums.unflatten(1, {height, width}) * share);
  return y + mlp_->forward(mlp_norm_(y));
}

CataNetImpl::CataNetImpl(const CataNetConfig& config, uint64_t seed) : config_(checked(config)) {
  const CataNetConfig& c = config_;
  first_conv_ = add_conv(*this, "first_conv", c.channels, c.dim);
  const auto blocks = add_folder(*this, "blocks"), convs = add_folder(*this, "mid_convs");
  for (size_t i = 0; i < c.patches.size(); ++i) {
    const auto block = add_folder(*blocks, std::to_string(i));
    if (c.aggregates)
      aggregations_.push_back(block->register_module("0", std::make_shared<TokenAggregationImpl>(c, i)));
    patches_.push_back(block->register_module("1", std::make_shared<PatchAttentionImpl>(c, i)));
    mid_convs_.push_back(add_conv(*convs, std::to_string(i), c.dim, c.dim));
  }
  if (c.upscale == 4)
    for (const char* name : {"upconv1", "upconv2"}) upconvs_.push_back(add_conv(*this, name, c.dim, 4 * c.dim));
  else if (c.upscale > 1)
    upconvs_.push_back(add_conv(*this, "upconv", c.dim, c.dim * c.upscale * c.upscale));
  last_conv_ = add_conv(*this, "last_conv", c.dim, c.channels);
  initialise(*this, seed, filler());
  Random random(seed, uint64_t(-1));
  for (const auto& block : aggregations_) fill_normal(block->means, 1, random);
}

Tensor CataNetImpl::deep(const Tensor& first) {
  Tensor f = first;
  for (size_t i = 0; i < patches_.size(); ++i) {
    Tensor x = pixels_last(f);
    if (config_.aggregates) x = aggregations_[i]->forward(x);
    f = f + mid_convs_[i](pixels_first(patches_[i]->forward(x)));
  }
  return f + first;
}

Tensor CataNetImpl::forward(const Tensor& image) {
  const CataNetConfig& c = config_;
  require(image.dim() == 4 && image.size(1) == c.channels, "catanet: the image must be [B, {}, H, W], got [{}]",
          c.channels, fmt::join(image.sizes().begin(), image.sizes().end(), ", "));
  require(image.size(2) >= c.smallest_side() && image.size(3) >= c.smallest_side(),
          "catanet: images must be at least {} x {} (the largest patch), got {} x {}", c.smallest_side(),
          c.smallest_side(), image.size(2), image.size(3));
  const int64_t height = image.size(2) * c.upscale, width = image.size(3) * c.upscale;
  const Tensor base = c.upscale == 1 ? image : at::upsample_bilinear2d(image, {height, width}, /*align_corners=*/false);
  const Tensor first = first_conv_(image.contiguous(at::MemoryFormat::ChannelsLast));
  Tensor f;
  if (c.refines_always && !is_training()) {  // image by image, so that none depends on another
    std::vector<Tensor> each;
    for (const Tensor& one : first.split(1)) each.push_back(deep(one));
    f = at::cat(each);
  } else {
    f = deep(first);
  }
  const int64_t step = c.upscale == 4 ? 2 : c.upscale;
  for (auto& conv : upconvs_) f = at::leaky_relu(at::pixel_shuffle(conv(f), step), 0.1);
  return last_conv_(f) + base;
}

CataNetCost count_macs(const CataNetConfig& c, int64_t height, int64_t width) {
  const auto pixels = double(height) * double(width), dim = double(c.dim), rows = double(c.qk_dim + c.dim);
  const double kernel = 9 * dim, maps = 2 * dim * double(c.qk_dim) + 2 * dim * dim;  // q, k, v, out
  const double window = c.window == attention::GroupWindow::own ? 1 : c.window == attention::GroupWindow::next ? 2 : 3;
  const double ffn = pixels * double(c.mlp_dim) * (2 * dim + 25);
  CataNetCost cost;
  cost.all = pixels * kernel * double(c.channels);
  for (size_t i = 0; i < c.patches.size(); ++i) {
    const auto patch = double(c.patches[i] * c.patches[i]);
    const auto patches = double(patch_starts(height, c.patches[i]).size() * patch_starts(width, c.patches[i]).size());
    if (c.aggregates) {
      const auto centres = double(c.centres[i]);
      cost.groups += pixels * window * double(c.groups[i]) * rows;
      cost.centres += pixels * centres * (dim + (c.uses_centres ? rows : 0));
      cost.all += pixels * (maps + dim * dim) + centres * dim * rows + ffn;
    }
    cost.patches += patches * patch * patch * rows;
    // linear maps of a patch's pixels, as the released code makes them (here once for each pixel of the map)
    cost.all += patches * patch * maps + ffn + pixels * kernel * dim;
  }
  cost.all += cost.groups + cost.centres + cost.patches;
  const auto scale = double(c.upscale);
  if (c.upscale == 4) cost.all += (1 + 4) * pixels * kernel * 4 * dim;
  if (c.upscale == 2 || c.upscale == 3) cost.all += pixels * kernel * dim * scale * scale;
  cost.all += pixels * scale * scale * kernel * double(c.channels);
  return cost;
}

}  // namespace foveate::models
