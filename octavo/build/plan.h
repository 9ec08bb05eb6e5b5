// What --dry-run says: effective types, inputs, samples, what would be written and about how big.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/build/config.h"

namespace octavo {

// kModel: a model file, for which samples are opened only where they decide something; kStatistics: no model at all.
enum class PlanFor { kBuild, kModel, kStatistics };

struct BuildPlan {
  std::filesystem::path source, out;
  double source_bytes = 0;  // with its external data
  std::size_t nodes = 0;
  std::vector<std::pair<std::string, std::string>> inputs;  // name, type
  std::optional<std::string> samples;                       // what they are; none where nothing depends on them
  bool synthetic = false;
  bool keeps_quantization = false;  // the model is quantized already
  std::string precision, device, weights, activations;
  std::string format = "onnx";        // of what would be written
  std::optional<double> model_bytes;  // an estimate; none where there is no honest one
  PlanFor what = PlanFor::kBuild;
};

// Reads the model and opens the data, as the run would. Errors: those that the run would end with there.
BuildPlan MakePlan(const BuildConfig& config, const std::filesystem::path& out, bool require_data, PlanFor what);

std::string ToText(const BuildPlan& plan);
std::string ToJson(const BuildPlan& plan);

}  // namespace octavo
