// The fits that vector kernels share with the reference, and its encoders of blocks of 32 (16 for NVFP4).
#include "octavo/numerics/ggml_reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_reference_fit.h"

namespace octavo::ggml {

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
  // NOLINTNEXTLINE(bugprone-incorrect-roundings): ggml's rounding, to the bit; x is positive
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

}  // namespace octavo::ggml
