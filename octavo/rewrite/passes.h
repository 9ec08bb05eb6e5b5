// Passes over float and quantized graphs. Each is one file; each is a function of the structure only, never of names.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

struct PassCount {
  std::string rule;
  std::int64_t applied = 0;
};

// Q/DQ nodes -> QuantTypes (DESIGN.md "Hard cases"): a Q->DQ pair folds only if scale, zero point, axis, block and dtypes are
// bit-equal; folding makes a new value; DequantizeLinear of a constant makes a quantized constant; anything else stays a raw
// integer with StorageCast, or stays a Q/DQ node where the parameters are not constant. LowerToQdq of the result behaves
// bit for bit like the original with optimizations off. Returns the number of pairs folded.
std::int64_t FoldQdq(Model& model);

// True if the model holds quantized types or quantized operators (QLinear*, *Integer, MatMulNBits, QGemm...).
bool IsQuantized(const Model& model);

// Function-preserving simplification of a float model before calibration: constant folding (nodes of which all inputs are
// constant are run once by the runtime), shape chains with static shapes, Identity/Dropout/no-op Cast removed,
// BatchNormalization and Mul/Add/Div/Sub by per-channel constants folded into Conv/ConvTranspose/Gemm/MatMul weights and
// bias, dead code. Results differ from the input model by float rounding only. Returns what was applied.
std::vector<PassCount> SimplifyFloat(Model& model);

// Cross-layer equalization (Nagel et al. 2019, section 4.1) for Conv -> Relu/none -> (depthwise) Conv chains, data-free,
// function-preserving up to float rounding (a power-of-two scale makes it exact).
std::int64_t EqualizeLayers(Model& model);

// Converts to 16-bit floats (f16 | bf16): weights and internal values; graph inputs and outputs keep their type behind
// Casts. Operators in `blocked` (type names) stay f32. Returns how many finite weights overflowed to Inf and were clamped.
struct HalfResult {
  std::uint64_t overflows = 0;
  std::vector<std::string> kept_float;  // node: reason
};
HalfResult ConvertToHalf(Model& model, DType half);

}  // namespace octavo
