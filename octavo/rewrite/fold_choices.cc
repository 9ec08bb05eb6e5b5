// What choose-at-load wrote, read back.
// Before:  %y = If %any {Op ..., %w_s8, ..., z - 128} {%w = Cast (Cast %w_s8 + 128);  Op ..., %w, ..., z}
// After:   %y = Op ..., %w : u8, ..., z
// Both branches compute the same integers, so the condition does not matter.
#include <optional>
#include <unordered_map>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

const TensorRef* Codes(const Value* v, DType type) {
  return v != nullptr && v->is_constant() && v->data && !v->type.quant && v->data->dtype == type ? &*v->data : nullptr;
}

bool IsCast(const Node* node, std::int64_t to) { return node->Is("Cast") && node->IntAttribute("to", 0) == to; }

// The nodes of a branch that takes nothing and gives one value.
std::vector<Node*> Body(const Graph& graph) {
  std::vector<Node*> nodes;
  if (!graph.inputs().empty() || graph.outputs().size() != 1) return nodes;
  for (Node* n = graph.first(); n != nullptr && nodes.size() < 5; n = n->next()) nodes.push_back(n);
  if (!nodes.empty() && (nodes.back()->outputs().size() != 1 || nodes.back()->output() != graph.outputs()[0]))
    return {};
  return nodes;
}

struct Pair {
  Node *fast = nullptr, *right = nullptr;  // u8 times s8, u8 times u8
  std::size_t weight = 0;
  const TensorRef* codes = nullptr;  // s8
};

std::optional<Pair> Match(const Node& node) {
  if (!node.Is("If") || node.outputs().size() != 1 || node.output() == nullptr) return std::nullopt;
  const Attribute *then = node.FindAttribute("then_branch"), *otherwise = node.FindAttribute("else_branch");
  if (then == nullptr || otherwise == nullptr) return std::nullopt;
  const auto* a = std::get_if<std::unique_ptr<Graph>>(&then->value);
  const auto* b = std::get_if<std::unique_ptr<Graph>>(&otherwise->value);
  if (a == nullptr || b == nullptr) return std::nullopt;
  const std::vector<Node*> one = Body(**a), four = Body(**b);
  if (one.size() != 1 || four.size() != 4) return std::nullopt;
  Pair p{one[0], four[3], 0, nullptr};
  const bool matrix = p.fast->Is("QLinearMatMul") || p.fast->Is("QLinearConv") || p.fast->Is("QGemm", "com.microsoft");
  const bool to_float = p.fast->Is("MatMulIntegerToFloat", "com.microsoft");
  if ((!matrix && !to_float) || !p.right->Is(p.fast->op(), p.fast->domain())) return std::nullopt;
  p.weight = to_float ? 1 : 3;
  const std::size_t zero = 5;
  if (p.fast->inputs().size() != p.right->inputs().size()) return std::nullopt;
  for (std::size_t i = 0; i < p.fast->inputs().size(); ++i) {
    if (i != p.weight && i != zero && p.fast->input(i) != p.right->input(i)) return std::nullopt;
  }
  if (!SameAttributes(*p.fast, *p.right)) return std::nullopt;
  p.codes = Codes(p.fast->input(p.weight), DType::kS8);
  const TensorRef *z = Codes(p.fast->input(zero), DType::kS8), *shifted = Codes(p.right->input(zero), DType::kU8);
  if (p.codes == nullptr || z == nullptr || shifted == nullptr || z->dims != shifted->dims) return std::nullopt;
  const std::vector<std::int64_t> low = z->ToInts(), high = shifted->ToInts();
  for (std::size_t i = 0; i < low.size(); ++i) {
    if (low[i] + 128 != high[i]) return std::nullopt;
  }
  const TensorRef* shift = Codes(four[1]->input(1), DType::kS32);
  const bool chain = IsCast(four[0], 6) && four[1]->Is("Add") && IsCast(four[2], 2) &&
                     four[0]->input(0) == p.fast->input(p.weight) && four[1]->input(0) == four[0]->output() &&
                     four[2]->input(0) == four[1]->output() && four[3]->input(p.weight) == four[2]->output() &&
                     shift != nullptr && shift->elements() == 1 && shift->ToInts()[0] == 128;
  return chain ? std::optional(p) : std::nullopt;
}

}  // namespace

std::int64_t FoldChoices(Graph& graph) {
  std::int64_t folded = 0;
  std::unordered_map<const Value*, Value*> unsigned_codes;
  for (Node* node : graph.nodes()) {
    const std::optional<Pair> p = Match(*node);
    if (!p) continue;
    Value*& codes = unsigned_codes[p->fast->input(p->weight)];
    if (codes == nullptr) {
      codes = graph.AddConstant(p->fast->input(p->weight)->name() + "_u8", InOtherSign(*p->codes));
    }
    std::vector<Value*> inputs(p->right->inputs().begin(), p->right->inputs().end());
    inputs[p->weight] = codes;
    for (Value*& input : inputs) {  // what the branch holds itself
      if (input == nullptr || input->graph() != p->right->graph()) continue;
      if (!input->is_constant() || !input->data)
        ThrowInternal("a branch of one product computes its parameters", node->name);
      input = graph.AddConstant(input->name() + "_outer", *input->data);
    }
    Value* old = node->output();
    Node* fresh = graph.AddNode(p->right->op(), p->right->domain(), std::move(inputs),
                                {{old->name() + "_product", old->type}}, node);
    fresh->name = node->name;
    CopyAttributes(*p->right, *fresh);
    Value* made = fresh->output();
    made->extras = old->extras;
    const std::string name = old->name();
    graph.ReplaceAllUses(old, made);
    graph.Erase(node);
    graph.Rename(made, name);
    ++folded;
  }
  return folded;
}

}  // namespace octavo
