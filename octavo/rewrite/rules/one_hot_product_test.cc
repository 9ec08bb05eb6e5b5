// One-hot rows times a matrix, before and after: the same numbers, for indices out of range too.
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

// The indices are computed from %x, which runs draw from [-2, 2]: whole numbers from -4 to 4.
Ran Apply(const std::string& index_dims, const std::string& rest) {
  RuleSet rules;
  rules.push_back(OneHotProduct());
  return testing::ApplyRules("opset \"\" = 20\ngraph @g(%x: f32[" + index_dims + "]) -> (%y) {\n" + R"(
    %two = constant f32[] 2
    %w = constant f32[3,2] [0.5, -1, 2, 0.25, -0.75, 3]
    %b = constant f32[2] [10, -20]
    %up = constant s32[1,3] [0, 1, 2]
    %scaled: f32[)" + index_dims +
                                 "] = Mul(%x, %two)\n" + rest + "}",
                             rules, RuleClass::kOneLsb, 0);
}

TEST(OneHotProduct, ComparedWithPlacesAndCast) {
  const Ran ran = Apply("2,5,1", R"(
    %i: s32[2,5,1] = Cast(%scaled) {to=6}
    %is: bool[2,5,3] = Equal(%i, %up)
    %rows: f32[2,5,3] = Cast(%is) {to=1}
    %p: f32[2,5,2] = MatMul(%rows, %w)
    %y: f32[2,5,2] = Add(%p, %b)
  )");
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[2,5,2] = Gather("));
  EXPECT_THAT(ran.text, HasSubstr("constant f32[5,2] [10, -20, 10.5, -21, 12, -19.75, 9.25, -17, 10, -20]"));
  for (const char* gone : {"MatMul", "Equal", "Cast(%is"}) EXPECT_THAT(ran.text, Not(HasSubstr(gone)));
}

TEST(OneHotProduct, ExpandedFirstAndChosenByWhere) {
  const Ran ran = Apply("4,1", R"(
    %i: s64[4,1] = Cast(%scaled) {to=7}
    %dims = constant s64[2] [4, 3]
    %wide: s64[4,3] = Expand(%i, %dims)
    %places = constant s64[3] [0, 1, 2]
    %is: bool[4,3] = Equal(%places, %wide)
    %one = constant f32[] 1
    %zero = constant f32[] 0
    %rows: f32[4,3] = Where(%is, %one, %zero)
    %y: f32[4,2] = Gemm(%rows, %w, %b)
  )");
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[4,2] = Gather("));
  EXPECT_THAT(ran.text, Not(HasSubstr("Gemm")));
}

// ONNX's OneHot counts negative indices from the end.
TEST(OneHotProduct, OfOneHot) {
  const Ran ran = Apply("7", R"(
    %i: s64[7] = Cast(%scaled) {to=7}
    %depth = constant s64[] 3
    %values = constant s64[2] [0, 1]
    %whole: s64[7,3] = OneHot(%i, %depth, %values)
    %rows: f32[7,3] = Cast(%whole) {to=1}
    %t = constant f32[2,3] [0.5, 2, -0.75, -1, 0.25, 3]
    %y: f32[7,2] = Gemm(%rows, %t) {transB=1}
  )");
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[7,2] = Gather("));
  EXPECT_THAT(ran.text, HasSubstr("constant f32[8,2]"));
}

TEST(OneHotProduct, WhatIsNoneStays) {
  struct Case {
    const char *places, *matrix;
  };
  for (const Case& c : {Case{"s32[1,3] [0, 2, 1]", "f32[3,1] [1, 2, 3]"},       // in another order
                        Case{"s32[1,3] [1, 2, 3]", "f32[3,1] [1, 2, 3]"},       // from one on
                        Case{"s32[5,1] [0, 1, 2, 3, 4]", "f32[1,1] [1]"},       // along another axis
                        Case{"s32[1,3] [0, 1, 2]", "f32[3,1] [1, inf, 3]"}}) {  // 0 times infinity is NaN
    const std::string width = std::string(c.matrix).substr(4, 1);
    RuleSet rules;
    rules.push_back(OneHotProduct());
    const Ran ran = testing::ApplyRules("opset \"\" = 20\ngraph @g(%i: s32[5,1]) -> (%y) {\n  %up = constant " +
                                            std::string(c.places) + "\n  %w = constant " + c.matrix +
                                            "\n  %is: bool[5," + width + "] = Equal(%i, %up)\n  %rows: f32[5," + width +
                                            "] = Cast(%is) {to=1}\n  %y: f32[5,1] = MatMul(%rows, %w)\n}",
                                        rules, RuleClass::kOneLsb, -1);
    EXPECT_THAT(ran.text, HasSubstr("MatMul")) << c.places << ' ' << c.matrix;
  }
}

}  // namespace
}  // namespace octavo
