// Col2Im, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::Ran;

RuleSet Rules() {
  RuleSet rules;
  rules.push_back(Col2ImToTiles());
  return rules;
}

// `in`: batch, channels and taps, blocks; `image`, `block`: two numbers.
std::string Blocks(const std::string& in, const std::string& image, const std::string& block,
                   const std::string& attributes, const std::string& out) {
  return "opset \"\" = 20\ngraph @g(%x: f32[" + in + "]) -> (%y) {\n  %i = constant s64[2] [" + image +
         "]\n  %b = constant s64[2] [" + block + "]\n  %y: f32[" + out + "] = Col2Im(%x, %i, %b) {" + attributes +
         "}\n}";
}

Ran Apply(const std::string& text, float tolerance = 1e-5f) {
  return testing::ApplyRules(text, Rules(), RuleClass::kImproves, tolerance);
}

TEST(Col2Im, BlocksThatCoverOneAnotherAreASumOfTiles) {
  for (const std::string& text :
       {Blocks("2,27,20", "9, 11", "3, 3", "strides=[2, 2]", "2,3,9,11"),
        Blocks("1,18,63", "9, 11", "3, 3", "", "1,2,9,11"),
        Blocks("1,12,24", "9, 11", "2, 3", "strides=[1, 3]", "1,2,9,11"),
        Blocks("1,50,21", "7, 9", "5, 5", "strides=[2, 1], pads=[1, 1, 2, 1]", "1,2,7,9"),
        Blocks("1,9,64", "16, 16", "3, 3", "strides=[2, 2], pads=[1, 1, 1, 1]", "1,1,16,16"),
        Blocks("1,9,16", "8, 9", "3, 3", "strides=[2, 2], pads=[1, 0, 0, 0], dilations=[1, 1]", "1,1,8,9")}) {
    const Ran ran = Apply(text);
    EXPECT_THAT(ran.text, Not(HasSubstr("Col2Im"))) << text;
    EXPECT_THAT(ran.text, HasSubstr("ReduceSum")) << text;
    EXPECT_EQ(ran.model.graph->outputs()[0]->name(), "y");
  }
}

TEST(Col2Im, BlocksBesideOneAnotherAreMovedOnly) {
  for (const std::string& text :
       {Blocks("1,8,20", "8, 10", "2, 2", "strides=[2, 2]", "1,2,8,10"),
        Blocks("1,8,20", "9, 11", "2, 2", "strides=[2, 2]", "1,2,9,11"),
        Blocks("2,4,6", "8, 9", "1, 2", "strides=[3, 4]", "2,2,8,9"), Blocks("1,3,6", "2, 3", "1, 1", "", "1,3,2,3")}) {
    const Ran ran = Apply(text, 0);
    EXPECT_THAT(ran.text, Not(HasSubstr("Col2Im"))) << text;
    EXPECT_THAT(ran.text, Not(HasSubstr("Sum"))) << text;
  }
}

// Where zeros are added to them they stay what they are, and nowhere else anything becomes infinite.
TEST(Col2Im, InfinityAndNaNStayInTheirPlaces) {
  Model model = Parse(Blocks("1,18,20", "9, 11", "3, 3", "strides=[2, 2]", "1,2,9,11"));
  const Model before = Clone(model);
  RunRules(model, Rules());
  std::vector<TensorRef> inputs = testing::RandomInputs(before, 5);
  std::vector<float> x = inputs[0].ToFloats();
  for (std::size_t i = 0; i < x.size(); i += 31) x[i] = std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < x.size(); i += 67) x[i] = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < x.size(); i += 83) x[i] = std::numeric_limits<float>::quiet_NaN();
  inputs[0] = TensorRef::FromFloats(inputs[0].dims, x);
  const std::vector<float> want = testing::RunModel(before, inputs)[0].ToFloats();
  const std::vector<float> got = testing::RunModel(model, inputs)[0].ToFloats();
  ASSERT_EQ(want.size(), got.size());
  std::size_t special = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    special += std::isfinite(want[i]) ? 0 : 1;
    if (std::isfinite(want[i])) {
      EXPECT_NEAR(want[i], got[i], 1e-5) << i;
    } else {
      EXPECT_TRUE(std::isnan(want[i]) ? std::isnan(got[i]) : want[i] == got[i]) << i;
    }
  }
  EXPECT_GT(special, 5u);
}

TEST(Col2Im, OthersStay) {
  EXPECT_THAT(Apply(Blocks("1,8,63", "9, 11", "2, 2", "dilations=[2, 2]", "1,2,9,11"), -1).refusal, HasSubstr("gaps"));
  EXPECT_THAT(Apply(Blocks("1,81,9", "11, 11", "9, 9", "", "1,1,11,11"), -1).refusal, HasSubstr("too many blocks"));
  EXPECT_THAT(Apply(Blocks("?,8,20", "8, 10", "2, 2", "strides=[2, 2]", "?,2,8,10"), -1).refusal,
              HasSubstr("not known"));
  EXPECT_THAT(Apply(R"(opset "" = 20
graph @g(%x: f32[1,4,6], %i: s64[2]) -> (%y) {
  %b = constant s64[2] [2, 2]
  %y: f32[1,1,3,4] = Col2Im(%x, %i, %b)
})",
                    -1)
                  .refusal,
              HasSubstr("computed"));
  EXPECT_THAT(Apply(R"(opset "" = 20
graph @g(%x: f32[1,8,6]) -> (%y) {
  %i = constant s64[3] [2, 3, 4]
  %b = constant s64[3] [2, 2, 2]
  %y: f32[1,1,2,3,4] = Col2Im(%x, %i, %b)
})",
                    -1)
                  .refusal,
              HasSubstr("two dimensions"));
}

}  // namespace
}  // namespace octavo
