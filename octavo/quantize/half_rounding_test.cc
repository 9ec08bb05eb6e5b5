#include "octavo/quantize/half_rounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "octavo/numerics/half.h"
#include "octavo/quantize/half_search.h"

namespace octavo {
namespace {

struct Layer {
  std::vector<float> w;
  std::vector<double> mean, variance;
  std::vector<std::uint16_t> halves;
};

Layer RandomLayer(std::uint32_t seed, std::size_t n, double mean_size) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Layer layer;
  for (std::size_t k = 0; k < n; ++k) {
    layer.w.push_back(normal(rng));
    layer.mean.push_back(mean_size * normal(rng));
    layer.variance.push_back(0.01 + std::abs(normal(rng)));
    layer.halves.push_back(FloatToHalf(layer.w.back()));
  }
  return layer;
}

double Shift(const Layer& layer) {
  double s = 0;
  for (std::size_t k = 0; k < layer.w.size(); ++k) {
    s += (static_cast<double>(HalfToFloat(layer.halves[k])) - layer.w[k]) * layer.mean[k];
  }
  return s;
}

TEST(RoundTowardsMean, TakesTheShiftAwayForLittleNoise) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    Layer layer = RandomLayer(seed, 200, 10);
    const double bias_error = seed % 2 == 0 ? 0.0 : 0.01;
    const double before = Shift(layer) + bias_error;
    const RoundingGain gain = RoundTowardsMean(layer.w, layer.mean, layer.variance, bias_error, layer.halves);
    const double after = Shift(layer) + bias_error;
    EXPECT_LE(gain.after, gain.before);
    EXPECT_LE(after * after, before * before);
    if (before * before > 0.9 * gain.before) {
      EXPECT_LT(gain.after, 0.5 * gain.before);
    }
    // Each is one of the two neighbours: the nearest that is not below, or not above.
    for (std::size_t k = 0; k < layer.w.size(); ++k) {
      const float value = HalfToFloat(layer.halves[k]);
      const float step = std::ldexp(1.0f, std::ilogb(std::max(std::abs(layer.w[k]), 6.2e-5f)) - 10);
      EXPECT_LT(std::abs(value - layer.w[k]), step);
    }
  }
}

TEST(RoundTowardsMean, WithoutVarianceTheShiftIsLessThanAStep) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    Layer layer = RandomLayer(seed, 400, 1);
    std::fill(layer.variance.begin(), layer.variance.end(), 0.0);
    RoundTowardsMean(layer.w, layer.mean, layer.variance, 0, layer.halves);
    EXPECT_LT(std::abs(Shift(layer)), 1.0 / 512);  // of the largest weights
  }
}

TEST(RoundTowardsMean, WithoutAMeanNothingMoves) {
  Layer layer = RandomLayer(3, 64, 0);
  const std::vector<std::uint16_t> nearest = layer.halves;
  RoundTowardsMean(layer.w, layer.mean, layer.variance, 0.5, layer.halves);
  EXPECT_EQ(layer.halves, nearest);
}

TEST(RoundTowardsMean, StaysFiniteAndLeavesExactNumbersAlone) {
  // 65504 is the largest; 0.5 and 0 are exact; tiny numbers have 0 as a neighbour.
  Layer layer{{70000.0f, 65503.0f, 0.5f, 0.0f, 1e-8f, -1e-8f, INFINITY}, {}, {}, {}};
  for (const float w : layer.w) {
    layer.halves.push_back(std::isfinite(w) && w > 65504 ? 0x7BFF : FloatToHalf(w));
    layer.mean.push_back(1);
    layer.variance.push_back(1e-9);
  }
  for (const double shift : {-50.0, 50.0}) {
    std::vector<std::uint16_t> halves = layer.halves;
    RoundTowardsMean(layer.w, layer.mean, layer.variance, shift, halves);
    EXPECT_EQ(halves[2], layer.halves[2]);
    EXPECT_EQ(halves[3], layer.halves[3]);
    EXPECT_EQ(halves[6], 0x7C00);
    for (std::size_t k = 0; k < 6; ++k) EXPECT_TRUE(std::isfinite(HalfToFloat(halves[k])));
  }
}

// Noise that adds up, plus what nothing takes away.
NoisyChoice Choose(const std::vector<double>& noise, const std::vector<double>& cost, double target, int budget,
                   double most, double base = 0) {
  NoisySearch search;
  search.measure = [&](const std::vector<bool>& noisy) {
    double sum = base;
    for (std::size_t i = 0; i < noise.size(); ++i) sum += noisy[i] ? noise[i] : 0;
    return sum;
  };
  search.target = target;
  search.budget = budget;
  search.most = most;
  return ChooseNoisy(cost, search);
}

TEST(ChooseNoisy, FindsTheFewThatMakeTheNoise) {
  std::vector<double> noise(100, 0.001), cost(100, 1.0);
  noise[17] = 5;
  noise[60] = 3;
  const NoisyChoice choice = Choose(noise, cost, 0.2, 60, 100);
  EXPECT_LE(choice.noise, 0.2);
  EXPECT_LE(choice.measured, 60);
  for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(choice.noisy[i], i != 17 && i != 60) << i;
}

TEST(ChooseNoisy, FewMeasurementsTakeWholeGroups) {
  std::vector<double> noise(100, 0.001), cost(100, 1.0);
  noise[17] = 5;
  const NoisyChoice choice = Choose(noise, cost, 0.2, 10, 100);
  EXPECT_LE(choice.noise, 0.2);
  EXPECT_FALSE(choice.noisy[17]);
  EXPECT_TRUE(choice.noisy[99]);
}

TEST(ChooseNoisy, StopsAtTheCostAndAtTheEnd) {
  const std::vector<double> noise(8, 1.0);
  const std::vector<double> cost = {1, 1, 1, 1, 10, 10, 10, 10};
  const NoisyChoice capped = Choose(noise, cost, 0.5, 100, 3);
  EXPECT_EQ(capped.noise, 5);
  EXPECT_EQ(std::count(capped.noisy.begin(), capped.noisy.end(), false), 3);
  const NoisyChoice hopeless = Choose(noise, cost, 0.5, 100, 100, /*base=*/7);
  EXPECT_EQ(std::count(hopeless.noisy.begin(), hopeless.noisy.end(), true), 0);
  EXPECT_EQ(hopeless.noise, 7);
}

}  // namespace
}  // namespace octavo
