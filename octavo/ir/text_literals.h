// Literals of the textual form: elements and tensors. Of use to the parser only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/dtype.h"
#include "octavo/ir/tensor.h"
#include "octavo/ir/text_lexer.h"

namespace octavo::text {

class LiteralReader : public Lexer {
 public:
  // `max_fill_bytes` bounds what blob and splat literals take together.
  LiteralReader(std::string_view text, std::string_view where, std::uint64_t max_fill_bytes)
      : Lexer(text, where), fill_left_(max_fill_bytes) {}

 protected:
  DType TakeDType();
  TensorRef ParseTensor();
  std::uint64_t ParseElement(DType dtype);  // the bits of one element
  // A tensor of n elements with these bits.
  static TensorRef Filled(DType dtype, Dims dims, std::uint64_t bits, std::uint64_t n);

 private:
  std::uint64_t TakeBits(std::uint64_t mask);
  std::uint64_t Encode(DType dtype, double v, std::size_t offset) const;
  // f32 and narrower round once to float (from_chars is exact), so shortest decimals read back to the same bits.
  std::uint64_t TakeFloat(DType dtype);
  std::uint64_t TakeInteger(DType dtype, std::uint64_t mask);
  void Charge(std::uint64_t bytes, std::size_t offset);
  TensorRef ParseElements(DType dtype, Dims dims, std::uint64_t n, std::size_t offset);

  std::uint64_t fill_left_;
};

}  // namespace octavo::text
