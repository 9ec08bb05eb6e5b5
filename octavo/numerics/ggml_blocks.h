// Byte layouts of the GGML block formats, pinned. All members are bytes: a block may lie anywhere.
#pragma once

#include <cstdint>

#include "octavo/numerics/half.h"

namespace octavo::ggml {

inline constexpr int kSuper = 256;  // elements of a super-block

// A half, little endian, without alignment.
struct Half {
  std::uint8_t low, high;
  std::uint16_t bits() const { return static_cast<std::uint16_t>(low | high << 8); }
  float value() const { return HalfToFloat(bits()); }
  void set_bits(std::uint16_t bits) {
    low = static_cast<std::uint8_t>(bits);
    high = static_cast<std::uint8_t>(bits >> 8);
  }
  void Set(float x) { set_bits(FloatToHalf(x)); }
};
static_assert(sizeof(Half) == 2 && alignof(Half) == 1);

// "halves": low nibble = element j, high nibble = element j + n / 2 of its group of n.
struct BlockQ4_0 {
  Half d;
  std::uint8_t qs[16];  // halves
};
struct BlockQ4_1 {
  Half d, m;
  std::uint8_t qs[16];  // halves
};
struct BlockQ5_0 {
  Half d;
  std::uint8_t qh[4];   // fifth bit of element j at bit j
  std::uint8_t qs[16];  // halves
};
struct BlockQ5_1 {
  Half d, m;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};
struct BlockQ8_0 {
  Half d;
  std::int8_t qs[32];
};
struct BlockQ2_K {
  std::uint8_t scales[16];  // scale in the low, min in the high nibble; 16 elements each
  std::uint8_t qs[64];      // per 128 elements 32 bytes: element j + 32 k at bits 2k of byte j
  Half d, dmin;
};
struct BlockQ3_K {
  std::uint8_t hmask[32];   // third bit: element j + 32 k at bit k of byte j
  std::uint8_t qs[64];      // low two bits, as in Q2_K
  std::uint8_t scales[12];  // 16 of 6 bits, plus 32: low nibbles (0-7 low, 8-15 high), then 2 bits each
  Half d;
};
struct BlockQ4_K {
  Half d, dmin;
  std::uint8_t scales[12];  // 8 scales and 8 mins of 6 bits, see ScaleMin
  std::uint8_t qs[128];     // halves of each 64
};
struct BlockQ5_K {
  Half d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[32];   // fifth bit: element j + 32 k at bit k of byte j
  std::uint8_t qs[128];  // halves of each 64
};
struct BlockQ6_K {
  std::uint8_t ql[128];  // per 128 elements 64 bytes: j, j + 64 in byte j; j + 32, j + 96 in byte j + 32
  std::uint8_t qh[64];   // per 128 elements 32 bytes: upper two bits of j + 32 k at bits 2k
  std::int8_t scales[16];
  Half d;
};
struct BlockIq4Nl {
  Half d;
  std::uint8_t qs[16];  // halves
};
struct BlockIq4Xs {
  Half d;
  std::uint8_t scales_h[2];  // upper two bits of scale k at bits 2k
  std::uint8_t scales_l[4];  // low nibbles
  std::uint8_t qs[128];      // halves of each 32
};
struct BlockMxfp4 {
  std::uint8_t e;       // 2^(e - 127)
  std::uint8_t qs[16];  // halves
};
struct BlockNvfp4 {
  std::uint8_t d[4];    // UE4M3, 16 elements each
  std::uint8_t qs[32];  // halves of each 16
};
struct BlockTq1_0 {
  std::uint8_t qs[48];  // five digits of base 3 a byte, as a fraction of 256
  std::uint8_t qh[4];   // four digits
  Half d;
};
struct BlockTq2_0 {
  std::uint8_t qs[64];  // as in Q2_K
  Half d;
};
static_assert(sizeof(BlockQ4_0) == 2 + 32 / 2);
static_assert(sizeof(BlockQ4_1) == 4 + 32 / 2);
static_assert(sizeof(BlockQ5_0) == 2 + 4 + 32 / 2);
static_assert(sizeof(BlockQ5_1) == 4 + 4 + 32 / 2);
static_assert(sizeof(BlockQ8_0) == 2 + 32);
static_assert(sizeof(BlockQ2_K) == 16 + 256 / 4 + 4);
static_assert(sizeof(BlockQ3_K) == 256 / 8 + 256 / 4 + 12 + 2);
static_assert(sizeof(BlockQ4_K) == 4 + 12 + 256 / 2);
static_assert(sizeof(BlockQ5_K) == 4 + 12 + 256 / 8 + 256 / 2);
static_assert(sizeof(BlockQ6_K) == 256 / 2 + 256 / 4 + 16 + 2);
static_assert(sizeof(BlockIq4Nl) == 2 + 32 / 2);
static_assert(sizeof(BlockIq4Xs) == 2 + 2 + 4 + 256 / 2);
static_assert(sizeof(BlockMxfp4) == 1 + 32 / 2);
static_assert(sizeof(BlockNvfp4) == 4 + 64 / 2);
static_assert(sizeof(BlockTq1_0) == 48 + 4 + 2);
static_assert(sizeof(BlockTq2_0) == 256 / 4 + 2);

// The non-linear code points of IQ4_NL and IQ4_XS; those of FP4 (E2M1), doubled.
inline constexpr std::int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr std::int8_t kFp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 6-bit scale and min number j of Q4_K and Q5_K: bytes 0-3 hold scales 0-3, bytes 4-7 mins 0-3, bytes 8-11 the low
// nibbles of scales 4-7 and of mins 4-7; the upper two bits of bytes 0-7 hold the upper bits of numbers 4-7.
struct ScaleMin {
  std::uint8_t scale, min;
};
inline ScaleMin GetScaleMin(const std::uint8_t* s, int j) {
  if (j < 4) return {static_cast<std::uint8_t>(s[j] & 63), static_cast<std::uint8_t>(s[j + 4] & 63)};
  return {static_cast<std::uint8_t>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4),
          static_cast<std::uint8_t>((s[j + 4] >> 4) | (s[j] >> 6) << 4)};
}
inline void SetScaleMin(std::uint8_t* s, int j, int scale, int min) {  // in order of j
  if (j < 4) {
    s[j] = static_cast<std::uint8_t>(scale);
    s[j + 4] = static_cast<std::uint8_t>(min);
    return;
  }
  s[j + 4] = static_cast<std::uint8_t>((scale & 15) | (min & 15) << 4);
  s[j - 4] = static_cast<std::uint8_t>(s[j - 4] | (scale >> 4) << 6);
  s[j] = static_cast<std::uint8_t>(s[j] | (min >> 4) << 6);
}
// 6-bit scale j of Q3_K, 0..63 (32 is zero).
inline int GetScaleQ3(const std::uint8_t* s, int j) {
  const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  return low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
}
inline void SetScaleQ3(std::uint8_t* s, int j, int code) {  // s zeroed before
  if (j < 8) {
    s[j] = static_cast<std::uint8_t>(s[j] | (code & 15));
  } else {
    s[j - 8] = static_cast<std::uint8_t>(s[j - 8] | (code & 15) << 4);
  }
  s[8 + j % 4] = static_cast<std::uint8_t>(s[8 + j % 4] | (code >> 4) << (2 * (j / 4)));
}

// Half of 2^(e - 127), subnormal below 2.
float E8m0HalfToFloat(std::uint8_t e);
// Half of the value of an unsigned E4M3 (0x7F counts as zero).
float Ue4m3HalfToFloat(std::uint8_t code);

}  // namespace octavo::ggml
