// Constant data: a view with shared ownership. Weights are viewed where they lie (a mapped file), never copied
// without need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/mapped_file.h"
#include "octavo/base/spill.h"
#include "octavo/ir/dtype.h"

namespace octavo {

using Dims = std::vector<std::int64_t>;

// Product of dims; Error(kBadInput) on a negative dimension or overflow of 2^63. `where` names the tensor.
std::uint64_t ElementCount(std::span<const std::int64_t> dims, const std::string& where = {});

// Dense little-endian tensor, sub-byte types packed low nibble first (as ONNX raw_data). `bytes` may be unaligned.
// Copying a TensorRef copies the view, not the data.
struct TensorRef {
  DType dtype = DType::kUndefined;
  Dims dims;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;       // keeps bytes alive
  std::shared_ptr<const MappedFile> file;  // set when bytes lie inside this mapped file (owner is then the file)
  std::shared_ptr<const std::vector<std::string>> strings;  // only for DType::kString; bytes is empty

  std::uint64_t elements() const { return ElementCount(dims); }
  bool scalar_like() const { return elements() == 1; }

  // A tensor owning a copy of / the moved buffer. Checks that the size fits dims (kInternal otherwise).
  static TensorRef FromBytes(DType dtype, Dims dims, std::vector<std::byte> data);
  static TensorRef FromBuffer(DType dtype, Dims dims, SpillBuffer data);
  static TensorRef FromFloats(Dims dims, std::span<const float> values);
  static TensorRef FromInts(DType dtype, Dims dims, std::span<const std::int64_t> values);  // integer dtypes, packed
  static TensorRef Scalar(float value) { return FromFloats({}, {&value, 1}); }

  // Element-wise conversion to a new vector. ToFloats takes every real dtype, ToInts every integer dtype and bool.
  // kInternal on a dtype that has no such conversion.
  std::vector<float> ToFloats() const;
  std::vector<std::int64_t> ToInts() const;
};

// Bits of element `i`, sub-byte types unpacked, upper bits zero. For dtypes of 2..64 bits; `i` must lie inside `bytes`.
std::uint64_t ElementBits(const TensorRef& tensor, std::uint64_t i);

// Value of the bit pattern of a floating-point dtype, and the reverse with round-half-to-even (overflow to Inf, NaN
// stays NaN). BitsToFloat takes every float dtype but f64; FloatToBits f32, f16 and bf16. kInternal on others.
// They are the IR's own, for literals and small parameters; numerics holds the codecs for tensors.
float BitsToFloat(DType dtype, std::uint32_t bits);
std::uint32_t FloatToBits(DType dtype, float value);

// The tensor as floats, without a copy where it is f32 and lies aligned; else converted into `storage`.
std::span<const float> FloatView(const TensorRef& tensor, std::vector<float>& storage);

// Same dtype, dims and bytes (strings compared by value).
bool SameContent(const TensorRef& a, const TensorRef& b);

}  // namespace octavo
