// Quantizing for an NPU: which nodes the device takes and which values share parameters, from structure alone.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

// A mask of -FLT_MAX or -infinity is as good as one of this size, and a device's rescaling takes no step of 1e36.
inline constexpr float kMaskBound = 1000.0f;

// What an input of an operator is to placement.
enum class Role { kNone, kData, kWeight, kBias };
Role RoleOf(const Node& node, std::size_t index);

// Scale and shift of a normalization are its weight and bias.
bool NormalizesWithScale(const Node& node);
// Outputs that carry data: the indices of a TopK or MaxPool, the statistics of a LayerNormalization do not.
bool CarriesData(const Node& node, std::size_t index);
// A constant of which the numbers are here.
bool IsConstantData(const Value* value);

// A value with parameters, or several that share them.
struct WholeGraphTensor {
  Value* observed = nullptr;  // whose range counts; null: that of the constant
  Value* constant = nullptr;  // moved by a Gather, say: its own range
};

// Nodes that stay in float though the device takes them, and why.
using KeptNodes = std::unordered_map<const Node*, std::string>;

// Never edits the model, and needs no statistics. Errors: kUsage for a selector that matches nothing.
class WholeGraphPlan {
 public:
  WholeGraphPlan(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision,
                 const DeviceDescriptor& device, KeptNodes kept = {});

  std::vector<Node*> taken;  // in execution order
  std::unordered_set<const Node*> is_taken;
  std::unordered_map<const Node*, Node*> absorbs;  // node -> the Relu or Clip behind it
  std::unordered_set<const Node*> absorbed;
  std::vector<SkippedNode> skipped;  // with one sentence each
  std::int64_t nodes_total = 0;      // of the graph and of its subgraphs
  std::vector<WholeGraphTensor> tensors;
  std::unordered_map<const Value*, std::size_t> tensor_of;   // of every computed value or input that has parameters
  std::unordered_map<const Value*, const Value*> mask_sums;  // masked scores -> the scores
  std::unordered_set<const Value*> mask_values;              // what a mask is made of, constants included

  // Data movement, which shares the parameters of what it moves.
  bool Moves(const Node& node) const;
  // Whether a taken node makes the value.
  bool Produced(const Value& value) const;

 private:
  void Skip(const Node& node, std::string reason);
  std::string Refusal(const Node& node) const;
  void Visit(Node& node);
  std::size_t NewTensor(Value* observed);
  std::size_t TensorOf(Value* value);
  Node* Absorbable(const Node& node) const;
  void Join(Node& node);
  void FindMasks();
  const Value* Unmasked(const Value* value, int depth);
  bool MasksSoftmax(const Node& node, int depth = 0) const;
  void CollectMask(const Value* value, int depth);

  const Model& model_;
  const QuantizationConfig& config_;
  const ResolvedPrecision& precision_;
  const DeviceDescriptor& device_;
  KeptNodes kept_;
};

}  // namespace octavo
