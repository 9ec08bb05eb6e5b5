#include "octavo/compile/gathers.h"

#include <gtest/gtest.h>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
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

// A Gather of codes of `storage` in `x` dimensions by `places` known indices.
Model Rows(const std::string& storage, const std::string& x, const std::string& y, const std::string& attributes,
           int places = 64, const std::string& table = "") {
  std::string indices;
  for (int i = 0; i < places; ++i) indices += (i == 0 ? "" : ", ") + std::to_string(i * 7 % 4);
  return Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(" + (table.empty() ? "%a: " + storage + "[" + x + "]" : "") +
               ") -> (%q) {\n%s = constant f32[] 0.5\n%z = constant " + storage + "[] 3\n" + table +
               "%i = constant s64[" + std::to_string(places) + "] [" + indices + "]\n%d: f32[" + x +
               "] = DequantizeLinear(%a, %s, %z)\n%y: f32[" + y + "] = Gather(%d, %i)" + attributes +
               "\n%q: " + storage + "[" + y + "] = QuantizeLinear(%y, %s, %z)\n}\n");
}

TEST(GatherColumns, RowsOfSomeSizesAreGatheredAsColumns) {
  for (const auto& [storage, x, y, attributes] : {std::tuple{"u8", "4,8", "64,8", ""},
                                                  {"u8", "4,32", "64,32", ""},
                                                  {"u8", "2,4,2,8", "2,64,2,8", " {axis=1}"},
                                                  {"u16", "3,4,16", "3,64,16", " {axis=-2}"},
                                                  {"u16", "4,4", "64,4", ""}}) {
    Model model = Rows(storage, x, y, attributes);
    const Model before = Clone(model);
    EXPECT_EQ(GatherColumns(model), 1) << x;
    EXPECT_EQ(Verify(model), std::vector<std::string>{});
    testing::ExpectSameNumbers(before, model, 0, x);
    EXPECT_TRUE(model.graph->outputs()[0]->producer()->input(0)->producer()->Is("Transpose"));
    EXPECT_EQ(GatherColumns(model), 0);
  }
}

TEST(GatherColumns, OthersStay) {
  const auto stays = [](Model model) { return GatherColumns(model) == 0; };
  EXPECT_TRUE(stays(Rows("u8", "4,8", "31,8", "", 31)));
  EXPECT_TRUE(stays(Rows("u8", "4,10", "64,10", "")));
  EXPECT_TRUE(stays(Rows("u8", "4,4", "64,4", "")));
  EXPECT_TRUE(stays(Rows("u16", "4,32", "64,32", "")));
  EXPECT_TRUE(stays(Rows("s32", "4,2", "64,2", "")));
  EXPECT_TRUE(stays(Rows("u8", "8,4", "8,64", " {axis=1}")));
  const std::string table = "[4,4] [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]\n";
  EXPECT_FALSE(stays(Rows("u16", "4,4", "64,4", "", 64, "%a = constant u16" + table)));
  const std::string small =
      "[4,8] [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8]\n";
  EXPECT_TRUE(stays(Rows("u8", "4,8", "64,8", "", 64, "%a = constant u8" + small)));
}

}  // namespace
}  // namespace octavo
