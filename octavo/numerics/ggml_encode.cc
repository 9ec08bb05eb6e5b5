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
#include "hwy/cache_control.h"
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
void FitQ3(Batch<16>& b, size_t count) {
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

void FitIq4(Batch<32>& b, size_t count) {
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
void Requantize(const float* x, size_t n, float scale, float min, int top, uint8_t* codes) {
  const DF d;
  const DI di;
  const auto s = hn::Set(d, scale), m = hn::Set(d, min);
  const auto zero = hn::Zero(di), high = hn::Set(di, top);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto y = hn::Div(hn::Add(hn::LoadU(d, x + i), m), s);
    StoreCodes(d, hn::Min(hn::Max(NearestBits(d, y), zero), high), codes + i);
  }
}
void RequantizeSymmetric(const float* x, size_t n, float scale, int half, uint8_t* codes) {
  const DF d;
  const DI di;
  const auto s = hn::Set(d, scale);
  const auto low = hn::Set(di, -half), high = hn::Set(di, half - 1);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto level = hn::Min(hn::Max(NearestBits(d, hn::Div(hn::LoadU(d, x + i), s)), low), high);
    StoreCodes(d, hn::Sub(level, low), codes + i);
  }
}
void Iq4Codes(const float* x, size_t n, float inverse, uint8_t* codes) {
  const DF d;
  const auto s = hn::Set(d, inverse);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    StoreCodes(d, NearestIq4Index(d, hn::Mul(s, hn::LoadU(d, x + i))), codes + i);
  }
}

// The codes that the fit itself chose: round(inverse * (x - offset)).
void FittedCodes(const float* x, size_t n, float inverse, float offset, int top, uint8_t* codes) {
  for (size_t i = 0; i < n; ++i) {
    codes[i] = static_cast<uint8_t>(std::clamp(NearestInt(inverse * (x[i] - offset)), 0, top));
  }
}
void FittedSymmetric(const float* x, size_t n, float inverse, int half, uint8_t* codes) {
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
void PackMask(const uint8_t* codes, int bit, uint8_t* HWY_RESTRICT out) {
  uint8_t bytes[32] = {};
  for (int k = 0; k < 8; ++k) {
    for (int j = 0; j < 32; ++j) {
      bytes[j] = static_cast<uint8_t>(bytes[j] | ((codes[32 * k + j] >> bit & 1) << k));
    }
  }
  std::memcpy(out, bytes, 32);
}
void PackFifthBits(const uint8_t* codes, uint8_t* qh) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {  // bit 4 of 8 codes, gathered by a multiplication
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, 8);
    eight = (eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u >> 56;
    bits |= static_cast<uint32_t>(eight) << (8 * i);
  }
  for (int j = 0; j < 4; ++j) qh[j] = static_cast<uint8_t>(bits >> (8 * j));
}

// --- super-blocks ---------------------------------------------------------------------------------------------------

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

// --- blocks of 32 ---------------------------------------------------------------------------------------------------

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
bool Ordinary(float a) { return a == 0 || (a > kSmall && a < kLarge); }

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

bool AllFiniteRun(const float* x, size_t n) {
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
  return most < 0x7f800000;
}

}  // namespace
#else  // one lane: the reference is the kernel
#define OCTAVO_TARGET(name) constexpr auto Encode##name = EncodeReference##name;
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
bool AllFiniteRun(const float* x, size_t n) {
  return std::all_of(x, x + n, [](float v) { return std::isfinite(v); });
}
#endif
#define OCTAVO_TARGET(name)                                                              \
  void Run##name(const float* x, size_t n, const float* importance, std::byte* blocks) { \
    Encode##name(x, n, importance, blocks);                                              \
  }
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_TARGET)
#undef OCTAVO_TARGET
bool Finite(const float* x, size_t n) { return AllFiniteRun(x, n); }
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
OCTAVO_GGML_BLOCK_FORMATS(OCTAVO_EXPORT)
#undef OCTAVO_EXPORT
HWY_EXPORT(Finite);
bool AllFinite(const float* x, std::size_t n) { return HWY_DYNAMIC_DISPATCH(Finite)(x, n); }
}  // namespace octavo::ggml
#endif  // HWY_ONCE
