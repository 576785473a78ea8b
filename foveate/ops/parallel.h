// Torch's threads for the kernels.
#pragma once

#include "foveate/base/work_queue.h"

namespace foveate::ops {

// As many threads as torch is set to use (at::set_num_threads, torch.set_num_threads); one inside a parallel region.
Pool torch_pool();

}  // namespace foveate::ops
