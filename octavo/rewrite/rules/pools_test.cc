// Poolings over volumes, before and after.
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
  rules.push_back(MaxPoolOfVolume());
  rules.push_back(GlobalMaxOfVolume());
  rules.push_back(PadsThatCount());
  return rules;
}

Ran Apply(const std::string& graph, float tolerance = 0) {
  return testing::ApplyRules("opset \"\" = 20\n" + graph, Rules(), RuleClass::kImproves, tolerance);
}

// Of a volume of 6 by 9 by 8 with 3 channels, two of them.
std::string Pool(const std::string& op, const std::string& attributes, const std::string& out) {
  return "graph @g(%x: f32[2,3,6,9,8]) -> (%y) {\n  %y: f32[2,3," + out + "] = " + op + "(%x) {" + attributes + "}\n}";
}

TEST(Pools, MaxOfAVolumeIsOfItsPlanesThenOfItsLines) {
  const Ran ran = Apply(Pool("MaxPool", "kernel_shape=[2, 3, 2], strides=[2, 2, 1]", "3,4,7"));
  EXPECT_THAT(ran.text, HasSubstr("f32[2,18,4,7] = MaxPool"));
  EXPECT_THAT(ran.text, HasSubstr("f32[2,3,3,28] = MaxPool"));
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[2,3,3,4,7] = Reshape"));
  EXPECT_THAT(ran.text, Not(HasSubstr("kernel_shape=[2, 3, 2]")));
}

TEST(Pools, PaddingAndWhatLastWindowsMissStay) {
  const std::string kernel = "kernel_shape=[3, 2, 3], strides=[2, 2, 2]";
  for (const auto& [attributes, out] :
       {std::pair{", pads=[1, 0, 1, 0, 1, 2]", "3,5,5"}, std::pair{", ceil_mode=1", "3,5,4"},
        std::pair{", ceil_mode=1, pads=[1, 1, 0, 1, 0, 1]", "4,5,4"}, std::pair{", auto_pad=\"SAME_UPPER\"", "3,5,4"},
        std::pair{", auto_pad=\"SAME_LOWER\"", "3,5,4"}, std::pair{", auto_pad=\"VALID\"", "2,4,3"}}) {
    const Ran ran = Apply(Pool("MaxPool", kernel + attributes, out));
    EXPECT_THAT(ran.text, HasSubstr("kernel_shape=[2, 3]")) << attributes;
    EXPECT_THAT(ran.text, HasSubstr("kernel_shape=[3, 1]")) << attributes;
  }
}

TEST(Pools, AxesWithoutWindowsNeedNoPooling) {
  const Ran planes = Apply(Pool("MaxPool", "kernel_shape=[1, 2, 2], strides=[1, 2, 2]", "6,4,4"));
  EXPECT_THAT(planes.text, HasSubstr("kernel_shape=[2, 2]"));
  EXPECT_THAT(planes.text, Not(HasSubstr("kernel_shape=[1, 1]")));
  const Ran lines = Apply(Pool("MaxPool", "kernel_shape=[3, 1, 1], strides=[3, 1, 1]", "2,9,8"));
  EXPECT_THAT(lines.text, HasSubstr("kernel_shape=[3, 1]"));
  EXPECT_THAT(lines.text, Not(HasSubstr("kernel_shape=[1, 1]")));
  EXPECT_THAT(Apply(Pool("MaxPool", "kernel_shape=[1, 1, 1], strides=[1, 2, 1]", "6,5,8")).text,
              HasSubstr("strides=[2, 1]"));
}

TEST(Pools, OthersStay) {
  const auto refusal = [](const std::string& graph) { return Apply(graph, -1).refusal; };
  EXPECT_THAT(refusal(Pool("MaxPool", "kernel_shape=[2, 2, 2], dilations=[2, 1, 1]", "4,8,7")), HasSubstr("gaps"));
  EXPECT_THAT(refusal(R"(graph @g(%x: f32[1,2,4,4,4]) -> (%y, %i) {
    %y: f32[1,2,3,3,3], %i: s64[1,2,3,3,3] = MaxPool(%x) {kernel_shape=[2, 2, 2]}
  })"),
              HasSubstr("places of the greatest"));
  EXPECT_THAT(refusal("graph @g(%x: f32[?,2,4,4,4]) -> (%y) { %y: f32[?,2,3,3,3] = MaxPool(%x) "
                      "{kernel_shape=[2, 2, 2]} }"),
              HasSubstr("not known"));
  const std::string image =
      "graph @g(%x: f32[1,2,4,4]) -> (%y) {\n  %y: f32[1,2,3,3] = MaxPool(%x) {kernel_shape=[2, 2]}\n}";
  EXPECT_THAT(Apply(image).text, Not(HasSubstr("Reshape")));
}

// 8-bit numbers are pooled as they are.
TEST(Pools, Codes) {
  const Ran ran = Apply(R"(graph @g(%x: u8[1,2,4,4,4]) -> (%y) {
    %y: u8[1,2,2,2,2] = MaxPool(%x) {kernel_shape=[2, 2, 2], strides=[2, 2, 2]}
  })");
  EXPECT_THAT(ran.text, HasSubstr("u8[1,8,2,2] = MaxPool"));
}

TEST(Pools, InfinityIsTheGreatest) {
  const std::string text =
      "opset \"\" = 20\n" +
      Pool("MaxPool", "kernel_shape=[2, 3, 2], strides=[2, 3, 2], pads=[0, 1, 1, 0, 1, 1]", "3,3,5");
  Model model = Parse(text);
  const Model before = Clone(model);
  RunRules(model, Rules());
  std::vector<TensorRef> inputs = testing::RandomInputs(before, 5);
  std::vector<float> x = inputs[0].ToFloats();
  for (std::size_t i = 0; i < x.size(); i += 7) x[i] = std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < x.size(); i += 5) x[i] = -std::numeric_limits<float>::infinity();
  inputs[0] = TensorRef::FromFloats(inputs[0].dims, x);
  EXPECT_TRUE(testing::SameBits(testing::RunModel(before, inputs), testing::RunModel(model, inputs)));
}

TEST(Pools, GreatestOfAVolume) {
  const Ran ran = Apply(Pool("GlobalMaxPool", "", "1,1,1"));
  EXPECT_THAT(ran.text, HasSubstr("f32[2,3,1,1] = GlobalMaxPool"));
  EXPECT_THAT(Apply("graph @g(%x: f32[1,2,4,4]) -> (%y) { %y: f32[1,2,1,1] = GlobalMaxPool(%x) }").text,
              Not(HasSubstr("Reshape")));
}

TEST(Pools, PaddingThatCountsIsThere) {
  const std::string attributes = "count_include_pad=1, kernel_shape=[3, 2, 3], strides=[2, 1, 2]";
  const Ran ran = Apply(Pool("AveragePool", attributes + ", pads=[1, 0, 1, 1, 1, 0]", "3,9,4"), 1e-6f);
  EXPECT_THAT(ran.text, HasSubstr("f32[2,3,8,10,9] = Pad"));
  EXPECT_THAT(ran.text, Not(HasSubstr("count_include_pad=1")));
  EXPECT_THAT(Apply(Pool("AveragePool", attributes + ", pads=[1, 0, 1, 1, 1, 0], ceil_mode=1", "4,9,4"), -1).refusal,
              HasSubstr("beyond its padding"));
  EXPECT_THAT(Apply(Pool("AveragePool", attributes + ", auto_pad=\"SAME_UPPER\"", "3,9,4"), -1).refusal,
              HasSubstr("pads by itself"));
  for (const std::string more : {"", ", auto_pad=\"VALID\""}) {
    EXPECT_THAT(Apply(Pool("AveragePool", attributes + more, "2,8,3"), -1).text, Not(HasSubstr("Pad("))) << more;
  }
}

}  // namespace
}  // namespace octavo
