#include <array>
#include <optional>
#include <string>
#include <variant>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Activation {
  Node* last;
  Value* x;
  bool tanh = false;  // of a Gelu
};

// c[0] + c[1] x + c[2] x^2 + c[3] x^3
using Cubic = std::array<double, 4>;

constexpr int kDeepest = 8;  // operators between x and the function of the cubic

// What `v` is as a polynomial of x, where it is one up to the third power whose coefficients are numbers of the graph.
std::optional<Cubic> CubicOf(const Value* v, const Value* x, int depth = 0) {
  if (v == x) return Cubic{0, 1, 0, 0};
  if (const std::optional<float> number = ScalarOf(v)) return Cubic{*number, 0, 0, 0};
  const Node* node = v == nullptr ? nullptr : v->producer();
  if (node == nullptr || depth == kDeepest || node->inputs().size() != 2) return std::nullopt;
  const std::optional<Cubic> a = CubicOf(node->input(0), x, depth + 1), b = CubicOf(node->input(1), x, depth + 1);
  if (!a || !b) return std::nullopt;
  const bool number = (*b)[1] == 0 && (*b)[2] == 0 && (*b)[3] == 0;
  const auto times = [](const Cubic& p, const Cubic& q) -> std::optional<Cubic> {
    Cubic product{};
    for (std::size_t i = 0; i < 4; ++i) {
      for (std::size_t j = 0; j < 4; ++j) {
        if (p[i] == 0 || q[j] == 0) continue;
        if (i + j > 3) return std::nullopt;
        product[i + j] += p[i] * q[j];
      }
    }
    return product;
  };
  if (node->Is("Add") || node->Is("Sub")) {
    Cubic sum = *a;
    for (std::size_t i = 0; i < 4; ++i) sum[i] += node->Is("Add") ? (*b)[i] : -(*b)[i];
    return sum;
  }
  if (node->Is("Mul")) return times(*a, *b);
  if (!number) return std::nullopt;
  if (node->Is("Div") && (*b)[0] != 0) return times(*a, {1 / (*b)[0], 0, 0, 0});
  if (!node->Is("Pow") || ((*b)[0] != 2 && (*b)[0] != 3)) return std::nullopt;
  std::optional<Cubic> power = times(*a, *a);
  if (power && (*b)[0] == 3) power = times(*power, *a);
  return power;
}

// Before:  %e = Erf (Div %x, sqrt(2)); %y = Mul (Mul %x, (Add %e, 1)), 0.5     (the factors in any order)
// After:   %y = Gelu %x
// Before:  %e = Tanh sqrt(2/pi) (x + 0.044715 x^3), as a polynomial is written; the same
// After:   %y = Gelu %x {approximate="tanh"}
// Improves: the same function (ONNX Gelu-20), with fewer roundings, and without codes for a cube of x.
class FuseGeluRule final : public PatternRule<Activation> {
 public:
  std::string_view name() const override { return "fuse-gelu"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Erf", "Tanh"}; }

  MatchOr<Activation> Match(Node& node) const override {
    if (node.output() == nullptr) return Refusal{};
    Node* add = SoleUser(node.output());
    if (OtherThan(add, "Add", 1.0) != node.output()) return Refusal{"no 1 is added to it"};
    Node* product = SoleUser(add->output());
    if (product == nullptr) return Refusal{"what 1 is added to is not a factor"};
    if (IsHalf(product, add->output())) {  // (1 + f) / 2, then times x
      Node* last = SoleUser(product->output());
      if (last == nullptr || !last->Is("Mul")) return Refusal{"(1 + f) / 2 is not multiplied with x"};
      return Checked(node, last, last->input(last->input(0) == product->output() ? 1 : 0));
    }
    if (!product->Is("Mul")) return Refusal{"1 + f is not a factor"};
    Value* other = product->input(product->input(0) == add->output() ? 1 : 0);
    for (std::size_t i = 0; other->producer() != nullptr && i < other->producer()->inputs().size(); ++i) {  // x / 2
      if (!IsHalf(other->producer(), other->producer()->input(i))) continue;
      MatchOr<Activation> match = Checked(node, product, other->producer()->input(i));
      if (std::holds_alternative<Activation>(match)) return match;
    }
    Node* half = SoleUser(product->output());
    if (half == nullptr || !IsHalf(half, product->output())) return Refusal{"x (1 + f) is not halved"};
    return Checked(node, half, other);
  }

  void Apply(const Activation& match, Rewriter& rewriter) const override {
    Node* gelu =
        match.last->graph()->AddNode("Gelu", "", {match.x}, {{match.last->output()->name() + "_gelu", {}}}, match.last);
    if (match.tanh) gelu->SetAttribute("approximate", std::string("tanh"));
    TakePlace(*gelu, *match.last, rewriter);
  }

 private:
  static bool IsHalf(const Node* node, const Value* of) {
    return OtherThan(node, "Mul", 0.5) == of || OtherThan(node, "Div", 2.0) == of;
  }
  // Whether `function` reads what Gelu(x) asks for, and `last` has the dimensions of x.
  static MatchOr<Activation> Checked(const Node& function, Node* last, Value* x) {
    const bool tanh = function.Is("Tanh");
    const double slope = tanh ? 0.7978845608028654 : 0.7071067811865476;  // sqrt(2 / pi), 1 / sqrt(2)
    const std::optional<Cubic> argument = CubicOf(function.input(0), x);
    if (!argument || (*argument)[0] != 0 || !Near(static_cast<float>((*argument)[1]), slope) || (*argument)[2] != 0 ||
        !Near(static_cast<float>((*argument)[3]), tanh ? slope * 0.044715 : 0)) {
      return Refusal{tanh ? "its argument is not sqrt(2/pi) (x + 0.044715 x^3)" : "its argument is not x / sqrt(2)"};
    }
    const std::optional<Dims> from = StaticShape(x->type), to = StaticShape(last->output()->type);
    if (from && to && *from != *to) return Refusal{"the numbers in it add dimensions"};
    return Activation{last, x, tanh};
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
      return Activation{mul, x, false};
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
    return Activation{last, x, false};
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
