// A convolution of taps far apart, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// 3 channels out of 2, 3 taps.
Model Far(const std::string& attributes, const std::string& out) {
  Model model =
      Parse("opset \"\" = 20\ngraph @g(%x: f32[1,2,9000]) -> (%y) {\n" +
            std::string("  %w = constant f32[3,2,3] [1, 2, 3, 4, 5, 6, -1, -2, -3, 0.5, 0.25, -4, 7, 8, 9, -7, "
                        "-8, 0.125]\n  %b = constant f32[3] [0.5, -1, 2]\n  %y: f32[1,3,") +
            out + "] = Conv(%x, %w, %b) {" + attributes + "}\n}");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

TEST(FarTaps, BecomeSlices) {
  Model model = Far("dilations=[4000]", "1000");
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 4);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  const std::vector<PassCount> counts = FusePatterns(model);
  ASSERT_EQ(counts.size(), 1u);
  EXPECT_EQ(counts[0].rule, "far-taps");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_THAT(Print(*model.graph), Not(HasSubstr("dilations")));
  EXPECT_EQ(model.graph->outputs()[0]->name(), "y");
  const std::vector<TensorRef> after = testing::RunModel(model, inputs);
  ASSERT_EQ(after[0].dims, before[0].dims);
  const std::vector<float> a = before[0].ToFloats(), b = after[0].ToFloats();
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-4) << i;
}

TEST(FarTaps, OthersStay) {
  for (const auto& [attributes, out] :
       {std::pair{"dilations=[2048]", "4904"}, std::pair{"dilations=[4000], pads=[1, 0]", "1001"},
        std::pair{"dilations=[4000], strides=[2]", "500"}}) {
    Model model = Far(attributes, out);
    EXPECT_TRUE(FusePatterns(model).empty()) << attributes;
    EXPECT_THAT(Print(*model.graph), HasSubstr("dilations"));
  }
}

}  // namespace
}  // namespace octavo
