// Operators that Circle spells in several, put together again by their structure. Internal to the import of Circle.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  %m = MEAN(%x, axes);  %c = SUB(%x, %m);  %v = MEAN(MUL(%c, %c), axes)
//          %y = ADD(MUL(MUL(%c, RSQRT(ADD(%v, epsilon))), scale), bias)           (the ADD may be missing)
// After:   %y = LayerNormalization(%x, scale, bias) {axis, epsilon}
// where the axes are the last ones, no value between has another use or a quantized type, and scale and bias are
// constants of the normalized dimensions. Operators of the domain `circle` become one of ONNX. Returns how many.
std::int64_t RestoreLayerNorms(Graph& graph);

}  // namespace octavo
