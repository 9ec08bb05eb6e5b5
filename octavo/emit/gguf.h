// Writes GGUF (version 3): the header first, then the tensors' data as they come, whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/output.h"
#include "octavo/numerics/gguf_format.h"

namespace octavo {

struct GgufTensorSpec {
  std::string name;
  const GgufType* type = nullptr;
  std::vector<std::uint64_t> ne;  // GGML order
};

// Where everything will lie, known before a byte is written.
struct GgufLayout {
  std::uint64_t data_start = 0;
  std::vector<std::uint64_t> offsets, bytes;  // one a tensor; offsets from data_start
  std::uint64_t file_bytes = 0;
};

// Errors: kBadInput for a name or key that appears twice, more than 4 dimensions, a ragged row or sizes that overflow.
GgufLayout PlanGguf(std::span<const GgufField> fields, std::span<const GgufTensorSpec> tensors,
                    std::uint64_t alignment);

// `alignment` must be what general.alignment of `fields` says, or the default without that field.
class GgufWriter {
 public:
  // Writes the header. Errors: those of PlanGguf and of OutputFile.
  GgufWriter(const std::filesystem::path& path, std::span<const GgufField> fields,
             std::span<const GgufTensorSpec> tensors, std::uint64_t alignment = kGgufDefaultAlignment);

  // The next bytes of the tensors' data, in the order of the tensors, in pieces of any size that do not cross from one
  // tensor to the next; padding is put between by itself.
  void Write(std::span<const std::byte> data);
  const GgufLayout& layout() const { return layout_; }
  void Commit();  // kInternal unless all data were written

 private:
  void Pad();
  GgufLayout layout_;
  std::uint64_t alignment_;
  OutputFile file_;
  std::size_t tensor_ = 0;     // whose data come next
  std::uint64_t written_ = 0;  // of them
};

}  // namespace octavo
