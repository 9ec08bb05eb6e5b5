// Relu and Clip over codes: what their bounds become.
#pragma once

#include <cstdint>
#include <optional>

#include "octavo/ir/graph.h"

namespace octavo {

struct ClipBounds {
  float low, high;
};
// Bounds of a Relu or Clip of floats (infinite where absent); nullopt where one is computed, NaN or the two are
// crossed.
std::optional<ClipBounds> ClipBoundsOf(const Node& clip);

struct ClipCodes {
  std::int32_t low = 0, high = 0;
};
// What the bounds quantize to. Quantization is monotone, so clipping codes to these is clipping before quantizing.
std::optional<ClipCodes> ClipCodesOf(const Node& clip, float scale, std::int32_t zero, DType storage);

}  // namespace octavo
