#include "octavo/quantize/whole_graph_types.h"

#include <algorithm>
#include <span>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/calibrate/ranges.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/dead_zone.h"

namespace octavo {
namespace {

// How far below the lowest score a masked position is kept: exp(-12) = 6e-6 of the weight of that lowest one.
constexpr float kMaskDepth = 12.0f;

}  // namespace

DType Wide(DType narrow) { return IsSignedInteger(narrow) ? DType::kS16 : DType::kU16; }

bool AnalyzesWeight(const Node& node, const TensorRef& weight) {
  if (node.Is("Conv")) return weight.dims.size() >= 3;
  return (node.Is("Gemm") || node.Is("MatMul")) && weight.dims.size() == 2;
}

DType& WholeGraphTypes::TensorType(std::size_t tensor) {
  if (types_.size() < plan_.tensors.size()) types_.resize(plan_.tensors.size(), DType::kUndefined);
  return types_[tensor];
}

const TensorStatistics& WholeGraphTypes::StatsOf(const Value& value) const {
  const TensorStatistics* t = statistics_.Find(value.name());
  if (t == nullptr) ThrowInternal("a tensor was not calibrated", value.name());
  return *t;
}

QuantRange WholeGraphTypes::RangeOfConstant(const Value& constant) const {
  std::vector<float> storage;
  QuantRange range{0, 0};
  for (const float f : FloatView(*constant.data, storage)) {
    range.min = std::min(range.min, f);
    range.max = std::max(range.max, f);
  }
  if (plan_.mask_values.count(&constant) > 0) {
    range.min = std::max(range.min, -kMaskBound);
    range.max = std::min(range.max, kMaskBound);
  }
  return range;
}

ChannelMoments WholeGraphTypes::MomentsOf(const Node& node) const {
  ChannelMoments m;
  const TensorStatistics* stats = statistics_.Find(node.input(0)->name());
  if (stats == nullptr || !stats->channels || !stats->channels->finite) return m;
  for (std::size_t c = 0; c < stats->channels->sums.size(); ++c) {
    m.mean.push_back(stats->ChannelMean(c));
    m.mean_square.push_back(stats->ChannelMeanSquare(c));
  }
  return m;
}

PlannedTensor WholeGraphTypes::ParamsOf(std::size_t tensor, DType storage) {
  const auto key = std::make_pair(tensor, storage);
  if (const auto it = params_.find(key); it != params_.end()) return it->second;
  const WholeGraphTensor& t = plan_.tensors[tensor];
  PlannedTensor out;
  out.storage = storage;
  const bool weight = storage == DType::kS16 && !IsSignedInteger(precision_.activation);
  const bool symmetric = precision_.activation_symmetric || weight;
  if (t.constant != nullptr) {
    const QuantRange range = RangeOfConstant(*t.constant);
    out.params = ChooseParams(range.min, range.max, storage, symmetric);
  } else {
    const Node* maker = t.observed->producer();
    const ParamFlow flow = maker == nullptr ? ParamFlow::kOwn : FindOp(*maker).flow;
    ValueRange used;
    if (flow == ParamFlow::kUnitRange) {
      used = {0, 1};
    } else if (flow == ParamFlow::kSymmetricUnitRange) {
      used = {-1, 1};
    } else {
      const TensorStatistics& stats = StatsOf(*t.observed);
      const QuantRange range = ChooseRange(stats, config_.calibration, config_.percentile, storage, symmetric);
      used = {range.min, range.max};
      if (const auto mask = plan_.mask_sums.find(t.observed); mask != plan_.mask_sums.end()) {
        const QuantRange scores =
            ChooseRange(StatsOf(*mask->second), config_.calibration, config_.percentile, storage, symmetric);
        // Ranges are of the finite values: those of a mask of -infinity are below them all.
        const float floor = scores.min - kMaskDepth;
        used.min = stats.range.infs > 0 ? floor : std::max(used.min, floor);
        used.max = std::min(used.max, std::max(scores.max, 0.0f));
      } else if (plan_.mask_values.count(t.observed) > 0) {
        if (stats.range.infs > 0) used.min = -kMaskBound;
      } else if (stats.range.infs > 0) {
        LogWarning(
            "'" + t.observed->name() + "' is infinite in " + std::to_string(stats.range.infs) + " of " +
            std::to_string(stats.range.elements) +
            " elements: its codes end at the finite ones; keep it in float with --override NAME=f32 if that matters");
      } else if (!symmetric && BitWidth(storage) == 8) {
        used = CutDeadZone(*t.observed, used);
      }
    }
    if (plan_.mask_values.count(t.observed) > 0) {
      used.min = std::max(used.min, -kMaskBound);
      used.max = std::min(used.max, kMaskBound);
    }
    // Of zeros only, as calibrated: a step of 1 would be far above those of what is computed from them, which 16-bit
    // products do not rescale.
    if (used.min == 0 && used.max == 0) used.max = 1;
    out.params = ChooseParams(used.min, used.max, storage, symmetric);
  }
  params_[key] = out;
  return out;
}

PlannedTensor WholeGraphTypes::InputParams(const Node& node, std::size_t index) {
  const Value* v = node.input(index);
  const std::size_t tensor = plan_.tensor_of.at(v);
  if (plan_.Moves(node)) return ParamsOf(tensor, TensorType(tensor));
  const DType type = type_of_node.at(&node);
  // The second operand of a product is its weight, computed or not.
  const bool weight = device_.symmetric_weights16 && type == DType::kU16 && index == 1 && node.Is("MatMul");
  return ParamsOf(tensor, weight ? DType::kS16 : type);
}

WeightOptions WholeGraphTypes::OptionsOf(const Node& node, const OpSupport& row) const {
  WeightOptions options;
  options.storage = row.unsigned_weight ? DType::kU8 : precision_.weight;
  options.symmetric = !row.unsigned_weight && precision_.weight_symmetric;
  options.per_channel = precision_.per_channel && row.per_channel;
  if (device_.symmetric_weights16 && !row.unsigned_weight && BitWidth(type_of_node.at(&node)) == 16) {
    options.symmetric = true;
    if (!config_.weight_type && options.storage == DType::kU8) {
      options.storage = DType::kS8;
      options.per_channel = row.per_channel && config_.per_channel.value_or(true);
    }
  }
  if (options.storage == DType::kS4 && !options.per_channel) options.storage = DType::kS8;
  if (by_channel.count(&node) > 0) options = {.storage = DType::kS8, .per_channel = true, .symmetric = true};
  if (wide_weights.count(&node) > 0) {
    options.storage = DType::kS16;  // 16-bit products are of s16 weights
    options.symmetric = true;
  }
  return options;
}

}  // namespace octavo
