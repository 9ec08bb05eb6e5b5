#include <algorithm>
#include <cmath>

#include "octavo/rewrite/rules/linear.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Neutral {
  Node* node;
  Value* input;
};

// Empty when x op constant has the shape of x; else why it may not.
std::string GrowsShape(const Value& x, const Dims& constant) {
  if (constant.empty()) return {};
  if (!x.type.shape.has_value())
    return "the input's rank is not known: the constant may broadcast it to more dimensions";
  const std::vector<Dim>& shape = *x.type.shape;
  if (constant.size() > shape.size()) return "the constant broadcasts the input to more dimensions";
  for (std::size_t i = 0; i < constant.size(); ++i) {
    const Dim& dim = shape[shape.size() - constant.size() + i];
    if (constant[i] != 1 && dim.value != constant[i]) return "the constant may broadcast a dimension of the input";
  }
  return {};
}

MatchOr<Neutral> MatchNeutral(Node& node) {
  if (!node.domain().empty() || node.inputs().size() != 2 || node.output() == nullptr) return Refusal{};
  const bool commutes = node.op() == "Mul" || node.op() == "Add";
  const float neutral = node.op() == "Mul" || node.op() == "Div" ? 1.0f : 0.0f;
  for (std::size_t i = commutes ? 0 : 1; i < 2; ++i) {
    const Value* constant = node.input(i);
    Value* x = node.input(1 - i);
    if (!IsFloatConstant(constant) || x == nullptr || x->is_constant()) continue;
    const std::vector<float> values = constant->data->ToFloats();
    if (values.empty() || !std::all_of(values.begin(), values.end(), [&](float v) { return v == neutral; })) continue;
    if (x->type.quant.has_value() || node.output()->type.quant.has_value()) return Refusal{"the value is quantized"};
    if (std::string why = GrowsShape(*x, constant->data->dims); !why.empty()) return Refusal{why};
    if (!Rewriter::CanBypass(node, *x)) return Refusal{"it gives a graph output its name"};
    return Neutral{&node, x};
  }
  return Refusal{};
}

// Before:  %y = Mul %x, 1   (or Div %x, 1; Sub %x, 0)     After:  uses of %y use %x
// Exact: IEEE 754 gives x itself, signed zeros included.
class RemoveNeutralRule final : public PatternRule<Neutral> {
 public:
  std::string_view name() const override { return "remove-neutral"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Mul", "Div", "Sub"}; }
  MatchOr<Neutral> Match(Node& node) const override {
    // x - (-0) is x + 0, which turns -0 into +0.
    MatchOr<Neutral> match = MatchNeutral(node);
    if (node.op() == "Sub" && std::holds_alternative<Neutral>(match)) {
      const std::vector<float> values = node.input(1)->data->ToFloats();
      if (std::any_of(values.begin(), values.end(), [](float v) { return std::signbit(v); })) {
        return Refusal{"x - (-0) is not x where x is -0"};
      }
    }
    return match;
  }
  void Apply(const Neutral& match, Rewriter& rewriter) const override { rewriter.Bypass(*match.node, match.input); }
};

// Before:  %y = Add %x, 0                                  After:  uses of %y use %x
// OneLsb: -0 + 0 is +0, so the sign of a zero may differ; every other value is the same.
class RemoveAddZeroRule final : public PatternRule<Neutral> {
 public:
  std::string_view name() const override { return "remove-add-zero"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"Add"}; }
  MatchOr<Neutral> Match(Node& node) const override { return MatchNeutral(node); }
  void Apply(const Neutral& match, Rewriter& rewriter) const override { rewriter.Bypass(*match.node, match.input); }
};

}  // namespace

std::unique_ptr<Rule> RemoveNeutral() { return std::make_unique<RemoveNeutralRule>(); }
std::unique_ptr<Rule> RemoveAddZero() { return std::make_unique<RemoveAddZeroRule>(); }

}  // namespace octavo
