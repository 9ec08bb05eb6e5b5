// Pads of codes at the end of the last axis (rewrite/pad_right.h).
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before: Conv(DequantizeLinear(QuantizeLinear(Pad(x)))), x: codes in the same parameters, filled with zeros
// After:  Conv(x) {pads}
// Before: QuantizeLinear(Pad(x)), and Pads of integers
// After:  QuantizeLinear(Gather(DequantizeLinear(QuantizeLinear(Pad(x), with a column at the left))))
// For a device that fills the first ones with what lies in memory. The numbers are the same. Returns how many.
std::int64_t PadCodes(Model& model);

}  // namespace octavo
