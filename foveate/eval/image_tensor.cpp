#include "foveate/eval/image_tensor.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>

#include "foveate/base/error.h"

namespace foveate::eval {
namespace {

at::Tensor levels(const at::Tensor& x) { return x.to(at::kFloat).clamp(0, 1).mul(255).round_(); }  // 0 .. 255

}  // namespace

at::Tensor to_tensor(const io::Image& image) {
  io::check_image(image);
  const at::Tensor bytes = at::from_blob(const_cast<uint8_t*>(image.pixels.data()),
                                         {1, image.height, image.width, image.channels}, at::kByte);
  return bytes.permute({0, 3, 1, 2}).to(at::kFloat, false, true, at::MemoryFormat::Contiguous).div_(255);
}

io::Image to_image(const at::Tensor& x) {
  const bool is_batch = x.dim() == 4 && x.size(0) == 1;
  require((is_batch || x.dim() == 3) && x.is_floating_point() && (x.size(-3) == 1 || x.size(-3) == 3) && x.numel() > 0,
          "image: must be [1, C, H, W] or [C, H, W] of floats, C 1 or 3, got {} [{}]", c10::toString(x.scalar_type()),
          fmt::join(x.sizes(), ", "));
  require(!x.isnan().any().item<bool>(), "image: pixels must be numbers, got NaN");
  const at::Tensor pixels = levels(is_batch ? x[0] : x).to(at::kByte).permute({1, 2, 0}).contiguous();
  io::Image image{x.size(-1), x.size(-2), x.size(-3), {}};
  const uint8_t* data = pixels.const_data_ptr<uint8_t>();
  image.pixels.assign(data, data + pixels.numel());
  return image;
}

at::Tensor round_to_8_bits(const at::Tensor& x) { return levels(x).div_(255); }

}  // namespace foveate::eval
