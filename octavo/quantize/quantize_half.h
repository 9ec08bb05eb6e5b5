// Precisions fp16 and bf16.
#pragma once

#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/ir/type.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

// Converts a prepared model to `half` (kF16 or kBF16) and fills `result`. With `data`, up to 16 of the calibration
// samples decide which of its two neighbours an f16 weight becomes (half_rounding.h). Errors: as Quantize's.
void QuantizeHalf(Model& model, const QuantizationConfig& config, DType half, const DataSource* data, int threads,
                  QuantizeResult& result);

}  // namespace octavo
