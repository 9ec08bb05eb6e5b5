// Products of dynamically quantized activations.
#include <algorithm>

#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

constexpr std::string_view kMs = "com.microsoft";

// The constant of floats that `v` is, if it is one; an exporter may share it through Identity.
Value* Floats(Value* v) {
  while (v != nullptr && v->producer() != nullptr && v->producer()->Is("Identity")) v = v->producer()->input(0);
  return v != nullptr && v->is_constant() && v->data && !v->type.quant && v->data->dtype == DType::kF32 ? v : nullptr;
}

bool IsScalar(const Value* v) {
  if (v == nullptr) return false;
  if (v->data) return v->data->elements() == 1;
  if (v->producer() != nullptr && v->producer()->Is("DynamicQuantizeLinear")) return true;
  if (!v->type.shape) return false;
  return std::all_of(v->type.shape->begin(), v->type.shape->end(),
                     [](const Dim& d) { return d.known() && d.value == 1; });
}

// As many numbers as `n`: the one of `v` repeated, or its own.
std::optional<TensorRef> Spread(const TensorRef& v, std::size_t n) {
  if (v.elements() != 1 && v.elements() != n) return std::nullopt;
  if (v.dtype == DType::kF32) {
    std::vector<float> numbers = v.ToFloats();
    numbers.resize(n, numbers[0]);
    return TensorRef::FromFloats({static_cast<std::int64_t>(n)}, numbers);
  }
  std::vector<std::int64_t> numbers = v.ToInts();
  numbers.resize(n, numbers[0]);
  return TensorRef::FromInts(v.dtype, {static_cast<std::int64_t>(n)}, numbers);
}

struct Chain {
  Node *sums = nullptr, *cast = nullptr, *scaled = nullptr, *add = nullptr;  // add: null without a bias
  Value* activation_scale = nullptr;
  TensorRef weight, scale, zero;
  bool unsigned_weight = false;
  Value* bias = nullptr;
};

class DynamicMatMulRule final : public PatternRule<Chain> {
 public:
  explicit DynamicMatMulRule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "dynamic-matmul"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"MatMulInteger"}; }
  RuleDoc doc() const override {
    return {
        "A product of dynamically quantized activations is summed, scaled and biased by one operator; s8 weights "
        "become u8 where u8 times s8 saturates.",
        "%i = MatMulInteger %q, %w, %z, z_w;  %f = Cast %i;  %s = Mul %s_x, s_w;  %y = Mul %f, %s",
        "%y = MatMulIntegerToFloat %q, %w, %s_x, s_w, %z, z_w",
        "the same int32 sum, scaled by the same product of scales: the float operations are those of the chain; "
        "(q ^ 0x80) - (z + 128) == q - z for all codes (S8ToU8.EveryCodeAndZeroPoint, DynamicMatMul.SameNumbers)",
        {"dynamic-matmul/scales-of-columns", "dynamic-matmul/bias-of-columns"}};
  }

  MatchOr<Chain> Match(Node& node) const override {
    if (!node.domain().empty()) return Refusal{};
    const IntegerKernel* kernel = FindIntegerKernel(device_, "MatMul", KernelKind::kQLinear, true);
    if (kernel == nullptr) return Refusal{"the device has no product of codes with a float result"};
    Chain c;
    c.sums = &node;
    const auto follow = [](const Node& from, std::string_view op) -> Node* {
      Node* user = SoleUser(from.output());
      return user != nullptr && user->Is(op) ? user : nullptr;
    };
    c.cast = follow(node, "Cast");
    if (c.cast == nullptr || c.cast->IntAttribute("to", 0) != 1) {
      return Refusal{"its sums are used as integers"};
    }
    c.scaled = follow(*c.cast, "Mul");
    if (c.scaled == nullptr) return Refusal{"its sums are not scaled by one Mul"};
    Value* by = c.scaled->input(c.scaled->input(0) == c.cast->output() ? 1 : 0);
    const Node* product = by->producer();
    if (product == nullptr || !product->Is("Mul")) {
      return Refusal{"the scale '" + by->name() + "' is no product of the activations' and the weight's"};
    }
    const Value* weight_scale = Floats(product->input(1));
    c.activation_scale = product->input(0);
    if (weight_scale == nullptr || weight_scale->is_constant() == c.activation_scale->is_constant()) {
      weight_scale = Floats(product->input(0));
      c.activation_scale = product->input(1);
    }
    if (weight_scale == nullptr || !IsScalar(c.activation_scale)) {
      return Refusal{"of the factors of '" + by->name() + "' none is constant, or the other is no scalar"};
    }
    const Value *w = node.input(1), *zero = node.input(3);
    if (w == nullptr || !w->is_constant() || !w->data || w->data->dims.size() != 2) {
      return Refusal{"its right operand is no constant matrix"};
    }
    if (node.input(2) != nullptr && !IsScalar(node.input(2))) {
      return Refusal{"its activations have a zero point a row"};
    }
    const auto n = static_cast<std::size_t>(w->data->dims[1]);
    if (zero != nullptr && (!zero->is_constant() || !zero->data || zero->data->elements() == 0)) {
      return Refusal{"the zero point of its weight is computed"};
    }
    c.weight = *w->data;
    c.scale = *weight_scale->data;
    const std::int64_t none = 0;
    c.zero = zero != nullptr ? *zero->data : TensorRef::FromInts(w->data->dtype, {}, {&none, 1});
    const bool columns = c.scale.elements() > 1 || c.zero.elements() > 1;
    if (c.scale.elements() == 0 || n == 0) return Refusal{"its weight is empty"};
    const std::optional<TensorRef> scales = Spread(c.scale, columns ? n : 1), zeros = Spread(c.zero, columns ? n : 1);
    if (!scales || !zeros) {
      return Refusal{"its weight has " + std::to_string(c.scale.elements()) + " scales and " +
                     std::to_string(c.zero.elements()) + " zero points for " + std::to_string(n) + " columns"};
    }
    const Dims& scale_dims = weight_scale->data->dims;
    if (!Holds("dynamic-matmul/scales-of-columns",
               c.scale.elements() == 1 || scale_dims.back() == static_cast<std::int64_t>(n))) {
      return Refusal{"the scales of its weight do not run along its columns"};
    }
    c.scale = *scales;
    c.zero = *zeros;
    c.unsigned_weight =
        SaturatesU8S8(device_) && c.weight.dtype == DType::kS8 && node.input(0)->type.dtype != DType::kS8;
    if (Node* add = follow(*c.scaled, "Add")) {
      Value* bias = Floats(add->input(add->input(0) == c.scaled->output() ? 1 : 0));
      if (bias != nullptr &&
          Holds("dynamic-matmul/bias-of-columns", bias->data->dims == Dims{static_cast<std::int64_t>(n)})) {
        c.add = add;
        c.bias = bias;
      }
    }
    return c;
  }

  void Apply(const Chain& c, Rewriter& rewriter) const override {
    Graph& graph = *c.sums->graph();
    Node* last = c.add != nullptr ? c.add : c.scaled;
    TensorRef weight = c.weight, zero = c.zero;
    Value* codes = c.sums->input(1);
    if (c.unsigned_weight) {
      codes = graph.AddConstant(codes->name() + "_u8", InOtherSign(weight));
      std::vector<std::int64_t> zeros = zero.ToInts();
      for (std::int64_t& z : zeros) z += 128;
      zero = TensorRef::FromInts(DType::kU8, zero.dims, zeros);
    }
    const std::string name = last->output()->name();
    Node* fresh =
        graph.AddNode("MatMulIntegerToFloat", std::string(kMs),
                      {c.sums->input(0), codes, c.activation_scale, graph.AddConstant(name + "_w_scale", c.scale),
                       c.sums->input(2), graph.AddConstant(name + "_w_zero_point", zero)},
                      {{name + "_product", last->output()->type}}, last);
    if (c.bias != nullptr) fresh->SetInput(6, c.bias);
    fresh->name = c.sums->name;
    if (rewriter.model().OpsetVersion(kMs) == 0) rewriter.model().SetOpsetVersion(std::string(kMs), 1);
    rewriter.Bypass(*last, fresh->output());
  }

 private:
  const DeviceDescriptor& device_;
};

}  // namespace

std::unique_ptr<Rule> DynamicMatMul(const DeviceDescriptor& device) {
  return std::make_unique<DynamicMatMulRule>(device);
}

}  // namespace octavo
