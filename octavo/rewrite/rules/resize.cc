// Resizes in the form that an NPU takes or computes rightly.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "octavo/emit/resize_taps.h"
#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

// A Resize whose numbers are known.
struct Resized {
  Node* node;
  Dims in, out;
  std::vector<float> scales;     // one for each dimension; empty: sizes are given, which are `out`
  std::vector<ResizeTaps> axes;  // those that change
};

bool IsNearest(const Node& node) { return node.StringAttribute("mode", "nearest") == "nearest"; }

MatchOr<Resized> ReadResize(Node& node, std::int64_t opset) {
  const Value* x = node.input(0);
  if (!node.domain().empty() || x == nullptr || node.output() == nullptr) return Refusal{};
  if (x->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
  const std::optional<Dims> in = StaticShape(x->type), out = StaticShape(node.output()->type);
  if (!in || !out || in->size() != out->size()) return Refusal{"its shapes are not known"};
  const auto given = [](const Value* v) { return v != nullptr && !(v->data && v->data->elements() == 0); };
  Resized match{&node, *in, *out, {}, {}};
  std::vector<std::int64_t> sizes;
  std::vector<float> scales;
  if (given(node.input(3))) {
    if (!IsPlainConstant(node.input(3))) return Refusal{"its sizes are computed"};
    sizes = node.input(3)->data->ToInts();
  } else {
    if (!IsPlainConstant(node.input(2))) return Refusal{"its scales are computed"};
    scales = node.input(2)->data->ToFloats();
  }
  ResizePlan plan = PlanResize(node, opset, *in, sizes, scales);
  if (!plan.refused.empty()) return Refusal{plan.refused};
  for (const ResizeTaps& taps : plan.axes) {
    if (taps.to != (*out)[taps.axis]) return Refusal{"its scales do not make its output's shape"};
  }
  match.axes = std::move(plan.axes);
  if (sizes.empty()) {
    match.scales.assign(in->size(), 1.0f);
    const std::vector<std::int64_t>* axes = node.IntsAttribute("axes");
    for (std::size_t k = 0; k < scales.size(); ++k) {
      const std::int64_t axis = axes == nullptr ? static_cast<std::int64_t>(k) : (*axes)[k];
      match.scales[static_cast<std::size_t>(axis < 0 ? axis + static_cast<std::int64_t>(in->size()) : axis)] =
          scales[k];
    }
  }
  return match;
}

// Like `old` from `x` to `out`, by scales where there are any.
Node* AddResize(const Node& old, Value* x, const Dims& out, const std::vector<float>& scales, const std::string& base,
                Node* before) {
  Graph& graph = *before->graph();
  std::vector<Value*> inputs = {x, nullptr};
  if (scales.empty()) {
    inputs.push_back(nullptr);
    inputs.push_back(AddInts(graph, base + "_sizes", out));
  } else {
    inputs.push_back(
        AddFloatConstant(graph, base + "_scales", DType::kF32, {static_cast<std::int64_t>(scales.size())}, scales));
  }
  Node* resize = graph.AddNode("Resize", "", inputs, {{graph.UniqueName(base), TypeOf(x->type.dtype, out)}}, before);
  resize->SetAttribute("mode", old.StringAttribute("mode", "nearest"));
  resize->SetAttribute("coordinate_transformation_mode",
                       old.StringAttribute("coordinate_transformation_mode", "half_pixel"));
  return resize;
}

// Before:  %y[n, c, d, h, w] = Resize %x {mode="linear"}
// After:   %p = Resize (Reshape %x, [n, c d, h, w]) {mode="linear"}
//          %y = Reshape (Resize (Reshape %p, [n c, 1, d, h' w']) {mode="linear"}), [n, c, d', h', w']
// Improves: the same weights, in another order, rounded otherwise. Scales stay scales: coordinates are made of what was
// given. The HTP has 3 dB and less for the first in float, and behind a convolution in codes. Lines lie in one channel
// each because it rounds 8 bits up in rows of 512 and more in several.
class LinearResizeOfVolumeRule final : public PatternRule<Resized> {
 public:
  explicit LinearResizeOfVolumeRule(std::int64_t opset) : opset_(opset) {}
  std::string_view name() const override { return "linear-resize-of-volume"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Resize"}; }
  MatchOr<Resized> Match(Node& node) const override {
    if (node.StringAttribute("mode", "nearest") != "linear" || node.input(0) == nullptr) return Refusal{};
    if (!node.input(0)->type.shape || node.input(0)->type.shape->size() != kNpuDims) return Refusal{};
    if (!IsFloat(node.input(0)->type.dtype)) return Refusal{"its numbers are integers, which are rounded once"};
    MatchOr<Resized> match = ReadResize(node, opset_);
    if (std::holds_alternative<Refusal>(match)) return match;
    const auto& axes = std::get<Resized>(match).axes;
    if (axes.empty()) return Refusal{};
    if (std::any_of(axes.begin(), axes.end(), [](const auto& a) { return a.axis < kDepth; }))
      return Refusal{"it goes along samples or channels"};
    if (node.IntAttribute("exclude_outside", 0) != 0) return Refusal{"what lies outside is excluded"};
    return match;
  }
  void Apply(const Resized& m, Rewriter& rewriter) const override {
    Node& node = *m.node;
    const auto [n, c, d, h, w] = std::tuple(m.in[0], m.in[1], m.in[2], m.in[3], m.in[4]);
    const std::string base = node.output()->name();
    const auto along = [&](std::size_t axis) {
      return std::any_of(m.axes.begin(), m.axes.end(), [&](const ResizeTaps& t) { return t.axis == axis; });
    };
    Value* x = node.input(0);
    if (along(kDepth + 1) || along(kDepth + 2)) {
      Node* planes = AddReshape(x, {n, c * d, h, w}, base + "_planes", &node);
      const std::vector<float> scales =
          m.scales.empty() ? m.scales : std::vector<float>{1, 1, m.scales[kDepth + 1], m.scales[kDepth + 2]};
      Node* resize =
          AddResize(node, planes->output(), {n, c * d, m.out[3], m.out[4]}, scales, base + "_of_planes", &node);
      rewriter.Touch(planes);
      rewriter.Touch(resize);
      x = resize->output();
    }
    if (along(kDepth)) {
      const std::int64_t line = m.out[3] * m.out[4];
      Node* lines = AddReshape(x, {n * c, 1, d, line}, base + "_lines", &node);
      const std::vector<float> scales = m.scales.empty() ? m.scales : std::vector<float>{1, 1, m.scales[kDepth], 1};
      Node* resize = AddResize(node, lines->output(), {n * c, 1, m.out[2], line}, scales, base + "_of_lines", &node);
      rewriter.Touch(lines);
      rewriter.Touch(resize);
      x = resize->output();
    }
    TakePlace(*AddReshape(x, m.out, base + "_as", &node), node, rewriter);
  }

 private:
  static constexpr std::size_t kDepth = 2;  // the first of a volume's axes
  std::int64_t opset_;
};

struct Longer {
  Resized resized;
  Dims in, out;  // of what is resized then
};

// Before:  %y = Resize %x, scales=[1, 1, 1, 1.5] {mode="linear"}        (%x : [1, 2, 4, 5], %y : [1, 2, 4, 7])
// After:   %y = Slice (Resize (Gather %x, [0, 1, 2, 3, 4, 4] {axis=3}), sizes=[1, 2, 4, 9]), 0 to 7
// Improves: the same, to the rounding of coordinates. The HTP makes its coordinates of sizes alone (11 dB where 5
// times 1.5 is no whole number); of 6 elements and 9 it makes the right ones.
class ResizeByFractionRule final : public PatternRule<Longer> {
 public:
  explicit ResizeByFractionRule(std::int64_t opset) : opset_(opset) {}
  std::string_view name() const override { return "resize-by-fraction"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Resize"}; }
  MatchOr<Longer> Match(Node& node) const override {
    if (node.StringAttribute("mode", "nearest") != "linear" || node.input(0) == nullptr) return Refusal{};
    const std::string how = node.StringAttribute("coordinate_transformation_mode", "half_pixel");
    if (how == "align_corners") return Refusal{};  // made of the sizes
    MatchOr<Resized> read = ReadResize(node, opset_);
    if (std::holds_alternative<Refusal>(read)) return std::get<Refusal>(read);
    Longer match{std::move(std::get<Resized>(read)), {}, {}};
    const Resized& m = match.resized;
    if (m.scales.empty() || m.in.size() >= kNpuDims) return Refusal{};
    match.in = m.in;
    match.out = m.out;
    for (std::size_t i = 0; i < m.in.size(); ++i) {
      const double exact = static_cast<double>(m.scales[i]) * static_cast<double>(m.in[i]);
      if (std::abs(exact - static_cast<double>(m.out[i])) <= kRounding * exact) continue;
      if (how == "pytorch_half_pixel" && m.out[i] == 1) return Refusal{"it takes the first of an axis"};
      const std::int64_t q = Denominator(m.scales[i]);
      if (q == 0) return Refusal{"its scale is no fraction of small numbers"};
      match.in[i] = (m.in[i] + q - 1) / q * q;
      match.out[i] = std::llround(static_cast<double>(m.scales[i]) * static_cast<double>(match.in[i]));
    }
    if (match.out == m.out) return Refusal{};
    return match;
  }
  void Apply(const Longer& m, Rewriter& rewriter) const override {
    Node& node = *m.resized.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Value* x = node.input(0);
    Dims dims = m.resized.in, starts, ends, axes;
    for (std::size_t i = 0; i < dims.size(); ++i) {
      if (m.out[i] == m.resized.out[i]) continue;
      std::vector<std::int64_t> places;
      for (std::int64_t k = 0; k < m.in[i]; ++k) places.push_back(std::min(k, dims[i] - 1));
      dims[i] = m.in[i];
      Node* gather = graph.AddNode("Gather", "", {x, AddInts(graph, base + "_with_edge", places)},
                                   {{graph.UniqueName(base + "_longer"), TypeOf(x->type.dtype, dims)}}, &node);
      gather->SetAttribute("axis", static_cast<std::int64_t>(i));
      x = gather->output();
      starts.push_back(0);
      ends.push_back(m.resized.out[i]);
      axes.push_back(static_cast<std::int64_t>(i));
    }
    Node* resize = AddResize(node, x, m.out, {}, base + "_resized", &node);
    Node* slice = graph.AddNode("Slice", "",
                                {resize->output(), AddInts(graph, base + "_starts", starts),
                                 AddInts(graph, base + "_ends", ends), AddInts(graph, base + "_axes", axes)},
                                {{graph.UniqueName(base + "_cut"), {}}}, &node);
    TakePlace(*slice, node, rewriter);
  }

 private:
  static constexpr double kRounding = 1e-6;  // of a scale in f32
  // The least q for which q `scale` is a whole number; 0: none of up to 64.
  static std::int64_t Denominator(float scale) {
    constexpr std::int64_t kMost = 64;
    for (std::int64_t q = 1; q <= kMost; ++q) {
      const double p = static_cast<double>(scale) * static_cast<double>(q);
      if (std::round(p) >= 1 && std::abs(p - std::round(p)) <= kRounding * p) return q;
    }
    return 0;
  }
  std::int64_t opset_;
};

// Before:  %y = Resize %x {mode="nearest"}, not each element the same number of times
// After:   %y = Gather (Gather %x, rows), columns
//
// Before:  %y = Resize %x {mode="nearest"} of a volume, each element the same number of times
// After:   the same {coordinate_transformation_mode="asymmetric", nearest_mode="floor"}
//
// Exact. The HTP knows one way to round only, and of volumes its provider takes but that one.
class NearestToGatherRule final : public PatternRule<Resized> {
 public:
  explicit NearestToGatherRule(std::int64_t opset) : opset_(opset) {}
  std::string_view name() const override { return "nearest-to-gather"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Resize"}; }
  MatchOr<Resized> Match(Node& node) const override {
    if (!IsNearest(node)) return Refusal{};
    MatchOr<Resized> match = ReadResize(node, opset_);
    if (std::holds_alternative<Refusal>(match)) return match;
    const auto& m = std::get<Resized>(match);
    if (m.axes.empty()) return Refusal{};
    if (AllRepeat(m) && (m.in.size() < kNpuDims || Floors(node))) return Refusal{};
    return match;
  }
  void Apply(const Resized& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    Value* x = node.input(0);
    if (AllRepeat(match)) {
      Node* resize = AddResize(node, x, match.out, {}, base + "_nearest", &node);
      resize->SetAttribute("coordinate_transformation_mode", std::string("asymmetric"));
      resize->SetAttribute("nearest_mode", std::string("floor"));
      TakePlace(*resize, node, rewriter);
      return;
    }
    Dims dims = match.in;
    Node* gather = nullptr;
    for (const ResizeTaps& taps : match.axes) {
      dims[taps.axis] = taps.to;
      gather = graph.AddNode("Gather", "", {x, AddInts(graph, base + "_at", taps.places[0])},
                             {{graph.UniqueName(base + "_nearest"), TypeOf(x->type.dtype, dims)}}, &node);
      gather->SetAttribute("axis", static_cast<std::int64_t>(taps.axis));
      x = gather->output();
    }
    TakePlace(*gather, node, rewriter);
  }

 private:
  static bool Floors(const Node& node) {
    return node.StringAttribute("coordinate_transformation_mode", "half_pixel") == "asymmetric" &&
           node.StringAttribute("nearest_mode", "round_prefer_floor") == "floor";
  }
  static bool AllRepeat(const Resized& match) {
    return std::all_of(match.axes.begin(), match.axes.end(), [](const ResizeTaps& taps) { return Repeats(taps); });
  }
  static bool Repeats(const ResizeTaps& taps) {
    if (taps.from < 1 || taps.to % taps.from != 0) return false;
    for (std::int64_t i = 0; i < taps.to; ++i) {
      if (taps.places[0][static_cast<std::size_t>(i)] != i / (taps.to / taps.from)) return false;
    }
    return true;
  }
  std::int64_t opset_;
};

}  // namespace

std::unique_ptr<Rule> LinearResizeOfVolume(std::int64_t opset) {
  return std::make_unique<LinearResizeOfVolumeRule>(opset);
}
std::unique_ptr<Rule> ResizeByFraction(std::int64_t opset) { return std::make_unique<ResizeByFractionRule>(opset); }
std::unique_ptr<Rule> NearestToGather(std::int64_t opset) { return std::make_unique<NearestToGatherRule>(opset); }

}  // namespace octavo
