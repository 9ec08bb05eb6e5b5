#include "octavo/numerics/range_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {
namespace {

constexpr int kCoarse = 64, kFine = 512;  // grids of the searches, in parts of the full range

std::size_t At(int i) { return static_cast<std::size_t>(i); }

// The occupied part of a histogram, bins clipped to the exact range of the data.
struct Bins {
  std::vector<double> edge;   // n + 1 ascending
  std::vector<double> count;  // n
  double zeros = 0, total = 0;
};

Bins Occupied(const RangeHistogram& h) {
  Bins b;
  b.zeros = static_cast<double>(h.zeros);
  b.total = b.zeros;
  if (h.counts.empty()) return b;
  int first = 0, last = RangeHistogram::kBins - 1;
  while (first < last && h.counts[At(first)] == 0) ++first;
  while (last > first && h.counts[At(last)] == 0) --last;
  for (int i = first; i <= last; ++i) {
    b.edge.push_back(h.BinLow(i));
    b.count.push_back(static_cast<double>(h.counts[At(i)]));
    b.total += b.count.back();
  }
  b.edge.push_back(h.BinHigh(last));
  b.edge.front() = std::max(b.edge.front(), static_cast<double>(h.range.min));
  b.edge.back() = std::max(std::min(b.edge.back(), static_cast<double>(h.range.max)), b.edge.front());
  return b;
}

QuantRange Clamped(const RangeHistogram& h, double min, double max, bool symmetric) {
  const QuantRange full = MinMaxRange(h, symmetric);
  const float lo = std::clamp(static_cast<float>(min), full.min, 0.0f);
  const float hi = std::clamp(static_cast<float>(max), 0.0f, full.max);
  if (!symmetric) return {lo, hi};
  const float m = std::max(-lo, hi);
  return {-m, m};
}

// The value below which `rank` values lie; zeros stand at 0, the values of a bin are spread evenly over it.
double Quantile(const RangeHistogram& h, double rank) {
  double seen = 0;
  const auto walk = [&](int from, int to, double* value) {
    for (int i = from; i < to; ++i) {
      const double n = h.counts.empty() ? 0 : static_cast<double>(h.counts[At(i)]);
      if (n > 0 && seen + n >= rank) {
        *value = h.BinLow(i) + std::max(rank - seen, 0.0) / n * h.BinWidth();
        return true;
      }
      seen += n;
    }
    return false;
  };
  double value = h.range.max;
  if (walk(0, RangeHistogram::kHalfBins, &value)) return value;
  if (h.zeros > 0 && seen + static_cast<double>(h.zeros) >= rank) return 0;
  seen += static_cast<double>(h.zeros);
  walk(RangeHistogram::kHalfBins, RangeHistogram::kBins, &value);
  return value;
}

int Codes(DType storage) {
  if (!IsInteger(storage) || BitWidth(storage) > 32)
    ThrowInternal("no affine storage type", std::string(Name(storage)));
  return BitWidth(storage) >= 16 ? 65536 : 1 << BitWidth(storage);
}

// Kullback-Leibler divergence of clipping to bins [a, b) of `count` and quantizing to `groups` groups; prefix sums make
// a candidate cost one logarithm a group.
class Divergence {
 public:
  explicit Divergence(std::vector<double> count)
      : count_(std::move(count)),
        mass_(count_.size() + 1),
        occupied_(count_.size() + 1),
        log_(count_.size() + 1),
        previous_(count_.size() + 1, -1),
        next_(count_.size() + 1, -1) {
    for (std::size_t i = 0; i < count_.size(); ++i) {
      const double n = count_[i];
      mass_[i + 1] = mass_[i] + n;
      occupied_[i + 1] = occupied_[i] + (n > 0 ? 1 : 0);
      log_[i + 1] = log_[i] + (n > 0 ? n * std::log(n) : 0);
      previous_[i + 1] = n > 0 ? static_cast<int>(i) : previous_[i];
    }
    for (std::size_t i = count_.size(); i-- > 0;) next_[i] = count_[i] > 0 ? static_cast<int>(i) : next_[i + 1];
  }
  int size() const { return static_cast<int>(count_.size()); }
  double count(int i) const { return count_[At(i)]; }

  // Infinite when the range holds no data.
  double Of(int a, int b, int groups) const {
    const double below = mass_[At(a)], above = mass_.back() - mass_[At(b)];
    const double inside = mass_[At(b)] - mass_[At(a)], total = mass_.back();
    if (inside <= 0) return std::numeric_limits<double>::infinity();
    // Clipped mass goes to the outermost occupied bin: an empty one has Q = 0.
    const int first = next_[At(a)], last = previous_[At(b)];
    // sum P log P, where P is the count with the clipped mass added at the ends.
    double p_log_p = log_[At(b)] - log_[At(a)];
    const auto grown = [&](int bin, double extra) {
      const double n = count_[At(bin)];
      return extra > 0 ? (n + extra) * std::log(n + extra) - n * std::log(n) : 0.0;
    };
    p_log_p += first == last ? grown(first, below + above) : grown(first, below) + grown(last, above);
    // sum P log Q over groups: Q is constant over the occupied bins of a group.
    double p_log_q = 0;
    const int n = b - a;
    const int used = std::min(groups, n);
    for (int g = 0; g < used; ++g) {
      const int from = a + static_cast<int>(static_cast<std::int64_t>(g) * n / used);
      const int to = a + static_cast<int>(static_cast<std::int64_t>(g + 1) * n / used);
      const double mass = mass_[At(to)] - mass_[At(from)];
      if (mass <= 0) continue;
      double p = mass;
      if (first >= from && first < to) p += below;
      if (last >= from && last < to) p += above;
      p_log_q += p * std::log(mass / (occupied_[At(to)] - occupied_[At(from)]));
    }
    // P = p / total, Q = q / inside.
    return (p_log_p - p_log_q) / total - std::log(total) + std::log(inside);
  }

 private:
  std::vector<double> count_, mass_, occupied_, log_;
  std::vector<int> previous_, next_;  // the occupied bin nearest below i, and nearest at or above i; -1: none
};

// The best range under `cost(range, enough)` around `start` (lo <= 0 <= hi): both ends in turn on a grid of step,
// twice, then refined. An end is moved only for a strictly smaller cost, so the result is never worse than the start;
// of equal costs on a grid the one nearest the start is taken. A cost may be any number above `enough` when it is above
// that.
template <typename Cost>
QuantRange SearchEnds(QuantRange start, bool symmetric, double least_fraction, const Cost& cost) {
  if (start.min == 0 && start.max == 0) return start;
  double ends[2] = {1, 1};  // fractions of start.min and start.max
  const auto make = [&](double a, double b) {
    return QuantRange{static_cast<float>(start.min * a), static_cast<float>(start.max * b)};
  };
  double best = cost(start, std::numeric_limits<double>::infinity());
  const auto cost_at = [&](int end, double f) {
    double now[2] = {ends[0], ends[1]};
    now[end] = f;
    if (symmetric) now[0] = now[1] = f;
    return cost(make(now[0], now[1]), best);
  };
  const auto move = [&](int end, double f, double c) {
    best = c;
    ends[end] = f;
    if (symmetric) ends[0] = ends[1] = f;
  };
  // Coarse steps first: the nearer the best is known, the less of the others needs to be summed up.
  const auto scan = [&](int end) {
    int found = 0;
    for (int step = 16; step >= 1; step /= 2) {
      for (int k = kCoarse; k >= 1 && k >= least_fraction * kCoarse; k -= step) {
        if (step < 16 && (kCoarse - k) % (2 * step) == 0) continue;  // seen
        const double f = static_cast<double>(k) / kCoarse;
        const double c = cost_at(end, f);
        if (!(c < best || (c == best && found > 0 && k > found))) continue;
        found = k;
        move(end, f, c);
      }
    }
    return found > 0;
  };
  const auto movable = [&](int end) {
    if (symmetric) return end == 1;
    return end == 0 ? start.min < 0 : start.max > 0;
  };
  const bool two = movable(0) && movable(1);
  bool fresh[2] = {true, true};  // the other end has moved since this one was looked at
  for (int round = 0; round < (two ? 2 : 1); ++round) {
    for (const int end : {1, 0}) {
      if (!movable(end) || !std::exchange(fresh[end], false)) continue;
      if (scan(end)) fresh[1 - end] = true;
    }
  }
  for (const int end : {1, 0}) {
    if (!movable(end)) continue;
    const double center = ends[end];
    for (int k = -(kFine / kCoarse - 1); k < kFine / kCoarse; ++k) {
      const double f = center + static_cast<double>(k) / kFine;
      if (f <= 0 || f > 1 || f == ends[end]) continue;
      if (const double c = cost_at(end, f); c < best) move(end, f, c);
    }
  }
  return make(ends[0], ends[1]);
}

// Integral of (t - rint(t))^2 from 0 to t: k / 12 + r^3 / 3, where k = rint(t) and r = t - k.
double RoundingIntegral(double t) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding and taking it away rounds |t| < 2^51
  const double k = (t + kMagic) - kMagic;
  const double r = t - k;
  return k / 12 + r * r * r / 3;
}

double Cube(double x) { return x * x * x; }

double Objective(const Bins& b, AffineParams p, DType storage) {
  if (b.total <= 0) return 0;
  const double s = p.scale;
  const double lo = static_cast<double>(IntegerMin(storage) - p.zero_point) * s;
  const double hi = static_cast<double>(IntegerMax(storage) - p.zero_point) * s;
  double sum = 0;
  for (std::size_t i = 0; i < b.count.size(); ++i) {
    if (b.count[i] == 0) continue;
    const double u = b.edge[i], v = b.edge[i + 1], width = v - u;
    if (width <= 0) {  // all data in one point
      const double x = std::clamp(u, lo, hi);
      const double e = u - (x == u ? std::rint(u / s) * s : x);
      sum += b.count[i] * e * e;
      continue;
    }
    double integral = 0;
    const double from = std::clamp(u, lo, hi), to = std::clamp(v, lo, hi);
    if (from < to) integral += s * s * s * (RoundingIntegral(to / s) - RoundingIntegral(from / s));
    if (v > hi) integral += (Cube(v - hi) - Cube(std::max(u - hi, 0.0))) / 3;
    if (u < lo) integral += (Cube(lo - u) - Cube(std::max(lo - v, 0.0))) / 3;
    sum += b.count[i] * (integral / width);
  }
  return sum / b.total;
}

}  // namespace

QuantRange MinMaxRange(const RangeHistogram& h, bool symmetric) {
  if (!h.range.HasRange()) return {};
  const float lo = std::min(h.range.min, 0.0f), hi = std::max(h.range.max, 0.0f);
  if (!symmetric) return {lo, hi};
  const float m = std::max(-lo, hi);
  return {-m, m};
}

QuantRange PercentileRange(const RangeHistogram& h, double percentile, bool symmetric) {
  if (!(percentile > 50 && percentile <= 100)) {
    ThrowUsage("a calibration percentile must be above 50 and at most 100", std::to_string(percentile));
  }
  if (percentile == 100 || !h.range.HasRange()) return MinMaxRange(h, symmetric);
  const double n = static_cast<double>(h.FiniteCount());
  const double cut = (100 - percentile) / 100;
  if (!symmetric) return Clamped(h, Quantile(h, n * cut / 2), Quantile(h, n * (1 - cut / 2)), false);
  // Fold to |x|.
  double seen = static_cast<double>(h.zeros);
  const double rank = n * (1 - cut);
  if (seen >= rank) return {0, 0};
  for (int t = 0; t < RangeHistogram::kHalfBins && !h.counts.empty(); ++t) {
    const double here = static_cast<double>(h.counts[At(RangeHistogram::kHalfBins + t)]) +
                        static_cast<double>(h.counts[At(RangeHistogram::kHalfBins - 1 - t)]);
    if (here > 0 && seen + here >= rank) {
      const double m = (t + (rank - seen) / here) * h.BinWidth();
      return Clamped(h, -m, m, true);
    }
    seen += here;
  }
  return MinMaxRange(h, true);
}

QuantRange EntropyRange(const RangeHistogram& h, DType storage, bool symmetric) {
  const int codes = Codes(storage);
  const QuantRange full = MinMaxRange(h, symmetric);
  if (h.counts.empty()) return full;
  constexpr int kHalf = RangeHistogram::kHalfBins;
  std::vector<double> count(At(symmetric ? kHalf : RangeHistogram::kBins));
  for (int i = 0; i < RangeHistogram::kBins; ++i) {
    const int to = !symmetric ? i : i < kHalf ? kHalf - 1 - i : i - kHalf;
    count[At(to)] += static_cast<double>(h.counts[At(i)]);
  }
  const Divergence kl(std::move(count));
  const int origin = symmetric ? 0 : kHalf;
  const int groups = symmetric ? codes / 2 : codes;
  int a = origin, b = origin;  // outermost occupied bins; the range holds 0
  for (int i = 0; i < kl.size(); ++i) {
    if (kl.count(i) == 0) continue;
    a = std::min(a, i);
    b = std::max(b, i + 1);
  }
  if (b - a <= groups) return full;
  const int full_a = a, full_b = b;
  double best = kl.Of(a, b, groups);
  // Fewer bins than groups would be no quantization at all: the range keeps at least one bin a code.
  for (int round = 0; round < 2; ++round) {
    bool moved = false;
    const int from_b = std::max(origin, a + groups);
    for (int i = full_b; i >= from_b && i > origin; --i) {
      const double d = kl.Of(a, i, groups);
      if (d < best) best = d, b = i, moved = true;
    }
    const int to_a = std::min(origin, b - groups);
    for (int i = full_a; i <= to_a && i < origin; ++i) {
      const double d = kl.Of(i, b, groups);
      if (d < best) best = d, a = i, moved = true;
    }
    if (!moved || symmetric) break;
  }
  const double width = h.BinWidth();
  const double hi = b == full_b ? full.max : (b - origin) * width;
  if (symmetric) return Clamped(h, -hi, hi, true);
  return Clamped(h, a == full_a ? full.min : (a - origin) * width, hi, false);
}

double ExpectedSquaredError(const RangeHistogram& h, AffineParams params, DType storage) {
  return Objective(Occupied(h), params, storage);
}

QuantRange MseRange(const RangeHistogram& h, DType storage, bool symmetric) {
  const Bins bins = Occupied(h);
  return SearchEnds(MinMaxRange(h, symmetric), symmetric, 0, [&](QuantRange r, double) {
    return Objective(bins, ChooseParams(r.min, r.max, storage, symmetric), storage);
  });
}

AffineParams MseWeightParams(std::span<const float> w, DType storage, bool symmetric) {
  if (w.empty()) return {};
  MinMax m;
  m.Add(w);
  const QuantRange full = {std::min(m.min, 0.0f), std::max(m.max, 0.0f)};
  const float largest = std::max(-full.min, full.max);
  const QuantRange start = symmetric ? QuantRange{-largest, largest} : full;
  const QuantRange best = SearchEnds(start, symmetric, 0.25, [&](QuantRange r, double enough) {
    return QuantizationSquaredError(w, ChooseParams(r.min, r.max, storage, symmetric), storage, enough);
  });
  return ChooseParams(best.min, best.max, storage, symmetric);
}

std::vector<AffineParams> MseWeightParams(std::span<const float> w, std::int64_t outer, std::int64_t channels,
                                          std::int64_t inner, DType storage, bool symmetric) {
  std::int64_t volume = 0;
  if (outer < 0 || channels < 0 || inner < 0 || __builtin_mul_overflow(outer, channels, &volume) ||
      __builtin_mul_overflow(volume, inner, &volume) || static_cast<std::uint64_t>(volume) != w.size()) {
    ThrowInternal("the [outer, channels, inner] view does not match the tensor's size");
  }
  const std::size_t rows = static_cast<std::size_t>(outer), width = static_cast<std::size_t>(channels);
  const std::size_t run = static_cast<std::size_t>(inner);
  std::vector<AffineParams> params(width);
  std::vector<float> channel;
  for (std::size_t c = 0; c < width; ++c) {
    if (rows == 1) {
      params[c] = MseWeightParams(w.subspan(c * run, run), storage, symmetric);
      continue;
    }
    channel.clear();
    for (std::size_t o = 0; o < rows; ++o) {
      const std::span<const float> row = w.subspan((o * width + c) * run, run);
      channel.insert(channel.end(), row.begin(), row.end());
    }
    params[c] = MseWeightParams(channel, storage, symmetric);
  }
  return params;
}

}  // namespace octavo
