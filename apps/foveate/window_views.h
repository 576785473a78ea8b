// What queries of local attention see, for report/window_view.h.
#pragma once

#include "foveate/attention/local/halo.h"
#include "foveate/plan/neighborhood.h"
#include "foveate/report/window_view.h"

namespace foveate::app {

// Throws Error: as check_neighborhood.
report::WindowView view_windows(std::string title, const Neighborhood& neighborhood);
// Keys outside of the map are left out, whatever the padding makes of them.  Throws Error: block < 1, halo < 0.
report::WindowView view_windows(std::string title, const attention::Halo& halo, int64_t height, int64_t width);

}  // namespace foveate::app
