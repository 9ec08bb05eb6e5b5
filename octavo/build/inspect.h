// What is in a file: a model (values, operators, what is quantized how), weights or calibration statistics.
#pragma once

#include <filesystem>
#include <string>

namespace octavo {

struct InspectOptions {
  bool ir = false;     // the textual IR instead of the table
  bool nodes = false;  // a line for every node
};

struct InspectResult {
  std::string text;  // for people
  std::string json;
};

// Tells the kind of file from its content. Errors: kBadInput for a file that is none of them or is corrupt.
InspectResult Inspect(const std::filesystem::path& path, const InspectOptions& options);

}  // namespace octavo
