#include "octavo/numerics/error_stats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/numerics/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/error_stats.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

// What one run of elements adds, each sum in kSumLanes partial sums.
#ifndef OCTAVO_NUMERICS_ERROR_STATS_LANES
#define OCTAVO_NUMERICS_ERROR_STATS_LANES
namespace octavo {
namespace {
struct ErrorLanes {
  std::array<double, kSumLanes> signal{}, noise{}, dot{}, got_energy{}, max_abs{};
  std::uint64_t non_finite = 0;
};
}  // namespace
}  // namespace octavo
#endif

HWY_BEFORE_NAMESPACE();
namespace octavo {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// n is a multiple of kSumLanes. Every vector of lanes runs through the whole (cached) block: see LaneSum.
void AddLanes(const float* ref, const float* got, size_t n, ErrorLanes* lanes_out) {
  const hn::CappedTag<double, kSumLanes> d;
  const hn::Rebind<float, decltype(d)> df;
  const size_t lanes = hn::Lanes(d);
  uint64_t non_finite = 0;
  for (size_t g = 0; g < kSumLanes; g += lanes) {
    auto signal = hn::LoadU(d, lanes_out->signal.data() + g);
    auto noise = hn::LoadU(d, lanes_out->noise.data() + g);
    auto dot = hn::LoadU(d, lanes_out->dot.data() + g);
    auto energy = hn::LoadU(d, lanes_out->got_energy.data() + g);
    auto largest = hn::LoadU(d, lanes_out->max_abs.data() + g);
    for (size_t i = g; i < n; i += kSumLanes) {
      const auto r = hn::PromoteTo(d, hn::LoadU(df, ref + i));
      const auto q = hn::PromoteTo(d, hn::LoadU(df, got + i));
      const auto r_ok = hn::IsFinite(r), q_ok = hn::IsFinite(q);
      const auto both = hn::And(r_ok, q_ok);
      non_finite += hn::CountTrue(d, hn::AndNot(q_ok, r_ok));
      const auto a = hn::IfThenElseZero(both, r), b = hn::IfThenElseZero(both, q);
      const auto e = hn::Sub(a, b);
      signal = hn::Add(signal, hn::Mul(a, a));
      noise = hn::Add(noise, hn::Mul(e, e));
      dot = hn::Add(dot, hn::Mul(a, b));
      energy = hn::Add(energy, hn::Mul(b, b));
      largest = hn::Max(largest, hn::Abs(e));
    }
    hn::StoreU(signal, d, lanes_out->signal.data() + g);
    hn::StoreU(noise, d, lanes_out->noise.data() + g);
    hn::StoreU(dot, d, lanes_out->dot.data() + g);
    hn::StoreU(energy, d, lanes_out->got_energy.data() + g);
    hn::StoreU(largest, d, lanes_out->max_abs.data() + g);
  }
  lanes_out->non_finite += non_finite;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace octavo
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo {
HWY_EXPORT(AddLanes);

void ErrorStats::Add(std::span<const float> ref, std::span<const float> got) {
  if (ref.size() != got.size()) ThrowInternal("error statistics of two runs of different length");
  ErrorLanes lanes;
  constexpr std::size_t kBlock = 1024;
  const std::size_t whole = ref.size() - ref.size() % kSumLanes;
  std::size_t i = 0;
  for (; i < whole; i += std::min(kBlock, whole - i)) {
    HWY_DYNAMIC_DISPATCH(AddLanes)(ref.data() + i, got.data() + i, std::min(kBlock, whole - i), &lanes);
  }
  for (; i < ref.size(); ++i) {
    const std::size_t j = i % kSumLanes;
    const double a = ref[i], b = got[i];
    if (!std::isfinite(a)) continue;
    if (!std::isfinite(b)) {
      ++lanes.non_finite;
      continue;
    }
    lanes.signal[j] += a * a;
    lanes.noise[j] += (a - b) * (a - b);
    lanes.dot[j] += a * b;
    lanes.got_energy[j] += b * b;
    lanes.max_abs[j] = std::max(lanes.max_abs[j], std::abs(a - b));
  }
  signal += FoldLanes(lanes.signal);
  noise += FoldLanes(lanes.noise);
  dot += FoldLanes(lanes.dot);
  got_energy += FoldLanes(lanes.got_energy);
  max_abs = std::max(max_abs, *std::max_element(lanes.max_abs.begin(), lanes.max_abs.end()));
  elements += ref.size();
  non_finite += lanes.non_finite;
}

void ErrorStats::Merge(const ErrorStats& other) {
  signal += other.signal;
  noise += other.noise;
  dot += other.dot;
  got_energy += other.got_energy;
  max_abs = std::max(max_abs, other.max_abs);
  elements += other.elements;
  non_finite += other.non_finite;
}

double ErrorStats::SqnrDb() const {
  if (non_finite > 0) return -std::numeric_limits<double>::infinity();
  if (noise == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / noise);
}

double ErrorStats::Cosine() const {
  if (signal == 0 && got_energy == 0) return 1;
  if (signal == 0 || got_energy == 0) return 0;
  return std::clamp(dot / (std::sqrt(signal) * std::sqrt(got_energy)), -1.0, 1.0);
}

double ErrorStats::Mse() const { return elements == 0 ? 0 : noise / static_cast<double>(elements); }

}  // namespace octavo
#endif  // HWY_ONCE
