#include <cmath>
#include <utility>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

// A factor that is taken down: below it, a product in fp16 has the range that it needs.
constexpr float kBigFactor = 256.0f;
constexpr int kLeastExponent = -14;  // of normal numbers in fp16

struct ScaledLog {
  Node* log;
  Value* x;
  float factor, addend;
  int shift;  // factor and addend lose so many powers of two
};

// The one number that the other input of `node` is added to or multiplied with.
std::optional<std::pair<Value*, float>> WithNumber(const Node* node, std::string_view op) {
  if (node == nullptr || !node->Is(op) || node->inputs().size() != 2) return std::nullopt;
  for (std::size_t i = 0; i < 2; ++i) {
    const std::optional<float> number = ScalarOf(node->input(i));
    Value* x = node->input(1 - i);
    if (number && x != nullptr && !x->is_constant() && x->type.dtype == DType::kF32 && !x->type.quant &&
        node->input(i)->data->dims.empty()) {
      return std::make_pair(x, *number);
    }
  }
  return std::nullopt;
}

// Before:  %m = Mul %x, a; %s = Add %m, b; %y = Log %s
// After:   %m = Mul %x, a / 2^k; %s = Add %m, b / 2^k; %l = Log %s; %y = Add %l, k log(2)
// b / 2^k is the least normal number of fp16 or up to twice that. log(1 + 2^20 x), as of magnitudes of speech, is
// infinite in fp16 from x = 0.06 on; so it is from x = 1023 on.
// OneLsb: powers of two scale without rounding; the sum with k log(2) rounds once more.
class ScaleLogRule final : public PatternRule<ScaledLog> {
 public:
  std::string_view name() const override { return "scale-log"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"Log"}; }
  MatchOr<ScaledLog> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    const Value* sum = node.input(0);
    const auto added = WithNumber(sum->producer(), "Add");
    if (!added) return Refusal{};
    const auto product = WithNumber(added->first->producer(), "Mul");
    if (!product) return Refusal{};
    if (SoleUser(sum) != &node || SoleUser(added->first) != sum->producer()) {
      return Refusal{"others read what it takes the logarithm of"};
    }
    const float addend = added->second, factor = product->second;
    if (!(addend > 0) || !std::isfinite(addend)) return Refusal{"the number that is added is not positive"};
    if (!(factor >= kBigFactor * addend) || !std::isfinite(factor)) return Refusal{"the factor is small"};
    const int shift = std::ilogb(addend) - kLeastExponent;
    if (shift <= 0) return Refusal{"the number that is added is small already"};
    return ScaledLog{&node, product->first, factor, addend, shift};
  }
  void Apply(const ScaledLog& match, Rewriter& rewriter) const override {
    Graph& graph = *match.log->graph();
    const std::string base = match.log->output()->name();
    const auto step = [&](const char* op, Value* x, const char* what, float number) {
      Value* constant = graph.AddConstant(graph.UniqueName(base + what), TensorRef::Scalar(number));
      Node* node = graph.AddNode(op, "", {x, constant}, {{graph.UniqueName(base + what + "_done"), {}}}, match.log);
      node->output()->type = x->type;
      return node;
    };
    Value* scaled = step("Mul", match.x, "_factor", std::ldexp(match.factor, -match.shift))->output();
    Value* sum = step("Add", scaled, "_addend", std::ldexp(match.addend, -match.shift))->output();
    Node* log = graph.AddNode("Log", "", {sum}, {{graph.UniqueName(base + "_scaled"), {}}}, match.log);
    log->output()->type = sum->type;
    const auto whole = static_cast<float>(static_cast<double>(match.shift) * std::log(2.0));
    TakePlace(*step("Add", log->output(), "_shift", whole), *match.log, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> ScaleLog() { return std::make_unique<ScaleLogRule>(); }

}  // namespace octavo
