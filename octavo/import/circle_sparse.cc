#include "octavo/import/circle_sparse.h"

#include <cstdint>
#include <cstring>

namespace octavo::internal {
namespace {

constexpr std::size_t kMostLevels = 16;
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 31;

// The numbers of a list whose elements have one of three widths; nullopt when it is not there or has a negative one.
std::optional<std::vector<std::uint64_t>> Numbers(fbs::SparseIndexVector type, const void* list) {
  std::vector<std::uint64_t> out;
  if (list == nullptr) return std::nullopt;
  const auto append = [&](const auto* values) {
    if (values == nullptr) return false;
    out.reserve(values->size());
    for (const auto v : *values) {
      if constexpr (std::is_signed_v<decltype(v)>) {
        if (v < 0) return false;
      }
      out.push_back(static_cast<std::uint64_t>(v));
    }
    return true;
  };
  bool read = false;
  if (type == fbs::SparseIndexVector::Int32Vector) read = append(static_cast<const fbs::Int32Vector*>(list)->values());
  if (type == fbs::SparseIndexVector::Uint16Vector) {
    read = append(static_cast<const fbs::Uint16Vector*>(list)->values());
  }
  if (type == fbs::SparseIndexVector::Uint8Vector) read = append(static_cast<const fbs::Uint8Vector*>(list)->values());
  if (!read) return std::nullopt;
  return out;
}

struct Level {
  std::uint64_t size = 0;    // of the dimension, or of the blocks' one
  std::uint64_t stride = 0;  // dense elements from one index to the next
  bool sparse = false;
  std::vector<std::uint64_t> segments, indices;
};

// Walks the levels; `at` is the position among the parents' elements, `to` the dense element they stand for.
class Walk {
 public:
  Walk(const std::vector<Level>& levels, std::size_t element, std::span<const std::byte> data,
       std::vector<std::byte>& out)
      : levels_(levels), element_(element), data_(data), out_(out) {}

  // False when something lies outside. The recursion is as deep as there are levels.
  bool Run(std::size_t depth, std::uint64_t at, std::uint64_t to) {
    if (depth == levels_.size()) {
      if (at >= data_.size() / element_ || to >= out_.size() / element_) return false;
      std::memcpy(out_.data() + to * element_, data_.data() + at * element_, element_);
      return true;
    }
    const Level& level = levels_[depth];
    if (!level.sparse) {
      for (std::uint64_t i = 0; i < level.size; ++i) {
        if (!Run(depth + 1, at * level.size + i, to + i * level.stride)) return false;
      }
      return true;
    }
    if (at + 1 >= level.segments.size()) return false;
    const std::uint64_t begin = level.segments[at], end = level.segments[at + 1];
    if (begin > end || end > level.indices.size()) return false;
    for (std::uint64_t i = begin; i < end; ++i) {
      if (level.indices[i] >= level.size) return false;
      if (!Run(depth + 1, i, to + level.indices[i] * level.stride)) return false;
    }
    return true;
  }

 private:
  const std::vector<Level>& levels_;
  std::size_t element_;
  std::span<const std::byte> data_;
  std::vector<std::byte>& out_;
};

}  // namespace

std::optional<std::vector<std::byte>> Densify(const fbs::SparsityParameters& sparsity, const Dims& dims,
                                              std::size_t element, std::span<const std::byte> data) {
  const auto* order = sparsity.traversal_order();
  const auto* metadata = sparsity.dim_metadata();
  const std::size_t rank = dims.size(), blocks = sparsity.block_map() == nullptr ? 0 : sparsity.block_map()->size();
  if (order == nullptr || metadata == nullptr || rank + blocks > kMostLevels || order->size() != rank + blocks ||
      metadata->size() != rank + blocks || element == 0) {
    return std::nullopt;
  }
  std::uint64_t bytes = element;
  for (const std::int64_t d : dims) {
    if (d < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(d), &bytes) || bytes > kMostBytes)
      return std::nullopt;
  }
  std::vector<std::uint64_t> stride(rank, 1);
  for (std::size_t i = rank; i-- > 1;) stride[i - 1] = stride[i] * static_cast<std::uint64_t>(dims[i]);
  // The size of each dimension's block: 1 where it has none.
  std::vector<std::uint64_t> block(rank, 1);
  std::vector<bool> seen(rank + blocks, false);
  std::vector<Level> levels(rank + blocks);
  for (std::size_t pass = 0; pass < 2; ++pass) {  // blocks first: the outer dimensions' sizes come from them
    for (std::size_t i = 0; i < rank + blocks; ++i) {
      const auto n = static_cast<flatbuffers::uoffset_t>(i);
      const std::int32_t d = order->Get(n);
      if (d < 0 || static_cast<std::size_t>(d) >= rank + blocks) return std::nullopt;
      const auto dimension = static_cast<std::size_t>(d);
      if ((dimension >= rank) != (pass == 0)) continue;
      if (seen[dimension]) return std::nullopt;
      seen[dimension] = true;
      const fbs::DimensionMetadata& meta = *metadata->Get(n);
      Level& level = levels[i];
      level.sparse = meta.format() == fbs::DimensionType::SPARSE_CSR;
      if (dimension >= rank) {
        const std::int32_t of = sparsity.block_map()->Get(static_cast<flatbuffers::uoffset_t>(dimension - rank));
        if (level.sparse || of < 0 || static_cast<std::size_t>(of) >= rank ||
            block[static_cast<std::size_t>(of)] != 1 || meta.dense_size() <= 0 ||
            dims[static_cast<std::size_t>(of)] % meta.dense_size() != 0) {
          return std::nullopt;
        }
        level.size = block[static_cast<std::size_t>(of)] = static_cast<std::uint64_t>(meta.dense_size());
        level.stride = stride[static_cast<std::size_t>(of)];
      } else {
        level.size = static_cast<std::uint64_t>(dims[dimension]) / block[dimension];
        level.stride = stride[dimension] * block[dimension];
        if (!level.sparse && meta.dense_size() != static_cast<std::int64_t>(level.size)) return std::nullopt;
      }
      if (level.sparse) {
        auto segments = Numbers(meta.array_segments_type(), meta.array_segments());
        auto indices = Numbers(meta.array_indices_type(), meta.array_indices());
        if (!segments || !indices) return std::nullopt;
        level.segments = std::move(*segments);
        level.indices = std::move(*indices);
      }
    }
  }
  std::vector<std::byte> out(bytes, std::byte{0});
  if (bytes != 0 && !Walk(levels, element, data, out).Run(0, 0, 0)) return std::nullopt;
  return out;
}

}  // namespace octavo::internal
