#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Activation {
  Node* last;
  Value* x;
};

// Before:  %e = Erf (Div %x, sqrt(2)); %y = Mul (Mul %x, (Add %e, 1)), 0.5     (the factors in any order)
// After:   %y = Gelu %x
// Improves: the same function (ONNX Gelu-20, approximate = none), with fewer roundings.
class FuseGeluRule final : public PatternRule<Activation> {
 public:
  std::string_view name() const override { return "fuse-gelu"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Erf"}; }

  MatchOr<Activation> Match(Node& node) const override {
    const Value* scaled = node.input(0);
    if (scaled == nullptr || scaled->producer() == nullptr) return Refusal{"its argument is not x / sqrt(2)"};
    Value* x = OtherThan(scaled->producer(), "Div", 1.4142135623730951);
    if (x == nullptr) x = OtherThan(scaled->producer(), "Mul", 0.7071067811865476);
    if (x == nullptr) return Refusal{"its argument is not x / sqrt(2)"};
    Node* add = SoleUser(node.output());
    if (OtherThan(add, "Add", 1.0) != node.output()) return Refusal{"no 1 is added to it"};
    Node* mul = SoleUser(add->output());
    if (mul == nullptr || !mul->Is("Mul")) return Refusal{"1 + erf is not a factor"};
    Value* other = mul->input(mul->input(0) == add->output() ? 1 : 0);
    if (other == x) {
      Node* half = SoleUser(mul->output());
      if (half != nullptr && (OtherThan(half, "Mul", 0.5) != nullptr || OtherThan(half, "Div", 2.0) != nullptr)) {
        return Activation{half, x};
      }
      return Refusal{"x (1 + erf) is not halved"};
    }
    if (OtherThan(mul, "Mul", 0.5) == add->output()) {  // 0.5 (1 + erf), then times x
      Node* last = SoleUser(mul->output());
      if (last != nullptr && last->Is("Mul") && (last->input(0) == x || last->input(1) == x))
        return Activation{last, x};
      return Refusal{"(1 + erf) / 2 is not multiplied with x"};
    }
    const Node* half = other->producer();
    if (OtherThan(half, "Mul", 0.5) == x || OtherThan(half, "Div", 2.0) == x) return Activation{mul, x};
    return Refusal{"1 + erf is not multiplied with x / 2"};
  }

  void Apply(const Activation& match, Rewriter& rewriter) const override {
    Node* gelu =
        match.last->graph()->AddNode("Gelu", "", {match.x}, {{match.last->output()->name() + "_gelu", {}}}, match.last);
    TakePlace(*gelu, *match.last, rewriter);
  }
};

// Before:  %y = Div (Mul %x, (Clip (Add %x, 3), 0, 6)), 6        After:  %y = HardSwish %x
//          %y = Mul %x, (HardSigmoid %x {alpha=1/6, beta=0.5})
// Improves: the same function (ONNX HardSwish-14), with fewer roundings.
class FuseHardSwishRule final : public PatternRule<Activation> {
 public:
  std::string_view name() const override { return "fuse-hardswish"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Clip", "HardSigmoid"}; }

  MatchOr<Activation> Match(Node& node) const override {
    Node* mul = SoleUser(node.output());
    if (mul == nullptr || !mul->Is("Mul")) return Refusal{};
    Value* x = mul->input(mul->input(0) == node.output() ? 1 : 0);
    if (node.Is("HardSigmoid")) {
      if (node.input(0) != x) return Refusal{};
      if (!Near(node.FloatAttribute("alpha", 0.2f), 1.0 / 6) || !Near(node.FloatAttribute("beta", 0.5f), 0.5)) {
        return Refusal{"its slope is not 1/6"};
      }
      return Activation{mul, x};
    }
    const Node* add = node.input(0) == nullptr ? nullptr : node.input(0)->producer();
    if (OtherThan(add, "Add", 3.0) != x) return Refusal{};
    const auto bound = [&node](std::size_t i, const char* attribute) -> std::optional<float> {
      if (node.input(i) != nullptr) return ScalarOf(node.input(i));
      return node.FindAttribute(attribute) == nullptr ? std::nullopt
                                                      : std::optional<float>(node.FloatAttribute(attribute, 0));
    };
    const std::optional<float> low = bound(1, "min"), high = bound(2, "max");
    if (!low || !high || *low != 0.0f || *high != 6.0f) return Refusal{"it does not clip to 0 .. 6"};
    Node* last = SoleUser(mul->output());
    if (OtherThan(last, "Div", 6.0) == nullptr && OtherThan(last, "Mul", 1.0 / 6) == nullptr) {
      return Refusal{"the product is not divided by 6"};
    }
    return Activation{last, x};
  }

  void Apply(const Activation& match, Rewriter& rewriter) const override {
    Node* swish = match.last->graph()->AddNode("HardSwish", "", {match.x},
                                               {{match.last->output()->name() + "_swish", {}}}, match.last);
    TakePlace(*swish, *match.last, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> FuseGelu() { return std::make_unique<FuseGeluRule>(); }
std::unique_ptr<Rule> FuseHardSwish() { return std::make_unique<FuseHardSwishRule>(); }

}  // namespace octavo
