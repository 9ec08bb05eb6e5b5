// GGUF files: metadata and tensors where they lie in the mapped file, all parts of a split file together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/mapped_file.h"
#include "octavo/ir/tensor.h"
#include "octavo/numerics/gguf_format.h"

namespace octavo {

struct GgufTensor {
  std::string name;
  const GgufType* type = nullptr;
  std::vector<std::uint64_t> ne;  // GGML order: ne[0] elements a row
  std::uint64_t offset = 0;       // of its data in its file
  std::uint64_t bytes = 0;
  std::size_t part = 0;  // which file of a split

  Dims dims() const;  // row-major order: ne reversed
};

// The header of one file: everything but the tensors' data.
struct GgufHeader {
  std::uint32_t version = 0;
  std::uint64_t alignment = kGgufDefaultAlignment;
  std::uint64_t data_start = 0;
  std::vector<GgufField> fields;
  std::vector<GgufTensor> tensors;

  const GgufField* FindField(std::string_view key) const;
};

// Reads the header of a file whose bytes are all in `bytes`; `owner` keeps them alive. Every size is checked before it
// is used. Errors: kBadInput naming `where` for anything that contradicts itself: sizes beyond the end of the file,
// counts that the file cannot hold, names or keys that appear twice, an alignment that is not a power of two, tensors
// that are ragged, misaligned, overlap or are cut off; kUnsupported for version 1, big-endian files and element types
// that were removed from GGUF or are not known.
GgufHeader ParseGguf(std::span<const std::byte> bytes, const std::shared_ptr<const void>& owner,
                     const std::string& where);

// A whole model. Movable; the views it hands out live as long as `files` (which they share).
class Gguf {
 public:
  // Opens a file, or all parts of a split one (name-00001-of-00003.gguf; any part may be named). Errors: as ParseGguf,
  // and kBadInput for parts that are missing or do not belong together.
  static Gguf Open(const std::filesystem::path& path);

  std::uint32_t version = 0;
  std::uint64_t alignment = kGgufDefaultAlignment;
  std::vector<GgufField> fields;  // of the first part; a split's bookkeeping (split.*) is left out
  std::vector<GgufTensor> tensors;
  std::vector<std::shared_ptr<const MappedFile>> files;  // one, or one a part

  std::uint64_t file_bytes() const;  // of all parts
  const GgufField* FindField(std::string_view key) const;
  const GgufTensor* FindTensor(std::string_view name) const;
  std::span<const std::byte> Data(const GgufTensor& tensor) const;

 private:
  std::unordered_map<std::string, std::size_t> index_;
};

// True if the file starts as a GGUF does. Errors: kBadInput when it cannot be opened.
bool IsGguf(const std::filesystem::path& path);

}  // namespace octavo
