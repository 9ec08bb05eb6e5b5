// Before:  %q = octavo.QuantizeMx(%x)            After:  %x : f32 # mxfp4 = Producer
//          %d = octavo.DequantizeMx(%q)                  %y = Consumer(%x)
//          %y = Consumer(%d)
// and for a constant x a constant of numbers on the grid; a value with other uses gets an explicit Quantize.
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/emit/lower_mx.h"
#include "octavo/numerics/mx.h"
#include "octavo/ops/op_table.h"
#include "octavo/rewrite/fake_quantize.h"
#include "octavo/rewrite/rule.h"

namespace octavo {
namespace {

MatchOr<QuantType> ReadType(const Node& node) {
  const Value* x = node.input(0);
  QuantType type;
  type.kind = QuantType::Kind::kMx;
  type.mx.format = node.StringAttribute("elem_format", "");
  const MxFormat* format = FindMxFormat(type.mx.format);
  if (format == nullptr) return Refusal{"elem_format '" + type.mx.format + "' is none of MX"};
  type.mx.block = node.IntAttribute("block_size", format->block);
  if (type.mx.block < 1) return Refusal{"its blocks have no elements"};
  if (node.StringAttribute("shared_exponent", "floor") != "floor") return Refusal{"its shared exponent is not floor"};
  const std::string rounding = node.StringAttribute("rounding", "away");
  if (rounding != "away" && rounding != "even") return Refusal{"its rounding is neither away nor even"};
  std::int64_t axis = node.IntAttribute("axis", -1);
  std::optional<std::int64_t> rank;
  if (x->is_constant() && x->data)
    rank = static_cast<std::int64_t>(x->data->dims.size());
  else if (x->type.shape)
    rank = static_cast<std::int64_t>(x->type.shape->size());
  if (!rank) return Refusal{"the rank of its input is not known"};
  if (axis < -*rank || axis >= *rank) {
    ThrowBadInput("axis " + std::to_string(axis) + " is outside of a tensor of rank " + std::to_string(*rank),
                  Describe(node));
  }
  if (axis < 0) axis += *rank;
  type.mx.axis = axis;
  return type;
}

TensorRef OnGrid(const TensorRef& data, const Mx& mx, MxRounding rounding) {
  std::vector<float> values = data.ToFloats();
  MxShape shape;
  shape.block = static_cast<std::size_t>(mx.block);
  shape.n = static_cast<std::size_t>(data.dims[static_cast<std::size_t>(mx.axis)]);
  for (std::size_t i = 0; i < data.dims.size(); ++i) {
    if (static_cast<std::int64_t>(i) < mx.axis) shape.outer *= static_cast<std::size_t>(data.dims[i]);
    if (static_cast<std::int64_t>(i) > mx.axis) shape.inner *= static_cast<std::size_t>(data.dims[i]);
  }
  if (!values.empty()) MxFakeQuantize(values.data(), shape, *FindMxFormat(mx.format), rounding, values.data());
  return TensorRef::FromFloats(data.dims, values);
}

// Uses of `from` within its graph read `to`; what needs the float number itself (an output, a subgraph) a Dequantize.
void Replace(Graph& graph, Node& node, Value* from, Value* to) {
  const std::vector<Use> uses(from->uses().begin(), from->uses().end());
  for (const Use& use : uses) {
    if (use.node->graph() == &graph) use.node->SetInput(use.index, to);
  }
  if (from->dead()) return;
  Type type = from->type;
  type.quant.reset();
  Node* dq = graph.AddNode(std::string(kDequantize), std::string(kIrDomain), {to}, {{from->name(), type}}, &node);
  dq->form = QuantForm::kQdq;
  const std::string name = from->name();
  graph.ReplaceAllUses(from, dq->output());
  graph.SwapNames(from, dq->output());
}

void Fold(Node& q, const QuantType& quant) {
  Graph& graph = *q.graph();
  Value* x = q.input(0);
  const bool even = q.StringAttribute("rounding", "away") == "even";
  Value* made = nullptr;
  Node* explicit_node = nullptr;
  if (x->is_constant() && x->data && !x->type.quant && IsFloat(x->data->dtype)) {
    Type type = TypeOf(*x->data);
    type.dtype = DType::kF32;
    const MxRounding rounding = even ? MxRounding::kEven : MxRounding::kAway;
    if (FindMxFormat(quant.mx.format)->e4m3_scale) {
      MxTwin twin = MakeMxTwin(*x->data, quant.mx, rounding);
      type.quant = QuantType{};
      type.quant->affine = std::move(twin.affine);
      made = graph.AddConstant(x->name(), std::move(twin.codes), type);
    } else {
      type.quant = quant;
      made = graph.AddConstant(x->name(), OnGrid(*x->data, quant.mx, rounding), type);
    }
  } else {
    Type type = x->type;
    type.quant = quant;
    if (type.dtype == DType::kUndefined) type.dtype = DType::kF32;
    explicit_node = graph.AddNode(std::string(x->type.quant ? kRequantize : kQuantize), std::string(kIrDomain), {x},
                                  {{x->name() + "_mx", type}}, &q);
    explicit_node->form = QuantForm::kQdq;
    if (even) explicit_node->SetAttribute("rounding", std::string("even"));
    made = explicit_node->output();
  }
  // The pair's other half, whatever stands between.
  const std::vector<Use> uses(q.output()->uses().begin(), q.output()->uses().end());
  for (const Use& use : uses) {
    if (!use.node->Is("DequantizeMx", kOctavoDomain) || use.node->graph() != &graph) continue;
    Node* dq = use.node;
    Replace(graph, *dq, dq->output(), made);
    graph.Erase(dq);
  }
  Replace(graph, q, q.output(), made);
  graph.Erase(&q);
  if (explicit_node == nullptr) {
    if (x->dead() && x->is_constant()) {
      const std::string name = x->name();
      Graph* home = x->graph();
      home->Erase(x);
      if (home == &graph) graph.Rename(made, name);
    }
    return;
  }
  // Into the producer, where nobody reads the float number. What comes out of a DequantizeLinear gets the type of its
  // own pair.
  Node* producer = x->producer();
  if (producer != nullptr && (FindOp(*producer).category == OpCategory::kQuantized ||
                              producer->Is("DequantizeLinear") || producer->domain() == kOctavoDomain)) {
    return;
  }
  if (even || x->type.quant || producer == nullptr || producer->graph() != &graph || producer->domain() == kIrDomain ||
      x->uses().size() != 1 || x->is_graph_output() || !producer->subgraphs().empty()) {
    return;
  }
  graph.ReplaceAllUses(made, x);
  graph.Erase(explicit_node);
  x->type.quant = quant;
  if (producer->form == QuantForm::kNone) producer->form = QuantForm::kQdq;
}

}  // namespace

std::int64_t RoundMxAway(Model& model) {
  std::int64_t changed = 0;
  VisitNodes(*model.graph, [&](Node& node) {
    if (node.domain() != kIrDomain || node.StringAttribute("rounding", "away") != "even") return;
    node.SetAttribute("rounding", std::string("away"));
    ++changed;
  });
  return changed;
}

std::int64_t FoldQuantOps(Model& model) {
  std::vector<Node*> found;
  VisitNodes(*model.graph, [&](Node& node) {
    if (node.Is("QuantizeMx", kOctavoDomain) && node.input(0) != nullptr && node.output() != nullptr)
      found.push_back(&node);
  });
  std::int64_t folded = 0;
  for (Node* node : found) {
    const MatchOr<QuantType> type = ReadType(*node);
    if (const auto* refusal = std::get_if<Refusal>(&type)) {
      LogWarning("QuantizeMx stays as it is: " + Describe(*node) + ": " + refusal->reason);
      continue;
    }
    Fold(*node, std::get<QuantType>(type));
    ++folded;
  }
  return folded;
}

}  // namespace octavo
