#include "octavo/numerics/affine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/numerics/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/affine.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace octavo {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// rint(clamp(x / scale)) as a float, NaN as 0. Clamping first is the same as clamping last: lo and hi are integers.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Level(D d, V x, V scale, V lo, V hi) {
  const V y = hn::Div(x, scale);
  const V number = hn::IfThenElseZero(hn::Eq(y, y), y);
  (void)d;
  return hn::Min(hn::Max(number, lo), hi);
}

template <typename T>
void QuantizeRun(const float* x, size_t n, float scale, float lo, float hi, int32_t zero_point, T* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<T, decltype(d)> dt;
  const auto s = hn::Set(d, scale), l = hn::Set(d, lo), h = hn::Set(d, hi);
  const auto z = hn::Set(di, zero_point);
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto a = hn::Add(hn::NearestInt(Level(d, hn::LoadU(d, x + i), s, l, h)), z);
    const auto b = hn::Add(hn::NearestInt(Level(d, hn::LoadU(d, x + i + lanes), s, l, h)), z);
    hn::StoreU(hn::DemoteTo(dt, a), dt, out + i);
    hn::StoreU(hn::DemoteTo(dt, b), dt, out + i + lanes);
  }
  for (; i < n; ++i) {
    const float y = x[i] / scale;
    out[i] =
        static_cast<T>(static_cast<int32_t>(std::rint(y == y ? std::min(std::max(y, lo), hi) : 0.0f)) + zero_point);
  }
}

// As QuantizeRun with parameters for each element.
template <typename T>
void QuantizeEach(const float* x, size_t n, const float* scale, const float* lo, const float* hi,
                  const int32_t* zero_point, T* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<T, decltype(d)> dt;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto v = Level(d, hn::LoadU(d, x + i), hn::LoadU(d, scale + i), hn::LoadU(d, lo + i), hn::LoadU(d, hi + i));
    hn::StoreU(hn::DemoteTo(dt, hn::Add(hn::NearestInt(v), hn::LoadU(di, zero_point + i))), dt, out + i);
  }
  for (; i < n; ++i) {
    const float y = x[i] / scale[i];
    out[i] = static_cast<T>(static_cast<int32_t>(std::rint(y == y ? std::min(std::max(y, lo[i]), hi[i]) : 0.0f)) +
                            zero_point[i]);
  }
}

// s32 with zero point 0: the upper bound 2^31 - 1 is no float.
void QuantizeRunS32(const float* x, size_t n, float scale, int32_t* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto s = hn::Set(d, scale), lo = hn::Set(d, -2147483648.0f), below = hn::Set(d, 2147483520.0f);
  const auto limit = hn::Set(d, 2147483648.0f);
  const auto top = hn::Set(di, std::numeric_limits<int32_t>::max());
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto y = hn::Div(hn::LoadU(d, x + i), s);
    const auto number = hn::IfThenElseZero(hn::Eq(y, y), y);
    const auto q = hn::NearestInt(hn::Min(hn::Max(number, lo), below));
    hn::StoreU(hn::IfThenElse(hn::RebindMask(di, hn::Ge(number, limit)), top, q), di, out + i);
  }
  for (; i < n; ++i) out[i] = QuantizeOne(x[i], scale, 0, DType::kS32);
}

template <typename T>
void DequantizeRun(const T* q, size_t n, float scale, int32_t zero_point, float* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<T, decltype(d)> dt;
  const auto s = hn::Set(d, scale);
  const auto z = hn::Set(di, zero_point);
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto code = hn::PromoteTo(di, hn::LoadU(dt, q + i));
    hn::StoreU(hn::Mul(hn::ConvertTo(d, hn::Sub(code, z)), s), d, out + i);
  }
  for (; i < n; ++i) out[i] = static_cast<float>(static_cast<int32_t>(q[i]) - zero_point) * scale;
}

void DequantizeRunS32(const int32_t* q, size_t n, float scale, float* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto s = hn::Set(d, scale);
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Mul(hn::ConvertTo(d, hn::LoadU(di, q + i)), s), d, out + i);
  for (; i < n; ++i) out[i] = static_cast<float>(q[i]) * scale;
}

// Adds to 16 partial sums; n is a multiple of 16. Every vector of lanes runs through the whole (cached) block, so that
// the order does not depend on the vector length.
void SquaredErrorLanes(const float* x, size_t n, float scale, float lo, float hi, double* partial) {
  const hn::CappedTag<double, kSumLanes> d;
  const hn::Rebind<float, decltype(d)> df;
  const size_t lanes = hn::Lanes(d);
  const auto s = hn::Set(df, scale), l = hn::Set(df, lo), h = hn::Set(df, hi);
  for (size_t g = 0; g < kSumLanes; g += lanes) {
    auto sum = hn::LoadU(d, partial + g);
    for (size_t i = g; i < n; i += kSumLanes) {
      const auto v = hn::LoadU(df, x + i);
      const auto back = hn::Mul(hn::Round(Level(df, v, s, l, h)), s);
      const auto e = hn::Sub(hn::PromoteTo(d, v), hn::PromoteTo(d, back));
      sum = hn::Add(sum, hn::Mul(e, e));
    }
    hn::StoreU(sum, d, partial + g);
  }
}

// NOLINTBEGIN(bugprone-macro-parentheses): T is a type in declarations
#define OCTAVO_PER_TYPE(T, suffix)                                                                      \
  void QuantizeRun##suffix(const float* x, size_t n, float s, float lo, float hi, int32_t z, T* out) {  \
    QuantizeRun<T>(x, n, s, lo, hi, z, out);                                                            \
  }                                                                                                     \
  void QuantizeEach##suffix(const float* x, size_t n, const float* s, const float* lo, const float* hi, \
                            const int32_t* z, T* out) {                                                 \
    QuantizeEach<T>(x, n, s, lo, hi, z, out);                                                           \
  }                                                                                                     \
  void DequantizeRun##suffix(const T* q, size_t n, float s, int32_t z, float* out) {                    \
    DequantizeRun<T>(q, n, s, z, out);                                                                  \
  }
// NOLINTEND(bugprone-macro-parentheses)
OCTAVO_PER_TYPE(uint8_t, U8)
OCTAVO_PER_TYPE(int8_t, S8)
OCTAVO_PER_TYPE(uint16_t, U16)
OCTAVO_PER_TYPE(int16_t, S16)
#undef OCTAVO_PER_TYPE

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace octavo
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo {
HWY_EXPORT(QuantizeRunU8);
HWY_EXPORT(QuantizeRunS8);
HWY_EXPORT(QuantizeRunU16);
HWY_EXPORT(QuantizeRunS16);
HWY_EXPORT(QuantizeRunS32);
HWY_EXPORT(QuantizeEachU8);
HWY_EXPORT(QuantizeEachS8);
HWY_EXPORT(QuantizeEachU16);
HWY_EXPORT(QuantizeEachS16);
HWY_EXPORT(DequantizeRunU8);
HWY_EXPORT(DequantizeRunS8);
HWY_EXPORT(DequantizeRunU16);
HWY_EXPORT(DequantizeRunS16);
HWY_EXPORT(DequantizeRunS32);
HWY_EXPORT(SquaredErrorLanes);

namespace {

struct Codes {
  std::int64_t min, max;
  int bytes;
  bool is_signed;
};

Codes CodesOf(DType storage) {
  switch (storage) {
    case DType::kU2:
      return {0, 3, 1, false};
    case DType::kS2:
      return {-2, 1, 1, true};
    case DType::kU4:
      return {0, 15, 1, false};
    case DType::kS4:
      return {-8, 7, 1, true};
    case DType::kU8:
      return {0, 255, 1, false};
    case DType::kS8:
      return {-128, 127, 1, true};
    case DType::kU16:
      return {0, 65535, 2, false};
    case DType::kS16:
      return {-32768, 32767, 2, true};
    case DType::kS32:
      return {std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max(), 4, true};
    default:
      ThrowInternal("no affine storage type", std::string(Name(storage)));
  }
}

std::size_t CheckedVolume(std::int64_t outer, std::int64_t channels, std::int64_t inner, std::size_t n,
                          std::size_t params) {
  std::int64_t volume = 0;
  if (outer < 0 || channels < 0 || inner < 0 || __builtin_mul_overflow(outer, channels, &volume) ||
      __builtin_mul_overflow(volume, inner, &volume) || static_cast<std::uint64_t>(volume) != n) {
    ThrowInternal("the [outer, channels, inner] view does not match the tensor's size");
  }
  if (params != 1 && params != static_cast<std::uint64_t>(channels)) {
    ThrowInternal("the number of quantization parameters is neither 1 nor that of channels");
  }
  return static_cast<std::size_t>(volume);
}

}  // namespace

std::size_t CodeBytes(DType storage) { return static_cast<std::size_t>(CodesOf(storage).bytes); }

std::int32_t QuantizeOne(float x, float scale, std::int32_t zero_point, DType storage) {
  const Codes codes = CodesOf(storage);
  const float y = x / scale;
  if (std::isnan(y)) return zero_point;
  // In f64 the clamp, the rounded value and the sum are exact. Rounding mode: to nearest even, the default.
  const double level = std::rint(std::clamp(static_cast<double>(y), -8589934592.0, 8589934592.0));
  return static_cast<std::int32_t>(
      std::clamp(level + zero_point, static_cast<double>(codes.min), static_cast<double>(codes.max)));
}

float DequantizeOne(std::int32_t q, float scale, std::int32_t zero_point) {
  return static_cast<float>(static_cast<std::int64_t>(q) - zero_point) * scale;
}

AffineParams ChooseParams(float min, float max, DType storage, bool symmetric) {
  const Codes codes = CodesOf(storage);
  const double lo = std::min(min, 0.0f), hi = std::max(max, 0.0f);
  const double largest = std::max(-lo, hi);
  if (!(largest > 0)) {
    const std::int64_t middle = codes.is_signed ? 0 : (codes.max + 1) / 2;
    return {1.0f, static_cast<std::int32_t>(symmetric ? middle : codes.min)};
  }
  const double least = std::numeric_limits<float>::min();
  if (symmetric) {
    const double steps = codes.is_signed ? 2.0 * static_cast<double>(codes.max) : static_cast<double>(codes.max);
    const float scale = static_cast<float>(std::max(2 * largest / steps, least));
    return {scale, static_cast<std::int32_t>(codes.is_signed ? 0 : (codes.max + 1) / 2)};
  }
  const float scale = static_cast<float>(std::max((hi - lo) / static_cast<double>(codes.max - codes.min), least));
  const double zero = std::rint(static_cast<double>(codes.min) - lo / static_cast<double>(scale));
  return {scale,
          static_cast<std::int32_t>(std::clamp(zero, static_cast<double>(codes.min), static_cast<double>(codes.max)))};
}

void QuantizeRun(std::span<const float> x, AffineParams params, DType storage, std::byte* out) {
  const Codes codes = CodesOf(storage);
  const std::int32_t z = params.zero_point;
  if (codes.bytes == 4) {
    auto* q = reinterpret_cast<std::int32_t*>(out);
    if (z == 0) {
      HWY_DYNAMIC_DISPATCH(QuantizeRunS32)(x.data(), x.size(), params.scale, q);
    } else {
      for (std::size_t i = 0; i < x.size(); ++i) q[i] = QuantizeOne(x[i], params.scale, z, storage);
    }
    return;
  }
  const float lo = static_cast<float>(codes.min - z), hi = static_cast<float>(codes.max - z);
  if (codes.bytes == 1 && codes.is_signed) {
    HWY_DYNAMIC_DISPATCH(QuantizeRunS8)
    (x.data(), x.size(), params.scale, lo, hi, z, reinterpret_cast<std::int8_t*>(out));
  } else if (codes.bytes == 1) {
    HWY_DYNAMIC_DISPATCH(QuantizeRunU8)
    (x.data(), x.size(), params.scale, lo, hi, z, reinterpret_cast<std::uint8_t*>(out));
  } else if (codes.is_signed) {
    HWY_DYNAMIC_DISPATCH(QuantizeRunS16)
    (x.data(), x.size(), params.scale, lo, hi, z, reinterpret_cast<std::int16_t*>(out));
  } else {
    HWY_DYNAMIC_DISPATCH(QuantizeRunU16)
    (x.data(), x.size(), params.scale, lo, hi, z, reinterpret_cast<std::uint16_t*>(out));
  }
}

void DequantizeRun(const std::byte* q, std::size_t n, AffineParams params, DType storage, float* out) {
  const Codes codes = CodesOf(storage);
  const float s = params.scale;
  const std::int32_t z = params.zero_point;
  if (codes.bytes == 4) {
    const auto* p = reinterpret_cast<const std::int32_t*>(q);
    if (z == 0) {
      HWY_DYNAMIC_DISPATCH(DequantizeRunS32)(p, n, s, out);
    } else {
      for (std::size_t i = 0; i < n; ++i) out[i] = DequantizeOne(p[i], s, z);
    }
  } else if (codes.bytes == 1 && codes.is_signed) {
    HWY_DYNAMIC_DISPATCH(DequantizeRunS8)(reinterpret_cast<const std::int8_t*>(q), n, s, z, out);
  } else if (codes.bytes == 1) {
    HWY_DYNAMIC_DISPATCH(DequantizeRunU8)(reinterpret_cast<const std::uint8_t*>(q), n, s, z, out);
  } else if (codes.is_signed) {
    HWY_DYNAMIC_DISPATCH(DequantizeRunS16)(reinterpret_cast<const std::int16_t*>(q), n, s, z, out);
  } else {
    HWY_DYNAMIC_DISPATCH(DequantizeRunU16)(reinterpret_cast<const std::uint16_t*>(q), n, s, z, out);
  }
}

void QuantizeTensor(std::span<const float> x, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                    std::span<const AffineParams> params, DType storage, std::byte* out) {
  const Codes codes = CodesOf(storage);
  const std::size_t volume = CheckedVolume(outer, channels, inner, x.size(), params.size());
  if (volume == 0) return;
  if (params.size() == 1) return QuantizeRun(x, params[0], storage, out);
  const std::size_t run = static_cast<std::size_t>(inner), period = static_cast<std::size_t>(channels) * run;
  // Short runs: spell the parameters out for one period, and take the whole period as one run.
  if (run < 32 && outer > 1 && codes.bytes < 4) {
    std::vector<float> scale(period), lo(period), hi(period);
    std::vector<std::int32_t> zero(period);
    for (std::size_t i = 0; i < period; ++i) {
      const AffineParams& p = params[i / run];
      scale[i] = p.scale;
      zero[i] = p.zero_point;
      lo[i] = static_cast<float>(codes.min - p.zero_point);
      hi[i] = static_cast<float>(codes.max - p.zero_point);
    }
    for (std::size_t o = 0; o < static_cast<std::size_t>(outer); ++o) {
      const float* in = x.data() + o * period;
      std::byte* to = out + o * period * static_cast<std::size_t>(codes.bytes);
      if (codes.bytes == 1 && codes.is_signed) {
        HWY_DYNAMIC_DISPATCH(QuantizeEachS8)
        (in, period, scale.data(), lo.data(), hi.data(), zero.data(), reinterpret_cast<std::int8_t*>(to));
      } else if (codes.bytes == 1) {
        HWY_DYNAMIC_DISPATCH(QuantizeEachU8)
        (in, period, scale.data(), lo.data(), hi.data(), zero.data(), reinterpret_cast<std::uint8_t*>(to));
      } else if (codes.is_signed) {
        HWY_DYNAMIC_DISPATCH(QuantizeEachS16)
        (in, period, scale.data(), lo.data(), hi.data(), zero.data(), reinterpret_cast<std::int16_t*>(to));
      } else {
        HWY_DYNAMIC_DISPATCH(QuantizeEachU16)
        (in, period, scale.data(), lo.data(), hi.data(), zero.data(), reinterpret_cast<std::uint16_t*>(to));
      }
    }
    return;
  }
  for (std::size_t r = 0; r < volume / run; ++r) {
    QuantizeRun(x.subspan(r * run, run), params[r % static_cast<std::size_t>(channels)], storage,
                out + r * run * static_cast<std::size_t>(codes.bytes));
  }
}

void DequantizeTensor(const std::byte* q, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                      std::span<const AffineParams> params, DType storage, std::span<float> out) {
  const std::size_t bytes = CodeBytes(storage);
  const std::size_t volume = CheckedVolume(outer, channels, inner, out.size(), params.size());
  if (volume == 0) return;
  if (params.size() == 1) return DequantizeRun(q, volume, params[0], storage, out.data());
  const std::size_t run = static_cast<std::size_t>(inner);
  for (std::size_t r = 0; r < volume / run; ++r) {
    DequantizeRun(q + r * run * bytes, run, params[r % static_cast<std::size_t>(channels)], storage,
                  out.data() + r * run);
  }
}

double QuantizationSquaredError(std::span<const float> x, AffineParams params, DType storage, double enough) {
  const Codes codes = CodesOf(storage);
  std::array<double, kSumLanes> partial{};
  std::size_t i = 0;
  if (codes.bytes < 4) {
    constexpr std::size_t kBlock = 2048;
    const float lo = static_cast<float>(codes.min - params.zero_point);
    const float hi = static_cast<float>(codes.max - params.zero_point);
    const std::size_t whole = x.size() - x.size() % kSumLanes;
    for (; i < whole; i += std::min(kBlock, whole - i)) {
      HWY_DYNAMIC_DISPATCH(SquaredErrorLanes)
      (x.data() + i, std::min(kBlock, whole - i), params.scale, lo, hi, partial.data());
      // Adding what is not negative never makes a rounded sum smaller.
      std::array<double, kSumLanes> so_far = partial;
      if (const double sum = FoldLanes(so_far); sum > enough) return sum;
    }
  }
  for (; i < x.size(); ++i) {
    const std::int32_t q = QuantizeOne(x[i], params.scale, params.zero_point, storage);
    const double e = static_cast<double>(x[i]) - DequantizeOne(q, params.scale, params.zero_point);
    partial[i % kSumLanes] += e * e;
  }
  return FoldLanes(partial);
}

std::vector<std::byte> PackNibbles(std::span<const std::byte> codes) {
  std::vector<std::byte> packed((codes.size() + 1) / 2);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::byte nibble = codes[i] & std::byte{0x0f};
    packed[i / 2] |= i % 2 == 0 ? nibble : nibble << 4;
  }
  return packed;
}

std::vector<std::byte> UnpackNibbles(std::span<const std::byte> packed, std::size_t n, bool is_signed) {
  if (packed.size() < n / 2 + n % 2) ThrowInternal("too few bytes of packed 4-bit codes");
  std::vector<std::byte> codes(n);
  for (std::size_t i = 0; i < n; ++i) {
    const int nibble = static_cast<int>(i % 2 == 0 ? packed[i / 2] & std::byte{0x0f} : packed[i / 2] >> 4);
    codes[i] = static_cast<std::byte>(is_signed && nibble >= 8 ? nibble - 16 : nibble);
  }
  return codes;
}

}  // namespace octavo
#endif  // HWY_ONCE
