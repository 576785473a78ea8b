// Images with classes, and which of them a step reads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace foveate::train {

struct ImageSet {
  at::Tensor images;  // [N, C, H, W] uint8
  at::Tensor labels;  // [N] int64, 0 .. classes - 1
  int64_t classes = 0;

  int64_t size() const { return images.size(0); }
};

enum class ImagePart { train, test };

// MNIST's layout: {train,t10k}-{images-idx3,labels-idx1}-ubyte, packed by gzip (.gz) or not, in a folder or a fetched
// set ("fashion-mnist").  One channel, 10 classes.  Throws Error: files that are missing, damaged, or of different
// counts, labels above 9.
ImageSet read_mnist(const std::string& folder, ImagePart part);

// Which images step `step` reads, `batch` of them: every image comes once in an epoch, and each epoch has an order of
// its own.  The same for the same numbers: the step is all there is to remember.  Throws Error: size or batch < 1, step
// < 0.
std::vector<int64_t> draw_indices(int64_t size, int64_t batch, uint64_t seed, int64_t step);

}  // namespace foveate::train
