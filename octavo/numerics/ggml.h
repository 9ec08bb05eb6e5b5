// GGML block formats: one traits row a format, a scalar reference (the law) and vector kernels with the same bytes.
//
// Contract of all codecs:
//  - f32 arithmetic in the order of the reference, each operation rounded (no fused multiply-add); halves round to
//    nearest even: the bytes are those of ggml's reference encoders on x86-64, on every machine.
//  - A row is a multiple of `block` elements. Only an importance matrix makes the row length matter: without it, a call
//    may span many rows.
//  - Finite values only: the checked calls below refuse NaN and infinity. A super-block whose scale overflows f16
//    stores what the reference stores (an infinite scale).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace octavo {

// `n` elements, a multiple of the block. Unchecked. `importance`: null, or n weights (finite, >= 0), x then being one
// whole row; formats without `takes_importance` ignore it.
using GgmlEncodeFn = void (*)(const float* x, std::size_t n, const float* importance, std::byte* blocks);
using GgmlDecodeFn = void (*)(const std::byte* blocks, std::size_t n, float* out);

struct GgmlFormat {
  std::string_view name;       // the precision's name, and GgmlBlock::format: "q4_k", "mxfp4_gg"
  std::string_view ggml_name;  // as ggml and gguf call it: "Q4_K", "MXFP4"
  std::uint32_t type_id;       // ggml's type number, as written in a GGUF
  std::uint32_t block;         // elements a block (1: a plain float type)
  std::uint32_t block_bytes;
  bool takes_importance;  // an importance matrix changes the bytes
  GgmlEncodeFn encode;    // vector kernels
  GgmlDecodeFn decode;
  GgmlEncodeFn encode_reference;  // scalar, the law
  GgmlDecodeFn decode_reference;

  bool is_block() const { return block > 1; }
};

// All formats, f32, f16 and bf16 among them; ordered by type_id.
std::span<const GgmlFormat> GgmlFormats();
// By name or ggml_name ("q4_k", "Q4_K") or type number; null if there is none.
const GgmlFormat* FindGgmlFormat(std::string_view name);
const GgmlFormat* FindGgmlFormat(std::uint32_t type_id);
// By name; kUsage with the nearest names.
const GgmlFormat& GetGgmlFormat(std::string_view name, const std::string& where);

// Bytes of `rows` rows of `row` elements. kUnsupported when the row is ragged (not a multiple of the block), kBadInput
// when the size overflows; `where` names the tensor.
std::uint64_t GgmlBytes(const GgmlFormat& format, std::uint64_t rows, std::uint64_t row, const std::string& where);

// Encodes rows of `row` elements (x.size() a multiple of it) to `out` of exactly GgmlBytes(...). `importance`: empty,
// or `row` weights that hold for every row. The bytes do not depend on `threads`. Errors: kBadInput for NaN or infinity
// in x (the first index is named) or for an importance that is negative or not finite; kUnsupported for ragged rows;
// kInternal for sizes that disagree. Returns the largest magnitude of x.
float EncodeGgml(const GgmlFormat& format, std::span<const float> x, std::uint64_t row,
                 std::span<const float> importance, std::span<std::byte> out, int threads, const std::string& where);

// The same for what is handed out: blocks that decode to NaN or infinity, because a scale or a value is beyond f16, are
// kBadInput too, with the first element.
void EncodeGgmlFinite(const GgmlFormat& format, std::span<const float> x, std::uint64_t row,
                      std::span<const float> importance, std::span<std::byte> out, int threads,
                      const std::string& where);

// Decodes to out.size() elements (a multiple of the block); `blocks` has exactly their bytes.
void DecodeGgml(const GgmlFormat& format, std::span<const std::byte> blocks, std::span<float> out, int threads,
                const std::string& where);

}  // namespace octavo
