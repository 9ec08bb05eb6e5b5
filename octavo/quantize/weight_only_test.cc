#include "octavo/quantize/weight_only.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/numerics/half.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

QuantizationConfig Config() {
  QuantizationConfig config;
  config.precision = "int4";
  config.block = 4;
  return config;
}

QuantizeResult Store(Model& model, const QuantizationConfig& config) {
  QuantizeResult result;
  QuantizeWeightsOnly(model, config, *FindWeightOnlyFormat(config), 2, result);
  VerifyOrThrow(model, "QuantizeWeightsOnly");
  return result;
}

TEST(WeightOnly, BlocksRunAlongTheAxis) {
  // Along axis 0 of [4, 2]: columns are blocks. 7, -7 and 0 are exact at scale 1; so are multiples of half.
  const TensorRef w = TensorRef::FromFloats({4, 2}, std::vector<float>{7, 3.5f, -7, -3.5f, 0, 1, 1, 0.5f});
  const EncodedWeight e = EncodeAffineBlocks(w, 0, 4, DType::kS4);
  EXPECT_EQ(e.type.affine.scale.dims, (Dims{1, 2}));
  EXPECT_EQ(e.type.affine.scale.ToFloats(), (std::vector<float>{1.0f, 0.5f}));
  EXPECT_EQ(e.data.ToInts(), (std::vector<std::int64_t>{7, 7, -7, -7, 0, 2, 1, 1}));
}

TEST(WeightOnly, PartialAndZeroBlocks) {
  const TensorRef w = TensorRef::FromFloats({1, 5}, std::vector<float>{0, 0, 0, 0, 14});
  const EncodedWeight e = EncodeAffineBlocks(w, 1, 4, DType::kS8);
  EXPECT_EQ(e.type.affine.scale.dims, (Dims{1, 2}));
  EXPECT_EQ(e.type.affine.scale.ToFloats()[0], 1.0f);
  EXPECT_EQ(e.data.ToInts(), (std::vector<std::int64_t>{0, 0, 0, 0, 127}));
}

// Of a block, up to the rounding of its scale to steps.
TEST(WeightOnly, ChosenScaleIsNotWorseThanTheLargestValues) {
  std::vector<float> x;
  for (int i = 0; i < 64; ++i) x.push_back(std::sin(static_cast<float>(i * i)) * static_cast<float>(1 + i % 7));
  const EncodedWeight e = EncodeAffineBlocks(TensorRef::FromFloats({1, 64}, x), 1, 32, DType::kS4);
  const std::vector<float> scales = e.type.affine.scale.ToFloats();
  const std::vector<std::int64_t> codes = e.data.ToInts();
  for (std::size_t b = 0; b < 2; ++b) {
    float most = 0;
    for (std::size_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[b * 32 + i]));
    double plain = 0, chosen = 0;
    for (std::size_t i = 0; i < 32; ++i) {
      const float v = x[b * 32 + i], s = most / 7;
      plain += std::pow(std::nearbyint(v / s) * s - v, 2);
      chosen += std::pow(static_cast<float>(codes[b * 32 + i]) * scales[b] - v, 2);
    }
    EXPECT_LE(chosen, plain * 1.1);
  }
}

constexpr const char* kShared = R"(graph @g(%x: f32[2,4], %i: s64[3]) -> (%y, %z, %t, %r) {
  %w = constant f32[4,4] [1,2,3,4,5,6,7,0,1,2,3,4,5,6,7,0]
  %y: f32[2,4] = MatMul(%x, %w)
  %z: f32[3,4] = Gather(%w, %i)
  %v: f32[4,4] = Transpose(%w)
  %t: f32[2,4] = MatMul(%x, %v)
  %r: f32[4,4] = Relu(%w)
})";

TEST(WeightOnly, SharedWeightsAreStoredOncePerDimension) {
  Model model = Parse(kShared);
  const QuantizeResult result = Store(model, Config());
  EXPECT_EQ(result.nodes_quantized, 3);
  const auto quant = [&](const char* name) {
    const Value* v = model.graph->FindValue(name)->producer()->input(1);
    return v->producer() != nullptr ? v->producer()->input(0) : v;
  };
  EXPECT_EQ(*quant("y")->type.quant->affine.axis, 0);
  EXPECT_EQ(*quant("t")->type.quant->affine.axis, 1);
  EXPECT_EQ(model.graph->FindValue("z")->producer()->input(0), quant("t"));
  EXPECT_FALSE(model.graph->FindValue("r")->producer()->input(0)->type.quant.has_value());
}

TEST(WeightOnly, SelectorsAreRespected) {
  Model model = Parse(kShared);
  QuantizationConfig config = Config();
  config.op_types = {"MatMul"};
  config.exclude = {"t"};
  QuantizeResult result = Store(model, config);
  EXPECT_EQ(result.nodes_quantized, 1);
  ASSERT_EQ(result.nodes_skipped.size(), 2u);
  EXPECT_EQ(result.nodes_skipped[1].reason, "it is excluded");

  model = Parse(kShared);
  config = Config();
  config.overrides = {{"w", "f32"}};
  EXPECT_EQ(Store(model, config).nodes_quantized, 0);

  model = Parse(kShared);
  config.overrides = {{"w", "s8"}};
  EXPECT_EQ(Store(model, config).nodes_quantized, 3);
  EXPECT_EQ(model.graph->FindValue("y")->producer()->input(1)->type.quant->affine.storage, DType::kS8);

  for (const char* type : {"u8", "u16"}) {
    model = Parse(kShared);
    config.overrides = {{"w", type}};
    EXPECT_THROW(Store(model, config), Error);
  }
  // The result of a node is no weight: the override would change nothing.
  model = Parse(kShared);
  config.overrides = {{"y", "f32"}};
  try {
    Store(model, config);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("'y' has no effect with precision 'int4'"));
  }
  config = Config();
  config.exclude = {"nothing"};
  EXPECT_THROW(Store(model, config), Error);
}

TEST(WeightOnly, ReasonsOfWhatStaysFloat) {
  Model model = Parse(R"(graph @g(%x: f32[1,4,5,5], %a: f32[2,4]) -> (%y, %z, %s) {
  %k = constant f32[1,4,3,3] splat(1)
  %w = constant f32[3,2] [1,2,3,4,5,6]
  %b = constant f32[2,3] [1,2,3,4,5,6]
  %y: f32[1,1,3,3] = Conv(%x, %k)
  %z: f32[2,2] = MatMul(%b, %w)
  %t: f32[4,2] = Transpose(%a)
  %s: f32[2,2] = MatMul(%a, %t)
})");
  const QuantizeResult result = Store(model, Config());
  EXPECT_EQ(result.nodes_quantized, 0);
  ASSERT_EQ(result.nodes_skipped.size(), 3u);
  std::string reasons;
  for (const auto& skipped : result.nodes_skipped) reasons += skipped.reason + "\n";
  EXPECT_THAT(reasons, HasSubstr("its windows have 36 numbers"));
  EXPECT_THAT(reasons, HasSubstr("3 numbers, less than a block of 4"));
  EXPECT_THAT(reasons, HasSubstr("both operands are computed"));
}

// Three dimensions of a product are no window, however few its numbers.
TEST(WeightOnly, StacksOfMatricesAreNoWindows) {
  Model model = Parse(R"(graph @g(%x: f32[3,2,8]) -> (%y) {
  %w = constant f32[3,8,2] splat(0.5)
  %y: f32[3,2,2] = MatMul(%x, %w)
})");
  EXPECT_EQ(Store(model, Config()).nodes_quantized, 1);
  EXPECT_EQ(model.graph->FindValue("w")->type.quant->affine.axis, 1);
}

// Large windows: blocks along the channels that are summed over.
TEST(WeightOnly, LargeWindowsAreStoredAlongTheChannels) {
  Model model = Parse(R"(graph @g(%x: f32[1,64,5,5], %u: f32[1,128,5,5]) -> (%y, %z) {
  %k = constant f32[128,64,3,3] splat(0.5)
  %t = constant f32[128,64,3,3] splat(-0.5)
  %y: f32[1,128,3,3] = Conv(%x, %k)
  %z: f32[1,64,7,7] = ConvTranspose(%u, %t)
})");
  EXPECT_EQ(Store(model, Config()).nodes_quantized, 2);
  const auto affine = [&](const char* name) { return model.graph->FindValue(name)->type.quant->affine; };
  EXPECT_EQ(*affine("k").axis, 1);
  EXPECT_EQ(affine("k").scale.dims, (Dims{128, 16, 3, 3}));
  EXPECT_EQ(*affine("t").axis, 0);
  EXPECT_EQ(affine("t").scale.dims, (Dims{32, 64, 3, 3}));
}

// Sixteen blocks of very different sizes: the scales are 1 to 15 steps, the largest 15; the step is f16 where f16 has
// its digits; and no code is farther from its number than the scale.
TEST(WeightOnly, ScalesAreAFewStepsOfOneHalfNumber) {
  for (const float unit : {0.013f, 1e-7f}) {
    std::vector<float> x;
    for (int i = 0; i < 512; ++i) {
      x.push_back(unit * static_cast<float>(1 + i / 32) * std::sin(static_cast<float>(i)));
    }
    const EncodedWeight e = EncodeAffineBlocks(TensorRef::FromFloats({1, 512}, x), 1, 32, DType::kS4);
    const std::vector<std::int64_t> codes = e.data.ToInts();
    const std::vector<float> scales = e.type.affine.scale.ToFloats();
    const float step = *std::max_element(scales.begin(), scales.end()) / 15;
    EXPECT_EQ(HalfToFloat(FloatToHalf(step)) == step, unit > 1e-3f);
    for (std::size_t i = 0; i < 512; ++i) {
      const float s = scales[i / 32], code = s / step;
      EXPECT_EQ(code, std::nearbyint(code));
      EXPECT_TRUE(code >= 1 && code <= 15) << code;
      EXPECT_NEAR(static_cast<float>(codes[i]) * s, x[i], s);
    }
  }
}

// A window over three channels has a scale for each output channel; a table that is added has one for each row, behind
// operators that the runtime computes when it loads the model; what is small, or has an override, stays.
TEST(WeightOnly, LargeTablesAndWindowsOverFewChannelsTakeEightBits) {
  const std::string text = R"(graph @g(%x: f32[1,3,28,28], %a: f32[1,1024,96]) -> (%y, %z, %v) {
  %k = constant f32[256,3,14,14] splat(0.25)
  %p = constant f32[1,1024,96] splat(0.5)
  %s = constant f32[1,8,96] splat(0.5)
  %y: f32[1,256,2,2] = Conv(%x, %k) {strides=[14,14]}
  %z: f32[1,1024,96] = Add(%a, %p)
  %b = constant f32[1,8,96] splat(1)
  %v: f32[1,8,96] = Add(%b, %s)
})";
  for (const bool kept : {false, true}) {
    Model model = Parse("opset \"\" = 21\n" + text);
    QuantizationConfig config = Config();
    if (kept) config.overrides.emplace_back("k", "f32");
    if (kept) config.exclude.emplace_back("z");
    EXPECT_EQ(Store(model, config).nodes_quantized, kept ? 0 : 2);
    const Value* k = model.graph->FindValue("k");
    EXPECT_EQ(k->type.quant.has_value(), !kept);
    if (!kept) {
      EXPECT_EQ(k->type.quant->affine.storage, DType::kS8);
      EXPECT_EQ(k->type.quant->affine.scale.dims, Dims{256});
    }
    EXPECT_EQ(model.graph->FindValue("s")->data->dtype, DType::kF32);
    EXPECT_EQ(model.graph->FindValue("p") == nullptr, !kept);
    if (kept) continue;
    const Node* product = model.graph->FindValue("z")->producer()->input(1)->producer();
    ASSERT_TRUE(product != nullptr && product->Is("Mul"));
    EXPECT_EQ(product->input(1)->data->dims, (Dims{1, 1024, 1}));
    EXPECT_EQ(product->input(0)->producer()->input(0)->data->dtype, DType::kS8);
    for (const std::int64_t code : product->input(0)->producer()->input(0)->data->ToInts()) ASSERT_EQ(code, 127);
  }
}

}  // namespace
}  // namespace octavo
