// Constants in the codes that they become.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  %y = QuantizeLinear (Where %m, %x, DequantizeLinear c), s, z        to 16 bits, c constant, of another scale
// After:   the same with DequantizeLinear c', s, z, where c' is what QuantizeLinear makes of c
// and so for the constants of a Concat. The same codes of y; but a device that brings c to y's step overflows where the
// steps differ by 2^13 and more, and a constant of zeros has a step of 1. Returns how many constants were changed.
std::int64_t RecodeConstants(Model& model);

}  // namespace octavo
