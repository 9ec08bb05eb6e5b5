// GGML blocks taken apart by the emitted module itself: bytes as they lie in a GGUF become the parts of BlockForm.
#include <span>
#include <vector>

#include "octavo/emit/stablehlo_blocks.h"
#include "octavo/emit/stablehlo_builder.h"

namespace octavo::stablehlo {
namespace {

// Fields of raw blocks [rows, blocks, bytes] of s8. Every result keeps the two leading dimensions.
class RawBlock {
 public:
  RawBlock(Builder& f, const Tensor& raw) : f_(f), raw_(raw) {}

  Tensor Bytes(std::int64_t from, std::int64_t count) { return f_.SliceAxis(raw_, 2, from, from + count); }
  Tensor Half(std::int64_t at) { return f_.BitcastPairs(Bytes(at, 2), DType::kF16); }
  Tensor Shape(const Tensor& x, const Dims& behind) {
    Dims dims = {raw_.dims[0], raw_.dims[1]};
    dims.insert(dims.end(), behind.begin(), behind.end());
    return f_.Reshape(x, std::move(dims));
  }
  // Bits [at, at + width) of every byte.
  Tensor Field(const Tensor& x, int at, int width) {
    const Tensor moved = at == 0 ? x : f_.Binary("shift_right_logical", x, Number(at));
    return f_.Binary("and", moved, Number((1 << width) - 1));
  }
  Tensor Up(const Tensor& x, int by) { return f_.Binary("shift_left", x, Number(by)); }
  Tensor Or(const Tensor& a, const Tensor& b) { return f_.Binary("or", a, b); }
  // `groups` of `bytes` bytes each: their fields of `width` bits one after the other, [groups, 8 / width, bytes].
  Tensor Planes(std::int64_t at, std::int64_t groups, std::int64_t bytes, int width) {
    const Tensor x = Shape(Bytes(at, groups * bytes), {groups, 1, bytes});
    std::vector<Tensor> planes;
    for (int bit = 0; bit < 8; bit += width) planes.push_back(Field(x, bit, width));
    return f_.Concat(planes, 3);
  }
  Tensor Concat(std::vector<Tensor> parts) { return f_.Concat(parts, 2); }
  // The 6-bit scales (first) or minima of Q4_K and Q5_K out of their 12 bytes: see GetScaleMin.
  Tensor SixBits(std::int64_t at, bool minima) {
    const Tensor own = Bytes(at + (minima ? 4 : 0), 4), more = Bytes(at + 8, 4);
    return Concat({Field(own, 0, 6), Or(Field(more, minima ? 4 : 0, 4), Up(Field(own, 6, 2), 4))});
  }
  // The fifth bits of 32 elements, bit j of a little-endian word, as 16 or 0.
  Tensor FifthBits(std::int64_t at) {
    const Tensor word = Shape(Bytes(at, 4), {4, 1});
    std::vector<Tensor> bits;
    for (int bit = 0; bit < 8; ++bit) bits.push_back(Field(word, bit, 1));
    return Up(Shape(f_.Concat(bits, 3), {32}), 4);
  }
  Tensor Less(const Tensor& x, int by) { return f_.Binary("subtract", x, Number(by)); }

 private:
  Tensor Number(int value) { return f_.Splat(DType::kS8, {}, value); }

  Builder& f_;
  Tensor raw_;
};

}  // namespace

std::optional<RawParts> TakeApartRaw(Builder& f, const BlockForm& form, const Tensor& raw) {
  RawBlock b(f, raw);
  RawParts out;
  const auto codes = [&](const Tensor& x) { return b.Shape(x, {form.block / form.sub, form.sub}); };
  if (form.format == "q8_0") {
    out.parts = {codes(b.Bytes(2, 32)), b.Half(0)};
  } else if (form.format == "q4_0") {
    out.parts = {codes(b.Planes(2, 1, 16, 4)), b.Half(0)};
    out.shift = -8;
  } else if (form.format == "q4_1") {
    out.parts = {codes(b.Planes(4, 1, 16, 4)), b.Half(0), b.Half(2)};
  } else if (form.format == "q5_0") {
    out.parts = {codes(b.Or(b.Shape(b.Planes(6, 1, 16, 4), {32}), b.FifthBits(2))), b.Half(0)};
    out.shift = -16;
  } else if (form.format == "q5_1") {
    out.parts = {codes(b.Or(b.Shape(b.Planes(8, 1, 16, 4), {32}), b.FifthBits(4))), b.Half(0), b.Half(2)};
  } else if (form.format == "q2_k") {
    const Tensor pairs = b.Bytes(0, 16);
    out.parts = {codes(b.Planes(16, 2, 32, 2)), b.Half(80), b.Field(pairs, 0, 4), b.Half(82), b.Field(pairs, 4, 4)};
  } else if (form.format == "q3_k") {
    const Tensor two = b.Shape(b.Planes(32, 2, 32, 2), {256}), third = b.Shape(b.Planes(0, 1, 32, 1), {256});
    const Tensor s = b.Bytes(96, 8);
    const Tensor low = b.Concat({b.Field(s, 0, 4), b.Field(s, 4, 4)});
    const Tensor high = b.Shape(b.Planes(104, 1, 4, 2), {16});
    out.parts = {codes(b.Or(two, b.Up(third, 2))), b.Half(108), b.Less(b.Or(low, b.Up(high, 4)), 32)};
    out.shift = -4;
  } else if (form.format == "q4_k") {
    out.parts = {codes(b.Planes(16, 4, 32, 4)), b.Half(0), b.SixBits(4, false), b.Half(2), b.SixBits(4, true)};
  } else if (form.format == "q5_k") {
    const Tensor four = b.Shape(b.Planes(48, 4, 32, 4), {256}), fifth = b.Shape(b.Planes(16, 1, 32, 1), {256});
    out.parts = {codes(b.Or(four, b.Up(fifth, 4))), b.Half(0), b.SixBits(4, false), b.Half(2), b.SixBits(4, true)};
  } else if (form.format == "q6_k") {
    const Tensor four = b.Shape(b.Planes(0, 2, 64, 4), {256}), two = b.Shape(b.Planes(128, 2, 32, 2), {256});
    out.parts = {codes(b.Or(four, b.Up(two, 4))), b.Half(208), b.Bytes(192, 16)};
    out.shift = -32;
  } else {
    return std::nullopt;
  }
  return out;
}

}  // namespace octavo::stablehlo
