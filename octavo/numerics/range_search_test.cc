#include "octavo/numerics/range_search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::vector<float> Draw(std::size_t n, const std::function<float(std::mt19937&)>& one) {
  std::mt19937 gen(17);
  std::vector<float> v(n);
  for (float& x : v) x = one(gen);
  return v;
}

float Normal(std::mt19937& gen) { return std::normal_distribution<float>()(gen); }
float Laplace(std::mt19937& gen) {
  const float e = std::exponential_distribution<float>()(gen);
  return gen() % 2 == 0 ? e : -e;
}

RangeHistogram Of(const std::vector<float>& x) {
  RangeHistogram h;
  h.Add(x);
  return h;
}

double TrueError(const std::vector<float>& x, QuantRange r, DType t, bool symmetric) {
  return QuantizationSquaredError(x, ChooseParams(r.min, r.max, t, symmetric), t) / static_cast<double>(x.size());
}

// Half of it zeros, a long tail, few outliers: what follows a ReLU.
std::vector<float> Relu() {
  std::vector<float> x = Draw(200000, [](std::mt19937& g) { return std::max(Normal(g), 0.0f); });
  x[5] = 40.0f;
  return x;
}

TEST(MinMaxRange, HoldsZero) {
  EXPECT_EQ(MinMaxRange(Of({2, 3}), false), (QuantRange{0, 3}));
  EXPECT_EQ(MinMaxRange(Of({-2, -3}), false), (QuantRange{-3, 0}));
  EXPECT_EQ(MinMaxRange(Of({-2, 3}), true), (QuantRange{-3, 3}));
  EXPECT_EQ(MinMaxRange(Of({}), true), (QuantRange{0, 0}));
}

TEST(PercentileRange, CutsTheTails) {
  std::vector<float> x;
  for (int i = 0; i < 10000; ++i) x.push_back(static_cast<float>(i + 1) / 10000 * 8);  // uniform over (0, 8]
  QuantRange r = PercentileRange(Of(x), 99, false);
  EXPECT_EQ(r.min, 0);  // 0 stays representable
  EXPECT_NEAR(r.max, 7.96, 0.01);
  r = PercentileRange(Of(x), 99, true);
  EXPECT_NEAR(r.max, 7.92, 0.01);
  EXPECT_EQ(r.min, -r.max);
  EXPECT_EQ(PercentileRange(Of(x), 100, false), MinMaxRange(Of(x), false));
  const std::vector<float> n = Draw(1000000, Normal);
  r = PercentileRange(Of(n), 99.9, false);
  EXPECT_NEAR(r.min, -3.29, 0.06);
  EXPECT_NEAR(r.max, 3.29, 0.06);
  r = PercentileRange(Of(Relu()), 99.99, false);
  EXPECT_EQ(r.min, 0);
  EXPECT_NEAR(r.max, 3.9, 0.4);
  EXPECT_EQ(PercentileRange(Of(std::vector<float>(100, 0.0f)), 99, true), (QuantRange{0, 0}));
  EXPECT_EQ(PercentileRange(RangeHistogram(), 99, false), (QuantRange{0, 0}));
  for (const double bad : {50.0, 100.1, -1.0, std::nan("")}) EXPECT_THROW(PercentileRange(Of(x), bad, false), Error);
}

TEST(PercentileRange, NeverBeyondTheData) {
  for (const double p : {60.0, 99.0, 99.999}) {
    const QuantRange r = PercentileRange(Of({-0.3f, 0.7f, 0.71f}), p, false);
    EXPECT_GE(r.min, -0.3f);
    EXPECT_LE(r.max, 0.71f);
  }
}

TEST(EntropyRange, ClipsOutliersAndKeepsTheCore) {
  std::vector<float> x = Draw(500000, Laplace);
  x[0] = 60;
  x[1] = -55;
  for (const bool symmetric : {false, true}) {
    const DType t = symmetric ? DType::kS8 : DType::kU8;
    const QuantRange r = EntropyRange(Of(x), t, symmetric);
    const QuantRange full = MinMaxRange(Of(x), symmetric);
    EXPECT_LT(r.max, 0.5f * full.max);
    EXPECT_GT(r.max, 3.0f);
    EXPECT_GT(r.min, 0.5f * full.min);
    EXPECT_LT(r.min, -3.0f);
    EXPECT_LT(TrueError(x, r, t, symmetric), TrueError(x, full, t, symmetric));
  }
}

TEST(EntropyRange, OutputsOfRelu) {
  const std::vector<float> x = Relu();
  const QuantRange r = EntropyRange(Of(x), DType::kU8, false);
  EXPECT_EQ(r.min, 0);
  EXPECT_LT(r.max, 10);  // the outlier at 40 is clipped
  EXPECT_GT(r.max, 2.5f);
  std::vector<float> sparse = x;  // ten times as many zeros change nothing
  sparse.resize(10 * x.size(), 0.0f);
  EXPECT_EQ(EntropyRange(Of(sparse), DType::kU8, false), r);
}

TEST(EntropyRange, MirrorsAndUniformAndDegenerate) {
  std::vector<float> x = Draw(100000, [](std::mt19937& g) { return std::uniform_real_distribution<float>(-1, 1)(g); });
  const QuantRange r = EntropyRange(Of(x), DType::kS8, true);
  EXPECT_GT(r.max, 0.97f);  // nothing to gain from clipping a uniform distribution
  EXPECT_EQ(EntropyRange(Of(x), DType::kU16, false), MinMaxRange(Of(x), false));
  EXPECT_EQ(EntropyRange(RangeHistogram(), DType::kU8, false), (QuantRange{0, 0}));
  EXPECT_EQ(EntropyRange(Of({3.0f}), DType::kU8, false).min, 0);
  EXPECT_EQ(EntropyRange(Of({3.0f}), DType::kU8, false).max, 3);
  std::vector<float> relu = Relu();
  const QuantRange up = EntropyRange(Of(relu), DType::kU8, false);
  for (float& v : relu) v = -v;
  const QuantRange down = EntropyRange(Of(relu), DType::kU8, false);
  EXPECT_NEAR(down.min, -up.max, 0.05f * up.max);  // groups are cut from the low end
  EXPECT_EQ(down.max, 0);
}

TEST(ExpectedSquaredError, AgreesWithTheData) {
  for (const auto& x : {Draw(300000, Normal), Draw(300000, Laplace), Relu()}) {
    const RangeHistogram h = Of(x);
    for (const DType t : {DType::kU8, DType::kS8, DType::kU4, DType::kS4}) {
      for (const float f : {1.0f, 0.5f, 0.1f}) {
        const QuantRange full = MinMaxRange(h, false);
        const AffineParams p = ChooseParams(full.min * f, full.max * f, t, false);
        const double truth = QuantizationSquaredError(x, p, t) / static_cast<double>(x.size());
        EXPECT_NEAR(ExpectedSquaredError(h, p, t), truth, 0.03 * truth) << Name(t) << " " << f;
      }
    }
  }
}

TEST(MseRange, NearTheBestOnTheDataAndNeverWorseThanMinMax) {
  std::vector<float> laplace = Draw(200000, Laplace);
  for (const auto& x : {Draw(200000, Normal), laplace, Relu()}) {
    const RangeHistogram h = Of(x);
    for (const DType t : {DType::kU8, DType::kS8, DType::kU4, DType::kS4}) {
      for (const bool symmetric : {false, true}) {
        const QuantRange r = MseRange(h, t, symmetric);
        const QuantRange full = MinMaxRange(h, symmetric);
        const auto expected = [&](QuantRange q) {
          return ExpectedSquaredError(h, ChooseParams(q.min, q.max, t, symmetric), t);
        };
        EXPECT_LE(expected(r), expected(full));
        // A plain scan of the true error over scaled full ranges finds nothing clearly better.
        double best = TrueError(x, full, t, symmetric);
        for (int k = 1; k < 100; ++k) {
          const float f = static_cast<float>(k) / 100;
          best = std::min(best, TrueError(x, {full.min * f, full.max * f}, t, symmetric));
        }
        EXPECT_LE(TrueError(x, r, t, symmetric), 1.05 * best) << Name(t) << symmetric;
      }
    }
  }
  // Gaussian, 16 levels: the best clipping value is 2.55 sigma (Banner et al. 2019, section 3), the outer edge of the
  // outermost cell; 15 levels and their centers here.
  const QuantRange four = MseRange(Of(Draw(1000000, Normal)), DType::kS4, true);
  EXPECT_NEAR(four.max, 2.55 * 15 / 16, 0.1);
}

TEST(MseRange, Degenerate) {
  EXPECT_EQ(MseRange(RangeHistogram(), DType::kU8, false), (QuantRange{0, 0}));
  EXPECT_EQ(MseRange(Of({0.0f, 0.0f}), DType::kU8, false), (QuantRange{0, 0}));
  const QuantRange r = MseRange(Of({5.0f}), DType::kU8, false);
  EXPECT_EQ(r.min, 0);
  EXPECT_NEAR(r.max, 5.0f, 0.1f);
  const QuantRange wide = MseRange(Of({3e38f, -3e38f}), DType::kS8, true);
  EXPECT_TRUE(std::isfinite(wide.max));
}

TEST(MseWeightParams, NeverWorseThanMinMax) {
  bool better = false;
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 gen(static_cast<unsigned>(seed));
    std::vector<float> w(static_cast<std::size_t>(1 + seed * 37));
    for (float& x : w) x = seed % 2 == 0 ? Normal(gen) : Laplace(gen) + 0.3f;
    for (const DType t : {DType::kS4, DType::kU4, DType::kS8, DType::kU8, DType::kS16}) {
      for (const bool symmetric : {false, true}) {
        MinMax m;
        m.Add(w);
        const double base = QuantizationSquaredError(w, ChooseParams(m.min, m.max, t, symmetric), t);
        const double found = QuantizationSquaredError(w, MseWeightParams(w, t, symmetric), t);
        EXPECT_LE(found, base);
        better |= found < 0.9 * base;
      }
    }
  }
  EXPECT_TRUE(better);
  EXPECT_EQ(MseWeightParams(std::span<const float>(), DType::kS8, true).scale, 1.0f);
  EXPECT_EQ(MseWeightParams(std::vector<float>(5, 0.0f), DType::kS8, true).scale, 1.0f);
}

// The search as it is described: every step of both grids in order, nothing left out.
AffineParams SearchedOneByOne(const std::vector<float>& w, DType t, bool symmetric) {
  MinMax m;
  m.Add(w);
  const double lo = std::min(m.min, 0.0f), hi = std::max(m.max, 0.0f), largest = std::max(-lo, hi);
  const double start[2] = {symmetric ? -largest : lo, symmetric ? largest : hi};
  double ends[2] = {1, 1};
  const auto params = [&](const double* at) {
    return ChooseParams(static_cast<float>(start[0] * at[0]), static_cast<float>(start[1] * at[1]), t, symmetric);
  };
  double best = QuantizationSquaredError(w, params(ends), t);
  const auto attempt = [&](int end, double f) {
    if (f <= 0 || f > 1) return;
    double now[2] = {ends[0], ends[1]};
    now[end] = f;
    if (symmetric) now[0] = f;
    const double error = QuantizationSquaredError(w, params(now), t);
    if (error < best) best = error, ends[0] = now[0], ends[1] = now[1];
  };
  const auto movable = [&](int end) { return symmetric ? end == 1 : start[end] != 0; };
  for (int round = 0; round < 2; ++round) {
    for (const int end : {1, 0}) {
      for (int k = 64; k >= 16 && movable(end); --k) attempt(end, k / 64.0);
    }
    if (!movable(0) || !movable(1)) break;
  }
  for (const int end : {1, 0}) {
    const double center = ends[end];
    for (int k = -7; k <= 7 && movable(end); ++k) attempt(end, center + k / 512.0);
  }
  return params(ends);
}

TEST(MseWeightParams, IsTheSearchThatIsDescribed) {
  for (int seed = 0; seed < 12; ++seed) {
    std::mt19937 gen(static_cast<unsigned>(seed));
    std::vector<float> w(static_cast<std::size_t>(20 + seed * 431));
    for (float& x : w) x = seed % 3 == 0 ? Normal(gen) : Laplace(gen) + (seed % 3 == 1 ? 0.3f : 0.0f);
    if (seed % 4 == 0) w[7] = 40;
    if (seed == 5) std::transform(w.begin(), w.end(), w.begin(), [](float x) { return std::fabs(x); });
    for (const DType t : {DType::kS4, DType::kS8, DType::kU8}) {
      for (const bool symmetric : {false, true}) {
        EXPECT_EQ(MseWeightParams(w, t, symmetric), SearchedOneByOne(w, t, symmetric)) << seed << Name(t) << symmetric;
      }
    }
  }
}

TEST(MseWeightParams, Channels) {
  const std::vector<float> w = Draw(2 * 3 * 50, Laplace);
  const std::vector<AffineParams> p = MseWeightParams(w, 2, 3, 50, DType::kS4, true);
  ASSERT_EQ(p.size(), 3u);
  for (std::size_t c = 0; c < 3; ++c) {
    std::vector<float> channel(w.begin() + static_cast<std::ptrdiff_t>(c * 50),
                               w.begin() + static_cast<std::ptrdiff_t>(c * 50 + 50));
    channel.insert(channel.end(), w.begin() + static_cast<std::ptrdiff_t>(150 + c * 50),
                   w.begin() + static_cast<std::ptrdiff_t>(200 + c * 50));
    const AffineParams one = MseWeightParams(channel, DType::kS4, true);
    EXPECT_EQ(p[c].scale, one.scale);
    EXPECT_EQ(p[c].zero_point, one.zero_point);
  }
  EXPECT_THROW(MseWeightParams(w, 2, 3, 51, DType::kS4, true), Error);
}

}  // namespace
}  // namespace octavo
