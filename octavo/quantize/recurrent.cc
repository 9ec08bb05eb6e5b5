#include "octavo/quantize/recurrent.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>
#include <utility>

#include "octavo/base/interrupt.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/reduce.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/weights.h"

namespace octavo {
namespace {

constexpr std::uint64_t kFewest = 4096;  // scales and two operators would eat what fewer numbers save

// The one kind of operator that has channels but no weight that a node of integers could take.
bool IsRecurrent(const Node& node) {
  const OpInfo& info = FindOp(node);
  return info.category == OpCategory::kOther && info.channel_axis == AxisRule::kOne;
}

// Whether only recurrent operators that may be quantized read it, as W or as R, themselves or behind operators that
// move numbers; `readers` gets them. `depth` and `budget` bound the search.
bool OnlyTheirWeight(const Value& value, const QuantizationConfig& config, int depth, int& budget,
                     std::vector<const Node*>& readers) {
  if (value.uses().empty() || value.is_graph_output() || depth == 0) return false;
  return std::all_of(value.uses().begin(), value.uses().end(), [&](const Use& use) {
    if (--budget < 0) return false;
    const Node& node = *use.node;
    if (!KeptByUser(node, config).empty()) return false;
    if (IsRecurrent(node)) {
      readers.push_back(&node);
      return use.index == 1 || use.index == 2;
    }
    const OpInfo& info = FindOp(node);
    return info.category == OpCategory::kDataMovement && info.value_preserving && IsDataInput(info, use.index) &&
           std::all_of(node.outputs().begin(), node.outputs().end(), [&](const Value* output) {
             if (output == nullptr || output->dead()) return true;
             return OnlyTheirWeight(*output, config, depth - 1, budget, readers);
           });
  });
}

bool Storable(const Value& value) {
  return value.data && value.data->dtype == DType::kF32 && !value.type.quant && value.data->dims.size() >= 2 &&
         value.data->elements() >= kFewest;
}

}  // namespace

std::vector<const Node*> StoreRecurrentWeights(Model& model, const QuantizationConfig& config, DType storage,
                                               double noise, int threads) {
  std::vector<Graph*> graphs{model.graph.get()};
  VisitNodes(*model.graph, [&](Node& node) {
    for (Graph* sub : node.subgraphs()) graphs.push_back(sub);
  });
  constexpr int kMostMoves = 8, kMostUses = 4096;
  std::vector<std::pair<Value*, std::vector<const Node*>>> weights;
  for (Graph* graph : graphs) {
    for (Value* value : graph->constants()) {
      std::vector<const Node*> readers;
      int budget = kMostUses;
      if (Storable(*value) && OnlyTheirWeight(*value, config, kMostMoves, budget, readers) && !readers.empty()) {
        weights.emplace_back(value, std::move(readers));
      }
    }
  }
  std::vector<const Node*> nodes;
  std::unordered_set<const Node*> named;
  for (const auto& [value, readers] : weights) {
    CheckInterrupt();
    const DType asked = OverrideOf(config, value->name());
    if (asked != DType::kUndefined && asked != DType::kS8 && asked != DType::kS16) continue;
    const Dims dims = value->data->dims;
    TensorRef rows = *value->data;
    rows.dims = {static_cast<std::int64_t>(rows.elements()) / dims.back(), dims.back()};
    std::vector<float> converted;
    const std::span<const float> numbers = FloatView(rows, converted);
    if (!std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); })) continue;
    const WeightOptions options{.storage = asked == DType::kUndefined ? storage : asked,
                                .per_channel = true,
                                .symmetric = true,
                                .threads = threads};
    QuantizedWeight codes = QuantizeWeight(rows, 0, options);
    double error = 0;
    std::vector<float> scales;
    for (std::size_t row = 0; row < codes.params.size(); ++row) {
      const auto width = static_cast<std::size_t>(dims.back());
      error += QuantizationSquaredError(numbers.subspan(row * width, width), codes.params[row], options.storage);
      scales.push_back(codes.params[row].scale);
    }
    if (!(error <= noise * LaneSumSquares(numbers))) continue;
    for (const Node* reader : readers) {
      if (named.insert(reader).second) nodes.push_back(reader);
    }
    Dims scale_dims = dims;
    scale_dims.back() = 1;
    Graph& graph = *value->graph();
    Value* scaled =
        AddScaledCodes(graph, value->name(), TensorRef::FromBuffer(options.storage, dims, std::move(codes.codes)),
                       TensorRef::FromFloats(scale_dims, scales));
    graph.ReplaceAllUses(value, scaled);
    graph.Erase(value);
  }
  return nodes;
}

}  // namespace octavo
