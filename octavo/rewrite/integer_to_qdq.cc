// Integer products whose parameters are computed, for devices that take Q/DQ only.
#include <algorithm>

#include "octavo/rewrite/quantized.h"

namespace octavo {
namespace {

constexpr std::string_view kMs = "com.microsoft";

// Adds %y = DequantizeLinear %codes, %scale, %zero in front of `before`.
Value* Dequantize(Value* codes, Value* scale, Value* zero, std::optional<std::int64_t> axis, Node* before) {
  Type type = codes->type;
  type.dtype = DType::kF32;
  std::vector<Value*> inputs{codes, scale};
  if (zero != nullptr) inputs.push_back(zero);
  Node* dq =
      before->graph()->AddNode("DequantizeLinear", "", std::move(inputs), {{codes->name() + "_float", type}}, before);
  if (axis) dq->SetAttribute("axis", *axis);
  return dq->output();
}

bool IsColumns(const Value* v) {
  return v != nullptr && (v->data ? v->data->elements() > 1
                                  : v->type.shape.has_value() && !v->type.shape->empty() &&
                                        !((*v->type.shape)[0].known() && (*v->type.shape)[0].value == 1));
}

void Finish(Node& node, Node& last, Node& fresh) {
  Graph& graph = *node.graph();
  Value *old = last.output(), *made = fresh.output();
  const std::string name = old->name();
  made->extras = old->extras;
  fresh.name = node.name;
  graph.ReplaceAllUses(old, made);
  graph.Erase(&last);
  if (&last != &node) graph.Erase(&node);
  graph.Rename(made, name);
}

// Before:  %i = MatMulInteger %a, %b, %z_a, %z_b;  %y = Cast %i
// After:   %y = MatMul (DequantizeLinear %a, 1, %z_a), (DequantizeLinear %b, 1, %z_b)
bool Sums(Node& node) {
  const bool conv = node.Is("ConvInteger");
  Value *y = node.output(), *b = node.input(1), *zero = node.input(3);
  if (y->is_graph_output() || y->uses().size() != 1) return false;
  Node* cast = y->uses()[0].node;
  if (!cast->Is("Cast") || cast->IntAttribute("to", 0) != 1 || cast->graph() != node.graph()) return false;
  if (IsColumns(node.input(2))) return false;
  Graph& graph = *node.graph();
  const auto ones = [&](const Value* like) {
    const bool columns = IsColumns(like);
    const std::size_t n = columns && like->data ? like->data->elements() : 1;
    return graph.AddConstant(
        y->name() + "_one",
        TensorRef::FromFloats(columns ? Dims{static_cast<std::int64_t>(n)} : Dims{}, std::vector<float>(n, 1.0f)));
  };
  std::optional<std::int64_t> axis;
  if (IsColumns(zero)) {
    if (!zero->data || zero->data->dims.size() != 1 || !b->type.shape) return false;
    axis = conv ? 0 : static_cast<std::int64_t>(b->type.shape->size()) - 1;
  }
  Value* left = Dequantize(node.input(0), ones(node.input(2)), node.input(2), std::nullopt, &node);
  Value* right = Dequantize(b, ones(zero), zero, axis, &node);
  Type type = cast->output()->type;
  type.dtype = DType::kF32;
  Node* fresh = graph.AddNode(conv ? "Conv" : "MatMul", "", {left, right}, {{y->name() + "_product", type}}, &node);
  for (Attribute& a : node.attributes()) fresh->SetAttribute(a.name, std::move(a.value));
  Finish(node, *cast, *fresh);
  return true;
}

// Before:  %y = MatMulIntegerToFloat %a, %b, %s_a, %s_b, %z_a, %z_b, %bias
// After:   %y = Add (MatMul (DequantizeLinear %a, %s_a, %z_a), (DequantizeLinear %b, %s_b, %z_b)), %bias
bool ToFloat(Node& node) {
  Value *b = node.input(1), *scale = node.input(3);
  if (IsColumns(node.input(2)) || b == nullptr || scale == nullptr || node.output() == nullptr) return false;
  std::optional<std::int64_t> axis;
  if (IsColumns(scale)) {
    if (!b->type.shape || !scale->data || scale->data->dims.size() != 1) return false;
    const Value* zero = node.input(5);
    if (zero != nullptr && (!zero->data || zero->data->dims != scale->data->dims)) return false;
    axis = static_cast<std::int64_t>(b->type.shape->size()) - 1;
  }
  Graph& graph = *node.graph();
  Value* left = Dequantize(node.input(0), node.input(2), node.input(4), std::nullopt, &node);
  Value* right = Dequantize(b, scale, node.input(5), axis, &node);
  const Type type = node.output()->type;
  const std::string name = node.output()->name();
  Node* fresh = graph.AddNode("MatMul", "", {left, right}, {{name + "_product", type}}, &node);
  if (node.input(6) != nullptr) {
    fresh = graph.AddNode("Add", "", {fresh->output(), node.input(6)}, {{name + "_sum", type}}, &node);
  }
  Finish(node, node, *fresh);
  return true;
}

}  // namespace

std::int64_t IntegerProductsToQdq(Model& model) {
  std::vector<Node*> nodes;
  VisitNodes(*model.graph, [&](Node& node) {
    const bool sums = node.domain().empty() && (node.op() == "MatMulInteger" || node.op() == "ConvInteger");
    if (sums || node.Is("MatMulIntegerToFloat", kMs)) nodes.push_back(&node);
  });
  std::int64_t changed = 0;
  for (Node* node : nodes) changed += (node->domain().empty() ? Sums(*node) : ToFloat(*node)) ? 1 : 0;
  return changed;
}

}  // namespace octavo
