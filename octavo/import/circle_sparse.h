// Sparse constants of Circle and TFLite files. Internal to this room: include it only from its .cc files.
#pragma once

#include <circle_generated.h>

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "octavo/ir/tensor.h"

namespace octavo::internal {

// The dense row-major elements of a tensor of the shape `dims` whose stored ones are `data`, `element` bytes each:
// dimensions in the order that the metadata say, each dense or compressed (CSR), some of them split into blocks
// (tensorflow/lite/schema: SparsityParameters). What is not stored is zero bytes. nullopt when the metadata do not fit
// the shape or the data, or an index lies outside (safe on hostile bytes).
std::optional<std::vector<std::byte>> Densify(const fbs::SparsityParameters& sparsity, const Dims& dims,
                                              std::size_t element, std::span<const std::byte> data);

}  // namespace octavo::internal
