// What the vector encoders share, once a target: see ggml_encode.cc and ggml_encode_super.cc.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_kernels.h"

#if defined(OCTAVO_NUMERICS_GGML_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OCTAVO_NUMERICS_GGML_ENCODE_INL_H_
#undef OCTAVO_NUMERICS_GGML_ENCODE_INL_H_
#else
#define OCTAVO_NUMERICS_GGML_ENCODE_INL_H_
#endif

#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::ggml {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU8 = hn::Rebind<uint8_t, DF>;
using DI8 = hn::Rebind<int8_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using MF = hn::Mask<DF>;

constexpr size_t kBatch = 16;          // sub-blocks that are fitted together
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
constexpr float kTame = 4194303.0f;    // 2^22 - 1: what rounds alike as float and by bits
constexpr float kSmall = 1e-30f, kLarge = 1e30f;
constexpr float kTiny = 1e-15f;

HWY_INLINE VF RoundEven(DF d, VF y) {
  const auto magic = hn::Set(d, kMagic);
  return hn::Sub(hn::Add(y, magic), magic);
}
// As NearestInt of the reference, for every input.
HWY_INLINE VI NearestBits(DF d, VF y) {
  const DI di;
  const auto bits = hn::BitCast(di, hn::Add(y, hn::Set(d, kMagic)));
  return hn::Sub(hn::And(bits, hn::Set(di, 0x7fffff)), hn::Set(di, 0x400000));
}
HWY_INLINE uint32_t MaskBits(DF d, MF mask) {
  uint8_t bits[8] = {};
  hn::StoreMaskBits(d, mask, bits);
  uint32_t out = bits[0] | static_cast<uint32_t>(bits[1]) << 8;
  return hn::Lanes(d) < 16 ? out & ((1u << hn::Lanes(d)) - 1) : out;
}
HWY_INLINE MF Untame(DF d, VF y) { return hn::Not(hn::Lt(hn::Abs(y), hn::Set(d, kTame))); }

// EncodeGgml checks a piece of this many elements right before it is encoded: fetched one piece ahead, it is there.
constexpr size_t kAhead = 2048;
HWY_INLINE void Ahead(const float* x) {  // for 32 elements; any address may be asked for
  hwy::Prefetch(x + kAhead);
  hwy::Prefetch(x + kAhead + 16);
}

enum class Weights { kMagnitude, kAverage, kSquare, kImportance, kRawImportance };

// Up to 16 sub-blocks of S elements, transposed: element i of sub-block g * L + lane lies at [(g * S + i) * L + lane].
template <size_t S>
struct Batch {
  alignas(64) float x[S * kBatch];
  alignas(64) float w[S * kBatch];
  alignas(64) float l[S * kBatch];
  alignas(64) float scale[kBatch], min[kBatch], total[kBatch];
  alignas(64) float inverse[kBatch], offset[kBatch];  // codes = round(inverse * (x - offset))
  uint32_t bad;                                       // sub-blocks that the reference must do
};

// `sigma2`: one a sub-block, for kImportance.
template <size_t S>
void Load(const float* x, size_t count, Weights kind, const float* importance, const float* sigma2, Batch<S>& b) {
  const DF d;
  const DI di;
  const size_t lanes = hn::Lanes(d);
  alignas(64) float sums[kBatch] = {};
  if (sigma2) std::memcpy(sums, sigma2, count * sizeof(float));
  b.bad = 0;
  for (size_t g = 0; g * lanes < count; ++g) {
    const auto last = hn::Set(di, static_cast<int32_t>(count - 1));
    const auto index = hn::Min(hn::Iota(di, static_cast<int32_t>(g * lanes)), last);
    const auto offset = hn::Mul(index, hn::Set(di, static_cast<int32_t>(S)));
    float* xt = b.x + g * S * lanes;
    float* wt = b.w + g * S * lanes;
    for (size_t i = 0; i < S; ++i) hn::Store(hn::GatherIndex(d, x + i, offset), d, xt + i * lanes);
    auto total = hn::Zero(d);
    if (kind == Weights::kAverage) {
      auto squares = hn::Zero(d);
      for (size_t i = 0; i < S; ++i) {
        const auto v = hn::Load(d, xt + i * lanes);
        squares = hn::Add(squares, hn::Mul(v, v));
      }
      const auto average = hn::Sqrt(hn::Div(squares, hn::Set(d, static_cast<float>(S))));
      for (size_t i = 0; i < S; ++i) {
        hn::Store(hn::Add(average, hn::Abs(hn::Load(d, xt + i * lanes))), d, wt + i * lanes);
      }
    } else if (kind == Weights::kMagnitude) {
      for (size_t i = 0; i < S; ++i) hn::Store(hn::Abs(hn::Load(d, xt + i * lanes)), d, wt + i * lanes);
    } else if (kind == Weights::kSquare) {
      for (size_t i = 0; i < S; ++i) {
        const auto v = hn::Load(d, xt + i * lanes);
        hn::Store(hn::Mul(v, v), d, wt + i * lanes);
      }
    } else {
      const auto sigma = hn::Load(d, sums + g * lanes);
      for (size_t i = 0; i < S; ++i) {
        const auto v = hn::Load(d, xt + i * lanes);
        auto w = hn::GatherIndex(d, importance + i, offset);
        if (kind == Weights::kImportance) w = hn::Mul(w, hn::Sqrt(hn::Add(sigma, hn::Mul(v, v))));
        hn::Store(w, d, wt + i * lanes);
        total = hn::Add(total, w);
      }
    }
    hn::Store(total, d, b.total + g * lanes);
  }
}

template <size_t S, bool kAbsolute>
void FitScaleOffset(Batch<S>& b, size_t count, float top, float rmin, float rdelta, int steps) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d), high_code = hn::Set(d, top);
  for (size_t g = 0; g * lanes < count; ++g) {
    const float* HWY_RESTRICT x = b.x + g * S * lanes;
    const float* HWY_RESTRICT w = b.w + g * S * lanes;
    float* HWY_RESTRICT l = b.l + g * S * lanes;
    auto low = hn::Load(d, x), high = low;
    auto sum_w = hn::Load(d, w), sum_x = hn::Mul(sum_w, low);
    for (size_t i = 1; i < S; ++i) {
      const auto v = hn::Load(d, x + i * lanes), wi = hn::Load(d, w + i * lanes);
      low = hn::IfThenElse(hn::Lt(v, low), v, low);
      high = hn::IfThenElse(hn::Gt(v, high), v, high);
      sum_w = hn::Add(sum_w, wi);
      sum_x = hn::Add(sum_x, hn::Mul(wi, v));
    }
    const auto least = low;
    low = hn::IfThenElse(hn::Gt(low, zero), zero, low);
    const auto flat = hn::Le(high, low);
    const auto error = [&](VF scale, VF min) HWY_ATTR {
      auto sum = zero;
      for (size_t i = 0; i < S; ++i) {
        auto diff = hn::Sub(hn::Add(hn::Mul(scale, hn::Load(d, l + i * lanes)), min), hn::Load(d, x + i * lanes));
        diff = kAbsolute ? hn::Abs(diff) : hn::Mul(diff, diff);
        sum = hn::Add(sum, hn::Mul(hn::Load(d, w + i * lanes), diff));
      }
      return sum;
    };
    const auto code = [&](VF inverse, VF min, VF v) HWY_ATTR {
      return hn::Min(hn::Max(RoundEven(d, hn::Mul(inverse, hn::Sub(v, min))), zero), high_code);
    };
    const auto untame = [&](VF inverse, VF min) HWY_ATTR {  // codes are monotonic in x: look at both ends
      return hn::Or(Untame(d, hn::Mul(inverse, hn::Sub(least, min))), Untame(d, hn::Mul(inverse, hn::Sub(high, min))));
    };
    auto inverse = hn::Div(high_code, hn::Sub(high, low));
    auto scale = hn::Div(hn::Set(d, 1.0f), inverse), min = low;
    auto bad = untame(inverse, min);
    for (size_t i = 0; i < S; ++i) hn::Store(code(inverse, min, hn::Load(d, x + i * lanes)), d, l + i * lanes);
    auto best = error(scale, min);
    auto best_inverse = inverse, best_offset = min;
    for (int step = 0; step <= steps; ++step) {
      const float range = rmin + rdelta * static_cast<float>(step) + top;
      inverse = hn::Div(hn::Set(d, range), hn::Sub(high, min));
      bad = hn::Or(bad, untame(inverse, min));
      auto sum_l = zero, sum_l2 = zero, sum_xl = zero;
      for (size_t i = 0; i < S; ++i) {
        const auto v = hn::Load(d, x + i * lanes);
        const auto li = code(inverse, min, v);
        hn::Store(li, d, l + i * lanes);
        const auto wl = hn::Mul(hn::Load(d, w + i * lanes), li);
        sum_l = hn::Add(sum_l, wl);
        sum_l2 = hn::Add(sum_l2, hn::Mul(wl, li));
        sum_xl = hn::Add(sum_xl, hn::Mul(wl, v));
      }
      const auto determinant = hn::Sub(hn::Mul(sum_w, sum_l2), hn::Mul(sum_l, sum_l));
      const auto solvable = hn::Gt(determinant, zero);
      auto new_scale = hn::Div(hn::Sub(hn::Mul(sum_w, sum_xl), hn::Mul(sum_x, sum_l)), determinant);
      auto new_min = hn::Div(hn::Sub(hn::Mul(sum_l2, sum_x), hn::Mul(sum_l, sum_xl)), determinant);
      const auto positive = hn::Gt(new_min, zero);
      new_min = hn::IfThenElse(positive, zero, new_min);
      new_scale = hn::IfThenElse(positive, hn::Div(sum_xl, sum_l2), new_scale);
      const auto e = error(new_scale, new_min);
      const auto better = hn::And(solvable, hn::Lt(e, best));
      best = hn::IfThenElse(better, e, best);
      best_inverse = hn::IfThenElse(better, inverse, best_inverse);
      best_offset = hn::IfThenElse(better, min, best_offset);
      scale = hn::IfThenElse(better, new_scale, scale);
      min = hn::IfThenElse(better, new_min, min);
    }
    hn::Store(hn::IfThenElse(flat, zero, scale), d, b.scale + g * lanes);
    hn::Store(hn::Neg(hn::IfThenElse(flat, low, min)), d, b.min + g * lanes);
    hn::Store(hn::IfThenElse(flat, zero, best_inverse), d, b.inverse + g * lanes);
    hn::Store(hn::IfThenElse(flat, zero, best_offset), d, b.offset + g * lanes);
    b.bad |= MaskBits(d, hn::AndNot(flat, bad)) << (g * lanes);
  }
}

// Value of largest magnitude in each lane, the first of equals.
template <size_t S>
HWY_INLINE void SignedAbsMaxLanes(DF d, const float* x, VF* max, VF* amax) {
  const size_t lanes = hn::Lanes(d);
  *max = hn::Zero(d);
  *amax = hn::Zero(d);
  for (size_t i = 0; i < S; ++i) {
    const auto v = hn::Load(d, x + i * lanes), a = hn::Abs(v);
    const auto more = hn::Gt(a, *amax);
    *amax = hn::IfThenElse(more, a, *amax);
    *max = hn::IfThenElse(more, v, *max);
  }
}

template <size_t S>
void FitSymmetric(Batch<S>& b, size_t count, float half) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d), bottom = hn::Set(d, -half), top = hn::Set(d, half - 1);
  for (size_t g = 0; g * lanes < count; ++g) {
    const float* HWY_RESTRICT x = b.x + g * S * lanes;
    const float* HWY_RESTRICT w = b.w + g * S * lanes;
    VF max, amax;
    SignedAbsMaxLanes<S>(d, x, &max, &amax);
    const auto flat = hn::Lt(amax, hn::Set(d, kTiny));
    max = hn::IfThenElse(flat, hn::Set(d, 1.0f), max);
    VF sum_xl, sum_l2;
    const auto sums = [&](VF inverse) HWY_ATTR {
      sum_xl = sum_l2 = zero;
      for (size_t i = 0; i < S; ++i) {
        const auto v = hn::Load(d, x + i * lanes), wi = hn::Load(d, w + i * lanes);
        const auto li = hn::Min(hn::Max(RoundEven(d, hn::Mul(inverse, v)), bottom), top);
        sum_xl = hn::Add(sum_xl, hn::Mul(hn::Mul(wi, v), li));
        sum_l2 = hn::Add(sum_l2, hn::Mul(hn::Mul(wi, li), li));
      }
    };
    auto inverse = hn::Div(bottom, max);
    sums(inverse);
    auto scale = hn::IfThenElse(hn::Eq(sum_l2, zero), zero, hn::Div(sum_xl, sum_l2));
    auto best = hn::Mul(scale, sum_xl);
    for (int step = -9; step <= 9; ++step) {
      if (step == 0) continue;
      const auto other = hn::Div(hn::Set(d, -(half + 0.1f * static_cast<float>(step))), max);
      sums(other);
      const auto better = hn::And(hn::Gt(sum_l2, zero), hn::Gt(hn::Mul(sum_xl, sum_xl), hn::Mul(best, sum_l2)));
      const auto new_scale = hn::Div(sum_xl, sum_l2);
      inverse = hn::IfThenElse(better, other, inverse);
      scale = hn::IfThenElse(better, new_scale, scale);
      best = hn::IfThenElse(better, hn::Mul(new_scale, sum_xl), best);
    }
    hn::Store(hn::IfThenElse(flat, zero, scale), d, b.scale + g * lanes);
    hn::Store(hn::IfThenElse(flat, zero, inverse), d, b.inverse + g * lanes);  // 0: all codes 0
  }
}

// The coordinate steps of Q3_K. `l` ends as the levels.
inline void FitQ3(Batch<16>& b, size_t count) {
  const DF d;
  const DI di;
  const size_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d), bottom = hn::Set(d, -4.0f), top = hn::Set(d, 3.0f);
  const auto ibottom = hn::Set(di, -4), itop = hn::Set(di, 3);
  for (size_t g = 0; g * lanes < count; ++g) {
    const float* HWY_RESTRICT x = b.x + g * 16 * lanes;
    const float* HWY_RESTRICT w = b.w + g * 16 * lanes;
    float* HWY_RESTRICT l = b.l + g * 16 * lanes;
    VF max, amax;
    SignedAbsMaxLanes<16>(d, x, &max, &amax);
    const auto flat = hn::Lt(amax, hn::Set(d, kTiny));
    max = hn::IfThenElse(flat, hn::Set(d, 1.0f), max);
    const auto inverse = hn::Div(bottom, max);
    auto sum_xl = zero, sum_l2 = zero;
    for (size_t i = 0; i < 16; ++i) {
      const auto v = hn::Load(d, x + i * lanes), wi = hn::Load(d, w + i * lanes);
      const auto li = hn::Min(hn::Max(RoundEven(d, hn::Mul(inverse, v)), bottom), top);
      hn::Store(li, d, l + i * lanes);
      sum_xl = hn::Add(sum_xl, hn::Mul(hn::Mul(wi, v), li));
      sum_l2 = hn::Add(sum_l2, hn::Mul(hn::Mul(wi, li), li));
    }
    for (int pass = 0; pass < 5; ++pass) {  // a pass without a change repeats itself: lanes need no stop of their own
      auto changed = hn::Lt(zero, zero);
      for (size_t i = 0; i < 16; ++i) {
        const auto v = hn::Load(d, x + i * lanes), wi = hn::Load(d, w + i * lanes), li = hn::Load(d, l + i * lanes);
        const auto wv = hn::Mul(wi, v);
        auto xl = hn::Sub(sum_xl, hn::Mul(wv, li));
        auto l2 = hn::Sub(sum_l2, hn::Mul(hn::Mul(wi, li), li));
        const auto usable = hn::Gt(xl, zero);
        const auto level = hn::Min(hn::Max(NearestBits(d, hn::Div(hn::Mul(v, l2), xl)), ibottom), itop);
        const auto m = hn::ConvertTo(d, level);
        xl = hn::Add(xl, hn::Mul(wv, m));
        l2 = hn::Add(l2, hn::Mul(hn::Mul(wi, m), m));
        const auto gain = hn::Gt(hn::Mul(hn::Mul(xl, xl), sum_l2), hn::Mul(hn::Mul(sum_xl, sum_xl), l2));
        const auto take = hn::And(hn::And(usable, hn::Ne(m, li)), hn::And(hn::Gt(l2, zero), gain));
        hn::Store(hn::IfThenElse(take, m, li), d, l + i * lanes);
        sum_xl = hn::IfThenElse(take, xl, sum_xl);
        sum_l2 = hn::IfThenElse(take, l2, sum_l2);
        changed = hn::Or(changed, take);
      }
      if (hn::AllFalse(d, changed)) break;
    }
    const auto scale = hn::IfThenElse(hn::Gt(sum_l2, zero), hn::Div(sum_xl, sum_l2), zero);
    hn::Store(hn::IfThenElse(flat, zero, scale), d, b.scale + g * lanes);
    const auto shift = hn::IfThenElse(flat, bottom, zero);  // a flat sub-block has codes 0, which is level -4
    for (size_t i = 0; i < 16; ++i) {
      const auto li = hn::IfThenElse(flat, shift, hn::Load(d, l + i * lanes));
      hn::Store(li, d, l + i * lanes);
    }
  }
}

// Nearest non-linear code point, and its index: as many steps as there are midpoints at or below x.
HWY_INLINE VF NearestIq4(DF d, VF x) {
  auto q = hn::Set(d, static_cast<float>(kIq4Values[0]));
  for (int k = 1; k < 16; ++k) {
    const float middle = 0.5f * static_cast<float>(kIq4Values[k - 1] + kIq4Values[k]);
    const auto up = hn::Ge(x, hn::Set(d, middle));
    q = hn::Add(q, hn::IfThenElseZero(up, hn::Set(d, static_cast<float>(kIq4Values[k] - kIq4Values[k - 1]))));
  }
  return q;
}
HWY_INLINE VI NearestIq4Index(DF d, VF x) {
  const DI di;
  auto index = hn::Zero(di);
  for (int k = 1; k < 16; ++k) {
    const float middle = 0.5f * static_cast<float>(kIq4Values[k - 1] + kIq4Values[k]);
    index = hn::Sub(index, hn::VecFromMask(di, hn::RebindMask(di, hn::Ge(x, hn::Set(d, middle)))));
  }
  return index;
}

inline void FitIq4(Batch<32>& b, size_t count) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d);
  for (size_t g = 0; g * lanes < count; ++g) {
    const float* HWY_RESTRICT x = b.x + g * 32 * lanes;
    const float* HWY_RESTRICT w = b.w + g * 32 * lanes;
    VF max, amax;
    SignedAbsMaxLanes<32>(d, x, &max, &amax);
    const auto flat = hn::Lt(amax, hn::Set(d, kTiny));
    max = hn::IfThenElse(flat, hn::Set(d, 1.0f), max);
    VF sum_qx, sum_q2;
    const auto sums = [&](VF inverse) HWY_ATTR {
      sum_qx = sum_q2 = zero;
      for (size_t i = 0; i < 32; ++i) {
        const auto v = hn::Load(d, x + i * lanes);
        const auto q = NearestIq4(d, hn::Mul(inverse, v));
        const auto wq = hn::Mul(hn::Load(d, w + i * lanes), q);
        sum_qx = hn::Add(sum_qx, hn::Mul(wq, v));
        sum_q2 = hn::Add(sum_q2, hn::Mul(wq, q));
      }
    };
    const auto first = hn::Set(d, static_cast<float>(kIq4Values[0]));
    sums(hn::Div(hn::Set(d, 1.0f), hn::Div(hn::Neg(max), first)));
    auto scale = hn::IfThenElse(hn::Gt(sum_q2, zero), hn::Div(sum_qx, sum_q2), zero);
    auto best = hn::Mul(scale, sum_qx);
    for (int t = -7; t <= 7; ++t) {
      sums(hn::Div(hn::Set(d, static_cast<float>(t + kIq4Values[0])), max));
      const auto better = hn::And(hn::Gt(sum_q2, zero), hn::Gt(hn::Mul(sum_qx, sum_qx), hn::Mul(best, sum_q2)));
      const auto d_new = hn::Div(sum_qx, sum_q2);
      scale = hn::IfThenElse(better, d_new, scale);
      best = hn::IfThenElse(better, hn::Mul(d_new, sum_qx), best);
    }
    hn::Store(hn::IfThenElse(flat, zero, scale), d, b.scale + g * lanes);
  }
}

HWY_INLINE void StoreCodes(DF d, VI code, uint8_t* out) {
  const DU8 du8;
  (void)d;
  hn::StoreU(hn::DemoteTo(du8, code), du8, out);
}

// Codes of a run with one scale. The reference skips a zero scale; the caller then gives the fitted codes.
inline void Requantize(const float* x, size_t n, float scale, float min, int top, uint8_t* codes) {
  const DF d;
  const DI di;
  const auto s = hn::Set(d, scale), m = hn::Set(d, min);
  const auto zero = hn::Zero(di), high = hn::Set(di, top);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto y = hn::Div(hn::Add(hn::LoadU(d, x + i), m), s);
    StoreCodes(d, hn::Min(hn::Max(NearestBits(d, y), zero), high), codes + i);
  }
}
inline void RequantizeSymmetric(const float* x, size_t n, float scale, int half, uint8_t* codes) {
  const DF d;
  const DI di;
  const auto s = hn::Set(d, scale);
  const auto low = hn::Set(di, -half), high = hn::Set(di, half - 1);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto level = hn::Min(hn::Max(NearestBits(d, hn::Div(hn::LoadU(d, x + i), s)), low), high);
    StoreCodes(d, hn::Sub(level, low), codes + i);
  }
}
inline void Iq4Codes(const float* x, size_t n, float inverse, uint8_t* codes) {
  const DF d;
  const auto s = hn::Set(d, inverse);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    StoreCodes(d, NearestIq4Index(d, hn::Mul(s, hn::LoadU(d, x + i))), codes + i);
  }
}

// The codes that the fit itself chose: round(inverse * (x - offset)).
inline void FittedCodes(const float* x, size_t n, float inverse, float offset, int top, uint8_t* codes) {
  for (size_t i = 0; i < n; ++i) {
    codes[i] = static_cast<uint8_t>(std::clamp(NearestInt(inverse * (x[i] - offset)), 0, top));
  }
}
inline void FittedSymmetric(const float* x, size_t n, float inverse, int half, uint8_t* codes) {
  for (size_t i = 0; i < n; ++i) {
    codes[i] = inverse == 0 ? 0 : static_cast<uint8_t>(std::clamp(NearestInt(inverse * x[i]), -half, half - 1) + half);
  }
}

// --- packing, in loops that the compiler turns into vectors ---------------------------------------------------------

HWY_INLINE void PackNibbles(const uint8_t* HWY_RESTRICT low, const uint8_t* HWY_RESTRICT high, size_t n,
                            uint8_t* HWY_RESTRICT out) {
  const hn::CappedTag<uint8_t, 16> d;
  const hn::Repartition<uint16_t, decltype(d)> dw;
  const auto mask = hn::Set(d, 15);
  for (size_t j = 0; j < n; j += hn::Lanes(d)) {
    const auto h = hn::BitCast(d, hn::ShiftLeft<4>(hn::BitCast(dw, hn::And(hn::LoadU(d, high + j), mask))));
    hn::StoreU(hn::Or(hn::And(hn::LoadU(d, low + j), mask), h), d, out + j);
  }
}
HWY_INLINE void PackPairs(const uint8_t* codes, uint8_t* HWY_RESTRICT qs) {
  const hn::CappedTag<uint8_t, 32> d;
  const hn::Repartition<uint16_t, decltype(d)> dw;
  const auto mask = hn::Set(d, 3);
  for (size_t h = 0; h < 2; ++h) {
    for (size_t j = 0; j < 32; j += hn::Lanes(d)) {
      const uint8_t* c = codes + 128 * h + j;
      const auto at = [&](size_t k) HWY_ATTR { return hn::BitCast(dw, hn::And(hn::LoadU(d, c + 32 * k), mask)); };
      const auto sum =
          hn::Or(hn::Or(at(0), hn::ShiftLeft<2>(at(1))), hn::Or(hn::ShiftLeft<4>(at(2)), hn::ShiftLeft<6>(at(3))));
      hn::StoreU(hn::BitCast(d, sum), d, qs + 32 * h + j);
    }
  }
}
// Bit `bit` of codes j + 32 k to bit k of byte j.
inline void PackMask(const uint8_t* codes, int bit, uint8_t* HWY_RESTRICT out) {
  uint8_t bytes[32] = {};
  for (int k = 0; k < 8; ++k) {
    for (int j = 0; j < 32; ++j) {
      bytes[j] = static_cast<uint8_t>(bytes[j] | ((codes[32 * k + j] >> bit & 1) << k));
    }
  }
  std::memcpy(out, bytes, 32);
}
inline void PackFifthBits(const uint8_t* codes, uint8_t* qh) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {  // bit 4 of 8 codes, gathered by a multiplication
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, 8);
    eight = (eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u >> 56;
    bits |= static_cast<uint32_t>(eight) << (8 * i);
  }
  for (int j = 0; j < 4; ++j) qh[j] = static_cast<uint8_t>(bits >> (8 * j));
}

// --- ranges ---------------------------------------------------------------------------------------------------------

struct Range {
  float low, high;
};
HWY_INLINE Range RangeOf(const float* x, size_t n) {
  const DF d;
  auto low = hn::LoadU(d, x), high = low;
  for (size_t i = hn::Lanes(d); i < n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, x + i);
    low = hn::Min(low, v);
    high = hn::Max(high, v);
  }
  return {hn::GetLane(hn::MinOfLanes(d, low)), hn::GetLane(hn::MaxOfLanes(d, high))};
}
HWY_INLINE float AbsMaxOf(const float* x, size_t n) {
  const DF d;
  auto high = hn::Abs(hn::LoadU(d, x));
  for (size_t i = hn::Lanes(d); i < n; i += hn::Lanes(d)) high = hn::Max(high, hn::Abs(hn::LoadU(d, x + i)));
  return hn::GetLane(hn::MaxOfLanes(d, high));
}
// Value of largest magnitude, the first of equals.
HWY_INLINE float SignedAbsMaxOf(const float* x, size_t n) {
  const Range r = RangeOf(x, n);
  if (r.high > -r.low) return r.high;
  if (r.high < -r.low) return r.low;
  for (size_t i = 0; i < n; ++i) {
    if (std::fabs(x[i]) == r.high) return r.high == 0 ? 0.0f : x[i];
  }
  return 0;
}

// A scale that needs no care: zero, or neither subnormal nor huge.
inline bool Ordinary(float a) { return a == 0 || (a > kSmall && a < kLarge); }

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace octavo::ggml
HWY_AFTER_NAMESPACE();

#endif  // OCTAVO_NUMERICS_GGML_ENCODE_INL_H_
