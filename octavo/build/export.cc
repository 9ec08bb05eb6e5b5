#include "octavo/build/export.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <system_error>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/build/compile_stage.h"
#include "octavo/build/pipeline.h"
#include "octavo/compile/quantize_stage.h"
#include "octavo/import/onnx.h"
#include "octavo/rewrite/fake_quantize.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

// One row a target.
constexpr ExportTarget kTargets[] = {
    {"stablehlo", "StableHLO text (MLIR) for IREE and other consumers", ExportStablehlo, StablehloOperatorRows},
    {"circle", "a Circle flatbuffer for ONE, onert and LiteRT", ExportCircle},
    {"gguf", "the initializers as GGUF tensors, big weights as blocks of the precision", ExportGguf},
    {"onnx", "plain ONNX, quantized values as Q/DQ", ExportOnnx},
};

// One row an option.
constexpr ExportOption kOptions[] = {
    {"constants", "stablehlo", "dequantize|codes|quant|packed|parameters: how quantized weights are written (packed)"},
    {"parameters", "stablehlo", "M.gguf: with --constants parameters, weights are read out of this file at run time"},
    {"profile", "circle",
     "float|u8-layer|u8-channel|i8-channel|i16|mxint8|mxfp4: how a float model is quantized (float)"},
    {"form", "onnx",
     "qdq|qlinear|mx: how quantized operators are written; mx: weights with the MX types of operator set 24 (qdq)"},
};

bool Takes(const ExportOption& option, std::string_view target) {
  std::string_view list = option.targets;
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(','), list.size());
    if (list.substr(0, end) == target) return true;
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return false;
}

const ExportTarget& FindTarget(const std::string& to) {
  const ExportTarget* target = nullptr;
  std::vector<std::string> names;
  std::string known;
  for (const ExportTarget& t : kTargets) {
    if (t.name == to) target = &t;
    names.emplace_back(t.name);
    known += (known.empty() ? "" : ", ") + std::string(t.name);
  }
  if (target == nullptr) {
    const std::string how = DidYouMean(to, names);
    ThrowUsage("unknown format '" + to + "'", "--to", how.empty() ? "formats are " + known : how);
  }
  return *target;
}

}  // namespace

std::string ExportRequest::Option(std::string_view name, std::string_view fallback) const {
  const auto found = options.find(name);
  return found == options.end() ? std::string(fallback) : found->second;
}

std::span<const ExportTarget> ExportTargets() { return kTargets; }
std::span<const ExportOption> ExportOptions() { return kOptions; }

std::string ListOperators(const std::string& to) {
  const ExportTarget& target = FindTarget(to);
  if (target.operators == nullptr) ThrowUsage("there is no list of operators for --to " + to, "--list-operators");
  return target.operators();
}

void CheckExport(const ExportRequest& request) {
  FindTarget(request.to);
  for (const auto& [name, value] : request.options) {
    for (const ExportOption& option : kOptions) {
      if (option.name == name && !Takes(option, request.to)) {
        ThrowUsage("--" + name + " does not go with --to " + request.to, "octavo export",
                   "it is for --to " + std::string(option.targets));
      }
    }
  }
}

ExportReport Export(const ExportRequest& request) {
  CheckExport(request);
  const ExportTarget& target = FindTarget(request.to);
  const auto start = std::chrono::steady_clock::now();
  ExportReport report = target.run(request);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

// Circle has no dynamic shapes: what is inferred of an output is its shape, and a Shape of it is a constant.
static bool StaticShapes(const ExportRequest& request) { return request.to == "circle"; }

// Holds MX fake quantization as operators.
static bool HasMxFakeQuantize(const Model& model) {
  bool found = false;
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& node) {
    found = found || node.Is("MXFakeQuantize", kOctavoDomain) || node.Is("QuantizeMx", kOctavoDomain);
  });
  return found;
}

namespace {

bool HoldsLoops(const Model& model) {
  bool any = false;
  VisitNodes(static_cast<const Graph&>(*model.graph),
             [&](const Node& node) { any = any || node.Is("Loop") || node.Is("Scan"); });
  return any;
}

}  // namespace

Model PrepareExport(const ExportRequest& request) {
  const BuildConfig& config = request.config;
  if (!request.quantize) {
    std::optional<WeightReplacement> weights;
    Model model = ReadSource(config, weights);
    // While Q/DQ pairs are nodes still: then the runtime can infer types, and shapes fold in quantized models too.
    // A quantized model, written as ONNX again, computes the same numbers.
    // So does an MX fake-quantized one as a Circle file, which reads back as those numbers: a difference in the last
    // bit would grow to a step of the MX quantization behind it.
    const bool exact =
        (request.to == "onnx" && IsQuantized(model)) || (request.to == "circle" && HasMxFakeQuantize(model));
    const RuleClass most = exact ? RuleClass::kExact : RuleClass::kImproves;
    SimplifyFloat(model, most);
    if (request.to == "circle") UnrollAndSimplify(model, most);  // it has no loops
    // The shape of an output may follow from that of another one.
    while (StaticShapes(request) && FoldOutputShapes(model) > 0) SimplifyFloat(model, most);
    FoldQdq(model);
    if (weights) weights->Put(model);
    return model;
  }
  Model model = ImportModel(config);
  if (request.to == "circle" && HoldsLoops(model)) {  // Circle has none
    SimplifyFloat(model);
    UnrollAndSimplify(model);
  }
  Validate(config);
  DeviceDescriptor device = RequireDevice(config.device);
  device.static_shapes = device.static_shapes || StaticShapes(request);
  const QuantizeStage quantizer(ContextOf(config, device));
  DataPlan data;
  if (quantizer.NeedsSamples(model)) {
    data = OpenSamples(model, config, request.require_data, 0);
    if (data.synthetic) {
      LogWarning("calibrating on synthetic samples: ranges are synthetic and accuracy is NOT validated; give --data D");
    }
  } else if (config.data && request.to != "circle") {
    // Not needed, but of use to some precisions. (fp16 puts weights behind a Cast then, which Circle has no form for.)
    data = OpenSamples(model, config, request.require_data, 0);
  }
  quantizer.Quantize(model, {data.source.get(), data.synthetic, request.threads, nullptr});
  return model;
}

std::string Summary(const ExportReport& report) {
  std::string text;
  for (const std::filesystem::path& file : report.files) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(file, error);
    text += "wrote " + file.string() + (error ? "" : " (" + std::to_string(bytes) + " bytes)") + "\n";
  }
  for (const auto& [name, value] : report.facts) text += name + ": " + value + "\n";
  return text;
}

std::string ToJson(const ExportReport& report) {
  nlohmann::ordered_json json;
  json["schema_version"] = 1;
  for (const std::filesystem::path& file : report.files) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(file, error);
    json["files"].push_back({{"path", file.string()}, {"bytes", error ? 0 : bytes}});
  }
  for (const auto& [name, value] : report.facts) json["facts"][name] = value;
  for (const auto& [name, value] : report.details) json["details"][name].push_back(value);
  json["seconds"] = report.seconds;
  return json.dump(2) + "\n";
}

}  // namespace octavo
