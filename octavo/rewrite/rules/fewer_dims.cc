#include <algorithm>
#include <numeric>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

Value* Reshaped(Value* x, const Dims& to, Node* before) {
  return AddReshape(x, to, before->output()->name() + "_as", before)->output();
}

// A permutation of dimensions; dimension i of the result is `perm[i]` of `dims`.
struct Permutation {
  Dims dims, perm;
};

// The same without dimensions of one element, neighbours that stay neighbours made one.
Permutation Merged(const Permutation& p) {
  Dims dims, perm;  // of p, without ones
  std::vector<std::int64_t> number(p.dims.size(), -1);
  for (std::size_t i = 0; i < p.dims.size(); ++i) {
    if (p.dims[i] == 1) continue;
    number[i] = static_cast<std::int64_t>(dims.size());
    dims.push_back(p.dims[i]);
  }
  for (const std::int64_t i : p.perm) {
    if (number[static_cast<std::size_t>(i)] >= 0) perm.push_back(number[static_cast<std::size_t>(i)]);
  }
  std::vector<bool> first(dims.size(), true);  // of a run
  for (std::size_t i = 1; i < perm.size(); ++i) first[static_cast<std::size_t>(perm[i])] = perm[i] != perm[i - 1] + 1;
  Permutation merged;
  std::vector<std::int64_t> run(dims.size());
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (first[i]) merged.dims.push_back(1);
    merged.dims.back() *= dims[i];
    run[i] = static_cast<std::int64_t>(merged.dims.size()) - 1;
  }
  for (const std::int64_t i : perm) {
    if (first[static_cast<std::size_t>(i)]) merged.perm.push_back(run[static_cast<std::size_t>(i)]);
  }
  return merged;
}

// What puts the first dimension that is not in its place there, and what is left to do then.
std::pair<Permutation, Permutation> Split(const Permutation& p) {
  std::size_t k = 0;
  while (k < p.perm.size() && p.perm[k] == static_cast<std::int64_t>(k)) ++k;
  const auto from = static_cast<std::size_t>(p.perm[k]);
  Permutation move{p.dims, Dims(p.dims.size())}, rest{{}, p.perm};
  std::iota(move.perm.begin(), move.perm.end(), 0);
  std::rotate(move.perm.begin() + static_cast<std::ptrdiff_t>(k), move.perm.begin() + static_cast<std::ptrdiff_t>(from),
              move.perm.begin() + static_cast<std::ptrdiff_t>(from) + 1);
  for (const std::int64_t i : move.perm) rest.dims.push_back(p.dims[static_cast<std::size_t>(i)]);
  for (std::int64_t& i : rest.perm) {
    i = std::find(move.perm.begin(), move.perm.end(), i) - move.perm.begin();
  }
  return {move, rest};
}

struct Transposed {
  Node* node;
  std::vector<Permutation> steps;  // each of few dimensions
  Dims dims;                       // of the result
};

// Before:  %y = Transpose %x {perm=[0, 1, 3, 2, 4, 5]}  (%x : [1, 2, 7, 2, 7, 96])
// After:   %y = Reshape (Transpose (Reshape %x, [2, 7, 2, 672]) {perm=[0, 2, 1, 3]}), [1, 2, 2, 7, 7, 96]
// One that has more than five dimensions even so is done in several. Exact.
class FewerDimsTransposeRule final : public PatternRule<Transposed> {
 public:
  std::string_view name() const override { return "transpose-fewer-dims"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Transpose"}; }
  MatchOr<Transposed> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    const std::optional<Dims> shape = StaticShape(node.input(0)->type);
    if (!shape || shape->size() <= kNpuDims || HasNone(*shape)) return Refusal{};
    if (node.input(0)->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    const std::vector<std::int64_t>* perm = node.IntsAttribute("perm");
    Permutation left{*shape, {}};
    if (perm == nullptr) {
      for (std::size_t i = shape->size(); i-- > 0;) left.perm.push_back(static_cast<std::int64_t>(i));
    } else {
      left.perm = *perm;
    }
    Dims sorted = left.perm, all(shape->size());
    std::sort(sorted.begin(), sorted.end());
    std::iota(all.begin(), all.end(), 0);
    if (sorted != all) return Refusal{};
    Transposed match{&node, {}, {}};
    for (const std::int64_t i : left.perm) match.dims.push_back((*shape)[static_cast<std::size_t>(i)]);
    left = Merged(left);
    while (left.dims.size() > kNpuDims) {
      auto [move, rest] = Split(left);
      match.steps.push_back(Merged(move));
      left = Merged(rest);
    }
    if (left.dims.size() > 1) match.steps.push_back(left);
    return match;
  }
  void Apply(const Transposed& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    Value* x = node.input(0);
    for (const Permutation& step : match.steps) {
      Value* in = Reshaped(x, step.dims, &node);
      Dims out;
      for (const std::int64_t i : step.perm) out.push_back(step.dims[static_cast<std::size_t>(i)]);
      Node* transpose =
          graph.AddNode("Transpose", "", {in},
                        {{graph.UniqueName(node.output()->name() + "_moved"), TypeOf(x->type.dtype, out)}}, &node);
      transpose->SetAttribute("perm", step.perm);
      x = transpose->output();
      rewriter.Touch(in);
    }
    TakePlace(*Reshaped(x, match.dims, &node)->producer(), node, rewriter);
  }
};

bool OnlyShapes(const Node& node) {
  return node.Is("Reshape") || node.Is("Flatten") || node.Is("Squeeze") || node.Is("Unsqueeze");
}

struct Twice {
  Node* node;
  Dims dims;
};

// Before:  %a = Reshape %x, [1, 2, 7, 2, 7, 96]     After:  %y = Reshape %x, [2, 7, 2, 672]
//          %y = Reshape %a, [2, 7, 2, 672]
// Exact. Only where what lies between has more than five dimensions.
class ReshapeTwiceRule final : public PatternRule<Twice> {
 public:
  std::string_view name() const override { return "reshape-twice"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}; }
  MatchOr<Twice> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    const Node* inner = node.input(0)->producer();
    if (inner == nullptr || !OnlyShapes(*inner) || inner->graph() != node.graph()) return Refusal{};
    const std::optional<Dims> between = StaticShape(node.input(0)->type), out = StaticShape(node.output()->type);
    if (!between || between->size() <= kNpuDims || inner->input(0) == nullptr) return Refusal{};
    if (!out || HasNone(*out)) return Refusal{"the shape of its result is not known"};
    if (inner->input(0)->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    return Twice{&node, *out};
  }
  void Apply(const Twice& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Node* once = Reshaped(node.input(0)->producer()->input(0), match.dims, &node)->producer();
    TakePlace(*once, node, rewriter);
  }
};

struct Normalized {
  Node* node;
  Dims in, out;  // with one dimension that is normalized; of the result
};

// Before:  %y = LayerNormalization %x, %scale {axis=-2}                    (%x : [2, 3, 4], %scale : [3, 4])
// After:   %y = Reshape (LayerNormalization (Reshape %x, [2, 12]), %scale as [12]), [2, 3, 4]
// Exact.
class OneAxisLayerNormRule final : public PatternRule<Normalized> {
 public:
  std::string_view name() const override { return "layernorm-one-axis"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"LayerNormalization"}; }
  MatchOr<Normalized> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    const std::optional<Dims> shape = StaticShape(node.input(0)->type);
    if (!shape || shape->empty() || HasNone(*shape)) return Refusal{};
    const auto rank = static_cast<std::int64_t>(shape->size());
    std::int64_t axis = node.IntAttribute("axis", -1);
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank - 1) return Refusal{};  // one already
    for (std::size_t i = 1; i < node.outputs().size(); ++i) {
      if (node.output(i) != nullptr && !node.output(i)->dead()) return Refusal{"its mean or deviation is used"};
    }
    const Dims last(shape->begin() + axis, shape->end());
    for (std::size_t i = 1; i < node.inputs().size(); ++i) {
      const Value* v = node.input(i);
      if (v != nullptr && (!IsFloatConstant(v) || v->data->dims != last)) {
        return Refusal{"its scale or bias is computed, or of another shape than what is normalized"};
      }
    }
    Normalized match{&node, Dims(shape->begin(), shape->begin() + axis), *shape};
    match.in.push_back(static_cast<std::int64_t>(ElementCount(last)));
    return match;
  }
  void Apply(const Normalized& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    std::vector<Value*> inputs = {Reshaped(node.input(0), match.in, &node)};
    for (std::size_t i = 1; i < node.inputs().size(); ++i) {
      if (node.input(i) == nullptr) {
        inputs.push_back(nullptr);
        continue;
      }
      TensorRef flat = *node.input(i)->data;
      flat.dims = {match.in.back()};
      inputs.push_back(graph.AddConstant(graph.UniqueName(node.input(i)->name() + "_flat"), std::move(flat)));
    }
    Node* normal = graph.AddNode(
        "LayerNormalization", "", inputs,
        {{graph.UniqueName(node.output()->name() + "_normal"), TypeOf(node.input(0)->type.dtype, match.in)}}, &node);
    normal->SetAttribute("axis", std::int64_t{-1});
    normal->SetAttribute("epsilon", node.FloatAttribute("epsilon", 1e-5f));
    TakePlace(*Reshaped(normal->output(), match.out, &node)->producer(), node, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> FewerDimsTranspose() { return std::make_unique<FewerDimsTransposeRule>(); }
std::unique_ptr<Rule> OneAxisLayerNorm() { return std::make_unique<OneAxisLayerNormRule>(); }
std::unique_ptr<Rule> ReshapeTwice() { return std::make_unique<ReshapeTwiceRule>(); }

}  // namespace octavo
