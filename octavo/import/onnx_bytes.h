// The in-memory entry of the ONNX importer, for fuzzing, tests and models that never were files.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// As ReadOnnx; tensors are views into `bytes`, which `owner` keeps alive. `name` stands for the path in messages.
// External data are refused (kBadInput): there is no folder to find them in.
Model ReadOnnxBytes(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, const std::string& name);

}  // namespace octavo
