// What handlers of several families ask: shapes, parameters, windows.
#include <algorithm>

#include "octavo/emit/lower_circle.h"

namespace octavo::internal {

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

}  // namespace octavo::internal
