// The memory of landmark attention during generation: latest tokens, landmarks, and whole blocks to fetch, which may
// lie on disk.
#pragma once

#include "foveate/attention/sparse/landmark.h"

namespace foveate::attention {

// Of mode=landmark.  With offload, blocks that only fetching can reach leave memory for a file of their own, and come
// back head by head where chosen; where the disk takes no more or a block is not what was written, the call throws an
// Error of one line and the state is as before it.  With max_blocks, or in a layer with a window, what no later row can
// reach is dropped.  save() gives all that is kept, from disk too, in one form: a state with other places loads it.
std::unique_ptr<State> make_landmark_state(const Landmark& options, const StateOptions& state_options);

}  // namespace foveate::attention
