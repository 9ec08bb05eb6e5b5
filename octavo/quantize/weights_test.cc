#include "octavo/quantize/weights.h"

#include <gtest/gtest.h>

#include <cmath>

namespace octavo {
namespace {

std::vector<float> Ramp(std::size_t n, float low, float high) {
  std::vector<float> v(n);
  for (std::size_t i = 0; i < n; ++i) v[i] = low + (high - low) * static_cast<float>(i) / static_cast<float>(n - 1);
  return v;
}

float Dequantized(const QuantizedWeight& q, std::size_t i, std::size_t channel) {
  const AffineParams p = q.params[q.axis ? channel : 0];
  return DequantizeOne(static_cast<std::int32_t>(static_cast<std::uint8_t>(q.codes.data()[i])), p.scale, p.zero_point);
}

TEST(Weights, PerTensorCoversTheRange) {
  const TensorRef w = TensorRef::FromFloats({4, 25}, Ramp(100, -1, 3));
  const QuantizedWeight q = QuantizeWeight(w, 0, {.storage = DType::kU8});
  ASSERT_EQ(q.params.size(), 1u);
  EXPECT_FALSE(q.axis);
  const std::vector<float> f = w.ToFloats();
  for (std::size_t i = 0; i < f.size(); ++i)
    EXPECT_LE(std::fabs(Dequantized(q, i, 0) - f[i]), q.params[0].scale * 0.51f);
}

TEST(Weights, SymmetricU8IsS8PlusOneHundredAndTwentyEight) {
  const TensorRef w = TensorRef::FromFloats({2, 3}, std::vector<float>{-1, 0, 0.5f, 127, -127, 1});
  const QuantizedWeight u = QuantizeWeight(w, 0, {.storage = DType::kU8, .per_channel = true, .symmetric = true});
  const QuantizedWeight s = QuantizeWeight(w, 0, {.storage = DType::kS8, .per_channel = true, .symmetric = true});
  ASSERT_EQ(u.params.size(), 2u);
  for (std::size_t c = 0; c < 2; ++c) {
    EXPECT_EQ(u.params[c].zero_point, 128);
    EXPECT_EQ(s.params[c].zero_point, 0);
    EXPECT_EQ(u.params[c].scale, s.params[c].scale);
  }
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(static_cast<int>(static_cast<std::uint8_t>(u.codes.data()[i])),
              static_cast<int>(static_cast<std::int8_t>(s.codes.data()[i])) + 128);
  }
}

TEST(Weights, ChannelsAlongTheLastAxis) {
  // [K, N] with columns of very different size: each gets a scale of its own.
  const TensorRef w = TensorRef::FromFloats({2, 2}, std::vector<float>{100, 0.1f, -50, 0.05f});
  const QuantizedWeight q = QuantizeWeight(w, 1, {.storage = DType::kS8, .per_channel = true, .symmetric = true});
  ASSERT_EQ(q.params.size(), 2u);
  EXPECT_FLOAT_EQ(q.params[0].scale, 100.0f / 127);
  EXPECT_FLOAT_EQ(q.params[1].scale, 0.1f / 127);
}

TEST(Bias, OverflowRaisesThatChannelsScale) {
  const TensorRef w = TensorRef::FromFloats({2, 1}, std::vector<float>{1e-6f, 1.0f});
  const std::vector<double> bias = {1000.0, 1000.0};
  const float x_scale = 1e-3f;
  const WeightOptions options = {.storage = DType::kS8, .per_channel = true, .symmetric = true};
  const QuantizedWeight before = QuantizeWeight(w, 0, options);
  ASSERT_FALSE(BiasFits(bias, x_scale, before));
  const QuantizedWeight after = QuantizeWeight(w, 0, options, BiasScaleFloor(bias, x_scale));
  EXPECT_TRUE(BiasFits(bias, x_scale, after));
  EXPECT_NEAR(after.params[0].scale, 1.0001 * 2 * 1000 / (4294967294.0) / x_scale, 1e-9);
  EXPECT_EQ(after.params[1].scale, before.params[1].scale);  // the channel that fits is left alone
  const QuantizedBias q = QuantizeBias(bias, x_scale, after);
  EXPECT_NEAR(static_cast<double>(q.codes[0]) * q.scales[0], 1000.0, 1e-3);
}

TEST(Bias, ScaleIsTheProductInF32) {
  const TensorRef w = TensorRef::FromFloats({1, 2}, std::vector<float>{0.3f, -0.7f});
  const QuantizedWeight q = QuantizeWeight(w, 0, {.storage = DType::kU8});
  const QuantizedBias b = QuantizeBias(std::vector<double>{0.25}, 0.013f, q);
  ASSERT_EQ(b.scales.size(), 1u);
  EXPECT_EQ(b.scales[0], 0.013f * q.params[0].scale);
  EXPECT_EQ(b.codes[0], static_cast<std::int64_t>(std::nearbyint(0.25 / b.scales[0])));
}

TEST(Noise, BiasShiftIsTheMeanErrorOfTheProducts) {
  Graph g;
  Type t;
  t.dtype = DType::kF32;
  Value* x = g.AddInput("x", t);
  const std::vector<float> values = {0.11f, -0.52f, 0.93f, 0.34f, -0.75f, 0.26f};
  Value* w = g.AddConstant("w", TensorRef::FromFloats({3, 2}, values));  // [K, N]
  Node* matmul = g.AddNode("MatMul", "", {x, w}, {{"y", t}});
  const QuantizedWeight q = QuantizeWeight(*w->data, 1, {.storage = DType::kU8});
  const ChannelMoments m = {.mean = {1, -2, 3}, .mean_square = {1, 4, 9}};  // constants: no variance
  const WeightNoise corrected = AnalyzeWeight(*matmul, *w->data, q, m, true);
  ASSERT_EQ(corrected.bias_shift.size(), 2u);
  for (std::size_t n = 0; n < 2; ++n) {
    double shift = 0;
    for (std::size_t k = 0; k < 3; ++k) shift += (Dequantized(q, k * 2 + n, n) - values[k * 2 + n]) * m.mean[k];
    EXPECT_NEAR(corrected.bias_shift[n], shift, 1e-6);
  }
  EXPECT_NEAR(corrected.noise, 0, 1e-12);  // all of it is shift
  EXPECT_GT(AnalyzeWeight(*matmul, *w->data, q, m, false).noise, 0);
}

TEST(Noise, GroupedConvReadsItsGroupsChannels) {
  Graph g;
  Type t;
  t.dtype = DType::kF32;
  Value* x = g.AddInput("x", t);
  Value* w = g.AddConstant("w", TensorRef::FromFloats({2, 1, 1, 1}, std::vector<float>{0.5f, 0.301f}));
  Node* conv = g.AddNode("Conv", "", {x, w}, {{"y", t}});
  conv->SetAttribute("group", std::int64_t{2});
  const QuantizedWeight q = QuantizeWeight(*w->data, 0, {.storage = DType::kU8});
  const WeightNoise n = AnalyzeWeight(*conv, *w->data, q, {.mean = {7, 100}, .mean_square = {49, 1e4}}, true);
  EXPECT_NEAR(n.bias_shift[1], (Dequantized(q, 1, 0) - 0.301) * 100, 1e-4);
}

TEST(LargestOfChannels, FollowsTheAxis) {
  const TensorRef w = TensorRef::FromFloats({2, 3, 2}, std::vector<float>{1, -9, 2, 3, -4, 0, 5, 6, -7, 8, 1, 1});
  EXPECT_EQ(LargestOfChannels(w, 0), (std::vector<float>{9, 8}));
  EXPECT_EQ(LargestOfChannels(w, 1), (std::vector<float>{9, 8, 4}));
  EXPECT_EQ(LargestOfChannels(w, 2), (std::vector<float>{7, 9}));
}

}  // namespace
}  // namespace octavo
