// Volumes in 8 bits that are joined in other parameters than their own.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Whether ConvertBeforeConcat would change anything.
bool JoinsVolumes(const Model& model);

// Before:  QuantizeLinear(Concat(DequantizeLinear(codes), ...))     five dimensions, u8 in other parameters
//          than those of the result
// After:   the same of operands in the parameters of the result, converted by way of 16 bits that hold the same numbers
// For a device whose Concat copies codes then (-11 to 18 dB in the HTP's emulator; a conversion from u8 to u8 becomes
// one with it). The numbers are the same. Returns how many operands.
std::int64_t ConvertBeforeConcat(Model& model);

}  // namespace octavo
