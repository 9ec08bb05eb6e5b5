// Conv, MatMul and Gemm: which of them the device computes in integers.
#include <algorithm>

#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

// The checks that the kernels of the three have in common; empty when all hold. `rule` prefixes the conditions.
std::string CheckLayer(std::string_view rule, const Node& node, const DeviceDescriptor& device,
                       std::optional<std::int64_t> channel_axis, DType out) {
  const std::optional<ScalarParams> x = Scalar8(node.input(0));
  if (!x) return "its input is not quantized to 8 bits per tensor";
  MatchOr<KernelWeight> weight = MatchWeight(rule, node.input(1), channel_axis);
  if (auto* refusal = std::get_if<Refusal>(&weight)) return refusal->reason;
  const KernelWeight& w = std::get<KernelWeight>(weight);
  MatchOr<bool> storages = MatchStorages(rule, device, x->storage, w.affine->storage, out);
  if (auto* refusal = std::get_if<Refusal>(&storages)) return refusal->reason;
  const Value* bias = node.Is("MatMul") ? nullptr : node.input(2);
  MatchOr<std::int64_t> most = MatchBias(rule, bias, *x, w);
  if (auto* refusal = std::get_if<Refusal>(&most)) return refusal->reason;
  const std::optional<std::int64_t> length = SumLength(node);
  if (length == 0) return "it sums nothing, and integer kernels leave their output as it was";
  const std::optional<ScalarParams> y = out == DType::kUndefined ? std::nullopt : Scalar8(node.output());
  const bool fits =
      (length && SumFits(*length, *x, w.affine->storage, w.zero, std::get<std::int64_t>(most))) ||
      (channel_axis && ConstantSumsFit(*node.input(1), *channel_axis, w.zero, *x, bias, w.scales, y ? y->scale : 0));
  if (!Holds(std::string(rule) + "/sum-fits", fits)) {
    return length ? "a sum of " + std::to_string(*length) + " products and its bias may pass 2^31"
                  : std::string("the number of products in a sum is not known: it may pass 2^31");
  }
  return {};
}

class LayerRule : public PatternRule<Node*> {
 public:
  explicit LayerRule(const DeviceDescriptor& device) : device_(device) {}
  void Apply(Node* const& node, Rewriter&) const override { node->form = QuantForm::kQLinear; }

 protected:
  // Concerned: a node of the default domain with a quantized input that is not decided yet.
  static bool Concerned(const Node& node) {
    return node.domain().empty() && node.form != QuantForm::kQLinear && node.output() != nullptr &&
           (AffineOf(node.input(0)) != nullptr || AffineOf(node.input(1)) != nullptr) && !IsBlocked(node.input(1));
  }
  static bool IsBlocked(const Value* v) { return AffineOf(v) != nullptr && AffineOf(v)->block > 0; }
  const DeviceDescriptor& device_;
};

class QLinearConvRuleImpl final : public LayerRule {
 public:
  using LayerRule::LayerRule;
  std::string_view name() const override { return "qlinear-conv"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"Conv"}; }
  RuleDoc doc() const override {
    return {
        "A convolution between codes sums in int32: QLinearConv (1-D to 3-D, grouped, depthwise; per tensor or per "
        "channel).",
        "%y : u8 = Conv (%x : u8), (%w : u8(axis=0)), (%b : s32)",
        "%y_codes = QLinearConv %x_codes, s_x, z_x, %w, s_w, z_w, s_y, z_y, %b",
        "the int32 sum is exact (bound by Z3, or by the weight's own codes; one that wraps around is less than half a "
        "step off: SumFits.OfAConstantWeightIsTheWorstSumOfItsCodes); the kernel's requantization is monotone, and its "
        "255 step thresholds are compared with those of the QDQ form (Threshold.QLinearConv)",
        {"qlinear-conv/weight-axis", "qlinear-conv/saturation", "qlinear-conv/bias-scale", "qlinear-conv/sum-fits"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!Concerned(node)) return Refusal{};
    if (FindIntegerKernel(device_, "Conv", KernelKind::kQLinear) == nullptr) {
      return Refusal{"the device takes convolutions between Q and DQ"};
    }
    const std::optional<ScalarParams> y = Scalar8(node.output());
    if (!y) return Refusal{"its output is not quantized to 8 bits per tensor, and QLinearConv writes codes"};
    std::string why = CheckLayer(name(), node, device_, 0, y->storage);
    if (!why.empty()) return Refusal{std::move(why)};
    return &node;
  }
};

std::optional<std::int64_t> MatMulChannelAxis(const Node& node) {
  const Value* w = node.input(1);
  if (w != nullptr && w->type.shape && w->type.shape->size() == 2) return 1;
  return std::nullopt;
}

class QLinearMatMulRuleImpl final : public LayerRule {
 public:
  using LayerRule::LayerRule;
  std::string_view name() const override { return "qlinear-matmul"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"MatMul"}; }
  RuleDoc doc() const override {
    return {"A matrix product between codes, weights constant or computed.",
            "%y : u8 = MatMul (%a : u8), (%b : u8)",
            "%y_codes = QLinearMatMul %a_codes, s_a, z_a, %b_codes, s_b, z_b, s_y, z_y",
            "as qlinear-conv: exact int32 sum, 255 thresholds compared (Threshold.QLinearMatMul)",
            {"qlinear-matmul/weight-axis", "qlinear-matmul/saturation", "qlinear-matmul/sum-fits"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!Concerned(node) || !IsQuantized(node.output())) return Refusal{};
    if (FindIntegerKernel(device_, "MatMul", KernelKind::kQLinear) == nullptr) {
      return Refusal{"the device takes matrix products between Q and DQ"};
    }
    const std::optional<ScalarParams> y = Scalar8(node.output());
    if (!y) return Refusal{"its output is not quantized to 8 bits per tensor"};
    std::string why = CheckLayer(name(), node, device_, MatMulChannelAxis(node), y->storage);
    if (!why.empty()) return Refusal{std::move(why)};
    return &node;
  }
};

class MatMulIntegerToFloatRuleImpl final : public LayerRule {
 public:
  using LayerRule::LayerRule;
  std::string_view name() const override { return "matmul-integer-to-float"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"MatMul"}; }
  RuleDoc doc() const override {
    return {"A matrix product of codes with a float result: summed in int32, scaled once.",
            "%y : f32 = MatMul (%a : u8), (%b : u8)",
            "%y = MatMulIntegerToFloat %a_codes, %b_codes, s_a, s_b, z_a, z_b",
            "the int32 sum is exact where the float one rounds at every step; one rounding is left "
            "(Threshold.MatMulIntegerToFloat compares with f64)",
            {"matmul-integer-to-float/weight-axis", "matmul-integer-to-float/saturation",
             "matmul-integer-to-float/sum-fits"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!Concerned(node) || IsQuantized(node.output())) return Refusal{};
    if (FindIntegerKernel(device_, "MatMul", KernelKind::kQLinear, true) == nullptr) {
      return Refusal{"the device takes matrix products between Q and DQ"};
    }
    std::string why = CheckLayer(name(), node, device_, MatMulChannelAxis(node), DType::kUndefined);
    if (!why.empty()) return Refusal{std::move(why)};
    return &node;
  }
};

// What QGemm cannot say.
std::string GemmRefusal(const Node& node) {
  if (node.input(2) != nullptr && node.FloatAttribute("beta", 1.0f) != 1.0f) return "beta is not 1";
  if (node.FloatAttribute("alpha", 1.0f) != 1.0f) return "alpha is not 1: the scale of its bias is another one";
  const Value* bias = node.input(2);
  if (bias != nullptr && bias->data) {
    const Dims& dims = bias->data->dims;
    if (dims.empty() || bias->data->elements() != static_cast<std::uint64_t>(dims.back())) {
      return "its bias is not one number a column";
    }
  }
  return {};
}

class QGemmRuleImpl final : public LayerRule {
 public:
  QGemmRuleImpl(const DeviceDescriptor& device, bool float_output) : LayerRule(device), float_output_(float_output) {}
  std::string_view name() const override { return float_output_ ? "qgemm-to-float" : "qgemm"; }
  RuleClass rule_class() const override { return float_output_ ? RuleClass::kImproves : RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"Gemm"}; }
  RuleDoc doc() const override {
    if (float_output_) {
      return {"A fully connected layer of codes with a float result.",
              "%y : f32 = Gemm (%a : u8), (%b : u8), (%c : s32)",
              "%y = QGemm %a_codes, s_a, z_a, %b_codes, s_b, z_b, %c",
              "as matmul-integer-to-float (Threshold.QGemmToFloat)",
              {"qgemm-to-float/weight-axis", "qgemm-to-float/saturation", "qgemm-to-float/bias-scale",
               "qgemm-to-float/sum-fits", "qgemm-to-float/plain"}};
    }
    return {"A fully connected layer between codes.",
            "%y : u8 = Gemm (%a : u8), (%b : u8), (%c : s32)",
            "%y_codes = QGemm %a_codes, s_a, z_a, %b_codes, s_b, z_b, %c, s_y, z_y",
            "as qlinear-conv: exact int32 sum, 255 thresholds compared (Threshold.QGemm)",
            {"qgemm/weight-axis", "qgemm/saturation", "qgemm/bias-scale", "qgemm/sum-fits", "qgemm/plain"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!Concerned(node) || IsQuantized(node.output()) == float_output_) return Refusal{};
    if (FindIntegerKernel(device_, "Gemm", KernelKind::kQLinear, float_output_) == nullptr) {
      return Refusal{"the device takes Gemm between Q and DQ"};
    }
    DType out = DType::kUndefined;
    if (!float_output_) {
      const std::optional<ScalarParams> y = Scalar8(node.output());
      if (!y) return Refusal{"its output is not quantized to 8 bits per tensor"};
      out = y->storage;
    }
    std::string why = GemmRefusal(node);
    if (!Holds(std::string(name()) + "/plain", why.empty())) return Refusal{std::move(why)};
    const std::int64_t axis = node.IntAttribute("transB", 0) != 0 ? 0 : 1;
    why = CheckLayer(name(), node, device_, axis, out);
    if (!why.empty()) return Refusal{std::move(why)};
    return &node;
  }

 private:
  const bool float_output_;
};

}  // namespace

std::unique_ptr<Rule> QLinearConvRule(const DeviceDescriptor& device) {
  return std::make_unique<QLinearConvRuleImpl>(device);
}
std::unique_ptr<Rule> QLinearMatMulRule(const DeviceDescriptor& device) {
  return std::make_unique<QLinearMatMulRuleImpl>(device);
}
std::unique_ptr<Rule> MatMulIntegerToFloatRule(const DeviceDescriptor& device) {
  return std::make_unique<MatMulIntegerToFloatRuleImpl>(device);
}
std::unique_ptr<Rule> QGemmRule(const DeviceDescriptor& device) {
  return std::make_unique<QGemmRuleImpl>(device, false);
}
std::unique_ptr<Rule> QGemmFloatRule(const DeviceDescriptor& device) {
  return std::make_unique<QGemmRuleImpl>(device, true);
}

}  // namespace octavo
