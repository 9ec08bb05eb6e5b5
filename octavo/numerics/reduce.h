// Reductions over activations: exact range, value histogram, sums whose order does not depend on the machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace octavo {

// Range of the finite values seen, and how many were not finite. Zero is always +0. Empty: min > max.
struct MinMax {
  float min = std::numeric_limits<float>::infinity();
  float max = -std::numeric_limits<float>::infinity();
  std::uint64_t elements = 0;  // all, the non-finite ones too
  std::uint64_t nans = 0, infs = 0;

  void Add(std::span<const float> x);  // vectorized
  void Merge(const MinMax& other);
  bool AllFinite() const { return nans == 0 && infs == 0; }
  bool HasRange() const { return min <= max; }
  bool operator==(const MinMax&) const = default;
};

// Histogram over (-R, R), R = 2^exponent, kHalfBins equal bins on each side of zero, zeros apart (outputs of ReLU).
// The result depends only on the multiset of values added: any order, any sharding and Merge give the same bits,
// because
//  - exponent is the least e >= kMinExponent with max|x| < 2^e: it depends on max|x| alone;
//  - the bin of x != 0 is trunc(|x| * 2^(11 - e)) away from zero on the side of its sign, which is exact (a
//  multiplication
//    by a power of two), and trunc(trunc(y) / 2) == trunc(y / 2): halving the resolution by merging pairs of neighbours
//    is the same as having binned at the coarser resolution.
// Index i < kHalfBins holds x in (BinLow(i), BinHigh(i)] (negative side), i >= kHalfBins holds [BinLow(i), BinHigh(i)).
struct RangeHistogram {
  static constexpr int kHalfBins = 2048;
  static constexpr int kBins = 2 * kHalfBins;
  static constexpr int kMinExponent = -100;  // values below 2^-111 share the bins next to zero
  static constexpr int kMaxExponent = 128;

  int exponent = kMinExponent;
  MinMax range;                       // exact
  std::uint64_t zeros = 0;            // values equal to +-0; in no bin
  std::vector<std::uint64_t> counts;  // empty (nothing but zeros or non-finite values so far) or kBins entries

  // One pass over memory; vectorized. Non-finite values are counted in `range` and binned nowhere.
  void Add(std::span<const float> x);
  // Throws Error(kBadInput) when `other` is malformed (see Check).
  void Merge(const RangeHistogram& other);
  // Throws Error(kBadInput) unless the members are consistent: for histograms read from a file.
  void Check() const;

  std::uint64_t FiniteCount() const { return range.elements - range.nans - range.infs; }
  double BinWidth() const;     // 2^(exponent - 11)
  double BinLow(int i) const;  // (i - kHalfBins) * BinWidth()
  double BinHigh(int i) const { return BinLow(i + 1); }
  bool operator==(const RangeHistogram&) const = default;

 private:
  void GrowTo(int e);
};

// The scalar law: bin of a finite x != 0 with |x| < 2^exponent.
int RangeHistogramBin(float x, int exponent);

// Sums in f64 with 16 partial sums: element i is added to partial i % 16 in order of i; then partial[j] += partial[j +
// h] for h = 8, 4, 2, 1. Equal on every machine and SIMD width; vectorized.
inline constexpr int kSumLanes = 16;
double LaneSum(std::span<const float> x);
double LaneSumSquares(std::span<const float> x);  // each square exact in f64
// The last step of such a sum; `partial` is used up.
inline double FoldLanes(std::span<double, kSumLanes> partial) {
  for (std::size_t h = kSumLanes / 2; h > 0; h /= 2) {
    for (std::size_t j = 0; j < h; ++j) partial[j] += partial[j + h];
  }
  return partial[0];
}

}  // namespace octavo
