// What each head of a model needs, found once on a text: files that mechanisms with a setting for every head read.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "foveate/attention/sparse/head_search.h"
#include "foveate/attention/window.h"
#include "foveate/models/language/decoder.h"

namespace foveate::eval {

// Called after each layer with the share done, 0 .. 1.  May throw to stop.
using LayerDone = std::function<void(double share)>;

// For vertical_slash:heads=FILE: of every layer the best candidate of each query head (head_search.h), on what dense
// attention makes of the tokens.  Throws Error: no token, what search_heads refuses.
std::vector<attention::LayerPatterns> find_line_patterns(const models::Decoder& decoder,
                                                         std::span<const int32_t> tokens,
                                                         const attention::HeadSearch& search, const LayerDone& done);

// For duo:pattern=FILE: of every layer the gate of each key head, the share of dense attention's weight outside of the
// streaming window, a mean over rows and over the query heads that read it: 0 where streaming loses nothing.  Measured
// in place of what DuoAttention learns.  Throws Error: no token, a window that is none.
std::vector<std::vector<double>> find_gates(const models::Decoder& decoder, std::span<const int32_t> tokens,
                                            const attention::Window& streaming, const LayerDone& done);

// A line of numbers for each layer, as duo reads them.
std::string gates_as_lines(const std::vector<std::vector<double>>& gates);

}  // namespace foveate::eval
