// `octavo export --to circle`: a Circle flatbuffer for ONE, onert and (with another identifier) LiteRT.
#include <algorithm>
#include <array>
#include <iterator>
#include <string>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/build/export.h"
#include "octavo/build/pipeline.h"
#include "octavo/emit/circle.h"
#include "octavo/quantize/quantize.h"
#include "octavo/rewrite/fake_quantize.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

using S = QuantSupport;

// What the integer kernels of Circle's consumers take (docs/circle.md). Weights are per channel where they have it.
constexpr OpSupport kChannelOps[] = {
    {"Conv", "", S::kInteger, "", true},
    {"ConvTranspose", "", S::kInteger, "", true},
    {"Gemm", "", S::kInteger, "", true},
    {"MatMul", "", S::kInteger, "", true},
    {"Add", "", S::kInteger, ""},
    {"Sub", "", S::kInteger, ""},
    {"Mul", "", S::kInteger, ""},
    {"Relu", "", S::kInteger, ""},
    {"Clip", "", S::kInteger, ""},
    {"LeakyRelu", "", S::kInteger, ""},
    {"Sigmoid", "", S::kInteger, ""},
    {"Tanh", "", S::kInteger, ""},
    {"Softmax", "", S::kInteger, ""},
    {"AveragePool", "", S::kInteger, ""},
    {"GlobalAveragePool", "", S::kInteger, ""},
    {"ReduceMean", "", S::kInteger, ""},
    {"Concat", "", S::kInteger, ""},
    {"Resize", "", S::kInteger, ""},
    {"MaxPool", "", S::kPassThrough, ""},
    {"GlobalMaxPool", "", S::kPassThrough, ""},
    {"Reshape", "", S::kPassThrough, ""},
    {"Flatten", "", S::kPassThrough, ""},
    {"Squeeze", "", S::kPassThrough, ""},
    {"Unsqueeze", "", S::kPassThrough, ""},
    {"Transpose", "", S::kPassThrough, ""},
    {"Identity", "", S::kPassThrough, ""},
    {"Slice", "", S::kPassThrough, ""},
    {"Split", "", S::kPassThrough, ""},
    {"Gather", "", S::kPassThrough, ""},
    {"Pad", "", S::kPassThrough, ""},
};

// No consumer computes a uint8 FULLY_CONNECTED right whose weights have a scale a channel.
constexpr auto kUnsignedOps = [] {
  std::array<OpSupport, std::size(kChannelOps)> ops{};
  for (std::size_t i = 0; i < ops.size(); ++i) {
    ops[i] = kChannelOps[i];
    if (ops[i].op == "Gemm" || ops[i].op == "MatMul") ops[i].per_channel = false;
  }
  return ops;
}();

DeviceDescriptor Descriptor(bool int8) {
  DeviceDescriptor d{};
  d.name = "circle";
  d.ep = "";
  // Codes of activations are chosen as u8 (or u16) and written as s8 (or s16) where the weights are signed: the same
  // numbers, codes and zero points 128 lower.
  d.activation8 = DType::kU8;
  d.weight8_uint8 = DType::kU8;
  d.weight8_int8 = DType::kS8;
  d.per_channel_int8 = true;
  if (int8)
    d.ops = kChannelOps;
  else
    d.ops = kUnsignedOps;
  d.whole_graph = true;
  d.static_shapes = true;
  return d;
}

constexpr std::string_view kProfiles[] = {"float", "u8-layer", "u8-channel", "i8-channel", "i16", "mxint8", "mxfp4"};

QuantizationConfig ProfileConfig(const std::string& profile, QuantizationConfig config) {
  // What 8 bits do not hold gets 16, and is float in the end (WideToFloat).
  config.keep_float_auto = profile == "u8-layer" || profile == "u8-channel" || profile == "i8-channel";
  if (profile == "u8-layer" || profile == "u8-channel") {
    config.precision = "uint8";
    config.per_channel = profile == "u8-channel";
  } else if (profile == "i8-channel") {
    config.precision = "int8";
    config.per_channel = true;
  } else if (profile == "i16") {
    config.precision = "w8a16";
    config.weight_type = DType::kS8;
    config.per_channel = true;
    config.symmetric = true;
  }
  return config;
}

// The profile that a quantized model follows, by its activations and weights: "" when it follows none.
std::string ProfileOf(const Model& model) {
  bool u8 = false, s8 = false, s16 = false, channel = false, other = false;
  std::string mx;
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& node) {
    for (const Value* v : node.outputs()) {
      if (v == nullptr || !v->type.quant) continue;
      if (v->type.quant->kind == QuantType::Kind::kMx) mx = v->type.quant->mx.format;
      if (v->type.quant->kind != QuantType::Kind::kAffine) continue;
      const DType s = v->type.quant->affine.storage;
      u8 = u8 || s == DType::kU8;
      s8 = s8 || s == DType::kS8;
      s16 = s16 || s == DType::kS16 || s == DType::kU16;
    }
    for (const Value* v : node.inputs()) {
      if (v == nullptr || !v->is_constant() || !v->type.quant || v->type.quant->kind != QuantType::Kind::kAffine)
        continue;
      const Affine& a = v->type.quant->affine;
      if (BitWidth(a.storage) == 8 && a.axis && a.scale.elements() > 1) channel = true;
      if (a.storage == DType::kS8) s8 = true;
    }
  });
  if (!mx.empty()) return u8 || s8 || s16 ? "" : mx;
  if (s16) return other ? "" : "i16";
  if (s8) return "i8-channel";
  if (u8) return channel ? "u8-channel" : "u8-layer";
  return "";
}

// Shapes of graph outputs, which SimplifyFloat leaves alone: Circle's are static, and inferred.
void FoldStaticShapes(Model& model) {
  Graph& graph = *model.graph;
  bool folded = false;
  for (Node* node : graph.nodes()) {
    if (!node->Is("Shape") || node->input(0) == nullptr || node->output()->is_graph_output() ||
        !node->attributes().empty())
      continue;
    if (FoldKnownShape(*node)) folded = true;
  }
  if (folded) SimplifyFloat(model);
}

bool IsWide(const Value* v) {
  return v != nullptr && v->type.quant && v->type.quant->kind == QuantType::Kind::kAffine &&
         BitWidth(v->type.quant->affine.storage) == 16;
}

TensorRef NumbersOf(const Value& constant) {
  const Affine& affine = constant.type.quant->affine;
  const std::vector<std::int64_t> codes = constant.data->ToInts();
  const std::vector<float> scales = affine.scale.ToFloats();
  std::vector<std::int64_t> zeros(scales.size(), 0);
  if (affine.zero_point) zeros = affine.zero_point->ToInts();
  std::size_t inner = 1;
  if (affine.axis) {
    for (std::size_t i = static_cast<std::size_t>(*affine.axis) + 1; i < constant.data->dims.size(); ++i)
      inner *= static_cast<std::size_t>(constant.data->dims[i]);
  }
  std::vector<float> numbers(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::size_t c = scales.size() == 1 ? 0 : i / inner % scales.size();
    numbers[i] = static_cast<float>(codes[i] - zeros[c]) * scales[c];
  }
  return TensorRef::FromFloats(constant.data->dims, numbers);
}

// No consumer has a graph of 8 and 16 bits. Values that 8 bits do not hold, which the quantizer gave 16, become float
// instead, and the operators around them; `clips`: activations may have gone into the ranges of codes, and the float
// values keep those bounds. Returns how many values became float.
std::size_t WideToFloat(Model& model, bool clips) {
  Graph& graph = *model.graph;
  std::vector<std::pair<Value*, Affine>> values;
  for (Node* node : graph.nodes()) {
    for (Value* v : node->outputs()) {
      if (IsWide(v)) values.emplace_back(v, v->type.quant->affine);
    }
  }
  std::vector<Value*> constants;
  for (Value* v : graph.constants()) {
    if (IsWide(v)) constants.push_back(v);
  }
  for (Value* v : constants) {
    graph.ReplaceAllUses(v, graph.AddConstant(v->name(), NumbersOf(*v)));
    graph.Erase(v);
  }
  for (auto& [v, affine] : values) v->type.quant.reset();
  for (Node* node : graph.nodes()) {
    if (!node->Is(kQuantize, kIrDomain) && !node->Is(kRequantize, kIrDomain)) continue;
    if (node->output()->type.quant) {
      node->SetOp(std::string(node->input(0)->type.quant ? kRequantize : kQuantize), std::string(kIrDomain));
    } else if (node->input(0)->type.quant) {
      node->SetOp(std::string(kDequantize), std::string(kIrDomain));
    } else {
      node->SetOp("Identity");
    }
  }
  for (const auto& [v, affine] : values) {
    const Node& maker = *v->producer();
    if (!clips || maker.Is(kDequantize, kIrDomain) || maker.Is("Identity") || maker.Is("Relu") || maker.Is("Clip") ||
        !affine.per_tensor()) {
      continue;
    }
    const float scale = affine.scale.ToFloats()[0];
    const std::int64_t zero = affine.zero_point ? affine.zero_point->ToInts()[0] : 0;
    const std::int64_t low = affine.storage == DType::kU16 ? 0 : -32768;
    Value* least = graph.AddConstant(v->name() + "_least", TensorRef::Scalar(static_cast<float>(low - zero) * scale));
    Value* most =
        graph.AddConstant(v->name() + "_most", TensorRef::Scalar(static_cast<float>(low + 65535 - zero) * scale));
    Node* clip = graph.AddNode("Clip", "", {v, least, most}, {{v->name() + "_bounded", v->type}}, maker.next());
    if (v->is_graph_output()) graph.SwapNames(v, clip->output());
    graph.ReplaceAllUses(v, clip->output(), clip);
  }
  return values.size();
}

}  // namespace

ExportReport ExportCircle(const ExportRequest& request) {
  const std::string profile = request.Option("profile");
  if (!profile.empty() && std::find(std::begin(kProfiles), std::end(kProfiles), profile) == std::end(kProfiles)) {
    const std::vector<std::string> names(std::begin(kProfiles), std::end(kProfiles));
    const std::string how = DidYouMean(profile, names);
    ThrowUsage("unknown profile '" + profile + "'", "--profile",
               how.empty() ? "profiles are float, u8-layer, u8-channel, i8-channel, i16, mxint8, mxfp4" : how);
  }
  if (!profile.empty() && request.quantize) {
    ThrowUsage("a profile names the precision already", "--precision, --profile", "give one of them");
  }
  Model model = PrepareExport(request);
  std::string effective = profile;
  std::size_t wide = 0;
  FoldStaticShapes(model);
  if (IsQuantized(model)) {
    const std::string found = ProfileOf(model);
    if (!profile.empty() && profile != found) {
      ThrowUsage("the model is quantized already" + (found.empty() ? std::string() : ", as " + found),
                 "--profile " + profile, "leave --profile out, or start from the float model");
    }
    effective = found.empty() ? "as in the input" : found;
  } else if (profile == "mxint8" || profile == "mxfp4") {
    AssignMx(model, profile);
    DecomposeFakeQuantize(model);
    FoldQuantOps(model);
  } else if (!profile.empty() && profile != "float") {
    const DeviceDescriptor device = Descriptor(profile == "i8-channel" || profile == "i16");
    const QuantizationConfig config = ProfileConfig(profile, EffectiveQuantization(request.config));
    DataPlan data;
    if (config.load_path.empty()) {
      data = OpenSamples(model, request.config, request.require_data, 0);
      if (data.synthetic) {
        LogWarning(
            "calibrating on synthetic samples: ranges are synthetic and accuracy is NOT validated; give --data D");
      }
    }
    bool clips = false;
    VisitNodes(static_cast<const Graph&>(*model.graph),
               [&](const Node& node) { clips = clips || node.Is("Relu") || node.Is("Clip"); });
    Quantize(model, config, device, data.source.get(), request.threads);
    if (config.keep_float_auto) wide = WideToFloat(model, clips);
  } else {
    effective = "float";
  }
  PropagateParams(model);
  const std::vector<std::string> without = IsQuantized(model) ? ValuesWithoutParams(model) : std::vector<std::string>{};
  const CircleReport lowered = LowerToCircle(model);
  WriteCircle(model, request.out);
  ExportReport report;
  report.files.push_back(request.out);
  std::int64_t total = 0;
  for (const auto& [op, n] : lowered.operators) total += n;
  const auto count = [&](const char* op) {
    const auto it = lowered.operators.find(op);
    return std::to_string(it == lowered.operators.end() ? 0 : it->second);
  };
  report.facts.emplace_back("profile", effective);
  report.facts.emplace_back("operators", std::to_string(total));
  report.facts.emplace_back("integer", std::to_string(lowered.integer_operators));
  report.facts.emplace_back("float", std::to_string(lowered.float_operators));
  report.facts.emplace_back("transposes", count("TRANSPOSE"));
  report.facts.emplace_back("quantize", count("QUANTIZE"));
  report.facts.emplace_back("dequantize", count("DEQUANTIZE"));
  report.facts.emplace_back("kept in float", std::to_string(lowered.kept_float.size()));
  if (wide > 0) report.facts.emplace_back("values that 8 bits do not hold", std::to_string(wide));
  if (!without.empty()) report.facts.emplace_back("values without parameters", std::to_string(without.size()));
  for (const std::string& name : without) report.details.emplace_back("without_parameters", name);
  for (const auto& [op, n] : lowered.operators) report.details.emplace_back("operator", op + " " + std::to_string(n));
  for (const std::string& line : lowered.kept_float) report.details.emplace_back("kept_float", line);
  constexpr std::size_t kShown = 8;
  for (std::size_t i = 0; i < std::min(kShown, lowered.kept_float.size()); ++i)
    LogInfo("kept in float: " + lowered.kept_float[i]);
  if (lowered.kept_float.size() > kShown) {
    LogInfo("kept in float: and " + std::to_string(lowered.kept_float.size() - kShown) + " more (--json lists them)");
  }
  return report;
}

}  // namespace octavo
