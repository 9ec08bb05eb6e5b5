// Parts of tensors whose scales run along an axis or in blocks: the codes and the parameters that go with them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/rewrite/rule.h"

namespace octavo {

using Indices = std::vector<std::vector<std::int64_t>>;  // what is kept of each axis, in order

std::string Text(const Dims& dims);  // "[4,8]"

// Scales and zero points at `at` along their axis.
Affine Picked(const Affine& in, const std::vector<std::int64_t>& at);

// Constant data at `at` along `axis`.
TensorRef Cut(const TensorRef& data, std::size_t axis, const std::vector<std::int64_t>& at);

// Parameters of the part of a tensor of shape `from` that `kept` says. Along the axis of blocks it consists of whole
// blocks, else a refusal: condition "<rule>/block-borders".
MatchOr<Affine> CutParameters(std::string_view rule, const Affine& in, const Dims& from, const Indices& kept);

// Parameters of tensors side by side along `axis`, each with those of its own: one storage, axis and block; along
// another axis than the scales', equal scales; along the blocks' axis, whole blocks in all but the last. Conditions
// "<rule>/same-parameters" and "<rule>/block-borders".
struct Part {
  Affine affine;
  Dims dims;
};
MatchOr<Affine> JoinParameters(std::string_view rule, const std::vector<Part>& parts, std::int64_t axis);

}  // namespace octavo
