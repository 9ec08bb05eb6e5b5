// manifest.json: what a build did, measured and left out. See docs/manifest.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/quantize/quantize.h"
#include "octavo/rewrite/rule.h"
#include "octavo/validate/compare.h"

namespace octavo {

struct FileRecord {
  std::string path;
  std::string sha256;
  std::uint64_t bytes = 0;
};
FileRecord RecordFile(const std::filesystem::path& file, std::string shown_as);

struct StageRecord {
  std::string name;    // import, quantize, rewrite, compile, validate, publish
  std::string status;  // done | skipped | reused
  double seconds = 0;
  std::uint64_t peak_rss_bytes = 0;
  std::string note;  // why it was skipped
};

struct FallbackNode {
  std::string node, op, reason, remedy;
};

struct Manifest {
  std::string inputs_sha256;  // of everything that decides the artifact: "up to date" compares it
  FileRecord source;
  std::vector<FileRecord> source_external;  // external data of the source model
  std::string device, ep, ep_version;
  std::vector<std::pair<std::string, std::string>> device_options;
  std::string precision;
  std::string quantization_config;  // its JSON
  std::string calibration_source;   // data | synthetic | loaded | none
  std::string calibration_method;
  std::string calibration_sha256;  // of the samples, or of the loaded statistics
  std::vector<StageRecord> stages;
  QuantizeResult quantize;
  std::vector<RuleCount> rewrite;               // of the rewrite stage, after quantization
  std::int64_t integer_layers = 0, layers = 0;  // layers that multiply and add, and those in integer kernels
  double compile_seconds = 0;
  std::int64_t ep_context_nodes = 0, boundary_nodes = 0;
  std::string in_parts;                       // why the provider did not take the model as a whole
  std::string not_compiled_here;              // why the artifact was not compiled, where it should be
  std::string artifact_session = "default";   // what ran it in validation
  std::vector<double> quantized_on_cpu_dbs;   // of each output of `validate`
  std::optional<double> quantized_on_cpu_db;  // pooled SQNR of what was compiled, on the CPU, optimizations off
  std::vector<FallbackNode> cpu_fallback_nodes;
  CompareResult validate;
  std::string validated_on;  // held_out | calibration | synthetic
  bool accuracy_validated = false;
  std::optional<double> float_seconds, artifact_seconds;  // median latency of a run, measured in turn
  std::vector<FileRecord> artifacts;
  std::vector<std::string> warnings;
};

inline constexpr int kManifestSchemaVersion = 1;
inline constexpr const char* kManifestName = "manifest.json";

std::string ToJson(const Manifest& manifest);

// The manifest of an earlier build of the same inputs for a run that reuses all of it: with the source, the stages and
// the artifacts of `now` in the place of those of that run (artifacts: where the path is the same). `kept` is ToJson's.
std::string ReusedManifest(const std::string& kept, const Manifest& now);
std::vector<std::string> WarningsOf(const std::string& manifest_json);

// What "up to date" needs of an earlier build: nullopt when `out` holds no manifest of this schema.
struct EarlierBuild {
  std::string inputs_sha256;
  std::vector<FileRecord> artifacts;
};
std::optional<EarlierBuild> EarlierBuildFromJson(const std::string& text);  // nullopt too for what is no manifest
std::optional<EarlierBuild> ReadEarlierBuild(const std::filesystem::path& out);

// JSON of one quantization, for `octavo quantize --json`.
std::string ToJson(const QuantizeResult& result);

}  // namespace octavo
