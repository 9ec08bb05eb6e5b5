// Two models on the same data: how far the outputs of one are from those of the other, and where that begins.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "octavo/import/data.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/runtime/session.h"

namespace octavo {

// SQNR in dB as written to files: JSON has no infinity, so equal outputs read +300 and non-finite ones -300.
inline constexpr double kSqnrLimitDb = 300.0;

struct OutputError {
  std::string name;
  std::string op;    // per layer: the operator that makes the value in the reference
  ErrorStats stats;  // pooled over all elements of all samples
  std::uint64_t rows = 0, same_top1 = 0;
  bool class_scores = false;  // rank 2, at least two columns: top-1 agreement means something

  double SqnrDb() const;  // within +-kSqnrLimitDb
  std::optional<double> Top1Agreement() const;
  void Merge(const OutputError& other);  // adds up another sample's errors of the same output
};

struct CompareOptions {
  // The reference runs as the law does, unoptimized; the candidate as its user will run it, with the default session.
  GraphOptimization reference_optimization = GraphOptimization::kNone;
  GraphOptimization candidate_optimization = GraphOptimization::kAll;
  int threads = 0;         // 0: all cores; never changes the figures
  std::size_t first = 0;   // samples [first, first + count)
  std::size_t count = 0;   // 0: up to the last
  std::size_t batch = 48;  // per layer: values exposed at once, which bounds the memory
};

struct CompareResult {
  std::size_t samples = 0;
  std::vector<OutputError> outputs;
  double reference_seconds = 0;  // inside runs only, summed over the samples
  double candidate_seconds = 0;
  double seconds = 0;  // everything, loading included
};

// Runs both models on the samples and compares their outputs: by name where the names are the same set, else in order.
// Integer and bool outputs are compared as numbers, strings as equal or not. Streams: nothing of a sample is kept.
// Errors: kBadInput when the models' inputs or outputs do not fit each other, the data do not fit, or a run fails.
CompareResult CompareModels(const std::filesystem::path& reference, const std::filesystem::path& candidate,
                            const DataSource& data, const CompareOptions& options);

// The same for every float value that has the same name in both models, in the reference's execution order, sessions
// without optimization (fused values cannot be seen). A value of the candidate that is quantized right away is compared
// as its users see it: dequantized; one that took in what follows it (BatchNormalization, Relu) is compared with the
// reference's value behind those. Outputs are those values.
CompareResult CompareLayers(const std::filesystem::path& reference, const std::filesystem::path& candidate,
                            const DataSource& data, const CompareOptions& options);

// SQNR pooled over all outputs' elements, within +-kSqnrLimitDb.
double PooledSqnrDb(const std::vector<OutputError>& outputs);
// NaN or infinity where the reference has none, in any output.
bool HasNonFinite(const std::vector<OutputError>& outputs);

// Adds one pair of tensors to `error`; shapes must agree (kBadInput naming `where` and both shapes).
void AddError(OutputError& error, const TensorRef& reference, const TensorRef& candidate, const std::string& where);

// JSON of a comparison: {"samples", "seconds", "outputs": [{name, sqnr_db, cosine, max_abs, mse, top1_agreement?}]}.
std::string ToJson(const CompareResult& result, const CompareResult* layers = nullptr);
class JsonWriter;
void WriteOutputError(JsonWriter& json, const OutputError& error);
// A table for people; `layers` prints the operator column.
std::string ToTable(const std::vector<OutputError>& outputs, bool layers);

}  // namespace octavo
