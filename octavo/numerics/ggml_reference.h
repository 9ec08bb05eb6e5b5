// The scalar reference of the GGML codecs: the law. Signatures as in GgmlFormat.
#pragma once

#include <cstddef>
#include <cstdint>

#include "octavo/numerics/ggml_blocks.h"

namespace octavo::ggml {

#define OCTAVO_GGML_BLOCK_FORMATS(X) \
  X(Q4_0)                            \
  X(Q4_1)                            \
  X(Q5_0)                            \
  X(Q5_1)                            \
  X(Q8_0)                            \
  X(Q2_K)                            \
  X(Q3_K)                            \
  X(Q4_K)                            \
  X(Q5_K)                            \
  X(Q6_K)                            \
  X(Iq4Nl)                           \
  X(Iq4Xs)                           \
  X(Tq1_0)                           \
  X(Tq2_0)                           \
  X(Mxfp4)                           \
  X(Nvfp4)

#define OCTAVO_DECLARE(name)                                                                             \
  void EncodeReference##name(const float* x, std::size_t n, const float* importance, std::byte* blocks); \
  void DecodeReference##name(const std::byte* blocks, std::size_t n, float* out);
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_DECLARE)
#undef OCTAVO_DECLARE

// As above, with sigma2 (the mean square of the row) given where an importance needs it: for single blocks out of a
// row. Formats of super-blocks have one of their own.
void EncodeReferenceQ4_0Block(const float* x, const float* importance, float sigma2, std::byte* block);
void EncodeReferenceQ4_1Block(const float* x, const float* importance, float sigma2, std::byte* block);
void EncodeReferenceQ5_0Block(const float* x, const float* importance, float sigma2, std::byte* block);
void EncodeReferenceQ5_1Block(const float* x, const float* importance, float sigma2, std::byte* block);
// Mean square of a row in order of its elements.
float MeanSquare(const float* x, std::size_t n);

// Weighted least squares for non-negative scales, codes 0..nmax (nmax * code is minimal in the weighted square error
// after up to 5 passes of coordinate steps): what the 4- and 6-bit scales of a super-block get with an importance.
float FitPositive(int n, int nmax, const float* x, std::uint8_t* codes, const float* weights);
// Signed codes -nmax..nmax-1, stored plus nmax; the best of 19 scales. weights null: x^2.
float FitSymmetric(int n, int nmax, const float* x, std::uint8_t* codes, const float* weights);

// Non-negative scales or mins of `n` sub-blocks as codes 0..top of the largest; d gets the largest over top.
void QuantizeScales(int n, int top, const float* v, Half* d, std::uint8_t* codes);
// The 16 scales of Q3_K, by the one of largest magnitude; `packed` (zeroed before) holds their 6-bit codes.
void QuantizeScalesQ3(const float* scales, Half* d, std::uint8_t* packed);

// Nearest integer, ties to even, by addition of 1.5 * 2^23: the low 23 bits of the sum's pattern, minus 2^22. Out of
// +-2^22 the result is what these bits say.
int NearestInt(float x);
// Exponent byte of an MXFP4 block: floor(log2f(amax)) - 2 + 127, 0 for a zero block. log2f rounds: a maximum just below
// a power of two counts as that power.
std::uint8_t Mxfp4Exponent(float amax);
// Nearest UE4M3 of x >= 0, halves up, saturating at 0x7E.
std::uint8_t FloatToUe4m3(float x);

}  // namespace octavo::ggml
