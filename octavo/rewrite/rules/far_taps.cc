#include <algorithm>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

// The HTP's compiler runs out of memory for a convolution whose taps lie 4096 apart; 2048 it takes.
constexpr std::int64_t kFar = 2048;
constexpr std::int64_t kMostTaps = 8;

struct FarTaps {
  Node* node;
  std::int64_t distance, taps, in, out, batch, length;  // length: of the output
};

bool AllOnes(const std::vector<std::int64_t>* values) {
  return values == nullptr || std::all_of(values->begin(), values->end(), [](std::int64_t v) { return v == 1; });
}

// Before:  %y[n, m, t] = Conv %x, %w {dilations = [d]}, %w: [M, C, K]
// After:   %s_k = Slice %x, k * d, k * d + T;  %y = Conv (Concat %s_0 ... over channels), %w: [M, K * C, 1]
// The same products and sums.
class FarTapsRule final : public PatternRule<FarTaps> {
 public:
  std::string_view name() const override { return "far-taps"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Conv"}; }

  MatchOr<FarTaps> Match(Node& node) const override {
    const std::vector<std::int64_t>* dilations = node.IntsAttribute("dilations");
    if (!node.domain().empty() || node.output() == nullptr || dilations == nullptr || dilations->size() != 1 ||
        (*dilations)[0] <= kFar) {
      return Refusal{};
    }
    const Value *x = node.input(0), *w = node.input(1);
    if (x == nullptr || x->type.quant || !IsFloatConstant(w) || w->data->dtype != DType::kF32) {
      return Refusal{"its weight is no f32 constant"};
    }
    const std::optional<Dims> dims = StaticShape(x->type);
    const Dims& weight = w->data->dims;
    if (!dims || dims->size() != 3 || weight.size() != 3) return Refusal{"its shapes are not known"};
    const std::vector<std::int64_t>* pads = node.IntsAttribute("pads");
    const bool padded = pads != nullptr && std::any_of(pads->begin(), pads->end(), [](auto p) { return p != 0; });
    const std::string pad = node.StringAttribute("auto_pad", "NOTSET");
    if (node.IntAttribute("group", 1) != 1 || !AllOnes(node.IntsAttribute("strides")) || padded ||
        (pad != "NOTSET" && pad != "VALID")) {
      return Refusal{"it has groups, strides or padding"};
    }
    const std::int64_t distance = (*dilations)[0], taps = weight[2];
    if (taps < 1 || taps > kMostTaps || weight[1] != (*dims)[1] || distance > (*dims)[2]) {
      return Refusal{"it has too many taps"};
    }
    const std::int64_t length = (*dims)[2] - distance * (taps - 1);
    if (length < 1) return Refusal{"it gives nothing"};
    return FarTaps{&node, distance, taps, weight[1], weight[0], (*dims)[0], length};
  }

  void Apply(const FarTaps& m, Rewriter& rewriter) const override {
    Graph& graph = *m.node->graph();
    Value *x = m.node->input(0), *w = m.node->input(1);
    const std::string base = m.node->output()->name();
    const auto type = [&](std::int64_t channels) {
      Type t;
      t.dtype = DType::kF32;
      t.shape.emplace(std::vector<Dim>{{m.batch, {}}, {channels, {}}, {m.length, {}}});
      return t;
    };
    const auto index = [&](const char* name, std::int64_t value) {
      return graph.AddConstant(base + name, TensorRef::FromInts(DType::kS64, {1}, std::vector<std::int64_t>{value}));
    };
    Value* axis = index("_axis", 2);
    std::vector<Value*> slices;
    for (std::int64_t k = 0; k < m.taps; ++k) {
      Value *start = index("_start", k * m.distance), *end = index("_end", k * m.distance + m.length);
      Node* slice = graph.AddNode("Slice", "", {x, start, end, axis}, {{base + "_tap", type(m.in)}}, m.node);
      slices.push_back(slice->output());
      rewriter.Touch(slice);
    }
    Node* concat = graph.AddNode("Concat", "", slices, {{base + "_taps", type(m.in * m.taps)}}, m.node);
    concat->SetAttribute("axis", std::int64_t{1});
    const std::vector<float> old = w->data->ToFloats();
    std::vector<float> weights(old.size());
    for (std::int64_t o = 0; o < m.out; ++o) {
      for (std::int64_t c = 0; c < m.in; ++c) {
        for (std::int64_t k = 0; k < m.taps; ++k) {
          weights[static_cast<std::size_t>((o * m.taps + k) * m.in + c)] =
              old[static_cast<std::size_t>((o * m.in + c) * m.taps + k)];
        }
      }
    }
    Value* beside = graph.AddConstant(w->name() + "_taps", TensorRef::FromFloats({m.out, m.taps * m.in, 1}, weights));
    std::vector<Value*> inputs = {concat->output(), beside};
    if (m.node->input(2) != nullptr) inputs.push_back(m.node->input(2));
    Node* conv = graph.AddNode("Conv", "", std::move(inputs), {{base + "_conv", {}}}, m.node);
    TakePlace(*conv, *m.node, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> FarTapsToSlices() { return std::make_unique<FarTapsRule>(); }

}  // namespace octavo
