// How convolutions, products, pools and reductions are said in Circle: one handler an operator.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/emit/lower_circle.h"

namespace octavo::internal {

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
  if (node.StringAttribute("auto_pad", "NOTSET") == "NOTSET") {
    if (Value* y = ConvTransposeAsConv(node, x, raw, OutType(node, Layout::kLast, integer), integer); y != nullptr) {
      return Finish(node, Layout::kLast, y, integer);
    }
  }
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
                   {"keep_num_dims", std::int64_t{ShapeOf(x).size() > 2 || !node.Is("Gemm")}}});
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

// ------------------------------------------------------------------------------------------------ pools and reductions

// For each window the share of it that lies in the input, inverted: [1, height, width, 1].
Value* CircleLowering::WindowShares(const Dims& in, const Dims& out, std::span<const std::int64_t> kernel,
                                    std::span<const std::int64_t> strides, std::span<const Pads> pads,
                                    const std::string& name) {
  const auto inside = [&](std::size_t d, std::int64_t i) {
    const std::int64_t begin = i * strides[d] - pads[d].before;
    const std::int64_t seen = std::min(begin + kernel[d], in[d + 2]) - std::max<std::int64_t>(begin, 0);
    return static_cast<float>(std::max<std::int64_t>(seen, 1)) / static_cast<float>(kernel[d]);
  };
  std::vector<float> shares;
  for (std::int64_t y = 0; y < out[2]; ++y) {
    for (std::int64_t x = 0; x < out[3]; ++x) shares.push_back(1 / (inside(0, y) * inside(1, x)));
  }
  return Floats({1, out[2], out[3], 1}, shares, name + "_shares");
}

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
    if (need > 0) {
      if (average && node.IntAttribute("count_include_pad", 0) != 0) Refuse(node, "ceil_mode with count_include_pad");
      pads[i].after += need;
    }
    same = same && IsSame(dims[i + 2], kernel[i], strides[i], 1, pads[i]);
    valid = valid && pads[i].before == 0 && pads[i].after == 0;
  }
  const std::string op = average ? "AVERAGE_POOL_2D" : "MAX_POOL_2D";
  const bool counts = average && node.IntAttribute("count_include_pad", 0) != 0;
  // Circle leaves padding out of averages only where it is SAME: else zeros are counted, and a factor makes up for
  // them.
  const bool uneven = average && !valid && !same && !counts;
  const Value* data[] = {x_old};
  if (uneven && (x_old->type.quant || OutputOf(node)->type.quant)) {
    KeptFloat(node, "it leaves out a padding which is not SAME: several operators in Circle");
  }
  const bool integer = !uneven && Integer(node, op, data);
  Value* x = Get(x_old, Layout::kLast, !integer);
  const std::string name = OutputOf(node)->name();
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
  if (uneven) y = Binary("MUL", y, WindowShares(dims, out, kernel, strides, pads, name), name);
  Finish(node, Layout::kLast, y, integer);
}

void CircleLowering::GlobalPool(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  const bool average = node.Is("GlobalAveragePool");
  const std::string op = average ? "MEAN" : "REDUCE_MAX";
  const Value* data[] = {x_old};
  const bool integer = Integer(node, op, data);
  const Layout layout = exact_ && average && rank == 4 ? Layout::kLast : Prefer(x_old);
  std::vector<std::int64_t> axes;
  for (std::size_t i = 2; i < rank; ++i) axes.push_back(MapAxis(static_cast<std::int64_t>(i), layout, rank));
  Value* x = Get(x_old, layout, !integer);
  Value* y = Mean(x, axes, true, OutputOf(node)->name(), op);
  if (integer) y->type = OutType(node, layout, true);
  if (integer && !average) y->type.quant = x->type.quant;
  Finish(node, layout, y, integer);
}

void CircleLowering::Reduce(const Node& node) {
  static const std::unordered_map<std::string_view, std::string_view> kNames{
      {"ReduceMean", "MEAN"},      {"ReduceSum", "SUM"},          {"ReduceMax", "REDUCE_MAX"},
      {"ReduceMin", "REDUCE_MIN"}, {"ReduceProd", "REDUCE_PROD"}, {"ReduceL1", "SUM"},
      {"ReduceL2", "SUM"},         {"ReduceSumSquare", "SUM"},    {"ReduceLogSum", "SUM"}};
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
  for (std::int64_t& a : axes) a = Axis(node, a, rank);
  std::sort(axes.begin(), axes.end());
  const bool spatial = rank == 4 && axes == std::vector<std::int64_t>{2, 3} && node.Is("ReduceMean");
  const Layout use = spatial || (keep && !exact_) ? layout : Layout::kFirst;
  for (std::int64_t& a : axes) a = MapAxis(a, use, rank);
  std::sort(axes.begin(), axes.end());
  const Value* data[] = {x_old};
  const std::string op(kNames.at(node.op()));
  const bool integer = IsFloat(node.output()->type.dtype) && Integer(node, op, data);
  Value* x = Get(x_old, use, !integer);
  // A mean that keeps height and width is a GlobalAveragePool when it is read back, which sums in another order.
  const bool pool = spatial && exact_ && keep && use == Layout::kLast;
  const std::string name = OutputOf(node)->name();
  if (node.Is("ReduceL1")) x = Unary("ABS", x, name);
  if (node.Is("ReduceL2") || node.Is("ReduceSumSquare")) x = Binary("MUL", x, x, name);
  Value* y = Mean(x, axes, keep && !pool, name, op);
  if (node.Is("ReduceL2")) y = Unary("SQRT", y, name);
  if (node.Is("ReduceLogSum")) y = Unary("LOG", y, name);
  if (pool) {
    y = Reshape(y, *StaticShape(OutType(node, use, false)), OutputOf(node)->name());
  } else if (integer) {
    y->type.quant = op == "MEAN" ? OutType(node, use, true).quant : x->type.quant;
  }
  y->type.dtype = OutType(node, use, integer).dtype;
  Finish(node, use, y, integer);
}

}  // namespace octavo::internal
