// Static quantization of the nodes that multiply with constant weights: calibration, parameters, selection, types.
#pragma once

#include "octavo/quantize/early_weights.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

// Of a prepared float model, in place; fills `result`. As Quantize, for a static precision. `early` (may be null) has
// looked at weights already.
void QuantizeStatic(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                    const ResolvedPrecision& precision, const DataSource* data, int threads, StatisticsCache* cache,
                    EarlyWeights* early, QuantizeResult& result);

}  // namespace octavo
