// MX weight-only precisions: mxint8, mxfp4, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2.
#pragma once

#include <optional>

#include "octavo/quantize/weight_only.h"

namespace octavo {

// The format of an MX precision; nullopt for another name. Blocks run along the axis that is summed over; the data of
// an encoded weight are its f32 numbers on the format's grid (emitters choose codes), ties to even.
std::optional<WeightOnlyFormat> MxWeights(const QuantizationConfig& config);

}  // namespace octavo
