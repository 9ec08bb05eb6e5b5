// Elementwise operators and normalizations over many dimensions, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::Ran;

Ran Apply(const std::string& graph, float tolerance = 0) {
  RuleSet rules;
  rules.push_back(FewerDimsElementwise());
  rules.push_back(FewerDimsNorm());
  rules.push_back(FewerDimsProduct());
  rules.push_back(ReshapeTwice());
  return testing::ApplyRules("opset \"\" = 20\n" + graph, rules, RuleClass::kOneLsb, tolerance);
}

TEST(FewerDimsOperators, OneOperandOfFive) {
  const Ran ran = Apply(R"(graph @g(%x: f32[2,3,4,5,6]) -> (%y) { %y: f32[2,3,4,5,6] = Elu(%x) {alpha=0.5} })");
  EXPECT_THAT(ran.text, HasSubstr("f32[6,4,5,6] = Elu"));
  EXPECT_THAT(ran.text, HasSubstr("alpha=0.5"));
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[2,3,4,5,6] = Reshape"));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[2,3,4,5,6]) -> (%y) { %y: f32[2,3,4,5,6] = Relu(%x) })").text,
              Not(HasSubstr("Reshape")));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[1,1,1,1,1]) -> (%y) { %y: f32[1,1,1,1,1] = Tanh(%x) })").text,
              HasSubstr("f32[1,1,1,1] = Tanh"));
}

TEST(FewerDimsOperators, SeveralBehindOneAnotherAreReshapedOnce) {
  const Ran ran = Apply(R"(graph @g(%x: f32[2,3,4,5,6]) -> (%y) {
    %a: f32[2,3,4,5,6] = Tanh(%x)
    %b: f32[2,3,4,5,6] = Sin(%a)
    %y: f32[2,3,4,5,6] = Neg(%b)
  })");
  std::int64_t reshapes = 0;
  for (const Node* node : ran.model.graph->nodes()) reshapes += node->Is("Reshape") ? 1 : 0;
  EXPECT_EQ(reshapes, 2) << ran.text;
}

// Neighbours become one where each operand goes along both or none.
TEST(FewerDimsOperators, OperandsThatStretch) {
  const Ran ran = Apply(R"(graph @g(%x: f32[1,2,3,2,2,3]) -> (%y) {
    %b = constant f32[2,1,1,2,3] [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    %y: f32[1,2,3,2,2,3] = Add(%x, %b)
  })");
  EXPECT_THAT(ran.text, HasSubstr("f32[2,3,2,2,3] = Add"));
  const Ran scale = Apply(R"(graph @g(%x: f32[2,2,3,2,2,3]) -> (%y) {
    %b = constant f32[3,1,1,1] [1, 2, 3]
    %c = constant f32[] 2
    %m: f32[2,2,3,2,2,3] = Mul(%x, %b)
    %y: f32[2,2,3,2,2,3] = Sub(%c, %m)
  })");
  EXPECT_THAT(scale.text, HasSubstr("f32[4,3,2,2,3] = Mul"));
  EXPECT_THAT(scale.text, HasSubstr("f32[4,3,2,2,3] = Sub(%c"));
  const Ran mask = Apply(R"(graph @g(%x: f32[2,1,3,2,2,3], %m: bool[2,1,1,1,2,3]) -> (%y) {
    %c = constant f32[1,1,1,1,1,1] [-7]
    %y: f32[2,1,3,2,2,3] = Where(%m, %x, %c)
  })");
  EXPECT_THAT(mask.text, HasSubstr("f32[2,3,2,2,3] = Where"));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[2,2,2,2,2], %s: f32[2,1,1,1]) -> (%y) {
    %y: f32[2,2,2,2,2] = PRelu(%x, %s)
  })")
                  .text,
              HasSubstr("f32[2,2,4,2] = PRelu"));
}

TEST(FewerDimsOperators, WhatGoesAlongEverySecondDimensionStays) {
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[2,2,2,2,2,2], %b: f32[2,1,2,1,2,1]) -> (%y) {
    %y: f32[2,2,2,2,2,2] = Add(%x, %b)
  })")
                  .refusal,
              HasSubstr("cannot be made one"));
  EXPECT_THAT(Apply("graph @g(%x: f32[?,2,2,2,2,2]) -> (%y) { %y: f32[2,2,2,2,2,2] = Tanh(%x) }", -1).refusal,
              HasSubstr("not known"));
}

TEST(FewerDimsOperators, NormalizationsOfAVolume) {
  for (const std::string op : {"InstanceNormalization", "GroupNormalization"}) {
    const bool groups = op == "GroupNormalization";
    const Ran ran = Apply(
        "graph @g(%x: f32[2,2,3,4,5]) -> (%y) {\n  %s = constant f32[2] [1, 2]\n  %b = constant f32[2] "
        "[0.5, -1]\n  %y: f32[2,2,3,4,5] = " +
            op + "(%x, %s, %b) {epsilon=0.01" + (groups ? ", num_groups=2" : "") + "}\n}",
        1e-5f);
    EXPECT_THAT(ran.text, HasSubstr("f32[2,2,12,5] = " + op));
    EXPECT_THAT(ran.text, HasSubstr("epsilon=0.01"));
  }
  const Ran layer = Apply(R"(graph @g(%x: f32[2,2,3,2,3]) -> (%y) {
    %s = constant f32[3] [1, 2, 3]
    %y: f32[2,2,3,2,3] = LayerNormalization(%x, %s) {axis=4}
  })",
                          1e-5f);
  EXPECT_THAT(layer.text, HasSubstr("f32[4,3,2,3] = LayerNormalization"));
  EXPECT_THAT(layer.text, HasSubstr("axis=-1"));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[2,2,3,2,3]) -> (%y) { %y: f32[2,2,3,2,3] = LpNormalization(%x) {axis=1} })", -1)
                  .refusal,
              HasSubstr("another axis"));
}

TEST(FewerDimsOperators, SoftmaxOfSix) {
  EXPECT_THAT(
      Apply("graph @g(%x: f32[2,2,3,1,2,3]) -> (%y) { %y: f32[2,2,3,1,2,3] = Softmax(%x) {axis=5} }", 1e-6f).text,
      HasSubstr("f32[12,1,2,3] = Softmax"));
  EXPECT_THAT(Apply("graph @g(%x: f32[2,2,3,2,3]) -> (%y) { %y: f32[2,2,3,2,3] = LogSoftmax(%x) }", 1e-5f).text,
              HasSubstr("f32[4,3,2,3] = LogSoftmax"));
  EXPECT_THAT(Apply("graph @g(%x: f32[2,2,3,2,3]) -> (%y) { %y: f32[2,2,3,2,3] = Softmax(%x) }", 1e-6f).text,
              Not(HasSubstr("Reshape")));
}

TEST(FewerDimsOperators, ProductsOfTwoOfSix) {
  EXPECT_THAT(Apply(R"(graph @g(%a: f32[2,2,1,3,2,3], %b: f32[2,2,1,3,3,4]) -> (%y) {
    %y: f32[2,2,1,3,2,4] = MatMul(%a, %b)
  })",
                    1e-5f)
                  .text,
              HasSubstr("f32[4,1,3,2,4] = MatMul"));
  EXPECT_THAT(Apply(R"(graph @g(%a: f32[2,2,1,3,2,3], %b: f32[2,1,1,3,3,4]) -> (%y) {
    %y: f32[2,2,1,3,2,4] = MatMul(%a, %b)
  })")
                  .refusal,
              HasSubstr("repeated"));
}

}  // namespace
}  // namespace octavo
