// What the encoders of the reference share: searches for scales, weights, packing of codes.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_reference.h"

namespace octavo::ggml {

inline constexpr float kTiny = 1e-15f;  // a group whose largest magnitude is below is zero

// Truncation as the x86 instruction does it: INT_MIN when it does not fit.
inline int Truncate(float x) {
  return x > -2147483904.0f && x < 2147483648.0f ? static_cast<int>(x) : std::numeric_limits<int>::min();
}
// The low byte of a truncated number, signed.
inline int TruncateByte(float x) { return static_cast<std::int8_t>(Truncate(x)); }

inline float Inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

// The value of largest magnitude, the first of equals; 0 when all are 0. `amax` gets its magnitude.
inline float SignedAbsMax(const float* x, int n, float* amax) {
  float best = 0, magnitude = 0;
  for (int i = 0; i < n; ++i) {
    const float a = std::fabs(x[i]);
    if (magnitude < a) {
      magnitude = a;
      best = x[i];
    }
  }
  if (amax) *amax = magnitude;
  return best;
}

inline float AbsMax(const float* x, int n) {
  float amax = 0;
  SignedAbsMax(x, n, &amax);
  return amax;
}

inline float SumOfSquares(const float* x, std::size_t n) {
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// Scale and offset of codes 0..nmax, x ~ scale * code - min with min >= 0 ("qkx2" and "qkx3"): a first guess from the
// range, then `steps` + 1 other ranges, each with its least-squares solution. The improved min feeds the later steps.
struct ScaleOffset {
  float scale, min;
};
inline ScaleOffset FitScaleOffset(int n, int nmax, const float* x, const float* w, std::uint8_t* codes, float rmin,
                                  float rdelta, int steps, bool absolute_error) {
  std::uint8_t trial[32];
  float low = x[0], high = x[0];
  float sum_w = w[0], sum_x = sum_w * x[0];
  for (int i = 1; i < n; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  if (low > 0) low = 0;
  if (high <= low) {
    std::memset(codes, 0, static_cast<std::size_t>(n));
    return {0, -low};
  }
  const auto error = [&](float scale, float min, const std::uint8_t* c) {
    float sum = 0;
    for (int i = 0; i < n; ++i) {
      float diff = scale * static_cast<float>(c[i]) + min - x[i];
      diff = absolute_error ? std::fabs(diff) : diff * diff;
      sum += w[i] * diff;
    }
    return sum;
  };
  const auto code = [&](float inverse, float min, float v) {
    return static_cast<std::uint8_t>(std::clamp(NearestInt(inverse * (v - min)), 0, nmax));
  };
  float inverse = static_cast<float>(nmax) / (high - low);
  float scale = 1 / inverse, min = low;
  for (int i = 0; i < n; ++i) codes[i] = code(inverse, min, x[i]);
  float best = error(scale, min, codes);
  for (int step = 0; step <= steps; ++step) {
    inverse = (rmin + rdelta * static_cast<float>(step) + static_cast<float>(nmax)) / (high - min);
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < n; ++i) {
      trial[i] = code(inverse, min, x[i]);
      const float l = static_cast<float>(trial[i]);
      sum_l += w[i] * l;
      sum_l2 += w[i] * l * l;
      sum_xl += w[i] * l * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (determinant > 0) {
      float new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
      float new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
      if (new_min > 0) {
        new_min = 0;
        new_scale = sum_xl / sum_l2;
      }
      const float e = error(new_scale, new_min, trial);
      if (e < best) {
        std::memcpy(codes, trial, static_cast<std::size_t>(n));
        best = e;
        scale = new_scale;
        min = new_min;
      }
    }
  }
  return {scale, -min};
}

// Signed codes of Q3_K without an importance: one guess, weights x^2, then up to five passes of coordinate steps.
inline float FitQ3(const float* x, std::uint8_t* codes) {
  constexpr int kN = 16, kMax = 4;
  float amax;
  const float max = SignedAbsMax(x, kN, &amax);
  if (amax < kTiny) {
    std::memset(codes, 0, kN);
    return 0;
  }
  const float inverse = -static_cast<float>(kMax) / max;
  int level[kN];
  float sum_xl = 0, sum_l2 = 0;
  for (int i = 0; i < kN; ++i) {
    level[i] = std::clamp(NearestInt(inverse * x[i]), -kMax, kMax - 1);
    const float w = x[i] * x[i], l = static_cast<float>(level[i]);
    sum_xl += w * x[i] * l;
    sum_l2 += w * l * l;
  }
  for (int pass = 0; pass < 5; ++pass) {
    bool changed = false;
    for (int i = 0; i < kN; ++i) {
      const float w = x[i] * x[i], l = static_cast<float>(level[i]);
      float xl = sum_xl - w * x[i] * l;
      if (!(xl > 0)) continue;
      float l2 = sum_l2 - w * l * l;
      const int other = std::clamp(NearestInt(x[i] * l2 / xl), -kMax, kMax - 1);
      if (other == level[i]) continue;
      const float m = static_cast<float>(other);
      xl += w * x[i] * m;
      l2 += w * m * m;
      if (l2 > 0 && xl * xl * sum_l2 > sum_xl * sum_xl * l2) {
        level[i] = other;
        sum_xl = xl;
        sum_l2 = l2;
        changed = true;
      }
    }
    if (!changed) break;
  }
  for (int i = 0; i < kN; ++i) codes[i] = static_cast<std::uint8_t>(level[i] + kMax);
  return sum_l2 > 0 ? sum_xl / sum_l2 : 0.0f;
}

// Nearest of the 16 non-linear code points, ties up.
inline int NearestIq4(float x) {
  if (x <= kIq4Values[0]) return 0;
  if (x >= kIq4Values[15]) return 15;
  int low = 0, high = 15;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (x < kIq4Values[middle] ? high : low) = middle;
  }
  return x - kIq4Values[high - 1] < kIq4Values[high] - x ? high - 1 : high;
}

// Scale of 32 values on the non-linear code points, weights w: the best of a first guess and 15 others; 0 for zeros.
inline float FitIq4(const float* x, const float* w) {
  float amax;
  const float max = SignedAbsMax(x, 32, &amax);
  if (amax < kTiny) return 0;
  float sum_qx, sum_q2;
  const auto sums = [&](float inverse) {
    sum_qx = sum_q2 = 0;
    for (int i = 0; i < 32; ++i) {
      const float q = kIq4Values[NearestIq4(inverse * x[i])];
      sum_qx += w[i] * q * x[i];
      sum_q2 += w[i] * q * q;
    }
  };
  sums(1 / (-max / static_cast<float>(kIq4Values[0])));
  float d = sum_q2 > 0 ? sum_qx / sum_q2 : 0.0f, best = d * sum_qx;
  for (int t = -7; t <= 7; ++t) {
    sums(static_cast<float>(t + kIq4Values[0]) / max);
    if (sum_q2 > 0 && sum_qx * sum_qx > best * sum_q2) {
      d = sum_qx / sum_q2;
      best = d * sum_qx;
    }
  }
  return d;
}

// First index of the smallest error among the 16 points of FP4 times d.
inline int NearestFp4(float x, float d) {
  int best = 0;
  float error = std::fabs(static_cast<float>(kFp4Values[0]) * d - x);
  for (int i = 1; i < 16; ++i) {
    const float e = std::fabs(static_cast<float>(kFp4Values[i]) * d - x);
    if (e < error) {
      error = e;
      best = i;
    }
  }
  return best;
}

inline std::uint8_t Pair(int low, int high) { return static_cast<std::uint8_t>(low | high << 4); }

// Codes of 32 as halves.
inline void PackHalves(const std::uint8_t* codes, std::uint8_t* qs) {
  for (int j = 0; j < 16; ++j) qs[j] = Pair(codes[j] & 15, codes[j + 16] & 15);
}
inline void PackFifthBits(const std::uint8_t* codes, std::uint8_t* qh) {
  std::uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= static_cast<std::uint32_t>(codes[j] >> 4 & 1) << j;
  for (int j = 0; j < 4; ++j) qh[j] = static_cast<std::uint8_t>(bits >> (8 * j));
}
// Two bits an element, per 128 elements 32 bytes.
inline void PackPairs(const std::uint8_t* codes, std::uint8_t* qs) {
  for (int h = 0; h < 2; ++h) {
    for (int j = 0; j < 32; ++j) {
      const std::uint8_t* c = codes + 128 * h + j;
      qs[32 * h + j] = static_cast<std::uint8_t>((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
    }
  }
}

// weight[i] = importance[i] * sqrt(sigma2 + x[i]^2)
inline void Weigh(const float* x, const float* importance, float sigma2, int n, float* w) {
  for (int i = 0; i < n; ++i) w[i] = importance[i] * std::sqrt(sigma2 + x[i] * x[i]);
}
inline float Sum(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// The weights of Q4_K and Q5_K without an importance.
inline void WeighByMagnitude(const float* x, float* w) {
  const float average = std::sqrt(SumOfSquares(x, 32) / 32);
  for (int i = 0; i < 32; ++i) w[i] = average + std::fabs(x[i]);
}

// Codes of one sub-block once its scale and min are what the block stores: skipped when the scale is zero.
inline void Requantize(const float* x, int n, float d, float m, int top, std::uint8_t* codes) {
  if (d == 0) return;
  for (int i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(std::clamp(NearestInt((x[i] + m) / d), 0, top));
}
inline void RequantizeSymmetric(const float* x, int n, float d, int half, std::uint8_t* codes) {
  if (d == 0) return;
  for (int i = 0; i < n; ++i) {
    codes[i] = static_cast<std::uint8_t>(std::clamp(NearestInt(x[i] / d), -half, half - 1) + half);
  }
}

// Q4_K and Q5_K: scales, mins and codes of a super-block; `block` has d, dmin and scales.
template <typename Block>
void EncodeScaleMinSuper(const float* x, const float* importance, int top, float rmin, int steps, Block* block,
                         std::uint8_t* codes) {
  float scales[8], mins[8], w[32];
  std::uint8_t scale_codes[8], min_codes[8];
  if (importance) {
    float totals[8];
    const float sigma2 = 2 * SumOfSquares(x, kSuper) / kSuper;
    for (int j = 0; j < 8; ++j) {
      Weigh(x + 32 * j, importance + 32 * j, sigma2, 32, w);
      totals[j] = Sum(w, 32);
      const ScaleOffset fit = FitScaleOffset(32, top, x + 32 * j, w, codes + 32 * j, -0.9f, 0.05f, 36, false);
      scales[j] = fit.scale;
      mins[j] = fit.min;
    }
    block->d.Set(FitPositive(8, 63, scales, scale_codes, totals));
    block->dmin.Set(FitPositive(8, 63, mins, min_codes, totals));
  } else {
    for (int j = 0; j < 8; ++j) {
      WeighByMagnitude(x + 32 * j, w);
      const ScaleOffset fit = FitScaleOffset(32, top, x + 32 * j, w, codes + 32 * j, rmin, 0.1f, steps, false);
      scales[j] = fit.scale;
      mins[j] = fit.min;
    }
    QuantizeScales(8, 63, scales, &block->d, scale_codes);
    QuantizeScales(8, 63, mins, &block->dmin, min_codes);
  }
  for (int j = 0; j < 8; ++j) SetScaleMin(block->scales, j, scale_codes[j], min_codes[j]);
  const float d = block->d.value(), dmin = block->dmin.value();
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = GetScaleMin(block->scales, j);
    Requantize(x + 32 * j, 32, d * static_cast<float>(s.scale), dmin * static_cast<float>(s.min), top, codes + 32 * j);
  }
}

template <typename Block, typename F>
void EachBlock(std::size_t n, int size, std::byte* out, F&& f) {
  auto* block = reinterpret_cast<Block*>(out);
  for (std::size_t i = 0; i < n; i += static_cast<std::size_t>(size)) f(i, *block++);
}
template <typename Block, typename F>
void EachBlock(std::size_t n, int size, const std::byte* in, F&& f) {
  auto* block = reinterpret_cast<const Block*>(in);
  for (std::size_t i = 0; i < n; i += static_cast<std::size_t>(size)) f(i, *block++);
}

// Legacy formats: blocks of 32, sigma2 of the whole row.
template <typename Block>
void EachLegacy(const float* x, std::size_t n, const float* importance, std::byte* out,
                void (*encode)(const float*, const float*, float, std::byte*)) {
  const float sigma2 = importance ? MeanSquare(x, n) : 0.0f;
  for (std::size_t i = 0; i < n; i += 32, out += sizeof(Block)) {
    encode(x + i, importance ? importance + i : nullptr, sigma2, out);
  }
}

}  // namespace octavo::ggml
