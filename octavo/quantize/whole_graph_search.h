// Quantizing for an NPU: what the rounding to 8 bits costs at the outputs is measured, and what costs most gets more.
#pragma once

#include <string>
#include <unordered_map>
#include <unordered_set>

#include "octavo/calibrate/calibrate.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/quantize.h"
#include "octavo/quantize/whole_graph_plan.h"
#include "octavo/quantize/whole_graph_types.h"

namespace octavo {

struct WidthSearchInputs {
  const QuantizationConfig& config;
  const DeviceDescriptor& device;
  const ResolvedPrecision& precision;
  const Statistics& statistics;
  Calibration& calibration;
  const std::unordered_map<std::string, std::size_t>& spec_of;  // of the calibration, by value
  const std::unordered_set<const Node*>& fixed;                 // their type is the user's
  int threads = 1;
};

// Where the predicted noise at the outputs misses the target of whole_graph_widths.h, weights get scales a channel
// (types.by_channel), and then operators 16 bits (types.type_of_node, types.wide_weights). The result names them and
// has the prediction.
void SearchWidths(const WholeGraphPlan& plan, WholeGraphTypes& types, const WidthSearchInputs& inputs,
                  QuantizeResult& result);

}  // namespace octavo
