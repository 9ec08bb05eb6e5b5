// Operators of the domain `circle` (import/circle.h) -> ONNX operators of set 21.
#pragma once

#include "octavo/ir/graph.h"

namespace octavo {

// Replaces every circle operator of the main graph: layouts by Transposes around convolutions and pools, fused
// activations by operators, QUANTIZE and DEQUANTIZE by the IR's own, an MX constant behind its QUANTIZE by a constant
// of MX type. A quantized graph input becomes one of its storage type; a quantized graph output becomes float when it
// is lowered to ONNX. Errors: kUnsupported naming operator and reason.
void RaiseCircle(Model& model);

}  // namespace octavo
