// What a report says about the machine and the build.
#pragma once

#include "foveate/report/compare_report.h"

namespace foveate::app {

report::CompareReport::Machine this_machine();
report::CompareReport::Versions this_build();
std::string today();         // UTC, 2026-01-31T12:00:00Z
std::string command_line();  // as it was typed, words with blanks quoted

}  // namespace foveate::app
