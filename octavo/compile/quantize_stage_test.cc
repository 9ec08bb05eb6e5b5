#include "octavo/compile/quantize_stage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "octavo/ir/text.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

Model Layer() {
  std::string w = "[";
  for (int i = 0; i < 64 * 64; ++i) w += (i ? ", " : "") + std::to_string(0.01 * ((i * 37) % 41 - 20));
  return Parse("ir_version = 8\nopset \"\" = 17\ngraph @g(%x: f32[1,64]) -> (%y) {\n%w = constant f32[64,64] " + w +
               "]\n%y: f32[1,64] = MatMul(%x, %w) @layer\n}\n");
}

CompileContext Context(std::optional<QuantizationConfig> quantization) {
  CompileContext context;
  context.device = FindDevice("cpu");
  context.quantization = std::move(quantization);
  return context;
}

bool Has(const Model& model, const char* op) {
  const auto nodes = model.graph->nodes();
  return std::any_of(nodes.begin(), nodes.end(), [op](const Node* node) { return node->Is(op); });
}

TEST(QuantizeStage, WithoutAQuantizationInTheContextNothingIsQuantized) {
  const QuantizeStage stage(Context(std::nullopt));
  Model model = Layer();
  EXPECT_FALSE(stage.NeedsSamples(model));
  const QuantizeResult result = stage.Run(model, {});
  EXPECT_EQ(result.nodes_quantized, 0);
  EXPECT_FALSE(result.skipped);
  EXPECT_FALSE(Has(model, "DequantizeLinear"));
}

TEST(QuantizeStage, TheContextsQuantizationIsInForceAndItsFiguresComeBack) {
  QuantizationConfig int4;
  int4.precision = "int4";
  const QuantizeStage stage(Context(int4));
  EXPECT_EQ(stage.config(), int4);
  Model model = Layer();
  EXPECT_FALSE(stage.NeedsSamples(model));
  const QuantizeResult result = stage.Run(model, {});
  EXPECT_EQ(result.nodes_quantized, 1);
  EXPECT_GT(result.insertion_seconds, 0);
  EXPECT_EQ(result.calibration_seconds, 0);
  EXPECT_TRUE(Has(model, "DequantizeLinear") || Has(model, "MatMulNBits"));
}

TEST(QuantizeStage, AQuantizationThatTheModelHasStaysUnlessItIsDropped) {
  QuantizationConfig config;
  config.precision = "int4";
  Model model = Layer();
  QuantizeStage(Context(config)).Quantize(model, {});
  ASSERT_TRUE(IsQuantized(model));
  config.precision = "uint8";
  EXPECT_TRUE(QuantizeStage(Context(config)).Keeps(model));
  EXPECT_FALSE(QuantizeStage(Context(config)).NeedsSamples(model));
  EXPECT_TRUE(QuantizeStage(Context(std::nullopt)).Quantize(model, {}).skipped);
  config.requantize = true;
  EXPECT_FALSE(QuantizeStage(Context(config)).Keeps(model));
  EXPECT_TRUE(QuantizeStage(Context(config)).NeedsSamples(model));
}

}  // namespace
}  // namespace octavo
