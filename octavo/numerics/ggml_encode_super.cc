// Vector encoders of super-blocks of 256: see ggml_encode.cc.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/ggml_encode_super.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "octavo/numerics/ggml_encode-inl.h"

#ifndef OCTAVO_FORMATS
#define OCTAVO_FORMATS(X) \
  X(Q2_K)                 \
  X(Q3_K)                 \
  X(Q4_K)                 \
  X(Q5_K)                 \
  X(Q6_K)                 \
  X(Iq4Xs)                \
  X(Tq1_0)                \
  X(Tq2_0)
#endif

HWY_BEFORE_NAMESPACE();
namespace octavo::ggml {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

float SuperSquares(const float* x) {
  float sum = 0;
  for (int i = 0; i < kSuper; ++i) sum += x[i] * x[i];
  return sum;
}

// Q4_K and Q5_K.
template <typename Block, int kTop, int kSteps, void (*kReference)(const float*, size_t, const float*, std::byte*)>
void EncodeScaleMin(const float* x, size_t n, const float* importance, std::byte* out, float rmin) {
  Batch<32> b;
  for (size_t at = 0; at < n; at += 2 * kSuper) {
    const size_t supers = std::min<size_t>(2, (n - at) / kSuper), count = 8 * supers;
    if (importance) {
      float sigma2[kBatch];
      for (size_t s = 0; s < supers; ++s) {
        std::fill_n(sigma2 + 8 * s, 8, 2 * SuperSquares(x + at + kSuper * s) / kSuper);
      }
      Load<32>(x + at, count, Weights::kImportance, importance + at, sigma2, b);
      FitScaleOffset<32, false>(b, count, kTop, -0.9f, 0.05f, 36);
    } else {
      Load<32>(x + at, count, Weights::kAverage, nullptr, nullptr, b);
      FitScaleOffset<32, false>(b, count, kTop, rmin, 0.1f, kSteps);
    }
    for (size_t s = 0; s < supers; ++s) {
      const float* v = x + at + kSuper * s;
      auto& block = reinterpret_cast<Block*>(out)[at / kSuper + s];
      if (b.bad >> (8 * s) & 255) {
        kReference(v, kSuper, importance ? importance + at + kSuper * s : nullptr,
                   reinterpret_cast<std::byte*>(&block));
        continue;
      }
      uint8_t scale_codes[8], min_codes[8];
      if (importance) {
        block.d.Set(FitPositive(8, 63, b.scale + 8 * s, scale_codes, b.total + 8 * s));
        block.dmin.Set(FitPositive(8, 63, b.min + 8 * s, min_codes, b.total + 8 * s));
      } else {
        QuantizeScales(8, 63, b.scale + 8 * s, &block.d, scale_codes);
        QuantizeScales(8, 63, b.min + 8 * s, &block.dmin, min_codes);
      }
      for (int j = 0; j < 8; ++j) SetScaleMin(block.scales, j, scale_codes[j], min_codes[j]);
      const float d = block.d.value(), dmin = block.dmin.value();
      alignas(64) uint8_t codes[kSuper];
      for (int j = 0; j < 8; ++j) {
        const ScaleMin sm = GetScaleMin(block.scales, j);
        const float scale = d * static_cast<float>(sm.scale);
        if (scale != 0) {
          Requantize(v + 32 * j, 32, scale, dmin * static_cast<float>(sm.min), kTop, codes + 32 * j);
        } else {
          const size_t k = 8 * s + static_cast<size_t>(j);
          FittedCodes(v + 32 * j, 32, b.inverse[k], b.offset[k], kTop, codes + 32 * j);
        }
      }
      for (int j = 0; j < 4; ++j) PackNibbles(codes + 64 * j, codes + 64 * j + 32, 32, block.qs + 32 * j);
      if constexpr (kTop == 31) PackMask(codes, 4, block.qh);
    }
  }
}

void EncodeQ4_K(const float* x, size_t n, const float* importance, std::byte* out) {
  EncodeScaleMin<BlockQ4_K, 15, 20, EncodeReferenceQ4_K>(x, n, importance, out, -1.0f);
}
void EncodeQ5_K(const float* x, size_t n, const float* importance, std::byte* out) {
  EncodeScaleMin<BlockQ5_K, 31, 15, EncodeReferenceQ5_K>(x, n, importance, out, -0.5f);
}

void EncodeQ2_K(const float* x, size_t n, const float* importance, std::byte* out) {
  Batch<16> b;
  for (size_t at = 0; at < n; at += kSuper) {
    const float* v = x + at;
    auto& block = reinterpret_cast<BlockQ2_K*>(out)[at / kSuper];
    if (importance) {
      float sigma2[kBatch];
      std::fill_n(sigma2, kBatch, SuperSquares(v) / kSuper);
      Load<16>(v, kBatch, Weights::kImportance, importance + at, sigma2, b);
      FitScaleOffset<16, false>(b, kBatch, 3, -0.9f, 0.05f, 36);
    } else {
      Load<16>(v, kBatch, Weights::kMagnitude, nullptr, nullptr, b);
      FitScaleOffset<16, true>(b, kBatch, 3, -0.5f, 0.1f, 15);
    }
    if (b.bad) {
      EncodeReferenceQ2_K(v, kSuper, importance ? importance + at : nullptr, reinterpret_cast<std::byte*>(&block));
      continue;
    }
    uint8_t scale_codes[16], min_codes[16];
    if (importance) {
      block.d.Set(FitPositive(16, 15, b.scale, scale_codes, b.total));
      block.dmin.Set(FitPositive(16, 15, b.min, min_codes, b.total));
    } else {
      QuantizeScales(16, 15, b.scale, &block.d, scale_codes);
      QuantizeScales(16, 15, b.min, &block.dmin, min_codes);
    }
    const float d = block.d.value(), dmin = block.dmin.value();
    alignas(64) uint8_t codes[kSuper];
    for (int j = 0; j < 16; ++j) {
      block.scales[j] = static_cast<uint8_t>(scale_codes[j] | min_codes[j] << 4);
      const float scale = d * static_cast<float>(block.scales[j] & 15);
      if (scale != 0) {
        Requantize(v + 16 * j, 16, scale, dmin * static_cast<float>(block.scales[j] >> 4), 3, codes + 16 * j);
      } else {
        FittedCodes(v + 16 * j, 16, b.inverse[j], b.offset[j], 3, codes + 16 * j);
      }
    }
    PackPairs(codes, block.qs);
  }
}

void EncodeQ3_K(const float* x, size_t n, const float* importance, std::byte* out) {
  const size_t lanes = hn::Lanes(DF());
  Batch<16> b;
  for (size_t at = 0; at < n; at += kSuper) {
    const float* v = x + at;
    auto& block = reinterpret_cast<BlockQ3_K*>(out)[at / kSuper];
    std::memset(block.scales, 0, sizeof block.scales);
    if (importance) {
      float sigma2[kBatch];
      std::fill_n(sigma2, kBatch, 2 * SuperSquares(v) / kSuper);
      Load<16>(v, kBatch, Weights::kImportance, importance + at, sigma2, b);
      FitSymmetric<16>(b, kBatch, 4);
      uint8_t scale_codes[16];
      const float d = ggml::FitSymmetric(16, 32, b.scale, scale_codes, b.total);
      for (int j = 0; j < 16; ++j) SetScaleQ3(block.scales, j, scale_codes[j]);
      block.d.Set(d);
    } else {
      Load<16>(v, kBatch, Weights::kSquare, nullptr, nullptr, b);
      FitQ3(b, kBatch);
      QuantizeScalesQ3(b.scale, &block.d, block.scales);
    }
    const float d = block.d.value();
    alignas(64) uint8_t codes[kSuper];
    for (size_t j = 0; j < 16; ++j) {
      const float scale = d * static_cast<float>(GetScaleQ3(block.scales, static_cast<int>(j)) - 32);
      if (scale != 0) {
        RequantizeSymmetric(v + 16 * j, 16, scale, 4, codes + 16 * j);
      } else if (importance) {
        FittedSymmetric(v + 16 * j, 16, b.inverse[j], 4, codes + 16 * j);
      } else {
        const float* l = b.l + j / lanes * 16 * lanes + j % lanes;
        for (size_t i = 0; i < 16; ++i) codes[16 * j + i] = static_cast<uint8_t>(static_cast<int>(l[i * lanes]) + 4);
      }
    }
    PackMask(codes, 2, block.hmask);
    PackPairs(codes, block.qs);
  }
}

void EncodeQ6_K(const float* x, size_t n, const float* importance, std::byte* out) {
  Batch<16> b;
  for (size_t at = 0; at < n; at += kSuper) {
    const float* v = x + at;
    auto& block = reinterpret_cast<BlockQ6_K*>(out)[at / kSuper];
    Load<16>(v, kBatch, importance ? Weights::kRawImportance : Weights::kSquare, importance ? importance + at : nullptr,
             nullptr, b);
    FitSymmetric<16>(b, kBatch, 32);
    float max = 0, amax = 0;
    for (size_t j = 0; j < 16; ++j) {
      if (std::fabs(b.scale[j]) > amax) {
        amax = std::fabs(b.scale[j]);
        max = b.scale[j];
      }
    }
    if (amax < kTiny) {
      std::memset(&block, 0, sizeof block);
      continue;
    }
    const float inverse = -128.0f / max;
    block.d.Set(1 / inverse);
    const float d = block.d.value();
    alignas(64) uint8_t codes[kSuper];
    for (size_t j = 0; j < 16; ++j) {
      block.scales[j] = static_cast<int8_t>(std::min(127, NearestInt(inverse * b.scale[j])));
      const float scale = d * static_cast<float>(block.scales[j]);
      if (scale != 0) {
        RequantizeSymmetric(v + 16 * j, 16, scale, 32, codes + 16 * j);
      } else {
        FittedSymmetric(v + 16 * j, 16, b.inverse[j], 32, codes + 16 * j);
      }
    }
    uint8_t high[kSuper];
    for (int j = 0; j < kSuper; ++j) high[j] = static_cast<uint8_t>(codes[j] >> 4);
    for (int h = 0; h < 2; ++h) {
      PackNibbles(codes + 128 * h, codes + 128 * h + 64, 64, block.ql + 64 * h);
    }
    PackPairs(high, block.qh);
  }
}

void EncodeIq4Xs(const float* x, size_t n, const float* importance, std::byte* out) {
  Batch<32> b;
  for (size_t at = 0; at < n; at += 2 * kSuper) {
    const size_t supers = std::min<size_t>(2, (n - at) / kSuper), count = 8 * supers;
    float sigma2[kBatch];
    if (importance) {
      for (size_t s = 0; s < supers; ++s) {
        std::fill_n(sigma2 + 8 * s, 8, SuperSquares(x + at + kSuper * s) * (2.0f / kSuper));
      }
    }
    Load<32>(x + at, count, importance ? Weights::kImportance : Weights::kSquare,
             importance ? importance + at : nullptr, importance ? sigma2 : nullptr, b);
    FitIq4(b, count);
    for (size_t s = 0; s < supers; ++s) {
      const float* v = x + at + kSuper * s;
      const float* scales = b.scale + 8 * s;
      auto& block = reinterpret_cast<BlockIq4Xs*>(out)[at / kSuper + s];
      float max = 0, amax = 0;
      for (int j = 0; j < 8; ++j) {
        if (std::fabs(scales[j]) > amax) {
          amax = std::fabs(scales[j]);
          max = scales[j];
        }
      }
      const float d = -max / 32;
      if (!(amax < kLarge && (amax > kSmall || amax == 0))) {  // inverses may be infinite
        EncodeReferenceIq4Xs(v, kSuper, importance ? importance + at + kSuper * s : nullptr,
                             reinterpret_cast<std::byte*>(&block));
        continue;
      }
      block.d.Set(d);
      const float inverse = d != 0 ? 1 / d : 0.0f;
      unsigned high = 0;
      std::memset(block.scales_l, 0, sizeof block.scales_l);
      for (int j = 0; j < 8; ++j) {
        const int code = std::clamp(NearestInt(inverse * scales[j]), -32, 31);
        const float sub = d * static_cast<float>(code);
        alignas(64) uint8_t codes[32];
        Iq4Codes(v + 32 * j, 32, sub != 0 ? 1 / sub : 0.0f, codes);
        PackNibbles(codes, codes + 16, 16, block.qs + 16 * j);
        const int stored = code + 32;
        block.scales_l[j / 2] = static_cast<uint8_t>(block.scales_l[j / 2] | (stored & 15) << (4 * (j % 2)));
        high |= static_cast<unsigned>(stored >> 4) << (2 * j);
      }
      block.scales_h[0] = static_cast<uint8_t>(high);
      block.scales_h[1] = static_cast<uint8_t>(high >> 8);
    }
  }
}

// Trits: the rounded value is -1, 0 or 1, halves away from zero.
HWY_INLINE void TritCodes(const float* x, float inverse, uint8_t* codes) {
  const DF d;
  const DI di;
  const auto s = hn::Set(d, inverse), half = hn::Set(d, 0x1.fffffep-2f);
  for (size_t i = 0; i < kSuper; i += hn::Lanes(d)) {
    const auto y = hn::Mul(hn::LoadU(d, x + i), s);
    StoreCodes(d, hn::Add(hn::ConvertTo(di, hn::Add(y, hn::CopySign(half, y))), hn::Set(di, 1)), codes + i);
  }
}

void EncodeTq1_0(const float* x, size_t n, const float*, std::byte* out) {
  auto* block = reinterpret_cast<BlockTq1_0*>(out);
  alignas(64) uint8_t codes[kSuper];
  for (size_t i = 0; i < n; i += kSuper, ++block) {
    for (size_t j = 0; j < kSuper; j += 32) Ahead(x + i + j);
    const float amax = AbsMaxOf(x + i, kSuper);
    if (!Ordinary(amax)) {
      EncodeReferenceTq1_0(x + i, kSuper, nullptr, reinterpret_cast<std::byte*>(block));
      continue;
    }
    block->d.Set(amax);
    TritCodes(x + i, amax != 0 ? 1 / amax : 0.0f, codes);
    const auto group = [](const uint8_t* HWY_RESTRICT c, int bytes, int digits, uint8_t* HWY_RESTRICT qs) HWY_ATTR {
      for (int j = 0; j < bytes; ++j) {
        unsigned q = 0;
        for (int k = 0; k < digits; ++k) q = q * 3 + c[j + k * bytes];
        for (int k = digits; k < 5; ++k) q *= 3;
        qs[j] = static_cast<uint8_t>((q * 256 + 242) / 243);
      }
    };
    group(codes, 32, 5, block->qs);
    group(codes + 160, 16, 5, block->qs + 32);
    group(codes + 240, 4, 4, block->qh);
  }
}

void EncodeTq2_0(const float* x, size_t n, const float*, std::byte* out) {
  auto* block = reinterpret_cast<BlockTq2_0*>(out);
  alignas(64) uint8_t codes[kSuper];
  for (size_t i = 0; i < n; i += kSuper, ++block) {
    for (size_t j = 0; j < kSuper; j += 32) Ahead(x + i + j);
    const float amax = AbsMaxOf(x + i, kSuper);
    if (!Ordinary(amax)) {
      EncodeReferenceTq2_0(x + i, kSuper, nullptr, reinterpret_cast<std::byte*>(block));
      continue;
    }
    block->d.Set(amax);
    TritCodes(x + i, amax != 0 ? 1 / amax : 0.0f, codes);
    PackPairs(codes, block->qs);
  }
}

}  // namespace
#else  // one lane: the reference is the kernel
#define OCTAVO_TARGET(name) constexpr auto Encode##name = EncodeReference##name;
OCTAVO_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
#endif
#define OCTAVO_TARGET(name)                                                              \
  void Run##name(const float* x, size_t n, const float* importance, std::byte* blocks) { \
    Encode##name(x, n, importance, blocks);                                              \
  }
OCTAVO_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
}  // namespace HWY_NAMESPACE
}  // namespace octavo::ggml
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::ggml {
#define OCTAVO_EXPORT(name)                                                                      \
  HWY_EXPORT(Run##name);                                                                         \
  void Encode##name(const float* x, std::size_t n, const float* importance, std::byte* blocks) { \
    HWY_DYNAMIC_DISPATCH(Run##name)(x, n, importance, blocks);                                   \
  }
OCTAVO_FORMATS(OCTAVO_EXPORT)
#undef OCTAVO_EXPORT
}  // namespace octavo::ggml
#endif  // HWY_ONCE
