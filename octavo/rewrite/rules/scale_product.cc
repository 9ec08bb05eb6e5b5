#include <cmath>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Scaled {
  Node* node;
  Value* product;
  LinearLayer layer;
  std::size_t
      constant;  // the factor of the product that is a constant, and takes the scale itself; kNone: a layer does
  double scale;
};

constexpr std::size_t kNone = 2;

// Before:  %q = Gemm %x, w, b               After:  %q = Gemm %x, s * w, s * b
//          %p = MatMul (Transpose %q), %k           %y = MatMul (Transpose %q), %k
//          %y = Mul %p, s
// s is one number (Div: 1 / s); either factor may come of the layer, through data movement that nobody else reads, or
// be a constant, which takes the scale itself. Improves: an operation and its rounding less. Attention scales its
// scores so.
class ScaleOfProductRule final : public PatternRule<Scaled> {
 public:
  std::string_view name() const override { return "scale-of-product"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Mul", "Div"}; }

  MatchOr<Scaled> Match(Node& node) const override {
    if (!node.domain().empty() || node.inputs().size() != 2 || node.output() == nullptr) return Refusal{};
    std::size_t which = 1;
    if (!ScalarOf(node.input(1)) && node.Is("Mul")) which = 0;
    const std::optional<float> s = ScalarOf(node.input(which));
    Value* product = node.input(1 - which);
    if (!s || product == nullptr || product->is_constant()) return Refusal{};
    Node* matmul = product->producer();
    if (matmul == nullptr || !matmul->Is("MatMul") || !matmul->domain().empty()) return Refusal{};
    if (SoleUser(product) != &node) return Refusal{"others read the product"};
    const auto& shape = product->type.shape;
    if (node.input(which)->data->dims.size() > (shape ? shape->size() : 0)) return Refusal{"the scale adds dimensions"};
    if (product->type.quant || node.output()->type.quant) return Refusal{"the product is quantized"};
    const double scale = node.Is("Mul") ? *s : 1.0 / static_cast<double>(*s);
    if (!std::isfinite(scale) || scale == 0) return Refusal{"the scale is 0 or not finite"};
    if (!Rewriter::CanBypass(node, *product)) return Refusal{"it gives a graph output its name"};
    for (std::size_t i = 0; i < 2; ++i) {
      if (IsFloatConstant(matmul->input(i))) return Scaled{&node, product, {}, i, scale};
    }
    for (std::size_t i = 0; i < 2; ++i) {
      const Value* factor = Unmoved(matmul->input(i));
      if (factor == nullptr) continue;
      MatchOr<LinearLayer> layer = MatchLinearLayer(factor, false);
      if (auto* found = std::get_if<LinearLayer>(&layer)) return Scaled{&node, product, *found, kNone, scale};
    }
    return Refusal{"neither factor is a layer's alone"};
  }

  void Apply(const Scaled& match, Rewriter& rewriter) const override {
    if (match.constant != kNone) {
      Node& matmul = *match.product->producer();
      const TensorRef& data = *matmul.input(match.constant)->data;
      std::vector<double> values = ToDoubles(data);
      for (double& v : values) v *= match.scale;
      rewriter.ReplaceConstant(matmul, match.constant, FromDoubles(data.dims, values));
    } else {
      const std::vector<double> factors(static_cast<std::size_t>(match.layer.channels), match.scale);
      ScaleAndShift(match.layer, factors, {}, rewriter);
    }
    rewriter.Bypass(*match.node, match.product);
  }

 private:
  // What movement makes `v` of; null where something else reads a value on the way.
  static const Value* Unmoved(const Value* v) {
    while (v != nullptr && SoleUser(v) != nullptr) {
      const Node* node = v->producer();
      const bool moves = node != nullptr && (node->Is("Reshape") || node->Is("Transpose") || node->Is("Squeeze") ||
                                             node->Is("Unsqueeze") || node->Is("Flatten") || node->Is("Identity"));
      if (!moves) return v;
      v = node->input(0);
    }
    return nullptr;
  }
};

}  // namespace

std::unique_ptr<Rule> ScaleOfProduct() { return std::make_unique<ScaleOfProductRule>(); }

}  // namespace octavo
