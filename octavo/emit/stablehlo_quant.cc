// Quantization spelled out: ONNX's rounding in plain operations, and the operators that compute in integers.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

// Codes below 8 bits stand in bytes.
DType Carrier(DType storage) {
  if (BitWidth(storage) >= 8) return storage;
  return IsSignedInteger(storage) ? DType::kS8 : DType::kU8;
}

// saturate(round_half_even(x / scale) + zero), ONNX QuantizeLinear; x, scale and zero are f32.
Tensor Quantized(Builder& b, const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero, DType storage) {
  Tensor y = b.Unary("round_nearest_even", b.Div(x, scale));
  if (zero) y = b.Add(y, *zero);
  y = b.Min(b.Max(y, static_cast<double>(IntegerMin(storage))), static_cast<double>(IntegerMax(storage)));
  return b.Convert(y, Carrier(storage));
}

bool AllZero(const std::optional<TensorRef>& zero) {
  if (!zero) return true;
  const std::vector<std::int64_t> values = zero->ToInts();
  return std::all_of(values.begin(), values.end(), [](std::int64_t v) { return v == 0; });
}

}  // namespace

// Parameters of one tensor stay a scalar; those of an axis or of blocks are spread out over the dimensions.
Tensor SpreadParameters(Builder& b, const Tensor& values, const Affine& affine, const Dims& dims) {
  if (!affine.axis) return b.Reshape(values, {});
  const auto axis = static_cast<std::size_t>(*affine.axis);
  if (affine.block == 0) {
    const std::int64_t map[] = {*affine.axis};
    return b.BroadcastInDim(values, dims, map);
  }
  Dims wide, map, whole = dims;
  for (std::size_t i = 0; i < values.rank(); ++i) {
    map.push_back(static_cast<std::int64_t>(wide.size()));
    wide.push_back(values.dims[i]);
    if (i == axis) wide.push_back(affine.block);
  }
  whole[axis] = values.dims[axis] * affine.block;
  const Tensor spread = b.Reshape(b.BroadcastInDim(values, std::move(wide), map), std::move(whole));
  return b.SliceAxis(spread, axis, 0, dims[axis]);
}

Tensor Emitter::QuantizeTo(const Tensor& x, const Affine& affine) {
  const Tensor scale = SpreadParameters(b, b.Floats(affine.scale.dims, affine.scale.ToFloats()), affine, x.dims);
  std::optional<Tensor> zero;
  if (!AllZero(affine.zero_point)) {
    const std::vector<std::int64_t> values = affine.zero_point->ToInts();
    const std::vector<float> floats(values.begin(), values.end());
    zero = SpreadParameters(b, b.Floats(affine.scale.dims, floats), affine, x.dims);
  }
  return Quantized(b, b.Convert(x, DType::kF32), scale, zero, affine.storage);
}

Tensor Emitter::DequantizeFrom(const Tensor& codes, const Affine& affine, DType expressed) {
  const Tensor scale = SpreadParameters(b, b.Floats(affine.scale.dims, affine.scale.ToFloats()), affine, codes.dims);
  Tensor x = b.Convert(codes, DType::kF32);
  if (!AllZero(affine.zero_point)) {
    const std::vector<std::int64_t> values = affine.zero_point->ToInts();
    if (BitWidth(affine.storage) > 16) {  // the difference is exact in integers only
      x = b.Convert(
          b.Sub(codes, SpreadParameters(b, b.Ints(affine.storage, affine.scale.dims, values), affine, codes.dims)),
          DType::kF32);
    } else {
      const std::vector<float> floats(values.begin(), values.end());
      x = b.Sub(x, SpreadParameters(b, b.Floats(affine.scale.dims, floats), affine, codes.dims));
    }
  }
  return b.Convert(b.Mul(x, scale), expressed);
}

namespace {

void Meaning(Emitter& e, const Node& node) { e.Out(node, 0, e.In(node, 0)); }

// Raw integers <-> quantized value; the bits stay.
void StorageCast(Emitter& e, const Node& node) {
  const Value* in = node.input(0);
  const Value* out = node.output(0);
  if (in == nullptr || out == nullptr) e.Refuse(node, "an input or output is missing");
  if (out->type.quant) return e.OutCodes(node, 0, e.In(node, 0));
  std::optional<Tensor> codes = e.Codes(*in);
  if (!codes && in->is_constant()) codes = e.b.Constant(*in->data);
  if (!codes) e.Refuse(node, "its input has no codes");
  if (codes->dtype != out->type.dtype) e.Refuse(node, "raw codes of " + std::string(Name(out->type.dtype)));
  e.Out(node, 0, *codes);
}

// Scale or zero point of a QuantizeLinear or DequantizeLinear whose parameters are computed.
Tensor Parameter(Emitter& e, const Node& node, std::size_t input, const Tensor& x) {
  const Tensor p = e.b.Convert(e.In(node, input), DType::kF32);
  Affine like;
  if (ElementCount(p.dims) != 1 || p.rank() > 1) {
    like.axis = e.Axis(node, node.IntAttribute("axis", 1), x.rank());
    like.block = node.IntAttribute("block_size", 0);
    const auto axis = static_cast<std::size_t>(*like.axis);
    const bool fits = like.block == 0 ? p.rank() == 1 && p.dims[0] == x.dims[axis]
                                      : p.rank() == x.rank() && like.block > 0 && like.block <= x.dims[axis] &&
                                            p.dims[axis] == (x.dims[axis] + like.block - 1) / like.block;
    if (!fits) e.Refuse(node, "a parameter does not fit its input");
  }
  return SpreadParameters(e.b, p, like, x.dims);
}

void QuantizeLinear(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  auto storage = static_cast<DType>(node.IntAttribute("output_dtype", 0));
  if (e.Has(node, 2)) storage = node.input(2)->type.dtype;
  if (storage == DType::kUndefined) storage = DType::kU8;
  if (!IsInteger(storage) || BitWidth(storage) < 8 || BitWidth(storage) > 16) {
    e.Refuse(node, "computed parameters with codes of " + std::string(Name(storage)));
  }
  std::optional<Tensor> zero;
  if (e.Has(node, 2)) zero = Parameter(e, node, 2, x);
  e.Out(node, 0, Quantized(e.b, e.b.Convert(x, DType::kF32), Parameter(e, node, 1, x), zero, storage));
}

void DequantizeLinear(Emitter& e, const Node& node) {
  const Tensor codes = e.In(node, 0);
  if (!IsInteger(codes.dtype)) e.Refuse(node, "codes of " + std::string(Name(codes.dtype)));
  Tensor x = e.b.Convert(codes, DType::kF32);
  if (e.Has(node, 2)) x = e.b.Sub(x, Parameter(e, node, 2, codes));
  const Value* out = node.output();
  const DType type = out != nullptr && out->type.dtype != DType::kUndefined ? out->type.dtype : DType::kF32;
  e.Out(node, 0, e.b.Convert(e.b.Mul(x, Parameter(e, node, 1, codes)), type));
}

void DynamicQuantizeLinear(Emitter& e, const Node& node) {
  const RangeCodes q = QuantizeToRange(e.b, e.In(node, 0));
  e.Out(node, 0, q.codes);
  if (e.Wanted(node, 1)) e.Out(node, 1, q.scale);
  if (e.Wanted(node, 2)) e.Out(node, 2, e.b.Convert(q.zero, DType::kU8));
}

bool IsWeight(const Emitter& e, const Node& node, std::size_t input) {
  const Value* value = node.input(input);
  return value != nullptr && value->is_constant() && e.form() == ConstantForm::kPacked;
}

// Codes minus their zero point as i32: what integer products are made of. `axis`: of parameters that are not scalars.
Tensor Centred(Emitter& e, const Node& node, std::size_t input, std::size_t zero_input, std::int64_t axis) {
  Tensor codes = e.In(node, input);
  if (!IsInteger(codes.dtype) || BitWidth(codes.dtype) > 16) e.Refuse(node, "codes of " + codes.type());
  if (IsWeight(e, node, input)) codes = e.b.Barrier(codes);  // IREE would store what follows, in 32 bits
  Tensor wide = e.b.Convert(codes, DType::kS32);
  if (!e.Has(node, zero_input)) return wide;
  Tensor zero = e.b.Convert(e.In(node, zero_input), DType::kS32);
  if (ElementCount(zero.dims) == 1) return e.b.Sub(wide, e.b.Reshape(zero, {}));
  axis = e.Axis(node, axis, wide.rank());
  if (zero.rank() != 1 || zero.dims[0] != wide.dims[static_cast<std::size_t>(axis)]) {
    e.Refuse(node, "a zero point does not fit its tensor");
  }
  const std::int64_t map[] = {axis};
  return e.b.Sub(wide, e.b.BroadcastInDim(zero, wide.dims, map));
}

Tensor IntegerMatMul(Emitter& e, const Node& node, const Tensor& a, const Tensor& b) {
  if (a.rank() < 2 || b.rank() != 2 || a.dims.back() != b.dims[0]) e.Refuse(node, "operands that are not matrices");
  const std::int64_t contract_a[] = {static_cast<std::int64_t>(a.rank()) - 1}, contract_b[] = {0};
  return e.b.Dot(a, b, {}, {}, contract_a, contract_b);
}

void MatMulInteger(Emitter& e, const Node& node) {
  e.Out(node, 0, IntegerMatMul(e, node, Centred(e, node, 0, 2, -2), Centred(e, node, 1, 3, -1)));
}

void ConvInteger(Emitter& e, const Node& node) {
  const KernelFrom from = IsWeight(e, node, 1) ? KernelFrom::kComputed : KernelFrom::kStored;
  e.Out(node, 0, Convolve(e, node, Centred(e, node, 0, 2, 1), Centred(e, node, 1, 3, 0), from));
}

// saturate(round_half_even(acc * (x_scale w_scale / y_scale)) + y_zero) of an i32 accumulator.
void Requantized(Emitter& e, const Node& node, const Tensor& acc, std::array<std::size_t, 4> inputs,
                 std::int64_t channel_axis) {
  const auto scale_of = [&](std::size_t i) {
    const Tensor s = e.b.Convert(e.In(node, i), DType::kF32);
    if (ElementCount(s.dims) == 1) return e.b.Reshape(s, {});
    const std::int64_t axis = e.Axis(node, channel_axis, acc.rank());
    if (s.rank() != 1 || s.dims[0] != acc.dims[static_cast<std::size_t>(axis)]) e.Refuse(node, "a scale does not fit");
    const std::int64_t map[] = {axis};
    return e.b.BroadcastInDim(s, acc.dims, map);
  };
  const auto& [xs, ws, ys, yz] = inputs;
  const Tensor factor = e.b.Div(e.b.Mul(scale_of(xs), scale_of(ws)), scale_of(ys));
  std::optional<Tensor> zero;
  DType storage = DType::kU8;
  if (e.Has(node, yz)) {
    const Tensor z = e.In(node, yz);
    storage = z.dtype;
    zero = e.b.Reshape(e.b.Convert(z, DType::kF32), {});
  }
  Tensor y = e.b.Unary("round_nearest_even", e.b.Mul(e.b.Convert(acc, DType::kF32), factor));
  if (zero) y = e.b.Add(y, *zero);
  y = e.b.Min(e.b.Max(y, static_cast<double>(IntegerMin(storage))), static_cast<double>(IntegerMax(storage)));
  e.Out(node, 0, e.b.Convert(y, storage));
}

void QLinearMatMul(Emitter& e, const Node& node) {
  const Tensor acc = IntegerMatMul(e, node, Centred(e, node, 0, 2, -2), Centred(e, node, 3, 5, -1));
  Requantized(e, node, acc, {1, 4, 6, 7}, -1);
}

void QLinearConv(Emitter& e, const Node& node) {
  const KernelFrom from = IsWeight(e, node, 3) ? KernelFrom::kComputed : KernelFrom::kStored;
  Tensor acc = Convolve(e, node, Centred(e, node, 0, 2, 1), Centred(e, node, 3, 5, 0), from);
  if (e.Has(node, 8)) {
    const Tensor bias = e.In(node, 8);
    if (bias.rank() != 1 || bias.dims[0] != acc.dims[1] || bias.dtype != DType::kS32) {
      e.Refuse(node, "the bias does not have one int32 a channel");
    }
    const std::int64_t map[] = {1};
    acc = e.b.Add(acc, e.b.BroadcastInDim(bias, acc.dims, map));
  }
  Requantized(e, node, acc, {1, 4, 6, 7}, 1);
}

constexpr Lowering kTable[] = {
    {kQuantize, kIrDomain, Meaning, ""},
    {kDequantize, kIrDomain, Meaning, ""},
    {kRequantize, kIrDomain, Meaning, ""},
    {kStorageCast, kIrDomain, StorageCast, ""},
    {"QuantizeLinear", "", QuantizeLinear, "computed parameters with codes other than 8 or 16 bits, 8-bit floats"},
    {"DequantizeLinear", "", DequantizeLinear, "8-bit floats"},
    {"DynamicQuantizeLinear", "", DynamicQuantizeLinear, ""},
    {"MatMulInteger", "", MatMulInteger, "a batch of second operands"},
    {"ConvInteger", "", ConvInteger, ""},
    {"QLinearMatMul", "", QLinearMatMul, "a batch of second operands"},
    {"QLinearConv", "", QLinearConv, ""},
};

}  // namespace

// scale = (max(x, 0) - min(x, 0)) / 255, zero = saturate(round(-min / scale)); operator spec, version 11.
RangeCodes QuantizeToRange(Builder& b, const Tensor& x) {
  Dims axes(x.rank());
  std::iota(axes.begin(), axes.end(), 0);
  const Tensor low = b.Min(b.Reduce(x, axes, Reduction::kMin), 0.0);
  const Tensor high = b.Max(b.Reduce(x, axes, Reduction::kMax), 0.0);
  Tensor scale = b.Div(b.Sub(high, low), 255.0);
  const Tensor nothing = b.Splat(scale.dtype, {}, 0);
  scale = b.Select(b.CompareTo(Compare::kEq, scale, nothing), b.Splat(scale.dtype, {}, 1), scale);
  const Tensor zero = b.Min(b.Max(b.Unary("round_nearest_even", b.Div(b.Unary("negate", low), scale)), 0.0), 255.0);
  return {Quantized(b, x, scale, zero, DType::kU8), scale, zero};
}

std::optional<std::pair<Tensor, Tensor>> Emitter::UniformOperands(const Value& x, const Value& w) {
  if (form() != ConstantForm::kQuant) return std::nullopt;
  const auto element = [](const Value& v) -> std::optional<UniformElement> {
    if (!v.type.quant || v.type.quant->kind != QuantType::Kind::kAffine || v.type.dtype != DType::kF32) {
      return std::nullopt;
    }
    const Affine& affine = v.type.quant->affine;
    if (affine.storage != DType::kS8 || affine.axis || affine.scale.dtype != DType::kF32) return std::nullopt;
    const std::int64_t zero = affine.zero_point ? affine.zero_point->ToInts()[0] : 0;
    return UniformElement{affine.scale.ToFloats()[0], zero};
  };
  const auto ex = element(x), ew = element(w);
  const std::optional<Tensor> codes = Codes(x);
  // A zero point of the weight would need sums of the input that consumers do not all make.
  if (!ex || !ew || !codes || !w.is_constant() || ew->zero != 0) return std::nullopt;
  return std::pair(b.AsUniform(*codes, *ex), b.AsUniform(b.Constant(*w.data), *ew));
}

std::span<const Lowering> QuantLowerings() { return kTable; }

}  // namespace octavo::stablehlo
