#include "octavo/quantize/early_weights.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <system_error>
#include <utility>

#include "octavo/ops/op_table.h"
#include "octavo/quantize/placement.h"

namespace octavo {
namespace {

// Larger weights are converted by one thread at a time: a copy more could be too much.
constexpr std::size_t kMostBytes = std::size_t{64} << 20;

bool SameOptions(const WeightOptions& a, const WeightOptions& b) {
  return a.storage == b.storage && a.per_channel == b.per_channel && a.symmetric == b.symmetric;
}

void DropPages(const TensorRef& tensor) {
  if (tensor.file != nullptr) tensor.file->DropPages(tensor.bytes);
}

}  // namespace

WeightOptions WeightOptionsOf(const QuantizationConfig& config, const ResolvedPrecision& precision,
                              const std::string& weight) {
  WeightOptions options;
  options.storage = precision.weight;
  options.per_channel = precision.per_channel;
  options.symmetric = precision.weight_symmetric;
  const DType override_type = OverrideOf(config, weight);
  if (override_type != DType::kUndefined && override_type != DType::kF32) {
    options.storage = override_type;
    options.symmetric = options.symmetric || IsSignedInteger(override_type);
  }
  return options;
}

WeightStudy StudyWeight(const TensorRef& weight, std::int64_t channel_axis, const WeightOptions& options) {
  TensorRef aligned = weight;
  std::vector<float> converted;
  FloatView(weight, converted);
  // Converted once for all that is looked at.
  if (!converted.empty()) aligned = TensorRef::FromFloats(weight.dims, std::move(converted));
  WeightStudy study;
  study.params = ChooseWeightParams(aligned, channel_axis, options);
  const bool stored_alike = options.per_channel && options.symmetric && BitWidth(options.storage) == 8;
  if (!stored_alike) study.largest = LargestOfChannels(aligned, channel_axis);
  DropPages(weight);
  return study;
}

struct EarlyWeights::Job {
  TensorRef tensor;
  std::optional<std::int64_t> axis;  // of the channels; none: a table
  WeightOptions options;
  enum State { kOpen, kBusy, kDone, kLeft };
  std::atomic<State> state{kOpen};
  std::mutex mutex;
  std::optional<WeightStudy> study;
  std::optional<EncodedTable> table;
};

EarlyWeights::EarlyWeights(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision) {
  const Graph& graph = *model.graph;
  const auto add = [&](const Value& value, std::optional<std::int64_t> axis) {
    const TensorRef& tensor = *value.data;
    if (tensor.file == nullptr || tensor.elements() == 0 || Find(tensor, axis) != nullptr) return;
    auto job = std::make_unique<Job>();
    job->tensor = tensor;
    job->axis = axis;
    if (axis) job->options = WeightOptionsOf(config, precision, value.name());
    by_place_.emplace(tensor.bytes.data(), job.get());
    jobs_.push_back(std::move(job));
  };
  for (const Node* node = graph.first(); node != nullptr; node = node->next()) {
    const OpInfo& info = FindOp(*node);
    if (info.category != OpCategory::kWeighted && info.category != OpCategory::kMatMul) continue;
    const Value* weight = info.weight_input >= 0 ? node->input(static_cast<std::size_t>(info.weight_input)) : nullptr;
    if (weight == nullptr || !weight->is_constant() || !weight->data || weight->type.quant) continue;
    if (weight->data->dtype != DType::kF32 || weight->data->bytes.size() > kMostBytes) continue;
    const std::optional<std::int64_t> axis = ResolveAxis(info.channel_axis, *node, weight->data->dims.size());
    if (weight->data->dims.size() >= 2 && axis) add(*weight, axis);
  }
  if (config.keep_float_auto && BitWidth(precision.weight) == 8) {
    for (const Value* constant : graph.constants()) {
      if (IsTable(*constant)) add(*constant, std::nullopt);
    }
  }
  if (jobs_.empty()) return;
  try {
    thread_ = std::thread([this] { Work(); });
  } catch (const std::system_error&) {  // no thread to be had: everybody looks for himself
  }
}

EarlyWeights::~EarlyWeights() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void EarlyWeights::Work() {
  for (const std::unique_ptr<Job>& job : jobs_) {
    if (stop_) return;
    Job::State open = Job::kOpen;
    if (!job->state.compare_exchange_strong(open, Job::kBusy)) continue;
    try {
      if (job->axis) {
        job->study = StudyWeight(job->tensor, *job->axis, job->options);
      } else {
        job->table = EncodeTable(job->tensor, 1);
      }
    } catch (const std::exception&) {  // it will be thrown again where somebody needs the result
    }
    job->state = Job::kDone;
    job->state.notify_all();
  }
}

// False where it is left to the caller. The thread goes on as long as this lives: what is busy will be done.
bool EarlyWeights::Done(Job* job) {
  Job::State state = Job::kOpen;
  if (job == nullptr || job->state.compare_exchange_strong(state, Job::kLeft)) return false;
  job->state.wait(Job::kBusy);
  return job->state == Job::kDone;
}

EarlyWeights::Job* EarlyWeights::Find(const TensorRef& tensor, std::optional<std::int64_t> axis) const {
  const auto [first, last] = by_place_.equal_range(tensor.bytes.data());
  for (auto it = first; it != last; ++it) {
    const TensorRef& own = it->second->tensor;
    if (own.file == tensor.file && own.dtype == tensor.dtype && own.dims == tensor.dims && it->second->axis == axis) {
      return it->second;
    }
  }
  return nullptr;
}

std::optional<WeightStudy> EarlyWeights::TakeWeight(const TensorRef& weight, std::int64_t axis,
                                                    const WeightOptions& options) {
  Job* job = Find(weight, axis);
  if (job == nullptr || !SameOptions(job->options, options) || !Done(job)) return std::nullopt;
  const std::lock_guard lock(job->mutex);
  return std::exchange(job->study, std::nullopt);
}

std::optional<EncodedTable> EarlyWeights::TakeTable(const TensorRef& table) {
  Job* job = Find(table, std::nullopt);
  if (!Done(job)) return std::nullopt;
  const std::lock_guard lock(job->mutex);
  return std::exchange(job->table, std::nullopt);
}

}  // namespace octavo
