// Which elements a Resize or Upsample reads along each axis, and with what weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// Element i along the axis becomes the sum over the taps t of weights[t][i] * x[places[t][i]]; without weights there is
// one tap: x[places[0][i]].
struct ResizeTaps {
  std::size_t axis = 0;
  std::int64_t from = 0, to = 0;  // elements along it
  std::vector<std::vector<std::int64_t>> places;
  std::vector<std::vector<float>> weights;
};

struct ResizePlan {
  std::vector<ResizeTaps> axes;  // those that change
  std::string refused;           // why there is no plan; "" where there is one
};

// Nearest, linear and cubic (Keys 1981) as ONNX defines them. `sizes`, or `scales` where they are empty, are the values
// of the node's inputs: one for each of its axes. Refused are antialiasing, tf_crop_and_resize, kept aspect ratios,
// empty dimensions and numbers that do not fit.
ResizePlan PlanResize(const Node& node, std::int64_t opset, const Dims& in, std::span<const std::int64_t> sizes,
                      std::span<const float> scales);

}  // namespace octavo
