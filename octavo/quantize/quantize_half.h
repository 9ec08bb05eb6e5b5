// Precisions fp16 and bf16.
#pragma once

#include "octavo/device/descriptor.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/ir/type.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

// Converts a prepared model to `half` (kF16 or kBF16) and fills `result`.
//
// f16 with `data`: up to 16 of the calibration samples measure what is left of the outputs (result.predicted_sqnr_db,
// of the worst output). Below 65 dB they decide which of its two neighbours a weight becomes (half_rounding.h). Below
// 58 dB the nodes that make the noise are looked for (half_search.h): they compute in f32 with weights stored in f16,
// or, for at most a fifth of the large weights' bytes, with f32 weights. A warning says when less than 55 dB are left.
// Models with more than 1 GiB of constants are converted without samples. A device that takes whole graphs computes all
// of them in its own floats: no nodes are looked for. Errors: as Quantize's.
void QuantizeHalf(Model& model, const QuantizationConfig& config, DType half, const DeviceDescriptor& device,
                  const DataSource* data, int threads, QuantizeResult& result);

}  // namespace octavo
