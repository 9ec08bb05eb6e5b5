// The stage that quantizes, in every pipeline: whether and how is what its context says.
#pragma once

#include "octavo/compile/compile.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

struct QuantizeInputs {
  const DataSource* data = nullptr;  // calibration samples first; may be null where NeedsSamples says no
  bool synthetic = false;            // they are made up
  int threads = 0;                   // 0: all cores
  StatisticsCache* cache = nullptr;
};

// The only caller of Quantize. Where the context holds no quantization nothing is quantized: the model gets the float
// passes of precision fp32, and one that is quantized already stays as it is.
class QuantizeStage {
 public:
  explicit QuantizeStage(const CompileContext& context);

  const QuantizationConfig& config() const { return config_; }  // in force
  // Errors: as ResolvePrecision's.
  ResolvedPrecision Precision() const { return ResolvePrecision(config_, *device_); }
  // Whether the model has a quantization, which stays.
  bool Keeps(const Model& model) const;
  // Whether quantizing the model needs samples: a static precision, no statistics to load, nothing kept.
  bool NeedsSamples(const Model& model) const;

  // Quantizes `model` in place. Errors: as Quantize's.
  QuantizeResult Quantize(Model& model, const QuantizeInputs& inputs) const;
  // And lowers it to plain ONNX, for WriteOnnx; the time that takes counts as insertion.
  QuantizeResult Run(Model& model, const QuantizeInputs& inputs) const;

 private:
  const DeviceDescriptor* device_;
  QuantizationConfig config_;
};

}  // namespace octavo
