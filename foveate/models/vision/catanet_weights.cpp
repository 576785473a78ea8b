#include "foveate/models/vision/catanet_weights.h"

#include <algorithm>
#include <array>
#include <optional>

#include "foveate/base/options.h"
#include "foveate/io/bytes.h"

namespace foveate::attention {

constexpr auto enum_names(GroupWindow) { return std::array<std::string_view, 3>{"own", "next", "both"}; }
constexpr auto enum_names(CentreMerge) { return std::array<std::string_view, 2>{"sum", "joint"}; }

}  // namespace foveate::attention

namespace foveate::models {
namespace {

constexpr std::string_view kFormat = "catanet 1";
constexpr double kMost = 4096;         // of a size: files are untrusted
constexpr int64_t kTrained = 64 * 64;  // tokens of a published training patch

// What names and shapes do not tell, as metadata.
struct Hidden {
  int64_t heads = 4;
  std::string patches = {}, groups = {};  // a number for each block
  attention::GroupWindow window = attention::GroupWindow::next;
  attention::CentreMerge merge = attention::CentreMerge::sum;
  bool uses_centres = true;

  static void fields(auto& self, auto&& visit) {
    visit("heads", self.heads, between(1, kMost));
    visit("patches", self.patches, any());
    visit("groups", self.groups, any());
    visit("window", self.window, any());
    visit("merge", self.merge, any());
    visit("uses_centres", self.uses_centres, any());
  }
};

std::string_view prefix_of(std::span<const io::StoredTensor> tensors) {
  for (const std::string_view prefix : {"params_ema.", "params."})
    for (const io::StoredTensor& t : tensors)
      if (t.name.starts_with(prefix)) return prefix;
  return "";
}

// "" for what is not behind the prefix.
std::string name_behind(const std::string& name, std::string_view prefix) {
  return name.starts_with(prefix) ? name.substr(prefix.size()) : "";
}

// Sizes by the names of tensors.
class Sizes {
 public:
  Sizes(std::span<const io::StoredTensor> tensors, const std::string& file)
      : tensors_(tensors), prefix_(prefix_of(tensors)), file_(file) {}

  const io::StoredTensor* find(const std::string& name) const {
    const auto found =
        std::ranges::find_if(tensors_, [&](const auto& t) { return name_behind(t.name, prefix_) == name; });
    return found == tensors_.end() ? nullptr : &*found;
  }
  // Of an axis; `otherwise` where there is none.
  int64_t get(const std::string& name, size_t axis, int64_t otherwise) const {
    const io::StoredTensor* found = find(name);
    if (!found || found->shape.size() <= axis) return otherwise;
    const int64_t size = found->shape[axis];
    require(size >= 1 && size <= int64_t(kMost), "{}: sizes of {} must be 1 .. {}, got {}", file_, name, kMost,
            io::print_sizes(found->shape));
    return size;
  }

 private:
  std::span<const io::StoredTensor> tensors_;
  std::string_view prefix_;
  const std::string& file_;
};

std::vector<int64_t> parse_list(const std::string& text, size_t count, Range range, const std::string& what) {
  std::vector<int64_t> numbers;
  bool fits = true;
  for (size_t at = 0; at <= text.size() && fits;) {
    const size_t end = std::min(text.find(',', at), text.size());
    int64_t& number = numbers.emplace_back();
    fits = detail::parse_value(std::string_view(text).substr(at, end - at), number) && double(number) >= range.low &&
           double(number) <= range.high;
    at = end + 1;
  }
  require(fits && numbers.size() == count, "{} must be {} numbers {}, got {}", what, count,
          detail::legal_text(int64_t(0), range), io::printable(text));
  return numbers;
}

Hidden read_hidden(const Metadata& metadata, const std::string& file) {
  Hidden hidden;
  Hidden::fields(hidden, [&](const std::string& name, auto& value, Range range) {
    const auto found = metadata.find(name);
    if (found == metadata.end()) return;
    require(detail::parse_value(found->second, value), "{}: {} must be {}, got {}", file, name,
            detail::legal_text(value, range), io::printable(found->second));
    detail::check_range(file, name, value, range);
  });
  return hidden;
}

CataNetConfig inferred(std::span<const io::StoredTensor> tensors, const Metadata& metadata, const std::string& file) {
  const auto format = metadata.find("foveate");
  require(format == metadata.end() || format->second == kFormat,
          "{}: foveate must be '{}', got {}: these are no weights of a CATANet", file, kFormat,
          format == metadata.end() ? "" : io::printable(format->second));
  const Sizes sizes(tensors, file);
  const CataNetConfig published;
  CataNetConfig c;
  c.dim = sizes.get("first_conv.weight", 0, c.dim);
  c.channels = sizes.get("first_conv.weight", 1, c.channels);
  c.qk_dim = sizes.get("blocks.0.1.layer.0.fn.to_q.weight", 0, c.qk_dim);
  c.mlp_dim = sizes.get("blocks.0.1.layer.1.fn.fc1.weight", 0, c.mlp_dim);
  if (!sizes.find("upconv1.weight")) {  // of x4, as is what has neither
    const io::StoredTensor* conv = sizes.find("upconv.weight");
    c.upscale = !conv ? 1 : !conv->shape.empty() && conv->shape[0] == 4 * c.dim ? 2 : 3;
  }
  size_t blocks = 0;
  while (sizes.find(fmt::format("mid_convs.{}.weight", blocks))) ++blocks;
  if (blocks == 0) return published;
  c.aggregates = sizes.find("blocks.0.0.means") != nullptr;
  c.patches.clear(), c.centres.clear(), c.groups.clear();
  for (size_t i = 0; i < blocks; ++i) {
    c.patches.push_back(published.patches[i % published.patches.size()]);
    const int64_t otherwise = published.centres[i % published.centres.size()];
    c.centres.push_back(sizes.get(fmt::format("blocks.{}.0.means", i), 0, otherwise));
    c.groups.push_back(kTrained / c.centres[i]);
  }
  if (format == metadata.end()) return c;
  const Hidden hidden = read_hidden(metadata, file);
  c.heads = hidden.heads, c.window = hidden.window, c.merge = hidden.merge, c.uses_centres = hidden.uses_centres;
  if (!hidden.patches.empty()) c.patches = parse_list(hidden.patches, blocks, between(3, kMost), file + ": patches");
  if (!hidden.groups.empty()) c.groups = parse_list(hidden.groups, blocks, between(1, 1 << 24), file + ": groups");
  return c;
}

}  // namespace

CataNetConfig catanet_config(std::span<const io::StoredTensor> tensors, const Metadata& metadata,
                             const std::string& file) {
  const CataNetConfig c = inferred(tensors, metadata, file);
  require(c.dim % c.heads == 0 && c.qk_dim % c.heads == 0,
          "{}: dim and qk_dim must be multiples of {} heads, got {} and {}", file, c.heads, c.dim, c.qk_dim);
  return c;
}

CataNetConfig catanet_config(const std::string& path) {
  CataNetConfig config;
  with_tensors(path, [&](std::span<const io::StoredTensor> tensors, const Metadata& metadata) {
    config = catanet_config(tensors, metadata, path);
  });
  return config;
}

void load_catanet(CataNetImpl& net, const std::string& path) {
  with_tensors(path, [&](std::span<const io::StoredTensor> tensors, const Metadata&) {
    const std::string_view prefix = prefix_of(tensors);
    load_state_dict(net, tensors, path, [&](const std::string& name) { return name_behind(name, prefix); });
  });
}

void save_catanet(const CataNetImpl& net, const std::string& path) {
  const CataNetConfig& c = net.config();
  const Hidden hidden{.heads = c.heads,
                      .patches = fmt::format("{}", fmt::join(c.patches, ",")),
                      .groups = fmt::format("{}", fmt::join(c.groups, ",")),
                      .window = c.window,
                      .merge = c.merge,
                      .uses_centres = c.uses_centres};
  Metadata metadata = {{"foveate", std::string(kFormat)}};
  Hidden::fields(
      hidden, [&](const std::string& name, const auto& value, Range) { metadata[name] = detail::option_text(value); });
  save_state_dict(net, path, metadata);
}

}  // namespace foveate::models
