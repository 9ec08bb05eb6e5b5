#include "octavo/rewrite/pad_right.h"

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct AtTheRight {
  RightPad pad;
  Node* conv;  // that can pad by itself; or null
};

// Before:  %p = Pad %x, [0, 0, 0, 0, 0, 0, 1, 1]
// After:   %y = Conv %x {pads=[0, 0, 1, 1]}, where %y = Conv %p alone reads the zeros; else
//          %p = Gather (Pad %x, [0, 0, 0, 1, 0, 0, 1, 1]), [1, 2, ...] {axis=3}
// Exact. The HTP fills a Pad with what lies in memory that has elements at the end of the last axis and none at its
// beginning: where it has some at the end of another axis too, or where a MatMul, a Softmax, a Conv, or a float Add
// reads it (in tiles of 32; the column of ones of a linear attention came out at -2 dB). It makes the same of two Pads,
// of a Slice behind one, and of a Concat.
class PadRightRule final : public PatternRule<AtTheRight> {
 public:
  std::string_view name() const override { return "pad-right"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Pad"}; }
  MatchOr<AtTheRight> Match(Node& node) const override {
    MatchOr<RightPad> read = ReadRightPad(node);
    if (std::holds_alternative<Refusal>(read)) return std::get<Refusal>(read);
    AtTheRight match{std::move(std::get<RightPad>(read)), nullptr};
    Node* user = SoleUser(node.output());
    const Value* value = node.input(2);
    const bool zeros = value == nullptr || ScalarOf(value) == 0.0f;
    if (user != nullptr && zeros && user->input(0) == node.output() && !PadsWith(match.pad, *user).empty()) {
      match.conv = user;
    }
    return match;
  }
  void Apply(const AtTheRight& m, Rewriter& rewriter) const override {
    Node& node = *m.pad.node;
    if (m.conv != nullptr) {
      GivePads(*m.conv, PadsWith(m.pad, *m.conv));
      m.conv->SetInput(0, node.input(0));
      rewriter.Touch(m.conv);
      rewriter.EraseIfDead(node);
      return;
    }
    Node* gather = AddPadAndGather(m.pad);
    rewriter.Touch(gather->input(0)->producer());
    TakePlace(*gather, node, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> PadRight() { return std::make_unique<PadRightRule>(); }

}  // namespace octavo
