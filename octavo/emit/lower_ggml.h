// Weights in GGML blocks as plain ONNX: the parts of the blocks as initializers, and the arithmetic that makes of them
// the very bits that the format's decoder makes.
#pragma once

#include "octavo/ir/graph.h"

namespace octavo {

// Replaces every constant of a GgmlBlock type by initializers and nodes of operator set 21:
//   f16 scales (Cast to f32); times the integer scales of the sub-blocks where there are some;
//   8-bit codes, and 4-bit codes that are numbers: blocked DequantizeLinear;
//   2, 3, 5 and 6-bit codes: planes of packed bits, taken apart by BitShift and BitwiseAnd, then Mul;
//   codes that are indices: Gather out of 16 points, then Mul;
//   minima: Sub (or Add) at the end.
// All of it on [before, blocks, block, after], a view of the weight as it lies: nothing is transposed. Does nothing in
// a model without such values. Errors: kUnsupported for a value in blocks that is no constant, or that is used as raw
// storage; kBadInput where the bytes are not the blocks that the type says.
void LowerGgmlBlocks(Model& model);

}  // namespace octavo
