#include "octavo/numerics/ggml_reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "octavo/numerics/ggml_blocks.h"

namespace octavo::ggml {
namespace {

constexpr float kTiny = 1e-15f;  // a group whose largest magnitude is below is zero

// Truncation as the x86 instruction does it: INT_MIN when it does not fit.
int Truncate(float x) {
  return x > -2147483904.0f && x < 2147483648.0f ? static_cast<int>(x) : std::numeric_limits<int>::min();
}
// The low byte of a truncated number, signed.
int TruncateByte(float x) { return static_cast<std::int8_t>(Truncate(x)); }

float Inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

// The value of largest magnitude, the first of equals; 0 when all are 0. `amax` gets its magnitude.
float SignedAbsMax(const float* x, int n, float* amax) {
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

float AbsMax(const float* x, int n) {
  float amax = 0;
  SignedAbsMax(x, n, &amax);
  return amax;
}

float SumOfSquares(const float* x, std::size_t n) {
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// Scale and offset of codes 0..nmax, x ~ scale * code - min with min >= 0 ("qkx2" and "qkx3"): a first guess from the
// range, then `steps` + 1 other ranges, each with its least-squares solution. The improved min feeds the later steps.
struct ScaleOffset {
  float scale, min;
};
ScaleOffset FitScaleOffset(int n, int nmax, const float* x, const float* w, std::uint8_t* codes, float rmin,
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
float FitQ3(const float* x, std::uint8_t* codes) {
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
int NearestIq4(float x) {
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
float FitIq4(const float* x, const float* w) {
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
int NearestFp4(float x, float d) {
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

std::uint8_t Pair(int low, int high) { return static_cast<std::uint8_t>(low | high << 4); }

// Codes of 32 as halves.
void PackHalves(const std::uint8_t* codes, std::uint8_t* qs) {
  for (int j = 0; j < 16; ++j) qs[j] = Pair(codes[j] & 15, codes[j + 16] & 15);
}
void PackFifthBits(const std::uint8_t* codes, std::uint8_t* qh) {
  std::uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= static_cast<std::uint32_t>(codes[j] >> 4 & 1) << j;
  for (int j = 0; j < 4; ++j) qh[j] = static_cast<std::uint8_t>(bits >> (8 * j));
}
// Two bits an element, per 128 elements 32 bytes.
void PackPairs(const std::uint8_t* codes, std::uint8_t* qs) {
  for (int h = 0; h < 2; ++h) {
    for (int j = 0; j < 32; ++j) {
      const std::uint8_t* c = codes + 128 * h + j;
      qs[32 * h + j] = static_cast<std::uint8_t>((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
    }
  }
}

// weight[i] = importance[i] * sqrt(sigma2 + x[i]^2)
void Weigh(const float* x, const float* importance, float sigma2, int n, float* w) {
  for (int i = 0; i < n; ++i) w[i] = importance[i] * std::sqrt(sigma2 + x[i] * x[i]);
}
float Sum(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// The weights of Q4_K and Q5_K without an importance.
void WeighByMagnitude(const float* x, float* w) {
  const float average = std::sqrt(SumOfSquares(x, 32) / 32);
  for (int i = 0; i < 32; ++i) w[i] = average + std::fabs(x[i]);
}

// Codes of one sub-block once its scale and min are what the block stores: skipped when the scale is zero.
void Requantize(const float* x, int n, float d, float m, int top, std::uint8_t* codes) {
  if (d == 0) return;
  for (int i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(std::clamp(NearestInt((x[i] + m) / d), 0, top));
}
void RequantizeSymmetric(const float* x, int n, float d, int half, std::uint8_t* codes) {
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

}  // namespace

int NearestInt(float x) {
  return static_cast<int>(std::bit_cast<std::uint32_t>(x + 12582912.0f) & 0x7fffff) - 0x400000;
}

float MeanSquare(const float* x, std::size_t n) { return SumOfSquares(x, n) / static_cast<float>(n); }

float FitPositive(int n, int nmax, const float* x, std::uint8_t* codes, const float* w) {
  float max = 0;
  for (int i = 0; i < n; ++i) max = max > x[i] ? max : x[i];
  if (max < kTiny) {
    std::memset(codes, 0, static_cast<std::size_t>(n));
    return 0;
  }
  const auto error = [&](float inverse, bool bounded) {
    const float scale = 1 / inverse;
    float sum = 0;
    for (int i = 0; i < n; ++i) {
      int l = NearestInt(inverse * x[i]);
      l = bounded ? std::min(nmax, l) : static_cast<int>(static_cast<std::uint8_t>(l));
      const float diff = x[i] - scale * static_cast<float>(l);
      sum += w[i] * diff * diff;
    }
    return sum;
  };
  float inverse = static_cast<float>(nmax) / max;
  float best = error(inverse, false);
  for (int step = -4; step <= 4; ++step) {
    if (step == 0) continue;
    const float other = (0.1f * static_cast<float>(step) + static_cast<float>(nmax)) / max;
    const float e = error(other, true);
    if (e < best) {
      best = e;
      inverse = other;
    }
  }
  float sum_xl = 0, sum_l2 = 0;
  for (int i = 0; i < n; ++i) {
    const int l = std::min(nmax, NearestInt(inverse * x[i]));
    codes[i] = static_cast<std::uint8_t>(l);
    const float f = static_cast<float>(l);
    sum_xl += w[i] * x[i] * f;
    sum_l2 += w[i] * f * f;
  }
  for (int pass = 0; pass < 5; ++pass) {
    bool changed = false;
    for (int i = 0; i < n; ++i) {
      const float l = static_cast<float>(codes[i]);
      float xl = sum_xl - w[i] * x[i] * l;
      float l2 = sum_l2 - w[i] * l * l;
      if (!(xl > 0 && l2 > 0)) continue;
      const int other = std::min(nmax, NearestInt(x[i] * l2 / xl));
      if (other == codes[i]) continue;
      const float m = static_cast<float>(other);
      xl += w[i] * x[i] * m;
      l2 += w[i] * m * m;
      if (xl * xl * sum_l2 > sum_xl * sum_xl * l2) {
        codes[i] = static_cast<std::uint8_t>(other);
        sum_xl = xl;
        sum_l2 = l2;
        changed = true;
      }
    }
    if (!changed) break;
  }
  return sum_l2 > 0 ? sum_xl / sum_l2 : 0.0f;
}

float FitSymmetric(int n, int nmax, const float* x, std::uint8_t* codes, const float* weights) {
  float amax;
  const float max = SignedAbsMax(x, n, &amax);
  if (amax < kTiny) {
    std::memset(codes, 0, static_cast<std::size_t>(n));
    return 0;
  }
  const auto level = [&](float inverse, float v) { return std::clamp(NearestInt(inverse * v), -nmax, nmax - 1); };
  float sum_xl, sum_l2;
  const auto sums = [&](float inverse) {
    sum_xl = sum_l2 = 0;
    for (int i = 0; i < n; ++i) {
      const float l = static_cast<float>(level(inverse, x[i]));
      const float w = weights ? weights[i] : x[i] * x[i];
      sum_xl += w * x[i] * l;
      sum_l2 += w * l * l;
    }
  };
  float inverse = -static_cast<float>(nmax) / max;
  sums(inverse);
  float scale = sum_l2 != 0 ? sum_xl / sum_l2 : 0.0f, best = scale * sum_xl;
  for (int step = -9; step <= 9; ++step) {
    if (step == 0) continue;
    const float other = -(static_cast<float>(nmax) + 0.1f * static_cast<float>(step)) / max;
    sums(other);
    if (sum_l2 > 0 && sum_xl * sum_xl > best * sum_l2) {
      inverse = other;
      scale = sum_xl / sum_l2;
      best = scale * sum_xl;
    }
  }
  for (int i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(level(inverse, x[i]) + nmax);
  return scale;
}

void QuantizeScales(int n, int top, const float* v, Half* d, std::uint8_t* codes) {
  float max = 0;
  for (int j = 0; j < n; ++j) max = v[j] > max ? v[j] : max;
  const float inverse = max > 0 ? static_cast<float>(top) / max : 0.0f;
  for (int j = 0; j < n; ++j) {
    const auto code = static_cast<std::uint8_t>(NearestInt(inverse * v[j]));
    codes[j] = static_cast<std::uint8_t>(std::min<int>(top, code));
  }
  d->Set(max / static_cast<float>(top));
}

void QuantizeScalesQ3(const float* scales, Half* d, std::uint8_t* packed) {
  const float max = SignedAbsMax(scales, 16, nullptr);
  if (max == 0) {
    d->Set(0);
    return;
  }
  const float inverse = -32.0f / max;
  for (int j = 0; j < 16; ++j) {
    const auto code = static_cast<std::int8_t>(NearestInt(inverse * scales[j]));
    SetScaleQ3(packed, j, std::clamp(static_cast<int>(code), -32, 31) + 32);
  }
  d->Set(1 / inverse);
}

std::uint8_t Mxfp4Exponent(float amax) {
  if (!(amax > 0)) return 0;
  return static_cast<std::uint8_t>(Truncate(std::floor(std::log2(amax)) - 2 + 127));
}

std::uint8_t FloatToUe4m3(float x) {
  if (!(x > 0)) return 0;
  if (x > 448.0f) x = 448.0f;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  int exponent = static_cast<int>(bits >> 23 & 255) - 127 + 7;
  if (exponent <= 0) return static_cast<std::uint8_t>(std::min(7, static_cast<int>(x * 512.0f + 0.5f)));
  if (exponent >= 15) return 0x7E;
  int mantissa = static_cast<int>(bits >> 20 & 7) + static_cast<int>(bits >> 19 & 1);
  if (mantissa > 7) {
    mantissa = 0;
    if (++exponent >= 15) return 0x7E;
  }
  return static_cast<std::uint8_t>(exponent << 3 | mantissa);
}

float E8m0HalfToFloat(std::uint8_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<std::uint32_t>(e - 1) << 23);
}

float Ue4m3HalfToFloat(std::uint8_t code) {
  if (code == 0 || code == 0x7F) return 0;
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(1.0f + static_cast<float>(mantissa) / 8, exponent - 7);
  return value * 0.5f;
}

// --- encoders of blocks of 32 ---------------------------------------------------------------------------------------

void EncodeReferenceQ4_0Block(const float* x, const float* importance, float sigma2, std::byte* out) {
  auto& block = *reinterpret_cast<BlockQ4_0*>(out);
  std::uint8_t codes[32];
  if (importance) {
    float w[32];
    Weigh(x, importance, sigma2, 32, w);
    block.d.Set(FitSymmetric(32, 8, x, codes, w));
  } else {
    const float d = SignedAbsMax(x, 32, nullptr) / -8, inverse = Inverse(d);
    block.d.Set(d);
    for (int j = 0; j < 32; ++j) {
      codes[j] = static_cast<std::uint8_t>(std::min(15, TruncateByte(x[j] * inverse + 8.5f)));
    }
    // A code that did not fit spills into the upper nibble, as in a plain "low | high << 4".
    for (int j = 0; j < 16; ++j) block.qs[j] = static_cast<std::uint8_t>(codes[j] | codes[j + 16] << 4);
    return;
  }
  PackHalves(codes, block.qs);
}

void EncodeReferenceQ4_1Block(const float* x, const float* importance, float sigma2, std::byte* out) {
  auto& block = *reinterpret_cast<BlockQ4_1*>(out);
  std::uint8_t codes[32];
  if (importance) {
    float w[32];
    Weigh(x, importance, sigma2, 32, w);
    const ScaleOffset fit = FitScaleOffset(32, 15, x, w, codes, -0.9f, 0.05f, 36, false);
    block.d.Set(fit.scale);
    block.m.Set(-fit.min);
    PackHalves(codes, block.qs);
    return;
  }
  float low = std::numeric_limits<float>::max(), high = -low;
  for (int j = 0; j < 32; ++j) {
    if (x[j] < low) low = x[j];
    if (x[j] > high) high = x[j];
  }
  const float d = (high - low) / 15, inverse = Inverse(d);
  block.d.Set(d);
  block.m.Set(low);
  for (int j = 0; j < 32; ++j) {
    codes[j] = static_cast<std::uint8_t>(std::min(15, TruncateByte((x[j] - low) * inverse + 0.5f)));
  }
  for (int j = 0; j < 16; ++j) block.qs[j] = static_cast<std::uint8_t>(codes[j] | codes[j + 16] << 4);
}

void EncodeReferenceQ5_0Block(const float* x, const float* importance, float sigma2, std::byte* out) {
  auto& block = *reinterpret_cast<BlockQ5_0*>(out);
  std::uint8_t codes[32];
  if (importance) {
    float w[32];
    Weigh(x, importance, sigma2, 32, w);
    block.d.Set(FitSymmetric(32, 16, x, codes, w));
  } else {
    const float d = SignedAbsMax(x, 32, nullptr) / -16, inverse = Inverse(d);
    block.d.Set(d);
    for (int j = 0; j < 32; ++j) {
      codes[j] = static_cast<std::uint8_t>(std::min(31, TruncateByte(x[j] * inverse + 16.5f)));
    }
  }
  PackHalves(codes, block.qs);
  PackFifthBits(codes, block.qh);
}

void EncodeReferenceQ5_1Block(const float* x, const float* importance, float sigma2, std::byte* out) {
  auto& block = *reinterpret_cast<BlockQ5_1*>(out);
  std::uint8_t codes[32];
  if (importance) {
    float w[32];
    Weigh(x, importance, sigma2, 32, w);
    const ScaleOffset fit = FitScaleOffset(32, 31, x, w, codes, -0.9f, 0.05f, 36, false);
    block.d.Set(fit.scale);
    block.m.Set(-fit.min);
  } else {
    float low = std::numeric_limits<float>::max(), high = -low;
    for (int j = 0; j < 32; ++j) {
      if (x[j] < low) low = x[j];
      if (x[j] > high) high = x[j];
    }
    const float d = (high - low) / 31, inverse = Inverse(d);
    block.d.Set(d);
    block.m.Set(low);
    for (int j = 0; j < 32; ++j) {
      codes[j] = static_cast<std::uint8_t>(Truncate((x[j] - low) * inverse + 0.5f));
    }
  }
  PackHalves(codes, block.qs);
  PackFifthBits(codes, block.qh);
}

#define OCTAVO_LEGACY(name)                                                                               \
  void EncodeReference##name(const float* x, std::size_t n, const float* importance, std::byte* blocks) { \
    EachLegacy<Block##name>(x, n, importance, blocks, EncodeReference##name##Block);                      \
  }
OCTAVO_LEGACY(Q4_0)
OCTAVO_LEGACY(Q4_1)
OCTAVO_LEGACY(Q5_0)
OCTAVO_LEGACY(Q5_1)
#undef OCTAVO_LEGACY

void EncodeReferenceQ8_0(const float* x, std::size_t n, const float*, std::byte* out) {
  EachBlock<BlockQ8_0>(n, 32, out, [&](std::size_t i, BlockQ8_0& block) {
    const float d = AbsMax(x + i, 32) / 127, inverse = Inverse(d);
    block.d.Set(d);
    for (int j = 0; j < 32; ++j) {
      block.qs[j] = static_cast<std::int8_t>(TruncateByte(std::round(x[i + static_cast<std::size_t>(j)] * inverse)));
    }
  });
}

void EncodeReferenceIq4Nl(const float* x, std::size_t n, const float* importance, std::byte* out) {
  EachBlock<BlockIq4Nl>(n, 32, out, [&](std::size_t i, BlockIq4Nl& block) {
    const float* v = x + i;
    float w[32];
    if (importance) {
      Weigh(v, importance + i, SumOfSquares(v, 32) * (2.0f / 32), 32, w);
    } else {
      for (int j = 0; j < 32; ++j) w[j] = v[j] * v[j];
    }
    const float d = FitIq4(v, w), inverse = Inverse(d);
    block.d.Set(d);
    std::uint8_t codes[32];
    for (int j = 0; j < 32; ++j) codes[j] = static_cast<std::uint8_t>(NearestIq4(inverse * v[j]));
    PackHalves(codes, block.qs);
  });
}

void EncodeReferenceMxfp4(const float* x, std::size_t n, const float*, std::byte* out) {
  EachBlock<BlockMxfp4>(n, 32, out, [&](std::size_t i, BlockMxfp4& block) {
    const float* v = x + i;
    block.e = Mxfp4Exponent(AbsMax(v, 32));
    const float d = E8m0HalfToFloat(block.e);
    for (int j = 0; j < 16; ++j) block.qs[j] = Pair(NearestFp4(v[j], d), NearestFp4(v[j + 16], d));
  });
}

void EncodeReferenceNvfp4(const float* x, std::size_t n, const float*, std::byte* out) {
  EachBlock<BlockNvfp4>(n, 64, out, [&](std::size_t i, BlockNvfp4& block) {
    for (int s = 0; s < 4; ++s) {
      const float* v = x + i + 16 * s;
      block.d[s] = FloatToUe4m3(AbsMax(v, 16) / 6.0f);
      const float d = Ue4m3HalfToFloat(block.d[s]);
      for (int j = 0; j < 8; ++j) block.qs[8 * s + j] = Pair(NearestFp4(v[j], d), NearestFp4(v[j + 8], d));
    }
  });
}

// --- encoders of super-blocks ---------------------------------------------------------------------------------------

void EncodeReferenceQ2_K(const float* x, std::size_t n, const float* importance, std::byte* out) {
  EachBlock<BlockQ2_K>(n, kSuper, out, [&](std::size_t i, BlockQ2_K& block) {
    const float* v = x + i;
    float scales[16], mins[16], w[16];
    std::uint8_t codes[kSuper], scale_codes[16], min_codes[16];
    if (importance) {
      float totals[16];
      const float sigma2 = SumOfSquares(v, kSuper) / kSuper;
      for (int j = 0; j < 16; ++j) {
        Weigh(v + 16 * j, importance + i + 16 * j, sigma2, 16, w);
        totals[j] = Sum(w, 16);
        const ScaleOffset fit = FitScaleOffset(16, 3, v + 16 * j, w, codes + 16 * j, -0.9f, 0.05f, 36, false);
        scales[j] = fit.scale;
        mins[j] = fit.min;
      }
      block.d.Set(FitPositive(16, 15, scales, scale_codes, totals));
      block.dmin.Set(FitPositive(16, 15, mins, min_codes, totals));
    } else {
      for (int j = 0; j < 16; ++j) {
        for (int l = 0; l < 16; ++l) w[l] = std::fabs(v[16 * j + l]);
        const ScaleOffset fit = FitScaleOffset(16, 3, v + 16 * j, w, codes + 16 * j, -0.5f, 0.1f, 15, true);
        scales[j] = fit.scale;
        mins[j] = fit.min;
      }
      QuantizeScales(16, 15, scales, &block.d, scale_codes);
      QuantizeScales(16, 15, mins, &block.dmin, min_codes);
    }
    const float d = block.d.value(), dmin = block.dmin.value();
    for (int j = 0; j < 16; ++j) {
      block.scales[j] = Pair(scale_codes[j], min_codes[j]);
      Requantize(v + 16 * j, 16, d * static_cast<float>(block.scales[j] & 15),
                 dmin * static_cast<float>(block.scales[j] >> 4), 3, codes + 16 * j);
    }
    PackPairs(codes, block.qs);
  });
}

void EncodeReferenceQ3_K(const float* x, std::size_t n, const float* importance, std::byte* out) {
  EachBlock<BlockQ3_K>(n, kSuper, out, [&](std::size_t i, BlockQ3_K& block) {
    const float* v = x + i;
    float scales[16];
    std::uint8_t codes[kSuper];
    std::memset(block.scales, 0, sizeof block.scales);
    if (importance) {
      float totals[16], w[16];
      std::uint8_t scale_codes[16];
      const float sigma2 = 2 * SumOfSquares(v, kSuper) / kSuper;
      for (int j = 0; j < 16; ++j) {
        Weigh(v + 16 * j, importance + i + 16 * j, sigma2, 16, w);
        totals[j] = Sum(w, 16);
        scales[j] = FitSymmetric(16, 4, v + 16 * j, codes + 16 * j, w);
      }
      const float d = FitSymmetric(16, 32, scales, scale_codes, totals);
      for (int j = 0; j < 16; ++j) SetScaleQ3(block.scales, j, scale_codes[j]);
      block.d.Set(d);
    } else {
      for (int j = 0; j < 16; ++j) scales[j] = FitQ3(v + 16 * j, codes + 16 * j);
      QuantizeScalesQ3(scales, &block.d, block.scales);
    }
    const float d = block.d.value();
    for (int j = 0; j < 16; ++j) {
      RequantizeSymmetric(v + 16 * j, 16, d * static_cast<float>(GetScaleQ3(block.scales, j) - 32), 4, codes + 16 * j);
    }
    std::memset(block.hmask, 0, sizeof block.hmask);
    for (int j = 0; j < kSuper; ++j) {
      block.hmask[j % 32] = static_cast<std::uint8_t>(block.hmask[j % 32] | (codes[j] >> 2 & 1) << (j / 32));
    }
    PackPairs(codes, block.qs);
  });
}

void EncodeReferenceQ4_K(const float* x, std::size_t n, const float* importance, std::byte* out) {
  EachBlock<BlockQ4_K>(n, kSuper, out, [&](std::size_t i, BlockQ4_K& block) {
    std::uint8_t codes[kSuper];
    EncodeScaleMinSuper(x + i, importance ? importance + i : nullptr, 15, -1.0f, 20, &block, codes);
    for (int j = 0; j < 128; ++j) {
      const std::uint8_t* c = codes + 64 * (j / 32) + j % 32;
      block.qs[j] = Pair(c[0], c[32]);
    }
  });
}

void EncodeReferenceQ5_K(const float* x, std::size_t n, const float* importance, std::byte* out) {
  EachBlock<BlockQ5_K>(n, kSuper, out, [&](std::size_t i, BlockQ5_K& block) {
    std::uint8_t codes[kSuper];
    EncodeScaleMinSuper(x + i, importance ? importance + i : nullptr, 31, -0.5f, 15, &block, codes);
    for (int j = 0; j < 128; ++j) {
      const std::uint8_t* c = codes + 64 * (j / 32) + j % 32;
      block.qs[j] = Pair(c[0] & 15, c[32] & 15);
    }
    for (int j = 0; j < 32; ++j) {
      unsigned bits = 0;
      for (int k = 0; k < 8; ++k) bits |= static_cast<unsigned>(codes[j + 32 * k] >> 4 & 1) << k;
      block.qh[j] = static_cast<std::uint8_t>(bits);
    }
  });
}

void EncodeReferenceQ6_K(const float* x, std::size_t n, const float* importance, std::byte* out) {
  EachBlock<BlockQ6_K>(n, kSuper, out, [&](std::size_t i, BlockQ6_K& block) {
    const float* v = x + i;
    float scales[16];
    std::uint8_t codes[kSuper];
    for (int j = 0; j < 16; ++j) {
      scales[j] = FitSymmetric(16, 32, v + 16 * j, codes + 16 * j, importance ? importance + i + 16 * j : nullptr);
    }
    float amax;
    const float max = SignedAbsMax(scales, 16, &amax);
    if (amax < kTiny) {
      std::memset(&block, 0, sizeof block);
      return;
    }
    const float inverse = -128.0f / max;
    block.d.Set(1 / inverse);
    const float d = block.d.value();
    for (int j = 0; j < 16; ++j) {
      block.scales[j] = static_cast<std::int8_t>(std::min(127, NearestInt(inverse * scales[j])));
      RequantizeSymmetric(v + 16 * j, 16, d * static_cast<float>(block.scales[j]), 32, codes + 16 * j);
    }
    for (int h = 0; h < 2; ++h) {
      for (int j = 0; j < 32; ++j) {
        const std::uint8_t* c = codes + 128 * h + j;
        block.ql[64 * h + j] = Pair(c[0] & 15, c[64] & 15);
        block.ql[64 * h + j + 32] = Pair(c[32] & 15, c[96] & 15);
        block.qh[32 * h + j] =
            static_cast<std::uint8_t>(c[0] >> 4 | c[32] >> 4 << 2 | c[64] >> 4 << 4 | c[96] >> 4 << 6);
      }
    }
  });
}

void EncodeReferenceIq4Xs(const float* x, std::size_t n, const float* importance, std::byte* out) {
  EachBlock<BlockIq4Xs>(n, kSuper, out, [&](std::size_t i, BlockIq4Xs& block) {
    const float* v = x + i;
    const float sigma2 = importance ? SumOfSquares(v, kSuper) * (2.0f / kSuper) : 0.0f;
    float scales[8];
    for (int j = 0; j < 8; ++j) {
      const float* u = v + 32 * j;
      float w[32];
      if (importance) {
        Weigh(u, importance + i + 32 * j, sigma2, 32, w);
      } else {
        for (int l = 0; l < 32; ++l) w[l] = u[l] * u[l];
      }
      scales[j] = FitIq4(u, w);
    }
    const float d = -SignedAbsMax(scales, 8, nullptr) / 32;
    block.d.Set(d);
    const float inverse = Inverse(d);
    unsigned high = 0;
    std::memset(block.scales_l, 0, sizeof block.scales_l);
    for (int j = 0; j < 8; ++j) {
      const int code = std::clamp(NearestInt(inverse * scales[j]), -32, 31);
      const float sub_inverse = Inverse(d * static_cast<float>(code));
      std::uint8_t codes[32];
      for (int l = 0; l < 32; ++l) codes[l] = static_cast<std::uint8_t>(NearestIq4(sub_inverse * v[32 * j + l]));
      PackHalves(codes, block.qs + 16 * j);
      const int stored = code + 32;
      block.scales_l[j / 2] = static_cast<std::uint8_t>(block.scales_l[j / 2] | (stored & 15) << (4 * (j % 2)));
      high |= static_cast<unsigned>(stored >> 4) << (2 * j);
    }
    block.scales_h[0] = static_cast<std::uint8_t>(high);
    block.scales_h[1] = static_cast<std::uint8_t>(high >> 8);
  });
}

namespace {

// -1, 0 or 1 plus 1: the nearest integer, halves away from zero; what fits no long is 0 plus 1.
int Trit(float x) {
  const float r = std::round(x);
  return std::fabs(r) < 9.2e18f ? static_cast<int>(static_cast<std::int64_t>(r)) + 1 : 1;
}
// A number of base 3 below 243 as the fraction of 256 that yields its digits by repeated multiplication with 3.
std::uint8_t TritFraction(unsigned q) { return static_cast<std::uint8_t>(((q & 255) * 256 + 242) / 243); }

}  // namespace

void EncodeReferenceTq1_0(const float* x, std::size_t n, const float*, std::byte* out) {
  EachBlock<BlockTq1_0>(n, kSuper, out, [&](std::size_t i, BlockTq1_0& block) {
    const float* v = x + i;
    const float d = AbsMax(v, kSuper), inverse = Inverse(d);
    block.d.Set(d);
    const auto group = [&](const float* start, int bytes, int digits, std::uint8_t* qs) {
      for (int j = 0; j < bytes; ++j) {
        unsigned q = 0;
        for (int k = 0; k < digits; ++k) q = q * 3 + static_cast<unsigned>(Trit(start[j + k * bytes] * inverse));
        for (int k = digits; k < 5; ++k) q *= 3;
        qs[j] = TritFraction(q);
      }
    };
    group(v, 32, 5, block.qs);
    group(v + 160, 16, 5, block.qs + 32);
    group(v + 240, 4, 4, block.qh);
  });
}

void EncodeReferenceTq2_0(const float* x, std::size_t n, const float*, std::byte* out) {
  EachBlock<BlockTq2_0>(n, kSuper, out, [&](std::size_t i, BlockTq2_0& block) {
    const float* v = x + i;
    const float d = AbsMax(v, kSuper), inverse = Inverse(d);
    block.d.Set(d);
    std::uint8_t codes[kSuper];
    for (int j = 0; j < kSuper; ++j) codes[j] = static_cast<std::uint8_t>(Trit(v[j] * inverse));
    PackPairs(codes, block.qs);
  });
}

// --- decoders -------------------------------------------------------------------------------------------------------

namespace {

int FifthBit(const std::uint8_t* qh, int j) { return (qh[j / 8] >> (j % 8) & 1) << 4; }
int Nibble(const std::uint8_t* qs, int j) { return j < 16 ? qs[j] & 15 : qs[j - 16] >> 4; }
int CodePair(const std::uint8_t* qs, int j) { return qs[32 * (j / 128) + j % 32] >> (2 * (j / 32 % 4)) & 3; }

}  // namespace

void DecodeReferenceQ4_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ4_0>(n, 32, in, [&](std::size_t i, const BlockQ4_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) out[i + static_cast<std::size_t>(j)] = static_cast<float>(Nibble(b.qs, j) - 8) * d;
  });
}

void DecodeReferenceQ4_1(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ4_1>(n, 32, in, [&](std::size_t i, const BlockQ4_1& b) {
    const float d = b.d.value(), m = b.m.value();
    for (int j = 0; j < 32; ++j) out[i + static_cast<std::size_t>(j)] = static_cast<float>(Nibble(b.qs, j)) * d + m;
  });
}

void DecodeReferenceQ5_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ5_0>(n, 32, in, [&](std::size_t i, const BlockQ5_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) {
      const int q = Nibble(b.qs, j) | FifthBit(b.qh, j);
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(q - 16) * d;
    }
  });
}

void DecodeReferenceQ5_1(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ5_1>(n, 32, in, [&](std::size_t i, const BlockQ5_1& b) {
    const float d = b.d.value(), m = b.m.value();
    for (int j = 0; j < 32; ++j) {
      const int q = Nibble(b.qs, j) | FifthBit(b.qh, j);
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(q) * d + m;
    }
  });
}

void DecodeReferenceQ8_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ8_0>(n, 32, in, [&](std::size_t i, const BlockQ8_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) out[i + static_cast<std::size_t>(j)] = static_cast<float>(b.qs[j]) * d;
  });
}

void DecodeReferenceQ2_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ2_K>(n, kSuper, in, [&](std::size_t i, const BlockQ2_K& b) {
    const float d = b.d.value(), dmin = b.dmin.value();
    for (int j = 0; j < kSuper; ++j) {
      const std::uint8_t s = b.scales[j / 16];
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(s & 15) * static_cast<float>(CodePair(b.qs, j)) - dmin * static_cast<float>(s >> 4);
    }
  });
}

void DecodeReferenceQ3_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ3_K>(n, kSuper, in, [&](std::size_t i, const BlockQ3_K& b) {
    const float d = b.d.value();
    for (int j = 0; j < kSuper; ++j) {
      const int q = CodePair(b.qs, j) - (b.hmask[j % 32] >> (j / 32) & 1 ? 0 : 4);
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(GetScaleQ3(b.scales, j / 16) - 32) * static_cast<float>(q);
    }
  });
}

void DecodeReferenceQ4_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ4_K>(n, kSuper, in, [&](std::size_t i, const BlockQ4_K& b) {
    const float d = b.d.value(), dmin = b.dmin.value();
    for (int j = 0; j < kSuper; ++j) {
      const ScaleMin s = GetScaleMin(b.scales, j / 32);
      const int q = b.qs[32 * (j / 64) + j % 32] >> (4 * (j / 32 % 2)) & 15;
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(s.scale) * static_cast<float>(q) - dmin * static_cast<float>(s.min);
    }
  });
}

void DecodeReferenceQ5_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ5_K>(n, kSuper, in, [&](std::size_t i, const BlockQ5_K& b) {
    const float d = b.d.value(), dmin = b.dmin.value();
    for (int j = 0; j < kSuper; ++j) {
      const ScaleMin s = GetScaleMin(b.scales, j / 32);
      const int low = b.qs[32 * (j / 64) + j % 32] >> (4 * (j / 32 % 2)) & 15;
      const int q = low | (b.qh[j % 32] >> (j / 32) & 1) << 4;
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(s.scale) * static_cast<float>(q) - dmin * static_cast<float>(s.min);
    }
  });
}

void DecodeReferenceQ6_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ6_K>(n, kSuper, in, [&](std::size_t i, const BlockQ6_K& b) {
    const float d = b.d.value();
    for (int j = 0; j < kSuper; ++j) {
      const int low = b.ql[64 * (j / 128) + j % 64] >> (4 * (j / 64 % 2)) & 15;
      const int high = b.qh[32 * (j / 128) + j % 32] >> (2 * (j / 32 % 4)) & 3;
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(b.scales[j / 16]) * static_cast<float>((low | high << 4) - 32);
    }
  });
}

void DecodeReferenceIq4Nl(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockIq4Nl>(n, 32, in, [&](std::size_t i, const BlockIq4Nl& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) {
      out[i + static_cast<std::size_t>(j)] = d * static_cast<float>(kIq4Values[Nibble(b.qs, j)]);
    }
  });
}

void DecodeReferenceIq4Xs(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockIq4Xs>(n, kSuper, in, [&](std::size_t i, const BlockIq4Xs& b) {
    const float d = b.d.value();
    for (int j = 0; j < 8; ++j) {
      const int scale = (b.scales_l[j / 2] >> (4 * (j % 2)) & 15) | (b.scales_h[j / 4] >> (2 * (j % 4)) & 3) << 4;
      const float s = d * static_cast<float>(scale - 32);
      for (int l = 0; l < 32; ++l) {
        out[i + static_cast<std::size_t>(32 * j + l)] = s * static_cast<float>(kIq4Values[Nibble(b.qs + 16 * j, l)]);
      }
    }
  });
}

void DecodeReferenceMxfp4(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockMxfp4>(n, 32, in, [&](std::size_t i, const BlockMxfp4& b) {
    const float d = E8m0HalfToFloat(b.e);
    for (int j = 0; j < 32; ++j) {
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(kFp4Values[Nibble(b.qs, j)]) * d;
    }
  });
}

void DecodeReferenceNvfp4(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockNvfp4>(n, 64, in, [&](std::size_t i, const BlockNvfp4& b) {
    for (int j = 0; j < 64; ++j) {
      const int q = b.qs[8 * (j / 16) + j % 8] >> (4 * (j / 8 % 2)) & 15;
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(kFp4Values[q]) * Ue4m3HalfToFloat(b.d[j / 16]);
    }
  });
}

void DecodeReferenceTq1_0(const std::byte* in, std::size_t n, float* out) {
  constexpr int kPowers[5] = {1, 3, 9, 27, 81};
  EachBlock<BlockTq1_0>(n, kSuper, in, [&](std::size_t i, const BlockTq1_0& b) {
    const float d = b.d.value();
    const auto group = [&](float* start, int bytes, int digits, const std::uint8_t* qs) {
      for (int k = 0; k < digits; ++k) {
        for (int j = 0; j < bytes; ++j) {
          const int digit = (qs[j] * kPowers[k] & 255) * 3 >> 8;
          start[k * bytes + j] = static_cast<float>(digit - 1) * d;
        }
      }
    };
    group(out + i, 32, 5, b.qs);
    group(out + i + 160, 16, 5, b.qs + 32);
    group(out + i + 240, 4, 4, b.qh);
  });
}

void DecodeReferenceTq2_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockTq2_0>(n, kSuper, in, [&](std::size_t i, const BlockTq2_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < kSuper; ++j) {
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(CodePair(b.qs, j) - 1) * d;
    }
  });
}

}  // namespace octavo::ggml
