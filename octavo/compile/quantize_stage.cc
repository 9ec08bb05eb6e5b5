#include "octavo/compile/quantize_stage.h"

#include "octavo/base/log.h"
#include "octavo/base/resources.h"
#include "octavo/base/thread_pool.h"
#include "octavo/emit/onnx.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

QuantizationConfig InForce(const CompileContext& context) {
  if (context.quantization) return *context.quantization;
  QuantizationConfig none;
  none.precision = "fp32";
  return none;
}

}  // namespace

QuantizeStage::QuantizeStage(const CompileContext& context) : device_(context.device), config_(InForce(context)) {}

bool QuantizeStage::Keeps(const Model& model) const { return !config_.requantize && IsQuantized(model); }

bool QuantizeStage::NeedsSamples(const Model& model) const {
  return Precision().kind == ResolvedPrecision::Kind::kStatic && config_.load_path.empty() && !Keeps(model);
}

QuantizeResult QuantizeStage::Quantize(Model& model, const QuantizeInputs& inputs) const {
  const DataSource* data = inputs.data;
  // What synthetic samples say about importance, or about the means of activations, is noise.
  const ResolvedPrecision::Kind kind = Precision().kind;
  if (inputs.synthetic && (kind == ResolvedPrecision::Kind::kWeightOnly || kind == ResolvedPrecision::Kind::kHalf)) {
    data = nullptr;
  }
  const int threads = inputs.threads > 0 ? inputs.threads : HardwareThreads();
  QuantizeResult result = octavo::Quantize(model, config_, *device_, data, threads, inputs.cache);
  if (inputs.synthetic && result.calibration_source == "data") result.calibration_source = "synthetic";
  if (result.skipped) {
    LogInfo("the model is quantized already: its quantization is kept (--requantize drops it)");
  } else if (config_.precision != "fp32" && result.nodes_quantized == 0) {
    result.effective_weights = result.effective_activations = "as in the input: no node was quantized";
    LogWarning("precision '" + config_.precision + "' changed nothing: no node was quantized" +
               (result.nodes_skipped.empty() ? std::string()
                                             : "; '" + result.nodes_skipped.front().node +
                                                   "', for example: " + result.nodes_skipped.front().reason));
  }
  return result;
}

QuantizeResult QuantizeStage::Run(Model& model, const QuantizeInputs& inputs) const {
  QuantizeResult result = Quantize(model, inputs);
  const Stopwatch lowering;
  RaiseOpsetForQuantization(model);
  LowerToQdq(model);
  result.insertion_seconds += lowering.Seconds();
  return result;
}

}  // namespace octavo
