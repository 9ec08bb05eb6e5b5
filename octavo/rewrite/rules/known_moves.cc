// Data movement at known places, as the operators that an NPU has for it.
#include <algorithm>
#include <numeric>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

constexpr std::uint64_t kMostMask = std::uint64_t{1} << 24;  // numbers of a triangle

// x[from..to) along `axis`.
Value* Part(Value* x, Dims& dims, std::int64_t axis, std::int64_t from, std::int64_t to, Node* before) {
  Graph& graph = *before->graph();
  const std::string base = before->output()->name() + "_part";
  dims[static_cast<std::size_t>(axis)] = to - from;
  return graph
      .AddNode("Slice", "", {x, AddInts(graph, base, {from}), AddInts(graph, base, {to}), AddInts(graph, base, {axis})},
               {{graph.UniqueName(base), TypeOf(x->type.dtype, dims)}}, before)
      ->output();
}

struct Triangle {
  Node* node;
  Dims dims;
  std::int64_t k;
};

// Before:  %y = Trilu %x {upper=1}        After:  %y = Where mask, %x, 0, the mask a constant
// Exact.
class TriluToWhereRule final : public PatternRule<Triangle> {
 public:
  std::string_view name() const override { return "trilu-to-where"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Trilu"}; }
  MatchOr<Triangle> Match(Node& node) const override {
    const Value *x = node.input(0), *k = node.input(1);
    if (!node.domain().empty() || x == nullptr || node.output() == nullptr || x->type.quant) return Refusal{};
    if (x->type.dtype != DType::kF32) return Refusal{"its numbers are not f32"};
    if (k != nullptr && (!IsPlainConstant(k) || k->data->elements() != 1)) return Refusal{"its diagonal is computed"};
    const std::optional<Dims> dims = StaticShape(x->type);
    if (!dims || dims->size() < 2) return Refusal{"the shape of its input is not known"};
    Dims last(dims->end() - 2, dims->end());
    if (ElementCount(last) > kMostMask) return Refusal{"its mask is too big"};
    return Triangle{&node, std::move(last), k == nullptr ? 0 : k->data->ToInts()[0]};
  }
  void Apply(const Triangle& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    const bool upper = node.IntAttribute("upper", 1) != 0;
    const std::int64_t rows = match.dims[0], columns = match.dims[1];
    std::vector<std::byte> mask;
    mask.reserve(ElementCount(match.dims));
    // k is bounded first: what lies beyond all diagonals is as the last one.
    const std::int64_t k = std::clamp(match.k, -rows - 1, columns + 1);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) mask.push_back(std::byte{upper ? c - r >= k : c - r <= k});
    }
    const std::string base = node.output()->name();
    Value* kept = graph.AddConstant(graph.UniqueName(base + "_kept"),
                                    TensorRef::FromBytes(DType::kBool, match.dims, std::move(mask)));
    Value* zero = graph.AddConstant(graph.UniqueName(base + "_zero"), TensorRef::Scalar(0.0f));
    Node* where =
        graph.AddNode("Where", "", {kept, node.input(0), zero}, {{graph.UniqueName(base + "_where"), {}}}, &node);
    TakePlace(*where, node, rewriter);
  }
};

struct Padding {
  Node* node;
  Dims dims;    // of the input
  Dims before;  // of each axis, negative: taken off
  Dims after;
};

// Before:  %y = Pad %x, pads, value, axes                     After:  %y = Pad %x, pads of all axes, value
// Before:  %y = Pad %x, [0, -1, 0, 2]                         After:  %y = Pad (Slice %x), [0, 0, 0, 2]
// Before:  %y = Pad %x, [0, 1, 0, 2] {mode="wrap"}            After:  %y = Concat (Slice %x), %x, (Slice %x)
// Exact. Reflected and repeated edges are those of what is left of x, as ONNX Runtime has them too.
class PlainPadRule final : public PatternRule<Padding> {
 public:
  std::string_view name() const override { return "plain-pad"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Pad"}; }
  MatchOr<Padding> Match(Node& node) const override {
    const Value *x = node.input(0), *pads = node.input(1), *axes = node.input(3);
    if (!node.domain().empty() || x == nullptr || node.output() == nullptr || x->type.quant) return Refusal{};
    if (!IsPlainConstant(pads) || (axes != nullptr && !IsPlainConstant(axes))) return Refusal{"its pads are computed"};
    const std::optional<Dims> dims = StaticShape(x->type);
    if (!dims || dims->empty()) return Refusal{"the shape of its input is not known"};
    const std::size_t rank = dims->size();
    const Dims given = pads->data->ToInts();
    Dims along(rank);
    std::iota(along.begin(), along.end(), 0);
    if (axes != nullptr) along = axes->data->ToInts();
    if (given.size() != 2 * along.size()) return Refusal{};
    Padding match{&node, *dims, Dims(rank, 0), Dims(rank, 0)};
    for (std::size_t i = 0; i < along.size(); ++i) {
      const std::int64_t axis = along[i] < 0 ? along[i] + static_cast<std::int64_t>(rank) : along[i];
      if (axis < 0 || axis >= static_cast<std::int64_t>(rank)) return Refusal{};
      match.before[static_cast<std::size_t>(axis)] = given[i];
      match.after[static_cast<std::size_t>(axis)] = given[i + along.size()];
    }
    bool off = false;
    const bool wrap = node.StringAttribute("mode", "constant") == "wrap";
    for (std::size_t i = 0; i < rank; ++i) {
      const std::int64_t b = match.before[i], a = match.after[i], n = (*dims)[i];
      if (b < -n || a < -n || b > INT32_MAX || a > INT32_MAX) return Refusal{};
      const std::int64_t left = n + std::min<std::int64_t>(b, 0) + std::min<std::int64_t>(a, 0);
      if (left < 1) return Refusal{"nothing of its input is left"};
      if (wrap && (b > left || a > left)) return Refusal{"it wraps around more than once"};
      off = off || b < 0 || a < 0;
    }
    if (off && node.StringAttribute("mode", "constant") != "constant") return Refusal{"it takes off and repeats"};
    if (!off && !wrap && axes == nullptr) return Refusal{};
    return match;
  }
  void Apply(const Padding& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Value* x = node.input(0);
    Dims dims = match.dims, before, after;
    for (std::size_t i = 0; i < dims.size(); ++i) {
      const std::int64_t b = std::min<std::int64_t>(match.before[i], 0), a = std::min<std::int64_t>(match.after[i], 0);
      if (b < 0 || a < 0) x = Part(x, dims, static_cast<std::int64_t>(i), -b, dims[i] + a, &node);
      before.push_back(match.before[i] - b);
      after.push_back(match.after[i] - a);
    }
    Node* last = nullptr;
    if (node.StringAttribute("mode", "constant") == "wrap") {
      for (std::size_t i = 0; i < dims.size(); ++i) {
        if (before[i] == 0 && after[i] == 0) continue;
        const auto axis = static_cast<std::int64_t>(i);
        const std::int64_t n = dims[i];
        std::vector<Value*> parts;
        Dims part = dims;
        if (before[i] > 0) parts.push_back(Part(x, part, axis, n - before[i], n, &node));
        parts.push_back(x);
        if (after[i] > 0) parts.push_back(Part(x, part, axis, 0, after[i], &node));
        dims[i] += before[i] + after[i];
        last = graph.AddNode("Concat", "", parts, {{graph.UniqueName(base + "_wrapped"), TypeOf(x->type.dtype, dims)}},
                             &node);
        last->SetAttribute("axis", axis);
        x = last->output();
      }
      if (last == nullptr) last = AddReshape(x, dims, base + "_as", &node);
    } else {
      Dims pads = before;
      pads.insert(pads.end(), after.begin(), after.end());
      std::vector<Value*> inputs = {x, AddInts(graph, base + "_pads", pads)};
      if (node.input(2) != nullptr) inputs.push_back(node.input(2));
      last = graph.AddNode("Pad", "", inputs, {{graph.UniqueName(base + "_padded"), {}}}, &node);
      last->SetAttribute("mode", node.StringAttribute("mode", "constant"));
    }
    TakePlace(*last, node, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> TriluToWhere() { return std::make_unique<TriluToWhereRule>(); }
std::unique_ptr<Rule> PlainPad() { return std::make_unique<PlainPadRule>(); }

}  // namespace octavo
