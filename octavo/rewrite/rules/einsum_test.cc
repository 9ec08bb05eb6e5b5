// Einsum before and after: the same numbers, and what is left alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/rules/rules.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Ran {
  std::string text, refusal;
};

Ran Apply(const std::string& equation, const std::string& a, const std::string& b, const std::string& y) {
  const std::string inputs = b.empty() ? "%a: f32" + a : "%a: f32" + a + ", %b: f32" + b;
  Model model = Parse("opset \"\" = 17\ngraph @g(" + inputs + ") -> (%y) {\n  %y: f32" + y + " = Einsum(%a" +
                      (b.empty() ? "" : ", %b") + ") {equation=\"" + equation + "\"}\n}");
  const Model before = Clone(model);
  RuleSet rules;
  rules.push_back(EinsumToMatMul());
  const RewriteResult result = RunRules(model, rules, RuleClass::kImproves);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << equation;
  Ran ran{Print(*model.graph), {}};
  for (const TraceEntry& entry : result.trace) {
    if (!entry.applied && ran.refusal.empty()) ran.refusal = entry.reason;
  }
  if (a.find('n') != std::string::npos) return ran;  // no sizes to run it with
  testing::ExpectSameNumbers(before, model, 1e-5f, equation);
  return ran;
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
