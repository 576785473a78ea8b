// The one list of mechanisms.  The command line, Python, the benchmarks and the generic tests iterate over it
// (registry.h): a new mechanism is a header, a source, a test and one line here.
#pragma once

#include <tuple>

#include "foveate/attention/dense.h"
#include "foveate/attention/local/neighborhood.h"
#include "foveate/attention/routing/duo.h"
#include "foveate/attention/routing/flux.h"
#include "foveate/attention/sparse/block_topk.h"
#include "foveate/attention/sparse/cca.h"
#include "foveate/attention/sparse/dhsa.h"
#include "foveate/attention/sparse/dhsa_blocks.h"
#include "foveate/attention/sparse/flexprefill.h"
#include "foveate/attention/sparse/hisa.h"
#include "foveate/attention/sparse/hyper.h"
#include "foveate/attention/sparse/landmark.h"
#include "foveate/attention/sparse/nsa.h"
#include "foveate/attention/sparse/quest.h"
#include "foveate/attention/sparse/superlinear.h"
#include "foveate/attention/sparse/triangle.h"
#include "foveate/attention/sparse/vertical_slash.h"
#include "foveate/attention/sparse/xattention.h"
#include "foveate/attention/window.h"

namespace foveate::attention {

using AllMechanisms = std::tuple<                                         //
    Dense, Window, NeighborhoodWindow, Triangle,                          // fixed patterns
    Dhsa, DhsaBlocks, BlockTopk, XAttention, VerticalSlash, FlexPrefill,  // selection while prompts are read
    Quest, Nsa, Hisa, Landmark, Superlinear,                              // selection for every query
    Cca, Hyper,                                                           // summaries, samples
    Duo, Flux>;                                                           // some heads or layers, others in full

}  // namespace foveate::attention
