// What is known of weights before the graph is ready: a thread looks at them while the float passes, which have little
// to do for a second core, wait for the runtime.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/tables.h"
#include "octavo/quantize/weights.h"

namespace octavo {

// How the weight of this name is quantized.
WeightOptions WeightOptionsOf(const QuantizationConfig& config, const ResolvedPrecision& precision,
                              const std::string& weight);

struct WeightStudy {
  std::vector<AffineParams> params;  // ChooseWeightParams
  std::vector<float> largest;        // |w| of each channel; empty for symmetric 8-bit weights with a scale a channel
};
WeightStudy StudyWeight(const TensorRef& weight, std::int64_t channel_axis, const WeightOptions& options);

// Starts with the weights and tables of the graph as it is; what the passes replace is looked at for nothing. Only what
// lies in a mapped file: a place in it is a name that no other weight gets. Results are those of StudyWeight and
// EncodeTable, whoever asks first.
class EarlyWeights {
 public:
  EarlyWeights(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision);
  ~EarlyWeights();  // waits for the piece of work that is going on
  EarlyWeights(const EarlyWeights&) = delete;
  EarlyWeights& operator=(const EarlyWeights&) = delete;

  // Each result is given out once; any thread may ask. What has not been begun is left to the caller: nullopt.
  std::optional<WeightStudy> TakeWeight(const TensorRef& weight, std::int64_t axis, const WeightOptions& options);
  std::optional<EncodedTable> TakeTable(const TensorRef& table);

 private:
  struct Job;
  static bool Done(Job* job);
  Job* Find(const TensorRef& tensor, std::optional<std::int64_t> axis) const;
  void Work();

  std::vector<std::unique_ptr<Job>> jobs_;
  std::unordered_multimap<const std::byte*, Job*> by_place_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace octavo
