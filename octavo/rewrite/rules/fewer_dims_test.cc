// Operators over more dimensions than an NPU has, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Ran : testing::Ran {
  std::size_t most = 0;  // dimensions of a value
  std::int64_t transposes = 0;
};

Ran Apply(const std::string& graph, std::int64_t opset = 20) {
  RuleSet rules;
  rules.push_back(FewerDimsTranspose());
  rules.push_back(ReshapeTwice());
  rules.push_back(OneAxisLayerNorm());
  rules.push_back(CeilToPads());
  Ran ran{
      testing::ApplyRules("opset \"\" = " + std::to_string(opset) + "\n" + graph, rules, RuleClass::kOneLsb, 1e-5f)};
  for (const Node* node : ran.model.graph->nodes()) {
    ran.transposes += node->Is("Transpose") ? 1 : 0;
    ran.most = std::max(ran.most, node->output()->type.shape ? node->output()->type.shape->size() : 0);
  }
  return ran;
}

// Windows of an image, as Swin has them.
TEST(FewerDims, WindowsAreOneTransposeOfFour) {
  const Ran ran = Apply(R"(graph @g(%x: f32[1,4,6,5]) -> (%y) {
    %s = constant s64[6] [1, 2, 2, 2, 3, 5]
    %t = constant s64[3] [4, 6, 5]
    %a: f32[1,2,2,2,3,5] = Reshape(%x, %s)
    %b: f32[1,2,2,2,3,5] = Transpose(%a) {perm=[0, 1, 3, 2, 4, 5]}
    %y: f32[4,6,5] = Reshape(%b, %t)
  })");
  EXPECT_EQ(ran.transposes, 1);
  EXPECT_LE(ran.most, 4u);
  EXPECT_THAT(ran.text, HasSubstr("perm=[0, 2, 1, 3]"));
}

TEST(FewerDims, WhatDoesNotFitIsDoneInSeveral) {
  const Ran ran = Apply(R"(graph @g(%x: f32[2,3,2,3,2,3]) -> (%y) {
    %t = constant s64[2] [36, 6]
    %b: f32[3,2,3,2,3,2] = Transpose(%x)
    %y: f32[36,6] = Reshape(%b, %t)
  })");
  EXPECT_GT(ran.transposes, 1);
  EXPECT_LE(ran.most, 5u);
  const Ran named = Apply(R"(graph @g(%x: f32[2,3,2,3,2,3]) -> (%y) {
    %t = constant s64[2] [36, 6]
    %b: f32[2,2,2,3,3,3] = Transpose(%x) {perm=[4, 0, 2, 5, 3, 1]}
    %y: f32[36,6] = Reshape(%b, %t)
  })");
  EXPECT_LE(named.most, 5u);
}

TEST(FewerDims, OnesNeedNoTranspose) {
  const Ran ran = Apply(R"(graph @g(%x: f32[1,4,1,2,1,1]) -> (%y) {
    %t = constant s64[2] [4, 2]
    %b: f32[1,1,4,1,2,1] = Transpose(%x) {perm=[0, 2, 1, 4, 3, 5]}
    %y: f32[4,2] = Reshape(%b, %t)
  })");
  EXPECT_EQ(ran.transposes, 0);
}

TEST(FewerDims, FiveStay) {
  const std::string five = R"(graph @g(%x: f32[2,3,2,3,2]) -> (%y) {
    %t = constant s64[1] [72]
    %s = constant s64[5] [2, 3, 2, 3, 2]
    %a: f32[72] = Reshape(%x, %t)
    %b: f32[2,3,2,3,2] = Reshape(%a, %s)
    %y: f32[2,3,2,3,2] = Transpose(%b)
  })";
  EXPECT_EQ(Apply(five).text, Print(*Parse(five).graph));
}

TEST(FewerDims, NormalizationOverAnImage) {
  const Ran ran = Apply(R"(graph @g(%x: f32[2,2,3]) -> (%y) {
    %g = constant f32[2,3] [1, 2, 3, 4, 5, 6]
    %b = constant f32[2,3] [0.5, 0, 0, 1, 0, 0]
    %y: f32[2,2,3] = LayerNormalization(%x, %g, %b) {axis=-2, epsilon=0.01}
  })");
  EXPECT_THAT(ran.text, HasSubstr("f32[2,6] = LayerNormalization"));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[2,2,3]) -> (%y) {
    %g = constant f32[3] [1, 2, 3]
    %y: f32[2,2,3] = LayerNormalization(%x, %g) {axis=-2}
  })")
                  .refusal,
              HasSubstr("of another shape"));
}

// Of an image of 8 by 7 in windows of 3 by 3.
std::string Pool(const std::string& attributes, const std::string& out) {
  return "graph @g(%x: f32[1,2,8,7]) -> (%y) {\n%y: f32[1,2," + out +
         "] = AveragePool(%x) {ceil_mode=1, kernel_shape=[3, 3], strides=[2, 2]" + attributes + "}\n}";
}

TEST(CeilToPads, WindowsBeyondTheEndArePadding) {
  for (const std::int64_t opset : {17, 20}) {
    const Ran none = Apply(Pool(", count_include_pad=1", "4,3"), opset);
    EXPECT_THAT(none.text, HasSubstr("pads=[0, 0, 1, 0]"));
    EXPECT_THAT(none.text, HasSubstr("count_include_pad=0"));
    EXPECT_THAT(none.text, Not(HasSubstr("ceil_mode=1")));
    EXPECT_THAT(Apply(Pool(", pads=[1, 1, 1, 1]", "5,4"), opset).text, HasSubstr("pads=[1, 1, 2, 1]"));
  }
}

TEST(CeilToPads, OthersStay) {
  EXPECT_THAT(Apply(Pool(", pads=[1, 1, 1, 1], count_include_pad=1", "5,4")).refusal, HasSubstr("counts its padding"));
  EXPECT_THAT(Apply(Pool(", auto_pad=\"SAME_UPPER\"", "4,4")).refusal, HasSubstr("pads by itself"));
}

}  // namespace
}  // namespace octavo
