#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Linear {
  Node *matmul, *last;
  Value* bias;
  std::vector<double> scale;  // of a Mul by one number a channel behind the bias; empty: none
  Dims in, out;               // of x and of the result
};

// Before:  %p = MatMul %x : f32[a,b,K], w[K,N]; %q = Add %p, bias[N]; %y = Mul %q, scale[N] (if there)
// After:   %y = Reshape (Gemm (Reshape %x, [ab,K]), w * scale, bias * scale), [a,b,N]
// Improves: the bias (and the scale) become part of the product, which an integer device sums in 32 bits.
class FuseLinearRule final : public PatternRule<Linear> {
 public:
  std::string_view name() const override { return "fuse-linear"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"MatMul"}; }

  MatchOr<Linear> Match(Node& node) const override {
    const Value* weight = node.input(1);
    if (node.output() == nullptr || !IsFloatConstant(weight) || weight->data->dims.size() != 2) return Refusal{};
    Node* add = SoleUser(node.output());
    if (add == nullptr || !add->Is("Add")) return Refusal{"no bias is added to it"};
    Linear linear{&node, add, add->input(add->input(0) == node.output() ? 1 : 0), {}, {}, {}};
    const std::int64_t channels = weight->data->dims[1];
    if (!PerLastAxis(linear.bias, channels)) return Refusal{"what is added is not one constant a channel"};
    const std::optional<Dims> in = StaticShape(node.input(0)->type);
    if (!in || in->size() < 2) return Refusal{"the shape of its input is not known"};
    if (linear.bias->data->dims.size() > in->size()) return Refusal{"the bias adds dimensions"};
    linear.in = *in;
    linear.out = *in;
    linear.out.back() = channels;
    if (Node* mul = SoleUser(add->output()); mul != nullptr && mul->Is("Mul")) {
      const Value* scale = mul->input(mul->input(0) == add->output() ? 1 : 0);
      if (PerLastAxis(scale, channels) && scale->data->dims.size() <= in->size()) {
        linear.scale = ToDoubles(*scale->data);
        linear.last = mul;
      }
    }
    return linear;
  }

  void Apply(const Linear& match, Rewriter& rewriter) const override {
    Graph& graph = *match.last->graph();
    const std::string base = match.last->output()->name();
    const auto shape = [&](const Dims& dims, const char* suffix) {
      const Dims rank = {static_cast<std::int64_t>(dims.size())};
      return graph.AddConstant(base + suffix, TensorRef::FromInts(DType::kS64, rank, dims));
    };
    std::int64_t rows = 1;
    for (std::size_t i = 0; i + 1 < match.in.size(); ++i) rows *= match.in[i];
    const std::int64_t channels = match.out.back();
    Value* x = match.matmul->input(0);
    const bool flat = match.in.size() == 2;
    if (!flat) {
      const Dims dims = {rows, match.in.back()};
      Node* reshape = graph.AddNode("Reshape", "", {x, shape(dims, "_rows")},
                                    {{base + "_in", TypeOf(DType::kF32, dims)}}, match.last);
      reshape->name = match.matmul->name.empty() ? "" : match.matmul->name + "_rows";
      x = reshape->output();
    }
    Value* weight = match.matmul->input(1);
    std::vector<double> bias = ToDoubles(*match.bias->data);
    if (!match.scale.empty()) {
      std::vector<double> w = ToDoubles(*weight->data);
      const auto n = static_cast<std::size_t>(channels);
      for (std::size_t i = 0; i < w.size(); ++i) w[i] *= match.scale[i % n];
      for (std::size_t c = 0; c < n; ++c) bias[c] *= match.scale[c];
      weight = graph.AddConstant(weight->name() + "_scaled", FromDoubles(weight->data->dims, w));
    }
    Value* b = graph.AddConstant(match.bias->name() + "_row", FromDoubles({channels}, bias));
    const Dims out = {rows, channels};
    Node* gemm = graph.AddNode("Gemm", "", {x, weight, b}, {{base + "_product", TypeOf(DType::kF32, out)}}, match.last);
    const std::string name = match.matmul->name;  // it goes with what it was
    gemm->name = name;
    Node* last = gemm;
    if (!flat) {
      last =
          graph.AddNode("Reshape", "", {gemm->output(), shape(match.out, "_dims")}, {{base + "_out", {}}}, match.last);
    }
    TakePlace(*last, *match.last, rewriter);
    if (last == gemm) gemm->name = name;
  }
};

}  // namespace

std::unique_ptr<Rule> FuseLinear() { return std::make_unique<FuseLinearRule>(); }

}  // namespace octavo
