// Biases of integer layers, and constants behind layers that are as good as biases and scales.
#include <algorithm>
#include <cmath>
#include <limits>

#include "octavo/numerics/affine.h"
#include "octavo/rewrite/rules/linear.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

struct LayerScales {
  ScalarParams x;
  std::vector<float> product;  // s_x * s_w in f32, one or one a channel
  std::int64_t channels = 0;
  std::int64_t axis = 0;  // of the output channels in the weight
};

// Scales of a Conv or Gemm whose input and constant weight are quantized to 8 bits; nullopt else.
std::optional<LayerScales> ScalesOf(const Node& node) {
  if (!node.domain().empty() || node.form == QuantForm::kQLinear) return std::nullopt;
  LayerScales s;
  const std::optional<ScalarParams> x = Scalar8(node.input(0));
  const Value* weight = node.input(1);
  const Affine* w = AffineOf(weight);
  if (!x || w == nullptr || BitWidth(w->storage) != 8 || w->block != 0 || !weight->data) return std::nullopt;
  const std::optional<std::int64_t> axis = ResolveAxis(FindOp(node).channel_axis, node, weight->data->dims.size());
  if (!axis || (w->axis && *w->axis != *axis)) return std::nullopt;
  s.x = *x;
  s.axis = *axis;
  s.channels = weight->data->dims[static_cast<std::size_t>(*axis)];
  for (const float scale : Scales(*w)) s.product.push_back(x->scale * scale);
  return s;
}

double At(const std::vector<float>& scales, std::size_t c) { return scales[scales.size() == 1 ? 0 : c]; }

// A constant of s32 codes at the product scales; its own, so a bias that several layers share is cloned.
void SetBias(Node& node, const LayerScales& s, const std::vector<std::int64_t>& codes, Rewriter& rewriter) {
  Graph& graph = *node.graph();
  Type type;
  type.dtype = DType::kF32;
  type.shape.emplace();
  type.shape->push_back({s.channels, {}});
  type.quant.emplace();
  Affine& affine = type.quant->affine;
  affine.storage = DType::kS32;
  if (s.product.size() > 1) {
    affine.axis = 0;
    affine.scale = TensorRef::FromFloats({s.channels}, s.product);
  } else {
    affine.scale = TensorRef::Scalar(s.product[0]);
  }
  Value* old = node.input(2);
  Value* fresh = graph.AddConstant(old == nullptr ? node.output()->name() + "_bias" : old->name(),
                                   TensorRef::FromInts(DType::kS32, {s.channels}, codes), std::move(type));
  node.SetInput(2, fresh);
  if (old != nullptr && old->is_constant() && old->dead() && old->graph() == &graph) {
    const std::string name = old->name();
    graph.Erase(old);
    graph.Rename(fresh, name);
  }
  rewriter.Touch(&node);
}

// The bias as real numbers; nullopt when it is computed or has another shape. An absent bias is zeros.
std::optional<std::vector<double>> BiasOf(const Node& node, const LayerScales& s) {
  const auto channels = static_cast<std::size_t>(s.channels);
  const Value* bias = node.input(2);
  if (bias == nullptr) return std::vector<double>(channels, 0.0);
  if (!bias->is_constant() || !bias->data) return std::nullopt;
  const Dims& dims = bias->data->dims;
  if (dims.empty() || dims.back() != s.channels || bias->data->elements() != channels) return std::nullopt;
  std::vector<double> out(channels);
  if (bias->type.quant) {
    const Affine* affine = AffineOf(bias);
    if (affine == nullptr || affine->block != 0) return std::nullopt;
    const std::vector<std::int64_t> codes = bias->data->ToInts(), zeros = Zeros(*affine);
    const std::vector<float> scales = Scales(*affine);
    for (std::size_t c = 0; c < channels; ++c) {
      const std::size_t p = scales.size() == 1 ? 0 : c;
      if (p >= scales.size()) return std::nullopt;
      out[c] = static_cast<double>(codes[c] - zeros[p]) * scales[p];
    }
    return out;
  }
  if (bias->data->dtype != DType::kF32) return std::nullopt;
  const std::vector<float> values = bias->data->ToFloats();
  for (std::size_t c = 0; c < channels; ++c) {
    if (!std::isfinite(values[c])) return std::nullopt;
    out[c] = values[c];
  }
  return out;
}

// Codes of a bias at the product scales; the first channel that does not fit int32, if one does not.
std::optional<std::size_t> BiasCodes(const std::vector<double>& bias, const LayerScales& s,
                                     std::vector<std::int64_t>& codes) {
  codes.resize(bias.size());
  for (std::size_t c = 0; c < bias.size(); ++c) {
    const double code = std::nearbyint(bias[c] / At(s.product, c));
    if (!(std::fabs(code) <= 2147483647.0)) return c;
    codes[c] = static_cast<std::int64_t>(code);
  }
  return std::nullopt;
}

bool BiasIsInteger(const Node& node, const LayerScales& s) {
  const Value* bias = node.input(2);
  const Affine* affine = AffineOf(bias);
  if (affine == nullptr || affine->storage != DType::kS32) return false;
  const std::vector<std::int64_t> zeros = Zeros(*affine);
  if (std::any_of(zeros.begin(), zeros.end(), [](std::int64_t z) { return z != 0; })) return false;
  const std::vector<float> have = Scales(*affine);
  for (std::size_t c = 0; c < static_cast<std::size_t>(s.channels); ++c) {
    // Compared relatively: scales of different channels differ by orders of magnitude.
    const double want = At(s.product, c), got = At(have, std::min(c, have.size() - 1));
    if (std::fabs(got - want) > 1e-6 * want) return false;
  }
  return true;
}

struct BiasMatch {
  Node* node = nullptr;
  LayerScales scales;
  std::vector<std::int64_t> codes;
};

class IntegerBiasRule final : public PatternRule<BiasMatch> {
 public:
  std::string_view name() const override { return "integer-bias"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"Conv", "Gemm"}; }
  RuleDoc doc() const override {
    return {
        "A float bias, or an integer one of another scale or zero point, becomes s32 at the scale of the products; "
        "a bias that layers share is cloned.",
        "%y : u8 = Conv (%x : u8(s_x)), (%w : u8(s_w)), (%b : f32)",
        "%y : u8 = Conv (%x : u8(s_x)), (%w : u8(s_w)), (%b : s32(s_x * s_w))",
        "|error| <= s_x * s_w / 2 <= s_y / 2, checked for every channel by the match: at most one step "
        "(Bias.ErrorIsBelowHalfAStep)",
        {"integer-bias/fits-int32", "integer-bias/below-half-a-step"}};
  }
  MatchOr<BiasMatch> Match(Node& node) const override {
    const std::optional<LayerScales> s = ScalesOf(node);
    if (!s || node.input(2) == nullptr || BiasIsInteger(node, *s)) return Refusal{};
    const std::optional<ScalarParams> y = Scalar8(node.output());
    if (!y) return Refusal{"its output is float, and would show that the bias is rounded"};
    if (node.Is("Gemm") && node.FloatAttribute("beta", 1.0f) != 1.0f) return Refusal{"beta is not 1"};
    const std::optional<std::vector<double>> bias = BiasOf(node, *s);
    if (!bias) return Refusal{"its bias is computed, or is not one finite number a channel"};
    BiasMatch match{&node, *s, {}};
    const std::optional<std::size_t> bad = BiasCodes(*bias, *s, match.codes);
    if (!Holds("integer-bias/fits-int32", !bad)) {
      return Refusal{"its bias " + Text((*bias)[*bad]) + " in channel " + std::to_string(*bad) + " is " +
                     Text((*bias)[*bad] / At(s->product, *bad)) +
                     " steps of its products, beyond int32; --class lossy raises that channel's scale"};
    }
    const double coarsest = *std::max_element(s->product.begin(), s->product.end());
    if (!Holds("integer-bias/below-half-a-step", coarsest <= y->scale)) {
      return Refusal{"the step of its products, " + Text(coarsest) + ", is larger than that of its output, " +
                     Text(y->scale)};
    }
    return match;
  }
  void Apply(const BiasMatch& match, Rewriter& rewriter) const override {
    SetBias(*match.node, match.scales, match.codes, rewriter);
  }
};

class AddIntoBiasRule final : public PatternRule<BiasMatch> {
 public:
  std::string_view name() const override { return "add-into-bias"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Add"}; }
  RuleDoc doc() const override {
    return {"A constant of one number a channel behind an integer layer becomes its bias.",
            "%c : f32 = Conv (%x : u8), (%w : u8);  %y : u8 = Add %c, %k",
            "%y : u8 = Conv (%x : u8), (%w : u8), (%k : s32)",
            "|error| <= s_x * s_w / 2 instead of the rounding of a float sum (Bias.ErrorIsBelowHalfAStep)",
            {"add-into-bias/one-use", "add-into-bias/fits-int32", "add-into-bias/below-half-a-step"}};
  }
  MatchOr<BiasMatch> Match(Node& node) const override {
    if (!node.domain().empty() || node.inputs().size() != 2 || !Scalar8(node.output())) return Refusal{};
    std::size_t which = 2;
    for (std::size_t i = 0; i < 2; ++i) {
      if (IsFloatConstant(node.input(i))) which = i;
    }
    if (which == 2) return Refusal{};
    Value* y = node.input(1 - which);
    if (y == nullptr || IsQuantized(y) || y->producer() == nullptr) return Refusal{};
    Node& layer = *y->producer();
    if (!layer.Is("Conv") && !layer.Is("Gemm")) return Refusal{};
    const std::optional<LayerScales> s = ScalesOf(layer);
    if (!s) return Refusal{};
    if (!Holds("add-into-bias/one-use", SoleUser(y) == &node)) {
      return Refusal{"the output of " + Describe(layer) + " has other uses"};
    }
    if (layer.Is("Gemm") && layer.FloatAttribute("beta", 1.0f) != 1.0f) return Refusal{"beta is not 1"};
    LinearLayer shape;
    shape.node = &layer;
    shape.channels = s->channels;
    shape.rank = layer.Is("Gemm") ? 2 : static_cast<std::int64_t>(layer.input(1)->data->dims.size());
    shape.channels_last = layer.Is("Gemm");
    MatchOr<std::vector<double>> add = PerChannel(shape, *node.input(which)->data);
    if (auto* refusal = std::get_if<Refusal>(&add)) return *refusal;
    std::optional<std::vector<double>> bias = BiasOf(layer, *s);
    if (!bias) return Refusal{"the bias of " + Describe(layer) + " is computed, or is not one number a channel"};
    for (std::size_t c = 0; c < bias->size(); ++c) (*bias)[c] += std::get<std::vector<double>>(add)[c];
    BiasMatch match{&node, *s, {}};
    const std::optional<std::size_t> bad = BiasCodes(*bias, *s, match.codes);
    if (!Holds("add-into-bias/fits-int32", !bad)) {
      return Refusal{"the sum " + Text((*bias)[*bad]) + " in channel " + std::to_string(*bad) + " is beyond int32 at " +
                     Text(At(s->product, *bad))};
    }
    const double coarsest = *std::max_element(s->product.begin(), s->product.end());
    const double step = Scalar8(node.output())->scale;
    if (!Holds("add-into-bias/below-half-a-step", coarsest <= step)) {
      return Refusal{"the step of its products, " + Text(coarsest) + ", is larger than that of its output, " +
                     Text(step)};
    }
    if (!Rewriter::CanBypass(node, *y)) return Refusal{"it gives a graph output its name"};
    return match;
  }
  void Apply(const BiasMatch& match, Rewriter& rewriter) const override {
    Value* y = match.node->input(IsFloatConstant(match.node->input(0)) ? 1 : 0);
    SetBias(*y->producer(), match.scales, match.codes, rewriter);
    y->type.dtype = DType::kF32;
    y->type.quant = match.node->output()->type.quant;
    rewriter.Bypass(*match.node, y);
  }
};

// Codes of a weight at new scales, one a channel; the zero points stay.
void Rescale(Node& node, std::int64_t axis, const std::vector<float>& to, bool new_codes) {
  Value* old = node.input(1);
  Affine affine = old->type.quant->affine;
  const TensorRef data = *old->data;
  const std::vector<float> from = Scales(affine);
  const std::vector<std::int64_t> zeros = Zeros(affine);
  const std::size_t channels = to.size();
  std::size_t inner = 1;
  for (std::size_t i = static_cast<std::size_t>(axis) + 1; i < data.dims.size(); ++i) {
    inner *= static_cast<std::size_t>(data.dims[i]);
  }
  Type type = old->type;
  TensorRef codes = data;
  if (new_codes) {
    std::vector<std::int64_t> all = data.ToInts();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::size_t c = i / inner % channels, p = from.size() == 1 ? 0 : c;
      if (to[c] == from[p]) continue;
      const auto zero = static_cast<std::int32_t>(zeros[p]);
      all[i] =
          QuantizeOne(DequantizeOne(static_cast<std::int32_t>(all[i]), from[p], zero), to[c], zero, affine.storage);
    }
    codes = TensorRef::FromInts(affine.storage, data.dims, all);
  }
  affine.axis = axis;
  affine.scale = TensorRef::FromFloats({static_cast<std::int64_t>(channels)}, to);
  if (affine.zero_point) {
    std::vector<std::int64_t> wide(channels);
    for (std::size_t c = 0; c < channels; ++c) wide[c] = zeros[zeros.size() == 1 ? 0 : c];
    affine.zero_point = TensorRef::FromInts(affine.storage, {static_cast<std::int64_t>(channels)}, wide);
  }
  type.quant->affine = affine;
  Graph& graph = *node.graph();
  Value* fresh = graph.AddConstant(old->name(), std::move(codes), std::move(type));
  node.SetInput(1, fresh);
  if (old->dead() && old->graph() == &graph) {
    const std::string name = old->name();
    graph.Erase(old);
    graph.Rename(fresh, name);
  }
}

class RaiseWeightScaleRule final : public PatternRule<BiasMatch> {
 public:
  std::string_view name() const override { return "raise-weight-scale"; }
  RuleClass rule_class() const override { return RuleClass::kLossy; }
  std::vector<std::string_view> roots() const override { return {"Conv", "Gemm"}; }
  RuleDoc doc() const override {
    return {"A channel whose bias overflows int32 gets a larger weight scale, and its weights are quantized again.",
            "%y : u8 = Conv (%x : u8), (%w : u8(s_w)), (%b : f32)   // |b| / (s_x * s_w) > 2^31",
            "%y : u8 = Conv (%x : u8), (%w : u8(1.0001 * 2 * |b| / (2^32 - 2) / s_x)), %b",
            "lossy by definition: weights of that channel lose digits that its bias drowns (Bias.RaisedScaleFits)",
            {"raise-weight-scale/overflows"}};
  }
  MatchOr<BiasMatch> Match(Node& node) const override {
    const std::optional<LayerScales> s = ScalesOf(node);
    if (!s || node.input(2) == nullptr || !Scalar8(node.output())) return Refusal{};
    const std::optional<std::vector<double>> bias = BiasOf(node, *s);
    BiasMatch match{&node, *s, {}};
    if (!bias) return Refusal{"its bias is computed, or is not one finite number a channel"};
    if (!Holds("raise-weight-scale/overflows", BiasCodes(*bias, *s, match.codes).has_value())) {
      return Refusal{"its bias fits int32 at the scales that its weight has"};
    }
    return match;
  }
  void Apply(const BiasMatch& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    const std::vector<double> bias = *BiasOf(node, match.scales);
    const std::vector<float> old = Scales(*AffineOf(node.input(1)));
    std::vector<float> scales(static_cast<std::size_t>(match.scales.channels));
    for (std::size_t c = 0; c < scales.size(); ++c) {
      const double floor = 1.0001 * 2 * std::fabs(bias[c]) / (4294967296.0 - 2) / match.scales.x.scale;
      scales[c] = std::max(old[old.size() == 1 ? 0 : c], static_cast<float>(floor));
    }
    Rescale(node, match.scales.axis, scales, true);
    rewriter.Touch(&node);
  }
};

struct ScaleMatch {
  Node* node = nullptr;
  Value* y = nullptr;
  std::vector<double> factor;
};

class ScaleIntoWeightRule final : public PatternRule<ScaleMatch> {
 public:
  std::string_view name() const override { return "scale-into-weight"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Mul", "Div"}; }
  RuleDoc doc() const override {
    return {
        "A positive constant behind a quantized layer multiplies the scales of its weight and bias; no code changes.",
        "%c : f32 = Conv (%x : u8), (%w : u8(s_w)), (%b : s32(s_b));  %y = Mul %c, k",
        "%y = Conv (%x : u8), (%w : u8(k * s_w)), (%b : s32(k * s_b))",
        "an operation and its rounding less; k * ((q - z) * s) == (q - z) * (k * s) over the reals (Z3)",
        {"scale-into-weight/one-use"}};
  }
  MatchOr<ScaleMatch> Match(Node& node) const override {
    if (!node.domain().empty() || node.inputs().size() != 2 || node.output() == nullptr) return Refusal{};
    std::size_t which = 2;
    for (std::size_t i = 0; i < 2; ++i) {
      if (IsFloatConstant(node.input(i))) which = i;
    }
    if (which == 2 || (node.Is("Div") && which == 0)) return Refusal{};
    Value* y = node.input(1 - which);
    if (y == nullptr || IsQuantized(y) || y->producer() == nullptr) return Refusal{};
    Node& layer = *y->producer();
    if (!layer.Is("Conv") && !layer.Is("Gemm")) return Refusal{};
    const std::optional<LayerScales> s = ScalesOf(layer);
    if (!s) return Refusal{};
    const Value* bias = layer.input(2);
    if (bias != nullptr && !(AffineOf(bias) != nullptr && bias->data) && !IsFloatConstant(bias)) {
      return Refusal{"the bias of " + Describe(layer) + " is computed"};
    }
    if (bias != nullptr && bias->data->elements() != static_cast<std::uint64_t>(s->channels)) {
      return Refusal{"the bias of " + Describe(layer) + " is not one number a channel"};
    }
    if (!Holds("scale-into-weight/one-use", SoleUser(y) == &node)) {
      return Refusal{"the output of " + Describe(layer) + " has other uses"};
    }
    LinearLayer shape;
    shape.node = &layer;
    shape.channels = s->channels;
    shape.rank = layer.Is("Gemm") ? 2 : static_cast<std::int64_t>(layer.input(1)->data->dims.size());
    shape.channels_last = layer.Is("Gemm");
    MatchOr<std::vector<double>> k = PerChannel(shape, *node.input(which)->data);
    if (auto* refusal = std::get_if<Refusal>(&k)) return *refusal;
    ScaleMatch match{&node, y, std::get<std::vector<double>>(k)};
    const std::vector<float> old = Scales(*AffineOf(layer.input(1)));
    for (std::size_t c = 0; c < match.factor.size(); ++c) {
      double& f = match.factor[c];
      if (node.Is("Div")) f = 1 / f;
      const double scaled = f * At(old, c) * s->x.scale;
      const bool fine = std::isfinite(scaled) && scaled >= std::numeric_limits<float>::min() && scaled < 1e30;
      if (!fine) {
        return Refusal{"the factor " + Text(f) + " in channel " + std::to_string(c) +
                       " makes no positive normal scale"};
      }
    }
    if (!Rewriter::CanBypass(node, *y)) return Refusal{"it gives a graph output its name"};
    return match;
  }
  void Apply(const ScaleMatch& match, Rewriter& rewriter) const override {
    Node& layer = *match.y->producer();
    const LayerScales s = *ScalesOf(layer);
    const std::vector<float> old = Scales(*AffineOf(layer.input(1)));
    std::vector<float> scales(match.factor.size());
    for (std::size_t c = 0; c < scales.size(); ++c) scales[c] = static_cast<float>(match.factor[c] * At(old, c));
    Rescale(layer, s.axis, scales, false);
    if (const Value* bias = layer.input(2)) {
      Graph& graph = *layer.graph();
      Value* fresh = nullptr;
      if (const Affine* affine = AffineOf(bias)) {
        Type type = bias->type;
        const std::vector<float> have = Scales(*affine);
        std::vector<float> scaled(scales.size());
        for (std::size_t c = 0; c < scales.size(); ++c) {
          // The product of the new scales, where the bias had the product of the old ones.
          const bool product =
              static_cast<double>(At(have, c)) == static_cast<double>(s.x.scale * static_cast<float>(At(old, c)));
          scaled[c] = product ? s.x.scale * scales[c] : static_cast<float>(match.factor[c] * At(have, c));
        }
        Affine& a = type.quant->affine;
        if (a.zero_point) {
          std::vector<std::int64_t> zeros = Zeros(*affine), wide(scales.size());
          for (std::size_t c = 0; c < wide.size(); ++c) wide[c] = zeros[zeros.size() == 1 ? 0 : c];
          a.zero_point = TensorRef::FromInts(a.storage, {s.channels}, wide);
        }
        a.axis = static_cast<std::int64_t>(bias->data->dims.size()) - 1;
        a.scale = TensorRef::FromFloats({s.channels}, scaled);
        fresh = graph.AddConstant(bias->name(), *bias->data, std::move(type));
      } else {
        std::vector<float> values = bias->data->ToFloats();
        for (std::size_t c = 0; c < values.size(); ++c) values[c] = static_cast<float>(values[c] * match.factor[c]);
        fresh = graph.AddConstant(bias->name(), TensorRef::FromFloats(bias->data->dims, values));
      }
      layer.SetInput(2, fresh);
    }
    if (IsQuantized(match.node->output())) {  // the layer writes the codes
      match.y->type.dtype = DType::kF32;
      match.y->type.quant = match.node->output()->type.quant;
    }
    rewriter.Touch(&layer);
    rewriter.Bypass(*match.node, match.y);
  }
};

}  // namespace

std::unique_ptr<Rule> IntegerBias() { return std::make_unique<IntegerBiasRule>(); }
std::unique_ptr<Rule> AddIntoBias() { return std::make_unique<AddIntoBiasRule>(); }
std::unique_ptr<Rule> RaiseWeightScale() { return std::make_unique<RaiseWeightScaleRule>(); }
std::unique_ptr<Rule> ScaleIntoWeight() { return std::make_unique<ScaleIntoWeightRule>(); }

}  // namespace octavo
