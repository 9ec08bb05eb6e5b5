// The reference: encoders of super-blocks of 256.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_reference.h"
#include "octavo/numerics/ggml_reference_fit.h"

namespace octavo::ggml {

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

}  // namespace octavo::ggml
