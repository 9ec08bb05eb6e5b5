#include "octavo/compile/split_hardswish.h"

#include <gtest/gtest.h>

#include <string>

#include "octavo/compile/codes.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

constexpr const char* kConv = "Conv(%d, %wd)";

// HardSwish of what `op` makes of codes; x in steps of `x_step` from -`zero` of them on, y in steps of `y_step` around
// half of its codes.
Model Of(const std::string& op, const std::string& zero, const std::string& x_step, const std::string& y_step,
         const std::string& dtype = "u16", const std::string& outputs = "%y") {
  const std::string half = dtype == "u16" ? "30000" : "130", shape = "[1,1,4,4]";
  Model model = Parse(
      "ir_version = 10\nopset \"\" = 21\ngraph @g(%a: f32[1,1,4,4]) -> (" + outputs + ") {\n%s = constant f32[] " +
      x_step + "\n%z = constant " + dtype + "[] " + zero + "\n%t = constant f32[] " + y_step + "\n%m = constant " +
      dtype + "[] " + half + "\n%w = constant s8[1,1,1,1] [3]\n%sw = constant f32[] 0.5\n%zw = constant s8[] 0\n" +
      "%wd: f32[1,1,1,1] = DequantizeLinear(%w, %sw, %zw)\n%b: " + dtype + shape + " = QuantizeLinear(%a, %s, %z)\n" +
      "%d: f32[1,1,4,4] = DequantizeLinear(%b, %s, %z)\n%c: f32[1,1,4,4] = " + op + "\n%q: " + dtype + shape +
      " = QuantizeLinear(%c, %s, %z)\n%x: f32[1,1,4,4] = DequantizeLinear(%q, %s, %z)\n" +
      "%h: f32[1,1,4,4] = HardSwish(%x)\n%p: " + dtype + shape + " = QuantizeLinear(%h, %t, %m)\n" +
      "%y: f32[1,1,4,4] = DequantizeLinear(%p, %t, %m)\n}\n");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

TEST(SplitHardSwish, TheSameFunction) {
  for (const auto& [dtype, zero, x_step, y_step] :
       {std::tuple{"u16", "60000", "0.0001", "0.00001"}, {"u8", "200", "0.0151", "0.003"}}) {
    Model model = Of(kConv, zero, x_step, y_step, dtype);
    const Model before = Clone(model);
    EXPECT_EQ(SplitHardSwish(model, 1.5), 1) << dtype;
    EXPECT_EQ(Verify(model), std::vector<std::string>{});
    EXPECT_EQ(model.graph->FindValue("h")->producer()->op(), "Mul");
    // Half a code of the slope at -3, and one of y.
    const double tolerance = std::string(dtype) == "u8" ? 3.0 / 255 / 2 + 0.003 : 3.0 / 65535 / 2 + 0.00001;
    testing::ExpectSameNumbers(before, model, tolerance, dtype);
    EXPECT_EQ(SplitHardSwish(model, 1.5), 0);
  }
}

TEST(SplitHardSwish, OthersStay) {
  const auto split = [](const Model& m) {
    Model model = Clone(m);
    return SplitHardSwish(model, 1.5);
  };
  EXPECT_EQ(split(Of(kConv, "60000", "0.0001", "0.00001")), 1);
  EXPECT_EQ(split(Of(kConv, "60000", "0.0001", "0.00003")), 0);                   // y in a range of 1.97
  EXPECT_EQ(split(Of(kConv, "20000", "0.0001", "0.00001")), 0);                   // x begins at -2
  EXPECT_EQ(split(Of("Add(%d, %wd)", "60000", "0.0001", "0.00001")), 0);          // nothing that it is fused with
  EXPECT_EQ(split(Of(kConv, "60000", "0.0001", "0.00001", "u16", "%y, %x")), 0);  // others read x,
  EXPECT_EQ(split(Of(kConv, "60000", "0.0001", "0.00001", "u16", "%y, %q")), 0);  // its codes,
  EXPECT_EQ(split(Of(kConv, "60000", "0.0001", "0.00001", "u16", "%y, %h")), 0);  // or what it gives
}

}  // namespace
}  // namespace octavo
