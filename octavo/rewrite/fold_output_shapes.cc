#include <optional>
#include <utility>
#include <vector>

#include "octavo/rewrite/passes.h"

namespace octavo {

namespace {

// All dimensions: a model that a runtime saved has the defaults of attributes in numbers.
bool IsWhole(const Node& shape) { return shape.IntAttribute("start", 0) == 0 && shape.FindAttribute("end") == nullptr; }

// Replaces a Shape node by a constant where its input's dimensions are all known. The node goes.
bool FoldKnownShape(Node& shape) {
  Graph& graph = *shape.graph();
  const std::optional<Dims> dims = StaticShape(shape.input(0)->type);
  if (!dims) return false;
  Value* constant = graph.AddConstant(
      shape.output()->name(), TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(dims->size())}, *dims));
  graph.ReplaceAllUses(shape.output(), constant);
  graph.Erase(&shape);
  return true;
}

}  // namespace

// Before:  %y : f32[N,S,384] = LayerNormalization ..., a graph output; %s = Shape %y
// After:   %s = constant [1, 128, 384], where that is what inference finds
std::int64_t FoldOutputShapes(Model& model) {
  Graph& graph = *model.graph;
  std::vector<Node*> shapes;
  std::vector<std::pair<Value*, Type>> declared;
  for (Node* node : graph.nodes()) {
    Value* x = node->input(0);
    if (!node->Is("Shape") || x == nullptr || !x->is_graph_output() || x->kind() != ValueKind::kResult ||
        node->output()->is_graph_output() || !IsWhole(*node) || x->type.quant || !x->type.opaque.empty()) {
      continue;
    }
    shapes.push_back(node);
  }
  if (shapes.empty()) return 0;
  // What is declared of an output is not to be believed; without it, the runtime says what it infers.
  for (Value* output : graph.outputs()) {
    if (output->kind() != ValueKind::kResult || output->type.quant || !output->type.opaque.empty()) continue;
    declared.emplace_back(output, output->type);
    output->type.shape.reset();
  }
  InferTypes(model);
  std::int64_t folded = 0;
  for (Node* node : shapes) {
    if (FoldKnownShape(*node)) ++folded;
  }
  for (auto& [output, type] : declared) output->type = std::move(type);
  return folded;
}

}  // namespace octavo
