#include "octavo/rewrite/rules/quantized.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace octavo {

const Affine* AffineOf(const Value* value) {
  if (value == nullptr || !value->type.quant || value->type.quant->kind != QuantType::Kind::kAffine) return nullptr;
  const Affine& affine = value->type.quant->affine;
  return affine.scale.dtype == DType::kF32 && value->type.dtype == DType::kF32 && IsInteger(affine.storage) ? &affine
                                                                                                            : nullptr;
}

std::optional<ScalarParams> ScalarOf(const Value* value) {
  const Affine* affine = AffineOf(value);
  if (affine == nullptr || !affine->per_tensor()) return std::nullopt;
  const int bits = BitWidth(affine->storage);
  if (bits != 8 && bits != 16) return std::nullopt;
  ScalarParams p;
  p.storage = affine->storage;
  p.scale = affine->scale.ToFloats()[0];
  if (affine->zero_point) p.zero = static_cast<std::int32_t>(affine->zero_point->ToInts()[0]);
  return p;
}

std::optional<ScalarParams> Scalar8(const Value* value) {
  std::optional<ScalarParams> p = ScalarOf(value);
  if (p && BitWidth(p->storage) != 8) p.reset();
  return p;
}

bool SameScalar(const ScalarParams& a, const ScalarParams& b) {
  return a.storage == b.storage && a.scale == b.scale && a.zero == b.zero;
}

QuantType ToQuantType(const ScalarParams& params) {
  QuantType type;
  type.affine.storage = params.storage;
  type.affine.scale = TensorRef::Scalar(params.scale);
  const std::int64_t zero = params.zero;
  type.affine.zero_point = TensorRef::FromInts(params.storage, {}, {&zero, 1});
  return type;
}

std::vector<float> Scales(const Affine& affine) { return affine.scale.ToFloats(); }

std::vector<std::int64_t> Zeros(const Affine& affine) {
  if (affine.zero_point) return affine.zero_point->ToInts();
  return std::vector<std::int64_t>(affine.scale.elements(), 0);
}

TensorRef InOtherSign(const TensorRef& codes) {
  SpillBuffer flipped(codes.bytes.size());
  std::transform(codes.bytes.begin(), codes.bytes.end(), flipped.data(),
                 [](std::byte b) { return b ^ std::byte{0x80}; });
  flipped.Release();
  return TensorRef::FromBuffer(codes.dtype == DType::kS8 ? DType::kU8 : DType::kS8, codes.dims, std::move(flipped));
}

bool IsQuantized(const Value* value) { return value != nullptr && value->type.quant.has_value(); }

std::string Text(double number) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", number);
  return text;
}

std::string Text(const ScalarParams& params) {
  return std::string(Name(params.storage)) + "(scale=" + Text(params.scale) + ", zero=" + std::to_string(params.zero) +
         ")";
}

std::optional<std::int64_t> SumLength(const Node& node) {
  const auto dim = [](const Value* v, std::int64_t from_end) -> std::optional<std::int64_t> {
    if (v == nullptr || !v->type.shape) return std::nullopt;
    const auto rank = static_cast<std::int64_t>(v->type.shape->size());
    const std::int64_t at = rank - from_end;
    if (at < 0) return std::nullopt;
    const Dim& d = (*v->type.shape)[static_cast<std::size_t>(at)];
    return d.known() ? std::optional(d.value) : std::nullopt;
  };
  const Value* w = node.input(1);
  if (node.Is("Conv")) {
    if (w == nullptr || !w->type.shape) return std::nullopt;
    std::int64_t n = 1;
    for (std::size_t i = 1; i < w->type.shape->size(); ++i) {
      const Dim& d = (*w->type.shape)[i];
      if (!d.known() || d.value > (1 << 30) || n > (1 << 30)) return std::nullopt;
      n *= d.value;
    }
    return n;
  }
  if (node.Is("Gemm")) return dim(w, node.IntAttribute("transB", 0) != 0 ? 1 : 2);
  std::optional<std::int64_t> k = dim(w, w != nullptr && w->type.shape && w->type.shape->size() == 1 ? 1 : 2);
  return k ? k : dim(node.input(0), 1);
}

bool SumFits(std::int64_t length, const ScalarParams& x, DType w_storage, std::int64_t w_zero, std::int64_t bias) {
  const auto reach = [](DType storage, std::int64_t zero) {
    return std::max(zero - IntegerMin(storage), IntegerMax(storage) - zero);
  };
  const std::int64_t product = reach(x.storage, x.zero) * reach(w_storage, w_zero);
  constexpr std::int64_t kMost = 2147483647;
  if (product == 0) return true;
  return bias <= kMost && length <= (kMost - bias) / product;
}

bool ConstantSumsFit(const Value& weight, std::int64_t channel_axis, std::int64_t w_zero, const ScalarParams& x,
                     const Value* bias, std::span<const float> scales, float y_scale) {
  if (!weight.is_constant() || !weight.data) return false;
  const Dims& dims = weight.data->dims;
  const auto axis = static_cast<std::size_t>(channel_axis);
  if (channel_axis < 0 || axis >= dims.size()) return false;
  const auto channels = static_cast<std::size_t>(dims[axis]);
  std::size_t inner = 1;
  for (std::size_t i = axis + 1; i < dims.size(); ++i) inner *= static_cast<std::size_t>(dims[i]);
  const std::int64_t low = IntegerMin(x.storage) - x.zero, high = IntegerMax(x.storage) - x.zero;  // of x - zero
  std::vector<std::int64_t> least(channels), most(channels);
  if (bias != nullptr) {
    if (!bias->is_constant() || !bias->data) return false;
    const std::vector<std::int64_t> codes = bias->data->ToInts();
    if (codes.size() != 1 && codes.size() != channels) return false;
    for (std::size_t c = 0; c < channels; ++c) least[c] = most[c] = codes[codes.size() == 1 ? 0 : c];
  }
  const std::vector<std::int64_t> codes = weight.data->ToInts();
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::int64_t w = codes[i] - w_zero;
    const std::size_t c = i / inner % channels;
    least[c] += std::min(w * low, w * high);
    most[c] += std::max(w * low, w * high);
  }
  constexpr std::int64_t kMost = 2147483647, kRound = std::int64_t{1} << 32;
  for (std::size_t c = 0; c < channels; ++c) {
    if (least[c] >= -kMost && most[c] <= kMost) continue;
    if (least[c] < -kMost - kRound || most[c] > kMost + kRound) return false;
    const double step = static_cast<double>(x.scale) * static_cast<double>(scales[scales.size() == 1 ? 0 : c]);
    if (!(static_cast<double>(kRound) * step <= 0.4 * static_cast<double>(y_scale))) return false;
  }
  return true;
}

MatchOr<KernelWeight> MatchWeight(std::string_view rule, const Value* weight,
                                  std::optional<std::int64_t> channel_axis) {
  KernelWeight w;
  w.affine = AffineOf(weight);
  if (w.affine == nullptr) return Refusal{"its weight is not quantized with f32 scales"};
  if (BitWidth(w.affine->storage) != 8) {
    return Refusal{"its weight has codes of type " + std::string(Name(w.affine->storage)) +
                   "; the kernel takes 8 bits"};
  }
  if (w.affine->block != 0) return Refusal{"its weight is quantized in blocks; the kernel takes one scale a channel"};
  if (w.affine->axis) {
    if (!channel_axis) return Refusal{"its right operand has one scale an index and more than two dimensions"};
    if (!Holds(std::string(rule) + "/weight-axis", *w.affine->axis == *channel_axis)) {
      return Refusal{"its weight is quantized along axis " + std::to_string(*w.affine->axis) +
                     ", the kernel's scales run along axis " + std::to_string(*channel_axis)};
    }
  }
  w.scales = Scales(*w.affine);
  const std::vector<std::int64_t> zeros = Zeros(*w.affine);
  w.zero = zeros.empty() ? 0 : zeros[0];
  const bool equal = std::all_of(zeros.begin(), zeros.end(), [&](std::int64_t z) { return z == w.zero; });
  if (!equal) {
    return Refusal{"the channels of its weight have different zero points; the kernel takes one"};
  }
  return w;
}

MatchOr<bool> MatchStorages(std::string_view rule, const DeviceDescriptor& device, DType x, DType w, DType y) {
  if (y != DType::kUndefined && x != y) {
    return Refusal{"its input has codes of type " + std::string(Name(x)) + " and its output of type " +
                   std::string(Name(y)) + "; the kernel has one type for both"};
  }
  if (x == DType::kS8 && w == DType::kU8) return Refusal{"there is no kernel for s8 activations and u8 weights"};
  if (!Holds(std::string(rule) + "/saturation", !(x == DType::kU8 && w == DType::kS8 && SaturatesU8S8(device)))) {
    return Refusal{"u8 times s8 saturates on this device, and the weight cannot become u8"};
  }
  return true;
}

MatchOr<std::int64_t> MatchBias(std::string_view rule, const Value* bias, const ScalarParams& x,
                                const KernelWeight& weight) {
  if (bias == nullptr) return std::int64_t{0};
  const Affine* affine = AffineOf(bias);
  if (affine == nullptr || affine->storage != DType::kS32 || !bias->is_constant() || !bias->data) {
    return Refusal{"its bias is no constant of s32 codes"};
  }
  if (affine->block != 0) return Refusal{"its bias is quantized in blocks"};
  const std::vector<std::int64_t> codes = bias->data->ToInts();
  const std::vector<float> scales = Scales(*affine);
  const std::vector<std::int64_t> zeros = Zeros(*affine);
  if (std::any_of(zeros.begin(), zeros.end(), [](std::int64_t z) { return z != 0; })) {
    return Refusal{"its bias has a zero point other than 0"};
  }
  std::int64_t most = 0;
  for (std::size_t c = 0; c < codes.size(); ++c) {
    const float want = x.scale * weight.scales[weight.scales.size() == 1 ? 0 : std::min(c, weight.scales.size() - 1)];
    const float have = scales[scales.size() == 1 ? 0 : std::min(c, scales.size() - 1)];
    // What the wrong scale adds to the bias must stay below a tenth of a product's unit.
    const double off = std::fabs(static_cast<double>(codes[c])) * std::fabs(static_cast<double>(have) - want);
    if (!Holds(std::string(rule) + "/bias-scale", off <= 0.1 * want)) {
      return Refusal{"its bias has scale " + Text(have) + " in channel " + std::to_string(c) +
                     ", its products have scale " + Text(want)};
    }
    most = std::max<std::int64_t>(most, std::llabs(codes[c]));
  }
  return most;
}

std::optional<Refusal> MatchQuantizeBefore(std::string_view rule, const Node& node) {
  const Value* x = node.input(0);
  const std::optional<ScalarParams> out = ScalarOf(node.output());
  if (node.form == QuantForm::kQLinear || node.outputs().size() != 1 || !out || x == nullptr || IsQuantized(x) ||
      x->producer() == nullptr || x->graph() != node.graph()) {
    return Refusal{};
  }
  const Node& producer = *x->producer();
  // Behind a float layer nothing would run in integers.
  if (!IsQuantized(producer.input(0)) || producer.domain() == kIrDomain) return Refusal{};
  const OpCategory category = FindOp(producer).category;
  if (category == OpCategory::kOther || category == OpCategory::kShape || category == OpCategory::kControl ||
      category == OpCategory::kQuantized) {
    return Refusal{};
  }
  if (x->type.dtype != DType::kF32 && x->type.dtype != DType::kUndefined) return Refusal{"its input is not f32"};
  if (!Holds(std::string(rule) + "/one-use", SoleUser(x) == &node)) {
    return Refusal{"the output of " + Describe(producer) + " has other uses, which want its float value"};
  }
  return std::nullopt;
}

void QuantizeBefore(Node& node, Rewriter& rewriter) {
  Value* x = node.input(0);
  x->type.dtype = DType::kF32;
  x->type.quant = node.output()->type.quant;
  if (x->producer()->form == QuantForm::kNone) x->producer()->form = QuantForm::kQdq;
  rewriter.Touch(x);
}

RuleSet QuantizedRules(const DeviceDescriptor& device, std::int64_t opset) {
  RuleSet rules;
  rules.push_back(DropRequantize());
  rules.push_back(SkipFinerRequantize());
  rules.push_back(SkipFinerQuantize());
  rules.push_back(AbsorbRequantize());
  rules.push_back(MoveParameters(device, opset));
  rules.push_back(PartParameters(device, opset));
  rules.push_back(S8ToU8(device));
  rules.push_back(S8WeightToU8(device));
  rules.push_back(S8SumsToU8(device));
  rules.push_back(FloatWeight(device));
  rules.push_back(ScaleIntoWeight());
  rules.push_back(AddIntoBias());
  rules.push_back(RaiseWeightScale());
  rules.push_back(IntegerBias());
  rules.push_back(QuantizeBeforeClip());
  rules.push_back(DropClip());
  rules.push_back(IntegerClip(device, opset));
  rules.push_back(QuantizeBeforeMove());
  rules.push_back(MoveCodes(device, opset));
  rules.push_back(JoinCodes(device));
  rules.push_back(IntegerPad(device));
  rules.push_back(QLinearConvRule(device));
  rules.push_back(QLinearMatMulRule(device));
  rules.push_back(MatMulIntegerToFloatRule(device));
  rules.push_back(DynamicMatMul(device));
  rules.push_back(QGemmRule(device));
  rules.push_back(QGemmFloatRule(device));
  rules.push_back(QLinearBinary(device));
  rules.push_back(QLinearJoin(device));
  rules.push_back(QLinearTable(device));
  rules.push_back(QLinearPool(device));
  rules.push_back(QLinearSoftmaxRule(device));
  rules.push_back(BlockWeights(device));
  rules.push_back(ChooseAtLoad(device));
  return rules;
}

}  // namespace octavo
