#include <cmath>

#include "octavo/rewrite/rules/linear.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Fold {
  Node* node;
  Value* y;  // the layer's output
  LinearLayer layer;
  std::vector<double> a, b;
};

// Before:  %c = Conv %x, %w, %b            After:  %y = Conv %x, k * %w, k * %b
//          %y = Mul %c, k                          (Div: 1 / k; Add, Sub: the bias)
// k is a scalar or one number a channel. Improves: an operation and its rounding less. Also ConvTranspose, Gemm, and
// Mul and Div behind MatMul; an Add behind a MatMul is its bias and stays.
class FoldScaleRule final : public PatternRule<Fold> {
 public:
  std::string_view name() const override { return "fold-scale"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Mul", "Div", "Add", "Sub"}; }

  MatchOr<Fold> Match(Node& node) const override {
    if (!node.domain().empty() || node.inputs().size() != 2 || node.output() == nullptr) return Refusal{};
    std::size_t which = 2;
    for (std::size_t i = 0; i < 2; ++i) {
      if (IsFloatConstant(node.input(i))) which = i;
    }
    if (which == 2) return Refusal{};  // no constant operand: nothing to fold
    Value* y = node.input(1 - which);
    if (y == nullptr || y->is_constant()) return Refusal{};
    const bool scales = node.op() == "Mul" || node.op() == "Div";
    if (y->producer() == nullptr) return Refusal{};
    MatchOr<LinearLayer> layer = MatchLinearLayer(y, !scales);
    if (auto* refusal = std::get_if<Refusal>(&layer)) return *refusal;
    if (node.output()->type.quant.has_value()) return Refusal{"its output is quantized"};
    if (node.op() == "Div" && which == 0) return Refusal{"the layer's output is the divisor"};
    Fold fold{&node, y, std::get<LinearLayer>(layer), {}, {}};
    MatchOr<std::vector<double>> values = PerChannel(fold.layer, *node.input(which)->data);
    if (auto* refusal = std::get_if<Refusal>(&values)) return *refusal;
    for (double k : std::get<std::vector<double>>(values)) {
      double a = 1.0, b = 0.0;
      if (node.op() == "Mul") {
        a = k;
      } else if (node.op() == "Div") {
        a = 1.0 / k;
      } else if (node.op() == "Add") {
        b = k;
      } else if (which == 1) {
        b = -k;
      } else {
        a = -1.0;
        b = k;
      }
      if (!std::isfinite(a) || !std::isfinite(b)) return Refusal{"the constant is not finite, or is a divisor of 0"};
      fold.a.push_back(a);
      fold.b.push_back(b);
    }
    if (!Rewriter::CanBypass(node, *y)) return Refusal{"it gives a graph output its name"};
    return fold;
  }

  void Apply(const Fold& match, Rewriter& rewriter) const override {
    ScaleAndShift(match.layer, match.a, match.b, rewriter);
    rewriter.Bypass(*match.node, match.y);
  }
};

}  // namespace

std::unique_ptr<Rule> FoldScale() { return std::make_unique<FoldScaleRule>(); }

}  // namespace octavo
