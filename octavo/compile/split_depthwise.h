// Depthwise convolutions of one tap for a device whose compiler crashes over many channels.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  Conv(x) {group = channels, one tap, no stride, no pads}, u16 to u16, weights in 8 bits, a scale a channel
// After:   Concat of such convolutions of `most` channels each and less, of what a Split makes of x, each in the codes
//          that the one had
// Nothing else is computed. Convolutions of `most` channels or less stay, and so do those whose result is not
// quantized by one scale. Returns how many were split.
std::int64_t SplitDepthwise(Model& model, std::int64_t most);

}  // namespace octavo
