// Codes that go from 8 to 16 bits or back although those of 16 bits are the coarser ones.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before: QuantizeLinear(DequantizeLinear(codes)) between 8 and 16 bits, the step of 16 bits the bigger one
// After:  the same by way of 16 bits that hold the range of the 8 bits
// For a device that converts between widths by a shift and a factor of at most one: 2 to 12 dB, or a constant added, in
// the HTP's emulator; between 16 bits and 16 bits any factor is right. The numbers are the same but for one rounding to
// a 256th of the 8-bit step. Returns how many.
std::int64_t BridgeWidths(Model& model);

}  // namespace octavo
