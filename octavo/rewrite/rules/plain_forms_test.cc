// Arithmetic in the form that a device takes, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

testing::Ran Apply(const std::string& body) {
  RuleSet rules;
  rules.push_back(FewOperands());
  rules.push_back(FloatExponent());
  rules.push_back(PlainGemm());
  rules.push_back(FlatMatMul());
  return testing::ApplyRules("opset \"\" = 20\ngraph @g(%x: f32[2,3], %z: f32[2,3]) -> (%y) {\n" + body + "}", rules,
                             RuleClass::kImproves, 1e-5f);
}

TEST(PlainForms, AMeanIsASumTimesAShare) {
  const testing::Ran ran = Apply("%y: f32[2,3] = Mean(%x, %z, %x)\n");
  EXPECT_THAT(ran.text, AllOf(HasSubstr("Add"), HasSubstr("Mul"), Not(HasSubstr("Mean"))));
  EXPECT_THAT(Apply("%y: f32[2,3] = Sum(%x, %z, %x)\n").text, HasSubstr("Sum"));
}

TEST(PlainForms, OneOperandIsItself) {
  for (const std::string op : {"Mean", "Sum", "Max", "Min"}) {
    const testing::Ran ran =
        Apply("%a: f32[2,3] = Neg(%x)\n%b: f32[2,3] = " + op + "(%a)\n%y: f32[2,3] = Add(%b, %z)\n");
    EXPECT_THAT(ran.text, Not(HasSubstr(op + "("))) << op;
  }
}

TEST(PlainForms, ExponentsAreFloat) {
  EXPECT_THAT(Apply("%e = constant s64[] 2\n%y: f32[2,3] = Pow(%x, %e)\n").text, Not(HasSubstr("s64")));
  EXPECT_THAT(Apply("%e = constant s32[1] [3]\n%y: f32[2,3] = Pow(%x, %e)\n").text, Not(HasSubstr("s32")));
}

TEST(PlainForms, FactorsOfAProductGoIntoItsConstants) {
  const std::string w = "%w = constant f32[2,3] [1, 2, -3, 0.5, 0.25, 2]\n";
  for (const char* bias : {"[2] [1, -2]", "[1,2] [1, -2]", "[] 0.5", "[1] [0.5]", "[1,1] [0.5]"}) {
    const testing::Ran ran =
        Apply(w + "%b = constant f32" + bias + "\n%y: f32[2,2] = Gemm(%x, %w, %b) {transB=1, alpha=0.5, beta=2.0}\n");
    EXPECT_THAT(ran.text, AllOf(HasSubstr("alpha=1"), HasSubstr("beta=1"))) << bias;
  }
  EXPECT_THAT(Apply(w + "%b = constant f32[2,1] [1, 2]\n%y: f32[2,2] = Gemm(%x, %w, %b) {transB=1}\n").refusal,
              HasSubstr("one number a channel"));
  EXPECT_THAT(Apply(w + "%y: f32[2,2] = Gemm(%x, %w) {transB=1, alpha=3.0}\n").text, HasSubstr("alpha=1"));
}

TEST(PlainForms, ProductsOfRows) {
  EXPECT_THAT(Apply("%w = constant f32[3] [1, 2, -3]\n%y: f32[2] = MatMul(%x, %w)\n").text,
              HasSubstr("f32[2,1] = MatMul"));
  EXPECT_THAT(Apply("%s = constant s64[5] [1, 2, 1, 1, 3]\n%w = constant f32[3,2] [1, 2, -3, 0.5, 0.25, 2]\n"
                    "%r: f32[1,2,1,1,3] = Reshape(%x, %s)\n%y: f32[1,2,1,1,2] = MatMul(%r, %w)\n")
                  .text,
              HasSubstr("f32[2,2] = MatMul"));
  EXPECT_THAT(Apply("%w = constant f32[3,1] [1, 2, -3]\n%y: f32[2,1] = MatMul(%x, %w)\n").text,
              Not(HasSubstr("Reshape")));
}

}  // namespace
}  // namespace octavo
