#include "octavo/rewrite/restore_circle.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "octavo/emit/circle.h"

namespace octavo {
namespace {

// `op` with its result and all of its `inputs` operands there: a file may leave some out.
bool IsWhole(const Node* node, std::string_view op, std::size_t inputs) {
  if (node == nullptr || !node->Is(op, kCircleDomain) || node->inputs().size() != inputs) return false;
  const auto there = [](const Value* v) { return v != nullptr; };
  return node->outputs().size() == 1 && node->output() != nullptr &&
         std::all_of(node->inputs().begin(), node->inputs().end(), there);
}

bool IsFloatNode(const Node* node, std::string_view op) {
  if (!IsWhole(node, op, op == "RSQRT" ? 1 : 2) || node->output()->type.quant) return false;
  return node->StringAttribute("fused_activation_function", "NONE") == "NONE";
}

// The only reader of a value that nothing else sees.
Node* Reader(const Value* value) {
  if (value->is_graph_output() || value->uses().size() != 1) return nullptr;
  return value->uses()[0].node;
}

const TensorRef* FloatConstant(const Value* value) {
  if (value == nullptr || !value->is_constant() || !value->data || value->type.quant) return nullptr;
  return value->data->dtype == DType::kF32 ? &*value->data : nullptr;
}

// The axes of a MEAN that keeps them, sorted and not negative; empty where it is none.
std::vector<std::int64_t> MeanAxes(const Node* node, std::size_t rank) {
  if (!IsFloatNode(node, "MEAN") || node->IntAttribute("keep_dims", 0) == 0) return {};
  const Value* list = node->input(1);
  if (list == nullptr || !list->is_constant() || !list->data || !IsInteger(list->data->dtype)) return {};
  std::vector<std::int64_t> axes = list->data->ToInts();
  for (std::int64_t& a : axes) a += a < 0 ? static_cast<std::int64_t>(rank) : 0;
  std::sort(axes.begin(), axes.end());
  return axes;
}

struct LayerNorm {
  Node* last = nullptr;
  Value *x = nullptr, *scale = nullptr, *bias = nullptr;
  std::int64_t axis = 0;
  float epsilon = 0;
};

Value* Other(const Node& node, const Value* one) { return node.input(0) == one ? node.input(1) : node.input(0); }

std::optional<LayerNorm> MatchLayerNorm(const Node& rsqrt) {
  LayerNorm found;
  if (!IsFloatNode(&rsqrt, "RSQRT")) return std::nullopt;
  const Node* add = rsqrt.input(0)->producer();
  if (!IsFloatNode(add, "ADD") || Reader(add->output()) != &rsqrt) return std::nullopt;
  const TensorRef* epsilon = FloatConstant(add->input(1));
  if (epsilon == nullptr || epsilon->elements() != 1) return std::nullopt;
  found.epsilon = epsilon->ToFloats()[0];
  const Node* variance = add->input(0)->producer();
  if (!IsFloatNode(variance, "MEAN") || Reader(variance->output()) != add) return std::nullopt;
  const Node* square = variance->input(0)->producer();
  if (!IsFloatNode(square, "MUL") || square->input(0) != square->input(1) || Reader(square->output()) != variance) {
    return std::nullopt;
  }
  const Value* centered = square->input(0);
  const Node* sub = centered->producer();
  if (!IsFloatNode(sub, "SUB") || centered->is_graph_output() || centered->uses().size() != 3) return std::nullopt;
  found.x = sub->input(0);
  const Node* mean = sub->input(1)->producer();
  if (!IsFloatNode(mean, "MEAN") || mean->input(0) != found.x || Reader(mean->output()) != sub) return std::nullopt;
  const std::optional<Dims> dims = StaticShape(found.x->type);
  if (!dims || found.x->type.dtype != DType::kF32) return std::nullopt;
  const std::vector<std::int64_t> axes = MeanAxes(mean, dims->size());
  if (axes.empty() || axes != MeanAxes(variance, dims->size())) return std::nullopt;
  found.axis = axes[0];
  for (std::size_t i = 0; i < axes.size(); ++i) {
    if (axes[i] != axes[0] + static_cast<std::int64_t>(i)) return std::nullopt;
  }
  if (axes[0] < 0 || axes.back() + 1 != static_cast<std::int64_t>(dims->size())) return std::nullopt;
  const Dims inner(dims->begin() + found.axis, dims->end());
  const Node* scaled = Reader(rsqrt.output());
  if (!IsFloatNode(scaled, "MUL") || Other(*scaled, rsqrt.output()) != centered) return std::nullopt;
  Node* times = Reader(scaled->output());
  if (!IsWhole(times, "MUL", 2)) return std::nullopt;
  found.scale = Other(*times, scaled->output());
  if (FloatConstant(found.scale) == nullptr || found.scale->data->dims != inner) return std::nullopt;
  found.last = times;
  if (IsFloatNode(times, "MUL")) {
    Node* plus = Reader(times->output());
    if (IsWhole(plus, "ADD", 2)) {
      Value* bias = Other(*plus, times->output());
      if (FloatConstant(bias) != nullptr && bias->data->dims == inner) {
        found.bias = bias;
        found.last = plus;
      }
    }
  }
  // What is folded into the last operator cannot be said of the one.
  if (found.last->StringAttribute("fused_activation_function", "NONE") != "NONE") return std::nullopt;
  return found;
}

}  // namespace

std::int64_t RestoreLayerNorms(Graph& graph) {
  std::int64_t restored = 0;
  for (Node* node : graph.nodes()) {
    if (!node->Is("RSQRT", kCircleDomain)) continue;
    const std::optional<LayerNorm> found = MatchLayerNorm(*node);
    if (!found) continue;
    // The last operator becomes the one: its output keeps name, type and place.
    Node& last = *found->last;
    last.SetOp("LayerNormalization");
    last.attributes().clear();
    last.SetInput(0, found->x);
    last.SetInput(1, found->scale);
    if (found->bias != nullptr) last.SetInput(2, found->bias);
    last.SetAttribute("axis", found->axis);
    last.SetAttribute("epsilon", found->epsilon);
    ++restored;
  }
  graph.EraseDead();
  return restored;
}

}  // namespace octavo
