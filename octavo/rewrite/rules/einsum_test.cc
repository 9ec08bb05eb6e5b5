// Einsum before and after: the same numbers, and what is left alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::Ran;

Ran Apply(const std::string& equation, const std::string& a, const std::string& b, const std::string& y) {
  const std::string inputs = b.empty() ? "%a: f32" + a : "%a: f32" + a + ", %b: f32" + b;
  RuleSet rules;
  rules.push_back(EinsumToMatMul());
  const bool has_sizes = a.find('n') == std::string::npos;
  return testing::ApplyRules("opset \"\" = 17\ngraph @g(" + inputs + ") -> (%y) {\n  %y: f32" + y + " = Einsum(%a" +
                                 (b.empty() ? "" : ", %b") + ") {equation=\"" + equation + "\"}\n}",
                             rules, RuleClass::kImproves, has_sizes ? 1e-5f : -1);
}

TEST(Einsum, ProductsOfAttention) {
  const Ran scores = Apply("bhid,bhjd->bhij", "[2,3,4,5]", "[2,3,6,5]", "[2,3,4,6]");
  EXPECT_THAT(scores.text, HasSubstr("Transpose(%b) {perm=[0, 1, 3, 2]}"));
  EXPECT_THAT(scores.text, HasSubstr("%y: f32[2,3,4,6] = MatMul(%a, "));
  const Ran values = Apply("b h i j, b j h d -> b i h d", "[2,3,4,6]", "[2,6,3,5]", "[2,4,3,5]");
  EXPECT_THAT(values.text, HasSubstr("MatMul"));
  EXPECT_THAT(values.text, Not(HasSubstr("Reshape")));
  // Known by their letters alone.
  EXPECT_THAT(Apply("nij,njk->nik", "[n,4,5]", "[n,5,6]", "[n,4,6]").text, HasSubstr("MatMul(%a, %b)"));
}

TEST(Einsum, GroupsOfDimensionsAreReshaped) {
  for (const auto& [equation, a, b, y] :
       {std::array{"bhwc,hkc->bhwk", "[2,3,4,5]", "[3,6,5]", "[2,3,4,6]"},
        std::array{"abcd,cdef->abef", "[2,3,4,5]", "[4,5,2,3]", "[2,3,2,3]"},
        std::array{"bi,bi->b", "[3,4]", "[3,4]", "[3]"}, std::array{"ij,j->i", "[3,4]", "[4]", "[3]"},
        std::array{"i,ij->j", "[3]", "[3,4]", "[4]"}, std::array{"ij,jk->ki", "[3,4]", "[4,5]", "[5,3]"}}) {
    EXPECT_THAT(Apply(equation, a, b, y).text, Not(HasSubstr("Einsum"))) << equation;
  }
}

TEST(Einsum, OneTensorIsTransposed) {
  EXPECT_THAT(Apply("abc->cab", "[2,3,4]", "", "[4,2,3]").text, HasSubstr("Transpose(%a) {perm=[2, 0, 1]}"));
  EXPECT_THAT(Apply("abc->ab", "[2,3,4]", "", "[2,3]").refusal, HasSubstr("sums up"));
}

TEST(Einsum, LeavesOthers) {
  EXPECT_THAT(Apply("i,j->ij", "[3]", "[4]", "[3,4]").refusal, HasSubstr("nothing is summed up"));
  EXPECT_THAT(Apply("ijk,jl->il", "[3,4,2]", "[4,5]", "[3,5]").refusal, HasSubstr("of one input"));
  EXPECT_THAT(Apply("ij,jk", "[3,4]", "[4,5]", "[3,5]").refusal, HasSubstr("no arrow"));
  EXPECT_THAT(Apply("bij,bjk->bik", "[1,3,4]", "[2,4,5]", "[2,3,5]").refusal, HasSubstr("two sizes"));
  EXPECT_THAT(Apply("nhij,jk->nhik", "[n,2,4,5]", "[5,6]", "[n,2,4,6]").refusal, HasSubstr("not all are known"));
}

}  // namespace
}  // namespace octavo
