// Layers y = W x (+ b) that a per-channel affine map can be folded into: Conv, ConvTranspose, Gemm, MatMul.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/rewrite/rule.h"

namespace octavo {

struct LinearLayer {
  Node* node = nullptr;
  std::int64_t channels = 0;   // of the output
  std::int64_t rank = 0;       // of the output; 0 where only "at least 1" is known (MatMul)
  bool channels_last = false;  // channel axis: the last one (Gemm, MatMul) or 1 (convolutions)
};

// The layer that produces `y`, if y := a * y + b can be folded into it: weights are an unquantized f32 constant, y has
// exactly one use (in the same graph) and is no graph output. With `shift`, a bias can be added as well (a MatMul has
// none).
MatchOr<LinearLayer> MatchLinearLayer(const Value* y, bool shift);

// A constant that broadcasts against the layer's output along its channels only, as one number a channel.
MatchOr<std::vector<double>> PerChannel(const LinearLayer& layer, const TensorRef& constant);

// W[c] := a[c] * W[c], b[c] := a[c] * b[c] + shift[c], in double, rounded once to f32. An empty `shift` means zeros.
// A constant that others use as well is left to them.
void ScaleAndShift(const LinearLayer& layer, std::span<const double> a, std::span<const double> shift,
                   Rewriter& rewriter);

// True for a constant f32 tensor with data that is not quantized.
bool IsFloatConstant(const Value* value);

// Data of a float constant in double.
std::vector<double> ToDoubles(const TensorRef& tensor);
// Rounded once to f32.
TensorRef FromDoubles(Dims dims, std::span<const double> values);

}  // namespace octavo
