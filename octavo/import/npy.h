// NumPy's .npy format, versions 1 to 3 (numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "octavo/ir/tensor.h"

namespace octavo {

// Bytes that somebody keeps alive, and what messages call them.
struct ByteSource {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
  std::shared_ptr<const MappedFile> file;  // set when bytes lie in this mapped file
  std::string name;
};

// A header takes at most this many bytes (NumPy itself stops at 10,000 characters).
inline constexpr std::size_t kMaxNpyHeader = std::size_t{1} << 16;

struct NpyHeader {
  DType dtype = DType::kUndefined;
  Dims dims;
  bool fortran_order = false;
  bool big_endian = false;
  std::size_t item_bytes = 0;    // an element's; for strings the room that the longest one has
  bool utf32 = false;            // strings of 4-byte characters ("<U7"), else of bytes ("|S7")
  std::size_t header_bytes = 0;  // where the data begin
  std::uint64_t data_bytes = 0;

  // The data can be used as they lie: row major, little endian, no strings.
  bool plain() const { return dtype != DType::kString && !big_endian && !(fortran_order && dims.size() > 1); }
};

// Reads the header at the begin of `bytes`, which may end right after it. Errors: kBadInput when it is truncated,
// malformed or its size overflows; kUnsupported for objects, structures, times and types that ONNX lacks.
NpyHeader ParseNpyHeader(std::span<const std::byte> bytes, const std::string& name);

// The data that belong to a header, brought into row-major little-endian order where they are not plain; strings become
// UTF-8, without the zeros that fill them up. `data.size()` must be header.data_bytes; `name` is for messages. Errors:
// kBadInput for a string that holds a zero character or what is no Unicode character.
TensorRef NpyTensor(const NpyHeader& header, std::vector<std::byte> data, const std::string& name);

// A whole .npy; plain data are a view. Errors: as above, and kBadInput unless the data end exactly with the file.
TensorRef ReadNpy(const ByteSource& source);

}  // namespace octavo
