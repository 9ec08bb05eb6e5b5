// Before:  %y = Conv(%x, w)                      After:  %y0 = Conv(FQ(%x), FQ(w)), %y = FQ(%y0)
// where FQ is octavo.MXFakeQuantize along the axis that is summed over, or the channels of the result.
#include <map>
#include <utility>

#include "octavo/ops/op_table.h"
#include "octavo/rewrite/fake_quantize.h"

namespace octavo {
namespace {

Node* AddFake(Graph& graph, Value* x, std::int64_t axis, const std::string& format, Node* before) {
  Node* node = graph.AddNode("MXFakeQuantize", std::string(kOctavoDomain), {x}, {{x->name() + "_fq", x->type}}, before);
  node->SetAttribute("elem_format", format);
  node->SetAttribute("axis", axis);
  node->SetAttribute("block_size", std::int64_t{32});
  node->SetAttribute("rounding", std::string("away"));
  node->SetAttribute("shared_exponent", std::string("floor"));
  return node;
}

}  // namespace

std::int64_t AssignMx(Model& model, const std::string& format) {
  Graph& graph = *model.graph;
  std::map<std::pair<const Value*, std::int64_t>, Value*> made;
  std::int64_t taken = 0;
  for (Node* node : graph.nodes()) {
    const OpInfo& info = FindOp(*node);
    if (info.category != OpCategory::kWeighted && info.category != OpCategory::kMatMul) continue;
    Value *x = node->input(0),
          *w = info.weight_input < 0 ? nullptr : node->input(static_cast<std::size_t>(info.weight_input));
    if (x == nullptr || w == nullptr || !w->is_constant() || !w->data || w->type.quant || !x->type.shape) continue;
    const std::optional<std::int64_t> contracted = ResolveAxis(info.contracted_axis, *node, w->data->dims.size());
    if (!contracted) continue;
    const auto rank = static_cast<std::int64_t>(x->type.shape->size());
    const std::int64_t axis = info.category == OpCategory::kMatMul || node->Is("Gemm") ? rank - 1 : 1;
    const auto fake = [&](Value* v, std::int64_t along) {
      Value*& known = made[{v, along}];
      if (known == nullptr) known = AddFake(graph, v, along, format, node)->output();
      return known;
    };
    node->SetInput(0, fake(x, axis));
    node->SetInput(static_cast<std::size_t>(info.weight_input), fake(w, *contracted));
    ++taken;
    // The result behind what is fused into it: an activation, the bias of a MatMul.
    Value* y = node->output();
    for (int i = 0; i < 2; ++i) {
      if (y->uses().size() != 1 || y->is_graph_output()) break;
      Node* next = y->uses()[0].node;
      const bool bias = next->Is("Add") && next->graph() == &graph &&
                        (next->input(0) == y ? next->input(1) : next->input(0))->is_constant();
      if (next->graph() != &graph || !(next->Is("Relu") || next->Is("Clip") || bias)) break;
      y = next->output();
    }
    if (y->is_graph_output()) continue;
    const std::vector<Use> uses(y->uses().begin(), y->uses().end());
    Node* fq = AddFake(graph, y, info.category == OpCategory::kMatMul || node->Is("Gemm") ? -1 : 1, format,
                       y->producer()->next());
    for (const Use& use : uses) use.node->SetInput(use.index, fq->output());
  }
  if (taken > 0) model.SetOpsetVersion(kOctavoDomain, 1);
  return taken;
}

}  // namespace octavo
