#include <limits>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

// Before:  %y = Reciprocal %x        After:  %y = Div 1, %x
// Exact: both are the correctly rounded quotient; devices that have no Reciprocal have a Div.
class ReciprocalRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "reciprocal-to-div"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Reciprocal"}; }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    if (node.input(0)->type.dtype != DType::kF32 || node.input(0)->type.quant) return Refusal{"its input is not f32"};
    return &node;
  }
  void Apply(Node* const& match, Rewriter& rewriter) const override {
    Graph& graph = *match->graph();
    Value* one = graph.AddConstant(match->output()->name() + "_one", TensorRef::Scalar(1.0f));
    Node* div = graph.AddNode("Div", "", {one, match->input(0)}, {{match->output()->name() + "_div", {}}}, match);
    TakePlace(*div, *match, rewriter);
  }
};

struct Bounded {
  Node* node;
  Value* x;
};

// A Max or Min of %x and the one number `bound`.
MatchOr<Bounded> MatchBound(Node& node, float bound) {
  if (!node.domain().empty() || node.inputs().size() != 2 || node.output() == nullptr) return Refusal{};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::optional<float> number = ScalarOf(node.input(i));
    Value* x = node.input(1 - i);
    if (!number || *number != bound || x == nullptr || x->is_constant() || x->type.quant) continue;
    const std::size_t rank = node.input(i)->data->dims.size();
    if (rank > 0 && (!x->type.shape || x->type.shape->size() < rank)) {
      return Refusal{"the bound may broadcast the input to more dimensions"};
    }
    return Bounded{&node, x};
  }
  return Refusal{};
}

// Before:  %y = Max %x, -inf   (or Min %x, +inf)        After:  uses of %y use %x
// Exact: no number is beyond infinity, and NaN stays NaN.
class RemoveInfiniteBoundRule final : public PatternRule<Bounded> {
 public:
  std::string_view name() const override { return "remove-infinite-bound"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Max", "Min"}; }
  MatchOr<Bounded> Match(Node& node) const override {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    MatchOr<Bounded> match = MatchBound(node, node.Is("Max") ? -kInfinity : kInfinity);
    const Bounded* found = std::get_if<Bounded>(&match);
    if (found != nullptr && !Rewriter::CanBypass(node, *found->x)) return Refusal{"it gives a graph output its name"};
    return match;
  }
  void Apply(const Bounded& match, Rewriter& rewriter) const override { rewriter.Bypass(*match.node, match.x); }
};

// Before:  %y = Max %x, 0        After:  %y = Relu %x
// Improves: the same but for the sign of a zero; the codes of many a producer do a Relu by themselves.
class MaxToReluRule final : public PatternRule<Bounded> {
 public:
  std::string_view name() const override { return "max-to-relu"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Max"}; }
  MatchOr<Bounded> Match(Node& node) const override { return MatchBound(node, 0.0f); }
  void Apply(const Bounded& match, Rewriter& rewriter) const override {
    Node* relu =
        match.node->graph()->AddNode("Relu", "", {match.x}, {{match.node->output()->name() + "_relu", {}}}, match.node);
    TakePlace(*relu, *match.node, rewriter);
  }
};

// Before:  %y = AveragePool %x, one window over all of %x, its padding not counted
// After:   %y = GlobalAveragePool %x
// OneLsb: another order of the same sum. The HTP in 16 bits reads beyond an input that is smaller than the window.
class AverageToGlobalRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "average-to-global"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"AveragePool"}; }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    const std::optional<Dims> in = StaticShape(node.input(0)->type), out = StaticShape(node.output()->type);
    const std::vector<std::int64_t>* kernel = node.IntsAttribute("kernel_shape");
    if (node.input(0)->type.quant || kernel == nullptr || node.IntsAttribute("dilations") != nullptr) return Refusal{};
    if (node.StringAttribute("auto_pad", "NOTSET") != "NOTSET") return Refusal{};
    const std::vector<std::int64_t>* pads = node.IntsAttribute("pads");
    if (!in || !out || in->size() != kernel->size() + 2 || out->size() != in->size()) return Refusal{};
    if (pads != nullptr && pads->size() != 2 * kernel->size()) return Refusal{};
    for (std::size_t i = 0; i < kernel->size(); ++i) {
      const std::int64_t before = pads == nullptr ? 0 : (*pads)[i];
      const std::int64_t after = pads == nullptr ? 0 : (*pads)[i + kernel->size()];
      if ((*out)[i + 2] != 1 || (*kernel)[i] - before < (*in)[i + 2]) return Refusal{"its window leaves some out"};
      if ((before > 0 || after > 0) && node.IntAttribute("count_include_pad", 0) != 0) {
        return Refusal{"it counts its padding"};
      }
    }
    return &node;
  }
  void Apply(Node* const& match, Rewriter& rewriter) const override {
    Node* all = match->graph()->AddNode("GlobalAveragePool", "", {match->input(0)},
                                        {{match->output()->name() + "_all", {}}}, match);
    TakePlace(*all, *match, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> AverageToGlobal() { return std::make_unique<AverageToGlobalRule>(); }
std::unique_ptr<Rule> MaxToRelu() { return std::make_unique<MaxToReluRule>(); }
std::unique_ptr<Rule> ReciprocalToDiv() { return std::make_unique<ReciprocalRule>(); }
std::unique_ptr<Rule> RemoveInfiniteBound() { return std::make_unique<RemoveInfiniteBoundRule>(); }

}  // namespace octavo
