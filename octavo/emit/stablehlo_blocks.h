// GGML blocks taken apart: codes, scales and minima as tensors of their own, from which plain arithmetic makes the very
// bits that the format's decoder makes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "octavo/emit/stablehlo_builder.h"
#include "octavo/ir/dtype.h"

namespace octavo::stablehlo {

// How the parts make a value: factor * code' - offset, each operation rounded to f32, where
//   code'  = table[code] or code + code_shift,
//   factor = d, or d * scale where there are scales of sub-blocks,
//   offset = dmin * min (scales), or -m (`adds_m`), or absent.
struct BlockForm {
  std::string_view format;    // GgmlFormat::name
  std::int64_t block;         // elements that share d
  std::int64_t sub;           // elements that share a scale (block where there are none)
  DType codes;                // s4 or s8
  std::int64_t code_shift;    // added to a stored code
  bool table;                 // codes are indices into `values`, less code_shift
  DType d;                    // f16, or bf16 for MXFP4's powers of two
  bool scales, mins, adds_m;  // which parts exist besides codes and d
  std::array<float, 16> values;
};

// Null for a format that has no such form.
const BlockForm* FindBlockForm(std::string_view format);
std::span<const BlockForm> BlockForms();

struct BlockParts {
  std::vector<std::byte> codes;   // one a byte, signed
  std::vector<std::byte> d;       // 16 bits each, one a block
  std::vector<std::byte> second;  // dmin or m, as d
  std::vector<std::byte> scales;  // s8, one a sub-block
  std::vector<std::byte> mins;    // s8, one a sub-block
};
// `blocks` holds whole blocks of the format. Errors: kInternal when it does not.
BlockParts TakeApart(const BlockForm& form, std::span<const std::byte> blocks);

// The same by operations of the emitted module, out of raw blocks [rows, blocks, bytes] of s8: tensors in the order
// codes [rows, blocks, sub-blocks, sub], d, scales, dmin or m, mins (those that the form has); `shift` is what is to be
// added to a code. Nullopt for a format of GGUF files that IREE does not open.
struct RawParts {
  std::vector<Tensor> parts;
  std::int64_t shift = 0;
};
std::optional<RawParts> TakeApartRaw(Builder& f, const BlockForm& form, const Tensor& raw);

// The value that the parts of one element make: the law that the emitted text follows.
float BlockValue(const BlockForm& form, const BlockParts& parts, std::size_t element);

}  // namespace octavo::stablehlo
