// A Pad at the end of the last axis, before and after.
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
  rules.push_back(PadRight());
  return testing::ApplyRules("opset \"\" = 20\n" + graph, rules, RuleClass::kExact, tolerance);
}

std::string Padded(const std::string& pads, const std::string& out, const std::string& mode = "constant") {
  return "graph @g(%x: f32[1,2,4,5]) -> (%y) {\n  %p = constant s64[8] [" + pads +
         "]\n  %v = constant f32[] 3\n  %y: f32[" + out + "] = Pad(%x, %p" + (mode == "constant" ? ", %v" : "") +
         ") {mode=\"" + mode + "\"}\n}";
}

TEST(PadRight, HasAColumnAtTheLeftThatIsNotTaken) {
  for (const std::string mode : {"constant", "edge"}) {
    const Ran ran = Apply(Padded("0, 0, 0, 0, 0, 0, 1, 2", "1,2,5,7", mode));
    EXPECT_THAT(ran.text, HasSubstr("[0, 0, 0, 1, 0, 0, 1, 2]")) << mode;
    EXPECT_THAT(ran.text, HasSubstr("%y: f32[1,2,5,7] = Gather(")) << mode;
    EXPECT_THAT(Apply(Padded("0, 0, 2, 0, 0, 1, 0, 1", "1,3,6,6", mode)).text, HasSubstr("Gather(")) << mode;
    EXPECT_THAT(Apply(Padded("0, 0, 0, 0, 0, 0, 0, 1", "1,2,4,6", mode)).text, HasSubstr("Gather(")) << mode;
    EXPECT_THAT(Apply(Padded("0, 0, 1, 0, 0, 0, 0, 1", "1,2,5,6", mode)).text, HasSubstr("Gather(")) << mode;
  }
}

TEST(PadRight, OthersStay) {
  for (const auto& [pads, out] :
       {std::pair{"0, 0, 1, 1, 0, 0, 1, 1", "1,2,6,7"}, std::pair{"0, 0, 0, 1, 0, 0, 1, 0", "1,2,5,6"},
        std::pair{"0, 0, 1, 0, 0, 0, 1, 0", "1,2,6,5"}}) {
    EXPECT_THAT(Apply(Padded(pads, out)).text, Not(HasSubstr("Gather("))) << pads;
  }
  EXPECT_THAT(Apply(Padded("0, 0, 0, 0, 0, 0, 1, 1", "1,2,5,6", "reflect")).text, Not(HasSubstr("Gather(")));
  EXPECT_THAT(Apply(Padded("0, 0, -1, 0, 0, 0, 1, 1", "1,2,4,6")).refusal, HasSubstr("takes off"));
  EXPECT_THAT(Apply("graph @g(%x: f32[2,3], %p: s64[4]) -> (%y) { %y: f32[?,?] = Pad(%x, %p) }", -1).refusal,
              HasSubstr("computed"));
}

// The convolution's own zeros are those.
std::string Conv(const std::string& value, const std::string& attributes, const std::string& out) {
  return "graph @g(%x: f32[1,1,4,5]) -> (%y) {\n  %p = constant s64[8] [0, 0, 0, 0, 0, 0, 1, 1]\n  %v = constant "
         "f32[] " +
         value + "\n  %w = constant f32[1,1,2,2] [1, 2, 3, 4]\n  %a: f32[1,1,5,6] = Pad(%x, %p, %v)\n  %y: f32[1,1," +
         out + "] = Conv(%a, %w) {kernel_shape=[2, 2]" + attributes + "}\n}";
}

TEST(PadRight, AConvolutionPadsByItself) {
  const Ran ran = Apply(Conv("0", ", strides=[2, 2]", "2,3"), 1e-5f);
  EXPECT_THAT(ran.text, HasSubstr("Conv(%x"));
  EXPECT_THAT(ran.text, HasSubstr("pads=[0, 0, 1, 1]"));
  EXPECT_THAT(ran.text, Not(HasSubstr("Pad(")));
  EXPECT_THAT(Apply(Conv("0", ", pads=[1, 0, 0, 1]", "5,6"), 1e-5f).text, HasSubstr("pads=[1, 0, 1, 2]"));
  EXPECT_THAT(Apply(Conv("0", ", auto_pad=\"VALID\"", "4,5"), 1e-5f).text, HasSubstr("pads=[0, 0, 1, 1]"));
}

TEST(PadRight, AConvolutionThatCannotLeavesIt) {
  for (const auto& [value, attributes, out] :
       {std::tuple{"1", "", "4,5"}, std::tuple{"0", ", auto_pad=\"SAME_UPPER\"", "5,6"}}) {
    const Ran ran = Apply(Conv(value, attributes, out), 1e-5f);
    EXPECT_THAT(ran.text, HasSubstr("Gather(")) << attributes;
    EXPECT_THAT(ran.text, HasSubstr("Pad(")) << attributes;
  }
}

}  // namespace
}  // namespace octavo
