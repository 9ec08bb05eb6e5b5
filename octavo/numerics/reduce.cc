#include "octavo/numerics/reduce.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <iterator>

#include "octavo/base/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/reduce.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef OCTAVO_NUMERICS_REDUCE_BINS
#define OCTAVO_NUMERICS_REDUCE_BINS
namespace octavo {
namespace {
// Sub-histograms of 16 bits, added to the 64-bit counts before any of them can overflow: four of them stay in the first
// level cache, and equal values that follow each other do not wait for each other's increments. Zeros get a slot for
// each lane behind the bins: outputs of ReLU are full of them.
constexpr int kSubs = 4;
constexpr int kZeroSlots = 64;
constexpr int kSubSize = RangeHistogram::kBins + kZeroSlots;
constexpr std::size_t kFlushEvery = 65535;  // elements
struct alignas(64) SubHistograms {
  std::uint16_t at[kSubs][kSubSize];
};
struct Extremes {
  float min, max;
  std::uint32_t abs_bits;  // largest |x| as bits; at least 0x7f800000 when something is not finite
};
}  // namespace
}  // namespace octavo
#endif

HWY_BEFORE_NAMESPACE();
namespace octavo {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// min and max mean nothing when abs_bits says that something is not finite. n > 0.
void FindExtremes(const float* x, size_t n, Extremes* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t lanes = hn::Lanes(d);
  auto lo0 = hn::Set(d, x[0]), lo1 = lo0, hi0 = lo0, hi1 = lo0;
  auto top0 = hn::Zero(di), top1 = top0;
  const auto mask = hn::Set(di, 0x7fffffff);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + lanes);
    const auto c = hn::LoadU(d, x + i + 2 * lanes), e = hn::LoadU(d, x + i + 3 * lanes);
    lo0 = hn::Min(lo0, hn::Min(a, b));
    lo1 = hn::Min(lo1, hn::Min(c, e));
    hi0 = hn::Max(hi0, hn::Max(a, b));
    hi1 = hn::Max(hi1, hn::Max(c, e));
    top0 = hn::Max(top0, hn::Max(hn::And(hn::BitCast(di, a), mask), hn::And(hn::BitCast(di, b), mask)));
    top1 = hn::Max(top1, hn::Max(hn::And(hn::BitCast(di, c), mask), hn::And(hn::BitCast(di, e), mask)));
  }
  for (; i + lanes <= n; i += lanes) {
    const auto a = hn::LoadU(d, x + i);
    lo0 = hn::Min(lo0, a);
    hi0 = hn::Max(hi0, a);
    top0 = hn::Max(top0, hn::And(hn::BitCast(di, a), mask));
  }
  float lo = hn::GetLane(hn::MinOfLanes(d, hn::Min(lo0, lo1)));
  float hi = hn::GetLane(hn::MaxOfLanes(d, hn::Max(hi0, hi1)));
  uint32_t top = static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(di, hn::Max(top0, top1))));
  for (; i < n; ++i) {
    lo = std::min(lo, x[i]);
    hi = std::max(hi, x[i]);
    top = std::max(top, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  *out = {lo, hi, top};
}

// All x finite, |x| < R, scale = kHalfBins / R.
void CountBins(const float* x, size_t n, float scale, SubHistograms* subs) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN int32_t bin[2 * HWY_MAX_BYTES / sizeof(int32_t)];
  const auto s = hn::Set(d, scale);
  const auto half = hn::Set(di, RangeHistogram::kHalfBins);
  const auto zero_slot = hn::Iota(di, RangeHistogram::kBins);
  uint16_t* const h0 = subs->at[0];
  uint16_t* const h1 = subs->at[1];
  uint16_t* const h2 = subs->at[2];
  uint16_t* const h3 = subs->at[3];
  const size_t step = std::max<size_t>(2 * lanes, kSubs);  // lanes is 1 without SIMD
  size_t i = 0;
  for (; i + step <= n; i += step) {
    for (size_t k = 0; k < step; k += lanes) {
      const auto v = hn::LoadU(d, x + i + k);
      const auto sign = hn::BroadcastSignBit(hn::BitCast(di, v));
      const auto away = hn::ConvertTo(di, hn::Mul(hn::Abs(v), s));  // truncates
      const auto b = hn::Add(hn::Xor(away, sign), half);            // kHalfBins - 1 - away when negative
      const auto is_zero = hn::RebindMask(di, hn::Eq(v, hn::Zero(d)));
      hn::Store(hn::IfThenElse(is_zero, zero_slot, b), di, bin + k);
    }
    for (size_t j = 0; j < step; j += kSubs) {
      ++h0[bin[j]];
      ++h1[bin[j + 1]];
      ++h2[bin[j + 2]];
      ++h3[bin[j + 3]];
    }
  }
  for (; i < n; ++i) {
    if (x[i] == 0) {
      ++h0[RangeHistogram::kBins];
    } else {
      const int away = static_cast<int>(std::fabs(x[i]) * scale);
      ++h0[x[i] < 0 ? RangeHistogram::kHalfBins - 1 - away : RangeHistogram::kHalfBins + away];
    }
  }
}

// n is a multiple of kSumLanes.
void SumLanes(const float* x, size_t n, double* partial) {
  const hn::CappedTag<double, kSumLanes> d;
  const hn::Rebind<float, decltype(d)> df;
  for (size_t g = 0; g < kSumLanes; g += hn::Lanes(d)) {
    auto sum = hn::LoadU(d, partial + g);
    for (size_t i = g; i < n; i += kSumLanes) sum = hn::Add(sum, hn::PromoteTo(d, hn::LoadU(df, x + i)));
    hn::StoreU(sum, d, partial + g);
  }
}

void SumSquareLanes(const float* x, size_t n, double* partial) {
  const hn::CappedTag<double, kSumLanes> d;
  const hn::Rebind<float, decltype(d)> df;
  for (size_t g = 0; g < kSumLanes; g += hn::Lanes(d)) {
    auto sum = hn::LoadU(d, partial + g);
    for (size_t i = g; i < n; i += kSumLanes) {
      const auto v = hn::PromoteTo(d, hn::LoadU(df, x + i));
      sum = hn::Add(sum, hn::Mul(v, v));
    }
    hn::StoreU(sum, d, partial + g);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace octavo
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo {
HWY_EXPORT(FindExtremes);
HWY_EXPORT(CountBins);
HWY_EXPORT(SumLanes);
HWY_EXPORT(SumSquareLanes);

namespace {

constexpr std::size_t kBlock = 4096;  // elements: stays in the first level cache between two looks at it

// For a block that holds something that is not finite.
void AddSlowly(std::span<const float> x, MinMax& m) {
  for (const float v : x) {
    if (std::isnan(v)) {
      ++m.nans;
    } else if (std::isinf(v)) {
      ++m.infs;
    } else {
      m.min = std::min(m.min, v + 0.0f);  // -0 + 0 is +0: the result does not depend on which zero came first
      m.max = std::max(m.max, v + 0.0f);
    }
  }
}

template <typename Kernel>
double SumByLanes(std::span<const float> x, Kernel kernel, bool squares) {
  std::array<double, kSumLanes> partial{};
  const std::size_t whole = x.size() - x.size() % kSumLanes;
  std::size_t i = 0;
  for (; i < whole; i += std::min(kBlock, whole - i)) kernel(x.data() + i, std::min(kBlock, whole - i), partial.data());
  for (; i < x.size(); ++i) {
    const double v = x[i];
    partial[i % kSumLanes] += squares ? v * v : v;
  }
  return FoldLanes(partial);
}

// Least e >= kMinExponent with max|x| < 2^e.
int ExponentFor(float largest) {
  if (!(largest > 0)) return RangeHistogram::kMinExponent;
  return std::max(RangeHistogram::kMinExponent, std::ilogb(largest) + 1);
}

float ScaleFor(int exponent) { return std::ldexp(1.0f, 11 - exponent); }

float LargestMagnitude(const MinMax& m) { return m.HasRange() ? std::max(std::fabs(m.min), std::fabs(m.max)) : 0.0f; }

}  // namespace

void MinMax::Add(std::span<const float> x) {
  elements += x.size();
  for (std::size_t i = 0; i < x.size(); i += kBlock) {
    const std::span<const float> block = x.subspan(i, std::min(kBlock, x.size() - i));
    Extremes e;
    HWY_DYNAMIC_DISPATCH(FindExtremes)(block.data(), block.size(), &e);
    if (e.abs_bits >= 0x7f800000u) {
      AddSlowly(block, *this);
    } else {
      min = std::min(min, e.min + 0.0f);
      max = std::max(max, e.max + 0.0f);
    }
  }
}

void MinMax::Merge(const MinMax& other) {
  min = std::min(min, other.min);
  max = std::max(max, other.max);
  elements += other.elements;
  nans += other.nans;
  infs += other.infs;
}

int RangeHistogramBin(float x, int exponent) {
  const int away = static_cast<int>(std::fabs(x) * ScaleFor(exponent));
  return x < 0 ? RangeHistogram::kHalfBins - 1 - away : RangeHistogram::kHalfBins + away;
}

double RangeHistogram::BinWidth() const { return std::ldexp(1.0, exponent - 11); }
double RangeHistogram::BinLow(int i) const { return (i - kHalfBins) * BinWidth(); }

void RangeHistogram::GrowTo(int e) {
  if (e <= exponent) return;
  if (!counts.empty()) {
    const int shift = std::min(e - exponent, 12);
    std::vector<std::uint64_t> coarse(kBins);
    for (int t = 0; t < kHalfBins; ++t) {
      // NOLINTNEXTLINE(bugprone-misplaced-widening-cast): bins are few, an int holds their numbers
      coarse[static_cast<std::size_t>(kHalfBins + (t >> shift))] += counts[static_cast<std::size_t>(kHalfBins + t)];
      coarse[static_cast<std::size_t>(kHalfBins - 1 - (t >> shift))] +=
          counts[static_cast<std::size_t>(kHalfBins - 1 - t)];
    }
    counts = std::move(coarse);
  }
  exponent = e;
}

void RangeHistogram::Add(std::span<const float> x) {
  if (x.size() < 256) {  // too few for the sub-histograms to pay
    MinMax m;
    m.Add(x);
    range.Merge(m);
    GrowTo(ExponentFor(LargestMagnitude(m)));
    const float scale = ScaleFor(exponent);
    for (const float v : x) {
      if (v == 0) {
        ++zeros;
      } else if (std::isfinite(v)) {
        if (counts.empty()) counts.resize(kBins);
        const int away = static_cast<int>(std::fabs(v) * scale);
        ++counts[static_cast<std::size_t>(v < 0 ? kHalfBins - 1 - away : kHalfBins + away)];
      }
    }
    return;
  }
  SubHistograms subs;
  std::fill_n(&subs.at[0][0], kSubs * kSubSize, std::uint16_t{0});
  std::size_t pending = 0;
  const auto flush = [&] {
    if (pending == 0) return;
    std::uint64_t any = 0;
    std::array<std::uint32_t, kBins> sum;
    for (std::size_t b = 0; b < kBins; ++b) {
      sum[b] = static_cast<std::uint32_t>(subs.at[0][b]) + subs.at[1][b] + subs.at[2][b] + subs.at[3][b];
      any |= sum[b];
    }
    if (any != 0) {
      if (counts.empty()) counts.resize(kBins);
      for (std::size_t b = 0; b < kBins; ++b) counts[b] += sum[b];
    }
    for (int k = 0; k < kSubs; ++k) {
      for (int b = kBins; b < kSubSize; ++b) zeros += subs.at[k][b];
    }
    std::fill_n(&subs.at[0][0], kSubs * kSubSize, std::uint16_t{0});
    pending = 0;
  };
  std::vector<float> finite;
  for (std::size_t i = 0; i < x.size(); i += kBlock) {
    std::span<const float> block = x.subspan(i, std::min(kBlock, x.size() - i));
    Extremes e;
    HWY_DYNAMIC_DISPATCH(FindExtremes)(block.data(), block.size(), &e);
    MinMax m;
    m.elements = block.size();
    if (e.abs_bits >= 0x7f800000u) {
      AddSlowly(block, m);
      finite.clear();
      std::copy_if(block.begin(), block.end(), std::back_inserter(finite), [](float v) { return std::isfinite(v); });
      block = finite;
    } else {
      m.min = e.min + 0.0f;
      m.max = e.max + 0.0f;
    }
    range.Merge(m);
    const int needed = ExponentFor(LargestMagnitude(m));
    if (needed > exponent) {
      flush();
      GrowTo(needed);
    }
    if (pending + block.size() > kFlushEvery) flush();
    HWY_DYNAMIC_DISPATCH(CountBins)(block.data(), block.size(), ScaleFor(exponent), &subs);
    pending += block.size();
  }
  flush();
}

void RangeHistogram::Check() const {
  const auto bad = [](const char* how) { ThrowBadInput("malformed histogram", {}, how); };
  if (!counts.empty() && counts.size() != kBins) bad("it must have 4096 bins or none");
  if (range.HasRange() && (!std::isfinite(range.min) || !std::isfinite(range.max))) bad("its range is not finite");
  if (exponent != ExponentFor(LargestMagnitude(range))) bad("its exponent does not follow from its range");
  std::uint64_t total = zeros;
  const auto add = [&](std::uint64_t n) {
    if (__builtin_add_overflow(total, n, &total)) bad("its counts overflow");
  };
  for (const std::uint64_t n : counts) add(n);
  if ((total > 0) != range.HasRange()) bad("its range and its counts disagree");
  add(range.nans);
  add(range.infs);
  if (total != range.elements) bad("its counts do not add up to its number of elements");
}

void RangeHistogram::Merge(const RangeHistogram& other) {
  other.Check();
  if (range.elements + other.range.elements < range.elements) ThrowBadInput("histogram counts overflow");
  range.Merge(other.range);
  zeros += other.zeros;
  GrowTo(other.exponent);
  if (other.counts.empty()) return;
  if (counts.empty()) counts.resize(kBins);
  if (other.exponent == exponent) {
    for (std::size_t b = 0; b < kBins; ++b) counts[b] += other.counts[b];
  } else {
    RangeHistogram grown = other;
    grown.GrowTo(exponent);
    for (std::size_t b = 0; b < kBins; ++b) counts[b] += grown.counts[b];
  }
}

double LaneSum(std::span<const float> x) { return SumByLanes(x, HWY_DYNAMIC_DISPATCH(SumLanes), false); }
double LaneSumSquares(std::span<const float> x) { return SumByLanes(x, HWY_DYNAMIC_DISPATCH(SumSquareLanes), true); }

}  // namespace octavo
#endif  // HWY_ONCE
