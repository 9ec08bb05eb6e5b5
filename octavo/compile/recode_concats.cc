#include "octavo/compile/recode_concats.h"

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/compile/codes.h"
#include "octavo/ops/op_table.h"

namespace octavo {
namespace {

// Of a chain of Concats each copies all before it.
constexpr std::int64_t kMostCopies = 1000;

// One scale and zero point of u8.
struct Params {
  Value *scale, *zero;
  float step;
  std::int64_t middle;
  bool operator==(const Params& other) const { return step == other.step && middle == other.middle; }
};

std::optional<Params> ParamsOf(const Node& node) {
  Value *scale = node.input(1), *zero = node.input(2);
  if (scale == nullptr || !scale->data || scale->data->elements() != 1) return std::nullopt;
  if (zero == nullptr || !zero->data || zero->data->dtype != DType::kU8) return std::nullopt;
  return Params{scale, zero, scale->data->ToFloats()[0], zero->data->ToInts()[0]};
}

// The parameters that all that read `v` quantize it to.
std::optional<Params> Becomes(const Value& v) {
  std::optional<Params> all;
  for (const Use& use : v.uses()) {
    const std::optional<Params> one =
        use.node->Is("QuantizeLinear") && use.index == 0 ? ParamsOf(*use.node) : std::nullopt;
    if (!one || (all && !(*all == *one))) return std::nullopt;
    all = one;
  }
  return v.is_graph_output() ? std::nullopt : all;
}

// What computes the number whose codes a DequantizeLinear gives as `v`, in the same codes; null where nothing does.
Node* Maker(const Value* v, const Params& params) {
  const Node* dequantize = v == nullptr ? nullptr : v->producer();
  if (dequantize == nullptr || !dequantize->Is("DequantizeLinear")) return nullptr;
  const Node* quantize = dequantize->input(0)->producer();
  if (quantize == nullptr || !quantize->Is("QuantizeLinear") || quantize->input(0) == nullptr) return nullptr;
  if (ParamsOf(*dequantize) != params || ParamsOf(*quantize) != params) return nullptr;
  return quantize->input(0)->producer();
}

// A Pad's own number need not be among the codes that it had.
bool Moves(const Node& node) {
  if (node.Is("Pad") && node.input(2) != nullptr) return false;
  const OpInfo& info = FindOp(node);
  return info.category == OpCategory::kDataMovement && info.flow == ParamFlow::kSameAsInput &&
         node.outputs().size() == 1;
}

// The operator that computes `v`, with those in `moves` that moved it since, the last one first.
Node* Source(const Value* v, const Params& params, std::vector<Node*>& moves) {
  Node* maker = Maker(v, params);
  for (; maker != nullptr && Moves(*maker); maker = Maker(maker->input(0), params)) moves.push_back(maker);
  return maker;
}

// Whether an activation or an elementwise operator, which the compiler makes a table of, computes some of what `node`
// gives, in whatever codes. `seen`: what need not be looked at again.
bool GivesTable(const Node* node, std::unordered_set<const Node*>& seen) {
  if (node == nullptr || !seen.insert(node).second) return false;
  const OpCategory category = FindOp(*node).category;
  if (category == OpCategory::kActivation || category == OpCategory::kElementwise) return true;
  const bool looks = node->Is("QuantizeLinear") || node->Is("DequantizeLinear") || Moves(*node);
  if (!looks && !node->Is("Concat")) return false;
  const std::size_t inputs = looks ? 1 : node->inputs().size();
  for (std::size_t i = 0; i < inputs; ++i) {
    if (node->input(i) != nullptr && GivesTable(node->input(i)->producer(), seen)) return true;
  }
  return false;
}

// A copy of `node`, in front of `at`, over `inputs`, whose result is in `params`.
Value* Copied(Graph& graph, const Node& node, std::vector<Value*> inputs, const Params& params, Node* at,
              Node** copied) {
  const std::string base = node.output()->name() + "_recoded";
  Node* copy =
      graph.AddNode(node.op(), node.domain(), std::move(inputs), {{graph.UniqueName(base), node.output()->type}}, at);
  for (const Attribute& attribute : node.attributes()) {
    std::visit(
        [&](const auto& value) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(value)>, std::unique_ptr<Graph>>)  // no mover holds one
            copy->SetAttribute(attribute.name, value);
        },
        attribute.value);
  }
  if (copied != nullptr) *copied = copy;
  return Requantized(graph, copy->output(), params.scale, params.zero, DType::kU8, base, at);
}

// Input `i` of `outer`, which is in `to`; the Concat that takes the place of the one behind it, or null.
Node* Recode(Graph& graph, Node* outer, std::size_t i, const Params& to) {
  const Node* dequantize = outer->input(i) == nullptr ? nullptr : outer->input(i)->producer();
  const std::optional<Params> from = dequantize == nullptr ? std::nullopt : ParamsOf(*dequantize);
  if (!from || *from == to) return nullptr;
  std::vector<Node*> moves;
  const Node* inner = Source(outer->input(i), *from, moves);
  std::unordered_set<const Node*> seen;
  if (inner == nullptr || !inner->Is("Concat") || !GivesTable(inner, seen)) return nullptr;
  std::vector<Value*> inputs;
  for (Value* input : inner->inputs()) {
    const Node* maker = input->producer();
    const bool same = maker != nullptr && maker->Is("DequantizeLinear") && ParamsOf(*maker) == from;
    inputs.push_back(
        same ? input
             : Requantized(graph, input, from->scale, from->zero, DType::kU8, input->name() + "_recoded", outer));
  }
  Node* copy = nullptr;
  Value* moved = Copied(graph, *inner, std::move(inputs), to, outer, &copy);
  for (auto move = moves.rbegin(); move != moves.rend(); ++move) {
    std::vector<Value*> with((*move)->inputs().begin(), (*move)->inputs().end());
    with[0] = moved;
    moved = Copied(graph, **move, std::move(with), to, outer, nullptr);
  }
  outer->SetInput(i, moved);
  return copy;
}

}  // namespace

std::int64_t RecodeConcats(Model& model) {
  // In the order of execution: what a Concat reads is in its codes before they change. A copy is looked at as well, for
  // the Concats that it reads.
  std::deque<Node*> concats;
  for (Node* node : model.graph->nodes()) {
    if (node->Is("Concat")) concats.push_back(node);
  }
  std::int64_t count = 0;
  while (!concats.empty() && count < kMostCopies) {
    Node* outer = concats.front();
    concats.pop_front();
    const std::optional<Params> to = outer->output() == nullptr ? std::nullopt : Becomes(*outer->output());
    if (!to) continue;
    for (std::size_t i = 0; i < outer->inputs().size(); ++i) {
      Node* copy = Recode(*model.graph, outer, i, *to);
      if (copy == nullptr) continue;
      concats.push_front(copy);
      ++count;
    }
  }
  return count;
}

}  // namespace octavo
