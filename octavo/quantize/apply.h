// Writes a decided plan into the graph: quantized types, codes, Quantize nodes.
#pragma once

#include <optional>
#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/weights.h"

namespace octavo {

struct PlannedTensor {
  DType storage = DType::kU8;
  AffineParams params;
};

// A node that will run in integers, with everything that was chosen for it.
struct PlannedNode {
  const PlacedNode* placed = nullptr;
  PlannedTensor x, y;            // y is read only where placed->y is set
  bool root_is_integer = false;  // placed->x_root is the y of another planned node
  QuantizedWeight weight;
  std::vector<double> bias;       // corrected; empty: none
  bool integer_bias = false;      // int32 at x_scale * w_scale, else float
  std::vector<double> add_shift;  // subtracted from the constant of placed->bias_add; empty: nothing
};

// Whether the Relu or Clip between a node and its quantized output does nothing that the codes' range does not do:
// rne(min / scale) + zero <= qmin and rne(max / scale) + zero >= qmax (Relu: min = 0, no max).
bool RangeDoesTheClip(const Node& clip, const PlannedTensor& y);

// Edits `model`; `plan` is consumed. The form is that of FoldQdq: a Quantize is folded into its producer when the float
// value has no other use.
void ApplyPlan(Model& model, std::vector<PlannedNode>& plan);

}  // namespace octavo
