#include "octavo/compile/gather_planes.h"

#include <string>

#include "octavo/ir/make_type.h"

namespace octavo {
namespace {

bool Change(Graph& graph, Node* node) {
  if (!node->Is("GatherND") || node->IntAttribute("batch_dims", 0) != 0 || node->output() == nullptr) return false;
  Value *x = node->input(0), *indices = node->input(1);
  if (x == nullptr || indices == nullptr || !x->type.shape || x->type.shape->size() < 3) return false;
  std::optional<Dims> dims = StaticShape(indices->type);
  if (!dims || dims->size() < 2 || dims->back() != 1) return false;
  dims->pop_back();
  const std::string base = indices->name() + "_places";
  if (indices->is_constant() && indices->data) {
    TensorRef places = *indices->data;
    places.dims = *dims;
    indices = graph.AddConstant(graph.UniqueName(base), std::move(places));
  } else {
    Value* shape =
        graph.AddConstant(graph.UniqueName(base + "_shape"),
                          TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(dims->size())}, *dims));
    indices = graph
                  .AddNode("Reshape", "", {indices, shape},
                           {{graph.UniqueName(base), TypeOf(indices->type.dtype, *dims)}}, node)
                  ->output();
  }
  Value* y = node->output();
  Node* gather = graph.AddNode("Gather", "", {x, indices}, {{graph.UniqueName(y->name() + "_planes"), y->type}}, node);
  gather->name = node->name;
  graph.ReplaceAllUses(y, gather->output());
  graph.SwapNames(y, gather->output());
  graph.Erase(node);
  return true;
}

}  // namespace

std::int64_t GatherPlanes(Model& model) {
  std::int64_t changed = 0;
  for (Node* node : model.graph->nodes()) changed += Change(*model.graph, node) ? 1 : 0;
  return changed;
}

}  // namespace octavo
