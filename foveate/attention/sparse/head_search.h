// Which numbers of columns and distances serve each head of a layer best, found once on a sample: the offline search of
// MInference 1.0 (2407.02490, section 3.2).
#pragma once

#include <optional>
#include <vector>

#include "foveate/attention/sparse/vertical_slash.h"

namespace foveate::attention {

struct HeadSearch {
  // What the best candidate of a head has: the fewest entries of the output that are further than `tolerance` from
  // dense attention's, or the most of dense attention's weight on kept keys, on average over rows from `first_row` on.
  enum class By { output_error, kept_mass };

  std::vector<HeadPattern> candidates = {{30, 800},   {100, 750},   {100, 800},  {500, 700},
                                         {3500, 100}, {1000, 4096}, {1000, 6096}};
  By by = By::output_error;
  double tolerance = 5e-3;
  int64_t first_row = 2500;
  // Equal cost: both counts of a candidate are scaled alike, for each head to the most whose blocks of rows list this
  // share of the keys before their ends.  In (0, 1]; unset: candidates as they are.
  std::optional<double> density;
  VerticalSlash options;  // all but the counts
};

// The best candidate of every head for one sample of a layer, with its number of entries, or its mass, as score; equal
// ones: the first.  Batches count as one.  Throws Error: no candidates, counts < 1, density out of range or too small
// for what is always kept, first_row behind the sample, what vertical_slash refuses.
LayerPatterns search_heads(const HeadSearch& search, const Inputs& in);

}  // namespace foveate::attention
