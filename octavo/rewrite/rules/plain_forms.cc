// Arithmetic in the form that an NPU takes.
#include <algorithm>

#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

bool AreFloats(const Node& node) {
  return std::all_of(node.inputs().begin(), node.inputs().end(),
                     [](const Value* v) { return v != nullptr && v->type.dtype == DType::kF32 && !v->type.quant; });
}

// Before:  %y = Mean %a, %b        After:  %y = Mul (Add %a, %b), 1/2
// Before:  %y = Max %a             After:  uses of %y use %a
// Improves: a Mean of n is a sum times 1/n, which is rounded once more.
class FewOperandsRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "few-operands"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Mean", "Sum", "Max", "Min"}; }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty() || node.output() == nullptr || node.inputs().empty() || !AreFloats(node))
      return Refusal{};
    if (node.inputs().size() > 1) return node.Is("Mean") ? MatchOr<Node*>(&node) : Refusal{};
    if (!Rewriter::CanBypass(node, *node.input(0))) return Refusal{"it gives a graph output its name"};
    return &node;
  }
  void Apply(Node* const& match, Rewriter& rewriter) const override {
    Node& node = *match;
    if (node.inputs().size() == 1) return rewriter.Bypass(node, node.input(0));
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Value* sum = node.input(0);
    for (std::size_t i = 1; i < node.inputs().size(); ++i) {
      Type type;
      type.dtype = DType::kF32;
      if (i + 1 == node.inputs().size()) type.shape = node.output()->type.shape;
      sum = graph.AddNode("Add", "", {sum, node.input(i)}, {{graph.UniqueName(base + "_sum"), std::move(type)}}, &node)
                ->output();
    }
    Value* share = graph.AddConstant(graph.UniqueName(base + "_share"),
                                     TensorRef::Scalar(1.0f / static_cast<float>(node.inputs().size())));
    TakePlace(*graph.AddNode("Mul", "", {sum, share}, {{graph.UniqueName(base + "_mean"), {}}}, &node), node, rewriter);
  }
};

// Before:  %y = Pow %x : f32, 2 : s64        After:  %y = Pow %x, 2.0
// Exact.
class FloatExponentRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "float-exponent"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Pow"}; }
  MatchOr<Node*> Match(Node& node) const override {
    const Value *x = node.input(0), *exponent = node.input(1);
    if (!node.domain().empty() || x == nullptr || x->type.dtype != DType::kF32 || !IsPlainConstant(exponent))
      return Refusal{};
    if (!IsInteger(exponent->data->dtype) || exponent->data->elements() != 1) return Refusal{};
    if (std::abs(exponent->data->ToInts()[0]) > (1 << 20)) return Refusal{"its exponent is no number of f32"};
    return &node;
  }
  void Apply(Node* const& match, Rewriter& rewriter) const override {
    const TensorRef& exponent = *match->input(1)->data;
    const auto number = static_cast<float>(exponent.ToInts()[0]);
    const Dims dims = exponent.dims;
    rewriter.ReplaceConstant(*match, 1, TensorRef::FromFloats(dims, std::span(&number, 1)));
    rewriter.Touch(match);
  }
};

struct Product {
  Node* node;
  std::int64_t channels;
};

// Before:  %y = Gemm %x, w, b {alpha=a, beta=c}, b one number or [1,N]        After:  %y = Gemm %x, a w, c b : [N]
// Improves: weights and bias are rounded once.
class PlainGemmRule final : public PatternRule<Product> {
 public:
  std::string_view name() const override { return "plain-gemm"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Gemm"}; }
  MatchOr<Product> Match(Node& node) const override {
    const Value *w = node.input(1), *b = node.input(2);
    if (!node.domain().empty() || node.output() == nullptr || !IsFloatConstant(w) || w->data->dims.size() != 2)
      return Refusal{};
    const std::int64_t channels = w->data->dims[node.IntAttribute("transB", 0) != 0 ? 0 : 1];
    const bool has_bias = b != nullptr;
    const bool row = has_bias && b->is_constant() && b->data && b->data->dims == Dims{channels};
    const float alpha = node.FloatAttribute("alpha", 1.0f), beta = has_bias ? node.FloatAttribute("beta", 1.0f) : 1.0f;
    if (alpha == 1 && beta == 1 && (!has_bias || row || !IsFloatConstant(b))) return Refusal{};
    if (has_bias) {
      if (!IsFloatConstant(b)) return Refusal{"its bias is computed"};
      const std::uint64_t n = b->data->elements();
      const bool one_row = b->data->dims.empty() || b->data->dims.back() == static_cast<std::int64_t>(n);
      if (!one_row || (n != 1 && n != static_cast<std::uint64_t>(channels)))
        return Refusal{"its bias is not one number a channel"};
    }
    return Product{&node, channels};
  }
  void Apply(const Product& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    const auto scaled = [&](std::size_t input, double factor, Dims dims) {
      std::vector<double> numbers = ToDoubles(*node.input(input)->data);
      numbers.resize(ElementCount(dims), numbers[0]);
      for (double& number : numbers) number *= factor;
      rewriter.ReplaceConstant(node, input, FromDoubles(std::move(dims), numbers));
    };
    const float alpha = node.FloatAttribute("alpha", 1.0f);
    if (alpha != 1) scaled(1, alpha, node.input(1)->data->dims);
    if (node.input(2) != nullptr) scaled(2, node.FloatAttribute("beta", 1.0f), {match.channels});
    node.SetAttribute("alpha", 1.0f);
    node.SetAttribute("beta", 1.0f);
    rewriter.Touch(&node);
  }
};

struct Rows {
  Node* node;
  std::int64_t rows, terms, columns;
  Dims out;
};

// Before:  %y = MatMul %x : f32[a,b,K], w : [K]
// After:   %y = Reshape (MatMul (Reshape %x, [ab,K]), w : [K,1]), [a,b]
// and so for w : [K,N] where %x has more than four dimensions.
// OneLsb: the same sums. In 16 bits the HTP has something else for a vector, and it has no product of five dimensions.
class FlatMatMulRule final : public PatternRule<Rows> {
 public:
  std::string_view name() const override { return "flat-matmul"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"MatMul"}; }
  MatchOr<Rows> Match(Node& node) const override {
    const Value *x = node.input(0), *w = node.input(1);
    if (!node.domain().empty() || x == nullptr || x->type.quant || node.output() == nullptr || !IsFloatConstant(w))
      return Refusal{};
    const std::size_t rank = w->data->dims.size();
    const std::optional<Dims> in = StaticShape(x->type);
    if (rank < 1 || rank > 2) return Refusal{};
    if (!in || in->size() < 2) return Refusal{"the shape of its input is not known"};
    if (rank == 2 && in->size() <= 4) return Refusal{};
    Rows match{&node, 1, in->back(), rank == 2 ? w->data->dims[1] : 1, Dims(in->begin(), in->end() - 1)};
    if (match.terms < 1 || match.columns < 1 || w->data->dims[0] != match.terms) return Refusal{};
    for (const std::int64_t d : match.out) match.rows *= d;
    if (match.rows < 1) return Refusal{};
    if (rank == 2) match.out.push_back(match.columns);
    return match;
  }
  void Apply(const Rows& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Value* rows = AddReshape(node.input(0), {match.rows, match.terms}, base + "_rows", &node)->output();
    Value* w = node.input(1);
    if (w->data->dims.size() == 1) {
      TensorRef column = *w->data;
      column.dims = {match.terms, 1};
      w = graph.AddConstant(graph.UniqueName(w->name() + "_column"), std::move(column));
    }
    Node* product =
        graph.AddNode("MatMul", "", {rows, w},
                      {{graph.UniqueName(base + "_flat"), TypeOf(DType::kF32, {match.rows, match.columns})}}, &node);
    product->name = node.name;
    TakePlace(*AddReshape(product->output(), match.out, base + "_out", &node), node, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> FlatMatMul() { return std::make_unique<FlatMatMulRule>(); }
std::unique_ptr<Rule> FewOperands() { return std::make_unique<FewOperandsRule>(); }
std::unique_ptr<Rule> FloatExponent() { return std::make_unique<FloatExponentRule>(); }
std::unique_ptr<Rule> PlainGemm() { return std::make_unique<PlainGemmRule>(); }

}  // namespace octavo
