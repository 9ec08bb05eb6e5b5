#include "octavo/compile/recode_constants.h"

#include <gtest/gtest.h>

#include <string>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

// y of %x : f32[2,3] and the constant %k, whose codes are `codes` in steps of 1.
Model Of(const std::string& op, const std::string& shape, const std::string& dtype = "u16",
         const std::string& codes = "0") {
  Model model = Parse(
      "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: f32[2,3]) -> (%y) {\n%s = constant f32[] 0.001\n%z = constant " +
      dtype + "[] 100\n%one = constant f32[] 1\n%zero = constant " + dtype +
      "[] 0\n%m = constant bool[3] [true, false, true]\n" + "%c = constant " + dtype + "[2,3] [" + codes +
      ", 0, 0, 0, 0, 0]\n%q: " + dtype + "[2,3] = QuantizeLinear(%x, %s, %z)\n" +
      "%d: f32[2,3] = DequantizeLinear(%q, %s, %z)\n%k: f32[2,3] = DequantizeLinear(%c, %one, %zero)\n%o: f32" + shape +
      " = " + op + "\n%r: " + dtype + shape + " = QuantizeLinear(%o, %s, %z)\n%y: f32" + shape +
      " = DequantizeLinear(%r, %s, %z)\n}");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

TEST(RecodeConstants, TheResultHasTheSameCodes) {
  for (const char* first : {"0", "1", "65535"}) {
    for (const auto& [op, shape] : {std::pair{"Where(%m, %d, %k)", "[2,3]"},
                                    {"Where(%m, %k, %d)", "[2,3]"},
                                    {"Concat(%d, %k) {axis=0}", "[4,3]"}}) {
      Model model = Of(op, shape, "u16", first);
      const Model before = Clone(model);
      EXPECT_EQ(RecodeConstants(model), 1) << op;
      model.graph->EraseDead();
      EXPECT_EQ(Verify(model), std::vector<std::string>{}) << op;
      EXPECT_EQ(model.graph->FindValue("one"), nullptr) << op;
      testing::ExpectSameNumbers(before, model, 0, op);
      EXPECT_EQ(RecodeConstants(model), 0) << op;
    }
  }
}

TEST(RecodeConstants, OthersStay) {
  Model model = Of("Where(%m, %d, %k)", "[2,3]", "u8");
  EXPECT_EQ(RecodeConstants(model), 0);
  model = Of("Add(%d, %k)", "[2,3]");
  EXPECT_EQ(RecodeConstants(model), 0);
  model = Of("Where(%m, %d, %d)", "[2,3]");
  EXPECT_EQ(RecodeConstants(model), 0);
}

}  // namespace
}  // namespace octavo
