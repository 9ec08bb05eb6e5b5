#include "octavo/rewrite/rules/parts.h"

#include <algorithm>
#include <numeric>

#include "octavo/rewrite/rules/quantized.h"

namespace octavo {

std::string Text(const Dims& dims) {
  std::string text = "[";
  for (const std::int64_t d : dims) text += (text.size() > 1 ? "," : "") + std::to_string(d);
  return text + "]";
}

Affine Picked(const Affine& in, const std::vector<std::int64_t>& at) {
  Affine out = in;
  const std::vector<float> scales = Scales(in);
  const std::vector<std::int64_t> zeros = Zeros(in);
  std::vector<float> s;
  std::vector<std::int64_t> z;
  for (const std::int64_t i : at) {
    s.push_back(scales[static_cast<std::size_t>(i)]);
    z.push_back(zeros[static_cast<std::size_t>(i)]);
  }
  out.scale = TensorRef::FromFloats({std::ssize(at)}, s);
  out.zero_point = TensorRef::FromInts(in.storage, {std::ssize(at)}, z);
  return out;
}

namespace {

// How many elements lie before and after one axis.
struct Around {
  std::size_t outer = 1, inner = 1;
};
Around AroundAxis(const Dims& dims, std::size_t axis) {
  Around a;
  for (std::size_t i = 0; i < axis; ++i) a.outer *= static_cast<std::size_t>(dims[i]);
  for (std::size_t i = axis + 1; i < dims.size(); ++i) a.inner *= static_cast<std::size_t>(dims[i]);
  return a;
}

// Elements of a tensor of shape `dims` at `at` along `axis`.
template <typename T>
std::vector<T> ElementsAt(const std::vector<T>& values, const Dims& dims, std::size_t axis,
                          const std::vector<std::int64_t>& at) {
  const Around around = AroundAxis(dims, axis);
  std::vector<T> to;
  to.reserve(around.outer * at.size() * around.inner);
  for (std::size_t o = 0; o < around.outer; ++o) {
    for (const std::int64_t k : at) {
      const auto from =
          values.begin() + static_cast<std::ptrdiff_t>(
                               (o * static_cast<std::size_t>(dims[axis]) + static_cast<std::size_t>(k)) * around.inner);
      to.insert(to.end(), from, from + static_cast<std::ptrdiff_t>(around.inner));
    }
  }
  return to;
}

// Of parameters with a dimension for each of the tensor's: those at `at` along `axis`.
Affine PickedAlong(const Affine& in, std::size_t axis, const std::vector<std::int64_t>& at) {
  Affine out = in;
  const Dims& dims = in.scale.dims;
  Dims to = dims;
  to[axis] = std::ssize(at);
  out.scale = TensorRef::FromFloats(to, ElementsAt(Scales(in), dims, axis, at));
  if (in.zero_point) out.zero_point = TensorRef::FromInts(in.storage, to, ElementsAt(Zeros(in), dims, axis, at));
  return out;
}

// The blocks that rows `at` of an axis of `n` consist of; empty when they are no whole blocks.
std::vector<std::int64_t> WholeBlocks(const std::vector<std::int64_t>& at, std::int64_t block, std::int64_t n) {
  std::vector<std::int64_t> blocks;
  for (std::size_t i = 0; i < at.size();) {
    const std::int64_t first = at[i], length = std::min(block, n - first);
    const auto end = i + static_cast<std::size_t>(length);
    // A block that the axis ends in is a whole one only where the part ends too.
    if (first % block != 0 || end > at.size() || (length < block && end != at.size())) return {};
    for (std::int64_t t = 0; t < length; ++t) {
      if (at[i + static_cast<std::size_t>(t)] != first + t) return {};
    }
    blocks.push_back(first / block);
    i = end;
  }
  return blocks;
}

}  // namespace

TensorRef Cut(const TensorRef& data, std::size_t axis, const std::vector<std::int64_t>& at) {
  Dims shape = data.dims;
  shape[axis] = std::ssize(at);
  return TensorRef::FromInts(data.dtype, std::move(shape), ElementsAt(data.ToInts(), data.dims, axis, at));
}

MatchOr<Affine> CutParameters(std::string_view rule, const Affine& in, const Dims& from, const Indices& kept) {
  const auto axis = static_cast<std::size_t>(*in.axis);
  if (in.block == 0) return Picked(in, kept[axis]);
  if (in.scale.dims.size() != from.size()) {
    return Refusal{"the scales of its blocks have another rank than the tensor"};
  }
  Affine out = in;
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::vector<std::int64_t> at = kept[i];
    if (i == axis) {
      std::vector<std::int64_t> blocks = WholeBlocks(at, in.block, from[axis]);
      if (!Holds(std::string(rule) + "/block-borders", !blocks.empty())) {
        return Refusal{"it cuts " + std::to_string(at.front()) + ".." + std::to_string(at.back() + 1) +
                       " out of blocks of " + std::to_string(in.block) + ", not along their borders"};
      }
      if (blocks.empty()) {
        blocks.resize((at.size() - 1) / static_cast<std::size_t>(in.block) + 1);
        std::iota(blocks.begin(), blocks.end(), at.front() / in.block);
      }
      at = std::move(blocks);
    }
    if (std::ssize(at) != out.scale.dims[i] || !std::is_sorted(at.begin(), at.end())) out = PickedAlong(out, i, at);
  }
  return out;
}

MatchOr<Affine> JoinParameters(std::string_view rule, const std::vector<Part>& parts, std::int64_t axis) {
  const Affine& first = parts.front().affine;
  const bool along = axis == *first.axis;
  // Rows of scales lie side by side as rows of the tensors do; where only the axis has scales, it is all there is.
  const auto at = static_cast<std::size_t>(first.block > 0 ? axis : 0);
  const bool joined = first.block > 0 || along;
  Affine out = first;
  Dims dims = first.scale.dims;
  if (at >= dims.size()) return Refusal{"the scales of its blocks have another rank than the tensor"};
  std::int64_t rows = 0;
  bool zeros = false;
  for (const Part& part : parts) {
    const Affine& a = part.affine;
    if (a.storage != first.storage || a.axis != first.axis || a.block != first.block ||
        a.scale.dims.size() != dims.size() || part.dims.size() != parts.front().dims.size()) {
      return Refusal{"its inputs are quantized along different axes, in different blocks or types"};
    }
    for (std::size_t i = 0; i < dims.size(); ++i) {
      if (i != at && a.scale.dims[i] != dims[i]) return Refusal{"its inputs' scales have different shapes"};
    }
    if (!Holds(std::string(rule) + "/same-parameters", joined || SameParams(a, first))) {
      return Refusal{"its inputs have different scales along axis " + std::to_string(*first.axis) +
                     ", and are joined along axis " + std::to_string(axis)};
    }
    const std::int64_t n = part.dims[static_cast<std::size_t>(axis)];
    const bool last = &part == &parts.back();
    if (first.block > 0 && along && !Holds(std::string(rule) + "/block-borders", last || n % first.block == 0)) {
      return Refusal{"an input of " + std::to_string(n) + " rows ends inside a block of " +
                     std::to_string(first.block)};
    }
    rows += a.scale.dims[at];
    zeros = zeros || a.zero_point.has_value();
  }
  if (!joined) return out;
  const auto [outer, inner] = AroundAxis(dims, at);
  std::vector<float> scales;
  std::vector<std::int64_t> zero_points;
  for (std::size_t o = 0; o < outer; ++o) {
    for (const Part& part : parts) {
      const std::vector<float> s = Scales(part.affine);
      const std::vector<std::int64_t> z = Zeros(part.affine);
      const auto run = static_cast<std::size_t>(part.affine.scale.dims[at]) * inner;
      const auto from = static_cast<std::ptrdiff_t>(o * run), to = static_cast<std::ptrdiff_t>((o + 1) * run);
      scales.insert(scales.end(), s.begin() + from, s.begin() + to);
      zero_points.insert(zero_points.end(), z.begin() + from, z.begin() + to);
    }
  }
  dims[at] = rows;
  // Borders that are none of the blocks: there are more or fewer of them than the result has.
  std::int64_t length = 0;
  for (const Part& part : parts) length += part.dims[static_cast<std::size_t>(axis)];
  if (first.block > 0 && along && (length + first.block - 1) / first.block != rows) {
    return Refusal{std::to_string(rows) + " blocks of " + std::to_string(first.block) + " are not those of " +
                   std::to_string(length) + " rows"};
  }
  out.scale = TensorRef::FromFloats(dims, scales);
  out.zero_point = zeros ? std::optional(TensorRef::FromInts(first.storage, dims, zero_points)) : std::nullopt;
  return out;
}

}  // namespace octavo
