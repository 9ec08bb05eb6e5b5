// One handler an operator: how it is said in Circle.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/emit/lower_circle.h"

namespace octavo::internal {
namespace {

Dims ShapeOf(const Value* v) { return *StaticShape(v->type); }

std::vector<float> ScalesOf(const Type& type) { return type.quant->affine.scale.ToFloats(); }
bool HasZeroPoints(const Type& type) {
  if (!type.quant->affine.zero_point) return false;
  const std::vector<std::int64_t> zeros = type.quant->affine.zero_point->ToInts();
  return std::any_of(zeros.begin(), zeros.end(), [](std::int64_t z) { return z != 0; });
}
bool PerTensorType(const Type& type) {
  return type.quant && type.quant->kind == QuantType::Kind::kAffine && type.quant->affine.per_tensor();
}

// Padding of one spatial dimension, before and after.
struct Pads {
  std::int64_t before = 0, after = 0;
};

// What SAME means (TensorFlow): out = ceil(in / stride), the odd one of the padding after.
bool IsSame(std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t dilation, Pads pads) {
  const std::int64_t out = (in + stride - 1) / stride;
  const std::int64_t total = std::max<std::int64_t>((out - 1) * stride + (kernel - 1) * dilation + 1 - in, 0);
  return pads.before == total / 2 && pads.after == total - total / 2;
}

std::vector<std::int64_t> Ints(const Node& node, std::string_view name, std::size_t n, std::int64_t fallback) {
  const std::vector<std::int64_t>* list = node.IntsAttribute(name);
  std::vector<std::int64_t> out(n, fallback);
  if (list != nullptr) {
    for (std::size_t i = 0; i < n && i < list->size(); ++i) out[i] = (*list)[i];
  }
  return out;
}

// The node's padding for spatial sizes `in`; `extra` is what ceil_mode reads beyond the end.
std::vector<Pads> PadsOf(const Node& node, const std::vector<std::int64_t>& in, const std::vector<std::int64_t>& kernel,
                         const std::vector<std::int64_t>& strides, const std::vector<std::int64_t>& dilations) {
  const std::size_t n = in.size();
  std::vector<Pads> pads(n);
  const std::string mode = node.StringAttribute("auto_pad", "NOTSET");
  const std::vector<std::int64_t> list = Ints(node, "pads", 2 * n, 0);
  for (std::size_t i = 0; i < n; ++i) {
    if (mode == "SAME_UPPER" || mode == "SAME_LOWER") {
      const std::int64_t out = (in[i] + strides[i] - 1) / strides[i];
      const std::int64_t total =
          std::max<std::int64_t>((out - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - in[i], 0);
      pads[i] = mode == "SAME_UPPER" ? Pads{total / 2, total - total / 2} : Pads{total - total / 2, total / 2};
    } else if (mode != "VALID") {
      pads[i] = {list[i], list[i + n]};
    }
  }
  return pads;
}

}  // namespace

// ------------------------------------------------------------------------------------------------- weighted operators

Value* CircleLowering::Bias(const Node& node, const Value* bias, std::int64_t channels, Value* x, Value* w,
                            bool integer) {
  const std::string name = bias != nullptr ? bias->name() : node.output()->name() + "_bias";
  const auto n = static_cast<std::size_t>(channels);
  std::vector<float> values(n, 0.0f);
  std::vector<std::int64_t> codes;
  if (bias != nullptr) {
    if (!bias->is_constant() || !bias->data) Refuse(node, "its bias is computed");
    if (bias->data->elements() != n) Refuse(node, "its bias does not have one number a channel");
    if (bias->type.quant && bias->type.quant->kind == QuantType::Kind::kAffine &&
        bias->type.quant->affine.storage == DType::kS32) {
      codes = bias->data->ToInts();
    }
    Value* f = GetConstant(bias, Layout::kFirst, true);
    values = f->data->ToFloats();
    new_->Erase(f);
  }
  if (!integer || x->type.quant->kind == QuantType::Kind::kMx) return Floats({channels}, values, name);
  const float sx = ScalesOf(x->type)[0];
  const std::vector<float> sw = ScalesOf(w->type);
  std::vector<float> scales;
  for (const float s : sw) scales.push_back(sx * s);
  const bool wide = StorageOf(x->type) == Storage::kS16;
  // Codes that are at the scale of the products already are taken as they are.
  bool keep = codes.size() == n && !wide && !HasZeroPoints(bias->type);
  if (keep) {
    const std::vector<float> have = bias->type.quant->affine.scale.ToFloats();
    keep = have.size() == scales.size() || have.size() == 1;
    for (std::size_t i = 0; keep && i < scales.size(); ++i) {
      keep = std::fabs(have[have.size() == 1 ? 0 : i] - scales[i]) <= 1e-6f * scales[i];
    }
  }
  if (!keep) {
    codes.assign(n, 0);
    for (std::size_t i = 0; i < n; ++i) {
      const double s = static_cast<double>(sx) * sw[sw.size() == 1 ? 0 : i];
      const double q = std::nearbyint(values[i] / s);
      const double limit = wide ? 0x1p39 : 2147483647.0;  // 16-bit kernels take a bias of 40 bits
      codes[i] = static_cast<std::int64_t>(std::clamp(q, -limit, limit));
    }
  }
  const DType storage = wide ? DType::kS64 : DType::kS32;
  QuantType quant;
  quant.affine.storage = storage;
  if (scales.size() == 1) {
    quant.affine.scale = TensorRef::Scalar(scales[0]);
  } else {
    quant.affine.axis = 0;
    quant.affine.scale = TensorRef::FromFloats({static_cast<std::int64_t>(scales.size())}, scales);
  }
  return new_->AddConstant(name, TensorRef::FromInts(storage, {channels}, codes),
                           MakeType(DType::kF32, {channels}, quant));
}

Value* CircleLowering::ConvPiece(const Node& node, Value* x, Value* w, Value* b, bool depthwise,
                                 std::string_view padding, const Type& type, const std::string& name) {
  const std::vector<std::int64_t> strides = Ints(node, "strides", 2, 1), dilations = Ints(node, "dilations", 2, 1);
  Attributes a{{"padding", std::string(padding)},
               {"stride_h", strides[0]},
               {"stride_w", strides[1]},
               {"dilation_h_factor", dilations[0]},
               {"dilation_w_factor", dilations[1]},
               {"fused_activation_function", std::string(ActivationOf(node))}};
  if (depthwise) a.emplace_back("depth_multiplier", ShapeOf(w)[3] / ShapeOf(x)[3]);
  return Emit(depthwise ? "DEPTHWISE_CONV_2D" : "CONV_2D", {x, w, b}, name, type, std::move(a));
}

void CircleLowering::Conv(const Node& node) {
  const Value *x_old = node.input(0), *w_old = node.input(1), *b_old = node.input(2);
  const Dims x_dims = DimsOf(x_old), w_dims = DimsOf(w_old);
  if (x_dims.size() != 4) Refuse(node, "only two spatial dimensions are lowered");
  if (!w_old->is_constant()) Refuse(node, "its weights are computed");
  const std::int64_t group = node.IntAttribute("group", 1), channels = x_dims[1], outputs = w_dims[0];
  if (group < 1 || w_dims.size() != 4 || channels != w_dims[1] * group || outputs % group != 0)
    Refuse(node, "its shapes do not fit its groups");
  const bool depthwise = group == channels && group > 1;
  const std::vector<std::int64_t> strides = Ints(node, "strides", 2, 1), dilations = Ints(node, "dilations", 2, 1);
  const std::vector<Pads> pads = PadsOf(node, {x_dims[2], x_dims[3]}, {w_dims[2], w_dims[3]}, strides, dilations);
  const Value* data[] = {x_old, w_old};
  bool integer = Integer(node, depthwise ? "DEPTHWISE_CONV_2D" : "CONV_2D", data);
  if (integer && StorageOf(x_old->type) != Storage::kMx) {
    if (StorageOf(x_old->type) != Storage::kU8 && HasZeroPoints(w_old->type)) {
      KeptFloat(node, "signed weights with a zero point have no kernel");
      integer = false;
    } else if (w_old->type.quant->affine.axis && *w_old->type.quant->affine.axis != 0) {
      KeptFloat(node, "its weights have scales along another axis than their output channels");
      integer = false;
    }
  }
  Value* x = Get(x_old, Layout::kLast, !integer);
  // The weight in Circle's layout, once a use.
  Value* w_raw = GetConstant(w_old, Layout::kFirst, !integer);
  const bool grouped = group > 1 && !depthwise;
  const std::vector<std::int64_t> perm =
      depthwise ? std::vector<std::int64_t>{1, 2, 3, 0} : std::vector<std::int64_t>{0, 2, 3, 1};
  const auto constant = [&](Value* raw, const TensorRef& part, std::optional<QuantType> quant) -> Value* {
    TensorRef moved = PermutedData(part, perm);
    if (quant) quant = PermutedQuant(*quant, perm);
    const Dims dims = moved.dims;
    return new_->AddConstant(raw->name(), std::move(moved), MakeType(raw->type.dtype, dims, quant));
  };
  // An MX weight is a float constant behind a QUANTIZE.
  std::optional<QuantType> mx;
  Value* numbers = w_raw;
  if (w_raw->type.quant && w_raw->type.quant->kind == QuantType::Kind::kMx) {
    mx = PermutedQuant(*w_raw->type.quant, perm);
    numbers = w_raw->producer()->input(0);
  }
  const auto weight = [&](const TensorRef& part, std::optional<QuantType> quant) {
    Value* c = constant(numbers, part, std::move(quant));
    return mx ? Quantize(c, *mx, w_old->name() + "_mx") : c;
  };
  bool same = true, valid = true;
  for (std::size_t i = 0; i < 2; ++i) {
    same = same && IsSame(x_dims[i + 2], w_dims[i + 2], strides[i], dilations[i], pads[i]);
    valid = valid && pads[i].before == 0 && pads[i].after == 0;
  }
  if (!same && !valid) {
    Dims dims = ShapeOf(x);
    for (std::size_t i = 0; i < 2; ++i) {
      if (pads[i].before < 0 || pads[i].after < 0) Refuse(node, "negative padding");
      dims[i + 1] += pads[i].before + pads[i].after;
    }
    const std::int64_t table[] = {0, 0, pads[0].before, pads[0].after, pads[1].before, pads[1].after, 0, 0};
    Value* p = new_->AddConstant(node.output()->name() + "_pads", TensorRef::FromInts(DType::kS32, {4, 2}, table));
    x = Emit("PAD", {x, p}, node.output()->name() + "_padded", MakeType(x->type.dtype, dims, x->type.quant));
  }
  const std::string padding = valid || !same ? "VALID" : "SAME";
  const Type type = OutType(node, Layout::kLast, integer);
  const std::string name = OutputOf(node)->name();
  const std::optional<QuantType> w_quant = numbers->type.quant;
  if (!grouped) {
    Value* w = weight(*numbers->data, w_quant);
    Value* b = Bias(node, b_old, outputs, x, w, integer);
    Finish(node, Layout::kLast, ConvPiece(node, x, w, b, depthwise, padding, type, name), integer);
    return;
  }
  // A slice of the channels, a convolution and a slice of the weights for each group.
  Value* w_all = constant(numbers, *numbers->data, w_quant);
  Value* b_all = Bias(node, b_old, outputs, x, w_all, integer);
  std::vector<Value*> parts;
  const std::int64_t in_part = channels / group, out_part = outputs / group;
  const std::uint64_t stride = numbers->data->bytes.size() / static_cast<std::uint64_t>(group);
  const auto slice_quant = [&](std::optional<QuantType> q, std::int64_t g) {
    if (!q || q->kind != QuantType::Kind::kAffine || !q->affine.axis) return q;
    const std::vector<float> scales = q->affine.scale.ToFloats();
    const auto begin = scales.begin() + g * out_part;
    q->affine.scale = TensorRef::FromFloats({out_part}, std::vector<float>(begin, begin + out_part));
    if (q->affine.zero_point) {
      const std::vector<std::int64_t> zeros = q->affine.zero_point->ToInts();
      const auto z = zeros.begin() + g * out_part;
      q->affine.zero_point =
          TensorRef::FromInts(q->affine.zero_point->dtype, {out_part}, std::vector<std::int64_t>(z, z + out_part));
    }
    return q;
  };
  for (std::int64_t g = 0; g < group; ++g) {
    TensorRef part = *numbers->data;
    part.bytes = part.bytes.subspan(static_cast<std::size_t>(g) * stride, stride);
    part.dims[0] = out_part;
    Value* w = weight(part, slice_quant(w_quant, g));
    TensorRef b_part = *b_all->data;
    const std::size_t b_stride = b_part.bytes.size() / static_cast<std::size_t>(group);
    b_part.bytes = b_part.bytes.subspan(static_cast<std::size_t>(g) * b_stride, b_stride);
    b_part.dims = {out_part};
    Value* b = new_->AddConstant(b_all->name(), b_part,
                                 MakeType(b_all->type.dtype, {out_part}, slice_quant(b_all->type.quant, g)));
    Dims x_part = ShapeOf(x);
    const Dims x_now = x_part;
    x_part[3] = in_part;
    const std::int64_t begin[] = {0, 0, 0, g * in_part}, end[] = {x_now[0], x_now[1], x_now[2], (g + 1) * in_part},
                       ones[] = {1, 1, 1, 1};
    Value* slice =
        Emit("STRIDED_SLICE",
             {x, Int32s(begin, name + "_begin"), Int32s(end, name + "_end"), Int32s(ones, name + "_strides")},
             name + "_group", MakeType(x->type.dtype, x_part, x->type.quant));
    Type piece = type;
    (*piece.shape)[3].value = out_part;
    parts.push_back(ConvPiece(node, slice, w, b, false, padding, piece, name + "_part"));
  }
  Value* y = Emit("CONCATENATION", parts, name, type,
                  {{"axis", std::int64_t{3}}, {"fused_activation_function", std::string("NONE")}});
  Finish(node, Layout::kLast, y, integer);
}

void CircleLowering::ConvTranspose(const Node& node) {
  const Value *x_old = node.input(0), *w_old = node.input(1), *b_old = node.input(2);
  const Dims x_dims = DimsOf(x_old), w_dims = DimsOf(w_old), y_dims = DimsOf(node.output());
  if (x_dims.size() != 4 || w_dims.size() != 4) Refuse(node, "only two spatial dimensions are lowered");
  if (!w_old->is_constant()) Refuse(node, "its weights are computed");
  if (node.IntAttribute("group", 1) != 1) Refuse(node, "it has groups");
  const std::vector<std::int64_t> strides = Ints(node, "strides", 2, 1), dilations = Ints(node, "dilations", 2, 1);
  if (dilations[0] != 1 || dilations[1] != 1) Refuse(node, "it is dilated");
  const Value* data[] = {x_old, w_old};
  bool integer = Integer(node, "TRANSPOSE_CONV", data);
  if (integer && StorageOf(x_old->type) != Storage::kMx &&
      ((StorageOf(x_old->type) != Storage::kU8 && HasZeroPoints(w_old->type)) ||
       (w_old->type.quant->affine.axis && *w_old->type.quant->affine.axis != 1))) {
    KeptFloat(node, "its weights have zero points or scales that no kernel takes");
    integer = false;
  }
  Value* x = Get(x_old, Layout::kLast, !integer);
  Value* raw = GetConstant(w_old, Layout::kFirst, !integer);
  const std::vector<std::int64_t> perm{1, 2, 3, 0};
  std::optional<QuantType> mx;
  if (raw->type.quant && raw->type.quant->kind == QuantType::Kind::kMx) {
    mx = PermutedQuant(*raw->type.quant, perm);
    raw = raw->producer()->input(0);
  }
  TensorRef moved = PermutedData(*raw->data, perm);
  const Dims w_new = moved.dims;
  std::optional<QuantType> quant = raw->type.quant;
  if (quant) quant = PermutedQuant(*quant, perm);
  Value* w = new_->AddConstant(raw->name(), std::move(moved), MakeType(raw->type.dtype, w_new, quant));
  if (mx) w = Quantize(w, *mx, w_old->name() + "_mx");
  // The whole product, then what the padding takes away.
  Dims full{x_dims[0], (x_dims[2] - 1) * strides[0] + w_dims[2], (x_dims[3] - 1) * strides[1] + w_dims[3], w_dims[1]};
  std::vector<std::int64_t> before = Ints(node, "pads", 4, 0);
  const std::string mode = node.StringAttribute("auto_pad", "NOTSET");
  if (mode == "SAME_UPPER" || mode == "SAME_LOWER") Refuse(node, "auto_pad " + mode);
  const Type type = OutType(node, Layout::kLast, integer);
  const Dims out = ShapeOf(OutputOf(node) == node.output() ? node.output() : OutputOf(node));
  for (std::size_t i = 0; i < 2; ++i) {
    if (before[i] < 0 || before[i] + y_dims[i + 2] > full[i + 1]) Refuse(node, "its output padding passes the product");
  }
  const std::string name = OutputOf(node)->name();
  Type whole = type;
  for (std::size_t i = 0; i < 4; ++i) (*whole.shape)[i].value = full[i];
  std::vector<Value*> inputs{Int32s(full, name + "_shape"), w, x};
  const bool bias_inside = integer && StorageOf(x_old->type) != Storage::kMx;
  if (bias_inside) inputs.push_back(Bias(node, b_old, w_dims[1], x, w, true));
  Value* y = Emit("TRANSPOSE_CONV", inputs, name, whole,
                  {{"padding", std::string("VALID")},
                   {"stride_h", strides[0]},
                   {"stride_w", strides[1]},
                   {"fused_activation_function", std::string("NONE")}});
  const bool crop = full[1] != y_dims[2] || full[2] != y_dims[3];
  if (crop) {
    const std::int64_t begin[] = {0, before[0], before[1], 0},
                       end[] = {full[0], before[0] + y_dims[2], before[1] + y_dims[3], full[3]}, ones[] = {1, 1, 1, 1};
    y = Emit("STRIDED_SLICE",
             {y, Int32s(begin, name + "_begin"), Int32s(end, name + "_end"), Int32s(ones, name + "_strides")}, name,
             type);
  }
  if (!bias_inside && b_old != nullptr) {
    Value* b = Bias(node, b_old, w_dims[1], x, w, false);
    if (y->type.quant) b = Quantize(b, *y->type.quant, b->name());
    Value* sum = Emit("ADD", {y, b}, name, type, {{"fused_activation_function", std::string("NONE")}});
    y = sum;
  }
  (void)out;
  Finish(node, Layout::kLast, y, integer);
}

void CircleLowering::FullyConnected(const Node& node, Value* x, const Value* weight, bool transposed, const Value* bias,
                                    bool integer, float alpha, float beta) {
  // Circle's weights are [outputs, inputs].
  Value* raw = GetConstant(weight, Layout::kFirst, !integer);
  std::optional<QuantType> mx;
  if (raw->type.quant && raw->type.quant->kind == QuantType::Kind::kMx) {
    mx = raw->type.quant;
    raw = raw->producer()->input(0);
  }
  const std::vector<std::int64_t> perm = transposed ? std::vector<std::int64_t>{0, 1} : std::vector<std::int64_t>{1, 0};
  TensorRef moved = PermutedData(*raw->data, perm);
  if (alpha != 1.0f) {
    std::vector<float> values = moved.ToFloats();
    for (float& v : values) v *= alpha;
    moved = TensorRef::FromFloats(moved.dims, values);
  }
  const Dims dims = moved.dims;
  std::optional<QuantType> quant = raw->type.quant;
  if (quant) quant = PermutedQuant(*quant, perm);
  Value* w = new_->AddConstant(raw->name(), std::move(moved), MakeType(raw->type.dtype, dims, quant));
  if (mx) w = Quantize(w, PermutedQuant(*mx, perm), weight->name() + "_mx");
  Value* b = Bias(node, bias, dims[0], x, w, integer);
  if (beta != 1.0f && bias != nullptr) {
    std::vector<float> values = b->data->ToFloats();
    for (float& v : values) v *= beta;
    b = Floats({dims[0]}, values, bias->name());
  }
  Value* y = Emit("FULLY_CONNECTED", {x, w, b}, OutputOf(node)->name(), OutType(node, Layout::kFirst, integer),
                  {{"fused_activation_function", std::string(ActivationOf(node))},
                   {"weights_format", std::int64_t{0}},
                   {"keep_num_dims", std::int64_t{ShapeOf(x).size() > 2}}});
  Finish(node, Layout::kFirst, y, integer);
}

void CircleLowering::Gemm(const Node& node) {
  const Value *a = node.input(0), *b = node.input(1), *c = node.input(2);
  if (!b->is_constant() || DimsOf(b).size() != 2) Refuse(node, "its weights are computed");
  const bool transposed = node.IntAttribute("transB", 0) != 0;
  const std::int64_t outputs = DimsOf(b)[transposed ? 0 : 1];
  const float alpha = node.FloatAttribute("alpha", 1), beta = node.FloatAttribute("beta", 1);
  const Value* data[] = {a, b};
  bool integer = Integer(node, "FULLY_CONNECTED", data);
  if (integer && StorageOf(a->type) != Storage::kMx) {
    const Affine& w = b->type.quant->affine;
    if (alpha != 1 || beta != 1 || node.IntAttribute("transA", 0) != 0) {
      KeptFloat(node, "alpha, beta or transA");
      integer = false;
    } else if ((StorageOf(a->type) != Storage::kU8 && HasZeroPoints(b->type)) ||
               (w.axis && *w.axis != (transposed ? 0 : 1)) || (w.axis && StorageOf(a->type) == Storage::kU8)) {
      KeptFloat(node, "its weights have zero points or scales that no kernel takes");
      integer = false;
    }
  }
  Value* x = Get(a, Layout::kFirst, !integer);
  if (node.IntAttribute("transA", 0) != 0) x = Transpose(x, std::vector<std::int64_t>{1, 0}, a->name());
  const bool vector_bias =
      c == nullptr || (c->is_constant() && c->data && c->data->elements() == static_cast<std::uint64_t>(outputs));
  if (!vector_bias) {
    // A bias of another shape: a product without one, then an addition.
    if (integer) KeptFloat(node, "its bias is not one number a channel");
    x = Get(a, Layout::kFirst, true);
    Value* raw = GetConstant(b, Layout::kFirst, true);
    TensorRef moved =
        PermutedData(*raw->data, transposed ? std::vector<std::int64_t>{0, 1} : std::vector<std::int64_t>{1, 0});
    const Dims dims = moved.dims;
    Value* w = new_->AddConstant(raw->name(), std::move(moved), MakeType(DType::kF32, dims));
    Value* zero =
        Floats({outputs}, std::vector<float>(static_cast<std::size_t>(outputs), 0.0f), node.output()->name() + "_zero");
    Value* y =
        Emit("FULLY_CONNECTED", {x, w, zero}, node.output()->name() + "_product", OutType(node, Layout::kFirst, false),
             {{"fused_activation_function", std::string("NONE")},
              {"weights_format", std::int64_t{0}},
              {"keep_num_dims", std::int64_t{0}}});
    if (alpha != 1) y = Binary("MUL", y, Scalar(alpha, "alpha"), node.output()->name());
    Value* bias = Get(c, Layout::kFirst, true);
    if (beta != 1) bias = Binary("MUL", bias, Scalar(beta, "beta"), node.output()->name());
    Finish(node, Layout::kFirst, Binary("ADD", y, bias, OutputOf(node)->name(), ActivationOf(node)), false);
    return;
  }
  FullyConnected(node, x, b, transposed, c, integer, alpha, beta);
}

void CircleLowering::MatMul(const Node& node) {
  const Value *a = node.input(0), *b = node.input(1);
  const Dims da = DimsOf(a), db = DimsOf(b);
  if (b->is_constant() && db.size() == 2 && da.size() >= 2) {
    const Value* data[] = {a, b};
    bool integer = Integer(node, "FULLY_CONNECTED", data);
    if (integer && StorageOf(a->type) != Storage::kMx) {
      const Affine& w = b->type.quant->affine;
      if ((StorageOf(a->type) != Storage::kU8 && HasZeroPoints(b->type)) || (w.axis && *w.axis != 1) ||
          (w.axis && StorageOf(a->type) == Storage::kU8)) {
        KeptFloat(node, "its weights have zero points or scales that no kernel takes");
        integer = false;
      }
    }
    const auto add = bias_add_.find(&node);
    const Value* bias = nullptr;
    if (add != bias_add_.end()) {
      bias = add->second->input(0) == node.output() ? add->second->input(1) : add->second->input(0);
    }
    FullyConnected(node, Get(a, Layout::kFirst, !integer), b, false, bias, integer, 1, 1);
    return;
  }
  if (da.size() < 2 || db.size() < 2) Refuse(node, "an operand is a vector");
  const Value* data[] = {a, b};
  const bool integer = Integer(node, "BATCH_MATMUL", data);
  Value* x = Get(a, Layout::kFirst, !integer);
  Value* y = Get(b, Layout::kFirst, !integer);
  // Consumers want equal ranks.
  const std::size_t rank = std::max(da.size(), db.size());
  const auto raise = [&](Value* v, Dims dims, const std::string& name) {
    while (dims.size() < rank) dims.insert(dims.begin(), 1);
    return Reshape(v, dims, name);
  };
  x = raise(x, da, a->name());
  y = raise(y, db, b->name());
  Value* product = Emit("BATCH_MATMUL", {x, y}, OutputOf(node)->name(), OutType(node, Layout::kFirst, integer),
                        {{"adjoint_lhs", std::int64_t{0}},
                         {"adjoint_rhs", std::int64_t{0}},
                         {"asymmetric_quantize_inputs", std::int64_t{0}}});
  if (ActivationOf(node) != "NONE") product = Unary(ActivationOf(node), product, OutputOf(node)->name());
  Finish(node, Layout::kFirst, product, integer);
}

// -------------------------------------------------------------------------------------------------------- elementwise

Layout CircleLowering::ElementwiseLayout(const Node& node, std::span<const Value* const> operands) const {
  (void)node;
  for (const Value* v : operands) {
    if (!v->is_constant() && Has(v, Layout::kLast) && !Has(v, Layout::kFirst)) return Layout::kLast;
  }
  for (const Value* v : operands) {
    if (!v->is_constant() && Has(v, Layout::kLast)) return Layout::kLast;
  }
  return Layout::kFirst;
}

Value* CircleLowering::ElementwiseOperand(const Value* old, Layout layout, std::size_t rank, bool as_float) {
  const Dims dims = DimsOf(old);
  if (layout == Layout::kFirst || dims.size() == rank) return Get(old, layout, as_float);
  const bool one = std::all_of(dims.begin(), dims.end(), [](std::int64_t d) { return d == 1; });
  if (one) return Get(old, Layout::kFirst, as_float);
  // Aligned to the full rank before the channels move.
  Dims full = dims;
  while (full.size() < rank) full.insert(full.begin(), 1);
  if (old->is_constant()) {
    Value* c = GetConstant(old, Layout::kFirst, as_float);
    if (c->is_constant()) {
      TensorRef data = *c->data;
      data.dims = full;
      std::optional<QuantType> quant = c->type.quant;
      const auto shift = static_cast<std::int64_t>(rank - dims.size());
      if (quant && quant->kind == QuantType::Kind::kAffine && quant->affine.axis) *quant->affine.axis += shift;
      const std::vector<std::int64_t> perm = ToLast(rank);
      data = PermutedData(data, perm);
      if (quant) quant = PermutedQuant(*quant, perm);
      const Dims out = data.dims;
      return new_->AddConstant(old->name(), std::move(data), MakeType(c->type.dtype, out, quant));
    }
    return Transpose(Reshape(c, full, old->name()), ToLast(rank), old->name());
  }
  return Transpose(Reshape(Get(old, Layout::kFirst, as_float), full, old->name()), ToLast(rank), old->name());
}

void CircleLowering::Elementwise(const Node& node) {
  const Value *a = node.input(0), *b = node.input(1);
  const std::string op = node.Is("Add")   ? "ADD"
                         : node.Is("Sub") ? "SUB"
                         : node.Is("Mul") ? "MUL"
                         : node.Is("Div") ? "DIV"
                                          : node.op();
  const Value* operands[] = {a, b};
  bool integer = IsFloat(OutputOf(node)->type.dtype) && Integer(node, op, operands);
  if (integer && StorageOf(a->type) != Storage::kMx && (!PerTensorType(a->type) || !PerTensorType(b->type))) {
    KeptFloat(node, "an operand has a scale for each channel");
    integer = false;
  }
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(OutputOf(node)).size();
  Attributes attributes{{"fused_activation_function", std::string(ActivationOf(node))}};
  if (op == "ADD" || op == "SUB") attributes.emplace_back("pot_scale_int16", std::int64_t{0});
  Value* y = Emit(op, {ElementwiseOperand(a, layout, rank, !integer), ElementwiseOperand(b, layout, rank, !integer)},
                  OutputOf(node)->name(), OutType(node, layout, integer), std::move(attributes));
  Finish(node, layout, y, integer);
}

void CircleLowering::DivNode(const Node& node) {
  const Value *a = node.input(0), *b = node.input(1);
  // Consumers have no right integer DIV. By one constant it is a multiplication, whose factor is one code.
  if (a->type.quant && b->is_constant() && b->data && DimsOf(b).size() <= DimsOf(a).size() &&
      b->data->elements() == 1 && IsFloat(node.output()->type.dtype)) {
    const Value* operands[] = {a};
    if (StorageOf(a->type) != Storage::kMx && Integer(node, "MUL", operands)) {
      Value* divisor = GetConstant(b, Layout::kFirst, true);
      const float r = 1.0f / divisor->data->ToFloats()[0];
      new_->Erase(divisor);
      if (std::isfinite(r) && r != 0) {
        const DType storage = a->type.quant->affine.storage;
        const std::int64_t code = storage == DType::kU8 ? (r > 0 ? 1 : 0) : (r > 0 ? 1 : -1);
        const std::int64_t zero = storage == DType::kU8 ? (r > 0 ? 0 : 1) : 0;
        const Dims one{1};
        Value* factor =
            new_->AddConstant(node.output()->name() + "_reciprocal", TensorRef::FromInts(storage, one, {&code, 1}),
                              MakeType(DType::kF32, one, PerTensor(storage, std::fabs(r), zero)));
        const Layout layout = Prefer(a);
        Value* y = Emit("MUL", {Get(a, layout, false), factor}, OutputOf(node)->name(), OutType(node, layout, true),
                        {{"fused_activation_function", std::string(ActivationOf(node))}});
        Finish(node, layout, y, true);
        return;
      }
    }
  }
  Elementwise(node);
}

void CircleLowering::Variadic(const Node& node) {
  const std::string op = node.Is("Min") ? "MINIMUM" : node.Is("Max") ? "MAXIMUM" : "ADD";
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(OutputOf(node)).size();
  if (OutputOf(node)->type.quant) KeptFloat(node, "no consumer has it in integers");
  Value* y = ElementwiseOperand(operands[0], layout, rank, true);
  for (std::size_t i = 1; i < operands.size(); ++i) {
    y = Binary(op, y, ElementwiseOperand(operands[i], layout, rank, true), OutputOf(node)->name());
    y->type.dtype = OutType(node, layout, false).dtype;
  }
  if (node.Is("Mean"))
    y = Binary("MUL", y, Scalar(1.0f / static_cast<float>(operands.size()), "mean"), OutputOf(node)->name());
  Finish(node, layout, y, false);
}

void CircleLowering::PowNode(const Node& node) {
  const Value* a = node.input(0);
  const TensorRef* exponent = ConstantData(node, 1);
  const Layout layout = Prefer(a);
  if (OutputOf(node)->type.quant || a->type.quant) KeptFloat(node, "no consumer has it in integers");
  const std::string name = OutputOf(node)->name();
  if (exponent != nullptr && exponent->elements() == 1 && DimsOf(a).size() >= exponent->dims.size()) {
    const float e = exponent->ToFloats()[0];
    Value* x = Get(a, layout, true);
    if (e == 2.0f) return Finish(node, layout, Binary("MUL", x, x, name), false);
    if (e == 1.0f) return Finish(node, layout, x, false);
    if (e == 0.5f) return Finish(node, layout, Unary("SQRT", x, name), false);
    if (e == 3.0f) return Finish(node, layout, Binary("MUL", Binary("MUL", x, x, name), x, name), false);
    return Finish(node, layout, Binary("POW", x, Scalar(e, name + "_exponent"), name), false);
  }
  const Value* operands[] = {a, node.input(1)};
  const Layout both = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(OutputOf(node)).size();
  Finish(
      node, both,
      Binary("POW", ElementwiseOperand(a, both, rank, true), ElementwiseOperand(node.input(1), both, rank, true), name),
      false);
}

void CircleLowering::Compare(const Node& node) {
  static const std::unordered_map<std::string_view, std::string_view> kNames{{"Equal", "EQUAL"},
                                                                             {"Less", "LESS"},
                                                                             {"LessOrEqual", "LESS_EQUAL"},
                                                                             {"Greater", "GREATER"},
                                                                             {"GreaterOrEqual", "GREATER_EQUAL"},
                                                                             {"And", "LOGICAL_AND"},
                                                                             {"Or", "LOGICAL_OR"},
                                                                             {"Not", "LOGICAL_NOT"}};
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(node.output()).size();
  std::vector<Value*> inputs;
  for (const Value* v : operands) inputs.push_back(ElementwiseOperand(v, layout, rank, true));
  Finish(node, layout, Emit(kNames.at(node.op()), inputs, node.output()->name(), OutType(node, layout, false)), false);
}

void CircleLowering::Where(const Node& node) {
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(node.output()).size();
  if (node.output()->type.quant) KeptFloat(node, "no consumer has it in integers");
  std::vector<Value*> inputs;
  for (const Value* v : operands) inputs.push_back(ElementwiseOperand(v, layout, rank, true));
  Finish(node, layout, Emit("SELECT_V2", inputs, node.output()->name(), OutType(node, layout, false)), false);
}

// -------------------------------------------------------------------------------------------------------- activations

void CircleLowering::Activation(const Node& node) {
  static const std::unordered_map<std::string_view, std::string_view> kNames{
      {"Relu", "RELU"},   {"Sigmoid", "LOGISTIC"}, {"Tanh", "TANH"}, {"Exp", "EXP"},     {"Log", "LOG"},
      {"Sqrt", "SQRT"},   {"Abs", "ABS"},          {"Neg", "NEG"},   {"Floor", "FLOOR"}, {"Ceil", "CEIL"},
      {"Round", "ROUND"}, {"Sin", "SIN"},          {"Cos", "COS"},   {"Sign", "SIGN"},   {"Elu", "ELU"}};
  const Value* x = node.input(0);
  const std::string op(kNames.at(node.op()));
  if (node.Is("Elu") && node.FloatAttribute("alpha", 1) != 1) Refuse(node, "alpha is not 1");
  const Value* data[] = {x};
  bool integer = IsFloat(node.output()->type.dtype) && Integer(node, op, data);
  if (integer && StorageOf(x->type) != Storage::kMx && !PerTensorType(x->type)) {
    KeptFloat(node, "its input has a scale for each channel");
    integer = false;
  }
  const Layout layout = Prefer(x);
  Type type = OutType(node, layout, integer);
  if (integer && type.quant->kind == QuantType::Kind::kAffine) {
    // The kernels of these have one fixed output scale; another one is a QUANTIZE behind it.
    const DType s = type.quant->affine.storage;
    if (op == "LOGISTIC") {
      type.quant =
          s == DType::kS16 ? PerTensor(s, 1.0f / 32768, 0) : PerTensor(s, 1.0f / 256, s == DType::kU8 ? 0 : -128);
    } else if (op == "TANH") {
      type.quant = PerTensor(s, 1.0f / 128, s == DType::kU8 ? 128 : 0);
    }
  }
  Finish(node, layout, Emit(op, {Get(x, layout, !integer)}, node.output()->name(), type), integer);
}

void CircleLowering::Clip(const Node& node) {
  const Value* x = node.input(0);
  const auto bound = [&](std::size_t i, const char* attribute, float fallback) {
    if (node.input(i) != nullptr) {
      if (!node.input(i)->is_constant()) Refuse(node, "a bound is computed");
      Value* c = GetConstant(node.input(i), Layout::kFirst, true);
      const float v = c->data->ToFloats()[0];
      new_->Erase(c);
      return v;
    }
    return node.FloatAttribute(attribute, fallback);
  };
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float low = bound(1, "min", -kInf), high = bound(2, "max", kInf);
  const Layout layout = Prefer(x);
  const std::string name = OutputOf(node)->name();
  if (low == 0 && (high == 6 || high >= std::numeric_limits<float>::max())) {
    const char* op = high == 6 ? "RELU6" : "RELU";
    const Value* data[] = {x};
    const bool integer = IsFloat(node.output()->type.dtype) && Integer(node, op, data);
    return Finish(node, layout, Emit(op, {Get(x, layout, !integer)}, name, OutType(node, layout, integer)), integer);
  }
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no consumer clips to these bounds in integers");
  Value* y = Get(x, layout, true);
  const DType dtype = y->type.dtype;
  const auto constant = [&](float v, const char* what) {
    if (dtype == DType::kF32) return Scalar(v, name + what);
    const auto n = static_cast<std::int64_t>(v);
    return new_->AddConstant(name + what, TensorRef::FromInts(dtype, {}, {&n, 1}));
  };
  if (low > -std::numeric_limits<float>::max()) {
    y = Binary("MAXIMUM", y, constant(low, "_min"), name);
    y->type.dtype = dtype;
  }
  if (high < std::numeric_limits<float>::max()) {
    y = Binary("MINIMUM", y, constant(high, "_max"), name);
    y->type.dtype = dtype;
  }
  Finish(node, layout, y, false);
}

void CircleLowering::HardSigmoid(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  const std::string name = OutputOf(node)->name();
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  Value* y = Binary("MUL", Get(x, layout, true), Scalar(node.FloatAttribute("alpha", 0.2f), name + "_alpha"), name);
  y = Binary("ADD", y, Scalar(node.FloatAttribute("beta", 0.5f), name + "_beta"), name, "RELU");
  Finish(node, layout, Binary("MINIMUM", y, Scalar(1, name + "_one"), name), false);
}

void CircleLowering::HardSwish(const Node& node) {
  const Value* x_old = node.input(0);
  const Layout layout = Prefer(x_old);
  const std::string name = OutputOf(node)->name();
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  Value* x = Get(x_old, layout, true);
  Value* y = Binary("ADD", x, Scalar(3, name + "_three"), name, "RELU6");
  y = Binary("MUL", x, y, name);
  Finish(node, layout, Binary("DIV", y, Scalar(6, name + "_six"), name), false);
}

void CircleLowering::LeakyRelu(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  const Value* data[] = {x};
  const bool integer = Integer(node, "LEAKY_RELU", data);
  Finish(node, layout,
         Emit("LEAKY_RELU", {Get(x, layout, !integer)}, OutputOf(node)->name(), OutType(node, layout, integer),
              {{"alpha", node.FloatAttribute("alpha", 0.01f)}}),
         integer);
}

void CircleLowering::PRelu(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no consumer has it in integers");
  Finish(node, layout,
         Emit("PRELU", {Get(x, layout, true), ElementwiseOperand(node.input(1), layout, DimsOf(x).size(), true)},
              OutputOf(node)->name(), OutType(node, layout, false)),
         false);
}

void CircleLowering::Gelu(const Node& node) {
  const auto match = gelu_.find(&node);
  const Value* x = match != gelu_.end() ? match->second.x : node.input(0);
  const Layout layout = Prefer(x);
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no two consumers agree on it in integers");
  const bool approximate = match == gelu_.end() && (node.StringAttribute("approximate", "none") == "tanh" ||
                                                    node.Is("FastGelu", "com.microsoft"));
  Finish(node, layout,
         Emit("GELU", {Get(x, layout, true)}, OutputOf(node)->name(), OutType(node, layout, false),
              {{"approximate", std::int64_t{approximate}}}),
         false);
}

void CircleLowering::Silu(const Node& node) {
  const Value* x_old = node.input(0);
  const Layout layout = Prefer(x_old);
  const float alpha = node.FloatAttribute("alpha", node.Is("QuickGelu", "com.microsoft") ? 1.702f : 1.0f);
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  const std::string name = OutputOf(node)->name();
  Value* x = Get(x_old, layout, true);
  Value* s = alpha == 1 ? x : Binary("MUL", x, Scalar(alpha, name + "_alpha"), name);
  Finish(node, layout, Binary("MUL", x, Unary("LOGISTIC", s, name), name), false);
}

// Circle has no ERF. Abramowitz and Stegun 7.1.26, error at most 1.5e-7:
//   erf(x) = sign(x) (1 - (a1 t + .. + a5 t^5) e^(-x^2)),  t = 1 / (1 + p |x|).
void CircleLowering::Erf(const Node& node) {
  const Value* x_old = node.input(0);
  const Layout layout = Prefer(x_old);
  const std::string name = OutputOf(node)->name();
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  Value* x = Get(x_old, layout, true);
  const auto c = [&](float v) { return Scalar(v, name + "_c"); };
  Value* a = Unary("ABS", x, name);
  Value* t = Binary("DIV", c(1), Binary("ADD", Binary("MUL", a, c(0.3275911f), name), c(1), name), name);
  Value* p = c(1.061405429f);
  for (const float k : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    p = Binary("ADD", Binary("MUL", p, t, name), c(k), name);
  }
  p = Binary("MUL", p, t, name);
  Value* e = Unary("EXP", Binary("MUL", Binary("MUL", x, x, name), c(-1), name), name);
  Value* magnitude = Binary("SUB", c(1), Binary("MUL", p, e, name), name);
  Value* sign = Binary("DIV", x, Binary("ADD", a, c(1e-30f), name), name);
  Finish(node, layout, Binary("MUL", sign, magnitude, name), false);
}

void CircleLowering::Reciprocal(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no consumer divides right in integers");
  const std::string name = OutputOf(node)->name();
  Finish(node, layout, Binary("DIV", Scalar(1, name + "_one"), Get(x, layout, true), name), false);
}

void CircleLowering::Softmax(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  const bool flat = model_.OpsetVersion() < 13;  // the dimensions from axis on are one
  std::int64_t axis = Axis(node, node.IntAttribute("axis", flat ? 1 : -1), rank);
  if (flat && axis != static_cast<std::int64_t>(rank) - 1) {
    const bool one = std::all_of(dims.begin() + axis + 1, dims.end(), [](std::int64_t d) { return d == 1; });
    if (!one) Refuse(node, "it spans several axes");
  }
  const Value* data[] = {x_old};
  const bool log = node.Is("LogSoftmax");
  const std::string op = log ? "LOG_SOFTMAX" : "SOFTMAX";
  const bool integer = Integer(node, op, data);
  Layout layout = Prefer(x_old);
  const std::int64_t last = static_cast<std::int64_t>(rank) - 1;
  if (rank >= 3) {
    if (axis == 1)
      layout = Layout::kLast;
    else if (axis == last)
      layout = Layout::kFirst;
  }
  Value* x = Get(x_old, layout, !integer);
  const std::int64_t at = MapAxis(axis, layout, rank);
  std::vector<std::int64_t> perm(rank);
  std::iota(perm.begin(), perm.end(), 0);
  if (at != last) std::swap(perm[static_cast<std::size_t>(at)], perm[static_cast<std::size_t>(last)]);
  x = Transpose(x, perm, x_old->name());
  Type type = OutType(node, layout, integer);
  type.shape = x->type.shape;
  if (integer && type.quant->kind == QuantType::Kind::kAffine) {
    const DType s = type.quant->affine.storage;
    type.quant =
        s == DType::kS16 ? PerTensor(s, 1.0f / 32768, 0) : PerTensor(s, 1.0f / 256, s == DType::kU8 ? 0 : -128);
  }
  Attributes attributes;
  if (!log) attributes.emplace_back("beta", 1.0f);
  Value* y = Emit(op, {x}, OutputOf(node)->name(), type, std::move(attributes));
  Finish(node, layout, Transpose(y, perm, OutputOf(node)->name()), integer);
}

// ------------------------------------------------------------------------------------------------ pools and reductions

void CircleLowering::Pool(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old), out = DimsOf(node.output());
  if (dims.size() != 4) Refuse(node, "only two spatial dimensions are lowered");
  if (node.output(1) != nullptr && !node.output(1)->dead()) Refuse(node, "its indices are used");
  const bool average = node.Is("AveragePool");
  const std::vector<std::int64_t> kernel = Ints(node, "kernel_shape", 2, 1), strides = Ints(node, "strides", 2, 1),
                                  dilations = Ints(node, "dilations", 2, 1);
  if (dilations[0] != 1 || dilations[1] != 1) Refuse(node, "it is dilated");
  std::vector<Pads> pads = PadsOf(node, {dims[2], dims[3]}, kernel, strides, dilations);
  bool same = true, valid = true;
  for (std::size_t i = 0; i < 2; ++i) {
    // What ceil_mode reads beyond the end.
    const std::int64_t need =
        (out[i + 2] - 1) * strides[i] + kernel[i] - (dims[i + 2] + pads[i].before + pads[i].after);
    if (need > 0) pads[i].after += need;
    same = same && IsSame(dims[i + 2], kernel[i], strides[i], 1, pads[i]);
    valid = valid && pads[i].before == 0 && pads[i].after == 0;
  }
  const std::string op = average ? "AVERAGE_POOL_2D" : "MAX_POOL_2D";
  const Value* data[] = {x_old};
  const bool integer = Integer(node, op, data);
  Value* x = Get(x_old, Layout::kLast, !integer);
  const std::string name = OutputOf(node)->name();
  const bool counts = average && node.IntAttribute("count_include_pad", 0) != 0;
  if (average && !valid && !(same && !counts) && !counts)
    Refuse(node, "an average that leaves out a padding which is not SAME");
  const bool pad = !valid && (!same || counts);
  if (pad) {
    Dims padded = ShapeOf(x);
    for (std::size_t i = 0; i < 2; ++i) padded[i + 1] += pads[i].before + pads[i].after;
    const std::int64_t table[] = {0, 0, pads[0].before, pads[0].after, pads[1].before, pads[1].after, 0, 0};
    std::vector<Value*> inputs{x, new_->AddConstant(name + "_pads", TensorRef::FromInts(DType::kS32, {4, 2}, table))};
    if (!average) {
      if (integer && x->type.quant->kind == QuantType::Kind::kAffine) {
        const std::int64_t lowest = IntegerMin(x->type.quant->affine.storage);
        inputs.push_back(new_->AddConstant(name + "_lowest",
                                           TensorRef::FromInts(x->type.quant->affine.storage, {1}, {&lowest, 1}),
                                           MakeType(DType::kF32, {1}, x->type.quant)));
      } else {
        const float lowest = std::numeric_limits<float>::lowest();
        inputs.push_back(Floats({1}, {&lowest, 1}, name + "_lowest"));
      }
    }
    x = Emit(average ? "PAD" : "PADV2", inputs, name + "_padded", MakeType(x->type.dtype, padded, x->type.quant));
  }
  Type type = OutType(node, Layout::kLast, integer);
  type.quant = x->type.quant;  // the kernels hand on their input's parameters
  Value* y = Emit(op, {x}, name, type,
                  {{"padding", std::string(valid || pad ? "VALID" : "SAME")},
                   {"stride_h", strides[0]},
                   {"stride_w", strides[1]},
                   {"filter_height", kernel[0]},
                   {"filter_width", kernel[1]},
                   {"fused_activation_function", std::string("NONE")}});
  Finish(node, Layout::kLast, y, integer);
}

void CircleLowering::GlobalPool(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  const bool average = node.Is("GlobalAveragePool");
  const std::string op = average ? "MEAN" : "REDUCE_MAX";
  const Value* data[] = {x_old};
  const bool integer = Integer(node, op, data);
  const Layout layout = Prefer(x_old);
  std::vector<std::int64_t> axes;
  for (std::size_t i = 2; i < rank; ++i) axes.push_back(MapAxis(static_cast<std::int64_t>(i), layout, rank));
  Value* x = Get(x_old, layout, !integer);
  Value* y = Mean(x, axes, true, OutputOf(node)->name(), op);
  if (integer) y->type = OutType(node, layout, true);
  if (integer && !average) y->type.quant = x->type.quant;
  Finish(node, layout, y, integer);
}

void CircleLowering::Reduce(const Node& node) {
  static const std::unordered_map<std::string_view, std::string_view> kNames{{"ReduceMean", "MEAN"},
                                                                             {"ReduceSum", "SUM"},
                                                                             {"ReduceMax", "REDUCE_MAX"},
                                                                             {"ReduceMin", "REDUCE_MIN"},
                                                                             {"ReduceProd", "REDUCE_PROD"}};
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  std::vector<std::int64_t> axes;
  if (node.input(1) != nullptr)
    axes = RequireInts(node, 1, "the list of axes");
  else if (const auto* list = node.IntsAttribute("axes"))
    axes = *list;
  const Layout layout = Prefer(x_old);
  if (axes.empty()) {
    if (node.IntAttribute("noop_with_empty_axes", 0) != 0) return Identity(node);
    for (std::size_t i = 0; i < rank; ++i) axes.push_back(static_cast<std::int64_t>(i));
  }
  const bool keep = node.IntAttribute("keepdims", 1) != 0;
  // Without the reduced axes the layout is that of the file.
  const Layout use = keep ? layout : Layout::kFirst;
  for (std::int64_t& a : axes) a = MapAxis(Axis(node, a, rank), use, rank);
  std::sort(axes.begin(), axes.end());
  const Value* data[] = {x_old};
  const std::string op(kNames.at(node.op()));
  const bool integer = IsFloat(node.output()->type.dtype) && Integer(node, op, data);
  Value* x = Get(x_old, use, !integer);
  Value* y = Mean(x, axes, keep, OutputOf(node)->name(), op);
  if (integer) y->type.quant = op == "MEAN" ? OutType(node, use, true).quant : x->type.quant;
  y->type.dtype = OutType(node, use, integer).dtype;
  Finish(node, use, y, integer);
}

// --------------------------------------------------------------------------------------------------------- data moving

// `result` holds x's elements in another order: x's parameters are its own.
void CircleLowering::MoveLike(const Node& node, const Value* x, Layout layout, bool integer, Value* result) {
  (void)x;
  Finish(node, layout, result, integer);
}

void CircleLowering::ReshapeNode(const Node& node) {
  const Value *x_old = node.input(0), *y_old = node.output();
  const Dims from = DimsOf(x_old), to = DimsOf(y_old);
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (x_old->type.quant && !codes) KeptFloat(node, "its input has a scale for each channel, or blocks");
  const bool as_float = x_old->type.quant && !codes;
  // Channels stay in front of everything they were in front of: the channels-last forms are reshapes of each other.
  const bool keeps_channels = from.size() >= 3 && to.size() >= 3 && from[0] == to[0] && from[1] == to[1];
  if (keeps_channels && Has(x_old, Layout::kLast) && !Has(x_old, Layout::kFirst)) {
    Value* y = Reshape(Get(x_old, Layout::kLast, as_float), Permuted(to, ToLast(to.size())), y_old->name());
    return MoveLike(node, x_old, Layout::kLast, !as_float && x_old->type.quant, y);
  }
  Value* y = Reshape(Get(x_old, Layout::kFirst, as_float), to, y_old->name());
  MoveLike(node, x_old, Layout::kFirst, !as_float && x_old->type.quant, y);
}

void CircleLowering::TransposeNode(const Node& node) {
  const Value *x_old = node.input(0), *y_old = node.output();
  const std::size_t rank = DimsOf(x_old).size();
  std::vector<std::int64_t> perm(rank);
  for (std::size_t i = 0; i < rank; ++i) perm[i] = static_cast<std::int64_t>(rank - 1 - i);
  if (const auto* list = node.IntsAttribute("perm")) perm = *list;
  if (perm.size() != rank) Refuse(node, "its permutation does not fit its input");
  const bool integer = x_old->type.quant.has_value();
  // The four ways between the two layouts on either side; the first that moves nothing wins.
  std::optional<std::pair<Layout, std::vector<std::int64_t>>> best;
  for (const Layout from : {Layout::kFirst, Layout::kLast}) {
    if (from == Layout::kLast && (rank < 3 || !Has(x_old, Layout::kLast))) continue;
    if (from == Layout::kFirst && !Has(x_old, Layout::kFirst) && !x_old->is_constant()) continue;
    const std::vector<std::int64_t> source = from == Layout::kLast ? ToLast(rank) : std::vector<std::int64_t>{};
    for (const Layout to : {Layout::kFirst, Layout::kLast}) {
      if (to == Layout::kLast && rank < 3) continue;
      std::vector<std::int64_t> direct = to == Layout::kLast ? Permuted(perm, ToLast(rank)) : perm;
      if (from == Layout::kLast) {
        for (std::int64_t& p : direct) p = std::find(source.begin(), source.end(), p) - source.begin();
      }
      const Dims have = ShapeOf(Get(x_old, from, false));
      std::int64_t last = -1;
      bool trivial = true;
      for (const std::int64_t p : direct) {
        if (have[static_cast<std::size_t>(p)] == 1) continue;
        trivial = trivial && p > last;
        last = p;
      }
      if (trivial) {
        Value* y = Transpose(Get(x_old, from, false), direct, y_old->name());
        return MoveLike(node, x_old, to, integer, y);
      }
      if (to == Layout::kFirst && !best) best = std::make_pair(from, direct);
    }
  }
  if (!best) best = std::make_pair(Layout::kFirst, perm);
  MoveLike(node, x_old, Layout::kFirst, integer,
           Transpose(Get(x_old, best->first, false), best->second, y_old->name()));
}

void CircleLowering::Identity(const Node& node) {
  const Value* x = node.input(0);
  for (const Layout layout : {Layout::kFirst, Layout::kLast}) {
    if (!x->is_constant() && !Has(x, layout)) continue;
    Value* v = Get(x, layout, false);
    Finish(node, layout, v, x->type.quant.has_value());
    return;
  }
}

void CircleLowering::Concat(const Node& node) {
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  const std::size_t rank = DimsOf(node.output()).size();
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  const bool integer = IsFloat(node.output()->type.dtype) && Integer(node, "CONCATENATION", operands);
  const Layout layout = rank >= 3 ? ElementwiseLayout(node, operands) : Layout::kFirst;
  const Type type = OutType(node, layout, integer);
  std::vector<Value*> inputs;
  for (const Value* v : operands) {
    Value* x = Get(v, layout, !integer);
    // Consumers take equal parameters for granted.
    if (integer && !SameQuant(x->type, type)) x = Quantize(x, *type.quant, v->name());
    inputs.push_back(x);
  }
  if (inputs.size() == 1) return Finish(node, layout, inputs[0], integer);
  Value* y = Emit("CONCATENATION", inputs, node.output()->name(), type,
                  {{"axis", MapAxis(axis, layout, rank)}, {"fused_activation_function", std::string("NONE")}});
  Finish(node, layout, y, integer);
}

void CircleLowering::Split(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, !codes);
  const std::int64_t at = MapAxis(axis, layout, rank);
  std::int64_t begin = 0;
  for (const Value* y : node.outputs()) {
    if (y == nullptr) Refuse(node, "an output is absent");
    const Dims out = DimsOf(y);
    const std::int64_t length = out[static_cast<std::size_t>(axis)];
    Dims from(rank, 0), to = ShapeOf(x), ones(rank, 1), shape = ShapeOf(x);
    from[static_cast<std::size_t>(at)] = begin;
    to[static_cast<std::size_t>(at)] = begin + length;
    shape[static_cast<std::size_t>(at)] = length;
    begin += length;
    Value* part = Emit(
        "STRIDED_SLICE",
        {x, Int32s(from, y->name() + "_begin"), Int32s(to, y->name() + "_end"), Int32s(ones, y->name() + "_strides")},
        y->name(), MakeType(x->type.dtype, shape, x->type.quant));
    if (y->type.quant) {
      Type wanted = part->type;
      wanted.quant = y->type.quant;
      if (!SameQuant(part->type, wanted)) part = Quantize(part, *y->type.quant, y->name());
    } else if (part->type.quant) {
      Type type = part->type;
      type.quant.reset();
      part = Emit("DEQUANTIZE", {part}, y->name(), type);
    }
    Set(y, layout, false, part);
    codes ? ++report_.integer_operators : ++report_.float_operators;
  }
}

void CircleLowering::Slice(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  std::vector<std::int64_t> starts, ends, axes, steps;
  if (node.input(1) != nullptr) {
    starts = RequireInts(node, 1, "starts");
    ends = RequireInts(node, 2, "ends");
    if (node.input(3) != nullptr) axes = RequireInts(node, 3, "axes");
    if (node.input(4) != nullptr) steps = RequireInts(node, 4, "steps");
  } else {
    if (const auto* l = node.IntsAttribute("starts")) starts = *l;
    if (const auto* l = node.IntsAttribute("ends")) ends = *l;
    if (const auto* l = node.IntsAttribute("axes")) axes = *l;
  }
  if (axes.empty()) {
    for (std::size_t i = 0; i < starts.size(); ++i) axes.push_back(static_cast<std::int64_t>(i));
  }
  steps.resize(starts.size(), 1);
  if (ends.size() != starts.size() || axes.size() != starts.size()) Refuse(node, "its lists differ in length");
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, !codes);
  Dims from(rank, 0), to = ShapeOf(x), step(rank, 1), shape = ShapeOf(x);
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const std::int64_t axis = Axis(node, axes[i], rank), n = dims[static_cast<std::size_t>(axis)];
    if (steps[i] <= 0) Refuse(node, "it steps backwards");
    const auto clamp = [n](std::int64_t v) { return std::clamp<std::int64_t>(v < 0 ? v + n : v, 0, n); };
    const auto at = static_cast<std::size_t>(MapAxis(axis, layout, rank));
    from[at] = clamp(starts[i]);
    to[at] = std::max(clamp(ends[i]), from[at]);
    step[at] = steps[i];
    shape[at] = (to[at] - from[at] + steps[i] - 1) / steps[i];
  }
  const std::string name = node.output()->name();
  Value* y = Emit("STRIDED_SLICE",
                  {x, Int32s(from, name + "_begin"), Int32s(to, name + "_end"), Int32s(step, name + "_strides")}, name,
                  MakeType(x->type.dtype, shape, x->type.quant));
  MoveLike(node, x_old, layout, codes, y);
}

void CircleLowering::Gather(const Node& node) {
  const Value *x_old = node.input(0), *i_old = node.input(1);
  const std::size_t rank = DimsOf(x_old).size();
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (x_old->type.quant && !codes) KeptFloat(node, "its table has a scale for each row");
  Value* x = Get(x_old, Layout::kFirst, !codes);
  Value* indices = nullptr;
  if (const TensorRef* data = ConstantData(node, 1)) {
    std::vector<std::int64_t> list = data->ToInts();
    for (std::int64_t& i : list) {
      if (i < 0) i += DimsOf(x_old)[static_cast<std::size_t>(axis)];
    }
    indices = new_->AddConstant(i_old->name(), TensorRef::FromInts(DType::kS32, data->dims, list));
  } else {
    indices = Get(i_old, Layout::kFirst, true);
  }
  Type type = OutType(node, Layout::kFirst, false);
  type.quant = x->type.quant;
  type.dtype = x->type.dtype;
  Value* y =
      Emit("GATHER", {x, indices}, node.output()->name(), type, {{"axis", axis}, {"batch_dims", std::int64_t{0}}});
  MoveLike(node, x_old, Layout::kFirst, codes, y);
}

void CircleLowering::Expand(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims to = DimsOf(node.output());
  if (x_old->type.quant) KeptFloat(node, "it is lowered in float");
  Dims from = DimsOf(x_old);
  while (from.size() < to.size()) from.insert(from.begin(), 1);
  Value* x = Reshape(Get(x_old, Layout::kFirst, true), from, node.output()->name());
  // Every consumer has TILE; BROADCAST_TO has no version 1 in LiteRT.
  Dims repeats;
  for (std::size_t i = 0; i < to.size(); ++i) repeats.push_back(from[i] == to[i] ? 1 : to[i]);
  if (from != to)
    x = Emit("TILE", {x, Int32s(repeats, node.output()->name() + "_repeats")}, node.output()->name(),
             MakeType(x->type.dtype, to));
  Finish(node, Layout::kFirst, x, false);
}

void CircleLowering::Tile(const Node& node) {
  const Value* x_old = node.input(0);
  const std::vector<std::int64_t> repeats = RequireInts(node, 1, "repeats");
  if (x_old->type.quant) KeptFloat(node, "it is lowered in float");
  Value* x = Get(x_old, Layout::kFirst, true);
  Value* y = Emit("TILE", {x, Int32s(repeats, node.output()->name() + "_repeats")}, node.output()->name(),
                  MakeType(x->type.dtype, DimsOf(node.output())));
  Finish(node, Layout::kFirst, y, false);
}

void CircleLowering::Pad(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  if (node.StringAttribute("mode", "constant") != "constant") Refuse(node, "mode " + node.StringAttribute("mode", ""));
  std::vector<std::int64_t> pads, axes;
  if (node.input(1) != nullptr)
    pads = RequireInts(node, 1, "the padding");
  else if (const auto* list = node.IntsAttribute("pads"))
    pads = *list;
  if (node.input(3) != nullptr) axes = RequireInts(node, 3, "axes");
  if (axes.empty()) {
    for (std::size_t i = 0; i < rank; ++i) axes.push_back(static_cast<std::int64_t>(i));
  }
  if (pads.size() != 2 * axes.size()) Refuse(node, "its padding does not fit its axes");
  float value = node.FloatAttribute("value", 0);
  if (node.input(2) != nullptr) {
    if (!node.input(2)->is_constant()) Refuse(node, "the value it pads with is computed");
    Value* c = GetConstant(node.input(2), Layout::kFirst, true);
    value = IsFloat(c->type.dtype) ? c->data->ToFloats()[0] : static_cast<float>(c->data->ToInts()[0]);
    new_->Erase(c);
  }
  const Layout layout = Prefer(x_old);
  bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (codes && value != 0) {
    KeptFloat(node, "it pads with another number than zero");
    codes = false;
  }
  Value* x = Get(x_old, layout, !codes);
  std::vector<std::int64_t> table(2 * rank, 0);
  Dims shape = ShapeOf(x);
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const auto at = static_cast<std::size_t>(MapAxis(Axis(node, axes[i], rank), layout, rank));
    if (pads[i] < 0 || pads[i + axes.size()] < 0) Refuse(node, "negative padding");
    table[2 * at] = pads[i];
    table[2 * at + 1] = pads[i + axes.size()];
    shape[at] += pads[i] + pads[i + axes.size()];
  }
  const std::string name = node.output()->name();
  Value* p =
      new_->AddConstant(name + "_pads", TensorRef::FromInts(DType::kS32, {static_cast<std::int64_t>(rank), 2}, table));
  const Type type = MakeType(x->type.dtype, shape, x->type.quant);
  Value* y = value == 0 ? Emit("PAD", {x, p}, name, type)
                        : Emit("PADV2", {x, p, Floats({1}, {&value, 1}, name + "_value")}, name, type);
  MoveLike(node, x_old, layout, codes, y);
}

void CircleLowering::Resize(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims in = DimsOf(x_old), out = DimsOf(node.output());
  if (in.size() != 4 || in[0] != out[0] || in[1] != out[1])
    Refuse(node, "it resizes other dimensions than two spatial ones");
  const std::string mode = node.StringAttribute("mode", "nearest");
  std::string how =
      node.StringAttribute("coordinate_transformation_mode", node.Is("Upsample") ? "asymmetric" : "half_pixel");
  if (node.IntAttribute("antialias", 0) != 0) Refuse(node, "antialias");
  const bool whole = out[2] % in[2] == 0 && out[3] % in[3] == 0;
  std::int64_t half = 0, align = 0;
  if (mode == "nearest") {
    const std::string round =
        node.StringAttribute("nearest_mode", node.Is("Upsample") ? "floor" : "round_prefer_floor");
    // By whole factors these all repeat each element.
    const bool repeats =
        whole && ((how == "asymmetric" && round == "floor") || how == "half_pixel" || how == "pytorch_half_pixel");
    if (!repeats && !(how == "asymmetric" && round == "floor")) Refuse(node, "nearest with " + how + ", " + round);
  } else if (mode == "linear") {
    if (how == "pytorch_half_pixel" && out[2] > 1 && out[3] > 1) how = "half_pixel";
    if (how == "half_pixel")
      half = 1;
    else if (how == "align_corners")
      align = 1;
    else if (how != "asymmetric")
      Refuse(node, "linear with " + how);
  } else {
    Refuse(node, "mode " + mode);
  }
  const std::string op = mode == "nearest" ? "RESIZE_NEAREST_NEIGHBOR" : "RESIZE_BILINEAR";
  const Value* data[] = {x_old};
  const bool integer = Integer(node, op, data);
  Value* x = Get(x_old, Layout::kLast, !integer);
  const std::int64_t size[] = {out[2], out[3]};
  Type type = OutType(node, Layout::kLast, integer);
  type.quant = x->type.quant;
  Value* y = Emit(op, {x, Int32s(size, node.output()->name() + "_size")}, node.output()->name(), type,
                  {{"align_corners", align}, {"half_pixel_centers", half}});
  Finish(node, Layout::kLast, y, integer);
}

void CircleLowering::Cast(const Node& node) {
  const Value* x_old = node.input(0);
  const auto to = static_cast<DType>(node.IntAttribute("to", 1));
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, true);
  DType target = IsFloat(to) && to != DType::kF64 ? DType::kF32 : to;
  if (x->type.dtype == target) return Finish(node, layout, x, false);
  const Dims dims = ShapeOf(x);
  const auto name = [](DType dtype) -> std::string {
    switch (dtype) {
      case DType::kF32:
        return "FLOAT32";
      case DType::kS32:
        return "INT32";
      case DType::kS64:
        return "INT64";
      case DType::kBool:
        return "BOOL";
      case DType::kU8:
        return "UINT8";
      case DType::kS8:
        return "INT8";
      case DType::kS16:
        return "INT16";
      default:
        return "";
    }
  };
  if (name(target).empty() || name(x->type.dtype).empty()) Refuse(node, "a type that Circle cannot cast");
  Value* y = Emit("CAST", {x}, node.output()->name(), MakeType(target, dims),
                  {{"in_data_type", name(x->type.dtype)}, {"out_data_type", name(target)}});
  Finish(node, layout, y, false);
}

// MEAN SUB MUL MEAN ADD RSQRT MUL MUL ADD.
void CircleLowering::LayerNorm(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  std::vector<std::int64_t> axes;
  for (std::int64_t a = Axis(node, node.IntAttribute("axis", -1), rank); a < static_cast<std::int64_t>(rank); ++a)
    axes.push_back(a);
  for (std::size_t i = 1; i < 3; ++i) {
    if (node.output(i) != nullptr && !node.output(i)->dead()) Refuse(node, "its statistics are used");
  }
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  const std::string name = OutputOf(node)->name();
  Value* x = Get(x_old, Layout::kFirst, true);
  Value* centered = Binary("SUB", x, Mean(x, axes, true, name), name);
  Value* variance = Mean(Binary("MUL", centered, centered, name), axes, true, name);
  Value* r = Unary(
      "RSQRT", Binary("ADD", variance, Scalar(node.FloatAttribute("epsilon", 1e-5f), name + "_epsilon"), name), name);
  Value* y = Binary("MUL", centered, r, name);
  if (node.input(1) != nullptr) y = Binary("MUL", y, Get(node.input(1), Layout::kFirst, true), name);
  if (node.input(2) != nullptr) y = Binary("ADD", y, Get(node.input(2), Layout::kFirst, true), name);
  Finish(node, Layout::kFirst, y, false);
}

void CircleLowering::InstanceNorm(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  if (rank < 3) Refuse(node, "its input has no spatial dimensions");
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  std::vector<std::int64_t> axes;
  for (std::size_t i = 1; i + 1 < rank; ++i) axes.push_back(static_cast<std::int64_t>(i));
  const std::string name = OutputOf(node)->name();
  Value* x = Get(x_old, Layout::kLast, true);  // channels last: scale and bias broadcast as they are
  Value* centered = Binary("SUB", x, Mean(x, axes, true, name), name);
  Value* variance = Mean(Binary("MUL", centered, centered, name), axes, true, name);
  Value* r = Unary(
      "RSQRT", Binary("ADD", variance, Scalar(node.FloatAttribute("epsilon", 1e-5f), name + "_epsilon"), name), name);
  Value* y = Binary("MUL", Binary("MUL", centered, r, name), Get(node.input(1), Layout::kFirst, true), name);
  Finish(node, Layout::kLast, Binary("ADD", y, Get(node.input(2), Layout::kFirst, true), name), false);
}

// What stands between quantized tensors, where it could not be folded into the weights in front: a factor and an
// addend.
void CircleLowering::BatchNorm(const Node& node) {
  const Value* x_old = node.input(0);
  for (std::size_t i = 1; i < 5; ++i) {
    if (node.input(i) == nullptr || !node.input(i)->is_constant()) Refuse(node, "its parameters are computed");
  }
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  const auto numbers = [&](std::size_t i) {
    Value* c = GetConstant(node.input(i), Layout::kFirst, true);
    std::vector<float> v = c->data->ToFloats();
    new_->Erase(c);
    return v;
  };
  const std::vector<float> scale = numbers(1), bias = numbers(2), mean = numbers(3), variance = numbers(4);
  const double epsilon = node.FloatAttribute("epsilon", 1e-5f);
  std::vector<float> factor(scale.size()), addend(scale.size());
  if (bias.size() != scale.size() || mean.size() != scale.size() || variance.size() != scale.size())
    Refuse(node, "its parameters differ in length");
  for (std::size_t i = 0; i < scale.size(); ++i) {
    const double f = scale[i] / std::sqrt(static_cast<double>(variance[i]) + epsilon);
    factor[i] = static_cast<float>(f);
    addend[i] = static_cast<float>(bias[i] - mean[i] * f);
  }
  const std::string name = OutputOf(node)->name();
  const Dims dims{static_cast<std::int64_t>(scale.size())};
  // Channels last: they broadcast as they are. A matrix has its channels last already.
  const Layout layout = DimsOf(x_old).size() >= 3 ? Layout::kLast : Layout::kFirst;
  Value* y = Binary("MUL", Get(x_old, layout, true), Floats(dims, factor, name + "_factor"), name);
  Finish(node, layout, Binary("ADD", y, Floats(dims, addend, name + "_addend"), name), false);
}

void CircleLowering::ArgMax(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  if (node.IntAttribute("select_last_index", 0) != 0) Refuse(node, "select_last_index");
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  Value* x = Get(x_old, Layout::kFirst, true);
  Dims dims = ShapeOf(x);
  dims.erase(dims.begin() + axis);
  const std::string name = node.output()->name();
  Value* y = Emit(node.Is("ArgMax") ? "ARG_MAX" : "ARG_MIN", {x, Int32Scalar(axis, name + "_axis")}, name,
                  MakeType(DType::kS64, dims), {{"output_type", std::string("INT64")}});
  Finish(node, Layout::kFirst, Reshape(y, DimsOf(node.output()), name), false);
}

void CircleLowering::DepthToSpace(const Node& node) {
  const Value* x_old = node.input(0);
  const bool forward = node.Is("DepthToSpace");
  const std::int64_t block = node.IntAttribute("blocksize", 1);
  const Dims in = DimsOf(x_old), out = DimsOf(node.output());
  // DCR, and SpaceToDepth, are Circle's own order in NHWC.
  if (forward && node.StringAttribute("mode", "DCR") != "DCR" && in[1] != block * block) Refuse(node, "mode CRD");
  if (x_old->type.quant) KeptFloat(node, "it is lowered in float");
  Value* x = Get(x_old, Layout::kLast, true);
  Value* y = Emit(forward ? "DEPTH_TO_SPACE" : "SPACE_TO_DEPTH", {x}, node.output()->name(),
                  MakeType(x->type.dtype, Permuted(out, ToLast(4))), {{"block_size", block}});
  Finish(node, Layout::kLast, y, false);
}

// ----------------------------------------------------------------------------------------------------- the IR's own

void CircleLowering::QuantizeNode(const Node& node) {
  const Value *x = node.input(0), *y = node.output();
  const Layout layout = Prefer(x);
  const std::size_t rank = DimsOf(x).size();
  const bool last = layout == Layout::kLast && rank >= 3;
  const QuantType quant = last ? PermutedQuant(*y->type.quant, ToLast(rank)) : *y->type.quant;
  if (quant.kind == QuantType::Kind::kAffine && StorageOf(y->type) == Storage::kOther) {
    Refuse(node, "Circle's consumers have no activations of type " + std::string(Name(quant.affine.storage)));
  }
  Value* v = Get(x, layout, false);
  Type wanted = v->type;
  wanted.quant = quant;
  Set(y, layout, false, SameQuant(v->type, wanted) ? v : Quantize(v, quant, y->name()));
}

void CircleLowering::DequantizeNode(const Node& node) {
  const Value *x = node.input(0), *y = node.output();
  const Layout layout = Prefer(x);
  Set(y, layout, false, Get(x, layout, true));
}

const std::unordered_map<std::string_view, CircleLowering::Handler>& CircleLowering::Handlers() {
  using L = CircleLowering;
  static const auto* const table = new std::unordered_map<std::string_view, Handler>{
      {"Conv", &L::Conv},
      {"ConvTranspose", &L::ConvTranspose},
      {"Gemm", &L::Gemm},
      {"MatMul", &L::MatMul},
      {"Add", &L::Elementwise},
      {"Sub", &L::Elementwise},
      {"Mul", &L::Elementwise},
      {"Div", &L::DivNode},
      {"Min", &L::Variadic},
      {"Max", &L::Variadic},
      {"Sum", &L::Variadic},
      {"Mean", &L::Variadic},
      {"Pow", &L::PowNode},
      {"Equal", &L::Compare},
      {"Less", &L::Compare},
      {"LessOrEqual", &L::Compare},
      {"Greater", &L::Compare},
      {"GreaterOrEqual", &L::Compare},
      {"And", &L::Compare},
      {"Or", &L::Compare},
      {"Not", &L::Compare},
      {"Where", &L::Where},
      {"Relu", &L::Activation},
      {"Sigmoid", &L::Activation},
      {"Tanh", &L::Activation},
      {"Exp", &L::Activation},
      {"Log", &L::Activation},
      {"Sqrt", &L::Activation},
      {"Abs", &L::Activation},
      {"Neg", &L::Activation},
      {"Floor", &L::Activation},
      {"Ceil", &L::Activation},
      {"Round", &L::Activation},
      {"Sin", &L::Activation},
      {"Cos", &L::Activation},
      {"Sign", &L::Activation},
      {"Elu", &L::Activation},
      {"Clip", &L::Clip},
      {"HardSigmoid", &L::HardSigmoid},
      {"HardSwish", &L::HardSwish},
      {"LeakyRelu", &L::LeakyRelu},
      {"PRelu", &L::PRelu},
      {"Gelu", &L::Gelu},
      {"FastGelu", &L::Gelu},
      {"Swish", &L::Silu},
      {"QuickGelu", &L::Silu},
      {"Erf", &L::Erf},
      {"Reciprocal", &L::Reciprocal},
      {"Softmax", &L::Softmax},
      {"LogSoftmax", &L::Softmax},
      {"MaxPool", &L::Pool},
      {"AveragePool", &L::Pool},
      {"GlobalAveragePool", &L::GlobalPool},
      {"GlobalMaxPool", &L::GlobalPool},
      {"ReduceMean", &L::Reduce},
      {"ReduceSum", &L::Reduce},
      {"ReduceMax", &L::Reduce},
      {"ReduceMin", &L::Reduce},
      {"ReduceProd", &L::Reduce},
      {"Reshape", &L::ReshapeNode},
      {"Flatten", &L::ReshapeNode},
      {"Squeeze", &L::ReshapeNode},
      {"Unsqueeze", &L::ReshapeNode},
      {"Transpose", &L::TransposeNode},
      {"Identity", &L::Identity},
      {"Dropout", &L::Identity},
      {"Concat", &L::Concat},
      {"Split", &L::Split},
      {"Slice", &L::Slice},
      {"Gather", &L::Gather},
      {"Expand", &L::Expand},
      {"Tile", &L::Tile},
      {"Pad", &L::Pad},
      {"Resize", &L::Resize},
      {"Upsample", &L::Resize},
      {"Cast", &L::Cast},
      {"LayerNormalization", &L::LayerNorm},
      {"InstanceNormalization", &L::InstanceNorm},
      {"BatchNormalization", &L::BatchNorm},
      {"ArgMax", &L::ArgMax},
      {"ArgMin", &L::ArgMax},
      {"DepthToSpace", &L::DepthToSpace},
      {"SpaceToDepth", &L::DepthToSpace},
      {"Quantize", &L::QuantizeNode},
      {"Requantize", &L::QuantizeNode},
      {"Dequantize", &L::DequantizeNode},
  };
  return *table;
}

}  // namespace octavo::internal
