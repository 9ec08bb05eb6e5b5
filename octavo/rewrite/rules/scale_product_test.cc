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

Ran Apply(const std::string& nodes) {
  RuleSet rules;
  rules.push_back(ScaleOfProduct());
  return testing::ApplyRules(R"(opset "" = 20
graph @g(%x: f32[4,3], %z: f32[2,2,4]) -> (%y) {
  %w = constant f32[3,4] [1, 2, 3, 4, -1, -2, -3, -4, 0.5, 0.25, 1, 2]
  %b = constant f32[4] [1, -1, 2, 0.5]
  %dims = constant s64[3] [4, 2, 2]
  %s = constant f32[] 0.25
  %t = constant f32[1] [8]
  %row = constant f32[4] [2, 4, 1, 3]
  %half = constant s64[3] [2, 2, 4]
  %none = constant f32[] 0
  %zero = constant s64[1] [0]
)" + nodes + "}",
                             rules, RuleClass::kImproves, 1e-6F);
}

constexpr const char* kQuery = R"(
  %g: f32[4,4] = Gemm(%x, %w, %b)
  %r: f32[4,2,2] = Reshape(%g, %dims)
  %q: f32[2,4,2] = Transpose(%r) {perm = [1, 0, 2]}
)";

TEST(ScaleOfProduct, GoesIntoTheLayerOfAFactor) {
  const Ran ran = Apply(std::string(kQuery) + "%p: f32[2,4,4] = MatMul(%q, %z)\n%y: f32[2,4,4] = Mul(%s, %p)\n");
  EXPECT_THAT(ran.text, Not(HasSubstr(" = Mul(")));
  EXPECT_THAT(ran.text, HasSubstr("[0.25, -0.25, 0.5, 0.125]"));
}

TEST(ScaleOfProduct, DivAndTheSecondFactor) {
  const Ran ran = Apply(
      "%o: f32[4,4] = MatMul(%x, %w)\n%u: f32[2,2,4] = Reshape(%o, %half)\n%k: f32[2,4,2] = Transpose(%u) "
      "{perm = [0, 2, 1]}\n%p: f32[2,2,2] = MatMul(%z, %k)\n%y: f32[2,2,2] = Div(%p, %t)\n");
  EXPECT_THAT(ran.text, Not(HasSubstr(" = Div(")));
}

TEST(ScaleOfProduct, AConstantTakesIt) {
  const Ran ran =
      Apply("%c = constant f32[1,1,2] [4, 8]\n%p: f32[2,1,4] = MatMul(%c, %z)\n%y: f32[2,1,4] = Mul(%p, %s)\n");
  EXPECT_THAT(ran.text, HasSubstr("[1, 2]"));
  EXPECT_THAT(ran.text, Not(HasSubstr(" = Mul(")));
}

TEST(ScaleOfProduct, AScaleThatAddsDimensionsStays) {
  EXPECT_EQ(Apply("%v: f32[3] = ReduceSum(%x, %zero) {keepdims=0}\n%c = constant f32[3] [4, 8, 2]\n"
                  "%p: f32[] = MatMul(%v, %c)\n%y: f32[1] = Mul(%p, %t)\n")
                .refusal,
            "the scale adds dimensions");
}

TEST(ScaleOfProduct, OthersStay) {
  const std::string product = std::string(kQuery) + "%p: f32[2,4,4] = MatMul(%q, %z)\n";
  EXPECT_EQ(Apply(product + "%y: f32[2,4,4] = Mul(%p, %row)\n").refusal, "");
  EXPECT_EQ(Apply(product + "%y: f32[2,4,4] = Mul(%p, %none)\n").refusal, "the scale is 0 or not finite");
  EXPECT_EQ(Apply(product + "%h: f32[2,4,4] = Mul(%p, %s)\n%y: f32[2,4,4] = Add(%h, %p)\n").refusal,
            "others read the product");
  EXPECT_EQ(Apply(std::string(kQuery) +
                  "%e: f32[2,4,2] = Exp(%q)\n%d: f32[2,4,2] = Neg(%q)\n%f: f32[2,4,2] = Add(%e, %d)\n"
                  "%p: f32[2,4,4] = MatMul(%d, %z)\n%h: f32[2,4,4] = Mul(%p, %s)\n%v: f32[2,4,4] = MatMul(%f, %z)\n"
                  "%y: f32[2,4,4] = Add(%h, %v)\n")
                .refusal,
            "neither factor is a layer's alone");
}

}  // namespace
}  // namespace octavo
