// Before:  %y = MatMul %x, %w                 After:  %xh : f16 = Cast %x
//          %p = Softmax %y                            %yh : f16 = MatMul %xh, %wh
//                                                     %y  : f32 = Cast %yh
//                                                     %p  = Softmax %y            (kept in f32)
// bf16 is a storage type only: most operators take no bf16 before operator set 22 and the CPU has no kernels for it.
// Before:  %y = MatMul %x, %w                 After:  %wf : f32 = Cast %w : bf16
//                                                     %y = MatMul %x, %wf
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/emit/onnx.h"
#include "octavo/numerics/half.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/rule.h"

namespace octavo {
namespace {

struct KeptOp {
  std::string_view op, reason;
};

constexpr std::string_view kNoForm = "the operator has no 16-bit float form";
constexpr std::string_view kRandom = "its random numbers would differ";
constexpr std::string_view kQuantized = "a quantization operator keeps its float type";
constexpr std::string_view kRange = "its range needs more exponent than 16-bit floats have";
constexpr std::string_view kSums = "it sums many terms or divides by small ones";

constexpr std::string_view kSmall = "its weights are few: 16 bits would save little and cost accuracy";

constexpr std::string_view kChain =
    "it stands in a chain of elementwise operators and means: rounding between them adds up over a deep network";

constexpr std::string_view kLosesWeights = "its weights leave the range of f16 (6e-8 .. 65504)";

constexpr std::string_view kScatters = "ONNX Runtime's CPU kernel adds up no 16-bit floats here";
constexpr std::string_view kMovesBatch = "ONNX Runtime crashes on it in 16 bits before a product with constant weights";

constexpr std::string_view kSingle =
    "it has a single number that 16 bits would round: every element would be wrong by as much";

constexpr std::string_view kSubgraphs = "its subgraphs compute in f32";

constexpr std::string_view kNoLargeWeight = "it has no weights that are worth storing in 16 bits";

// Depthwise convolutions and layers of up to 4,096 weights (8 KiB saved at best). Few terms make a sum, so the rounding
// of weights and inputs does not average out: keeping them in f32 lifts the two OCR networks from 55.5 dB to 58 and 65
// dB.
constexpr std::uint64_t kFewWeights = 4096;
bool SmallWeights(const Node& node) {
  if (node.op() != "Conv" && node.op() != "ConvTranspose" && node.op() != "Gemm") return false;
  const Value* weight = node.input(1);
  if (weight == nullptr || !weight->is_constant() || !weight->data.has_value()) return false;
  return node.IntAttribute("group", 1) > 1 || weight->data->elements() <= kFewWeights;
}

// The layers above, and the smallest of the others as long as these together have at most this share of the weights:
// what they would save is a hundredth of the file, and networks for images begin with them. (Chosen on the text
// detection network, of which two such layers made 4.5 dB.)
constexpr double kSmallShare = 0.02;
std::unordered_set<const Node*> SmallLayers(const Graph& graph) {
  std::unordered_set<const Node*> small;
  std::vector<std::pair<std::uint64_t, const Node*>> others;
  double all = 0, more = 0;
  for (const Node* node = graph.first(); node != nullptr; node = node->next()) {
    const Value* weight = node->inputs().size() > 1 ? node->input(1) : nullptr;
    if (weight == nullptr || !weight->is_constant() || !weight->data || weight->data->dims.size() < 2) continue;
    const std::uint64_t elements = weight->data->elements();
    all += static_cast<double>(elements);
    if (SmallWeights(*node)) {
      small.insert(node);
    } else if (node->op() == "Conv" || node->op() == "ConvTranspose" || node->op() == "Gemm") {
      others.emplace_back(elements, node);
    }
  }
  std::stable_sort(others.begin(), others.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [elements, node] : others) {
    more += static_cast<double>(elements);
    if (more > kSmallShare * all) break;
    small.insert(node);
  }
  return small;
}

// Whether f16 loses the numbers of a constant, or the weights of a layer: beyond 65504 they are clamped, below 6e-8
// they are zero, and up to 6e-5 they have fewer digits. Lost is what leaves less than 70 dB of them: f16 leaves 73 dB
// of what is in its range.
bool LosesNumbers(const Value& constant) {
  constexpr double kLost = 1e-7;
  std::vector<float> converted;
  double signal = 0, noise = 0;
  for (const float x : FloatView(*constant.data, converted)) {
    constexpr float kLargest = 65504, kNormal = 6.103515625e-5f, kStep = 5.9604644775390625e-8f;
    const float size = std::fabs(x);
    if (!(size <= std::numeric_limits<float>::max())) continue;
    const double value = size;
    signal += value * value;
    // Rounding of what is in range is much less than kLost.
    const double error = size > kLargest  ? value - kLargest
                         : size < kNormal ? value - std::rint(size / kStep) * kStep
                                          : 0;
    noise += error * error;
  }
  return noise > kLost * signal;
}

bool LosesWeights(const Node& node) {
  if (node.op() != "Conv" && node.op() != "ConvTranspose" && node.op() != "Gemm" && node.op() != "MatMul") return false;
  return std::any_of(node.inputs().begin(), node.inputs().end(), [](const Value* weight) {
    return weight != nullptr && weight->is_constant() && weight->data && weight->data->dtype == DType::kF32 &&
           LosesNumbers(*weight);
  });
}

// Operators that stay f32. Those of the first kind cannot be 16-bit (operator specifications); those of the last two
// lose too much: x^2, exp(x) and 1e-12 leave f16's range (6e-8 .. 65504), and means over hundreds of terms its 11 bits.
constexpr auto kKept = std::to_array<KeptOp>({
    {"Range", kNoForm},
    {"NonMaxSuppression", kNoForm},
    {"IsInf", kNoForm},
    {"EyeLike", kNoForm},
    {"ConstantOfShape", kNoForm},
    {"TfIdfVectorizer", kNoForm},
    {"MelWeightMatrix", kNoForm},
    {"HannWindow", kNoForm},
    {"HammingWindow", kNoForm},
    {"BlackmanWindow", kNoForm},
    {"DFT", kNoForm},
    {"STFT", kNoForm},
    {"CastLike", kNoForm},
    {"Celu", kNoForm},
    {"BitCast", kNoForm},
    {"ImageDecoder", kNoForm},
    {"RandomNormal", kRandom},
    {"RandomNormalLike", kRandom},
    {"RandomUniform", kRandom},
    {"RandomUniformLike", kRandom},
    {"Multinomial", kRandom},
    {"Bernoulli", kRandom},
    {"QuantizeLinear", kQuantized},
    {"DequantizeLinear", kQuantized},
    {"DynamicQuantizeLinear", kQuantized},
    {"Pow", kRange},
    {"Exp", kRange},
    {"Log", kRange},
    {"Sqrt", kRange},
    {"Reciprocal", kRange},
    {"CumSum", kSums},
    {"CumProd", kSums},
    {"Softmax", kSums},
    {"LogSoftmax", kSums},
    {"LayerNormalization", kSums},
    {"GroupNormalization", kSums},
    {"InstanceNormalization", kSums},
    {"RMSNormalization", kSums},
    {"LpNormalization", kSums},
    {"MeanVarianceNormalization", kSums},
    {"ReduceMean", kSums},
    {"ReduceSum", kSums},
    {"ReduceSumSquare", kSums},
    {"ReduceL1", kSums},
    {"ReduceL2", kSums},
    {"ReduceLogSum", kSums},
    {"ReduceLogSumExp", kSums},
    {"ReduceProd", kSums},
});

// Inputs that are float32 by the operator's specification whatever its data are.
bool FixedFloatInput(const Node& node, std::size_t index) {
  if (node.op() == "Resize") return index == 1 || index == 2;  // roi, scales
  return node.op() == "Upsample" && index == 1;                // scales
}

// Chains of at least this many nodes stay f32: activations and normalizations that are spelled out (hard-swish, GELU;
// mean, variance, quotient) with the scales and shifts behind them. Each rounding costs -73 dB; the text detection
// network has 170 of them in its chains, and a vision transformer's layer norms 225.
constexpr std::size_t kLongChain = 4;

// The nodes of such chains: functions of one value and of constants.
std::unordered_set<const Node*> LongChains(const Graph& graph) {
  constexpr std::string_view kElementwise[] = {
      "Add",       "Sub",       "Mul",        "Div",       "Min", "Max", "Clip",      "Relu", "HardSigmoid",
      "HardSwish", "LeakyRelu", "Sigmoid",    "Tanh",      "Erf", "Neg", "Abs",       "Gelu", "Softplus",
      "Pow",       "Sqrt",      "ReduceMean", "ReduceSum", "Exp", "Log", "Reciprocal"};
  std::unordered_map<const Value*, const Value*> root;
  std::unordered_map<const Value*, std::vector<const Node*>> chains;
  for (const Node* node = graph.first(); node != nullptr; node = node->next()) {
    if (!node->domain().empty() || node->outputs().size() != 1 || node->output() == nullptr) continue;
    if (node->output()->type.dtype != DType::kF32) continue;
    if (std::find(std::begin(kElementwise), std::end(kElementwise), node->op()) == std::end(kElementwise)) continue;
    const Value* of = nullptr;
    bool one = true;
    for (const Value* input : node->inputs()) {
      if (input == nullptr || input->is_constant()) continue;
      const auto it = root.find(input);
      const Value* its = it == root.end() ? input : it->second;
      one = one && (of == nullptr || of == its);
      of = its;
    }
    if (of == nullptr || !one) continue;
    root[node->output()] = of;
    chains[of].push_back(node);
  }
  std::unordered_set<const Node*> nodes;
  for (const auto& [of, chain] : chains) {
    if (chain.size() >= kLongChain) nodes.insert(chain.begin(), chain.end());
  }
  return nodes;
}

// A Transpose that moves the first dimension to the last but one place, into a product with constants: ONNX Runtime
// (1.31.1) fuses the two in f16, for which it has no kernel, and the session's creation ends in a segmentation fault.
// In f32, with a Cast behind it, nothing is fused.
bool MovesBatchIntoProduct(const Node& node) {
  if (!node.Is("Transpose") || node.output() == nullptr) return false;
  const std::vector<std::int64_t>* const perm = node.IntsAttribute("perm");
  if (perm == nullptr || perm->size() < 3) return false;
  std::vector<std::int64_t> moves(perm->size());
  std::iota(moves.begin(), moves.end(), 0);
  std::rotate(moves.begin(), moves.begin() + 1, moves.end() - 1);  // 1, ..., n - 2, 0, n - 1
  if (*perm != moves) return false;
  const auto uses = node.output()->uses();
  return std::any_of(uses.begin(), uses.end(), [](const Use& use) { return use.node->Is("MatMul"); });
}

// Scales and shifts of whole tensors.
bool RoundsASingleNumber(const Node& node) {
  if (node.op() != "Add" && node.op() != "Sub" && node.op() != "Mul" && node.op() != "Div") return false;
  return std::any_of(node.inputs().begin(), node.inputs().end(), [](const Value* input) {
    if (input == nullptr || !input->is_constant() || !input->data || input->data->dtype != DType::kF32) return false;
    if (input->data->elements() != 1) return false;
    const float number = input->data->ToFloats()[0];
    return std::isfinite(number) && HalfToFloat(FloatToHalf(number)) != number;
  });
}

class HalfConverter {
 public:
  HalfConverter(Model& model, DType half, const HalfOptions& options)
      : graph_(*model.graph), half_(half), options_(options) {}

  // Large f32 constants become 16-bit ones that a Cast widens; every operator still computes in f32.
  HalfResult StoreWeights() {
    std::unordered_set<const Value*> widened;
    Node* const first = graph_.first();
    for (Value* constant : graph_.constants()) {
      if (!Stored(*constant)) continue;
      const std::string name = constant->name();
      Value* half = graph_.AddConstant(name + "_half", Rounded(*constant));
      Type type = constant->type;
      type.dtype = DType::kF32;
      Node* cast = graph_.AddNode("Cast", "", {half}, {{name + "_float", std::move(type)}}, first);
      cast->name = cast->output()->name() + "_cast";
      cast->SetAttribute("to", static_cast<std::int64_t>(DType::kF32));
      graph_.ReplaceAllUses(constant, cast->output());
      graph_.Erase(constant);
      graph_.Rename(half, name);  // a weight is called as before
      widened.insert(cast->output());
    }
    for (Node* node : graph_.nodes()) {
      const auto in = [&](const Value* v) { return widened.contains(v); };
      if (std::any_of(node->inputs().begin(), node->inputs().end(), in)) continue;
      if (std::any_of(node->outputs().begin(), node->outputs().end(), in)) continue;  // the Cast itself
      const auto is_f32 = [](const Value* v) { return v != nullptr && v->type.dtype == DType::kF32; };
      if (std::none_of(node->outputs().begin(), node->outputs().end(), is_f32)) continue;
      const std::string asked = Asked(*node);
      Keep(*node, asked.empty() ? std::string(kNoLargeWeight) : asked);
    }
    return std::move(result_);
  }

  HalfResult Run() {
    chains_ = LongChains(graph_);
    small_ = SmallLayers(graph_);
    for (Node* node : graph_.nodes()) {
      const std::string reason = Kept(*node);
      if (reason.empty()) {
        Convert(*node);
      } else {
        bool floats = false;
        for (std::size_t i = 0; i < node->inputs().size(); ++i) {
          Value* input = node->input(i);
          if (input == nullptr) continue;
          floats = floats || input->type.dtype == DType::kF32 || input->type.dtype == half_;
          if (halves_.contains(input)) node->SetInput(i, CastBehind(input));
          const bool stores = reason == kSubgraphs || !Stores(*node).empty();
          if (stores && input->is_constant() && Large(*input) && !LosesNumbers(*input)) {
            node->SetInput(i, Widened(input));
          }
        }
        for (const Value* output : node->outputs())
          floats = floats || (output != nullptr && output->type.dtype == DType::kF32);
        if (floats) Keep(*node, reason);
      }
    }
    // Subgraphs compute in f32, and the graph's outputs keep their type.
    for (Node* node : graph_.nodes()) {
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        Value* value = node->output(i);
        if (value == nullptr || !halves_.contains(value)) continue;
        std::vector<Use> uses(value->uses().begin(), value->uses().end());
        for (const Use& use : uses) {
          if (use.node->graph() != &graph_) use.node->SetInput(use.index, CastBehind(value));
        }
        if (value->is_graph_output()) {
          Value* cast = CastBehind(value);
          graph_.ReplaceOutputUses(value, cast);
          graph_.SwapNames(value, cast);
        }
      }
    }
    for (Value* constant : graph_.constants()) {
      if (!Large(*constant)) continue;
      std::vector<Use> captured;
      for (const Use& use : constant->uses()) {
        if (use.node->graph() != &graph_ && Asked(*use.node).empty()) captured.push_back(use);
      }
      if (captured.empty() || LosesNumbers(*constant)) continue;
      for (const Use& use : captured) use.node->SetInput(use.index, Widened(constant));
    }
    graph_.EraseDead();
    return std::move(result_);
  }

 private:
  std::string Asked(const Node& node) const { return options_.keep ? options_.keep(node) : std::string(); }

  std::string Stores(const Node& node) const { return options_.store ? options_.store(node) : std::string(); }

  static bool Large(const Value& constant) {
    return constant.data && constant.data->dtype == DType::kF32 && constant.data->elements() > kFewWeights;
  }

  void Keep(const Node& node, std::string reason) {
    const Value* const first = node.outputs().empty() ? nullptr : node.output(0);
    result_.kept_float.push_back(
        {node.name.empty() && first != nullptr ? first->name() : node.name, node.op(), std::move(reason)});
  }

  bool Stored(const Value& constant) const {
    if (!Large(constant) || constant.type.quant.has_value() || constant.is_graph_output()) return false;
    return std::none_of(constant.uses().begin(), constant.uses().end(), [&](const Use& use) {
      return FixedFloatInput(*use.node, use.index) || !Asked(*use.node).empty();
    });
  }

  std::string Kept(const Node& node) const {
    if (std::string asked = Asked(node); !asked.empty()) return asked;
    if (!node.domain().empty()) return "operators of domain " + node.domain() + " are kept";
    for (const Attribute& attribute : node.attributes()) {
      if (std::holds_alternative<std::unique_ptr<Graph>>(attribute.value)) return std::string(kSubgraphs);
    }
    if ((node.op() == "ScatterElements" || node.op() == "ScatterND") &&
        node.StringAttribute("reduction", "none") != "none") {
      return std::string(kScatters);
    }
    if (MovesBatchIntoProduct(node)) return std::string(kMovesBatch);
    if (small_.contains(&node)) return std::string(kSmall);
    if (LosesWeights(node)) return std::string(kLosesWeights);
    if (chains_.contains(&node)) return std::string(kChain);
    for (const KeptOp& kept : kKept) {
      if (node.op() == kept.op) return std::string(kept.reason);
    }
    if (RoundsASingleNumber(node)) return std::string(kSingle);
    if (std::string stores = Stores(node); !stores.empty()) return stores;
    for (const Value* output : node.outputs()) {
      if (output == nullptr) continue;
      if (!output->type.opaque.empty()) return "its output is not a tensor";
      if (output->type.dtype == DType::kUndefined) return "the type of its output is not known";
    }
    for (const Value* input : node.inputs()) {
      if (input != nullptr && input->type.quant.has_value()) return std::string(kQuantized);
    }
    return {};
  }

  void Convert(Node& node) {
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      Value* input = node.input(i);
      if (input == nullptr || FixedFloatInput(node, i) || input->type.dtype != DType::kF32) continue;
      node.SetInput(i, ToHalf(input, node));
    }
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      Value* input = node.input(i);
      if (input != nullptr && FixedFloatInput(node, i) && halves_.contains(input)) node.SetInput(i, CastBehind(input));
    }
    if (node.Is("Cast") && node.IntAttribute("to", 0) == static_cast<std::int64_t>(DType::kF32)) {
      node.SetAttribute("to", static_cast<std::int64_t>(half_));
    }
    for (Value* output : node.outputs()) {
      if (output == nullptr || output->type.dtype != DType::kF32) continue;
      output->type.dtype = half_;
      halves_.insert(output);
    }
  }

  // The 16-bit version of an f32 value, made once: constants are converted, others cast in front of the first user.
  Value* ToHalf(Value* value, Node& user) {
    Value*& half = to_half_[value];
    if (half != nullptr) return half;
    if (value->is_constant() && value->data.has_value()) {
      half = graph_.AddConstant(value->name() + "_half", Rounded(*value));
    } else {
      half = AddCast(value, half_, &user);
    }
    return half;
  }

  // A constant stored in 16 bits and widened in front of the first user.
  Value* Widened(Value* constant) {
    Value*& wide = widened_[constant];
    if (wide == nullptr) {
      Value* half = ToHalf(constant, *graph_.first());
      wide = AddCast(half, DType::kF32, graph_.first());
    }
    return wide;
  }

  // The f32 version of a 16-bit value; it stands right behind the producer, so every use sees it.
  Value* CastBehind(Value* value) {
    Value*& cast = to_float_[value];
    if (cast == nullptr) cast = AddCast(value, DType::kF32, value->producer()->next());
    return cast;
  }

  Value* AddCast(Value* value, DType to, Node* before) {
    Type type = value->type;
    type.dtype = to;
    Node* cast =
        graph_.AddNode("Cast", "", {value}, {{value->name() + (to == DType::kF32 ? "_float" : "_half"), type}}, before);
    cast->name = cast->output()->name() + "_cast";
    cast->SetAttribute("to", static_cast<std::int64_t>(to));
    return cast->output();
  }

  // Rounds to the nearest 16-bit float. What is finite and overflows is counted and clamped to the largest one: masks
  // such as -FLT_MAX must not become -Inf (Inf - Inf is NaN). Infinities stay.
  TensorRef Rounded(const Value& constant) {
    const TensorRef& tensor = *constant.data;
    std::vector<float> values = tensor.ToFloats();
    const float limit = half_ == DType::kF16 ? 65504.0f : Bf16ToFloat(0x7F7F);
    std::vector<std::uint16_t> halves(values.size());
    const std::span<const float> view(values);
    const std::uint64_t overflows =
        half_ == DType::kF16 ? FloatToHalf(view, halves.data()) : FloatToBf16(view, halves.data());
    if (overflows > 0) {
      result_.overflows += overflows;
      const std::uint16_t largest = half_ == DType::kF16 ? 0x7BFF : 0x7F7F;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const bool infinite = half_ == DType::kF16 ? (halves[i] & 0x7FFF) == 0x7C00 : (halves[i] & 0x7FFF) == 0x7F80;
        if (infinite && std::isfinite(values[i]) && std::abs(values[i]) > limit) {
          halves[i] = static_cast<std::uint16_t>((halves[i] & 0x8000) | largest);
        }
      }
    }
    if (half_ == DType::kF16 && options_.round) options_.round(constant, view, halves);
    std::vector<std::byte> bytes(halves.size() * 2);
    for (std::size_t i = 0; i < halves.size(); ++i) {
      bytes[2 * i] = static_cast<std::byte>(halves[i] & 0xFF);
      bytes[2 * i + 1] = static_cast<std::byte>(halves[i] >> 8);
    }
    return TensorRef::FromBytes(half_, tensor.dims, std::move(bytes));
  }

  Graph& graph_;
  std::unordered_set<const Node*> chains_;
  std::unordered_set<const Node*> small_;
  DType half_;
  const HalfOptions& options_;
  HalfResult result_;
  std::unordered_set<const Value*> halves_;  // results that are 16-bit now
  std::unordered_map<const Value*, Value*> to_half_, to_float_, widened_;
};

}  // namespace

HalfResult ConvertToHalf(Model& model, DType half, const HalfOptions& options) {
  if (half != DType::kF16 && half != DType::kBF16) {
    ThrowUsage("not a 16-bit float type", std::string(Name(half)), "use f16 or bf16");
  }
  if (half == DType::kBF16) RaiseOpset(model, 13, "operator set 13, which bf16 needs");
  if (!options.types_known) InferTypes(model);
  HalfConverter converter(model, half, options);
  return half == DType::kBF16 ? converter.StoreWeights() : converter.Run();
}

}  // namespace octavo
