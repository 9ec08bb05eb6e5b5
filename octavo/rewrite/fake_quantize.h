// The one road of fake quantization: operator -> quantize/dequantize pair -> QuantType of the value -> emitters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// The project's own operators (INTERFACE.md).
inline constexpr std::string_view kOctavoDomain = "octavo";

// MXFakeQuantize -> QuantizeMx, DequantizeMx; FakeQuantize with constant parameters -> QuantizeLinear, DequantizeLinear
// (behind a Clip where its range is narrower than an integer type's). A FakeQuantize that cannot become a pair stays,
// with a warning that says why. Returns how many were taken apart.
std::int64_t DecomposeFakeQuantize(Model& model);

// QuantizeMx and DequantizeMx -> QuantTypes: a constant becomes an MX constant (its data are the f32 numbers on the
// grid), a value gets the type from its producer where it has no other use, or a Quantize of the IR. Ties away from
// zero are the type's own rounding; a QuantizeMx that rounds to even stays a Quantize with the attribute rounding =
// "even". Returns how many QuantizeMx went. (QuantizeLinear and DequantizeLinear: FoldQdq.)
std::int64_t FoldQuantOps(Model& model);

// For Circle, whose MX tensors round ties away from zero: a Quantize to MX that rounds them to even rounds away. Returns
// how many changed.
std::int64_t RoundMxAway(Model& model);

// Hands parameters on through operators that move values and compute none (Reshape, MaxPool, ...): from the input to a
// float output, and from the output to a float input that nothing else reads. Per-tensor affine parameters only; exact.
// Returns how many values got a type.
std::int64_t PropagateParams(Model& model);

// Puts MXFakeQuantize on input, weight and result of every operator that multiplies with constant weights: blocks of
// 32 run along the axis that is summed over. DecomposeFakeQuantize and FoldQuantOps make types of them. Returns how
// many operators were taken.
std::int64_t AssignMx(Model& model, const std::string& format);

// Float values that computing operators of a quantized model read or write: those that were left without parameters.
std::vector<std::string> ValuesWithoutParams(const Model& model);

}  // namespace octavo
