// The calibration run: the float model runs once a sample, and statistics are gathered inside that run.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "octavo/calibrate/statistics.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/numerics/affine.h"

namespace octavo {

struct ObserveSpec {
  std::string value;                // name of a float value of the graph, or of a subgraph if only one has it
  bool histogram = false;           // beside the range, which is always gathered
  std::optional<int> channel_axis;  // sums of x and x^2 for each index; negative counts from the end
  // Whether Calibration::RunRounded can round the value, and for which of its users (empty: for all of them).
  bool rounds = false;
  std::vector<const Node*> round_users = {};
};

struct Rounding {
  AffineParams params;
  DType storage = DType::kU8;
};

// Float outputs of one sample that are remembered.
inline constexpr std::size_t kMostRememberedBytes = std::size_t{1} << 20;

struct CalibrateOptions {
  int threads = 0;                // samples in flight; 0: all cores
  std::string method = "minmax";  // kept in Statistics::method
};

// ONE session of the float model with observers in it: it gathers statistics, and it runs samples with some tensors
// rounded, so that what a rounding costs at the outputs is measured without another session.
class Calibration {
 public:
  // Nothing is loaded before the first run. `float_model` must outlive this object and stay as it is.
  Calibration(const Model& float_model, std::vector<ObserveSpec> observe, const CalibrateOptions& options = {});
  ~Calibration();
  Calibration(Calibration&&) noexcept;

  // As Calibrate below; at most once.
  Statistics Gather(const DataSource& data, std::size_t first, std::size_t count);

  // One run, one thread: `rounding[i]`, where set, rounds the values of `observe[i]` (which must have `rounds`) on
  // their way to its round_users. Returns the float outputs. A Softmax at the model's end hides noise wherever it is
  // sure of itself, which is nearly everywhere: few samples would decide by chance. Its logarithm, which shows the
  // noise of every element, comes before it as an output of its own. Thread safe. kBadInput for a sample of another
  // model.
  std::vector<std::vector<float>> RunRounded(const KeptSample& sample,
                                             std::span<const std::optional<Rounding>> rounding) const;
  // RunRounded without any rounding. Gather remembers them for the samples that its statistics keep, as far as they are
  // at most kMostRememberedBytes: those cost no run. What is remembered is handed out once.
  std::vector<std::vector<float>> Reference(const KeptSample& sample);

  // Loads the session, which the first run would do otherwise. Thread safe.
  void Load() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Observes `observe` on samples [first, first + count) of `data`.
//
// An observer stands in the data path behind each value (all its consumers, captures by subgraphs too, read the
// observer's output, which is the same memory), so no activation lives longer than in the bare model and nothing is
// kept of a sample. Samples run in parallel, one thread inside an operator each; statistics merge exactly: the result
// is the same for every number of threads. A value of f16, bf16 or f64 is observed as f32.
//
// +-Inf inside the model (attention masks) is counted and left out of the range. Errors: kBadInput, naming sample and
// value, for NaN anywhere, for NaN or Inf in the data, and for a sample that the model cannot run; of several failing
// samples the first is named. kUsage for a name that no value or more than one has, with the nearest names, for a
// constant, and for a value that is not of a float type. kInternal for a value named twice, and when samples
// [first, first + count) are not all there.
Statistics Calibrate(const Model& float_model, const DataSource& data, std::size_t first, std::size_t count,
                     std::span<const ObserveSpec> observe, const CalibrateOptions& options = {});

}  // namespace octavo
