// Small questions that rules for operator patterns ask. Internal to rules/.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "octavo/ir/make_type.h"
#include "octavo/ir/users.h"
#include "octavo/rewrite/rules/linear.h"

namespace octavo {

// The number that a one-element float constant holds.
inline std::optional<float> ScalarOf(const Value* value) {
  if (!IsFloatConstant(value) || value->data->elements() != 1) return std::nullopt;
  return value->data->ToFloats()[0];
}

// A constant of one number for each of n columns along the last axis.
inline bool PerLastAxis(const Value* value, std::int64_t n) {
  return IsFloatConstant(value) && !value->data->dims.empty() && value->data->dims.back() == n &&
         value->data->elements() == static_cast<std::uint64_t>(n);
}

// The only axis that a reduction is given, by attribute or (from operator set 13 or 18) as a constant; below 0: from
// the end.
inline std::optional<std::int64_t> OnlyAxis(const Node& reduce) {
  std::vector<std::int64_t> axes;
  if (const auto* attribute = reduce.IntsAttribute("axes")) axes = *attribute;
  if (const Value* input = reduce.input(1); input != nullptr) {
    if (!input->is_constant() || !input->data || !IsInteger(input->data->dtype)) return std::nullopt;
    axes = input->data->ToInts();
  }
  return axes.size() == 1 ? std::optional(axes[0]) : std::nullopt;
}

// The most dimensions of a tensor on an NPU.
inline constexpr std::size_t kNpuDims = 5;

// Whether a tensor of these dimensions has no elements.
inline bool HasNone(const Dims& dims) { return std::find(dims.begin(), dims.end(), 0) != dims.end(); }

// |a - b| within a few f32 roundings of b: exporters write sqrt(2) and 1/6 in their own ways.
inline bool Near(float a, double b) { return std::abs(static_cast<double>(a) - b) <= 4e-6 * std::abs(b); }

// x, where `node` is op(x, constant near c) or, for what commutes, op(constant, x); else null.
inline Value* OtherThan(const Node* node, std::string_view op, double c) {
  if (node == nullptr || !node->Is(op) || node->inputs().size() != 2) return nullptr;
  const bool commutes = op == "Mul" || op == "Add";
  for (std::size_t i = commutes ? 0 : 1; i < 2; ++i) {
    const std::optional<float> value = ScalarOf(node->input(i));
    if (value && Near(*value, c)) return node->input(1 - i);
  }
  return nullptr;
}

// A Reshape of `x` to known dimensions in front of `before`; names are made unique from `base`.
inline Node* AddReshape(Value* x, const Dims& to, const std::string& base, Node* before) {
  Graph& graph = *before->graph();
  Value* dims = graph.AddConstant(graph.UniqueName(base + "_shape"),
                                  TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(to.size())}, to));
  return graph.AddNode("Reshape", "", {x, dims}, {{graph.UniqueName(base), TypeOf(x->type.dtype, to)}}, before);
}

// `node`'s only output takes over the place of `last`'s, in name too; what nobody reads then goes.
inline void TakePlace(Node& node, Node& last, Rewriter& rewriter) {
  Graph& graph = *last.graph();
  const std::string name = last.output()->name();
  const bool output = last.output()->is_graph_output();
  node.output()->type = last.output()->type;
  node.name = last.name;
  rewriter.Bypass(last, node.output());
  if (!output) graph.Rename(node.output(), name);
  rewriter.Touch(&node);
}

}  // namespace octavo
