// `octavo inspect` of files of weights: GGUF and safetensors.
#pragma once

#include <filesystem>

#include "octavo/build/inspect.h"

namespace octavo {

// Metadata, tensors, their types and exact sizes. Errors: those of the readers.
InspectResult InspectGguf(const std::filesystem::path& path);
InspectResult InspectSafetensors(const std::filesystem::path& path);

}  // namespace octavo
