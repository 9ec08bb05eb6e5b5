#include "octavo/numerics/mx.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/mx.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef OCTAVO_NUMERICS_MX_SCALAR
#define OCTAVO_NUMERICS_MX_SCALAR
namespace octavo {
namespace {

constexpr MxFormat kFormats[] = {
    {"mxfp8_e5m2", false, 8, 5, 2, 15, 15, 57344.0f},
    {"mxfp8_e4m3", false, 8, 4, 3, 7, 8, 448.0f},
    {"mxfp6_e3m2", false, 6, 3, 2, 3, 4, 28.0f},
    {"mxfp6_e2m3", false, 6, 2, 3, 1, 2, 7.5f},
    {"mxfp4", false, 4, 2, 1, 1, 2, 6.0f},
    {"mxint8", true, 8, 0, 6, 0, 0, 127.0f / 64.0f},
    {"nvfp4", false, 4, 2, 1, 1, 2, 6.0f, true, 16},
};
constexpr const MxFormat& kE4m3 = kFormats[1];  // of nvfp4's block scales
constexpr const MxFormat& kE2m1 = kFormats[4];  // of its elements
constexpr std::uint8_t kE4m3Nan = 0x7f;

constexpr std::uint32_t kAbsMask = 0x7fffffffu;
constexpr std::uint32_t kInfinityBits = 0x7f800000u;

// 2^k for k in [-149, 127].
constexpr float PowerOfTwo(int k) {
  return k >= -126 ? std::bit_cast<float>(static_cast<std::uint32_t>(k + 127) << 23)
                   : std::bit_cast<float>(std::uint32_t{1} << (k + 149));
}

// Of the bits of the largest magnitude.
std::uint8_t ScaleOf(std::uint32_t abs_bits, int emax) {
  if (abs_bits >= kInfinityBits) return kMxNanScale;
  // Subnormals (and the exponents just above) end at the smallest scale: the exponent field 0 may stand for all of
  // them, except that zero counts as 2^-126.
  const int field = abs_bits == 0 ? 1 : static_cast<int>(abs_bits >> 23);
  return static_cast<std::uint8_t>(std::max(field - emax, 0));
}

}  // namespace
}  // namespace octavo
#endif

HWY_BEFORE_NAMESPACE();
namespace octavo {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using DU = hn::RebindToUnsigned<D>;
using DI = hn::RebindToSigned<D>;
using VF = hn::Vec<D>;
using VU = hn::Vec<DU>;

// The shared scales of as many blocks as there are lanes.
struct Scales {
  VF down, up;  // 2^-shared, 2^shared (NaN for the NaN scale); nvfp4: what to divide by, what to multiply with
};

// `code`: E8M0 codes, one a lane.
HWY_INLINE Scales Expand(VU code) {
  const DU du;
  const D d;
  const auto subnormal = hn::Set(du, 0x00400000u);  // 2^-127
  Scales s;
  const auto up = hn::ShiftLeft<23>(code);
  const auto nan = hn::Eq(code, hn::Set(du, 255));
  s.up = hn::BitCast(
      d, hn::IfThenElse(nan, hn::Set(du, 0x7fc00000u), hn::IfThenElse(hn::Eq(code, hn::Zero(du)), subnormal, up)));
  // 2^(127 - code): field 254 - code.
  const auto down = hn::ShiftLeft<23>(hn::Sub(hn::Set(du, 254), code));
  s.down = hn::BitCast(
      d, hn::IfThenElse(nan, hn::Zero(du), hn::IfThenElse(hn::Eq(code, hn::Set(du, 254)), subnormal, down)));
  return s;
}

HWY_INLINE VU ScaleCodes(VU abs_bits, int emax) {
  const DU du;
  const DI di;
  const auto zero = hn::Eq(abs_bits, hn::Zero(du));
  const auto field = hn::IfThenElse(zero, hn::Set(du, 1), hn::ShiftRight<23>(abs_bits));
  const auto code = hn::Max(hn::Sub(hn::BitCast(di, field), hn::Set(di, emax)), hn::Zero(di));
  const auto infinite = hn::Gt(hn::BitCast(di, abs_bits), hn::Set(di, static_cast<int32_t>(kInfinityBits - 1)));
  return hn::BitCast(du, hn::IfThenElse(infinite, hn::Set(di, 255), code));
}

// Magnitudes of elements, on the format's grid and saturated. t >= 0 and finite.
template <bool kInteger, bool kAway>
HWY_INLINE VF RoundMagnitude(VF t, const MxFormat& f) {
  const D d;
  const DU du;
  VF magic, half_step;
  if constexpr (kInteger) {
    magic = hn::Set(d, 0x1.8p23f * 0x1p-6f);
    half_step = hn::Set(d, 0x1p-7f);
  } else {
    // Step of t's binade: 2^(e - mantissa_bits), e not below emin. 1.5 * 2^23 steps: adding it rounds to steps.
    const auto field = hn::Max(hn::And(hn::BitCast(du, t), hn::Set(du, kInfinityBits)),
                               hn::Set(du, static_cast<uint32_t>(127 + f.emin()) << 23));
    const auto step = hn::Sub(field, hn::Set(du, static_cast<uint32_t>(f.mantissa_bits) << 23));
    magic = hn::BitCast(d, hn::Add(step, hn::Set(du, (uint32_t{23} << 23) | 0x00400000u)));
    half_step = hn::BitCast(d, hn::Sub(step, hn::Set(du, uint32_t{1} << 23)));
  }
  // Beyond the largest nothing is rounded; and magic stays finite.
  t = hn::Min(t, hn::Set(d, f.largest));
  auto r = hn::Sub(hn::Add(t, magic), magic);
  if constexpr (kAway) {
    const auto tie_down = hn::Eq(hn::Sub(t, r), half_step);
    r = hn::Add(r, hn::IfThenElseZero(tie_down, hn::Add(half_step, half_step)));
  }
  return hn::Min(r, hn::Set(d, f.largest));
}

// r: signed element values on the grid. Returns the codes.
template <bool kInteger>
HWY_INLINE VU CodesOf(VF r, VF sign_source, const MxFormat& f) {
  const D d;
  const DU du;
  const DI di;
  if constexpr (kInteger) {
    const auto q = hn::ConvertTo(di, hn::Mul(r, hn::Set(d, 64.0f)));
    return hn::And(hn::BitCast(du, q), hn::Set(du, 0xff));
  } else {
    const auto magnitude = hn::Abs(r);
    const int shift = 23 - f.mantissa_bits;
    const auto normal = hn::Sub(hn::ShiftRightSame(hn::BitCast(du, magnitude), shift),
                                hn::Set(du, static_cast<uint32_t>(126 + f.emin()) << f.mantissa_bits));
    const auto tiny =
        hn::BitCast(du, hn::ConvertTo(di, hn::Mul(magnitude, hn::Set(d, PowerOfTwo(f.mantissa_bits - f.emin())))));
    const auto is_tiny = hn::RebindMask(du, hn::Lt(magnitude, hn::Set(d, PowerOfTwo(f.emin()))));
    const auto sign = hn::ShiftLeftSame(hn::ShiftRight<31>(hn::BitCast(du, sign_source)), f.bits - 1);
    return hn::Or(hn::IfThenElse(is_tiny, tiny, normal), sign);
  }
}

// The E4M3 scales of blocks of these largest magnitudes, as numbers; NaN for the NaN scale.
HWY_INLINE VF E4m3Scales(VU abs_bits, float tensor_scale) {
  const D d;
  const DU du;
  const auto finite = hn::Lt(abs_bits, hn::Set(du, kInfinityBits));
  const auto top = hn::BitCast(d, hn::IfThenElseZero(finite, abs_bits));
  const auto t = hn::Div(hn::Div(top, hn::Set(d, 6.0f)), hn::Set(d, tensor_scale));
  const auto r = RoundMagnitude<false, false>(hn::Min(t, hn::Set(d, kE4m3.largest)), kE4m3);
  return hn::IfThenElse(hn::RebindMask(d, finite), r, hn::BitCast(d, hn::Set(du, 0x7fc00000u)));
}
HWY_INLINE VU E4m3Codes(VF scale) {
  const DU du;
  const auto nan = hn::RebindMask(du, hn::IsNaN(scale));
  return hn::IfThenElse(nan, hn::Set(du, kE4m3Nan),
                        CodesOf<false>(hn::IfThenZeroElse(hn::IsNaN(scale), scale), scale, kE4m3));
}
// `scale`: an E4M3 number a lane, or NaN.
HWY_INLINE Scales ExpandE4m3(VF scale, float tensor_scale) {
  const D d;
  Scales s;
  s.up = hn::Mul(scale, hn::Set(d, tensor_scale));
  // Dividing by infinity gives the zeros of a block of the scale 0; by the 0 of a NaN block nothing that is kept.
  const auto zero = hn::Eq(s.up, hn::Zero(d));
  s.down = hn::IfThenElse(zero, hn::Set(d, std::numeric_limits<float>::infinity()), s.up);
  s.down = hn::IfThenZeroElse(hn::IsNaN(s.up), s.down);
  return s;
}

template <bool kInteger, bool kAway, bool kDivide>
HWY_INLINE VF Elements(VF x, const Scales& s, const MxFormat& f) {
  const D d;
  const DU du;
  VF v;
  if constexpr (kDivide) {
    v = hn::Div(x, s.down);
  } else {
    v = hn::Mul(x, s.down);
  }
  // A NaN (an infinity times the 0 of a NaN block) must not meet Min.
  const auto finite = hn::IfThenElse(hn::Eq(v, v), v, hn::Zero(d));
  const auto r = RoundMagnitude<kInteger, kAway>(hn::Abs(finite), f);
  const auto sign = hn::And(hn::BitCast(du, x), hn::Set(du, 0x80000000u));
  const auto y = hn::BitCast(d, hn::Or(hn::BitCast(du, r), sign));
  if constexpr (kInteger) return hn::Add(y, hn::Zero(d));  // two's complement has one zero
  return y;
}

// Writes one vector of `count` elements (all lanes when count == Lanes).
HWY_INLINE void Emit(VF y, VF x, const Scales& s, VU codes, std::uint8_t* out_codes, float* out, size_t count) {
  const D d;
  const DU du;
  (void)x;
  if (out != nullptr) {
    const auto value = hn::Mul(y, s.up);
    // One NaN, whatever its payload was.
    const auto canonical = hn::IfThenElse(hn::Eq(value, value), value, hn::BitCast(d, hn::Set(du, 0x7fc00000u)));
    if (count == hn::Lanes(d)) {
      hn::StoreU(canonical, d, out);
    } else {
      HWY_ALIGN float buffer[hn::MaxLanes(d)];
      hn::Store(canonical, d, buffer);
      std::copy(buffer, buffer + count, out);
    }
    return;
  }
  const hn::Rebind<uint8_t, D> d8;
  const auto narrow = hn::DemoteTo(d8, hn::BitCast(DI(), codes));
  if (count == hn::Lanes(d)) {
    hn::StoreU(narrow, d8, out_codes);
  } else {
    HWY_ALIGN uint8_t buffer[hn::MaxLanes(d)];
    hn::StoreU(narrow, d8, buffer);
    std::copy(buffer, buffer + std::min<size_t>(count, hn::MaxLanes(d)), out_codes);
  }
}

HWY_INLINE VF LoadPart(const float* p, size_t count) {
  const D d;
  if (count == hn::Lanes(d)) return hn::LoadU(d, p);
  HWY_ALIGN float buffer[hn::MaxLanes(d)] = {};
  std::copy(p, p + count, buffer);
  return hn::Load(d, buffer);
}

template <bool kInteger, bool kAway, bool kE4m3Scale = false>
void Run(const float* x, const MxShape& shape, const MxFormat& f, float tensor_scale, std::uint8_t* codes,
         std::uint8_t* scales, float* y) {
  const D d;
  const DU du;
  const DI di;
  const size_t lanes = hn::Lanes(d);
  const auto mask = hn::Set(du, kAbsMask);
  const auto one = [&](size_t at, size_t count, const Scales& s) {
    const auto v = LoadPart(x + at, count);
    const auto r = Elements<kInteger, kAway, kE4m3Scale>(v, s, f);
    if (y != nullptr) {
      Emit(r, v, s, hn::Zero(du), nullptr, y + at, count);
    } else {
      const auto nan = hn::RebindMask(du, hn::Eq(s.down, hn::Zero(d)));
      const auto c = hn::IfThenZeroElse(nan, CodesOf<kInteger>(r, v, f));
      Emit(r, v, s, c, codes + at, nullptr, count);
    }
  };
  size_t scale_at = 0;
  for (size_t o = 0; o < shape.outer; ++o) {
    for (size_t b = 0; b < shape.n; b += shape.block) {
      const size_t length = std::min(shape.block, shape.n - b);
      const size_t base = (o * shape.n + b) * shape.inner;
      if (shape.inner == 1) {
        auto top = hn::Zero(di);
        size_t i = 0;
        for (; i + lanes <= length; i += lanes) {
          top = hn::Max(top, hn::BitCast(di, hn::And(hn::BitCast(du, hn::LoadU(d, x + base + i)), mask)));
        }
        if (i < length) {
          top = hn::Max(top, hn::BitCast(di, hn::And(hn::BitCast(du, LoadPart(x + base + i, length - i)), mask)));
        }
        const auto abs_bits = static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(di, top)));
        Scales s;
        std::uint8_t code = 0;
        if constexpr (kE4m3Scale) {
          const auto scale = E4m3Scales(hn::Set(du, abs_bits), tensor_scale);
          if (scales != nullptr) code = static_cast<std::uint8_t>(hn::GetLane(E4m3Codes(scale)));
          s = ExpandE4m3(scale, tensor_scale);
        } else {
          code = ScaleOf(abs_bits, f.emax);
          s = Expand(hn::Set(du, code));
        }
        if (scales != nullptr) scales[scale_at] = code;
        ++scale_at;
        for (i = 0; i < length; i += lanes) one(base + i, std::min(lanes, length - i), s);
      } else {
        for (size_t j = 0; j < shape.inner; j += lanes) {
          const size_t count = std::min(lanes, shape.inner - j);
          auto top = hn::Zero(di);
          for (size_t i = 0; i < length; ++i) {
            const auto v = LoadPart(x + base + i * shape.inner + j, count);
            top = hn::Max(top, hn::BitCast(di, hn::And(hn::BitCast(du, v), mask)));
          }
          Scales s;
          VU code;
          if constexpr (kE4m3Scale) {
            const auto scale = E4m3Scales(hn::BitCast(du, top), tensor_scale);
            code = E4m3Codes(scale);
            s = ExpandE4m3(scale, tensor_scale);
          } else {
            code = ScaleCodes(hn::BitCast(du, top), f.emax);
            s = Expand(code);
          }
          if (scales != nullptr) {
            HWY_ALIGN uint32_t buffer[hn::MaxLanes(d)];
            hn::Store(code, du, buffer);
            for (size_t k = 0; k < count; ++k) scales[scale_at + j + k] = static_cast<std::uint8_t>(buffer[k]);
          }
          for (size_t i = 0; i < length; ++i) one(base + i * shape.inner + j, count, s);
        }
        scale_at += shape.inner;
      }
    }
  }
}

void Quantize(const float* x, const MxShape& shape, const MxFormat& f, bool away, float tensor_scale,
              std::uint8_t* codes, std::uint8_t* scales, float* y) {
  const auto run = f.integer      ? (away ? Run<true, true> : Run<true, false>)
                   : f.e4m3_scale ? (away ? Run<false, true, true> : Run<false, false, true>)
                                  : (away ? Run<false, true> : Run<false, false>);
  run(x, shape, f, tensor_scale, codes, scales, y);
}

// Bits of the largest finite magnitude.
std::uint32_t LargestFinite(const float* x, size_t n) {
  const D d;
  const DU du;
  const DI di;
  const size_t lanes = hn::Lanes(d);
  const auto infinity = hn::Set(di, static_cast<int32_t>(kInfinityBits));
  auto top = hn::Zero(di);
  const auto take = [&](VF v) {
    const auto bits = hn::BitCast(di, hn::And(hn::BitCast(du, v), hn::Set(du, kAbsMask)));
    top = hn::Max(top, hn::IfThenElseZero(hn::Lt(bits, infinity), bits));
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) take(hn::LoadU(d, x + i));
  if (i < n) take(LoadPart(x + i, n - i));
  return static_cast<std::uint32_t>(hn::GetLane(hn::MaxOfLanes(di, top)));
}

HWY_INLINE VF Values(VU code, const Scales& s, const MxFormat& f) {
  const D d;
  const DU du;
  const DI di;
  VF v;
  if (f.integer) {
    const auto q = hn::ShiftRight<24>(hn::BitCast(di, hn::ShiftLeft<24>(code)));
    v = hn::Mul(hn::ConvertTo(d, q), hn::Set(d, 0x1p-6f));
  } else {
    const auto magnitude = hn::And(code, hn::Set(du, (uint32_t{1} << (f.bits - 1)) - 1));
    const auto normal = hn::Add(hn::ShiftLeftSame(magnitude, 23 - f.mantissa_bits),
                                hn::Set(du, static_cast<uint32_t>(127 - f.bias) << 23));
    const auto tiny =
        hn::Mul(hn::ConvertTo(d, hn::BitCast(di, magnitude)), hn::Set(d, PowerOfTwo(f.emin() - f.mantissa_bits)));
    auto bits =
        hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, uint32_t{1} << f.mantissa_bits)), hn::BitCast(du, tiny), normal);
    if (f.bits == 8) {
      const auto nan = hn::Set(du, 0x7fc00000u);
      if (f.exponent_bits == 5) {
        bits = hn::IfThenElse(hn::Eq(magnitude, hn::Set(du, 0x7c)), hn::Set(du, kInfinityBits), bits);
        bits = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x7c)), nan, bits);
      } else {
        bits = hn::IfThenElse(hn::Eq(magnitude, hn::Set(du, 0x7f)), nan, bits);
      }
    }
    const auto sign = hn::ShiftLeft<31>(hn::ShiftRightSame(code, f.bits - 1));
    v = hn::BitCast(d, hn::Or(bits, sign));
  }
  const auto y = hn::Mul(v, s.up);
  return hn::IfThenElse(hn::Eq(y, y), y, hn::BitCast(d, hn::Set(du, 0x7fc00000u)));
}

void Decode(const std::uint8_t* codes, const std::uint8_t* scales, const MxShape& shape, const MxFormat& f,
            float tensor_scale, float* y) {
  const D d;
  const DU du;
  const hn::Rebind<uint8_t, D> d8;
  const size_t lanes = hn::Lanes(d);
  const auto load = [&](const std::uint8_t* p, size_t count) {
    if (count == lanes) return hn::PromoteTo(du, hn::LoadU(d8, p));
    HWY_ALIGN uint8_t buffer[hn::MaxLanes(d)] = {};
    std::copy(p, p + std::min<size_t>(count, hn::MaxLanes(d)), buffer);
    return hn::PromoteTo(du, hn::LoadU(d8, buffer));
  };
  const auto one = [&](size_t at, size_t count, const Scales& s) {
    const auto v = Values(load(codes + at, count), s, f);
    if (count == lanes) {
      hn::StoreU(v, d, y + at);
    } else {
      HWY_ALIGN float buffer[hn::MaxLanes(d)];
      hn::Store(v, d, buffer);
      std::copy(buffer, buffer + count, y + at);
    }
  };
  // E4M3 codes are values of their own format at the scale 1.
  const Scales unit = Expand(hn::Set(du, 127));
  const auto expand = [&](VU code) HWY_ATTR {
    return f.e4m3_scale ? ExpandE4m3(Values(code, unit, kE4m3), tensor_scale) : Expand(code);
  };
  size_t scale_at = 0;
  for (size_t o = 0; o < shape.outer; ++o) {
    for (size_t b = 0; b < shape.n; b += shape.block) {
      const size_t length = std::min(shape.block, shape.n - b);
      const size_t base = (o * shape.n + b) * shape.inner;
      if (shape.inner == 1) {
        const Scales s = expand(hn::Set(du, scales[scale_at++]));
        for (size_t i = 0; i < length; i += lanes) one(base + i, std::min(lanes, length - i), s);
      } else {
        for (size_t j = 0; j < shape.inner; j += lanes) {
          const size_t count = std::min(lanes, shape.inner - j);
          const Scales s = expand(load(scales + scale_at + j, count));
          for (size_t i = 0; i < length; ++i) one(base + i * shape.inner + j, count, s);
        }
        scale_at += shape.inner;
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace octavo
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo {
namespace {
HWY_EXPORT(Quantize);
HWY_EXPORT(Decode);
HWY_EXPORT(LargestFinite);
}  // namespace

std::span<const MxFormat> MxFormats() { return kFormats; }

const MxFormat* FindMxFormat(std::string_view name) {
  for (const MxFormat& format : kFormats) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

float MxScaleValue(std::uint8_t code) {
  return code == kMxNanScale ? std::numeric_limits<float>::quiet_NaN() : PowerOfTwo(code - 127);
}

float MxTensorScale(std::span<const float> x, const MxFormat& format) {
  if (!format.e4m3_scale) return 1;
  const float top = std::bit_cast<float>(HWY_DYNAMIC_DISPATCH(LargestFinite)(x.data(), x.size()));
  const float scale = top / (kE4m3.largest * kE2m1.largest);
  return std::isnormal(scale) ? scale : 1;
}

namespace {

// The f32 scale of a block of nvfp4.
float E4m3Scale(std::uint8_t code, float tensor_scale) { return MxDecodeOne(code, 127, kE4m3) * tensor_scale; }

}  // namespace

std::uint8_t MxBlockScale(std::span<const float> block, const MxFormat& format, float tensor_scale) {
  std::uint32_t top = 0;
  for (const float x : block) top = std::max(top, std::bit_cast<std::uint32_t>(x) & kAbsMask);
  if (format.e4m3_scale) {
    if (top >= kInfinityBits) return kE4m3Nan;
    const float scale = std::bit_cast<float>(top) / 6.0f / tensor_scale;
    return MxEncodeOne(std::min(scale, kE4m3.largest), 127, kE4m3, MxRounding::kEven);
  }
  return ScaleOf(top, format.emax);
}

std::uint8_t MxEncodeOne(float x, std::uint8_t scale, const MxFormat& format, MxRounding rounding, float tensor_scale) {
  if (format.e4m3_scale) {
    if (scale == kE4m3Nan) return 0;
    const float d = E4m3Scale(scale, tensor_scale);
    const float t = d == 0 ? std::copysign(0.0f, x) : x / d;
    return MxEncodeOne(std::clamp(t, -kE2m1.largest, kE2m1.largest), 127, kE2m1, rounding);
  }
  if (scale == kMxNanScale) return 0;
  const double v = std::ldexp(std::fabs(static_cast<double>(x)), 127 - scale);  // exact in f64
  int e = 0;
  double step = 0x1p-6;
  if (!format.integer) {
    if (v > 0)
      e = std::max(std::ilogb(v), format.emin());
    else
      e = format.emin();
    step = std::ldexp(1.0, e - format.mantissa_bits);
  }
  const double steps = v / step;  // exact: a power of two
  double r = std::floor(steps);
  const double rest = steps - r;
  if (rest > 0.5 || (rest == 0.5 && (rounding == MxRounding::kAway || std::fmod(r, 2.0) != 0))) r += 1;
  const double magnitude = std::min(r * step, static_cast<double>(format.largest));
  if (format.integer) {
    const int q = static_cast<int>(magnitude * 64);
    return static_cast<std::uint8_t>(std::signbit(x) ? -q : q);
  }
  unsigned code = 0;
  if (magnitude < std::ldexp(1.0, format.emin())) {
    code = static_cast<unsigned>(std::ldexp(magnitude, format.mantissa_bits - format.emin()));
  } else {
    const int exponent = std::ilogb(magnitude);
    const auto fraction = static_cast<unsigned>(std::ldexp(magnitude, format.mantissa_bits - exponent));
    code = (static_cast<unsigned>(exponent + format.bias) << format.mantissa_bits) +
           (fraction - (1u << format.mantissa_bits));
  }
  if (std::signbit(x)) code |= 1u << (format.bits - 1);
  return static_cast<std::uint8_t>(code);
}

float MxDecodeOne(std::uint8_t code, std::uint8_t scale, const MxFormat& format, float tensor_scale) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  if (format.e4m3_scale) {
    return scale == kE4m3Nan ? kNan : MxDecodeOne(code, 127, kE2m1) * E4m3Scale(scale, tensor_scale);
  }
  if (scale == kMxNanScale) return kNan;
  if (format.integer) return static_cast<float>(std::ldexp(static_cast<std::int8_t>(code), scale - 127 - 6));
  const unsigned magnitude = code & ((1u << (format.bits - 1)) - 1);
  const bool negative = (code >> (format.bits - 1) & 1) != 0;
  const unsigned field = magnitude >> format.mantissa_bits;
  const unsigned fraction = magnitude & ((1u << format.mantissa_bits) - 1);
  if (format.bits == 8) {
    if (format.exponent_bits == 5 && field == 31) {
      if (fraction != 0) return kNan;
      return negative ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
    }
    if (format.exponent_bits == 4 && magnitude == 0x7f) return kNan;
  }
  const int exponent = field == 0 ? format.emin() : static_cast<int>(field) - format.bias;
  const double whole = field == 0 ? fraction : fraction + (1u << format.mantissa_bits);
  const double value = std::ldexp(whole, exponent - format.mantissa_bits + scale - 127);
  return static_cast<float>(negative ? -value : value);
}

void MxEncode(const float* x, const MxShape& shape, const MxFormat& format, MxRounding rounding, std::uint8_t* codes,
              std::uint8_t* scales, float tensor_scale) {
  HWY_DYNAMIC_DISPATCH(Quantize)
  (x, shape, format, rounding == MxRounding::kAway, tensor_scale, codes, scales, nullptr);
}

void MxDecode(const std::uint8_t* codes, const std::uint8_t* scales, const MxShape& shape, const MxFormat& format,
              float* y, float tensor_scale) {
  HWY_DYNAMIC_DISPATCH(Decode)(codes, scales, shape, format, tensor_scale, y);
}

void MxFakeQuantize(const float* x, const MxShape& shape, const MxFormat& format, MxRounding rounding, float* y) {
  const float tensor_scale = MxTensorScale({x, shape.elements()}, format);
  HWY_DYNAMIC_DISPATCH(Quantize)
  (x, shape, format, rounding == MxRounding::kAway, tensor_scale, nullptr, nullptr, y);
}

}  // namespace octavo
#endif  // HWY_ONCE
