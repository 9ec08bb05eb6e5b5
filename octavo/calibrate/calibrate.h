// The calibration run: the float model runs once a sample, and statistics are gathered inside that run.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "octavo/calibrate/statistics.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"

namespace octavo {

struct ObserveSpec {
  std::string value;                // name of a float value of the graph, or of a subgraph if only one has it
  bool histogram = false;           // beside the range, which is always gathered
  std::optional<int> channel_axis;  // sums of x and x^2 for each index; negative counts from the end
};

struct CalibrateOptions {
  int threads = 0;                // samples in flight; 0: all cores
  std::string method = "minmax";  // kept in Statistics::method
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
