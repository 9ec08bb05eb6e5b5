// Functions that exporters write as several operators, before and after: Gelu and Softmax.
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
  rules.push_back(FuseGelu());
  rules.push_back(FuseSoftmax());
  return testing::ApplyRules(R"(opset "" = 20
graph @g(%x: f32[2,3,4]) -> (%y) {
  %half = constant f32[] 0.5
  %one = constant f32[] 1
  %two = constant f32[] 2
  %three = constant f32[] 3
  %root = constant f32[] 1.4142135
  %slope = constant f32[] 0.7978845608
  %cube = constant f32[] 0.044715
  %both = constant f32[] 0.035677408136
  %least = constant f32[] -inf
  %last = constant s64[1] [2]
  %column = constant s64[3] [2, 3, 1]
  %all = constant s64[3] [2, 3, 4]
)" + nodes + "}",
                             rules, RuleClass::kImproves, 1e-6F);
}

constexpr const char* kHalves = R"(
  %more: f32[2,3,4] = Add(%t, %one)
  %p: f32[2,3,4] = Mul(%x, %more)
  %y: f32[2,3,4] = Mul(%half, %p)
)";

TEST(FuseGelu, OfErf) {
  const Ran ran = Apply(std::string("%s: f32[2,3,4] = Div(%x, %root)\n%t: f32[2,3,4] = Erf(%s)\n") + kHalves);
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[2,3,4] = Gelu(%x)\n"));
  EXPECT_THAT(ran.text, Not(HasSubstr("Erf")));
}

// The cubic as the transformers of PyTorch, JAX and TensorFlow have it.
TEST(FuseGelu, OfTanhHoweverTheCubicIsWritten) {
  for (const char* cubic : {R"(
  %x3: f32[2,3,4] = Pow(%x, %three)
  %a: f32[2,3,4] = Mul(%x3, %cube)
  %b: f32[2,3,4] = Add(%x, %a)
  %s: f32[2,3,4] = Mul(%b, %slope)
)",
                            R"(
  %a: f32[2,3,4] = Mul(%cube, %x)
  %x2: f32[2,3,4] = Mul(%a, %x)
  %x3: f32[2,3,4] = Mul(%x, %x2)
  %b: f32[2,3,4] = Add(%x3, %x)
  %s: f32[2,3,4] = Mul(%slope, %b)
)",
                            R"(
  %x2: f32[2,3,4] = Pow(%x, %two)
  %a: f32[2,3,4] = Mul(%x2, %cube)
  %b: f32[2,3,4] = Add(%a, %one)
  %c: f32[2,3,4] = Mul(%x, %slope)
  %s: f32[2,3,4] = Mul(%c, %b)
)",
                            R"(
  %x2: f32[2,3,4] = Mul(%x, %x)
  %a: f32[2,3,4] = Mul(%x2, %both)
  %b: f32[2,3,4] = Add(%slope, %a)
  %s: f32[2,3,4] = Mul(%b, %x)
)"}) {
    const Ran ran = Apply(std::string(cubic) + "%t: f32[2,3,4] = Tanh(%s)\n" + kHalves);
    EXPECT_THAT(ran.text, HasSubstr("%y: f32[2,3,4] = Gelu(%x) {approximate=\"tanh\"}")) << cubic;
    EXPECT_THAT(ran.text, Not(HasSubstr("Tanh"))) << cubic;
  }
}

TEST(FuseGelu, TheFactorsInAnyOrder) {
  const std::string tanh = R"(
  %x3: f32[2,3,4] = Pow(%x, %three)
  %a: f32[2,3,4] = Mul(%x3, %cube)
  %b: f32[2,3,4] = Add(%x, %a)
  %s: f32[2,3,4] = Mul(%b, %slope)
  %t: f32[2,3,4] = Tanh(%s)
  %more: f32[2,3,4] = Add(%one, %t)
)";
  for (const char* product : {"%p: f32[2,3,4] = Mul(%half, %more)\n%y: f32[2,3,4] = Mul(%x, %p)\n",
                              "%p: f32[2,3,4] = Div(%more, %two)\n%y: f32[2,3,4] = Mul(%p, %x)\n",
                              "%h: f32[2,3,4] = Mul(%x, %half)\n%y: f32[2,3,4] = Mul(%h, %more)\n",
                              "%h: f32[2,3,4] = Div(%x, %two)\n%y: f32[2,3,4] = Mul(%more, %h)\n",
                              "%p: f32[2,3,4] = Mul(%more, %x)\n%y: f32[2,3,4] = Div(%p, %two)\n"}) {
    EXPECT_THAT(Apply(tanh + product).text, HasSubstr("%y: f32[2,3,4] = Gelu(%x)")) << product;
  }
}

TEST(FuseGelu, OtherFunctionsStay) {
  for (const char* other :
       {"%s: f32[2,3,4] = Mul(%x, %slope)\n%t: f32[2,3,4] = Tanh(%s)\n",  // no cube
        "%x3: f32[2,3,4] = Pow(%x, %three)\n%b: f32[2,3,4] = Add(%x, %x3)\n%s: f32[2,3,4] = Mul(%b, %slope)\n"
        "%t: f32[2,3,4] = Tanh(%s)\n",                                                                // another cube
        "%s: f32[2,3,4] = Mul(%x, %root)\n%t: f32[2,3,4] = Erf(%s)\n",                                // erf(sqrt(2) x)
        "%n: f32[2,3,4] = Relu(%x)\n%s: f32[2,3,4] = Div(%n, %root)\n%t: f32[2,3,4] = Erf(%s)\n"}) {  // of another
    const Ran ran = Apply(std::string(other) + kHalves);
    EXPECT_THAT(ran.text, Not(HasSubstr("Gelu"))) << other;
    EXPECT_THAT(ran.refusal, HasSubstr("argument")) << other;
  }
}

TEST(FuseSoftmax, WithItsMaximumAndWithout) {
  const Ran plain = Apply(R"(
  %e: f32[2,3,4] = Exp(%x)
  %sum: f32[2,3,1] = ReduceSum(%e, %last)
  %y: f32[2,3,4] = Div(%e, %sum)
)");
  EXPECT_THAT(plain.text, HasSubstr("%y: f32[2,3,4] = Softmax(%x) {axis=2}"));
  // As JAX writes it.
  const Ran jax = Apply(R"(
  %m: f32[2,3] = ReduceMax(%x, %last) {keepdims=0}
  %bound: f32[2,3] = Max(%least, %m)
  %mc: f32[2,3,1] = Reshape(%bound, %column)
  %ma: f32[2,3,4] = Expand(%mc, %all)
  %d: f32[2,3,4] = Sub(%x, %ma)
  %e: f32[2,3,4] = Exp(%d)
  %sum: f32[2,3] = ReduceSum(%e, %last) {keepdims=0}
  %sc: f32[2,3,1] = Unsqueeze(%sum, %last)
  %y: f32[2,3,4] = Div(%e, %sc)
)");
  EXPECT_THAT(jax.text, HasSubstr("%y: f32[2,3,4] = Softmax(%x) {axis=2}"));
  EXPECT_THAT(jax.text, Not(HasSubstr("ReduceMax")));
}

TEST(FuseSoftmax, OtherQuotientsStay) {
  for (const auto& [nodes, why] :
       {std::pair{"%e: f32[2,3,4] = Exp(%x)\n%axes = constant s64[2] [1, 2]\n%sum: f32[2,1,1] = ReduceSum(%e, %axes)\n"
                  "%y: f32[2,3,4] = Div(%e, %sum)\n",
                  "over one axis"},
        std::pair{"%e: f32[2,3,4] = Exp(%x)\n%sum: f32[2,3,1] = ReduceMax(%e, %last)\n%y: f32[2,3,4] = Div(%e, %sum)\n",
                  "over one axis"},
        std::pair{"%e: f32[2,3,4] = Exp(%x)\n%sum: f32[2,3,1] = ReduceSum(%e, %last)\n%q: f32[2,3,4] = Div(%e, %sum)\n"
                  "%y: f32[2,3,4] = Add(%q, %e)\n",
                  "something else"}}) {
    const Ran ran = Apply(nodes);
    EXPECT_THAT(ran.text, Not(HasSubstr("Softmax"))) << nodes;
    EXPECT_THAT(ran.refusal, HasSubstr(why)) << nodes;
  }
}

// A sum of another axis with the same dimensions is another function.
TEST(FuseSoftmax, OfSquareTensorsTheAxisCounts) {
  RuleSet rules;
  rules.push_back(FuseSoftmax());
  const Ran ran = testing::ApplyRules(R"(opset "" = 20
graph @g(%x: f32[3,3]) -> (%y) {
  %first = constant s64[1] [0]
  %column = constant s64[2] [3, 1]
  %e: f32[3,3] = Exp(%x)
  %sum: f32[3] = ReduceSum(%e, %first) {keepdims=0}
  %c: f32[3,1] = Reshape(%sum, %column)
  %y: f32[3,3] = Div(%e, %c)
})",
                                      rules, RuleClass::kImproves, 1e-6F);
  EXPECT_THAT(ran.text, Not(HasSubstr("Softmax")));
}

}  // namespace
}  // namespace octavo
