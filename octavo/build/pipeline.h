// The pipeline: import, quantize, rewrite, compile, validate, publish; and its stages one by one.
//
// Every command uses these functions, so that staged commands give the same bytes as a build.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/build/config.h"
#include "octavo/build/manifest.h"
#include "octavo/build/weights.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

struct BuildOptions {
  BuildConfig config;
  std::filesystem::path out;
  int threads = 0;            // 0: all cores; decides speed only, never the artifact
  bool force = false;         // replaces an existing OUT
  bool require_data = false;  // no --data is an error (also OCTAVO_REQUIRE_DATA=1)
  bool cache = true;          // finished stages in $XDG_CACHE_HOME/octavo (stage_cache.h)
};

struct BuildResult {
  bool up_to_date = false;  // OUT is what these inputs give; nothing was done and manifest is empty
  bool reused = false;      // all of it came from the cache; `manifest` is empty, manifest_json is not
  Manifest manifest;
  std::string manifest_json;
};

// Builds options.out, whole or not at all. Errors: kUsage (configuration, an existing OUT without force, no data where
// it is required), kBadInput (model, data), kUnsupported (device, precision, an EPContext model), kGate (min_sqnr; NaN
// or infinity where the float model has none).
BuildResult Build(const BuildOptions& options);

// The device of that name. Errors: kUsage for any other name (nearest names).
const DeviceDescriptor& RequireDevice(const std::string& name);

// Files beside the model that hold its weights, in name order.
std::vector<std::filesystem::path> ExternalFiles(const Model& model, const std::filesystem::path& source);

inline constexpr std::size_t kSyntheticChecks = 8;  // samples that a build without data is run on

// Reads a model and gets it ready for quantization: dimensions fixed, Q/DQ folded into types. Errors: kUnsupported for
// an EPContext model, which is compiled already.
Model ImportModel(const BuildConfig& config);
// The first half of it: the model with its dimensions fixed, initializers that config.weights replaces taken out
// (weights.h). Whoever calls it folds, simplifies, and puts the weights in.
Model ReadSource(const BuildConfig& config, std::optional<WeightReplacement>& weights);

struct DataPlan {
  std::unique_ptr<DataSource> source;  // calibration samples first
  bool synthetic = false;
  std::size_t calibration = 0;  // samples [0, calibration) calibrate
};
// Opens the data, or makes synthetic samples: `config.samples` for calibration and `extra` more. Warns when they are
// synthetic. Errors: kUsage when require_data is set (or OCTAVO_REQUIRE_DATA=1) and there are no data.
DataPlan OpenSamples(const Model& model, const BuildConfig& config, bool require_data, std::size_t extra);

// `octavo quantize`: one model in, one quantized model out; the same bytes as a build's model.onnx. Writes the file
// whole or not at all. Errors: as Build.
struct QuantizeFileResult {
  QuantizeResult quantize;
  std::filesystem::path source, out;
  std::string precision;
  bool synthetic = false;
  std::uint64_t bytes_before = 0, bytes_after = 0;
  double seconds = 0;
};
QuantizeFileResult QuantizeFile(const BuildConfig& config, const std::filesystem::path& out, int threads,
                                bool require_data);

// `octavo calibrate`: writes the statistics that quantizing with this configuration needs. `octavo calibrate merge`:
// adds up statistics of shards, exactly; an empty `out`: nothing is written (--dry-run). Errors: kBadInput for files
// that do not belong together.
struct CalibrateFileResult {
  std::size_t samples = 0, tensors = 0;
  std::string method;
  double seconds = 0;
};
CalibrateFileResult CalibrateFile(const BuildConfig& config, const std::filesystem::path& out, int threads,
                                  bool require_data);
CalibrateFileResult MergeStatistics(const std::vector<std::string>& shards, const std::filesystem::path& out);

std::string ToJson(const CalibrateFileResult& result);

// The text of OUT/manifest.json.
std::string ReadManifest(const std::filesystem::path& out);

}  // namespace octavo
