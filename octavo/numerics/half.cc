#include "octavo/numerics/half.h"

#include <bit>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/half.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace octavo {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DH = hn::Rebind<uint16_t, DF>;

// Calls vector(i) for whole vectors of [0, n) and one(j) for the elements before and behind them. Vectors begin where
// `out` is aligned, if its elements can be: a store across two cache lines costs two.
template <typename T, typename Vector, typename One>
HWY_INLINE void ForLanes(size_t n, const T* out, Vector&& vector, One&& one) {
  const size_t lanes = hn::Lanes(DF()), bytes = lanes * sizeof(T);
  const size_t over = reinterpret_cast<uintptr_t>(out) % bytes;
  size_t i = 0;
  if (over != 0 && over % sizeof(T) == 0 && n >= 4 * lanes) {
    for (const size_t head = (bytes - over) / sizeof(T); i < head; ++i) one(i);
  }
  for (; i + lanes <= n; i += lanes) vector(i);
  for (; i < n; ++i) one(i);
}

// The scalar functions lane by lane, all cases computed and selected. Values of the sign-free part stay below 2^31, so
// that signed comparisons (which every target has) order them.
uint64_t FloatToHalfRun(const float* x, size_t n, uint16_t* out) {
  const DF df;
  const DI di;
  const DH dh;
  const auto magic = hn::Set(di, 0x3f000000);
  uint64_t overflowed = 0;
  const auto vector = [&](size_t i) HWY_ATTR {
    const auto bits = hn::BitCast(di, hn::LoadU(df, x + i));
    const auto a = hn::And(bits, hn::Set(di, 0x7fffffff));
    const auto sign = hn::ShiftRight<16>(hn::Xor(bits, a));  // arithmetic shift: the upper half is cut off below
    const auto odd = hn::And(hn::ShiftRight<13>(a), hn::Set(di, 1));
    const auto normal = hn::ShiftRight<13>(hn::Add(hn::Add(a, hn::Set(di, 0xfff - (112 << 23))), odd));
    const auto small = hn::Sub(hn::BitCast(di, hn::Add(hn::BitCast(df, a), hn::BitCast(df, magic))), magic);
    const auto nan = hn::Or(hn::Set(di, 0x7e00), hn::And(hn::ShiftRight<13>(a), hn::Set(di, 0x3ff)));
    auto h = hn::IfThenElse(hn::Lt(a, hn::Set(di, 113 << 23)), small, normal);
    h = hn::IfThenElse(hn::Gt(a, hn::Set(di, 0x477fffff)), hn::Set(di, 0x7c00), h);
    h = hn::IfThenElse(hn::Gt(a, hn::Set(di, 0x7f800000)), nan, h);
    // 65520 = 0x477ff000 is the least value that rounds to infinity.
    overflowed += hn::CountTrue(di, hn::And(hn::Gt(a, hn::Set(di, 0x477fefff)), hn::Lt(a, hn::Set(di, 0x7f800000))));
    const auto result = hn::And(hn::Or(h, sign), hn::Set(di, 0xffff));
    hn::StoreU(hn::DemoteTo(dh, result), dh, out + i);
  };
  ForLanes(n, out, vector, [&](size_t i) {
    out[i] = FloatToHalf(x[i]);
    const uint32_t a = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    overflowed += a < 0x7f800000u && (out[i] & 0x7fff) == 0x7c00;
  });
  return overflowed;
}

void HalfToFloatRun(const uint16_t* x, size_t n, float* out) {
  const DF df;
  const DI di;
  const DH dh;
  const auto vector = [&](size_t i) HWY_ATTR {
    const auto h = hn::PromoteTo(di, hn::LoadU(dh, x + i));
    const auto a = hn::And(h, hn::Set(di, 0x7fff));
    const auto sign = hn::ShiftLeft<16>(hn::Xor(h, a));
    const auto shifted = hn::ShiftLeft<13>(a);
    const auto normal = hn::Add(shifted, hn::Set(di, 112 << 23));
    // a * 2^-24, exact for the subnormal halves.
    const auto small = hn::BitCast(di, hn::Mul(hn::ConvertTo(df, a), hn::Set(df, 0x1p-24f)));
    const auto special = hn::Or(shifted, hn::Set(di, 0x7f800000));
    const auto quiet = hn::IfThenElseZero(hn::Gt(a, hn::Set(di, 0x7c00)), hn::Set(di, 0x400000));
    auto f = hn::IfThenElse(hn::Lt(a, hn::Set(di, 0x400)), small, normal);
    f = hn::IfThenElse(hn::Gt(a, hn::Set(di, 0x7bff)), hn::Or(special, quiet), f);
    hn::StoreU(hn::BitCast(df, hn::Or(f, sign)), df, out + i);
  };
  ForLanes(n, out, vector, [&](size_t i) { out[i] = HalfToFloat(x[i]); });
}

uint64_t FloatToBf16Run(const float* x, size_t n, uint16_t* out) {
  const DF df;
  const DI di;
  const DH dh;
  uint64_t overflowed = 0;
  const auto vector = [&](size_t i) HWY_ATTR {
    const auto bits = hn::BitCast(di, hn::LoadU(df, x + i));
    const auto a = hn::And(bits, hn::Set(di, 0x7fffffff));
    const auto sign = hn::ShiftRight<16>(hn::Xor(bits, a));
    const auto odd = hn::And(hn::ShiftRight<16>(a), hn::Set(di, 1));
    // At most 0x7f800000 + 0x8000 for what is not NaN: no overflow into the sign.
    const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(a, hn::Set(di, 0x7fff)), odd));
    const auto nan = hn::Or(hn::ShiftRight<16>(a), hn::Set(di, 0x40));
    const auto h = hn::IfThenElse(hn::Gt(a, hn::Set(di, 0x7f800000)), nan, rounded);
    overflowed += hn::CountTrue(di, hn::And(hn::Gt(a, hn::Set(di, 0x7f7f7fff)), hn::Lt(a, hn::Set(di, 0x7f800000))));
    hn::StoreU(hn::DemoteTo(dh, hn::And(hn::Or(h, sign), hn::Set(di, 0xffff))), dh, out + i);
  };
  ForLanes(n, out, vector, [&](size_t i) {
    out[i] = FloatToBf16(x[i]);
    const uint32_t a = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    overflowed += a < 0x7f800000u && (out[i] & 0x7fff) == 0x7f80;
  });
  return overflowed;
}

void Bf16ToFloatRun(const uint16_t* x, size_t n, float* out) {
  const DF df;
  const DI di;
  const DH dh;
  const auto vector = [&](size_t i) HWY_ATTR {
    const auto h = hn::PromoteTo(di, hn::LoadU(dh, x + i));
    const auto nan = hn::Gt(hn::And(h, hn::Set(di, 0x7fff)), hn::Set(di, 0x7f80));
    const auto f = hn::Or(hn::ShiftLeft<16>(h), hn::IfThenElseZero(nan, hn::Set(di, 0x400000)));
    hn::StoreU(hn::BitCast(df, f), df, out + i);
  };
  ForLanes(n, out, vector, [&](size_t i) { out[i] = Bf16ToFloat(x[i]); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace octavo
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo {
HWY_EXPORT(FloatToHalfRun);
HWY_EXPORT(HalfToFloatRun);
HWY_EXPORT(FloatToBf16Run);
HWY_EXPORT(Bf16ToFloatRun);

std::uint16_t FloatToHalf(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t a = bits & 0x7fffffffu;
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  if (a > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
  if (a >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 2^16 and above
  if (a < 0x38800000u) {  // below 2^-14: multiples of 2^-24, rounded by adding 0.5, whose last bit is 2^-24
    const std::uint32_t sum = std::bit_cast<std::uint32_t>(std::bit_cast<float>(a) + 0.5f);
    return static_cast<std::uint16_t>(sign | (sum - 0x3f000000u));
  }
  const std::uint32_t rounded = a - (112u << 23) + 0xfffu + ((a >> 13) & 1u);  // a carry runs into the exponent
  return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

float HalfToFloat(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t a = h & 0x7fffu;
  if (a > 0x7c00u) return std::bit_cast<float>(sign | 0x7fc00000u | (a << 13));
  if (a == 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u);
  if (a < 0x400u) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(static_cast<float>(a) * 0x1p-24f));
  return std::bit_cast<float>(sign | ((a << 13) + (112u << 23)));
}

std::uint16_t FloatToBf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float Bf16ToFloat(std::uint16_t b) {
  const std::uint32_t quiet = (b & 0x7fffu) > 0x7f80u ? 0x400000u : 0u;
  return std::bit_cast<float>((static_cast<std::uint32_t>(b) << 16) | quiet);
}

std::uint64_t FloatToHalf(std::span<const float> x, std::uint16_t* out) {
  return HWY_DYNAMIC_DISPATCH(FloatToHalfRun)(x.data(), x.size(), out);
}
void HalfToFloat(std::span<const std::uint16_t> x, float* out) {
  HWY_DYNAMIC_DISPATCH(HalfToFloatRun)(x.data(), x.size(), out);
}
std::uint64_t FloatToBf16(std::span<const float> x, std::uint16_t* out) {
  return HWY_DYNAMIC_DISPATCH(FloatToBf16Run)(x.data(), x.size(), out);
}
void Bf16ToFloat(std::span<const std::uint16_t> x, float* out) {
  HWY_DYNAMIC_DISPATCH(Bf16ToFloatRun)(x.data(), x.size(), out);
}

}  // namespace octavo
#endif  // HWY_ONCE
