// Data movement at known places, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

testing::Ran Apply(const std::string& node, const std::string& out, const std::string& constants = "",
                   const std::string& in = "[1,2,4,6]") {
  RuleSet rules;
  rules.push_back(TriluToWhere());
  rules.push_back(PlainPad());
  return testing::ApplyRules(
      "opset \"\" = 20\ngraph @g(%x: f32" + in + ") -> (%y) {\n" + constants + "%y: f32" + out + " = " + node + "\n}",
      rules, RuleClass::kExact, 0);
}

TEST(KnownMoves, ATriangleIsAMask) {
  for (const char* attributes : {"", " {upper=0}"}) {
    for (const char* k : {"0", "2", "-1", "-9", "1000000000000"}) {
      const testing::Ran ran =
          Apply("Trilu(%x, %k)" + std::string(attributes), "[1,2,4,6]", "%k = constant s64[] " + std::string(k) + "\n");
      EXPECT_THAT(ran.text, AllOf(HasSubstr("Where"), Not(HasSubstr("Trilu")))) << k << attributes;
    }
  }
  EXPECT_THAT(Apply("Trilu(%x)", "[1,2,4,6]").text, HasSubstr("Where"));
}

TEST(KnownMoves, PadsOfSomeAxes) {
  const testing::Ran ran =
      Apply("Pad(%x, %p, %v, %a)", "[1,2,6,9]",
            "%p = constant s64[4] [1, 2, 1, 1]\n%v = constant f32[] 1.5\n%a = constant s64[2] [2, -1]\n");
  EXPECT_THAT(ran.text, HasSubstr("[0, 0, 1, 2, 0, 0, 1, 1]"));
  EXPECT_THAT(Apply("Pad(%x, %p, _, %a) {mode=\"reflect\"}", "[1,2,4,9]",
                    "%p = constant s64[2] [2, 1]\n%a = constant s64[1] [3]\n")
                  .text,
              HasSubstr("mode=\"reflect\""));
}

TEST(KnownMoves, NegativePadsTakeOff) {
  const testing::Ran ran = Apply("Pad(%x, %p)", "[1,2,4,5]", "%p = constant s64[8] [0, 0, -1, 1, 0, 0, 1, -2]\n");
  EXPECT_THAT(ran.text, AllOf(HasSubstr("Slice"), HasSubstr("Pad")));
  EXPECT_THAT(
      Apply("Pad(%x, %p) {mode=\"reflect\"}", "[1,2,4,6]", "%p = constant s64[8] [0, 0, -1, 0, 0, 0, 1, 0]\n").refusal,
      HasSubstr("takes off and repeats"));
}

TEST(KnownMoves, WrappedPadsAreParts) {
  const testing::Ran ran =
      Apply("Pad(%x, %p) {mode=\"wrap\"}", "[1,2,7,8]", "%p = constant s64[8] [0, 0, 1, 2, 0, 0, 2, 0]\n");
  EXPECT_THAT(ran.text, AllOf(HasSubstr("Concat"), Not(HasSubstr("Pad("))));
  EXPECT_THAT(
      Apply("Pad(%x, %p) {mode=\"wrap\"}", "[1,2,9,6]", "%p = constant s64[8] [0, 0, 5, 0, 0, 0, 0, 0]\n").refusal,
      HasSubstr("more than once"));
  const testing::Ran off = Apply("Pad(%x, %p)", "[1,2,4,7]", "%p = constant s64[8] [0, 0, 0, 0, 0, 0, 0, 1]\n");
  EXPECT_THAT(off.text, HasSubstr("Pad("));
}

}  // namespace
}  // namespace octavo
