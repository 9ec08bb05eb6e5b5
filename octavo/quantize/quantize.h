// The one quantize function: float model + data -> model whose values carry QuantTypes.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "octavo/calibrate/calibrate.h"
#include "octavo/calibrate/ranges.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/device/descriptor.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"

namespace octavo {

struct SkippedNode {
  std::string node, op, reason;
};

struct QuantizeResult {
  std::int64_t nodes_total = 0;
  std::int64_t nodes_quantized = 0;  // compute nodes with quantized inputs; Q/DQ are not nodes
  std::vector<SkippedNode> nodes_skipped;
  std::vector<std::string> nodes_16bit;  // whole-graph devices: operators that run in 16 bits where the others run in 8
  struct WideTensor {
    std::string tensor, reason;
  };
  std::vector<WideTensor> tensors_16bit;                 // the tensors for which that is so
  std::string effective_weights, effective_activations;  // "u8 per tensor", ...
  std::int64_t calibration_samples = 0;
  std::string calibration_source;  // data | synthetic | loaded | none
  std::string data_sha256;
  double calibration_seconds = 0;
  double insertion_seconds = 0;
  std::uint64_t fp16_overflows = 0;
  bool skipped = false;          // the model was quantized already
  double integer_mac_share = 0;  // of the multiply-accumulates of all nodes with constant weights that the device takes
  double predicted_sqnr_db = 0;  // after the choice of nodes to keep in float; 0 when nothing was predicted
  std::vector<std::pair<std::string, std::int64_t>> rewrites;  // rule -> times applied, from the float passes
};

// Statistics of an earlier run, and a place for those of this one.
struct StatisticsCache {
  std::optional<Statistics> found;              // used if they are this model's and hold all that is needed
  std::function<void(const Statistics&)> keep;  // gets what a calibration gathered
  bool used = false;                            // `found` was
};

// The float passes that Quantize runs before it calibrates: statistics belong to the model that comes out. Adds what
// was applied to `applied`, if given. Errors: kUnsupported for a model that is compiled for a device already.
void PrepareFloat(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                  std::vector<std::pair<std::string, std::int64_t>>* applied = nullptr);

// What must be observed on a prepared model so that Quantize can choose parameters from the statistics alone.
std::vector<ObserveSpec> CalibrationSpecs(const Model& prepared, const QuantizationConfig& config,
                                          const DeviceDescriptor& device);
std::string MethodName(CalibrationMethod method);  // "minmax", as Statistics::method has it

// Quantizes `model` in place: float passes (rewrite/), calibration, placement, parameter choice, types. `data` may be
// null for precisions that need none (fp16, bf16, fp32, weight only). `cache`: see above; never changes the result.
// Samples [0, config.samples) calibrate. Deterministic: equal inputs give equal models whatever the number of threads.
// Errors: kUnsupported for a model the device cannot take; kUsage for a selector that matches nothing (nearest names).
QuantizeResult Quantize(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                        const DataSource* data, int threads, StatisticsCache* cache = nullptr);

}  // namespace octavo
