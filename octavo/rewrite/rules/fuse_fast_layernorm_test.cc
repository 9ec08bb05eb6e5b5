// Text in, text out, and the numbers stay.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "octavo/ir/text.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// x of [2,3,4], over axis 1; means as JAX writes them (a sum over the count, shaped by a Reshape).
constexpr const char* kJax = R"(ir_version = 8
opset "" = 20
graph @g(%x: f32[2,3,4]) -> (%y) {
  %axes = constant s64[1] [1]
  %third = constant f32[] 0.33333334
  %zero = constant f32[] 0.0
  %one = constant f32[] 1.0
  %epsilon = constant f32[] 0.001
  %dims = constant s64[3] [2, 1, 4]
  %scale = constant f32[3,1] [1.5, 0.5, -2.0]
  %bias = constant f32[1,3,1] [0.25, 0.0, 1.0]
  %sum: f32[2,4] = ReduceSum(%x, %axes) {keepdims=0}
  %square: f32[2,3,4] = Mul(%x, %x)
  %sum2: f32[2,4] = ReduceSum(%square, %axes) {keepdims=0}
  %mean2: f32[2,4] = Mul(%sum2, %third)
  %mean: f32[2,4] = Mul(%sum, %third)
  %msq: f32[2,4] = Mul(%mean, %mean)
  %v: f32[2,4] = Sub(%mean2, %msq)
  %least: f32[2,4] = Max(%zero, %v)
  %shaped: f32[2,1,4] = Reshape(%least, %dims)
  %safe: f32[2,1,4] = Add(%shaped, %epsilon)
  %root: f32[2,1,4] = Sqrt(%safe)
  %inverse: f32[2,1,4] = Div(%one, %root)
  %factor: f32[2,3,4] = Mul(%inverse, %scale)
  %mean_shaped: f32[2,1,4] = Reshape(%mean, %dims)
  %centred: f32[2,3,4] = Sub(%x, %mean_shaped)
  %scaled: f32[2,3,4] = Mul(%centred, %factor)
  %y: f32[2,3,4] = Add(%scaled, %bias)
}
)";

std::string With(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) throw std::logic_error("no " + from);
  return text.replace(at, from.size(), to);
}

std::string Fused(const std::string& text) {
  Model model = Parse(text);
  FusePatterns(model);
  return Print(model);
}

void ExpectSameNumbers(const std::string& text) {
  Model model = Parse(text);
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 7);
  const std::vector<float> before = testing::RunModel(model, inputs)[0].ToFloats();
  FusePatterns(model);
  const std::vector<float> after = testing::RunModel(model, inputs)[0].ToFloats();
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(after[i], before[i], 1e-5);
}

TEST(FuseFastLayerNorm, OverAMiddleAxisItStandsBetweenTransposes) {
  const std::string fused = Fused(kJax);
  EXPECT_THAT(fused, HasSubstr("LayerNormalization"));
  EXPECT_THAT(fused, HasSubstr("perm=[0, 2, 1]"));
  EXPECT_THAT(fused, HasSubstr("epsilon=0.001"));
  EXPECT_THAT(fused, Not(HasSubstr("Sqrt")));
  ExpectSameNumbers(kJax);
}

TEST(FuseFastLayerNorm, OverTheLastAxisItStandsAlone) {
  const std::string text = R"(ir_version = 8
opset "" = 18
graph @g(%x: f32[2,4]) -> (%y) {
  %axes = constant s64[1] [-1]
  %two = constant f32[] 2.0
  %epsilon = constant f32[] 0.001
  %scale = constant f32[4] [1.5, 0.5, -2.0, 1.0]
  %bias = constant f32[4] [0.25, 0.0, 1.0, 2.0]
  %mean: f32[2,1] = ReduceMean(%x, %axes)
  %square: f32[2,4] = Pow(%x, %two)
  %mean2: f32[2,1] = ReduceMean(%square, %axes)
  %msq: f32[2,1] = Pow(%mean, %two)
  %v: f32[2,1] = Sub(%mean2, %msq)
  %safe: f32[2,1] = Add(%v, %epsilon)
  %root: f32[2,1] = Sqrt(%safe)
  %inverse: f32[2,1] = Reciprocal(%root)
  %factor: f32[2,4] = Mul(%inverse, %scale)
  %centred: f32[2,4] = Sub(%x, %mean)
  %scaled: f32[2,4] = Mul(%centred, %factor)
  %y: f32[2,4] = Add(%scaled, %bias)
}
)";
  const std::string fused = Fused(text);
  EXPECT_THAT(fused, HasSubstr("LayerNormalization"));
  EXPECT_THAT(fused, Not(HasSubstr("Transpose")));
  ExpectSameNumbers(text);
}

TEST(FuseFastLayerNorm, WhatIsNoNormalizationStays) {
  const std::string variants[][2] = {
      {"0.33333334", "0.25"},                                                    // no mean
      {"%v: f32[2,4] = Sub(%mean2, %msq)", "%v: f32[2,4] = Sub(%msq, %mean2)"},  // no variance
      {"Mul(%mean, %mean)", "Mul(%mean, %mean2)"},
      {"%scale = constant f32[3,1] [1.5, 0.5, -2.0]", "%scale = constant f32[4] [1.5, 0.5, -2.0, 1.0]"},
      {"%one = constant f32[] 1.0", "%one = constant f32[] 2.0"},
  };
  for (const auto& [from, to] : variants) {
    EXPECT_THAT(Fused(With(kJax, from, to)), Not(HasSubstr("LayerNormalization"))) << to;
  }
}

TEST(FusePatterns, OfFloatsOnlyWhatOverflows) {
  Model model = Parse(kJax);
  FusePatterns(model, false);
  EXPECT_THAT(Print(model), HasSubstr("LayerNormalization"));
  const char* swish = R"(ir_version = 8
opset "" = 20
graph @g(%x: f32[2,3]) -> (%y) {
  %three = constant f32[] 3.0
  %zero = constant f32[] 0.0
  %six = constant f32[] 6.0
  %a: f32[2,3] = Add(%x, %three)
  %c: f32[2,3] = Clip(%a, %zero, %six)
  %m: f32[2,3] = Mul(%x, %c)
  %y: f32[2,3] = Div(%m, %six)
}
)";
  Model floats = Parse(swish), codes = Parse(swish);
  FusePatterns(floats, false);
  FusePatterns(codes, true);
  EXPECT_THAT(Print(floats), Not(HasSubstr("HardSwish")));
  EXPECT_THAT(Print(codes), HasSubstr("HardSwish"));
}

}  // namespace
}  // namespace octavo
