#include <algorithm>

#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct GatheredAll {
  Node* node;
  Dims dims;  // of the result
};

// Before:  %y = Gather %x, [[0, 1, 2]]  (axis 0, %x : [3, 4])        After:  %y = Reshape %x, [1, 3, 4]
// Exact: all there is, in its order.
class GatherAllRule final : public PatternRule<GatheredAll> {
 public:
  std::string_view name() const override { return "gather-all"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Gather"}; }
  MatchOr<GatheredAll> Match(Node& node) const override {
    if (!node.domain().empty() || node.output() == nullptr || !IsPlainConstant(node.input(1))) return Refusal{};
    const Value* x = node.input(0);
    if (x == nullptr || x->is_constant() || x->type.quant || node.output()->type.quant) return Refusal{};
    const std::optional<Dims> shape = StaticShape(x->type);
    if (!shape || shape->empty()) return Refusal{"the shape of its input is not known"};
    const auto rank = static_cast<std::int64_t>(shape->size());
    std::int64_t axis = node.IntAttribute("axis", 0);
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank) return Refusal{};
    const std::int64_t count = (*shape)[static_cast<std::size_t>(axis)];
    const TensorRef& indices = *node.input(1)->data;
    if (static_cast<std::int64_t>(indices.elements()) != count) return Refusal{"it takes some, or some twice"};
    const std::vector<std::int64_t> at = indices.ToInts();
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t k = at[static_cast<std::size_t>(i)];
      if ((k < 0 ? k + count : k) != i) return Refusal{"it takes them in another order"};
    }
    GatheredAll match{&node, Dims(shape->begin(), shape->begin() + axis)};
    match.dims.insert(match.dims.end(), indices.dims.begin(), indices.dims.end());
    match.dims.insert(match.dims.end(), shape->begin() + axis + 1, shape->end());
    if (HasNone(match.dims)) return Refusal{};
    return match;
  }
  void Apply(const GatheredAll& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Node* reshape = AddReshape(node.input(0), match.dims, node.output()->name() + "_all", &node);
    TakePlace(*reshape, node, rewriter);
  }
};

struct Flattened {
  Node* node;
  Dims dims;                          // of the input, the indexed dimensions made one
  Dims index_dims;                    // of the new indices
  std::vector<std::int64_t> indices;  // along that one
};

// Before:  %y = GatherND %x, [[0, 2], [1, 0]]  (%x : [2, 3, 4])
// After:   %r = Reshape %x, [6, 4]
//          %y = Gather %r, [2, 3]
// Exact.
class GatherNdToGatherRule final : public PatternRule<Flattened> {
 public:
  std::string_view name() const override { return "gather-nd-to-gather"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"GatherND"}; }
  MatchOr<Flattened> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    if (!IsPlainConstant(node.input(1))) return Refusal{"its indices are computed"};
    if (node.IntAttribute("batch_dims", 0) != 0) return Refusal{"it has batch dimensions"};
    const Value* x = node.input(0);
    if (x->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    const std::optional<Dims> shape = StaticShape(x->type);
    if (!shape) return Refusal{"the shape of its input is not known"};
    const TensorRef& indices = *node.input(1)->data;
    if (indices.dims.empty() || indices.dims.back() < 1 ||
        indices.dims.back() > static_cast<std::int64_t>(shape->size()) || indices.elements() == 0) {
      return Refusal{};
    }
    const auto depth = static_cast<std::size_t>(indices.dims.back());
    Flattened match{&node, {1}, Dims(indices.dims.begin(), indices.dims.end() - 1), {}};
    for (std::size_t i = 0; i < depth; ++i) match.dims[0] *= (*shape)[i];
    match.dims.insert(match.dims.end(), shape->begin() + static_cast<std::ptrdiff_t>(depth), shape->end());
    if (HasNone(match.dims)) return Refusal{};
    const std::vector<std::int64_t> at = indices.ToInts();
    for (std::size_t tuple = 0; tuple < at.size(); tuple += depth) {
      std::int64_t flat = 0;
      for (std::size_t i = 0; i < depth; ++i) {
        const std::int64_t size = (*shape)[i], k = at[tuple + i] < 0 ? at[tuple + i] + size : at[tuple + i];
        if (k < 0 || k >= size) return Refusal{"an index is out of range"};
        flat = flat * size + k;
      }
      match.indices.push_back(flat);
    }
    return match;
  }
  void Apply(const Flattened& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Node* flat = AddReshape(node.input(0), match.dims, base + "_flat", &node);
    Value* indices = graph.AddConstant(graph.UniqueName(base + "_at"),
                                       TensorRef::FromInts(DType::kS64, match.index_dims, match.indices));
    Node* gather =
        graph.AddNode("Gather", "", {flat->output(), indices}, {{graph.UniqueName(base + "_taken"), {}}}, &node);
    gather->SetAttribute("axis", std::int64_t{0});
    TakePlace(*gather, node, rewriter);
  }
};

struct Taken {
  Node* node;
  std::int64_t axis;
  Dims in, flat, out;  // of the input as it is gathered from, of what is taken of it, and as it was
};

// Before:  %y = Gather %x, [[0, 1], [1, 2], [2, 3]] {axis=4}      (%x : [1, 8, 3, 2, 4], %y : [1, 8, 3, 2, 3, 2])
// After:   %y = Reshape (Gather %x, [0, 1, 1, 2, 2, 3] {axis=4}), [1, 8, 3, 2, 3, 2]
// Exact. So exporters write the windows of an image; an NPU has no tensors of six dimensions, but what brings the
// windows into their order often makes fewer of them.
class GatherByMatrixRule final : public PatternRule<Taken> {
 public:
  std::string_view name() const override { return "gather-by-matrix"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Gather"}; }
  MatchOr<Taken> Match(Node& node) const override {
    const Value* x = node.input(0);
    if (!node.domain().empty() || node.output() == nullptr || x == nullptr || x->is_constant()) return Refusal{};
    const std::optional<Dims> shape = StaticShape(x->type);
    if (!shape || node.input(1) == nullptr || !node.input(1)->type.shape) return Refusal{};
    if (shape->size() - 1 + node.input(1)->type.shape->size() <= kNpuDims) return Refusal{};
    if (!IsPlainConstant(node.input(1))) return Refusal{"its indices are computed"};
    if (x->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    const Dims& by = node.input(1)->data->dims;
    std::int64_t axis = node.IntAttribute("axis", 0);
    if (axis < 0) axis += static_cast<std::int64_t>(shape->size());
    if (axis < 0 || axis >= static_cast<std::int64_t>(shape->size())) return Refusal{};
    Taken match{&node, axis, *shape, {}, Dims(shape->begin(), shape->begin() + axis)};
    match.out.insert(match.out.end(), by.begin(), by.end());
    match.out.insert(match.out.end(), shape->begin() + axis + 1, shape->end());
    if (HasNone(match.out)) return Refusal{};
    if (shape->size() > kNpuDims) {
      match.in = {1, (*shape)[static_cast<std::size_t>(axis)], 1};
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(shape->size()); ++i) {
        if (i != axis) match.in[i < axis ? 0 : 2] *= (*shape)[static_cast<std::size_t>(i)];
      }
      match.axis = 1;
    }
    if (match.in == *shape && by.size() == 1) return Refusal{};
    match.flat = match.in;
    match.flat[static_cast<std::size_t>(match.axis)] = static_cast<std::int64_t>(node.input(1)->data->elements());
    return match;
  }
  void Apply(const Taken& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Value* x = node.input(0);
    if (*StaticShape(x->type) != match.in) {
      x = AddReshape(x, match.in, base + "_flat", &node)->output();
      rewriter.Touch(x->producer());
    }
    TensorRef row = *node.input(1)->data;
    row.dims = {static_cast<std::int64_t>(row.elements())};
    Value* at = graph.AddConstant(graph.UniqueName(base + "_at"), std::move(row));
    Node* gather = graph.AddNode("Gather", "", {x, at},
                                 {{graph.UniqueName(base + "_taken"), TypeOf(x->type.dtype, match.flat)}}, &node);
    gather->SetAttribute("axis", match.axis);
    rewriter.Touch(gather);
    TakePlace(*AddReshape(gather->output(), match.out, base + "_windows", &node), node, rewriter);
  }
};

struct Reversed {
  Node* node;
  std::int64_t axis;                 // of time
  std::vector<std::int64_t> places;  // along it
};

// Before:  %y = ReverseSequence %x, [3]  (time axis 0, %x : [4, 1, 2])        After:  %y = Gather %x, [2, 1, 0, 3]
// Exact. All sequences of the batch are of one length, which is known.
class ReverseToGatherRule final : public PatternRule<Reversed> {
 public:
  std::string_view name() const override { return "reverse-to-gather"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"ReverseSequence"}; }
  MatchOr<Reversed> Match(Node& node) const override {
    const Value* x = node.input(0);
    if (!node.domain().empty() || x == nullptr || node.output() == nullptr) return Refusal{};
    if (!IsPlainConstant(node.input(1))) return Refusal{"the lengths are computed"};
    if (!IsInteger(node.input(1)->data->dtype)) return Refusal{};
    const std::optional<Dims> shape = StaticShape(x->type);
    if (!shape || shape->size() < 2) return Refusal{"the shape of its input is not known"};
    const std::int64_t axis = node.IntAttribute("time_axis", 0);
    if (axis < 0 || axis > 1) return Refusal{};
    const std::int64_t steps = (*shape)[static_cast<std::size_t>(axis)];
    const std::vector<std::int64_t> lengths = node.input(1)->data->ToInts();
    if (lengths.empty() || steps > kMostPlaces) return Refusal{};
    const std::int64_t length = lengths[0];
    if (std::any_of(lengths.begin(), lengths.end(), [&](std::int64_t n) { return n != length; })) {
      return Refusal{"the sequences are of several lengths"};
    }
    if (length < 0 || length > steps) return Refusal{};
    Reversed match{&node, axis, {}};
    for (std::int64_t t = 0; t < steps; ++t) match.places.push_back(t < length ? length - 1 - t : t);
    return match;
  }
  void Apply(const Reversed& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Value* places = graph.AddConstant(
        graph.UniqueName(base + "_at"),
        TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(match.places.size())}, match.places));
    Node* gather =
        graph.AddNode("Gather", "", {node.input(0), places}, {{graph.UniqueName(base + "_reversed"), {}}}, &node);
    gather->SetAttribute("axis", match.axis);
    TakePlace(*gather, node, rewriter);
  }

 private:
  static constexpr std::int64_t kMostPlaces = 1 << 20;
};

}  // namespace

std::unique_ptr<Rule> ReverseToGather() { return std::make_unique<ReverseToGatherRule>(); }
std::unique_ptr<Rule> GatherAll() { return std::make_unique<GatherAllRule>(); }
std::unique_ptr<Rule> GatherByMatrix() { return std::make_unique<GatherByMatrixRule>(); }
std::unique_ptr<Rule> GatherNdToGather() { return std::make_unique<GatherNdToGatherRule>(); }

}  // namespace octavo
