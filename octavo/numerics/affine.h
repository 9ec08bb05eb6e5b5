// Affine quantization arithmetic. Scalar functions here are the law; the vector kernels are tested against them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "octavo/ir/dtype.h"

namespace octavo {

// q = saturate(round_half_even(x / scale) + zero_point) into the range of `storage` (ONNX QuantizeLinear).
//  - divides by the scale in f32 (multiplying by the reciprocal differs);
//  - NaN (also of x / scale) becomes zero_point; +-Inf saturate;
//  - storage is u2 s2 u4 s4 u8 s8 u16 s16 or s32 (anything else is Error(kInternal)), zero_point lies in its range.
std::int32_t QuantizeOne(float x, float scale, std::int32_t zero_point, DType storage);
// (q - zero_point) * scale in f32 (ONNX DequantizeLinear). The difference is exact, then rounded to f32 once.
float DequantizeOne(std::int32_t q, float scale, std::int32_t zero_point);

struct AffineParams {
  float scale = 1.0f;
  std::int32_t zero_point = 0;
  bool operator==(const AffineParams&) const = default;
};

// Parameters that cover [min, max]: the range is extended to hold 0 (so that 0 is exact), scale =
// (max-min)/(qmax-qmin), zero_point = round_half_even(qmin - min/scale) clamped. Symmetric: scale =
// 2*max(|min|,|max|)/(qmax-qmin') with zero_point at the middle code; signed symmetric drops the lowest code (s8:
// -127..127). A range of zero width gives scale 1. Computed in f64, the scale rounded to f32 last; the zero point is
// computed from the rounded scale. The scale is never subnormal or zero. Precondition: min <= max, both finite.
AffineParams ChooseParams(float min, float max, DType storage, bool symmetric);

// Contiguous run with one parameter pair. Codes are written unpacked, one per element, in the storage width
// (1, 2 or 4 bytes; 4-bit types use 1 byte). Vectorized; bit-equal to QuantizeOne.
void QuantizeRun(std::span<const float> x, AffineParams params, DType storage, std::byte* out);
void DequantizeRun(const std::byte* q, std::size_t n, AffineParams params, DType storage, float* out);

// [outer, channels, inner] view of a tensor around `axis`; params has one entry a channel (or one for all).
void QuantizeTensor(std::span<const float> x, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                    std::span<const AffineParams> params, DType storage, std::byte* out);

void DequantizeTensor(const std::byte* q, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                      std::span<const AffineParams> params, DType storage, std::span<float> out);

// sum (x - Dequantize(Quantize(x)))^2, each difference and square in f64, added in the lane order of LaneSum
// (reduce.h): the same on every machine. Precondition: x finite. An error above `enough` may come out as any number
// between `enough` and itself: who looks for the least need not have the others summed up to their ends.
double QuantizationSquaredError(std::span<const float> x, AffineParams params, DType storage,
                                double enough = std::numeric_limits<double>::infinity());

// Bytes one unpacked code takes: 1 for types of at most 8 bits, 2 for 16 and 4 for 32.
std::size_t CodeBytes(DType storage);

// Two 4-bit codes a byte, low nibble first (ONNX int4/uint4 raw_data).
std::vector<std::byte> PackNibbles(std::span<const std::byte> codes);
// The inverse: `n` codes, one a byte, sign-extended when is_signed. Precondition: packed.size() >= (n + 1) / 2.
std::vector<std::byte> UnpackNibbles(std::span<const std::byte> packed, std::size_t n, bool is_signed);

}  // namespace octavo
