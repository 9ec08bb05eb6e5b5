#include <algorithm>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

constexpr std::int64_t kMostSummands = 64;
constexpr std::int64_t kMostSize = 1 << 20;  // of an image, a block, a stride or a padding

// Along one axis of the image.
struct Axis {
  std::int64_t size = 0, taps = 0, stride = 1, before = 0, places = 0;  // before: padding; places: of the block
  std::int64_t tiles() const { return (taps + stride - 1) / stride; }   // of `stride` taps, in a block
  // Tiles beside one another that hold all that the blocks cover, and all that is taken of it.
  std::int64_t all() const { return std::max(places + tiles() - 1, (before + size + stride - 1) / stride); }
};

struct Blocks {
  Node* node;
  std::int64_t batch, channels;
  Axis h, w;
};

// Before:  %y : [n, c, H, W] = Col2Im %x : [n, c kh kw, oh ow], [H, W], [kh, kw] {strides=[s, t]}
// After:   the blocks cut into tiles of s by t taps, the last ones filled with zeros: tile (i, j) of all blocks is
//          %p_ij = Pad (Slice %x) : [n c s t, oh, ow], moved down by i and right by j
//          %y = Slice (Reshape (Transpose (ReduceSum (Concat %p_ij ...)))), the padding
// Improves: the same sums in another order, rounded once in codes. Where no block covers another there is no sum.
class Col2ImToTilesRule final : public PatternRule<Blocks> {
 public:
  std::string_view name() const override { return "col2im-to-tiles"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Col2Im"}; }

  MatchOr<Blocks> Match(Node& node) const override {
    const Value* x = node.input(0);
    if (!node.domain().empty() || x == nullptr || node.output() == nullptr) return Refusal{};
    if (x->type.dtype != DType::kF32) return Refusal{"its numbers are not f32"};
    if (x->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    if (!IsPlainConstant(node.input(1)) || !IsPlainConstant(node.input(2))) return Refusal{"its shapes are computed"};
    const std::vector<std::int64_t> image = node.input(1)->data->ToInts(), block = node.input(2)->data->ToInts();
    const std::optional<Dims> in = StaticShape(x->type);
    if (!in || in->size() != 3) return Refusal{"the shape of its input is not known"};
    if (image.size() != 2 || block.size() != 2) return Refusal{"it makes no image of two dimensions"};
    const std::vector<std::int64_t>* dilations = node.IntsAttribute("dilations");
    if (dilations != nullptr && std::any_of(dilations->begin(), dilations->end(), [](auto d) { return d != 1; })) {
      return Refusal{"its blocks have gaps"};
    }
    const auto list = [&](const char* name, std::size_t n, std::int64_t otherwise) {
      const std::vector<std::int64_t>* given = node.IntsAttribute(name);
      return given == nullptr || given->empty() ? std::vector<std::int64_t>(n, otherwise) : *given;
    };
    const std::vector<std::int64_t> strides = list("strides", 2, 1), pads = list("pads", 4, 0);
    if (strides.size() != 2 || pads.size() != 4) return Refusal{};
    for (const std::vector<std::int64_t>& sizes : {image, block, strides, pads}) {
      if (std::any_of(sizes.begin(), sizes.end(), [](auto n) { return n < 0 || n > kMostSize; })) return Refusal{};
    }
    const std::int64_t taps = block[0] * block[1];
    if (taps < 1 || (*in)[1] % taps != 0) return Refusal{};
    Blocks match{&node, (*in)[0], (*in)[1] / taps, {}, {}};
    for (std::size_t i = 0; i < 2; ++i) {
      if (image[i] < 1 || strides[i] < 1) return Refusal{};
      const std::int64_t room = image[i] + pads[i] + pads[2 + i] - block[i];
      if (room < 0) return Refusal{};
      const Axis axis{image[i], block[i], strides[i], pads[i], room / strides[i] + 1};
      if (i == 0) {
        match.h = axis;
      } else {
        match.w = axis;
      }
    }
    if (match.batch < 1 || match.channels < 1 || match.h.places * match.w.places != (*in)[2]) return Refusal{};
    if (match.h.tiles() * match.w.tiles() > kMostSummands) return Refusal{"too many blocks cover an element"};
    return match;
  }

  void Apply(const Blocks& m, Rewriter& rewriter) const override {
    Writer write{m, *m.node->graph(), rewriter};
    const Axis &h = m.h, &w = m.w;
    const std::int64_t channels = m.batch * m.channels;
    Value* taps = write.Reshape(m.node->input(0), {channels, h.taps, w.taps, h.places, w.places});
    taps = write.Pad(taps, {0, 0, 0, 0, 0}, {channels, h.tiles() * h.stride, w.tiles() * w.stride, h.places, w.places});
    // A column at the left, where anything is filled: the HTP fills a Pad wrongly, with what lies in memory, that has
    // elements at the right of the last axis and behind another one, and none at the left.
    const std::int64_t left = h.all() > h.places || w.all() > w.places ? 1 : 0, columns = left + w.all();
    const std::int64_t planes = channels * h.stride * w.stride;
    std::vector<Value*> tiles;
    for (std::int64_t i = 0; i < h.tiles(); ++i) {
      for (std::int64_t j = 0; j < w.tiles(); ++j) {
        Value* tile = write.Slice(taps, {1, 2}, {i * h.stride, j * w.stride}, {h.stride, w.stride});
        tile = write.Reshape(tile, {1, planes, h.places, w.places});
        tiles.push_back(write.Pad(tile, {0, 0, i, left + j}, {1, planes, h.all(), columns}));
      }
    }
    Value* sum = write.Sum(tiles, {1, planes, h.all(), columns});
    if (h.stride > 1 || w.stride > 1) {
      sum = write.Reshape(sum, {channels, h.stride, w.stride, h.all(), columns});
      sum = write.Transpose(sum, {0, 3, 1, 4, 2});
    }
    sum = write.Reshape(sum, {1, channels, h.all() * h.stride, columns * w.stride});
    sum = write.Slice(sum, {2, 3}, {h.before, left * w.stride + w.before}, {h.size, w.size});
    Value* out = write.Reshape(sum, {m.batch, m.channels, h.size, w.size}, true);
    TakePlace(*out->producer(), *m.node, rewriter);
  }

 private:
  // Adds operators in front of the Col2Im; what would change nothing is left out.
  struct Writer {
    const Blocks& m;
    Graph& graph;
    Rewriter& rewriter;

    static Dims Of(const Value* x) { return *StaticShape(x->type); }
    Value* Add(const char* op, const std::vector<Value*>& inputs, const Dims& to) {
      Node* node = graph.AddNode(
          op, "", inputs, {{graph.UniqueName(m.node->output()->name() + "_part"), TypeOf(DType::kF32, to)}}, m.node);
      rewriter.Touch(node);
      return node->output();
    }
    Value* Ints(const Dims& values) { return AddInts(graph, m.node->output()->name() + "_at", values); }
    Value* Reshape(Value* x, const Dims& to, bool always = false) {
      if (!always && Of(x) == to) return x;
      return AddReshape(x, to, m.node->output()->name() + "_as", m.node)->output();
    }
    Value* Pad(Value* x, const Dims& at, const Dims& to) {
      const Dims from = Of(x);
      if (from == to) return x;
      Dims pads = at;
      for (std::size_t i = 0; i < to.size(); ++i) pads.push_back(to[i] - from[i] - at[i]);
      const float zero = 0;
      return Add("Pad",
                 {x, Ints(pads),
                  AddFloatConstant(graph, m.node->output()->name() + "_zero", DType::kF32, {}, std::span(&zero, 1))},
                 to);
    }
    Value* Slice(Value* x, const Dims& axes, const Dims& starts, const Dims& sizes) {
      Dims to = Of(x), ends;
      for (std::size_t i = 0; i < axes.size(); ++i) {
        to[static_cast<std::size_t>(axes[i])] = sizes[i];
        ends.push_back(starts[i] + sizes[i]);
      }
      if (to == Of(x)) return x;
      return Add("Slice", {x, Ints(starts), Ints(ends), Ints(axes)}, to);
    }
    Value* Transpose(Value* x, const Dims& perm) {
      Dims to;
      for (const std::int64_t i : perm) to.push_back(Of(x)[static_cast<std::size_t>(i)]);
      Value* moved = Add("Transpose", {x}, to);
      moved->producer()->SetAttribute("perm", perm);
      return moved;
    }
    Value* Sum(const std::vector<Value*>& images, const Dims& to) {
      if (images.size() == 1) return images[0];
      Dims stack = to;
      stack[0] = static_cast<std::int64_t>(images.size());
      Value* all = Add("Concat", images, stack);
      all->producer()->SetAttribute("axis", std::int64_t{0});
      Value* sum = Add("ReduceSum", {all, Ints({0})}, to);
      sum->producer()->SetAttribute("keepdims", std::int64_t{1});
      return sum;
    }
  };
};

}  // namespace

std::unique_ptr<Rule> Col2ImToTiles() { return std::make_unique<Col2ImToTilesRule>(); }

}  // namespace octavo
