// Vector decoders: the codes of a super-block are spread to bytes, then runs of one scale become floats.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/ggml_decode.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::ggml {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DI8 = hn::Rebind<int8_t, DF>;
using D8 = hn::CappedTag<uint8_t, 16>;   // nibbles of 16 bytes
using D32 = hn::CappedTag<uint8_t, 32>;  // planes of 32 bytes

HWY_INLINE float Value(Half h) {
  const uint32_t bits = h.bits(), a = bits & 0x7fffu;
  if (a >= 0x7c00u) return h.value();  // infinite or NaN
  // The half's bits as a float are its value times 2^-112, exact for subnormal ones, too.
  const float f = std::bit_cast<float>(a << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(f) | (bits & 0x8000u) << 16);
}

// out = code * scale
HWY_INLINE void Scale(const int8_t* HWY_RESTRICT codes, size_t n, float scale, float* HWY_RESTRICT out) {
  const DF d;
  const DI di;
  const DI8 di8;
  const auto s = hn::Set(d, scale);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    hn::StoreU(hn::Mul(hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(di8, codes + i))), s), d, out + i);
  }
}
// out = code * scale + offset (or - offset), both operations rounded
template <bool kSubtract = false>
HWY_INLINE void ScaleAdd(const int8_t* HWY_RESTRICT codes, size_t n, float scale, float offset,
                         float* HWY_RESTRICT out) {
  const DF d;
  const DI di;
  const DI8 di8;
  const auto s = hn::Set(d, scale), o = hn::Set(d, offset);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto code = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(di8, codes + i)));
    const auto product = hn::Mul(code, s);
    hn::StoreU(kSubtract ? hn::Sub(product, o) : hn::Add(product, o), d, out + i);
  }
}

template <int kBits, class D>
HWY_INLINE hn::Vec<D> Right(D d, hn::Vec<D> v) {
  const hn::Repartition<uint16_t, D> dw;
  return hn::BitCast(d, hn::ShiftRight<kBits>(hn::BitCast(dw, v)));
}

// Low and high nibbles of n bytes (a multiple of 16), less `bias`.
HWY_INLINE void Nibbles(const uint8_t* HWY_RESTRICT qs, size_t n, int bias, int8_t* HWY_RESTRICT low,
                        int8_t* HWY_RESTRICT high) {
  const D8 d;
  const hn::RebindToSigned<D8> ds;
  const auto mask = hn::Set(d, 15), b = hn::Set(d, static_cast<uint8_t>(bias));
  for (size_t j = 0; j < n; j += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, qs + j);
    hn::StoreU(hn::BitCast(ds, hn::Sub(hn::And(v, mask), b)), ds, low + j);
    hn::StoreU(hn::BitCast(ds, hn::Sub(hn::And(Right<4>(d, v), mask), b)), ds, high + j);
  }
}
// As Nibbles, through a table of 16 code points.
HWY_INLINE void TableNibbles(const int8_t* table, const uint8_t* HWY_RESTRICT qs, size_t n, int8_t* HWY_RESTRICT low,
                             int8_t* HWY_RESTRICT high) {
  const D8 d;
  const hn::RebindToSigned<D8> ds;
  const auto mask = hn::Set(d, 15);
  const auto points = hn::BitCast(d, hn::LoadU(ds, table));
  for (size_t j = 0; j < n; j += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, qs + j);
    hn::StoreU(hn::BitCast(ds, hn::TableLookupBytes(points, hn::And(v, mask))), ds, low + j);
    hn::StoreU(hn::BitCast(ds, hn::TableLookupBytes(points, hn::And(Right<4>(d, v), mask))), ds, high + j);
  }
}
// 32 bytes at a time: two bits an element, element j + 32 k at bits 2k; less bias.
HWY_INLINE void Pairs(const uint8_t* HWY_RESTRICT qs, int bias, int8_t* HWY_RESTRICT out) {
  const D32 d;
  const hn::RebindToSigned<D32> ds;
  const auto mask = hn::Set(d, 3), b = hn::Set(d, static_cast<uint8_t>(bias));
  for (size_t h = 0; h < 2; ++h) {
    for (size_t j = 0; j < 32; j += hn::Lanes(d)) {
      const auto v = hn::LoadU(d, qs + 32 * h + j);
      int8_t* o = out + 128 * h + j;
      const auto put = [&](hn::Vec<D32> bits, size_t at)
                           HWY_ATTR { hn::StoreU(hn::BitCast(ds, hn::Sub(hn::And(bits, mask), b)), ds, o + at); };
      put(v, 0);
      put(Right<2>(d, v), 32);
      put(Right<4>(d, v), 64);
      put(Right<6>(d, v), 96);
    }
  }
}
// Adds bit k of byte j, times `weight`, to element j + 32 k.
HWY_INLINE void AddMask(const uint8_t* HWY_RESTRICT mask, int weight, int8_t* HWY_RESTRICT codes) {
  const D32 d;
  const hn::RebindToSigned<D32> ds;
  const auto one = hn::Set(d, 1);
  for (size_t j = 0; j < 32; j += hn::Lanes(d)) {
    const auto m = hn::LoadU(d, mask + j);
    auto bit = one;
    for (size_t k = 0; k < 8; ++k) {
      int8_t* c = codes + 32 * k + j;
      const auto on = hn::Eq(hn::And(m, bit), bit);
      const auto add = hn::IfThenElseZero(on, hn::Set(d, static_cast<uint8_t>(weight)));
      hn::StoreU(hn::BitCast(ds, hn::Add(hn::BitCast(d, hn::LoadU(ds, c)), add)), ds, c);
      bit = hn::Add(bit, bit);
    }
  }
}
// The codes of Q5_K: nibbles of each 64, bit k of byte j of `qh` on top of element j + 32 k.
HWY_INLINE void FiveBits(const uint8_t* HWY_RESTRICT qs, const uint8_t* HWY_RESTRICT qh, int8_t* HWY_RESTRICT out) {
  const D32 d;
  const hn::RebindToSigned<D32> ds;
  const auto mask = hn::Set(d, 15), sixteen = hn::Set(d, 16);
  for (size_t j = 0; j < 32; j += hn::Lanes(d)) {
    const auto high = hn::LoadU(d, qh + j);
    auto bit = hn::Set(d, 1);
    const auto put = [&](hn::Vec<D32> nibble, size_t at) HWY_ATTR {
      const auto top = hn::IfThenElseZero(hn::Eq(hn::And(high, bit), bit), sixteen);
      hn::StoreU(hn::BitCast(ds, hn::Or(hn::And(nibble, mask), top)), ds, out + at + j);
      bit = hn::Add(bit, bit);
    };
    for (size_t k = 0; k < 4; ++k) {
      const auto v = hn::LoadU(d, qs + 32 * k + j);
      put(v, 64 * k);
      put(Right<4>(d, v), 64 * k + 32);
    }
  }
}
// 16 to each of 32 codes whose bit is set.
HWY_INLINE void AddFifthBits(const uint8_t* qh, int8_t* codes) {
  for (int i = 0; i < 4; ++i) {
    // Bit b of the byte to bit 4 of byte b: copies of the byte, one bit of each kept.
    uint64_t eight = (qh[i] * 0x0101010101010101u) & 0x8040201008040201u;
    eight = ((eight + 0x00406070787c7e7fu) >> 7 & 0x0101010101010101u) << 4;
    uint64_t c;
    std::memcpy(&c, codes + 8 * i, 8);
    c |= eight;
    std::memcpy(codes + 8 * i, &c, 8);
  }
}

template <typename Block, typename F>
HWY_INLINE void Each(const std::byte* in, size_t n, size_t size, F&& f) {
  const auto* block = reinterpret_cast<const Block*>(in);
  for (size_t i = 0; i < n; i += size) f(*block++, i);
}

void DecodeQ4_0(const std::byte* in, size_t n, float* out) {
  Each<BlockQ4_0>(in, n, 32, [&](const BlockQ4_0& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[32];
    Nibbles(b.qs, 16, 8, codes, codes + 16);
    Scale(codes, 32, Value(b.d), out + i);
  });
}
void DecodeQ4_1(const std::byte* in, size_t n, float* out) {
  Each<BlockQ4_1>(in, n, 32, [&](const BlockQ4_1& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[32];
    Nibbles(b.qs, 16, 0, codes, codes + 16);
    ScaleAdd(codes, 32, Value(b.d), Value(b.m), out + i);
  });
}
void DecodeQ5_0(const std::byte* in, size_t n, float* out) {
  Each<BlockQ5_0>(in, n, 32, [&](const BlockQ5_0& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[32];
    Nibbles(b.qs, 16, 0, codes, codes + 16);
    AddFifthBits(b.qh, codes);
    for (int8_t& c : codes) c = static_cast<int8_t>(c - 16);
    Scale(codes, 32, Value(b.d), out + i);
  });
}
void DecodeQ5_1(const std::byte* in, size_t n, float* out) {
  Each<BlockQ5_1>(in, n, 32, [&](const BlockQ5_1& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[32];
    Nibbles(b.qs, 16, 0, codes, codes + 16);
    AddFifthBits(b.qh, codes);
    ScaleAdd(codes, 32, Value(b.d), Value(b.m), out + i);
  });
}
void DecodeQ8_0(const std::byte* in, size_t n, float* out) {
  Each<BlockQ8_0>(in, n, 32, [&](const BlockQ8_0& b, size_t i) HWY_ATTR { Scale(b.qs, 32, Value(b.d), out + i); });
}
void DecodeIq4Nl(const std::byte* in, size_t n, float* out) {
  Each<BlockIq4Nl>(in, n, 32, [&](const BlockIq4Nl& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[32];
    TableNibbles(kIq4Values, b.qs, 16, codes, codes + 16);
    Scale(codes, 32, Value(b.d), out + i);
  });
}
void DecodeMxfp4(const std::byte* in, size_t n, float* out) {
  Each<BlockMxfp4>(in, n, 32, [&](const BlockMxfp4& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[32];
    TableNibbles(kFp4Values, b.qs, 16, codes, codes + 16);
    Scale(codes, 32, E8m0HalfToFloat(b.e), out + i);
  });
}
void DecodeNvfp4(const std::byte* in, size_t n, float* out) {
  static const std::array<float, 256> scales = [] {
    std::array<float, 256> all;
    for (unsigned c = 0; c < 256; ++c) all[c] = Ue4m3HalfToFloat(static_cast<uint8_t>(c));
    return all;
  }();
  Each<BlockNvfp4>(in, n, 64, [&](const BlockNvfp4& b, size_t i) HWY_ATTR {
    alignas(64) int8_t low[32], high[32];
    TableNibbles(kFp4Values, b.qs, 32, low, high);
    alignas(64) int8_t codes[64];
    for (size_t s = 0; s < 4; ++s) {
      std::memcpy(codes + 16 * s, low + 8 * s, 8);
      std::memcpy(codes + 16 * s + 8, high + 8 * s, 8);
      Scale(codes + 16 * s, 16, scales[b.d[s]], out + i + 16 * s);
    }
  });
}

void DecodeQ2_K(const std::byte* in, size_t n, float* out) {
  Each<BlockQ2_K>(in, n, kSuper, [&](const BlockQ2_K& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[kSuper];
    Pairs(b.qs, 0, codes);
    const float d = Value(b.d), dmin = Value(b.dmin);
    for (size_t j = 0; j < 16; ++j) {
      const uint8_t s = b.scales[j];
      ScaleAdd<true>(codes + 16 * j, 16, d * static_cast<float>(s & 15), dmin * static_cast<float>(s >> 4),
                     out + i + 16 * j);
    }
  });
}
void DecodeQ3_K(const std::byte* in, size_t n, float* out) {
  Each<BlockQ3_K>(in, n, kSuper, [&](const BlockQ3_K& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[kSuper];
    Pairs(b.qs, 4, codes);
    AddMask(b.hmask, 4, codes);
    const float d = Value(b.d);
    for (size_t j = 0; j < 16; ++j) {
      Scale(codes + 16 * j, 16, d * static_cast<float>(GetScaleQ3(b.scales, static_cast<int>(j)) - 32),
            out + i + 16 * j);
    }
  });
}
void DecodeQ4_K(const std::byte* in, size_t n, float* out) {
  Each<BlockQ4_K>(in, n, kSuper, [&](const BlockQ4_K& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[kSuper];
    for (size_t j = 0; j < 4; ++j) Nibbles(b.qs + 32 * j, 32, 0, codes + 64 * j, codes + 64 * j + 32);
    const float d = Value(b.d), dmin = Value(b.dmin);
    for (size_t j = 0; j < 8; ++j) {
      const ScaleMin s = GetScaleMin(b.scales, static_cast<int>(j));
      ScaleAdd<true>(codes + 32 * j, 32, d * static_cast<float>(s.scale), dmin * static_cast<float>(s.min),
                     out + i + 32 * j);
    }
  });
}
void DecodeQ5_K(const std::byte* in, size_t n, float* out) {
  Each<BlockQ5_K>(in, n, kSuper, [&](const BlockQ5_K& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[kSuper];
    FiveBits(b.qs, b.qh, codes);
    const float d = Value(b.d), dmin = Value(b.dmin);
    for (size_t j = 0; j < 8; ++j) {
      const ScaleMin s = GetScaleMin(b.scales, static_cast<int>(j));
      ScaleAdd<true>(codes + 32 * j, 32, d * static_cast<float>(s.scale), dmin * static_cast<float>(s.min),
                     out + i + 32 * j);
    }
  });
}
void DecodeQ6_K(const std::byte* in, size_t n, float* out) {
  Each<BlockQ6_K>(in, n, kSuper, [&](const BlockQ6_K& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[kSuper], high[kSuper];
    for (size_t h = 0; h < 2; ++h) Nibbles(b.ql + 64 * h, 64, 0, codes + 128 * h, codes + 128 * h + 64);
    Pairs(b.qh, 2, high);  // (low | high << 4) - 32 = low + 16 * (high - 2)
    const hn::CappedTag<uint8_t, 64> d8;
    const hn::RebindToSigned<decltype(d8)> ds;
    const hn::Repartition<uint16_t, decltype(d8)> dw;
    for (size_t j = 0; j < kSuper; j += hn::Lanes(d8)) {
      // Shifted as words: the bits that cross from one byte to the next are cut off.
      const auto up =
          hn::And(hn::BitCast(d8, hn::ShiftLeft<4>(hn::BitCast(dw, hn::LoadU(ds, high + j)))), hn::Set(d8, 0xf0));
      hn::StoreU(hn::BitCast(ds, hn::Or(up, hn::BitCast(d8, hn::LoadU(ds, codes + j)))), ds, codes + j);
    }
    const float d = Value(b.d);
    for (size_t j = 0; j < 16; ++j) {
      Scale(codes + 16 * j, 16, d * static_cast<float>(b.scales[j]), out + i + 16 * j);
    }
  });
}
void DecodeIq4Xs(const std::byte* in, size_t n, float* out) {
  Each<BlockIq4Xs>(in, n, kSuper, [&](const BlockIq4Xs& b, size_t i) HWY_ATTR {
    const float d = Value(b.d);
    for (size_t j = 0; j < 8; ++j) {
      const int scale = (b.scales_l[j / 2] >> (4 * (j % 2)) & 15) | (b.scales_h[j / 4] >> (2 * (j % 4)) & 3) << 4;
      alignas(64) int8_t codes[32];
      TableNibbles(kIq4Values, b.qs + 16 * j, 16, codes, codes + 16);
      Scale(codes, 32, d * static_cast<float>(scale - 32), out + i + 32 * j);
    }
  });
}
void DecodeTq1_0(const std::byte* in, size_t n, float* out) {
  Each<BlockTq1_0>(in, n, kSuper, [&](const BlockTq1_0& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[kSuper];
    const auto group = [](const uint8_t* HWY_RESTRICT qs, int bytes, int digits, int8_t* HWY_RESTRICT c) HWY_ATTR {
      int power = 1;
      for (int k = 0; k < digits; ++k, power *= 3) {
        for (int j = 0; j < bytes; ++j) {
          const auto fraction = static_cast<uint16_t>(qs[j] * power & 255);
          c[k * bytes + j] = static_cast<int8_t>((fraction * 3 >> 8) - 1);
        }
      }
    };
    group(b.qs, 32, 5, codes);
    group(b.qs + 32, 16, 5, codes + 160);
    group(b.qh, 4, 4, codes + 240);
    Scale(codes, kSuper, Value(b.d), out + i);
  });
}
void DecodeTq2_0(const std::byte* in, size_t n, float* out) {
  Each<BlockTq2_0>(in, n, kSuper, [&](const BlockTq2_0& b, size_t i) HWY_ATTR {
    alignas(64) int8_t codes[kSuper];
    Pairs(b.qs, 1, codes);
    Scale(codes, kSuper, Value(b.d), out + i);
  });
}

void CopyPastCacheRun(const void* from, size_t bytes, void* to) {
  const hn::ScalableTag<uint8_t> d;
  const auto* in = static_cast<const uint8_t*>(from);
  auto* out = static_cast<uint8_t*>(to);
  const size_t lanes = hn::Lanes(d), over = reinterpret_cast<uintptr_t>(out) % lanes;
  size_t i = over == 0 ? 0 : std::min(lanes - over, bytes);
  std::memcpy(out, in, i);
  for (; i + lanes <= bytes; i += lanes) hn::Stream(hn::LoadU(d, in + i), d, out + i);
  std::memcpy(out + i, in + i, bytes - i);
}

}  // namespace
#else  // one lane: the reference is the kernel
#define OCTAVO_TARGET(name) constexpr auto Decode##name = DecodeReference##name;
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
void CopyPastCacheRun(const void* from, size_t bytes, void* to) { std::memcpy(to, from, bytes); }
#endif
void Copy(const void* from, size_t bytes, void* to) { CopyPastCacheRun(from, bytes, to); }
#define OCTAVO_TARGET(name) \
  void Run##name(const std::byte* blocks, size_t n, float* out) { Decode##name(blocks, n, out); }
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
}  // namespace HWY_NAMESPACE
}  // namespace octavo::ggml
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::ggml {
#define OCTAVO_EXPORT(name)                                               \
  HWY_EXPORT(Run##name);                                                  \
  void Decode##name(const std::byte* blocks, std::size_t n, float* out) { \
    HWY_DYNAMIC_DISPATCH(Run##name)(blocks, n, out);                      \
  }
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_EXPORT)
HWY_EXPORT(Copy);
void CopyPastCache(const void* from, std::size_t bytes, void* to) { HWY_DYNAMIC_DISPATCH(Copy)(from, bytes, to); }
#undef OCTAVO_EXPORT
}  // namespace octavo::ggml
#endif  // HWY_ONCE
