#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Normalized {
  Node* last;
  Value* x;
  std::int64_t axis;
};

// The one axis of a reduction of a tensor of `rank` dimensions.
std::optional<std::int64_t> AxisOf(const Node& reduce, std::int64_t rank) {
  const std::optional<std::int64_t> axis = OnlyAxis(reduce);
  if (!axis || *axis < -rank || *axis >= rank) return std::nullopt;
  return *axis < 0 ? *axis + rank : *axis;
}

// The axis over which `v` is `op` (ReduceMax, ReduceSum) of `of`, of one element along it or spread over it again.
std::optional<std::int64_t> ReducedOver(const Value* v, std::string_view op, const Value* of) {
  const std::optional<Dims> dims = StaticShape(of->type);
  const Node* node = v == nullptr ? nullptr : v->producer();
  if (!dims || node == nullptr) return std::nullopt;
  if (node->Is("Expand")) v = node->input(0);
  const std::optional<Dims> column = v == nullptr ? std::nullopt : StaticShape(v->type);
  while (v != nullptr && v->producer() != nullptr && !v->producer()->Is(op)) {
    node = v->producer();
    const std::optional<float> first = ScalarOf(node->input(0)), second = ScalarOf(node->input(1));
    constexpr float kLeast = std::numeric_limits<float>::lowest();
    if (node->Is("Reshape") || node->Is("Unsqueeze")) {
      v = node->input(0);
    } else if (node->Is("Max") && node->inputs().size() == 2 && first && *first <= kLeast) {  // no bound
      v = node->input(1);
    } else if (node->Is("Max") && node->inputs().size() == 2 && second && *second <= kLeast) {
      v = node->input(0);
    } else {
      return std::nullopt;
    }
  }
  if (v == nullptr || v->producer() == nullptr || v->producer()->input(0) != of || !column) return std::nullopt;
  const std::optional<std::int64_t> axis = AxisOf(*v->producer(), static_cast<std::int64_t>(dims->size()));
  if (!axis) return std::nullopt;
  Dims kept = *dims;
  kept[static_cast<std::size_t>(*axis)] = 1;
  return *column == kept ? axis : std::nullopt;
}

// Before:  %e = Exp (Sub %x, (ReduceMax %x)); %y = Div %e, (ReduceSum %e)      (the Sub may be missing)
// After:   %y = Softmax %x
// Improves: the same function, without codes of an exponential and its sum. Numbers whose exponentials would overflow
// have a Softmax.
class FuseSoftmaxRule final : public PatternRule<Normalized> {
 public:
  std::string_view name() const override { return "fuse-softmax"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Exp"}; }

  MatchOr<Normalized> Match(Node& node) const override {
    Value* e = node.output();
    if (e == nullptr || e->is_graph_output() || node.input(0) == nullptr) return Refusal{};
    Node* div = nullptr;
    std::optional<std::int64_t> axis;
    for (const Use& use : e->uses()) {
      if (use.node->Is("Div") && use.index == 0) div = use.node;
    }
    if (div == nullptr || div->graph() != node.graph()) return Refusal{};
    axis = ReducedOver(div->input(1), "ReduceSum", e);
    if (!axis) return Refusal{"it is not divided by its sum over one axis"};
    if (e->uses().size() != 2) return Refusal{"something else reads the exponential"};
    Value* x = node.input(0);
    const Node* sub = x->producer();
    if (sub != nullptr && sub->Is("Sub") && sub->input(0) != nullptr &&
        ReducedOver(sub->input(1), "ReduceMax", sub->input(0)) == axis) {
      x = sub->input(0);
    }
    if (x->is_constant()) return Refusal{};
    return Normalized{div, x, *axis};
  }

  void Apply(const Normalized& match, Rewriter& rewriter) const override {
    Graph& graph = *match.last->graph();
    const std::string base = match.last->output()->name();
    Node* softmax = graph.AddNode("Softmax", "", {match.x}, {{graph.UniqueName(base + "_softmax"), {}}}, match.last);
    softmax->SetAttribute("axis", match.axis);
    TakePlace(*softmax, *match.last, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> FuseSoftmax() { return std::make_unique<FuseSoftmaxRule>(); }

}  // namespace octavo
