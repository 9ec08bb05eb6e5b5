#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Norm {
  Node* last;
  Value *x, *scale, *bias;
  float epsilon;
};

// Whether a ReduceMean is over the last axis only, and keeps it.
bool OverLastAxis(const Node& mean) {
  if (mean.IntAttribute("keepdims", 1) == 0) return false;
  const std::optional<std::int64_t> axis = OnlyAxis(mean);
  if (!axis) return false;
  if (*axis == -1) return true;
  const auto& shape = mean.input(0)->type.shape;
  return shape && *axis == static_cast<std::int64_t>(shape->size()) - 1;
}

bool IsVector(const Value* value) { return IsFloatConstant(value) && value->data->dims.size() == 1; }

// Before:  %m = ReduceMean %x {axes=[-1]}; %d = Sub %x, %m; %v = ReduceMean (Pow %d, 2)
//          %n = Div %d, (Sqrt (Add %v, epsilon)); %y = Add (Mul %n, scale), bias
// After:   %y = LayerNormalization %x, scale, bias {axis=-1, epsilon}
// Improves: the same function, with fewer roundings (ONNX LayerNormalization-17, stage one and two).
class FuseLayerNormRule final : public PatternRule<Norm> {
 public:
  std::string_view name() const override { return "fuse-layernorm"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Sqrt"}; }

  MatchOr<Norm> Match(Node& node) const override {
    const Value* sum = node.input(0);
    const Node* add = sum == nullptr ? nullptr : sum->producer();
    if (add == nullptr || !add->Is("Add") || SoleUser(sum) == nullptr) return Refusal{};
    Norm norm{};
    const Value* variance = nullptr;
    for (std::size_t i = 0; i < 2; ++i) {
      if (const auto epsilon = ScalarOf(add->input(i)); epsilon && *epsilon > 0) {
        norm.epsilon = *epsilon;
        variance = add->input(1 - i);
      }
    }
    const Node* mean2 = variance == nullptr ? nullptr : variance->producer();
    if (mean2 == nullptr || !mean2->Is("ReduceMean") || SoleUser(variance) == nullptr || !OverLastAxis(*mean2)) {
      return Refusal{};
    }
    const Value* square = mean2->input(0);
    const Node* power = square->producer();
    if (power == nullptr || SoleUser(square) == nullptr) return Refusal{};
    const Value* centred = power->input(0);
    if (power->Is("Pow") ? OtherThan(power, "Pow", 2.0) == nullptr : !power->Is("Mul") || power->input(1) != centred) {
      return Refusal{};
    }
    const Node* sub = centred->producer();
    if (sub == nullptr || !sub->Is("Sub")) return Refusal{};
    norm.x = sub->input(0);
    const Node* mean = sub->input(1)->producer();
    if (mean == nullptr || !mean->Is("ReduceMean") || mean->input(0) != norm.x || !OverLastAxis(*mean)) {
      return Refusal{};
    }
    Node* div = SoleUser(node.output());
    if (div == nullptr || !div->Is("Div") || div->input(0) != centred || div->input(1) != node.output()) {
      return Refusal{"what it divides is not what its variance is of"};
    }
    Node* mul = SoleUser(div->output());
    Node* last = mul == nullptr ? nullptr : SoleUser(mul->output());
    if (mul == nullptr || !mul->Is("Mul") || last == nullptr || !last->Is("Add")) {
      return Refusal{"no scale and bias behind the normalization"};
    }
    norm.scale = mul->input(mul->input(0) == div->output() ? 1 : 0);
    norm.bias = last->input(last->input(0) == mul->output() ? 1 : 0);
    if (!IsVector(norm.scale) || !IsVector(norm.bias) || norm.scale->data->dims != norm.bias->data->dims) {
      return Refusal{"its scale and bias are not constant vectors of one length"};
    }
    if (centred->uses().size() > (power->Is("Pow") ? 2u : 3u)) return Refusal{"the centred value has other users"};
    norm.last = last;
    return norm;
  }

  void Apply(const Norm& match, Rewriter& rewriter) const override {
    Graph& graph = *match.last->graph();
    Node* norm = graph.AddNode("LayerNormalization", "", {match.x, match.scale, match.bias},
                               {{match.last->output()->name() + "_norm", {}}}, match.last);
    norm->SetAttribute("axis", std::int64_t{-1});
    norm->SetAttribute("epsilon", match.epsilon);
    TakePlace(*norm, *match.last, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> FuseLayerNorm() { return std::make_unique<FuseLayerNormRule>(); }

}  // namespace octavo
