#include "octavo/compile/gather_planes.h"

#include <gtest/gtest.h>

#include "octavo/ir/text.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

Model Gathers(const std::string& x, const std::string& given, const std::string& constant,
              const std::string& attributes = "") {
  return Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%x: f32[" + x + "]" + given + ") -> (%y) {\n" + constant +
               "%y: f32[*] = GatherND(%x, %i)" + attributes + "\n}\n");
}

TEST(GatherPlanes, ByIndicesOfOneNumber) {
  Model model = Gathers("4,6,8", ", %i: s64[5,3,1]", "");
  EXPECT_EQ(GatherPlanes(model), 1);
  const Value& y = *model.graph->outputs()[0];
  EXPECT_EQ(y.name(), "y");
  ASSERT_TRUE(y.producer()->Is("Gather"));
  const Node& reshape = *y.producer()->input(1)->producer();
  EXPECT_TRUE(reshape.Is("Reshape"));
  EXPECT_EQ(reshape.input(1)->data->ToInts(), (std::vector<std::int64_t>{5, 3}));
  EXPECT_EQ(GatherPlanes(model), 0);
}

TEST(GatherPlanes, ByKnownIndicesNeedsNoReshape) {
  Model model = Gathers("4,6,8", "", "%i = constant s64[2,1] [3, -4]\n");
  const Model before = Clone(model);
  EXPECT_EQ(GatherPlanes(model), 1);
  testing::ExpectSameNumbers(before, model, 0, "indices");
  const Value& places = *model.graph->outputs()[0]->producer()->input(1);
  EXPECT_EQ(places.data->dims, (Dims{2}));
  EXPECT_EQ(places.data->ToInts(), (std::vector<std::int64_t>{3, -4}));
}

TEST(GatherPlanes, OthersStay) {
  const auto stays = [](Model model) { return GatherPlanes(model) == 0; };
  EXPECT_TRUE(stays(Gathers("4,6", ", %i: s64[5,1]", "")));
  EXPECT_TRUE(stays(Gathers("4,6,8", ", %i: s64[5,2]", "")));
  EXPECT_TRUE(stays(Gathers("4,6,8", ", %i: s64[n,1]", "")));
  EXPECT_TRUE(stays(Gathers("4,6,8", ", %i: s64[4,1]", "", " {batch_dims=1}")));
  EXPECT_TRUE(stays(Gathers("4,6,8", ", %i: s64[1]", "")));
}

}  // namespace
}  // namespace octavo
