// Quantizing for an NPU: the widths decided so far, and the parameters of tensors and weights that follow from them.
#pragma once

#include <cstddef>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "octavo/calibrate/statistics.h"
#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/weights.h"
#include "octavo/quantize/whole_graph_plan.h"

namespace octavo {

// The 16-bit type of an 8-bit one's signedness.
DType Wide(DType narrow);
// Whether AnalyzeWeight knows how this weight meets its input.
bool AnalyzesWeight(const Node& node, const TensorRef& weight);

class WholeGraphTypes {
 public:
  // All arguments outlive it.
  WholeGraphTypes(const WholeGraphPlan& plan, const QuantizationConfig& config, const DeviceDescriptor& device,
                  const ResolvedPrecision& precision, const Statistics& statistics)
      : plan_(plan), config_(config), device_(device), precision_(precision), statistics_(statistics) {}

  std::unordered_map<const Node*, DType> type_of_node;  // that a node reads its data inputs in
  std::unordered_set<const Node*> wide_weights;         // their weight gets 16 bits
  std::unordered_set<const Node*> by_channel;  // their weight gets a scale a channel, whatever the precision says

  // Of one of the plan's tensors; undefined until it is set.
  DType& TensorType(std::size_t tensor);

  // Errors: kInternal where the value was not observed.
  const TensorStatistics& StatsOf(const Value& value) const;
  // Of the node's input 0, a channel; empty where they were not gathered.
  ChannelMoments MomentsOf(const Node& node) const;

  // What the codes of an f32 constant cover: its values and 0, of a mask no further than kMaskBound.
  QuantRange RangeOfConstant(const Value& constant) const;
  // Parameters of a tensor at a width; the same whoever asks. Kept once they are chosen: not for several threads.
  PlannedTensor ParamsOf(std::size_t tensor, DType storage);
  // Those in which a node reads its data input.
  PlannedTensor InputParams(const Node& node, std::size_t index);
  WeightOptions OptionsOf(const Node& node, const OpSupport& row) const;

 private:
  const WholeGraphPlan& plan_;
  const QuantizationConfig& config_;
  const DeviceDescriptor& device_;
  const ResolvedPrecision& precision_;
  const Statistics& statistics_;
  std::vector<DType> types_;  // of the plan's tensors
  std::map<std::pair<std::size_t, DType>, PlannedTensor> params_;
};

}  // namespace octavo
