#include "octavo/build/plan.h"

#include <cstdint>
#include <system_error>

#include "octavo/build/compile_stage.h"
#include "octavo/build/pipeline.h"
#include "octavo/build/summary.h"
#include "octavo/compile/quantize_stage.h"
#include "octavo/quantize/precision.h"
#include "octavo/rewrite/passes.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace fs = std::filesystem;

BuildPlan MakePlan(const BuildConfig& config, const fs::path& out, bool require_data, PlanFor what) {
  Validate(config);
  const DeviceDescriptor& device = RequireDevice(config.device);
  const QuantizeStage quantizer(ContextOf(config, device));
  const ResolvedPrecision precision = quantizer.Precision();
  const Model model = ImportModel(config);

  BuildPlan plan;
  plan.what = what;
  plan.source = config.model;
  plan.out = out;
  plan.device = config.device;
  plan.keeps_quantization = quantizer.Keeps(model);
  if (what != PlanFor::kModel || config.data || quantizer.NeedsSamples(model)) {
    const std::size_t checks = what == PlanFor::kBuild ? kSyntheticChecks : 0;
    const DataPlan data = OpenSamples(model, config, require_data, checks);
    plan.samples = data.source->Describe();
    plan.synthetic = data.synthetic;
  }
  if (!plan.keeps_quantization) {
    plan.precision = quantizer.config().precision;
    plan.weights = precision.weight_text;
    plan.activations = precision.activation_text;
  }
  for (const InputSpec& input : InputSpecs(*model.graph)) {
    Type type;
    type.dtype = input.dtype;
    if (!input.any_rank) type.shape = input.dims;
    plan.inputs.emplace_back(input.name, ToString(type));
  }
  VisitNodes(*model.graph, [&plan](const Node&) { ++plan.nodes; });
  std::error_code error;
  plan.source_bytes = static_cast<double>(fs::file_size(config.model, error));
  for (const fs::path& file : ExternalFiles(model, config.model)) {
    plan.source_bytes += static_cast<double>(fs::file_size(file, error));
  }
  if (what == PlanFor::kStatistics) return plan;
  // Weights of at least two dimensions take the precision's width; everything else stays as it is.
  double wide = 0;
  for (const Value* value : model.graph->constants()) {
    if (!value->data || value->type.quant || value->data->dtype != DType::kF32) continue;
    if (value->data->dims.size() >= 2) wide += static_cast<double>(value->data->bytes.size());
  }
  plan.model_bytes = plan.source_bytes - (plan.keeps_quantization ? 0.0 : wide * (1 - precision.weight_bits / 32.0));
  return plan;
}

std::string ToText(const BuildPlan& plan) {
  std::string text = "would read   " + plan.source.string() + " (" + BytesText(plan.source_bytes) + "), " +
                     std::to_string(plan.nodes) + " nodes\n";
  for (const auto& [name, type] : plan.inputs) text += "  input      " + name + ": " + type + "\n";
  text += "samples      " + plan.samples.value_or("none: nothing depends on them") +
          (plan.synthetic ? " (synthetic: accuracy would NOT be validated)" : "") + "\n";
  text += "would make   " + (plan.keeps_quantization ? "a model that keeps its quantization" : plan.precision) +
          (plan.format == "onnx" ? " for " + plan.device : " as " + plan.format) + "\n";
  if (!plan.weights.empty()) text += "  weights    " + plan.weights + "\n";
  if (!plan.activations.empty()) text += "  activations " + plan.activations + "\n";
  text += "would write  " + plan.out.string();
  if (plan.what == PlanFor::kStatistics) return text + " (calibration statistics)\n";
  text += " (" + (plan.format == "onnx" ? "model" : plan.format);
  return text + (plan.model_bytes ? " about " + BytesText(*plan.model_bytes) : "") + ")\n";
}

std::string ToJson(const BuildPlan& plan) {
  JsonWriter json;
  json.BeginObject().Field("schema_version", 1).Field("dry_run", true);
  json.Key("source").BeginObject().Field("path", plan.source.string());
  json.Field("bytes", static_cast<std::uint64_t>(plan.source_bytes));
  json.Field("nodes", static_cast<std::uint64_t>(plan.nodes)).EndObject();
  json.Key("inputs").BeginArray();
  for (const auto& [name, type] : plan.inputs) {
    json.BeginObject().Field("name", name).Field("type", type).EndObject();
  }
  json.EndArray().Key("samples");
  plan.samples ? json.String(*plan.samples) : json.Null();
  json.Field("synthetic", plan.synthetic).Field("device", plan.device).Field("precision", plan.precision);
  json.Field("keeps_quantization", plan.keeps_quantization);
  json.Key("effective_types").BeginObject().Field("weights", plan.weights);
  json.Field("activations", plan.activations).EndObject();
  json.Key("output").BeginObject().Field("path", plan.out.string());
  json.Field("format", plan.what == PlanFor::kStatistics ? "statistics" : plan.format);
  if (plan.model_bytes) {
    json.Field("model_bytes_about", static_cast<std::uint64_t>(*plan.model_bytes));
  }
  return json.EndObject().EndObject().Take();
}

}  // namespace octavo
