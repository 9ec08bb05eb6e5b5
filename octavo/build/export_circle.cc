// `octavo export --to circle`: a Circle flatbuffer for ONE, onert and (with another identifier) LiteRT.
#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <set>
#include <string>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/build/circle_select.h"
#include "octavo/build/export.h"
#include "octavo/build/pipeline.h"
#include "octavo/compile/quantize_stage.h"
#include "octavo/emit/circle.h"
#include "octavo/emit/lower_circle.h"
#include "octavo/quantize/quantize.h"
#include "octavo/quantize/select.h"
#include "octavo/rewrite/fake_quantize.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/spell_float.h"
#include "octavo/rewrite/unroll_recurrent.h"

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

// The samples that noise is measured on are those that the ranges fit: others have about 6 dB more (docs/circle.md).
constexpr double kOptimism = 4;

// One row a profile; the types are those that its file has (docs/circle.md).
constexpr struct Profile {
  std::string_view name, precision, weights, activations;
} kProfiles[] = {
    {"float", "fp32", "f32", "f32"},
    {"u8-layer", "uint8", "u8 per tensor", "u8"},
    {"u8-channel", "uint8", "u8 per channel", "u8"},
    {"i8-channel", "int8", "s8 per channel, symmetric", "s8"},
    {"i16", "w8a16", "s8 per channel, symmetric", "s16"},
    {"mxint8", "mxint8", "mxint8, blocks of 32", "mxint8, blocks of 32"},
    {"mxfp4", "mxfp4", "mxfp4, blocks of 32", "mxfp4, blocks of 32"},
};

// The profile that was asked for; null for none. Errors: kUsage.
const Profile* ProfileAskedFor(const ExportRequest& request) {
  const std::string name = request.Option("profile");
  if (name.empty()) return nullptr;
  const auto* found = std::find_if(std::begin(kProfiles), std::end(kProfiles),
                                   [&name](const Profile& profile) { return profile.name == name; });
  if (found == std::end(kProfiles)) {
    std::vector<std::string> names;
    for (const Profile& profile : kProfiles) names.emplace_back(profile.name);
    ThrowUsage("unknown profile '" + name + "'", "--profile", DidYouMean(name, names));
  }
  if (request.quantize) {
    ThrowUsage("a profile names the precision already", "--precision, --profile", "give one of them");
  }
  return found;
}

QuantizationConfig ProfileConfig(const std::string& profile, QuantizationConfig config) {
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
      // s8 moved by 128, which is written as s8.
      if (a.storage == DType::kU8 && a.axis && a.scale.elements() > 1 && a.zero_point) {
        const std::vector<std::int64_t> zeros = a.zero_point->ToInts();
        s8 = s8 || std::all_of(zeros.begin(), zeros.end(), [](std::int64_t z) { return z == 128; });
      }
    }
  });
  if (!mx.empty()) return u8 || s8 || s16 ? "" : mx;
  if (s16) return other ? "" : "i16";
  if (s8) return "i8-channel";
  if (u8) return channel ? "u8-channel" : "u8-layer";
  return "";
}

// Makes values float, and so the operators around them. `prepared` is the float model that was quantized: activations
// that went into the ranges of codes come back from it, and the weights and biases of operators that are float now.
void ToFloat(Model& model, const Model& prepared, const std::unordered_set<const Value*>& floats) {
  Graph& graph = *model.graph;
  std::vector<Value*> values;
  for (Node* node : graph.nodes()) {
    for (Value* v : node->outputs()) {
      if (floats.contains(v)) values.push_back(v);
    }
  }
  for (Value* v : values) v->type.quant.reset();
  for (Node* node : graph.nodes()) {
    if (!node->Is(kQuantize, kIrDomain) && !node->Is(kRequantize, kIrDomain) && !node->Is(kDequantize, kIrDomain))
      continue;
    if (node->output()->type.quant) {
      node->SetOp(std::string(node->input(0)->type.quant ? kRequantize : kQuantize), std::string(kIrDomain));
    } else if (node->input(0)->type.quant) {
      node->SetOp(std::string(kDequantize), std::string(kIrDomain));
    } else {
      node->SetOp("Identity");
    }
  }
  for (Value* v : values) {
    const Node& maker = *v->producer();
    if (maker.Is(kDequantize, kIrDomain) || maker.Is("Identity") || maker.Is("Relu") || maker.Is("Clip")) continue;
    const Value* before = prepared.graph->FindValue(v->name());
    const Node* activation = before == nullptr ? nullptr : before->producer();
    if (activation == nullptr || (!activation->Is("Relu") && !activation->Is("Clip"))) continue;
    // It went into the range of the codes: it is an operator again.
    std::vector<Value*> inputs{v};
    bool whole = true;
    for (std::size_t i = 1; i < activation->inputs().size(); ++i) {
      const Value* bound = activation->input(i);
      whole = whole && (bound == nullptr || (bound->is_constant() && bound->data && !bound->type.quant));
      inputs.push_back(bound == nullptr || !whole ? nullptr : graph.AddConstant(v->name() + "_bound", *bound->data));
    }
    if (!whole) ThrowInternal("an activation with computed bounds went into the range of codes", v->name());
    Node* again =
        graph.AddNode(activation->op(), "", std::move(inputs), {{v->name() + "_bounded", v->type}}, maker.next());
    for (const char* name : {"min", "max"}) {
      if (activation->FindAttribute(name) != nullptr) again->SetAttribute(name, activation->FloatAttribute(name, 0));
    }
    if (v->is_graph_output()) graph.SwapNames(v, again->output());
    graph.ReplaceAllUses(v, again->output(), again);
  }
  for (Node* node : graph.nodes()) {
    if (!node->domain().empty() || node->output() == nullptr) continue;
    const Value* x = node->input(0);
    if (x == nullptr || x->is_constant() || (x->type.quant && node->output()->type.quant)) continue;
    for (std::size_t i = 1; i < node->inputs().size(); ++i) {
      const Value* w = node->input(i);
      if (w == nullptr || !w->is_constant() || !w->type.quant) continue;
      const Value* original = prepared.graph->FindValue(w->name());
      if (original == nullptr || !original->is_constant() || !original->data || original->type.quant ||
          original->data->dims != w->data->dims) {
        continue;
      }
      node->SetInput(i, graph.AddConstant(w->name() + "_f", *original->data));
    }
  }
  graph.EraseDead();
}

// More steps than these are refused with the operator's name: a file of tens of thousands of operators serves nobody.
constexpr std::int64_t kMostSteps = 256;

// LSTM, GRU and RNN become operators of their own: Circle's recurrent ones differ from consumer to consumer.
void UnrollForCircle(Model& model) {
  Graph& graph = *model.graph;
  for (Node* node : graph.nodes()) {
    if (!node->Is("LSTM") && !node->Is("GRU") && !node->Is("RNN")) continue;
    for (std::size_t i = 1; i < node->inputs().size() && i < 4; ++i) {
      const Value* w = node->input(i);
      if (w == nullptr || !w->is_constant() || !w->data || !w->type.quant) continue;
      if (w->type.quant->kind != QuantType::Kind::kAffine) continue;
      node->SetInput(i, graph.AddConstant(graph.UniqueName(w->name() + "_f"),
                                          internal::Dequantized(*w->data, w->type.quant->affine, w->name())));
    }
    for (Value* out : node->outputs()) {
      if (out == nullptr || out->dead() || !out->type.quant) continue;
      const Type codes = out->type;
      out->type.quant.reset();
      Node* rounded = graph.AddNode(std::string(kQuantize), std::string(kIrDomain), {out},
                                    {{graph.UniqueName(out->name() + "_q"), codes}}, node->next());
      if (out->is_graph_output()) graph.SwapNames(out, rounded->output());
      graph.ReplaceAllUses(out, rounded->output(), rounded);
    }
  }
  UnrollRecurrent(model, kMostSteps);
}

}  // namespace

void PlanProfile(const ExportRequest& request, BuildPlan& plan) {
  const Profile* profile = ProfileAskedFor(request);
  if (profile == nullptr || plan.keeps_quantization) return;
  plan.precision = profile->name;
  plan.weights = profile->weights;
  plan.activations = profile->activations;
  if (profile->precision.starts_with("mx")) plan.model_bytes = plan.source_bytes;  // floats on the format's grid
}

QuantizationConfig ProfilePrecision(const ExportRequest& request) {
  QuantizationConfig config = EffectiveQuantization(request.config);
  const Profile* profile = ProfileAskedFor(request);
  config.precision = profile == nullptr ? "fp32" : std::string(profile->precision);
  return config;
}

ExportReport ExportCircle(const ExportRequest& request) {
  const std::string profile = request.Option("profile");
  ProfileAskedFor(request);
  Model model = PrepareExport(request);
  UnrollForCircle(model);
  std::string effective = profile;
  CircleSelection chosen;
  std::set<std::string> chosen_names;
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
    QuantizationConfig config = ProfileConfig(profile, EffectiveQuantization(request.config));
    DataPlan data;
    if (config.load_path.empty() || request.config.data) {
      data = OpenSamples(model, request.config, request.require_data, 0);
      if (data.synthetic) {
        LogWarning(
            "calibrating on synthetic samples: ranges are synthetic and accuracy is NOT validated; give --data D");
      }
    }
    const Model reference = Clone(model);
    Model prepared = Clone(model);
    // No consumer has a graph of 8 and 16 bits: what costs too much in 8 bits is float, chosen below.
    const bool choose = config.keep_float_auto && profile != "i16" && data.source != nullptr;
    if (config.keep_float_auto && profile != "i16" && !choose) {
      LogWarning(
          "no tensor stays float for its noise: what costs the outputs too much cannot be measured on loaded "
          "statistics; give --data D too");
    }
    config.keep_float_auto = false;
    CompileContext context;
    context.device = &device;
    context.quantization = config;
    QuantizeStage(context).Quantize(model, {data.source.get(), data.synthetic, request.threads, nullptr});
    if (choose) {
      PrepareFloat(prepared, config, device);
      const auto to_float = [&](Model& m, const std::unordered_set<const Value*>& values) {
        ToFloat(m, prepared, values);
      };
      const auto select = [&](double target) {
        return SelectCircleFloats(model, reference, *data.source, static_cast<std::size_t>(config.samples), target,
                                  request.threads, to_float);
      };
      chosen = select(SelectOptions().target / kOptimism);
      // Where that leaves next to nothing in integers, the plain mark has to do.
      if (4 * chosen.float_tensors > 3 * chosen.tensors) chosen = select(SelectOptions().target);
      for (const Value* v : chosen.floats) chosen_names.insert(v->name());
      to_float(model, chosen.floats);
    }
  } else {
    effective = "float";
  }
  // An MX precision is this format's own where Octavo chose it; a model that says "even" is changed, and hears of it.
  if (const std::int64_t even = RoundMxAway(model); even > 0 && !request.quantize) {
    LogWarning(std::to_string(even) +
               " MX activations round ties to even; Circle's MX tensors round them away from zero");
  }
  PropagateParams(model);
  const std::vector<std::string> without = IsQuantized(model) ? ValuesWithoutParams(model) : std::vector<std::string>{};
  SpellFloat(model, [](const Node& node) { return !LowersToCircle(node.op()); });
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
  if (chosen.tensors > 0) {
    const auto db = [](double v) {
      char text[32];
      std::snprintf(text, sizeof text, "%.1f dB", v);
      return std::string(text);
    };
    report.facts.emplace_back("values kept in float for their noise", std::to_string(chosen.floats.size()));
    report.facts.emplace_back("SQNR on calibration samples", db(chosen.after_db));
    report.facts.emplace_back("SQNR with everything in 8 bits", db(chosen.before_db));
    for (const std::string& name : chosen_names) report.details.emplace_back("float_for_noise", name);
  }
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
