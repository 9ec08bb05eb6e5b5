// OCP Microscaling formats (MX v1.0): blocks of elements that share a power-of-two scale (E8M0); and NVFP4, blocks
// whose scale is an E4M3 number times one f32 of the whole tensor. The scalar functions are the law; the vector kernels
// are tested against them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace octavo {

// An element format. For the floating-point ones the value of a code with exponent field e > 0 and mantissa field m is
// (-1)^s * 2^(e - bias) * (1 + m / 2^mantissa_bits), subnormal below; MXINT8 is two's complement in steps of 2^-6.
struct MxFormat {
  std::string_view name;  // "mxint8", ...
  bool integer = false;
  int bits = 8;           // of an element code: sign, exponent, mantissa
  int exponent_bits = 0;  // 0 for the integer format
  int mantissa_bits = 0;
  int bias = 0;
  int emax = 0;             // exponent of the largest normal number (OCP MX v1.0, table 5)
  float largest = 0;        // to which elements saturate; MXINT8: 127/64, never -2
  bool e4m3_scale = false;  // nvfp4: the element is mxfp4's, the scale of a block E4M3 times the tensor's
  std::int64_t block = 32;  // the usual block

  int emin() const { return 1 - bias; }  // of the smallest normal number
};

// In the order of OCP MX v1.0: mxfp8_e5m2, mxfp8_e4m3, mxfp6_e3m2, mxfp6_e2m3, mxfp4, mxint8; then nvfp4.
std::span<const MxFormat> MxFormats();
const MxFormat* FindMxFormat(std::string_view name);  // null when there is none

// Ties of an element halfway between two codes: to the even one (ONNX, ml_dtypes) or away from zero (Circle).
enum class MxRounding : std::uint8_t { kEven, kAway };

inline constexpr std::uint8_t kMxNanScale = 0xff;  // E8M0 has one NaN and no infinity, zero or sign
// 2^(code - 127); NaN for 0xff.
float MxScaleValue(std::uint8_t code);

// The scale of a whole tensor: 1 for the formats of OCP MX, which have none; for nvfp4 its largest finite magnitude /
// (448 * 6), so that the block that holds it has the largest E4M3 scale; 1 where that is no normal number.
float MxTensorScale(std::span<const float> x, const MxFormat& format);

// The scale of a block (OCP MX v1.0, section 6.3): floor(log2(largest magnitude)) - emax as an E8M0 code.
//  - A NaN or an infinity anywhere in the block: the NaN scale.
//  - Exponents below -127 become -127. A block of zeros counts as one whose largest magnitude is 2^-126.
// nvfp4: the E4M3 code (element law of mxfp8_e4m3, ties to even, saturating) of largest magnitude / 6 / tensor_scale,
// two f32 divisions; 0 for a block that is small beside the tensor; 0x7f is its NaN scale. `tensor_scale`, here and
// below: read by nvfp4 only; finite and above 0.
std::uint8_t MxBlockScale(std::span<const float> block, const MxFormat& format, float tensor_scale = 1);

// The element code of x in a block of that scale.
//  - x / 2^shared is rounded once, to the nearest code (ties by `rounding`), and saturates at +-format.largest;
//  - nvfp4: x / (E4M3 scale * tensor_scale), both operations in f32, then mxfp4's law; zero in a block of the scale 0;
//  - the floating-point formats keep the sign of a zero;
//  - in a block of the NaN scale every code is 0.
std::uint8_t MxEncodeOne(float x, std::uint8_t scale, const MxFormat& format, MxRounding rounding,
                         float tensor_scale = 1);
// The value of a code; exact in f32 (nvfp4: the f32 product of the element and its block's f32 scale). NaN in a block
// of the NaN scale and for a code that is NaN (mxfp8_e4m3 0x7f, mxfp8_e5m2 0x7d..0x7f); infinity for mxfp8_e5m2 0x7c.
// Upper bits of a code of less than 8 bits are ignored.
float MxDecodeOne(std::uint8_t code, std::uint8_t scale, const MxFormat& format, float tensor_scale = 1);

// A tensor seen as [outer, n, inner] around the axis that blocks run along: a block is `block` numbers at a stride of
// `inner`, the last one of a row may be shorter (as if it were padded with zeros). Scales are [outer, blocks, inner].
struct MxShape {
  std::size_t outer = 1, n = 0, inner = 1, block = 32;
  std::size_t blocks() const { return n == 0 ? 0 : (n - 1) / block + 1; }
  std::size_t elements() const { return outer * n * inner; }
  std::size_t scales() const { return outer * blocks() * inner; }
};

// Vectorized; bit-equal to the scalar functions. Codes are one a byte. `x` and `y` may be the same memory. Every block
// from 1 up is allowed. Preconditions: buffers of shape.elements() and shape.scales().
void MxEncode(const float* x, const MxShape& shape, const MxFormat& format, MxRounding rounding, std::uint8_t* codes,
              std::uint8_t* scales, float tensor_scale = 1);
void MxDecode(const std::uint8_t* codes, const std::uint8_t* scales, const MxShape& shape, const MxFormat& format,
              float* y, float tensor_scale = 1);
// Decode(Encode(x)) with the tensor's own scale. A NaN in y is the quiet NaN 0x7fc00000.
void MxFakeQuantize(const float* x, const MxShape& shape, const MxFormat& format, MxRounding rounding, float* y);

}  // namespace octavo
