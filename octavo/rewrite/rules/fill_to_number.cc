#include <algorithm>
#include <array>
#include <utility>

#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

constexpr std::array<std::string_view, 13> kElementwise = {
    "Add", "Sub", "Mul", "Div", "Equal", "Less", "Greater", "LessOrEqual", "And", "GreaterOrEqual", "Or", "Min", "Max"};

struct Filled {
  Node* node;
  std::size_t input;
  TensorRef number;
};

// Before:  %o = ConstantOfShape [1, 80, 400] {value = 1}; %y = Mul %x, %o  (%x : [1, 80, 400])
// After:   %y = Mul %x, 1
// Exact: broadcasting repeats the number. (What is small enough is a constant by itself.)
class FillToNumberRule final : public PatternRule<Filled> {
 public:
  std::string_view name() const override { return "fill-to-number"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {kElementwise.begin(), kElementwise.end()}; }
  MatchOr<Filled> Match(Node& node) const override {
    if (!node.domain().empty() || node.inputs().size() != 2 || node.output() == nullptr) return Refusal{};
    for (std::size_t i = 0; i < 2; ++i) {
      const Value *fill = node.input(i), *other = node.input(1 - i);
      const Node* maker = fill == nullptr ? nullptr : fill->producer();
      if (maker == nullptr || other == nullptr || !maker->Is("ConstantOfShape")) continue;
      const std::optional<Dims> filled = StaticShape(fill->type), dims = StaticShape(other->type);
      if (!filled || !dims) return Refusal{"a shape is not known"};
      if (filled->size() > dims->size()) return Refusal{"it broadcasts to more dimensions"};
      if (!StretchesTo(*filled, *dims)) return Refusal{"it broadcasts a dimension"};
      const Attribute* value = maker->FindAttribute("value");
      const auto* data = value == nullptr ? nullptr : std::get_if<TensorRef>(&value->value);
      if (value != nullptr && (data == nullptr || data->elements() != 1)) return Refusal{};
      TensorRef number = data == nullptr ? TensorRef::Scalar(0.0f) : *data;
      number.dims = {};
      return Filled{&node, i, std::move(number)};
    }
    return Refusal{};
  }
  void Apply(const Filled& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Node* maker = node.input(match.input)->producer();
    Value* number =
        node.graph()->AddConstant(node.graph()->UniqueName(node.output()->name() + "_number"), match.number);
    node.SetInput(match.input, number);
    rewriter.EraseIfDead(*maker);
    rewriter.Touch(&node);
  }
};

}  // namespace

std::unique_ptr<Rule> FillToNumber() { return std::make_unique<FillToNumberRule>(); }

}  // namespace octavo
