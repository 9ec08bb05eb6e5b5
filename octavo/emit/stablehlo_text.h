// MLIR text, streamed: types, attributes, and constants as hexadecimal payloads. Memory does not grow with the model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/output.h"
#include "octavo/ir/tensor.h"

namespace octavo::stablehlo {

// "f32", "ui8", "i1". Errors: kUnsupported for a type that StableHLO has no name for.
std::string ElementType(DType dtype);
std::string TensorType(DType dtype, std::span<const std::int64_t> dims);  // "tensor<1x3xf32>"
std::string IntList(std::span<const std::int64_t> values);                // "[1, 2]"
std::string Quoted(std::string_view text);                                // a string literal, escaped
// A literal of one element with these bits: "0x3F800000" for floats (bit pattern), decimal for integers, true/false.
std::string ScalarLiteral(DType dtype, std::uint64_t bits);

class TextWriter {
 public:
  explicit TextWriter(const std::filesystem::path& path);
  TextWriter() = default;  // in memory, for functions that are written later
  // Keeps nothing: for a run that only finds out shapes.
  static TextWriter Nothing() { return TextWriter(false); }
  // Whether what is put is kept from now on; gives what held before.
  bool Keep(bool keeps) { return std::exchange(keeps_, keeps); }
  TextWriter(const TextWriter&) = delete;
  TextWriter& operator=(const TextWriter&) = delete;

  void Put(std::string_view text);
  // Two digits a byte.
  void Hex(std::span<const std::byte> data);
  // As Hex of one byte an element, each nibble masked to `q & 15`: what MLIR reads for 4-bit types. `codes` hold one
  // 4-bit code in each byte; sign-extended ones would be read wrong without a word.
  void HexNibbles(std::span<const std::byte> codes);
  void Commit();
  const std::string& text() const { return buffer_; }  // of a writer in memory
  std::uint64_t bytes() const { return written_ + buffer_.size(); }

 private:
  explicit TextWriter(bool keeps) : keeps_(keeps) {}
  void Flush();
  std::optional<OutputFile> file_;
  std::string buffer_;
  std::uint64_t written_ = 0;
  bool keeps_ = true;
};

}  // namespace octavo::stablehlo
