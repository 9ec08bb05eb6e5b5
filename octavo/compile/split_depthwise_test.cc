#include "octavo/compile/split_depthwise.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "octavo/compile/codes.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

// One tap for each of five channels.
Model OneTap(const std::string& dtype = "u16", const std::string& attributes = "group=5, kernel_shape=[1, 1]") {
  return Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + dtype + "[1,5,4,4]) -> (%q) {\n" +
               "%s = constant f32[] 0.5\n%z = constant " + dtype + "[] 7\n%t = constant f32[] 2\n" +
               "%w = constant s8[5,1,1,1] [1, 2, 3, 4, 5]\n%sw = constant f32[5] [0.1, 0.2, 0.3, 0.4, 0.5]\n" +
               "%zw = constant s8[5] [0, 0, 0, 0, 0]\n%b = constant s32[5] [10, 20, 30, 40, 50]\n" +
               "%sb = constant f32[5] [0.05, 0.1, 0.15, 0.2, 0.25]\n%d: f32[1,5,4,4] = DequantizeLinear(%x, %s, %z)\n" +
               "%wd: f32[5,1,1,1] = DequantizeLinear(%w, %sw, %zw) {axis=0}\n" +
               "%bd: f32[5] = DequantizeLinear(%b, %sb) {axis=0}\n%y: f32[1,5,4,4] = Conv(%d, %wd, %bd) {" +
               attributes + "}\n%q: " + dtype + "[1,5,4,4] = QuantizeLinear(%y, %t, %z)\n}\n");
}

TEST(SplitDepthwise, APartForEachSoManyChannels) {
  Model model = OneTap();
  EXPECT_EQ(SplitDepthwise(model, 2), 1);
  EXPECT_TRUE(Verify(model).empty());
  std::vector<std::int64_t> groups, weights, biases;
  std::vector<float> scales;
  for (const Node* node : model.graph->nodes()) {
    if (!node->Is("Conv")) continue;
    groups.push_back(node->IntAttribute("group", 1));
    EXPECT_EQ(Behind(node->input(0))->scales, (std::vector<float>{0.5f}));
    const Codes w = *Behind(node->input(1)), b = *Behind(node->input(2));
    for (const std::int64_t code : w.codes->data->ToInts()) weights.push_back(code);
    for (const std::int64_t code : b.codes->data->ToInts()) biases.push_back(code);
    scales.insert(scales.end(), w.scales.begin(), w.scales.end());
    const Node* out = node->output()->uses()[0].node;
    EXPECT_EQ(out->input(1)->data->ToFloats(), (std::vector<float>{2.0f}));
  }
  EXPECT_EQ(groups, (std::vector<std::int64_t>{2, 2, 1}));
  EXPECT_EQ(weights, (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(biases, (std::vector<std::int64_t>{10, 20, 30, 40, 50}));
  EXPECT_EQ(scales, (std::vector<float>{0.1f, 0.2f, 0.3f, 0.4f, 0.5f}));
  const Node* quantize = model.graph->outputs()[0]->producer();
  ASSERT_TRUE(quantize->input(0)->producer()->Is("Concat"));
}

TEST(SplitDepthwise, OthersStay) {
  Model model = OneTap();
  EXPECT_EQ(SplitDepthwise(model, 5), 0);
  model = OneTap("u8");
  EXPECT_EQ(SplitDepthwise(model, 2), 0);
  model = OneTap("u16", "group=5, strides=[2, 2]");
  EXPECT_EQ(SplitDepthwise(model, 2), 0);
}

}  // namespace
}  // namespace octavo
