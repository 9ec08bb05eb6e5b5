// Which nodes run in integers and which values carry parameters, from the operator table, the device and the config.
#pragma once

#include <string>
#include <vector>

#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

// A node that multiplies data with constant weights and that the device can run in integers.
struct PlacedNode {
  Node* node = nullptr;
  Value* x = nullptr;           // its data input
  Value* x_root = nullptr;      // the value whose codes x is a rearrangement of; x itself where none is
  std::vector<Node*> carriers;  // the data movement between x_root and x, in order
  Value* weight = nullptr;
  Value* bias = nullptr;           // constant, or null
  Node* bias_add = nullptr;        // MatMul: the Add behind it with a constant of one number a channel, or null
  std::size_t bias_add_index = 0;  // which input of bias_add is that constant
  Value* y = nullptr;              // the value that gets the output's parameters; null where the output stays float
  Node* absorbed = nullptr;        // the Relu or Clip between the node and y, or null
  std::int64_t channel_axis = 0;   // of the weight
};

struct Placement {
  std::vector<PlacedNode> nodes;     // in execution order
  std::vector<SkippedNode> skipped;  // every other node that computes, with one sentence
  std::int64_t nodes_total = 0;      // nodes of the graph and of its subgraphs
};

// Errors: kUsage for a selector of the config (op_types, exclude, overrides) that matches nothing, with the nearest
// names.
Placement PlaceNodes(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision,
                     const DeviceDescriptor& device);

// Errors: kUsage for a selector of the config (op_types, exclude, overrides) that matches nothing.
void CheckSelectors(const Model& model, const QuantizationConfig& config);

// Why exclude and op_types keep this node in float; empty: they do not.
std::string KeptByUser(const Node& node, const QuantizationConfig& config);

// Why no device runs this node in integers, whatever its operator's row says; empty: nothing speaks against it.
std::string NotInIntegers(const Node& node);

// Whether a subgraph reads what data movement makes of `value`. ONNX Runtime 1.31 moves a DequantizeLinear forward
// through these operators and, where a subgraph reads the last one's result, looks for an input that the subgraph's
// node does not have, and aborts the process: such a value must not be quantized.
bool MovesIntoSubgraph(const Value& value);

// A node's name for messages: its own, or that of its first output.
std::string NodeName(const Node& node);

// The override of a value's type, if any: kUndefined when none; kF32 means "keep in float". The last match wins.
DType OverrideOf(const QuantizationConfig& config, const std::string& value_name);

}  // namespace octavo
