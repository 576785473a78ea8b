// Files of CATANet's weights, and the configuration that they imply.
#pragma once

#include "foveate/models/vision/catanet.h"
#include "foveate/models/vision/state_dict.h"

namespace foveate::models {

// What tensors are of, by their names (the released ones, perhaps behind "params." or "params_ema.") and shapes:
// upscale 1 .. 4, channels, dim, qk_dim, mlp_dim, blocks, centres, and whether blocks aggregate.  What these do not
// tell is as save_catanet wrote it, else as published: 4 heads, patches of 16, 20, 24, 28 pixels in turn, groups of
// 4096 / centres. Where a tensor is missing its sizes are the published ones: loading then names all that does not fit.
// Throws Error, with `file`: sizes or metadata out of range, metadata of something else than a CATANet, heads that
// do not divide dim and qk_dim.
CataNetConfig catanet_config(std::span<const io::StoredTensor> tensors, const Metadata& metadata,
                             const std::string& file);
CataNetConfig catanet_config(const std::string& path);

// From a file of safetensors or torch.save; of "params_ema." and "params.", which the released code writes, the former.
// Throws Error: as load_state_dict.
void load_catanet(CataNetImpl& net, const std::string& path);

// As safetensors, with what catanet_config can not see in them as metadata.  Throws Error: a path that is not writable.
void save_catanet(const CataNetImpl& net, const std::string& path);

}  // namespace foveate::models
