#include "octavo/emit/clip_codes.h"

#include <limits>

#include "octavo/numerics/affine.h"

namespace octavo {

std::optional<ClipBounds> ClipBoundsOf(const Node& clip) {
  ClipBounds b{-std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()};
  if (clip.Is("Relu")) {
    b.low = 0;
    return b;
  }
  b.low = clip.FloatAttribute("min", b.low);
  b.high = clip.FloatAttribute("max", b.high);
  for (std::size_t i = 1; i < 3; ++i) {
    const Value* v = clip.input(i);
    if (v == nullptr) continue;
    if (!v->is_constant() || !v->data || v->type.quant || v->data->dtype != DType::kF32 || v->data->elements() != 1) {
      return std::nullopt;
    }
    (i == 1 ? b.low : b.high) = v->data->ToFloats()[0];
  }
  if (!(b.low <= b.high)) return std::nullopt;
  return b;
}

std::optional<ClipCodes> ClipCodesOf(const Node& clip, float scale, std::int32_t zero, DType storage) {
  const std::optional<ClipBounds> b = ClipBoundsOf(clip);
  if (!b) return std::nullopt;
  return ClipCodes{QuantizeOne(b->low, scale, zero, storage), QuantizeOne(b->high, scale, zero, storage)};
}

}  // namespace octavo
