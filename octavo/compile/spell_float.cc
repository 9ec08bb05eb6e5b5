#include "octavo/compile/spell_float.h"

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/compile/float_constant.h"

namespace octavo {
namespace {

// Writes operators in front of one node, in the type of its input.
class Speller {
 public:
  explicit Speller(Node& node) : graph_(*node.graph()), node_(node), dtype_(node.input(0)->type.dtype) {}

  Value* Op(std::string_view op, const std::vector<Value*>& inputs) {
    Type type;
    type.dtype = dtype_;
    return graph_.AddNode(std::string(op), "", inputs, {{graph_.UniqueName(Name(op)), type}}, &node_)->output();
  }
  Value* Number(float value) { return AddFloatConstant(graph_, Name("number"), dtype_, {}, std::span(&value, 1)); }
  Value* x() const { return node_.input(0); }

 private:
  std::string Name(std::string_view what) const { return node_.output()->name() + "_" + std::string(what); }
  Graph& graph_;
  Node& node_;
  DType dtype_;
};

// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)): no exponential of a large number.
Value* Softplus(Speller& spell, Node&) {
  Value* decay = spell.Op("Exp", {spell.Op("Neg", {spell.Op("Abs", {spell.x()})})});
  Value* log = spell.Op("Log", {spell.Op("Add", {decay, spell.Number(1)})});
  return spell.Op("Add", {spell.Op("Relu", {spell.x()}), log});
}

// x tanh(softplus(x))
Value* Mish(Speller& spell, Node& node) {
  return spell.Op("Mul", {spell.x(), spell.Op("Tanh", {Softplus(spell, node)})});
}

// x / (1 + |x|)
Value* Softsign(Speller& spell, Node&) {
  return spell.Op("Div", {spell.x(), spell.Op("Add", {spell.Op("Abs", {spell.x()}), spell.Number(1)})});
}

// max(x, 0) + min(0, a (exp(x / a) - 1)) = a elu(x / a)
Value* Celu(Speller& spell, Node& node) {
  const float a = node.FloatAttribute("alpha", 1.0f);
  if (!(a > 0)) return nullptr;
  if (a == 1) return spell.Op("Elu", {spell.x()});
  return spell.Op("Mul", {spell.Op("Elu", {spell.Op("Div", {spell.x(), spell.Number(a)})}), spell.Number(a)});
}

// (exp(x) -+ exp(-x)) / 2
Value* Hyperbolic(Speller& spell, std::string_view join) {
  Value* up = spell.Op("Exp", {spell.x()});
  Value* down = spell.Op("Exp", {spell.Op("Neg", {spell.x()})});
  return spell.Op("Mul", {spell.Op(join, {up, down}), spell.Number(0.5f)});
}
Value* Sinh(Speller& spell, Node&) { return Hyperbolic(spell, "Sub"); }
Value* Cosh(Speller& spell, Node&) { return Hyperbolic(spell, "Add"); }

// The sum of `terms` as `node` reduces its input. Axes have been an input of ReduceSum since operator set 13, of the
// others since 18.
Value* Sum(Speller& spell, Node& node, Value* terms) {
  std::vector<Value*> inputs = {terms};
  Graph& graph = *node.graph();
  if (node.input(1) != nullptr) {
    inputs.push_back(node.input(1));
  } else if (const std::vector<std::int64_t>* axes = node.IntsAttribute("axes")) {
    inputs.push_back(
        graph.AddConstant(graph.UniqueName(node.output()->name() + "_axes"),
                          TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(axes->size())}, *axes)));
  }
  Value* sum = spell.Op("ReduceSum", inputs);
  sum->producer()->SetAttribute("keepdims", node.IntAttribute("keepdims", 1));
  return sum;
}
Value* SumOfAbs(Speller& spell, Node& node) {
  if (node.IntAttribute("noop_with_empty_axes", 0) != 0) return nullptr;
  return Sum(spell, node, spell.Op("Abs", {spell.x()}));
}
Value* SumOfSquares(Speller& spell, Node& node) {
  if (node.IntAttribute("noop_with_empty_axes", 0) != 0) return nullptr;
  return Sum(spell, node, spell.Op("Mul", {spell.x(), spell.x()}));
}

// From 8-bit codes to 8-bit codes.
bool BetweenBytes(const Node& node) {
  const Node* from = node.input(0)->producer();
  if (from == nullptr || !from->Is("DequantizeLinear") || BitWidth(from->input(0)->type.dtype) != 8) return false;
  return std::all_of(node.output()->uses().begin(), node.output()->uses().end(), [](const Use& use) {
    return use.node->Is("QuantizeLinear") && BitWidth(use.node->output()->type.dtype) == 8;
  });
}

struct Spelling {
  std::string_view op;
  Value* (*spell)(Speller&, Node&);  // null: not in this form
  bool has_bytes = false;            // the device has it between bytes
};
constexpr Spelling kSpellings[] = {
    {"Softplus", Softplus, true},
    {"Mish", Mish},
    {"Softsign", Softsign},
    {"Celu", Celu},
    {"Sinh", Sinh},
    {"Cosh", Cosh},
    {"ReduceL1", SumOfAbs},
    {"ReduceSumSquare", SumOfSquares},
};

}  // namespace

std::int64_t SpellFloat(Model& model) {
  if (model.OpsetVersion() < 13) return 0;
  Graph& graph = *model.graph;
  std::int64_t count = 0;
  for (Node* node : graph.nodes()) {
    for (const Spelling& spelling : kSpellings) {
      if (!node->Is(spelling.op) || node->input(0) == nullptr || node->output() == nullptr) continue;
      const DType dtype = node->input(0)->type.dtype;
      if (dtype != DType::kF32 && dtype != DType::kF16) break;
      if (spelling.has_bytes && BetweenBytes(*node)) break;
      Speller speller(*node);
      Value* spelled = spelling.spell(speller, *node);
      if (spelled == nullptr) break;
      spelled->type = node->output()->type;
      graph.ReplaceAllUses(node->output(), spelled);
      graph.SwapNames(node->output(), spelled);
      graph.Erase(node);
      ++count;
      break;
    }
  }
  return count;
}

}  // namespace octavo
