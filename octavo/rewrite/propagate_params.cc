// Before:  %b = Reshape(%a : f32 # u8)           After:  %b : f32 # u8 = Reshape(%a : f32 # u8)
// Before:  %b : f32 # u8 = MaxPool(%a : f32)     After:  the same with %a : f32 # u8, which only MaxPool reads
#include "octavo/ops/op_table.h"
#include "octavo/rewrite/fake_quantize.h"

namespace octavo {
namespace {

bool PerTensor(const Value* v) {
  return v->type.quant && v->type.quant->kind == QuantType::Kind::kAffine && v->type.quant->affine.per_tensor();
}

bool Moves(const Node& node) {
  const OpInfo& info = FindOp(node);
  return info.value_preserving && info.flow == ParamFlow::kSameAsInput && node.input(0) != nullptr &&
         node.output() != nullptr && node.subgraphs().empty() &&
         !node.Is("Pad");  // what it pads with may be any number
}

bool IsFloatValue(const Value* v) { return !v->type.quant && IsFloat(v->type.dtype) && v->type.opaque.empty(); }

}  // namespace

std::int64_t PropagateParams(Model& model) {
  Graph& graph = *model.graph;
  std::int64_t typed = 0;
  for (Node* node = graph.first(); node != nullptr; node = node->next()) {
    if (!Moves(*node) || !PerTensor(node->input(0))) continue;
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      Value* y = node->output(i);
      if (y == nullptr || !IsFloatValue(y) || (i > 0 && !node->Is("Split"))) continue;
      y->type.quant = node->input(0)->type.quant;
      if (node->form == QuantForm::kNone) node->form = QuantForm::kQdq;
      // What was quantized in another way behind it starts from these codes now.
      for (const Use& use : y->uses()) {
        if (use.node->Is(kQuantize, kIrDomain)) use.node->SetOp(std::string(kRequantize), std::string(kIrDomain));
      }
      ++typed;
    }
  }
  for (Node* node = graph.last(); node != nullptr; node = node->prev()) {
    if (!Moves(*node) || node->outputs().size() != 1 || !PerTensor(node->output())) continue;
    Value* x = node->input(0);
    const Node* producer = x->producer();
    if (!IsFloatValue(x) || producer == nullptr || producer->graph() != &graph || producer->domain() == kIrDomain ||
        x->uses().size() != 1 || x->is_graph_output() || !producer->subgraphs().empty()) {
      continue;
    }
    x->type.quant = node->output()->type.quant;
    ++typed;
  }
  return typed;
}

std::vector<std::string> ValuesWithoutParams(const Model& model) {
  std::vector<std::string> names;
  for (const Node* node = model.graph->first(); node != nullptr; node = node->next()) {
    const OpCategory category = FindOp(*node).category;
    if (category == OpCategory::kShape || category == OpCategory::kControl || category == OpCategory::kQuantized)
      continue;
    for (const Value* v : node->outputs()) {
      if (v != nullptr && IsFloatValue(v) && !v->is_graph_output()) names.push_back(v->name());
    }
  }
  return names;
}

}  // namespace octavo
