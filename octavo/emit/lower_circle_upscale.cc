// Upscaling by whole factors in operators that every consumer has: onert has neither TRANSPOSE_CONV nor
// RESIZE_NEAREST_NEIGHBOR, and DEPTH_TO_SPACE behind a convolution or a concatenation says both, exactly.
#include <algorithm>

#include "octavo/emit/lower_circle.h"

namespace octavo::internal {
namespace {

std::int64_t FloorDivide(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0); }

// One spatial dimension of a transposed convolution as `stride` interleaved convolutions: output stride * q + r reads
// input q + d with kernel element r + pad - stride * d, for d = first .. last.
struct Phases {
  std::int64_t first = 0, last = 0;
  std::int64_t size() const { return last - first + 1; }
};

Phases PhasesOf(std::int64_t kernel, std::int64_t stride, std::int64_t pad) {
  return {-FloorDivide(kernel - 1 - pad, stride), FloorDivide(stride - 1 + pad, stride)};
}

QuantType Repeated(QuantType quant, std::int64_t times) {
  if (!quant.affine.axis || quant.affine.scale.elements() < 2) return quant;
  const std::vector<float> scales = quant.affine.scale.ToFloats();
  std::vector<float> all;
  for (std::int64_t i = 0; i < times; ++i) all.insert(all.end(), scales.begin(), scales.end());
  const Dims dims{static_cast<std::int64_t>(all.size())};
  quant.affine.scale = TensorRef::FromFloats(dims, all);
  if (quant.affine.zero_point) {
    const std::vector<std::int64_t> zeros = quant.affine.zero_point->ToInts();
    std::vector<std::int64_t> every;
    for (std::int64_t i = 0; i < times; ++i) every.insert(every.end(), zeros.begin(), zeros.end());
    quant.affine.zero_point = TensorRef::FromInts(quant.affine.zero_point->dtype, dims, every);
  }
  return quant;
}

}  // namespace

Value* CircleLowering::RepeatPixels(Value* x, std::int64_t factor, const std::string& name) {
  for (std::int64_t prime = 2; factor > 1; ++prime) {
    for (; factor % prime == 0; factor /= prime) {
      Dims deep = ShapeOf(x), wide = deep;
      deep[3] *= prime * prime;
      wide[1] *= prime;
      wide[2] *= prime;
      const std::vector<Value*> copies(static_cast<std::size_t>(prime * prime), x);
      x = Emit("CONCATENATION", copies, name + "_copies", MakeType(x->type.dtype, deep, x->type.quant),
               {{"axis", std::int64_t{3}}, {"fused_activation_function", std::string("NONE")}});
      x = Emit("DEPTH_TO_SPACE", {x}, name, MakeType(x->type.dtype, wide, x->type.quant), {{"block_size", prime}});
    }
  }
  return x;
}

Value* CircleLowering::ConvTransposeAsConv(const Node& node, Value* x, Value* raw, const Type& type, bool integer) {
  const Dims in = ShapeOf(x), w_dims = raw->data->dims, out = *StaticShape(type);
  const std::vector<std::int64_t> strides = Ints(node, "strides", 2, 1), pads = Ints(node, "pads", 4, 0);
  const std::int64_t stride = strides[0], outputs = w_dims[1];
  if (exact_ || strides[1] != stride || stride < 2 || stride > 8) return nullptr;
  if (integer && StorageOf(x->type) != Storage::kU8 && StorageOf(x->type) != Storage::kS8) return nullptr;
  Phases phases[2];
  bool same = true;
  for (std::size_t i = 0; i < 2; ++i) {
    phases[i] = PhasesOf(w_dims[i + 2], stride, pads[i]);
    if (phases[i].first > 0 || phases[i].last < 0 || out[i + 1] != in[i + 1] * stride) return nullptr;
    same = same && IsSame(in[i + 1], phases[i].size(), 1, 1, {-phases[i].first, phases[i].last});
  }
  // Elements of the kernel that no phase reads are zeros, multiplied for nothing.
  const std::int64_t area = stride * stride, taps = phases[0].size() * phases[1].size();
  if (!same || area * taps > 3 * w_dims[2] * w_dims[3]) return nullptr;
  const Dims dims{area * outputs, phases[0].size(), phases[1].size(), w_dims[0]};
  const std::string name = OutputOf(node)->name();
  const auto fill = [&](const auto& from, auto zero) {
    std::vector<std::decay_t<decltype(from[0])>> to;
    to.reserve(static_cast<std::size_t>(dims[0] * taps * dims[3]));
    for (std::int64_t o = 0; o < dims[0]; ++o) {
      const std::int64_t row = o / outputs / stride, column = o / outputs % stride, channel = o % outputs;
      for (std::int64_t dy = phases[0].first; dy <= phases[0].last; ++dy) {
        for (std::int64_t dx = phases[1].first; dx <= phases[1].last; ++dx) {
          const std::int64_t ky = row + pads[0] - stride * dy, kx = column + pads[1] - stride * dx;
          const bool inside = ky >= 0 && ky < w_dims[2] && kx >= 0 && kx < w_dims[3];
          for (std::int64_t i = 0; i < w_dims[0]; ++i) {
            const std::int64_t at = ((i * outputs + channel) * w_dims[2] + ky) * w_dims[3] + kx;
            to.push_back(inside ? from[static_cast<std::size_t>(at)] : zero(channel));
          }
        }
      }
    }
    return to;
  };
  // The weights of the convolution; the bias at the products' scales is made for the channels, then repeated.
  Value* w = nullptr;
  std::optional<QuantType> quant = raw->type.quant;
  if (quant) {
    std::vector<std::int64_t> zeros(quant->affine.scale.elements(), 0);
    if (quant->affine.zero_point) zeros = quant->affine.zero_point->ToInts();
    const auto zero = [&](std::int64_t c) { return zeros[zeros.size() == 1 ? 0 : static_cast<std::size_t>(c)]; };
    TensorRef codes = TensorRef::FromInts(quant->affine.storage, dims, fill(raw->data->ToInts(), zero));
    QuantType repeated = Repeated(*quant, area);
    if (repeated.affine.axis) repeated.affine.axis = 0;
    w = new_->AddConstant(raw->name(), std::move(codes), MakeType(DType::kF32, dims, repeated));
  } else {
    w = new_->AddConstant(raw->name(),
                          TensorRef::FromFloats(dims, fill(raw->data->ToFloats(), [](std::int64_t) { return 0.0f; })));
  }
  Value* one = Bias(node, node.input(2), outputs, x, raw, integer);
  const Dims b_dims{area * outputs};
  Value* b = nullptr;
  if (one->type.quant) {
    std::vector<std::int64_t> all;
    const std::vector<std::int64_t> codes = one->data->ToInts();
    for (std::int64_t i = 0; i < area; ++i) all.insert(all.end(), codes.begin(), codes.end());
    b = new_->AddConstant(one->name(), TensorRef::FromInts(one->data->dtype, b_dims, all),
                          MakeType(one->type.dtype, b_dims, Repeated(*one->type.quant, area)));
  } else {
    std::vector<float> all;
    const std::vector<float> numbers = one->data->ToFloats();
    for (std::int64_t i = 0; i < area; ++i) all.insert(all.end(), numbers.begin(), numbers.end());
    b = Floats(b_dims, all, one->name());
  }
  Type deep = type;
  deep.shape = MakeType(DType::kF32, {in[0], in[1], in[2], area * outputs}).shape;
  Value* y = Emit("CONV_2D", {x, w, b}, name + "_phases", deep,
                  {{"padding", std::string("SAME")},
                   {"stride_h", std::int64_t{1}},
                   {"stride_w", std::int64_t{1}},
                   {"dilation_h_factor", std::int64_t{1}},
                   {"dilation_w_factor", std::int64_t{1}},
                   {"fused_activation_function", std::string("NONE")}});
  return Emit("DEPTH_TO_SPACE", {y}, name, type, {{"block_size", stride}});
}

}  // namespace octavo::internal
