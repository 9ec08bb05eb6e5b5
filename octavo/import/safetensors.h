// safetensors files: a JSON header and raw tensors, viewed where they lie in the mapped file.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "octavo/ir/tensor.h"

namespace octavo {

struct SafeTensor {
  std::string name;
  TensorRef data;
};

// Errors: kBadInput naming file and tensor for a header that is no JSON or contradicts itself (names twice, sizes that
// do not fit their shape, data that overlap or go beyond the end); kUnsupported for element types that are not known.
std::vector<SafeTensor> ReadSafetensors(const std::filesystem::path& path);
// The same of bytes in memory, which `owner` keeps alive.
std::vector<SafeTensor> ParseSafetensors(std::span<const std::byte> bytes, const std::shared_ptr<const void>& owner,
                                         const std::string& where);

// True if the bytes begin as a safetensors file does: a length that fits, and a brace.
bool LooksLikeSafetensors(std::span<const std::byte> bytes);

}  // namespace octavo
