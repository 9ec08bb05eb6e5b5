#include "octavo/quantize/whole_graph_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "octavo/ir/users.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/placement.h"

namespace octavo {
namespace {

bool IsF32(const Value* value) { return value != nullptr && value->type.dtype == DType::kF32 && !value->type.quant; }

bool HasFloat(const Node& node) {
  for (const Value* v : node.inputs()) {
    if (v != nullptr && v->type.dtype == DType::kF32) return true;
  }
  for (const Value* v : node.outputs()) {
    if (v != nullptr && v->type.dtype == DType::kF32) return true;
  }
  return false;
}

bool ReadBySubgraph(const Value& value) {
  return std::any_of(value.uses().begin(), value.uses().end(),
                     [&](const Use& use) { return use.node->graph() != value.graph(); });
}

bool FromMask(const Value* value, int depth) {
  if (value == nullptr || depth > 16) return false;
  const Node* node = value->producer();
  if (node == nullptr) return false;
  if (node->Is("Cast")) {
    const DType from = node->input(0)->type.dtype;
    return IsInteger(from) || from == DType::kBool;
  }
  const OpInfo& info = FindOp(*node);
  if (node->Is("Where")) {
    for (std::size_t i = 1; i < 3; ++i) {
      if (!node->input(i)->is_constant() && !FromMask(node->input(i), depth + 1)) return false;
    }
    return true;
  }
  const bool arithmetic = node->Is("Add") || node->Is("Sub") || node->Is("Mul") || node->Is("Div");
  if (info.category != OpCategory::kDataMovement && !arithmetic) return false;
  bool any = false;
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    const Value* x = node->input(i);
    if (x == nullptr || x->is_constant() || x->type.dtype != DType::kF32) continue;
    if (!FromMask(x, depth + 1)) return false;
    any = true;
  }
  return any;
}

// A constant that takes positions out of scores, added to them or in their place: 0, and numbers far below any score.
bool IsMaskConstant(const Value& value) {
  if (!IsConstantData(&value) || value.type.dtype != DType::kF32) return false;
  std::vector<float> storage;
  bool any = false;
  for (const float f : FloatView(*value.data, storage)) {
    if (!(f <= -kMaskBound) && f != 0) return false;
    any = any || f != 0;
  }
  return any;
}

// Whether the node masks what is at its input `scores` by its other operand.
bool Masks(const Node& node, std::size_t scores) {
  if (node.Is("Where")) {
    if (scores != 1 && scores != 2) return false;
    const Value* other = node.input(3 - scores);
    return other != nullptr && (IsMaskConstant(*other) || FromMask(other, 0));
  }
  if ((!node.Is("Add") && !node.Is("Sub")) || scores > 1) return false;
  const Value* other = node.input(1 - scores);
  return other != nullptr && ((node.Is("Add") && IsMaskConstant(*other)) || FromMask(other, 0));
}

}  // namespace

bool IsConstantData(const Value* value) { return value != nullptr && value->is_constant() && value->data.has_value(); }

bool NormalizesWithScale(const Node& node) { return node.Is("LayerNormalization") || node.Is("InstanceNormalization"); }

Role RoleOf(const Node& node, std::size_t index) {
  const OpInfo& info = FindOp(node);
  const Value* value = node.input(index);
  if (value == nullptr || !IsF32(value)) return Role::kNone;
  if (NormalizesWithScale(node)) {
    if (index == 0) return Role::kData;
    return index == 1 ? Role::kWeight : index == 2 ? Role::kBias : Role::kNone;
  }
  if (info.weight_input >= 0 && index == static_cast<std::size_t>(info.weight_input)) {
    return value->is_constant() ? Role::kWeight : Role::kData;
  }
  if (info.bias_input >= 0 && index == static_cast<std::size_t>(info.bias_input)) return Role::kBias;
  if (node.Is("PRelu") && index == 1) return Role::kData;
  return IsDataInput(info, index) ? Role::kData : Role::kNone;
}

bool CarriesData(const Node& node, std::size_t index) {
  const Value* value = node.output(index);
  if (!IsF32(value)) return false;
  return index == 0 || node.Is("Split");
}

WholeGraphPlan::WholeGraphPlan(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision,
                               const DeviceDescriptor& device, KeptNodes kept)
    : model_(model), config_(config), precision_(precision), device_(device), kept_(std::move(kept)) {
  CheckSelectors(model_, config_);
  for (Node* node : model_.graph->nodes()) Visit(*node);
  VisitNodes(*static_cast<const Graph*>(model_.graph.get()), [&](const Node& node) {
    ++nodes_total;
    if (node.graph() != model_.graph.get() && HasFloat(node)) {
      Skip(node, "it stands in a subgraph, whose values are not calibrated");
    }
  });
  for (Node* node : taken) Join(*node);
  FindMasks();
}

bool WholeGraphPlan::Moves(const Node& node) const {
  return device_.Support(node.op(), node.domain()) == QuantSupport::kPassThrough;
}

bool WholeGraphPlan::Produced(const Value& value) const {
  return value.producer() != nullptr && is_taken.count(value.producer()) > 0;
}

void WholeGraphPlan::Skip(const Node& node, std::string reason) {
  skipped.push_back({NodeName(node), node.op(), std::move(reason)});
}

// The reason why a node stays in float; empty: it is taken.
std::string WholeGraphPlan::Refusal(const Node& node) const {
  const OpSupport* row = device_.Row(node.op(), node.domain());
  if (row == nullptr || row->support == QuantSupport::kFloatOnly) {
    return std::string(device_.Reason(node.op(), node.domain()));
  }
  if (std::string asked = KeptByUser(node, config_); !asked.empty()) return asked;
  if (const auto kept = kept_.find(&node); kept != kept_.end()) return kept->second;
  if (std::string form = NotInIntegers(node); !form.empty()) return form;
  for (std::size_t i = 0; i < node.inputs().size(); ++i) {
    const Value* v = node.input(i);
    if (v == nullptr) continue;
    if (v->graph() != node.graph()) return "an input comes from an enclosing graph";
    if (RoleOf(node, i) == Role::kNone) continue;
    if (OverrideOf(config_, v->name()) == DType::kF32) return "its input '" + v->name() + "' is overridden to f32";
    if (v->is_constant() && !IsConstantData(v)) return "a constant has no data";
    if (IsConstantData(v)) {
      std::vector<float> storage;
      const bool mask = IsMaskConstant(*v) && v->uses().size() == 1 && MasksSoftmax(node);
      for (const float f : FloatView(*v->data, storage)) {
        if (!mask && !std::isfinite(f)) return "its constant '" + v->name() + "' holds NaN or infinity";
      }
    }
  }
  for (std::size_t i = 1; i < node.inputs().size(); ++i) {
    const Value* x = node.input(0);
    if (x != nullptr && x->is_constant() && RoleOf(node, i) == Role::kWeight) return "it computes a constant";
  }
  const OpInfo& info = FindOp(node);
  if (info.bias_input >= 0) {
    const Value* bias = node.input(static_cast<std::size_t>(info.bias_input));
    if (bias != nullptr && !bias->is_constant()) return "its bias is computed";
  }
  for (const Value* v : node.outputs()) {
    if (v != nullptr && OverrideOf(config_, v->name()) == DType::kF32) {
      return "its output '" + v->name() + "' is overridden to f32";
    }
    if (v != nullptr && (MovesIntoSubgraph(*v) || (Moves(node) && ReadBySubgraph(*v)))) {
      return "a subgraph reads its output behind data movement, where ONNX Runtime cannot take a quantized value";
    }
  }
  if (NormalizesWithScale(node) && !IsConstantData(node.input(1))) return "its scale is computed";
  if (node.Is("LayerNormalization")) {
    const std::int64_t axis = node.IntAttribute("axis", -1);
    const auto& shape = node.input(0)->type.shape;
    if (axis != -1 && (!shape || axis != static_cast<std::int64_t>(shape->size()) - 1)) {
      return "it normalizes over more than the last axis";
    }
  }
  return {};
}

void WholeGraphPlan::Visit(Node& node) {
  if (node.graph() != model_.graph.get() || !HasFloat(node)) return;
  bool data = false;
  for (std::size_t i = 0; i < node.inputs().size(); ++i) data = data || RoleOf(node, i) == Role::kData;
  if (!data) {
    // Casts and other makers of floats from integers: what they make is quantized behind them.
    const OpCategory category = FindOp(node).category;
    if (category != OpCategory::kShape) Skip(node, std::string(device_.Reason(node.op(), node.domain())));
    return;
  }
  std::string refusal = Refusal(node);
  if (!refusal.empty()) return Skip(node, std::move(refusal));
  taken.push_back(&node);
  is_taken.insert(&node);
}

std::size_t WholeGraphPlan::NewTensor(Value* observed) {
  tensors.push_back({});
  tensors.back().observed = observed;
  return tensors.size() - 1;
}

std::size_t WholeGraphPlan::TensorOf(Value* value) {
  const auto [it, fresh] = tensor_of.emplace(value, 0);
  if (fresh) it->second = NewTensor(value);
  return it->second;
}

// The Relu or Clip behind y that codes of the right range do by themselves.
Node* WholeGraphPlan::Absorbable(const Node& node) const {
  if (precision_.activation_symmetric || Moves(node)) return nullptr;
  Node* user = SoleUser(node.output());
  if (user == nullptr || is_taken.count(user) == 0 || user->input(0) != node.output() || !IsF32(user->output())) {
    return nullptr;
  }
  if (user->Is("Relu")) return user;
  if (!user->Is("Clip")) return nullptr;
  float low = user->FloatAttribute("min", -std::numeric_limits<float>::infinity());
  float high = user->FloatAttribute("max", std::numeric_limits<float>::infinity());
  for (std::size_t i = 1; i < 3; ++i) {
    const Value* bound = user->input(i);
    if (bound == nullptr) continue;
    if (!IsConstantData(bound) || bound->data->elements() != 1 || !IsF32(bound)) return nullptr;
    (i == 1 ? low : high) = bound->data->ToFloats()[0];
  }
  return low <= 0 && high >= 0 ? user : nullptr;
}

// Node by node in execution order: inputs are known when a node is reached.
void WholeGraphPlan::Join(Node& node) {
  for (std::size_t i = 0; i < node.inputs().size(); ++i) {
    if (RoleOf(node, i) == Role::kData && !node.input(i)->is_constant()) TensorOf(node.input(i));
  }
  if (absorbed.count(&node) > 0) return;
  for (std::size_t i = 0; i < node.outputs().size(); ++i) {
    if (!CarriesData(node, i)) continue;
    Value* y = node.output(i);
    if (Moves(node)) {
      Value* x = node.input(0);
      if (x->is_constant()) {
        const std::size_t t = NewTensor(nullptr);
        tensors[t].constant = x;
        tensor_of[y] = t;
      } else {
        tensor_of[y] = TensorOf(x);
      }
      continue;
    }
    const std::size_t t = NewTensor(y);
    tensor_of[y] = t;
    if (Node* relu = Absorbable(node); relu != nullptr && i == 0) {
      absorbs[&node] = relu;
      absorbed.insert(relu);
      tensor_of[relu->output()] = t;
      tensors[t].observed = relu->output();
    }
  }
}

// score + mask, or Where(mask, score, constant), in front of a Softmax, where the mask can be far below any score.
// Structure only: one operand is a constant of zeros and numbers below -kMaskBound, or it comes, through data movement
// and arithmetic with constants alone, from integers or booleans (Cast, Where).
void WholeGraphPlan::FindMasks() {
  for (const Node* node : model_.graph->nodes()) {
    if (node->Is("Softmax")) Unmasked(node->input(0), 0);
  }
}

// The scores below the masks that `value` went through.
const Value* WholeGraphPlan::Unmasked(const Value* value, int depth) {
  const Value* v = value;
  while (v->producer() != nullptr && Moves(*v->producer())) v = v->producer()->input(0);
  const Node* node = v->producer();
  if (node == nullptr || is_taken.count(node) == 0 || depth > 16) return value;
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    if (!Masks(*node, i)) continue;
    for (std::size_t k = 0; k < node->inputs().size(); ++k) {
      if (k != i) CollectMask(node->input(k), 0);
    }
    return mask_sums[node->output()] = Unmasked(node->input(i), depth + 1);
  }
  return value;
}

// Whether FindMasks comes by this node, whatever reads what it makes.
bool WholeGraphPlan::MasksSoftmax(const Node& node, int depth) const {
  const Value& v = *node.output();
  if (depth > 16 || v.is_graph_output() || v.uses().empty()) return false;
  return std::all_of(v.uses().begin(), v.uses().end(), [&](const Use& use) {
    if (use.node->graph() != v.graph()) return false;
    if (use.node->Is("Softmax")) return true;
    const bool passes = Moves(*use.node) ? use.index == 0 : Masks(*use.node, use.index);
    return passes && MasksSoftmax(*use.node, depth + 1);
  });
}

void WholeGraphPlan::CollectMask(const Value* value, int depth) {
  if (value == nullptr || depth > 16 || value->type.dtype != DType::kF32 || !mask_values.insert(value).second) return;
  if (value->producer() == nullptr) return;
  for (const Value* input : value->producer()->inputs()) CollectMask(input, depth + 1);
}

}  // namespace octavo
