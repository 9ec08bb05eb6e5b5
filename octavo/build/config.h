// What a build is made from: the model, the data, the device and the ONE quantization configuration.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/import/data.h"
#include "octavo/quantize/config.h"

namespace octavo {

struct CompileConfig {
  bool enabled = true;                                       // --no-compile
  std::vector<std::pair<std::string, std::string>> options;  // of the execution provider
  bool embed_context = false;
  // Here quantization is set by configurations written for a compile step alone. Set here and for the build: conflict.
  std::optional<QuantizationConfig> quantization;
};

struct BuildConfig {
  std::filesystem::path model;
  std::optional<DataOptions> data;  // none: synthetic samples
  std::optional<DataOptions>
      validate_data;                 // held-out samples of their own; none: what follows the calibration samples
  std::filesystem::path weights;     // a GGUF or safetensors file whose tensors replace initializers; empty: none
  std::filesystem::path weight_map;  // JSON, initializer -> tensor, where the names differ; empty: they do not
  std::string device = "cpu";
  std::vector<std::pair<std::string, std::int64_t>> dims;  // symbolic dimension -> value
  std::optional<QuantizationConfig> quantization;          // unset: compile's, else the defaults
  bool quantize = true;                                    // --no-quant
  CompileConfig compile;
  std::int64_t validate_samples = 64;
  std::optional<double> min_sqnr;  // dB, of every output; below it the build fails and writes nothing
};

// The quantization that is in force. Throws ConfigConflictError when it is set both for the build and inside its
// compile section: both cannot be active.
const QuantizationConfig& EffectiveQuantization(const BuildConfig& config);

// Ranges of the fields (that of the quantization included) and the conflict above. Errors: kUsage naming the field.
void Validate(const BuildConfig& config);

// JSON form, schema_version 1. Paths are written absolute, so that the file repeats the build from anywhere.
// ToJson(BuildConfigFromJson(x)) is canonical.
std::string ToJson(const BuildConfig& config);

// Reads a BuildConfig, or a bare QuantizationConfig (an object whose keys are those of the quantization section).
// Errors: kUsage naming `where` and the key for unknown keys (nearest names), duplicate keys, wrong types; relative
// paths are taken from the present directory.
BuildConfig BuildConfigFromJson(const std::string& text, const std::string& where);
BuildConfig ReadBuildConfig(const std::filesystem::path& path);

// "a,b,c" -> three numbers; "WxH" -> two. Errors: kUsage naming `option`.
std::array<float, 3> ParseTriple(const std::string& text, const std::string& option);
std::pair<int, int> ParseSize(const std::string& text, const std::string& option);

}  // namespace octavo
