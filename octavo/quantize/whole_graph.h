// Quantizing for an NPU: every float tensor between the operators that the device takes gets parameters, so that the
// model stays in one piece on it. (placement.h quantizes only what gains on a CPU.)
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "octavo/calibrate/calibrate.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

// What WholeGraphQuantize needs to know of a prepared model.
std::vector<ObserveSpec> WholeGraphSpecs(const Model& prepared, const QuantizationConfig& config,
                                         const ResolvedPrecision& precision, const DeviceDescriptor& device);

// Gives types to the values of the main graph:
//  - an operator that the device takes (kInteger) runs in 8 or 16 bits as a whole: its tensors in and out are u8, or
//    all u16, but for weights and bias; where two widths meet stands a Requantize;
//  - data movement (kPassThrough) shares the parameters of what it moves;
//  - weights are quantized as the precision says, per channel where the operator's row has it, unsigned where the row
//    demands it; biases are int32 at x_scale * w_scale, corrected by the mean error of the weights' rounding;
//  - every other constant (an addend, a factor) is a tensor with parameters;
//  - a Relu or Clip that the range of its producer's codes does is gone;
//  - where attention masks are added to scores, the range holds the scores and a few e-folds below them, and masked
//    positions saturate there.
// With keep_float_auto what the rounding of each tensor and weight costs at the outputs is measured by `calibration`
// (whose specs `spec_of` finds by value; reset when it is not needed any more). Where the prediction misses the target
// of whole_graph_widths.h, weights get scales a channel (s8) where the operator's row has them, and then the tensors
// and matrices that cost most for their work get 16 bits, with the operators that make and read them. The result names
// them.
// An operator that the device does not take stays in float, with its reason, in result.nodes_skipped.
void WholeGraphQuantize(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                        const ResolvedPrecision& precision, const Statistics& statistics,
                        std::optional<Calibration>& calibration,
                        const std::unordered_map<std::string, std::size_t>& spec_of, int threads,
                        QuantizeResult& result);

}  // namespace octavo
