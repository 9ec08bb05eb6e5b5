// `octavo quantize` of a GGUF: chosen by what the input is.
#pragma once

#include <optional>
#include <string>

#include "cli/options.h"

namespace octavo::cli {

struct GgufFlags {
  std::optional<std::string> max_memory;
};

// True if the file is there and starts as a GGUF.
bool IsGgufFile(const std::string& file);
int QuantizeGgufFile(const std::string& source, const std::string& out, const ConfigFlags& flags,
                     const GgufFlags& gguf);

}  // namespace octavo::cli
