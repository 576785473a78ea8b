// Resident memory of this process, as the operating system counts it.
#pragma once

#include <cstdint>
#include <optional>

namespace foveate {

// Bytes, unset where the system does not say (not Linux).
std::optional<int64_t> peak_resident_bytes();

// Starts a new peak at what is resident now, after giving freed memory back; false where the system cannot.
bool reset_peak_resident();

}  // namespace foveate
