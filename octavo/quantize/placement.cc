#include "octavo/quantize/placement.h"

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/ir/users.h"
#include "octavo/numerics/reduce.h"
#include "octavo/ops/op_table.h"

namespace octavo {
namespace {

bool IsF32(const Value* value) { return value != nullptr && value->type.dtype == DType::kF32 && !value->type.quant; }

bool PlainConstant(const Value* value) {
  return value != nullptr && value->is_constant() && value->data.has_value() && IsF32(value);
}

// Elements of a constant that holds one number for each of `channels` along the last axis: [N], [1, N], [1, 1, N].
bool OnePerLastAxis(const Value* value, std::int64_t channels) {
  if (!PlainConstant(value) || value->data->dims.empty() || value->data->dims.back() != channels) return false;
  return value->data->elements() == static_cast<std::uint64_t>(channels);
}

// Of an f32 tensor; in pieces, so that one that does not lie aligned is copied into the cache only.
MinMax RangeOf(const TensorRef& tensor) {
  constexpr std::size_t kPiece = std::size_t{64} << 10;
  MinMax range;
  std::vector<float> converted;
  TensorRef piece = tensor;
  for (std::size_t at = 0; at < tensor.bytes.size(); at += kPiece) {
    piece.bytes = tensor.bytes.subspan(at, std::min(kPiece, tensor.bytes.size() - at));
    piece.dims = {static_cast<std::int64_t>(piece.bytes.size() / sizeof(float))};
    range.Add(FloatView(piece, converted));
  }
  return range;
}

// A Resize that only copies elements.
bool MovesCodes(const Node& node, const DeviceDescriptor& device, bool eight_bit) {
  if (device.Support(node.op(), node.domain()) != QuantSupport::kPassThrough) return false;
  const OpInfo& info = FindOp(node);
  if (node.Is("Resize")) {
    return eight_bit && node.StringAttribute("mode", "nearest") == "nearest" && node.output() != nullptr;
  }
  if (info.flow != ParamFlow::kSameAsInput) return false;
  if (info.category == OpCategory::kPool || node.Is("DepthToSpace")) return eight_bit;
  return true;
}

// Whether even the largest weight is so small that 8 bits of it have a scale below the normal numbers of f32, which has
// few digits or none.
bool ScaleWouldUnderflow(const MinMax& weight) {
  const float largest = weight.HasRange() ? std::max(-weight.min, weight.max) : 0.0f;
  return largest > 0 && largest < 256 * std::numeric_limits<float>::min();
}

class Placer {
 public:
  Placer(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision,
         const DeviceDescriptor& device)
      : model_(model), config_(config), precision_(precision), device_(device) {}

  Placement Run() {
    CheckSelectors(model_, config_);
    for (Node* node : model_.graph->nodes()) Visit(*node);
    VisitNodes(*static_cast<const Graph*>(model_.graph.get()), [&](const Node& node) {
      ++placement_.nodes_total;
      if (node.graph() != model_.graph.get() && Computes(node)) {
        Skip(node, "it stands in a subgraph, whose values are not calibrated");
      }
    });
    FindCarriers();
    return std::move(placement_);
  }

 private:
  static bool Computes(const Node& node) {
    switch (FindOp(node).category) {
      case OpCategory::kWeighted:
      case OpCategory::kMatMul:
      case OpCategory::kElementwise:
      case OpCategory::kActivation:
      case OpCategory::kPool:
      case OpCategory::kNormalization:
        return true;
      default:
        return false;
    }
  }

  void Skip(const Node& node, std::string reason) {
    placement_.skipped.push_back({NodeName(node), node.op(), std::move(reason)});
  }

  void Visit(Node& node) {
    if (!Computes(node)) return;
    const OpInfo& info = FindOp(node);
    const QuantSupport support = device_.Support(node.op(), node.domain());
    const bool weighted = info.category == OpCategory::kWeighted || info.category == OpCategory::kMatMul;
    if (!weighted) {
      if (absorbed_.count(&node) > 0) return;
      Skip(node, support == QuantSupport::kInteger
                     ? "it runs in float between integer nodes: quantizing around it costs more than it saves"
                     : std::string(device_.Reason(node.op(), node.domain())));
      return;
    }
    if (support != QuantSupport::kInteger && support != QuantSupport::kIntegerFloatOut) {
      return Skip(node, std::string(device_.Reason(node.op(), node.domain())));
    }
    if (std::string asked = KeptByUser(node, config_); !asked.empty()) return Skip(node, std::move(asked));
    if (std::string form = NotInIntegers(node); !form.empty()) return Skip(node, std::move(form));
    PlacedNode placed;
    const std::string refusal = Match(node, info, support, placed);
    if (!refusal.empty()) return Skip(node, refusal);
    placement_.nodes.push_back(std::move(placed));
  }

  // Fills `placed`, or says why the node stays in float.
  std::string Match(Node& node, const OpInfo& info, QuantSupport support, PlacedNode& placed) {
    Value* x = node.input(0);
    Value* weight = node.input(static_cast<std::size_t>(info.weight_input));
    Value* y = node.output();
    if (x == nullptr || weight == nullptr || y == nullptr) return "an input or the output is absent";
    if (x->is_constant()) return "its data input is a constant";
    if (!weight->is_constant()) {
      return info.category == OpCategory::kMatMul
                 ? "both operands are computed: their ranges (attention scores, masks) cost accuracy in 8 bits, and "
                   "without prepacked weights the integer product gains little"
                 : "its weight is computed";
    }
    if (!PlainConstant(weight)) return "its weight is " + ToString(weight->type) + ", not f32";
    if (x->type.dtype != DType::kF32 && x->type.dtype != DType::kUndefined) return "its input is not f32";
    if (weight->graph() != node.graph() || x->graph() != node.graph()) return "an input comes from an enclosing graph";
    // As a capture, or as an input that a loop carries along.
    const auto inner = [&](const Use& use) {
      return use.node->graph() != node.graph() || !use.node->subgraphs().empty();
    };
    if (std::any_of(weight->uses().begin(), weight->uses().end(), inner)) {
      return "a subgraph reads its weight too: it would be stored twice, in codes and in float";
    }
    const Dims& dims = weight->data->dims;
    if (info.category == OpCategory::kMatMul || node.Is("Gemm")) {
      if (dims.size() != 2) return "its weight has " + std::to_string(dims.size()) + " dimensions, not 2";
    } else if (dims.size() < 3) {
      return "its weight has " + std::to_string(dims.size()) + " dimensions";
    }
    if (weight->data->elements() == 0) return "its weight is empty";
    const auto axis = ResolveAxis(info.channel_axis, node, dims.size());
    if (!axis) return "its weight has no output channels";
    placed.channel_axis = *axis;
    const std::int64_t channels = dims[static_cast<std::size_t>(*axis)];
    if (node.Is("Conv")) {
      const std::int64_t group = node.IntAttribute("group", 1);
      if (group < 1 || channels % group != 0) return "its groups do not divide its output channels";
    }
    if (node.Is("Gemm")) {
      if (node.FloatAttribute("alpha", 1.0f) != 1.0f || node.FloatAttribute("beta", 1.0f) != 1.0f ||
          node.IntAttribute("transA", 0) != 0) {
        return "alpha or beta is not 1, or A is transposed: the device has no integer form of it";
      }
    }
    Value* bias = info.bias_input >= 0 ? node.input(static_cast<std::size_t>(info.bias_input)) : nullptr;
    if (bias != nullptr) {
      if (!OnePerLastAxis(bias, channels)) return "its bias is not a constant with one number a channel";
      if (!RangeOf(*bias->data).AllFinite()) return "its bias holds NaN or infinity";
    }
    if (OverrideOf(config_, weight->name()) == DType::kF32) return "its weight is overridden to f32";
    if (OverrideOf(config_, x->name()) == DType::kF32) return "its input is overridden to f32";
    const MinMax range = RangeOf(*weight->data);
    if (!range.AllFinite()) return "its weight holds NaN or infinity";
    if (ScaleWouldUnderflow(range)) return "its weights are so small that their scale would underflow in f32";

    placed.node = &node;
    placed.x = placed.x_root = x;
    placed.weight = weight;
    placed.bias = bias;
    Node* user = SoleUser(y);
    if (support == QuantSupport::kInteger) {
      placed.y = y;
      if (user != nullptr && user->output() != nullptr && user->input(0) == y &&
          (user->Is("Relu") || (user->Is("Clip") && ConstantBounds(*user)))) {
        placed.absorbed = user;
        placed.y = user->output();
        absorbed_.insert(user);
      }
      if (OverrideOf(config_, placed.y->name()) == DType::kF32) return "its output is overridden to f32";
      if (MovesIntoSubgraph(*placed.y)) {
        return "a subgraph reads its output behind data movement, where ONNX Runtime cannot take a quantized value";
      }
    } else if (user != nullptr && user->Is("Add") && info.bias_input < 0) {
      for (std::size_t i = 0; i < 2; ++i) {
        if (user->input(i) != y && OnePerLastAxis(user->input(i), channels)) {
          placed.bias_add = user;
          placed.bias_add_index = i;
        }
      }
    }
    return {};
  }

  static bool ConstantBounds(const Node& clip) {
    for (std::size_t i = 1; i < 3; ++i) {
      const Value* bound = clip.input(i);
      if (bound != nullptr && (!PlainConstant(bound) || bound->data->elements() != 1)) return false;
    }
    return true;
  }

  // x that only rearranges a value with parameters of its own shares them: its codes are moved, not made again.
  void FindCarriers() {
    std::unordered_set<const Value*> rooted;
    for (const PlacedNode& p : placement_.nodes) {
      if (p.y != nullptr) rooted.insert(p.y);
    }
    const bool eight_bit = BitWidth(precision_.activation) == 8;
    for (PlacedNode& p : placement_.nodes) {
      std::vector<Node*> path;
      Value* v = p.x;
      constexpr std::size_t kLongest = 16;
      while (rooted.count(v) == 0 && v->producer() != nullptr && path.size() < kLongest &&
             v->producer()->graph() == p.node->graph() && MovesCodes(*v->producer(), device_, eight_bit) &&
             v->producer()->output() == v && v->producer()->input(0) != nullptr) {
        path.push_back(v->producer());
        v = v->producer()->input(0);
      }
      if (path.empty() || rooted.count(v) == 0) continue;
      p.x_root = v;
      p.carriers.assign(path.rbegin(), path.rend());
    }
  }

  const Model& model_;
  const QuantizationConfig& config_;
  const ResolvedPrecision& precision_;
  const DeviceDescriptor& device_;
  Placement placement_;
  std::unordered_set<const Node*> absorbed_;
};

}  // namespace

void CheckSelectors(const Model& model, const QuantizationConfig& config) {
  std::vector<std::string> node_names, ops, values;
  std::unordered_set<std::string> seen;
  VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node& node) {
    node_names.push_back(NodeName(node));
    if (seen.insert(node.op()).second) ops.push_back(node.op());
    for (const Value* v : node.outputs()) {
      if (v != nullptr) values.push_back(v->name());
    }
  });
  for (const Value* v : model.graph->inputs()) values.push_back(v->name());
  for (const Value* v : model.graph->constants()) values.push_back(v->name());
  const auto check = [](const std::string& pattern, const std::vector<std::string>& names, const char* option,
                        const char* what) {
    for (const std::string& name : names) {
      if (name == pattern || GlobMatch(pattern, name)) return;
    }
    ThrowUsage(std::string("no ") + what + " matches '" + pattern + "'", option, DidYouMean(pattern, names));
  };
  for (const std::string& op : config.op_types) check(op, ops, "--op-types", "operator of the model");
  for (const std::string& pattern : config.exclude) check(pattern, node_names, "--exclude", "node");
  for (const auto& [pattern, type] : config.overrides) check(pattern, values, "--override", "tensor");
}

bool MovesIntoSubgraph(const Value& value) {
  static const std::unordered_set<std::string_view> kMoves = {"Transpose", "Reshape", "Squeeze",
                                                              "Unsqueeze", "Slice",   "MaxPool"};
  std::vector<const Value*> open = {&value};
  std::unordered_set<const Value*> seen;
  while (!open.empty()) {
    const Value* v = open.back();
    open.pop_back();
    for (const Use& use : v->uses()) {
      if (use.node->graph() != v->graph()) {
        if (v != &value) return true;
        continue;
      }
      if (use.index != 0 || !use.node->domain().empty() || kMoves.count(use.node->op()) == 0) continue;
      const Value* output = use.node->output();
      if (output != nullptr && seen.insert(output).second) open.push_back(output);
    }
  }
  return false;
}

std::string KeptByUser(const Node& node, const QuantizationConfig& config) {
  const std::string name = NodeName(node);
  const bool excluded = std::any_of(config.exclude.begin(), config.exclude.end(),
                                    [&](const std::string& p) { return p == name || GlobMatch(p, name); });
  if (excluded) return "it is excluded";
  if (!config.op_types.empty() &&
      std::find(config.op_types.begin(), config.op_types.end(), node.op()) == config.op_types.end()) {
    return "its operator type is not among those to quantize";
  }
  return {};
}

std::string NotInIntegers(const Node& node) {
  const auto* dilations = node.Is("AveragePool") ? node.IntsAttribute("dilations") : nullptr;
  if (dilations != nullptr &&
      std::any_of(dilations->begin(), dilations->end(), [](std::int64_t d) { return d != 1; })) {
    return "it is dilated: ONNX Runtime fuses it to QLinearAveragePool, which has no dilations, and refuses the model";
  }
  return {};
}

std::string NodeName(const Node& node) {
  if (!node.name.empty()) return node.name;
  for (const Value* v : node.outputs()) {
    if (v != nullptr) return v->name();
  }
  return node.op();
}

DType OverrideOf(const QuantizationConfig& config, const std::string& value_name) {
  DType type = DType::kUndefined;
  for (const auto& [pattern, name] : config.overrides) {
    if (pattern == value_name || GlobMatch(pattern, value_name)) type = ParseDType(name).value_or(DType::kUndefined);
  }
  return type;
}

Placement PlaceNodes(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision,
                     const DeviceDescriptor& device) {
  return Placer(model, config, precision, device).Run();
}

}  // namespace octavo
