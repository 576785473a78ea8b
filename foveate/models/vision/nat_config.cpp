#include <algorithm>
#include <bit>
#include <map>

#include "foveate/base/error.h"
#include "foveate/models/vision/nat.h"

namespace foveate::models {
namespace {

using Lists = std::vector<std::vector<int64_t>>;

// A list for each level, repeated to its depth; what a published schedule of two layers has where that differs.
struct Schedule {
  Lists lists;
  std::vector<int64_t> second_of_two = {};
};

const std::map<std::string, Schedule, std::less<>>& schedules() {
  static const std::map<std::string, Schedule, std::less<>> all = {
      {"224", {{{1, 8}, {1, 4}, {1, 2}, {1}}}},
      {"384", {{{1, 13}, {1, 6}, {1, 3}, {1}}}},
      {"detection", {{{1, 28}, {1, 7, 1, 14}, {1, 3, 1, 5, 1, 7}, {1, 3}}, {1, 14}}},
      {"segmentation", {{{1, 16}, {1, 4, 1, 8}, {1, 2, 1, 3, 1, 4}, {1, 2}}}},
      {"segmentation_640", {{{1, 20}, {1, 5, 1, 10}, {1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5}, {1, 2}}}},
      {"mask2former", {{{1, 14}, {1, 4, 1, 7}, {1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3}, {1}}}}};
  return all;
}

template <class Map>
std::string names(const Map& map) {
  std::string all;
  for (const auto& [name, value] : map) all += (all.empty() ? "" : " ") + name;
  return all;
}

struct Size {
  int64_t embed;
  std::vector<int64_t> depths, heads;
  double mlp_ratio, drop_path;
  std::optional<double> layer_scale = {};
};

NatConfig of_size(const Size& s) {
  NatConfig c;
  c.embed = s.embed, c.depths = s.depths, c.heads = s.heads;
  c.mlp_ratio = s.mlp_ratio, c.drop_path = s.drop_path, c.layer_scale = s.layer_scale;
  return c;
}

NatConfig dilated(NatConfig c, std::string_view schedule) {
  c.dilations = nat_dilations(schedule, c.depths);
  if (schedule == "384") c.image = 384;
  return c;
}

NatConfig patches(NatConfig c) {
  c.embeds_patches = c.merges_patches = true;
  c.levels = "layers";
  return c;
}

NatConfig isotropic(int64_t embed, int64_t heads, double drop_path) {
  NatConfig c = patches(of_size({embed, {12}, {heads}, 4, drop_path}));
  c.patch = 16;
  return c;
}

std::map<std::string, NatConfig, std::less<>> all_configs() {
  const std::vector<int64_t> mini = {3, 4, 6, 5}, deep = {3, 4, 18, 5}, shallow = {2, 2, 6, 2}, swin = {2, 2, 18, 2};
  const auto heads = [](int64_t first) { return std::vector<int64_t>{first, 2 * first, 4 * first, 8 * first}; };
  std::map<std::string, NatConfig, std::less<>> all;
  all["nat_mini"] = of_size({64, mini, heads(2), 3, 0.2});
  all["nat_tiny"] = of_size({64, deep, heads(2), 3, 0.2});
  all["nat_small"] = of_size({96, deep, heads(3), 2, 0.3, 1e-5});
  all["nat_base"] = of_size({128, deep, heads(4), 2, 0.5, 1e-5});
  all["dinat_mini"] = dilated(all["nat_mini"], "224");
  all["dinat_tiny"] = dilated(all["nat_tiny"], "224");
  all["dinat_small"] = dilated(of_size({96, deep, heads(3), 2, 0.3}), "224");
  all["dinat_base"] = dilated(all["nat_base"], "224");
  const NatConfig large = of_size({192, deep, heads(6), 2, 0.35});
  all["dinat_large"] = dilated(large, "224");
  all["dinat_large_384"] = dilated(large, "384");
  all["dinat_large_384_11x11"] = all["dinat_large"];
  all["dinat_large_384_11x11"].kernel = 11, all["dinat_large_384_11x11"].image = 384;
  all["dinat_s_tiny"] = dilated(patches(of_size({96, shallow, heads(3), 4, 0.2})), "224");
  all["dinat_s_small"] = dilated(patches(of_size({96, swin, heads(3), 4, 0.3})), "224");
  all["dinat_s_base"] = dilated(patches(of_size({128, swin, heads(4), 4, 0.5})), "224");
  const NatConfig large_s = patches(of_size({192, swin, heads(6), 4, 0.35}));
  all["dinat_s_large"] = dilated(large_s, "224");
  all["dinat_s_large_384"] = dilated(large_s, "384");
  for (const bool base : {false, true}) {
    const std::string size = base ? "base" : "small";
    const NatConfig plain = base ? isotropic(768, 24, 0.4) : isotropic(384, 12, 0.1);
    all["nat_isotropic_" + size] = all["dinat_isotropic_" + size] = all["vitrpb_" + size] = plain;
    all["dinat_isotropic_" + size].dilations = {{1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2}};
    all["vitrpb_" + size].kernel = 0;
  }
  return all;
}

}  // namespace

Lists nat_dilations(std::string_view schedule, const std::vector<int64_t>& depths) {
  const auto found = schedules().find(schedule);
  require(found != schedules().end(), "nat: unknown schedule of dilations '{}', known: {}", schedule,
          names(schedules()));
  const auto& [lists, second_of_two] = found->second;
  require(depths.size() == lists.size(), "nat: schedules of dilations are for {} levels, got {}", lists.size(),
          depths.size());
  Lists all;
  for (size_t level = 0; level < lists.size(); ++level) {
    const auto& list = level == 1 && depths[level] == 2 && !second_of_two.empty() ? second_of_two : lists[level];
    std::vector<int64_t>& own = all.emplace_back();
    for (int64_t layer = 0; layer < depths[level]; ++layer) own.push_back(list[size_t(layer) % list.size()]);
  }
  return all;
}

NatConfig nat_config(std::string_view name) {
  const auto all = all_configs();
  const auto found = all.find(name);
  require(found != all.end(), "nat: unknown model '{}', known: {}", name, names(all));
  return found->second;
}

void check_nat(const NatConfig& c) {
  require(!c.depths.empty() && c.depths.size() <= 8 && c.heads.size() == c.depths.size(),
          "nat: depths and heads must have one number for each of 1 .. 8 levels, got {} and {}", c.depths.size(),
          c.heads.size());
  require(c.kernel == 0 || (c.kernel >= 3 && c.kernel % 2 == 1), "nat: kernel must be odd and >= 3, got {}", c.kernel);
  require(c.kernel != 0 || c.is_isotropic(), "nat: dense attention is for models of one level, got {}",
          c.depths.size());
  const bool is_power = c.patch >= 2 && std::has_single_bit(uint64_t(c.patch));
  require(
      c.embeds_patches || (is_power && 2 * c.embed % c.patch == 0),
      "nat: where convolutions make tokens patch must be 2, 4, 8 .. and embed a multiple of half of it, got {} and {}",
      c.patch, c.embed);
  require(c.patch >= 1 && c.mlp_ratio > 0, "nat: patch and mlp_ratio must be > 0, got {} and {}", c.patch, c.mlp_ratio);
  require(c.classes >= (c.outputs.empty() ? 1 : 0), "nat: classes must be >= 1, or 0 with outputs, got {}", c.classes);
  require(c.deviation >= 0, "nat: deviation must be >= 0, got {}", c.deviation);
  require(c.drop_path >= 0 && c.drop_path < 1, "nat: drop_path must be in [0, 1), got {}", c.drop_path);
  for (size_t level = 0; level < c.depths.size(); ++level) {
    require(c.depths[level] >= 1 && c.heads[level] >= 1 && c.channels(level) % c.heads[level] == 0,
            "nat: channels must be a multiple of heads, got {} and {} at level {}", c.channels(level), c.heads[level],
            level);
    if (c.dilations.empty()) continue;
    require(c.dilations.size() == c.depths.size() && std::ssize(c.dilations[level]) == c.depths[level],
            "nat: dilations must have one number for each layer of each level, got {} for {} at level {}",
            level < c.dilations.size() ? c.dilations[level].size() : 0, c.depths[level], level);
    for (const int64_t d : c.dilations[level])
      require(d >= 1, "nat: dilations must be >= 1, got {} at level {}", d, level);
  }
  for (const int64_t level : c.outputs)
    require(level >= 0 && level < std::ssize(c.depths), "nat: outputs must be levels 0 .. {}, got {}",
            c.depths.size() - 1, level);
}

std::vector<int64_t> NatConfig::embedding_channels() const {
  std::vector<int64_t> all;
  for (int64_t pixels = 2; pixels <= patch; pixels *= 2) all.push_back(embed * pixels / patch);
  return all;
}

double count_macs(const NatConfig& c, int64_t height, int64_t width) {
  const auto halved = [](int64_t n) { return (n + 1) / 2; };
  double macs = 0;
  if (c.embeds_patches) {
    height = (height + c.patch - 1) / c.patch, width = (width + c.patch - 1) / c.patch;
    macs += double(height * width) * double(3 * c.embed * c.patch * c.patch);
  } else {
    int64_t from = 3;
    for (const int64_t to : c.embedding_channels()) {
      height = halved(height), width = halved(width);
      macs += double(height * width) * double(9 * from * to);
      from = to;
    }
  }
  for (size_t level = 0; level < c.depths.size(); ++level) {
    const double tokens = double(height * width), channels = double(c.channels(level));
    const double keys = double(c.window() * c.window()), hidden = double(int64_t(channels * c.mlp_ratio));
    const double layer = 4 * channels * channels + 2 * keys * channels + 2 * hidden * channels;
    macs += double(c.depths[level]) * tokens * (layer + keys * double(c.heads[level]));
    if (level + 1 == c.depths.size()) continue;
    height = halved(height), width = halved(width);
    macs += double(height * width) * (c.merges_patches ? 8 : 18) * channels * channels;
  }
  return macs + double(c.channels(c.depths.size() - 1) * c.classes);
}

}  // namespace foveate::models
