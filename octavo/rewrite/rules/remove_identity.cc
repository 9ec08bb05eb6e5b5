#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Noop {
  Node* node;
  Value* input;
};

// Before:  %y = Identity %x            After:  uses of %y use %x
//          %y, - = Dropout %x                  (inference: Dropout passes its input)
//          %y = Cast %x {to=T}                 (x is T already)
// Exact.
class RemoveIdentityRule final : public PatternRule<Noop> {
 public:
  std::string_view name() const override { return "remove-identity"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Identity", "Dropout", "Cast"}; }

  MatchOr<Noop> Match(Node& node) const override {
    if (!node.domain().empty()) return Refusal{};
    Value* x = node.input(0);
    if (x == nullptr || node.output() == nullptr) return Refusal{};
    if (node.op() == "Dropout") {
      if (const Value* training = node.input(2)) {
        if (!training->is_constant() || !training->data.has_value()) return Refusal{"training_mode is not a constant"};
        const std::vector<std::int64_t> mode = training->data->ToInts();
        if (mode.size() != 1 || mode[0] != 0) return Refusal{"training_mode is set: the output is random"};
      }
      if (node.outputs().size() > 1 && node.output(1) != nullptr && !node.output(1)->dead()) {
        return Refusal{"the mask output is used"};
      }
    } else if (node.op() == "Cast") {
      const auto to = static_cast<DType>(node.IntAttribute("to", 0));
      if (x->type.dtype == DType::kUndefined) return Refusal{"the input's type is not known"};
      if (x->type.dtype != to) return Refusal{};  // a real conversion
    }
    if (x->type.quant.has_value() || node.output()->type.quant.has_value()) return Refusal{"the value is quantized"};
    if (!Rewriter::CanBypass(node, *x)) return Refusal{"it gives a graph output its name"};
    return Noop{&node, x};
  }

  void Apply(const Noop& match, Rewriter& rewriter) const override { rewriter.Bypass(*match.node, match.input); }
};

}  // namespace

std::unique_ptr<Rule> RemoveIdentity() { return std::make_unique<RemoveIdentityRule>(); }

}  // namespace octavo
