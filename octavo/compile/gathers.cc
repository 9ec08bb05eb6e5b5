#include "octavo/compile/gathers.h"

#include <string>

#include "octavo/compile/codes.h"
#include "octavo/ir/make_type.h"

namespace octavo {
namespace {

bool PlanesToGather(Graph& graph, Node* node) {
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

constexpr std::uint64_t kMany = 32;  // indices, from which on the device gathers otherwise

Value* Transposed(Graph& graph, Value* x, const Dims& dims, const std::vector<std::int64_t>& perm,
                  const std::string& name, Node* before) {
  Dims to;
  for (const std::int64_t axis : perm) to.push_back(dims[static_cast<std::size_t>(axis)]);
  Node* transpose = graph.AddNode("Transpose", "", {x}, {{graph.UniqueName(name), TypeOf(x->type.dtype, to)}}, before);
  transpose->SetAttribute("perm", perm);
  return transpose->output();
}

bool RowsToColumns(Graph& graph, Node* node) {
  if (!node->Is("Gather") || node->output() == nullptr || node->input(1) == nullptr) return false;
  const std::optional<Codes> codes = Behind(node->input(0));
  if (!codes || codes->scales.size() != 1 || codes->dequantize->input(2) == nullptr) return false;
  const int bits = BitWidth(codes->storage);
  if ((bits != 8 && bits != 16) || (bits == 8 && codes->codes != nullptr)) return false;
  const std::optional<Dims> dims = StaticShape(node->input(0)->type), at = StaticShape(node->input(1)->type);
  if (!dims || dims->empty() || !at || ElementCount(*at) < kMany) return false;
  const auto rank = static_cast<std::int64_t>(dims->size()), places = static_cast<std::int64_t>(at->size());
  std::int64_t axis = node->IntAttribute("axis", 0);
  if (axis < 0) axis += rank;
  if (axis < 0 || axis >= rank) return false;
  const std::uint64_t bytes =
      ElementCount(std::span(*dims).subspan(static_cast<std::size_t>(axis) + 1)) * static_cast<std::uint64_t>(bits) / 8;
  if (bytes != 8 && bytes != 16 && bytes != 32) return false;

  Value *x = node->input(0), *y = node->output();
  const std::string base = y->name();
  const auto coded = [&](Value* v, Node* before) {
    return Requantized(graph, v, codes->dequantize->input(1), codes->dequantize->input(2), codes->storage, v->name(),
                       before);
  };
  std::vector<std::int64_t> there, back;
  Dims out;
  for (std::int64_t i = 0; i < rank; ++i) {
    if (i == axis) continue;
    there.push_back(i);
    out.push_back((*dims)[static_cast<std::size_t>(i)]);
  }
  there.push_back(axis);
  out.insert(out.end(), at->begin(), at->end());
  for (std::int64_t i = 0; i < axis; ++i) back.push_back(i);
  for (std::int64_t i = 0; i < places; ++i) back.push_back(rank - 1 + i);
  for (std::int64_t i = axis; i + 1 < rank; ++i) back.push_back(i);
  Value* columns = coded(Transposed(graph, x, *dims, there, base + "_columns", node), node);
  Node* gather = graph.AddNode("Gather", "", {columns, node->input(1)},
                               {{graph.UniqueName(base + "_gathered"), TypeOf(x->type.dtype, out)}}, node);
  gather->SetAttribute("axis", rank - 1);
  gather->name = node->name;
  Value* rows = Transposed(graph, coded(gather->output(), node), out, back, base + "_rows", node);
  graph.ReplaceAllUses(y, rows);
  graph.SwapNames(y, rows);
  graph.Erase(node);
  return true;
}

}  // namespace

std::int64_t GatherColumns(Model& model) {
  std::int64_t changed = 0;
  for (Node* node : model.graph->nodes()) changed += RowsToColumns(*model.graph, node) ? 1 : 0;
  return changed;
}

std::int64_t GatherPlanes(Model& model) {
  std::int64_t changed = 0;
  for (Node* node : model.graph->nodes()) changed += PlanesToGather(*model.graph, node) ? 1 : 0;
  return changed;
}

}  // namespace octavo
