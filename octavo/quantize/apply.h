// Writes a decided plan into the graph: quantized types, codes, Quantize nodes.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/weights.h"

namespace octavo {

struct PlannedTensor {
  DType storage = DType::kU8;
  AffineParams params;
};

// The type of codes with these parameters: of a tensor, of a weight.
QuantType TypeOf(const PlannedTensor& tensor);
QuantType TypeOf(const QuantizedWeight& weight);
// The type of the constant that holds the codes of `source`, an f32 constant.
Type TypeOfCodes(const Value& source, QuantType quant);

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

// A weight that a float node goes on reading in float, stored as codes.
struct StoredWeight {
  Node* node = nullptr;
  std::size_t input = 0;  // which of the node's inputs it is
  std::int64_t axis = 0;  // of the scales
  QuantizedWeight weight;
};

// Codes of the shape of a weight and scales that broadcast to it, as the weight in float: Cast, then Mul, at the
// beginning of the graph, where the runtime computes them when it loads the model. Symmetric codes only.
Value* AddScaledCodes(Graph& graph, const std::string& name, TensorRef codes, TensorRef scales);

// Edits `model`; `plan` and `stored` are consumed. The form is that of FoldQdq: a Quantize is folded into its producer
// when the float value has no other use.
void ApplyPlan(Model& model, std::vector<PlannedNode>& plan, std::vector<StoredWeight>& stored);

}  // namespace octavo
