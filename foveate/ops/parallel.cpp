// Compiled with -fopenmp: without it at::parallel_for would run serially, silently.
#include "foveate/ops/parallel.h"

#include <ATen/Parallel.h>

namespace foveate::ops {

Pool torch_pool() {
  const auto run = [](int workers, const std::function<void(int)>& body) {
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(int(worker));
    });
  };
  return {at::in_parallel_region() ? 1 : at::get_num_threads(), run};
}

}  // namespace foveate::ops
