// `octavo export --to gguf`: the initializers of a model as tensors of a GGUF, big weights as blocks of the precision.
#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/spill.h"
#include "octavo/base/thread_pool.h"
#include "octavo/build/export.h"
#include "octavo/build/gguf_quantize.h"
#include "octavo/build/weights.h"
#include "octavo/emit/gguf.h"
#include "octavo/import/onnx.h"
#include "octavo/numerics/ggml.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

// Weights are floating-point numbers; the integers of a graph are its shapes and indices.
const GgufType* PlainType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return FindGgufType("f32");
    case DType::kF16:
      return FindGgufType("f16");
    case DType::kBF16:
      return FindGgufType("bf16");
    case DType::kF64:
      return FindGgufType("f64");
    default:
      return nullptr;
  }
}

// One initializer on its way out.
struct Weight {
  const Value* value = nullptr;
  RowsOfWeight rows;
  bool transposed = false;  // [K, N] becomes N rows of K
  GgufTensorSpec spec;
  GgufTypeChoice choice;
};

std::vector<float> Rows(const Weight& weight) {
  std::vector<float> storage;
  const std::span<const float> x = FloatView(*weight.value->data, storage);
  if (!weight.transposed) return storage.empty() ? std::vector<float>(x.begin(), x.end()) : std::move(storage);
  const Dims& dims = weight.value->data->dims;
  const auto k = static_cast<std::size_t>(dims[0]), n = static_cast<std::size_t>(dims[1]);
  std::vector<float> out(x.size());
  constexpr std::size_t kTile = 32;
  for (std::size_t r0 = 0; r0 < k; r0 += kTile) {
    for (std::size_t c0 = 0; c0 < n; c0 += kTile) {
      for (std::size_t r = r0; r < std::min(k, r0 + kTile); ++r) {
        for (std::size_t c = c0; c < std::min(n, c0 + kTile); ++c) out[c * k + r] = x[r * n + c];
      }
    }
  }
  return out;
}

}  // namespace

ExportReport ExportGguf(const ExportRequest& request) {
  if (!request.config.weights.empty()) {
    ThrowUsage("the weights that would be written are in a file already", "--weights",
               "use octavo quantize W.gguf -o Q.gguf");
  }
  Model model = ReadOnnx(request.config.model);
  if (IsQuantized(model)) {
    ThrowUnsupported("the model is quantized already: its codes are no GGML blocks", request.config.model.string(),
                     "export the float model");
  }
  Graph& graph = *model.graph;
  const QuantizationConfig& config = EffectiveQuantization(request.config);
  std::vector<Weight> weights;
  std::vector<std::string> names;
  ExportReport report;
  std::size_t left_out = 0;
  for (Value* value : graph.constants()) {
    if (!value->data) continue;
    const Dims& dims = value->data->dims;
    const GgufType* type = PlainType(value->data->dtype);
    if (type == nullptr || dims.size() > kGgufMaxDims) {
      ++left_out;
      report.details.emplace_back("left_out", value->name() + ": " + ToString(value->type));
      continue;
    }
    Weight weight;
    weight.value = value;
    weight.spec.name = value->name();
    weight.spec.type = type;
    weight.rows = WeightRows(*value);
    weight.transposed = dims.size() == 2 && weight.rows.axis == std::optional<std::int64_t>(0);
    for (auto it = dims.rbegin(); it != dims.rend(); ++it) {
      weight.spec.ne.push_back(static_cast<std::uint64_t>(*it));
    }
    if (weight.transposed) std::reverse(weight.spec.ne.begin(), weight.spec.ne.end());
    if (weight.spec.ne.empty()) weight.spec.ne.push_back(1);
    names.push_back(weight.spec.name);
    weights.push_back(std::move(weight));
  }
  if (weights.empty())
    ThrowBadInput("the model has no initializer that a GGUF can hold", request.config.model.string());

  std::vector<GgufField> fields = {GgufField::String("general.architecture", "onnx")};
  if (!graph.name.empty()) fields.push_back(GgufField::String("general.name", graph.name));
  if (request.quantize || !config.overrides.empty() || !config.exclude.empty()) {
    // Without a precision everything keeps its type but what an override names.
    QuantizationConfig types = config;
    if (!request.quantize) types.precision = "fp32";
    const GgufTypeChooser chooser(types, names);
    bool quantized = false;
    for (Weight& weight : weights) {
      std::string keep;
      if (!request.quantize) {
        keep = "no precision is asked for";
      } else if (weight.rows.conflict) {
        keep = "its users sum over different dimensions";
      } else if (!weight.rows.axis) {
        keep = "no operator multiplies with it or gathers its rows";
      } else if (!weight.transposed && *weight.rows.axis + 1 != static_cast<std::int64_t>(weight.spec.ne.size())) {
        keep = "its rows do not run along the dimension that is summed over";
      }
      weight.choice = chooser.Choose(weight.spec.name, *weight.spec.type, weight.spec.ne, keep);
      weight.spec.type = weight.choice.to;
      quantized = quantized || weight.choice.to->quantized();
      if (weight.choice.fallback) LogInfo("  fallback: " + weight.spec.name + ": " + weight.choice.note);
      if (!weight.choice.note.empty()) {
        report.details.emplace_back(weight.choice.fallback ? "fallback" : "kept",
                                    weight.spec.name + ": " + weight.choice.note);
      }
    }
    const GgufType& type = request.quantize ? chooser.precision() : *FindGgufType("f32");
    for (GgufField& field : GgufTypeFields(type, quantized)) fields.push_back(std::move(field));
  }
  std::vector<GgufTensorSpec> specs;
  for (const Weight& weight : weights) specs.push_back(weight.spec);
  const int threads = request.threads > 0 ? request.threads : HardwareThreads();
  GgufWriter writer(request.out, fields, specs);
  std::map<std::string, std::pair<std::size_t, std::uint64_t>> totals;
  std::size_t fallbacks = 0, transposed = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    CheckInterrupt();
    const Weight& weight = weights[i];
    const TensorRef& data = *weight.value->data;
    const std::uint64_t bytes = writer.layout().bytes[i];
    auto& [count, total] = totals[std::string(weight.spec.type->name)];
    ++count;
    total += bytes;
    fallbacks += weight.choice.fallback ? 1 : 0;
    transposed += weight.transposed ? 1 : 0;
    if (bytes == 0) continue;
    if (weight.spec.type == PlainType(data.dtype) && !weight.transposed) {
      writer.Write(data.bytes);
      if (data.file) data.file->DropPages(data.bytes);
      continue;
    }
    const std::vector<float> x = Rows(weight);
    SpillBuffer out(static_cast<std::size_t>(bytes));
    if (weight.spec.type->name == "f32") {
      std::memcpy(out.data(), x.data(), out.size());
    } else {
      EncodeGgmlFinite(*FindGgmlFormat(weight.spec.type->id), x, GgufRowElements(weight.spec.ne), {}, out.bytes(),
                       threads, "initializer " + weight.spec.name);
    }
    writer.Write(out.bytes());
    if (data.file) data.file->DropPages(data.bytes);
  }
  writer.Commit();
  report.files.push_back(request.out);
  report.facts.emplace_back("tensors", std::to_string(weights.size()));
  report.facts.emplace_back("transposed", std::to_string(transposed));
  for (const auto& [type, total] : totals) {
    report.facts.emplace_back(type,
                              std::to_string(total.first) + " tensors, " + std::to_string(total.second) + " bytes");
  }
  if (fallbacks > 0) report.facts.emplace_back("fallbacks", std::to_string(fallbacks));
  if (left_out > 0) report.facts.emplace_back("left out", std::to_string(left_out));
  return report;
}

}  // namespace octavo
