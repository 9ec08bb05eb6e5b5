// Vector encoders. Formats that search for their scale run one sub-block a lane, so that each lane adds up in the order
// of the reference; the others run along a block. Rounding goes through floats, where the reference goes through the
// bits of a sum: equal below 2^22, and a sub-block that gets there (or to NaN) is left to the reference.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/ggml_encode.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "octavo/numerics/ggml_encode-inl.h"

#ifndef OCTAVO_FORMATS
#define OCTAVO_FORMATS(X) \
  X(Q4_0)                 \
  X(Q4_1)                 \
  X(Q5_0)                 \
  X(Q5_1)                 \
  X(Q8_0)                 \
  X(Iq4Nl)                \
  X(Mxfp4)                \
  X(Nvfp4)
#endif

HWY_BEFORE_NAMESPACE();
namespace octavo::ggml {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

void EncodeIq4Nl(const float* x, size_t n, const float* importance, std::byte* out) {
  Batch<32> b;
  for (size_t at = 0; at < n; at += 32 * kBatch) {
    const size_t count = std::min(kBatch, (n - at) / 32);
    float sigma2[kBatch];
    if (importance) {
      for (size_t s = 0; s < count; ++s) {
        float sum = 0;
        for (size_t i = 0; i < 32; ++i) sum += x[at + 32 * s + i] * x[at + 32 * s + i];
        sigma2[s] = sum * (2.0f / 32);
      }
    }
    Load<32>(x + at, count, importance ? Weights::kImportance : Weights::kSquare,
             importance ? importance + at : nullptr, importance ? sigma2 : nullptr, b);
    FitIq4(b, count);
    for (size_t s = 0; s < count; ++s) {
      auto& block = reinterpret_cast<BlockIq4Nl*>(out)[at / 32 + s];
      const float* v = x + at + 32 * s;
      const float d = b.scale[s], a = std::fabs(d);
      if (!(a < kLarge && (a > kSmall || a == 0))) {
        EncodeReferenceIq4Nl(v, 32, importance ? importance + at + 32 * s : nullptr,
                             reinterpret_cast<std::byte*>(&block));
        continue;
      }
      block.d.Set(d);
      alignas(64) uint8_t codes[32];
      Iq4Codes(v, 32, d != 0 ? 1 / d : 0.0f, codes);
      PackNibbles(codes, codes + 16, 16, block.qs);
    }
  }
}

// min(top, trunc((x - offset) * inverse + half)); all inside 0..top + 1.
HWY_INLINE void TruncatedCodes(const float* x, float offset, float inverse, float half, int top, uint8_t* codes) {
  const DF d;
  const DI di;
  const auto o = hn::Set(d, offset), s = hn::Set(d, inverse), h = hn::Set(d, half);
  const auto high = hn::Set(di, top);
  for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
    const auto y = hn::Add(hn::Mul(hn::Sub(hn::LoadU(d, x + i), o), s), h);
    StoreCodes(d, hn::Min(hn::ConvertTo(di, y), high), codes + i);
  }
}

using ReferenceBlock = void (*)(const float*, const float*, float, std::byte*);

// Q4_0, Q5_0: symmetric; the importance goes through FitSymmetric.
template <typename Block, int kHalf, ReferenceBlock kReference>
void EncodeLegacySymmetric(const float* x, size_t n, const float* importance, std::byte* out) {
  const auto pack = [](const uint8_t* codes, Block& block) HWY_ATTR {
    PackNibbles(codes, codes + 16, 16, block.qs);
    if constexpr (kHalf == 16) PackFifthBits(codes, block.qh);
  };
  alignas(64) uint8_t codes[32];
  auto* block = reinterpret_cast<Block*>(out);
  if (!importance) {
    for (size_t i = 0; i < n; i += 32, ++block) {
      Ahead(x + i);
      const float max = SignedAbsMaxOf(x + i, 32);
      if (!Ordinary(std::fabs(max))) {
        kReference(x + i, nullptr, 0, reinterpret_cast<std::byte*>(block));
        continue;
      }
      const float d = max / -kHalf;
      block->d.Set(d);
      // x * inverse, and 0 * 0 for zeros: the offset 0 changes nothing (x - 0 = x).
      TruncatedCodes(x + i, 0, d != 0 ? 1 / d : 0.0f, kHalf + 0.5f, 2 * kHalf - 1, codes);
      pack(codes, *block);
    }
    return;
  }
  Batch<32> b;
  float sigma2[kBatch];
  std::fill_n(sigma2, kBatch, MeanSquare(x, n));
  for (size_t at = 0; at < n; at += 32 * kBatch) {
    const size_t count = std::min(kBatch, (n - at) / 32);
    Load<32>(x + at, count, Weights::kImportance, importance + at, sigma2, b);
    FitSymmetric<32>(b, count, kHalf);
    for (size_t s = 0; s < count; ++s, ++block) {
      block->d.Set(b.scale[s]);
      FittedSymmetric(x + at + 32 * s, 32, b.inverse[s], kHalf, codes);
      pack(codes, *block);
    }
  }
}

// Q4_1, Q5_1: scale and minimum.
template <typename Block, int kTop, ReferenceBlock kReference>
void EncodeLegacyMin(const float* x, size_t n, const float* importance, std::byte* out) {
  const auto pack = [](const uint8_t* codes, Block& block) HWY_ATTR {
    PackNibbles(codes, codes + 16, 16, block.qs);
    if constexpr (kTop == 31) PackFifthBits(codes, block.qh);
  };
  alignas(64) uint8_t codes[32];
  auto* block = reinterpret_cast<Block*>(out);
  if (!importance) {
    for (size_t i = 0; i < n; i += 32, ++block) {
      Ahead(x + i);
      Range r = RangeOf(x + i, 32);
      const float span = r.high > r.low ? r.high - r.low : 0.0f;  // +0 for zeros of any signs
      if (!Ordinary(std::max(std::fabs(r.low), std::fabs(r.high))) || !Ordinary(span)) {
        kReference(x + i, nullptr, 0, reinterpret_cast<std::byte*>(block));
        continue;
      }
      if (r.low == 0) {  // the sign of the first zero
        for (size_t j = 0; j < 32; ++j) {
          if (x[i + j] == 0) {
            r.low = x[i + j];
            break;
          }
        }
      }
      const float d = span / kTop;
      block->d.Set(d);
      block->m.Set(r.low);
      TruncatedCodes(x + i, r.low, d != 0 ? 1 / d : 0.0f, 0.5f, kTop, codes);
      pack(codes, *block);
    }
    return;
  }
  Batch<32> b;
  float sigma2[kBatch];
  const float mean_square = MeanSquare(x, n);
  std::fill_n(sigma2, kBatch, mean_square);
  for (size_t at = 0; at < n; at += 32 * kBatch) {
    const size_t count = std::min(kBatch, (n - at) / 32);
    Load<32>(x + at, count, Weights::kImportance, importance + at, sigma2, b);
    FitScaleOffset<32, false>(b, count, kTop, -0.9f, 0.05f, 36);
    for (size_t s = 0; s < count; ++s, ++block) {
      const float* v = x + at + 32 * s;
      if (b.bad >> s & 1) {
        kReference(v, importance + at + 32 * s, mean_square, reinterpret_cast<std::byte*>(block));
        continue;
      }
      block->d.Set(b.scale[s]);
      block->m.Set(-b.min[s]);
      FittedCodes(v, 32, b.inverse[s], b.offset[s], kTop, codes);
      pack(codes, *block);
    }
  }
}

void EncodeQ4_0(const float* x, size_t n, const float* importance, std::byte* out) {
  EncodeLegacySymmetric<BlockQ4_0, 8, EncodeReferenceQ4_0Block>(x, n, importance, out);
}
void EncodeQ5_0(const float* x, size_t n, const float* importance, std::byte* out) {
  EncodeLegacySymmetric<BlockQ5_0, 16, EncodeReferenceQ5_0Block>(x, n, importance, out);
}
void EncodeQ4_1(const float* x, size_t n, const float* importance, std::byte* out) {
  EncodeLegacyMin<BlockQ4_1, 15, EncodeReferenceQ4_1Block>(x, n, importance, out);
}
void EncodeQ5_1(const float* x, size_t n, const float* importance, std::byte* out) {
  EncodeLegacyMin<BlockQ5_1, 31, EncodeReferenceQ5_1Block>(x, n, importance, out);
}

void EncodeQ8_0(const float* x, size_t n, const float*, std::byte* out) {
  const DF d;
  const DI di;
  const DI8 di8;
  // Halves away from zero: the largest float below 0.5 with the sign of y is added, then the fraction cut off.
  const auto half = hn::Set(d, 0x1.fffffep-2f);
  auto* block = reinterpret_cast<BlockQ8_0*>(out);
  for (size_t i = 0; i < n; i += 32, ++block) {
    Ahead(x + i);
    const float amax = AbsMaxOf(x + i, 32);
    if (!Ordinary(amax)) {
      EncodeReferenceQ8_0(x + i, 32, nullptr, reinterpret_cast<std::byte*>(block));
      continue;
    }
    const float scale = amax / 127;
    block->d.Set(scale);
    const auto inverse = hn::Set(d, scale != 0 ? 1 / scale : 0.0f);
    for (size_t j = 0; j < 32; j += hn::Lanes(d)) {
      const auto y = hn::Mul(hn::LoadU(d, x + i + j), inverse);
      const auto code = hn::ConvertTo(di, hn::Add(y, hn::CopySign(half, y)));
      hn::StoreU(hn::DemoteTo(di8, code), di8, block->qs + j);
    }
  }
}

// Index of the nearest FP4 point times scale: midpoints between magnitudes that lie below |x|, ties to the smaller.
HWY_INLINE void Fp4Codes(const float* x, size_t n, float scale, uint8_t* codes) {
  constexpr float kMiddle[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
  const DF d;
  const DI di;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, x + i), a = hn::Abs(v);
    auto index = hn::Zero(di);
    for (const float m : kMiddle) {
      index = hn::Sub(index, hn::VecFromMask(di, hn::RebindMask(di, hn::Gt(a, hn::Set(d, m * scale)))));
    }
    const auto negative = hn::And(hn::RebindMask(di, hn::Lt(v, hn::Zero(d))), hn::Gt(index, hn::Zero(di)));
    StoreCodes(d, hn::Add(index, hn::IfThenElseZero(negative, hn::Set(di, 8))), codes + i);
  }
}

void EncodeMxfp4(const float* x, size_t n, const float*, std::byte* out) {
  auto* block = reinterpret_cast<BlockMxfp4*>(out);
  alignas(64) uint8_t codes[32];
  for (size_t i = 0; i < n; i += 32, ++block) {
    Ahead(x + i);
    const float amax = AbsMaxOf(x + i, 32);
    if (!(amax > kSmall && amax < kLarge)) {
      EncodeReferenceMxfp4(x + i, 32, nullptr, reinterpret_cast<std::byte*>(block));
      continue;
    }
    block->e = Mxfp4Exponent(amax);
    Fp4Codes(x + i, 32, E8m0HalfToFloat(block->e), codes);
    PackNibbles(codes, codes + 16, 16, block->qs);
  }
}

void EncodeNvfp4(const float* x, size_t n, const float*, std::byte* out) {
  auto* block = reinterpret_cast<BlockNvfp4*>(out);
  for (size_t i = 0; i < n; i += 64, ++block) {
    if (!(AbsMaxOf(x + i, 64) < 65536.0f)) {  // far beyond the largest scale errors round to equal ones
      EncodeReferenceNvfp4(x + i, 64, nullptr, reinterpret_cast<std::byte*>(block));
      continue;
    }
    for (size_t s = 0; s < 4; ++s) {
      const float* v = x + i + 16 * s;
      block->d[s] = FloatToUe4m3(AbsMaxOf(v, 16) / 6.0f);
      if (block->d[s] == 0) {
        std::memset(block->qs + 8 * s, 0, 8);
        continue;
      }
      alignas(64) uint8_t codes[16];
      Fp4Codes(v, 16, Ue4m3HalfToFloat(block->d[s]), codes);
      for (size_t j = 0; j < 8; ++j) block->qs[8 * s + j] = static_cast<uint8_t>(codes[j] | codes[j + 8] << 4);
    }
  }
}

uint32_t LargestBitsRun(const float* x, size_t n) {
  const DF d;
  const DI di;
  const size_t lanes = hn::Lanes(d);
  const auto mask = hn::Set(di, 0x7fffffff);
  auto a = hn::Zero(di), b = a;
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    a = hn::Max(a, hn::And(hn::BitCast(di, hn::LoadU(d, x + i)), mask));
    b = hn::Max(b, hn::And(hn::BitCast(di, hn::LoadU(d, x + i + lanes)), mask));
  }
  int32_t most = hn::GetLane(hn::MaxOfLanes(di, hn::Max(a, b)));
  for (; i < n; ++i) most = std::max(most, static_cast<int32_t>(std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu));
  return static_cast<uint32_t>(most);
}

}  // namespace
#else  // one lane: the reference is the kernel
#define OCTAVO_TARGET(name) constexpr auto Encode##name = EncodeReference##name;
OCTAVO_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
uint32_t LargestBitsRun(const float* x, size_t n) {
  uint32_t most = 0;
  for (size_t i = 0; i < n; ++i) most = std::max(most, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  return most;
}
#endif
#define OCTAVO_TARGET(name)                                                              \
  void Run##name(const float* x, size_t n, const float* importance, std::byte* blocks) { \
    Encode##name(x, n, importance, blocks);                                              \
  }
OCTAVO_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
uint32_t Largest(const float* x, size_t n) { return LargestBitsRun(x, n); }
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
HWY_EXPORT(Largest);
std::uint32_t LargestBits(const float* x, std::size_t n) { return HWY_DYNAMIC_DISPATCH(Largest)(x, n); }
}  // namespace octavo::ggml
#endif  // HWY_ONCE
