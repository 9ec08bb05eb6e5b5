// Elementwise operators and normalizations over more dimensions than an NPU has them for.
#include <algorithm>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

// What the HTP takes in up to five dimensions; the other operators of `ElementwiseRoots` in four, in a type at least,
// or as others in which they are spelled out.
constexpr std::string_view kTakesFive[] = {"Abs", "Add",     "Cast",           "Clip",      "Div",  "Equal",
                                           "Exp", "Greater", "GreaterOrEqual", "LeakyRelu", "Less", "LessOrEqual",
                                           "Mul", "Not",     "Relu",           "Sigmoid",   "Sub",  "Where"};

std::vector<std::string_view> ElementwiseRoots() {
  std::vector<std::string_view> roots(std::begin(kTakesFive), std::end(kTakesFive));
  for (const std::string_view op :
       {"Acos",   "Acosh", "And",  "Asin",  "Asinh",    "Atan",        "Atanh",     "Ceil",  "Celu",  "Cos",
        "Cosh",   "Elu",   "Erf",  "Floor", "Gelu",     "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "Log",
        "Max",    "Min",   "Mish", "Mod",   "Neg",      "Or",          "PRelu",     "Pow",   "Round", "Selu",
        "Shrink", "Sign",  "Sin",  "Sinh",  "Softplus", "Softsign",    "Sqrt",      "Tan",   "Tanh",  "ThresholdedRelu",
        "Xor"}) {
    roots.push_back(op);
  }
  return roots;
}

std::size_t MostDims(const Node& node) {
  const bool five = std::find(std::begin(kTakesFive), std::end(kTakesFive), node.op()) != std::end(kTakesFive);
  return five ? kNpuDims : kNpuDims - 1;
}

// `x` in other dimensions, which it may have had before.
Value* InDims(Value* x, const Dims& to, Node* before, Rewriter& rewriter) {
  if (*StaticShape(x->type) == to) return x;
  if (x->is_constant() && x->data) {
    TensorRef data = *x->data;
    data.dims = to;
    return before->graph()->AddConstant(before->graph()->UniqueName(x->name() + "_as"), std::move(data));
  }
  const Node* shaped = x->producer();
  if (shaped != nullptr && shaped->Is("Reshape") && shaped->graph() == before->graph() && !x->type.quant &&
      !shaped->input(0)->type.quant && StaticShape(shaped->input(0)->type) == to) {
    return shaped->input(0);
  }
  Node* reshape = AddReshape(x, to, before->output()->name() + "_as", before);
  rewriter.Touch(reshape);
  return reshape->output();
}

struct Folded {
  Node* node;
  std::vector<Dims> inputs;  // the dimensions that each gets; those that it has where it stays
  Dims in, out;              // of the new result, and as it was
};

// The operator between Reshapes, where it stood.
void Fold(const Folded& m, Rewriter& rewriter) {
  Node& node = *m.node;
  Graph& graph = *node.graph();
  std::vector<Value*> inputs;
  for (std::size_t i = 0; i < node.inputs().size(); ++i) {
    inputs.push_back(node.input(i) == nullptr ? nullptr : InDims(node.input(i), m.inputs[i], &node, rewriter));
  }
  Node* folded = graph.AddNode(
      node.op(), "", inputs,
      {{graph.UniqueName(node.output()->name() + "_folded"), TypeOf(node.output()->type.dtype, m.in)}}, &node);
  for (Attribute& attribute : node.attributes()) folded->SetAttribute(attribute.name, std::move(attribute.value));
  folded->name = node.name;
  rewriter.Touch(folded);
  TakePlace(*AddReshape(folded->output(), m.out, node.output()->name() + "_as", &node), node, rewriter);
}

// Before:  %y = Tanh %x : [2, 3, 4, 5, 6]
// After:   %y = Reshape (Tanh (Reshape %x, [6, 4, 5, 6])), [2, 3, 4, 5, 6]
//
// Before:  %y = Add %x : [1, 2, 3, 4, 5, 6], %b : [2, 1, 1, 5, 6]
// After:   %y = Reshape (Add (Reshape %x, [2, 3, 4, 5, 6]), %b), [1, 2, 3, 4, 5, 6]
//
// Exact. Neighbours become one dimension where all operands go along both, or each along both or none.
class FewerDimsElementwiseRule final : public PatternRule<Folded> {
 public:
  std::string_view name() const override { return "elementwise-fewer-dims"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return ElementwiseRoots(); }
  MatchOr<Folded> Match(Node& node) const override {
    if (!node.domain().empty() || node.output() == nullptr || node.outputs().size() != 1) return Refusal{};
    const std::size_t most = MostDims(node);
    const std::optional<Dims> out = StaticShape(node.output()->type);
    if (!out || out->size() <= most || HasNone(*out)) return Refusal{};
    if (node.output()->type.quant) return Refusal{"the value is quantized"};
    Folded match{&node, {}, *out, *out};
    for (const Value* x : node.inputs()) {
      const std::optional<Dims> dims = x == nullptr ? std::optional<Dims>(Dims{}) : StaticShape(x->type);
      if (!dims) return Refusal{"the shape of an operand is not known"};
      if (x != nullptr && x->type.quant) return Refusal{"the value is quantized"};
      if (dims->size() > out->size()) return Refusal{};
      match.inputs.push_back(*dims);
      // Ones in front, so that all have as many dimensions; single numbers stay as they are.
      if (ElementCount(*dims) != 1)
        match.inputs.back().insert(match.inputs.back().begin(), out->size() - dims->size(), 1);
    }
    std::size_t i = 0;
    while (match.in.size() > most && i + 1 < match.in.size()) {
      if (Mergeable(match, i)) {
        Merge(match.in, i);
        for (Dims& dims : match.inputs) {
          if (ElementCount(dims) != 1) Merge(dims, i);
        }
      } else {
        ++i;
      }
    }
    if (match.in.size() > most) return Refusal{"its operands go along dimensions that cannot be made one"};
    for (std::size_t k = 0; k < match.inputs.size(); ++k) {
      Dims& dims = match.inputs[k];
      if (ElementCount(dims) == 1 && dims.size() > most) dims.assign(most, 1);
    }
    return match;
  }
  void Apply(const Folded& match, Rewriter& rewriter) const override { Fold(match, rewriter); }

 private:
  static bool Mergeable(const Folded& m, std::size_t i) {
    return std::all_of(m.inputs.begin(), m.inputs.end(), [&](const Dims& dims) {
      if (ElementCount(dims) == 1) return true;
      return (dims[i] == m.in[i] && dims[i + 1] == m.in[i + 1]) || (dims[i] == 1 && dims[i + 1] == 1);
    });
  }
  static void Merge(Dims& dims, std::size_t i) {
    dims[i] *= dims[i + 1];
    dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
};

// Before:  %y = InstanceNormalization %x : [n, c, d, h, w], %s, %b
// After:   %y = Reshape (InstanceNormalization (Reshape %x, [n, c, d h, w]), %s, %b), [n, c, d, h, w]
// What is over the last axis has those in front made one; a Softmax the HTP has in five dimensions, too.
// OneLsb: the same sums, whose order is the runtime's.
class FewerDimsNormalizationRule final : public PatternRule<Folded> {
 public:
  std::string_view name() const override { return "normalization-fewer-dims"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override {
    return {"InstanceNormalization", "GroupNormalization", "LayerNormalization",
            "LpNormalization",       "LogSoftmax",         "Softmax"};
  }
  MatchOr<Folded> Match(Node& node) const override {
    const Value* x = node.input(0);
    if (!node.domain().empty() || x == nullptr || node.output() == nullptr) return Refusal{};
    const std::optional<Dims> shape = StaticShape(x->type);
    if (!shape || shape->size() < kNpuDims + (node.Is("Softmax") ? 1 : 0) || HasNone(*shape)) return Refusal{};
    if (x->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    for (std::size_t i = 1; i < node.outputs().size(); ++i) {
      if (node.output(i) != nullptr && !node.output(i)->dead()) return Refusal{"its mean or deviation is used"};
    }
    Folded match{&node, {}, *shape, *shape};
    for (const Value* input : node.inputs()) {
      const std::optional<Dims> dims = input == nullptr ? std::optional<Dims>(Dims{}) : StaticShape(input->type);
      if (!dims) return Refusal{"the shape of its scale or bias is not known"};
      match.inputs.push_back(*dims);
    }
    const bool last = OverTheLast(node);
    const std::int64_t axis = node.IntAttribute("axis", -1), rank = static_cast<std::int64_t>(shape->size());
    if (last && axis != -1 && axis != rank - 1) return Refusal{"it is over another axis than the last"};
    for (std::size_t i = 1; last && i < match.inputs.size(); ++i) {
      if (match.inputs[i].size() > 1) return Refusal{"its scale or bias goes along several axes"};
    }
    const auto first = match.in.begin() + (last ? 0 : 2);
    while (match.in.size() > kNpuDims - 1) {
      first[0] *= first[1];
      match.in.erase(first + 1);
    }
    match.inputs[0] = match.in;
    return match;
  }
  void Apply(const Folded& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    if (OverTheLast(node)) node.SetAttribute("axis", std::int64_t{-1});
    Fold(match, rewriter);
  }

 private:
  static bool OverTheLast(const Node& node) {
    return !node.Is("InstanceNormalization") && !node.Is("GroupNormalization");
  }
};

// Before:  %y = MatMul %a : [1, 2, 3, 4, m, k], %b : [1, 2, 3, 4, k, n]
// After:   %y = Reshape (MatMul (Reshape %a, [2, 3, 4, m, k]), (Reshape %b, [2, 3, 4, k, n])), [1, 2, 3, 4, m, n]
// OneLsb: the same sums, whose order is the runtime's.
class FewerDimsProductRule final : public PatternRule<Folded> {
 public:
  std::string_view name() const override { return "product-fewer-dims"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"MatMul"}; }
  MatchOr<Folded> Match(Node& node) const override {
    const Value *a = node.input(0), *b = node.input(1);
    if (!node.domain().empty() || a == nullptr || b == nullptr || node.output() == nullptr) return Refusal{};
    const std::optional<Dims> left = StaticShape(a->type), right = StaticShape(b->type);
    if (!left || !right || left->size() <= kNpuDims || HasNone(*left) || HasNone(*right)) return Refusal{};
    if (a->type.quant || b->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    if (left->size() != right->size() || !std::equal(left->begin(), left->end() - 2, right->begin())) {
      return Refusal{"one of its operands is repeated"};
    }
    Folded match{&node, {*left, *right}, *left, {}};
    match.in.back() = right->back();
    match.out = match.in;
    for (Dims* dims : {&match.inputs[0], &match.inputs[1], &match.in}) {
      while (dims->size() > kNpuDims) {
        (*dims)[0] *= (*dims)[1];
        dims->erase(dims->begin() + 1);
      }
    }
    return match;
  }
  void Apply(const Folded& match, Rewriter& rewriter) const override { Fold(match, rewriter); }
};

}  // namespace

std::unique_ptr<Rule> FewerDimsElementwise() { return std::make_unique<FewerDimsElementwiseRule>(); }
std::unique_ptr<Rule> FewerDimsProduct() { return std::make_unique<FewerDimsProductRule>(); }
std::unique_ptr<Rule> FewerDimsNorm() { return std::make_unique<FewerDimsNormalizationRule>(); }

}  // namespace octavo
