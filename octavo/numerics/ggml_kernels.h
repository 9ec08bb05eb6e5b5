// The vector kernels of the GGML codecs: the bytes of ggml_reference.h. Signatures as in GgmlFormat.
#pragma once

#include <cstddef>
#include <cstdint>

#include "octavo/numerics/ggml_reference.h"

namespace octavo::ggml {

#define OCTAVO_DECLARE(name)                                                                    \
  void Encode##name(const float* x, std::size_t n, const float* importance, std::byte* blocks); \
  void Decode##name(const std::byte* blocks, std::size_t n, float* out);
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_DECLARE)
#undef OCTAVO_DECLARE

// Copies to memory past the caches: for results that no cache could hold.
void CopyPastCache(const void* from, std::size_t bytes, void* to);

// Of the largest magnitude, its bits: ordered as the magnitudes are, infinity and then NaN above all.
std::uint32_t LargestBits(const float* x, std::size_t n);

}  // namespace octavo::ggml
