// The GGML block formats as weight-only precisions.
#pragma once

#include <optional>

#include "octavo/quantize/weight_only.h"

namespace octavo {

// The format that the config's precision names; nullopt when it is no block format of GGML.
std::optional<WeightOnlyFormat> GgmlWeights(const QuantizationConfig& config);

}  // namespace octavo
