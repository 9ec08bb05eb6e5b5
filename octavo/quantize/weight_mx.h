// MX precisions: mxint8, mxfp4, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2.
#pragma once

#include <optional>

#include "octavo/quantize/config.h"
#include "octavo/quantize/quantize.h"
#include "octavo/quantize/weight_only.h"

namespace octavo {

// The format of an MX precision; nullopt for another name. Blocks run along the axis that is summed over; the data of
// an encoded weight are its f32 numbers on the format's grid (emitters choose codes), ties to even.
std::optional<WeightOnlyFormat> MxWeights(const QuantizationConfig& config);

// config.activation_mx: every computed operand of a product whose weight has become MX, and of a MatMul of two computed
// operands, gets a Quantize in front, in blocks along the axis that is summed over, ties to even. Operands that are
// shared are rounded once an axis. What cannot have blocks stays float and is added to nodes_skipped with the reason
// (the rank is not known; blocks would reach over the borders of a convolution's groups); exclude and op_types are
// respected.
void QuantizeActivationsMx(Model& model, const QuantizationConfig& config, QuantizeResult& result);

}  // namespace octavo
