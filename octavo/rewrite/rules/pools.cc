// Poolings over volumes, in the form that an NPU takes or computes rightly.
#include <algorithm>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

constexpr std::size_t kAxes = 3;  // of a volume: depth, height, width

// What a pooling does along the axes of an image or a volume.
struct Windows {
  Node* node;
  Dims in, out;  // [N, C, D, H, W]
  std::vector<std::int64_t> kernel, strides, pads;
};

bool AreAll(const std::vector<std::int64_t>& values, std::int64_t v) {
  return std::all_of(values.begin(), values.end(), [&](std::int64_t x) { return x == v; });
}

// The windows of `node` over a volume; a refusal without words where it is over something else.
MatchOr<Windows> WindowsOf(Node& node) {
  if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
  const std::vector<std::int64_t>* kernel = node.IntsAttribute("kernel_shape");
  if (kernel == nullptr || kernel->size() != kAxes) return Refusal{};
  if (node.input(0)->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
  const std::optional<Dims> in = StaticShape(node.input(0)->type), out = StaticShape(node.output()->type);
  if (!in || !out || in->size() != kAxes + 2 || out->size() != kAxes + 2) return Refusal{"its shapes are not known"};
  if (HasNone(*in) || HasNone(*out)) return Refusal{};
  const auto list = [&](const char* name, std::size_t n, std::int64_t otherwise) {
    const std::vector<std::int64_t>* given = node.IntsAttribute(name);
    return given == nullptr || given->empty() ? std::vector<std::int64_t>(n, otherwise) : *given;
  };
  Windows match{&node, *in, *out, *kernel, list("strides", kAxes, 1), list("pads", 2 * kAxes, 0)};
  if (!AreAll(list("dilations", kAxes, 1), 1)) return Refusal{"its windows have gaps"};
  if (match.strides.size() != kAxes || match.pads.size() != 2 * kAxes) return Refusal{};
  return match;
}

// Before:  %y[n, c, d, h, w] = MaxPool %x {kernel_shape=[2, 3, 3]}
// After:   %p = MaxPool (Reshape %x, [n, c d, h, w]) {kernel_shape=[3, 3]}
//          %y = Reshape (MaxPool (Reshape %p, [n, c, d, h' w']) {kernel_shape=[2, 1]}), [n, c, d', h', w']
// Improves: the same numbers, and infinity. Of windows of nothing but -infinity the runtime makes the least finite
// number for some kernels, as -infinity for others; whether it sees a NaN depends on where in the window it lies.
class MaxPoolOfVolumeRule final : public PatternRule<Windows> {
 public:
  std::string_view name() const override { return "maxpool-of-volume"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"MaxPool"}; }
  MatchOr<Windows> Match(Node& node) const override {
    MatchOr<Windows> match = WindowsOf(node);
    if (std::holds_alternative<Refusal>(match)) return match;
    if (node.outputs().size() > 1 && node.output(1) != nullptr && !node.output(1)->dead()) {
      return Refusal{"the places of the greatest are used"};
    }
    return match;
  }
  void Apply(const Windows& m, Rewriter& rewriter) const override {
    const auto [n, c, d, h, w] = std::tuple(m.in[0], m.in[1], m.in[2], m.in[3], m.in[4]);
    const Dims plane = {n, c * d, m.out[3], m.out[4]}, line = {n, c, m.out[2], m.out[3] * m.out[4]};
    Value* x = m.node->input(0);
    if (Moves(m, 1) || Moves(m, 2)) {
      x = Pooled(m, AddReshape(x, {n, c * d, h, w}, m.node->output()->name() + "_planes", m.node), {1, 2}, plane,
                 rewriter);
    }
    if (Moves(m, 0)) {
      x = Pooled(m, AddReshape(x, {n, c, d, line[3]}, m.node->output()->name() + "_lines", m.node), {0}, line,
                 rewriter);
    }
    TakePlace(*AddReshape(x, m.out, m.node->output()->name() + "_as", m.node), *m.node, rewriter);
  }

 private:
  // Whether anything happens along an axis. (With auto_pad, windows of one element are never padded.)
  static bool Moves(const Windows& m, std::size_t axis) {
    return m.kernel[axis] != 1 || m.strides[axis] != 1 || m.pads[axis] != 0 || m.pads[kAxes + axis] != 0;
  }
  // The pooling along `axes` of the volume, which are the first of two dimensions behind the channels.
  static Value* Pooled(const Windows& m, Node* of, const std::vector<std::size_t>& axes, const Dims& out,
                       Rewriter& rewriter) {
    Graph& graph = *m.node->graph();
    std::vector<std::int64_t> kernel = {1, 1}, strides = {1, 1}, pads = {0, 0, 0, 0};
    for (std::size_t i = 0; i < axes.size(); ++i) {
      kernel[i] = m.kernel[axes[i]];
      strides[i] = m.strides[axes[i]];
      pads[i] = m.pads[axes[i]];
      pads[2 + i] = m.pads[kAxes + axes[i]];
    }
    Node* pool = graph.AddNode(
        "MaxPool", "", {of->output()},
        {{graph.UniqueName(m.node->output()->name() + "_max"), TypeOf(m.node->input(0)->type.dtype, out)}}, m.node);
    pool->SetAttribute("kernel_shape", kernel);
    pool->SetAttribute("strides", strides);
    const std::string by_itself = m.node->StringAttribute("auto_pad", "NOTSET");
    if (by_itself == "NOTSET") {
      pool->SetAttribute("pads", pads);
    } else {
      pool->SetAttribute("auto_pad", by_itself);
    }
    if (m.node->IntAttribute("ceil_mode", 0) != 0) pool->SetAttribute("ceil_mode", std::int64_t{1});
    rewriter.Touch(of);
    return pool->output();
  }
};

struct Volume {
  Node* node;
  Dims in, out;
};

// Before:  %y = GlobalMaxPool %x : [n, c, d, h, w]
// After:   %y = Reshape (GlobalMaxPool (Reshape %x, [n, c, d h, w])), [n, c, 1, 1, 1]
// Exact.
class GlobalMaxPoolOfVolumeRule final : public PatternRule<Volume> {
 public:
  std::string_view name() const override { return "global-maxpool-of-volume"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"GlobalMaxPool"}; }
  MatchOr<Volume> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    const std::optional<Dims> in = StaticShape(node.input(0)->type);
    if (!in || in->size() != kAxes + 2 || HasNone(*in)) return Refusal{};
    if (node.input(0)->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    return Volume{&node, *in, {(*in)[0], (*in)[1], 1, 1, 1}};
  }
  void Apply(const Volume& m, Rewriter& rewriter) const override {
    Graph& graph = *m.node->graph();
    const std::string base = m.node->output()->name();
    Node* image = AddReshape(m.node->input(0), {m.in[0], m.in[1], m.in[2] * m.in[3], m.in[4]}, base + "_image", m.node);
    Node* pool = graph.AddNode(
        "GlobalMaxPool", "", {image->output()},
        {{graph.UniqueName(base + "_max"), TypeOf(m.node->input(0)->type.dtype, {m.in[0], m.in[1], 1, 1})}}, m.node);
    rewriter.Touch(image);
    TakePlace(*AddReshape(pool->output(), m.out, base + "_as", m.node), *m.node, rewriter);
  }
};

// Before:  %y = AveragePool %x {count_include_pad=1, pads=[1, 1, 1, 1, 1, 1]}      (%x a volume)
// After:   %y = AveragePool (Pad %x, ... by zeros)
// OneLsb: the same sums. The HTP has -1 dB for the first.
class PadsThatCountRule final : public PatternRule<Windows> {
 public:
  std::string_view name() const override { return "pads-that-count"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"AveragePool"}; }
  MatchOr<Windows> Match(Node& node) const override {
    if (node.IntAttribute("count_include_pad", 0) == 0) return Refusal{};
    MatchOr<Windows> match = WindowsOf(node);
    if (std::holds_alternative<Refusal>(match)) return match;
    const auto& windows = std::get<Windows>(match);
    const std::string by_itself = node.StringAttribute("auto_pad", "NOTSET");
    if (by_itself == "VALID" || (by_itself == "NOTSET" && AreAll(windows.pads, 0))) return Refusal{};
    if (by_itself != "NOTSET") return Refusal{"it pads by itself"};
    if (node.IntAttribute("ceil_mode", 0) != 0) return Refusal{"its last windows may lie beyond its padding"};
    if (std::any_of(windows.pads.begin(), windows.pads.end(), [](std::int64_t p) { return p < 0; })) return Refusal{};
    if (node.input(0)->type.dtype != DType::kF32) return Refusal{"it is no pooling of f32 numbers"};
    return match;
  }
  void Apply(const Windows& m, Rewriter& rewriter) const override {
    Graph& graph = *m.node->graph();
    const std::string base = m.node->output()->name();
    Dims all(2 * m.in.size(), 0), padded = m.in;
    for (std::size_t i = 0; i < kAxes; ++i) {
      all[2 + i] = m.pads[i];
      all[m.in.size() + 2 + i] = m.pads[kAxes + i];
      padded[2 + i] += m.pads[i] + m.pads[kAxes + i];
    }
    const float zero = 0;
    Value* by = AddFloatConstant(graph, base + "_zero", DType::kF32, {}, std::span(&zero, 1));
    Node* pad = graph.AddNode("Pad", "", {m.node->input(0), AddInts(graph, base + "_around", all), by},
                              {{graph.UniqueName(base + "_padded"), TypeOf(DType::kF32, padded)}}, m.node);
    Node* pool = graph.AddNode("AveragePool", "", {pad->output()}, {{graph.UniqueName(base + "_mean"), {}}}, m.node);
    pool->SetAttribute("kernel_shape", m.kernel);
    pool->SetAttribute("strides", m.strides);
    rewriter.Touch(pad);
    TakePlace(*pool, *m.node, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> MaxPoolOfVolume() { return std::make_unique<MaxPoolOfVolumeRule>(); }
std::unique_ptr<Rule> GlobalMaxOfVolume() { return std::make_unique<GlobalMaxPoolOfVolumeRule>(); }
std::unique_ptr<Rule> PadsThatCount() { return std::make_unique<PadsThatCountRule>(); }

}  // namespace octavo
