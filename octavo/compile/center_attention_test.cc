#include "octavo/compile/center_attention.h"

#include <gtest/gtest.h>

#include <string>

#include "octavo/compile/device_form.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

constexpr const char* kHead = "ir_version = 10\nopset \"\" = 21\n";

struct Form {
  std::string softmax = "Softmax(%x)", p = "u16", v = "u16", rows = "4", y = "u16", layer = "", layer_dtype = "u8";
};

// Attention over four rows of v, which is s16 where it is multiplied, and a layer of its own beside it, or none.
Model Attention(const Form& f = {}) {
  const bool more = !f.layer.empty();
  return Parse(
      std::string(kHead) + "graph @g(%x: f32[1,2," + f.rows + "], %cv: " + f.v + "[1," + f.rows + ",3]" +
      (more ? ", %c8: " + f.layer_dtype + "[4,4]) -> (%o, %n" : ") -> (%o") +
      ") {\n%sp = constant f32[] 0.25\n%zp = constant " + f.p + "[] 0\n%sv = constant f32[] 0.5\n%zv = constant " +
      f.v + "[] 7\n%sw = constant f32[] 0.75\n%zw = constant s16[] 0\n%so = constant f32[] 2\n%zo = constant " + f.y +
      "[] 5\n%q: f32[1,2," + f.rows + "] = " + f.softmax + "\n%cp: " + f.p + "[1,2," + f.rows +
      "] = QuantizeLinear(%q, %sp, %zp)\n%p: f32[1,2," + f.rows + "] = DequantizeLinear(%cp, %sp, %zp)\n%v: f32[1," +
      f.rows + ",3] = DequantizeLinear(%cv, %sv, %zv)\n%cw: s16[1," + f.rows +
      ",3] = QuantizeLinear(%v, %sw, %zw)\n%w: f32[1," + f.rows +
      ",3] = DequantizeLinear(%cw, %sw, %zw)\n%y: f32[1,2,3] = MatMul(%p, %w)\n%o: " + f.y +
      "[1,2,3] = QuantizeLinear(%y, %so, %zo)\n" +
      (more ? "%z8 = constant " + f.layer_dtype + "[] 0\n%n8: f32[4,4] = DequantizeLinear(%c8, %so, %z8)\n" +
                  "%n: f32[4,4] = " + f.layer + "(%n8, %n8)\n"
            : "") +
      "}\n");
}

TEST(CenterAttention, TheRowsOfVLoseTheirMean) {
  Model model = Attention();
  EXPECT_EQ(CenterAttention(model, 4), 1);
  model.graph->EraseDead();
  EXPECT_NO_THROW(Verify(model));
  EXPECT_EQ(Print(model), R"(ir_version = 10
opset "" = 21
graph @g(%x: f32[1,2,4], %cv: u16[1,4,3]) -> (%o) {
  %sp = constant f32[] 0.25
  %zp = constant u16[] 0
  %sv = constant f32[] 0.5
  %zv = constant u16[] 7
  %so = constant f32[] 2
  %zo = constant u16[] 5
  %v_steps = constant f32[] 1
  %v_middle = constant s16[] 0
  %v_product_middle = constant u16[] 32768
  %v_rows = constant s64[1] [-2]
  %v_half = constant u16[] 1
  %v_half_zero = constant u16[] 0
  %q: f32[1,2,4] = Softmax(%x)
  %cp: u16[1,2,4] = QuantizeLinear(%q, %sp, %zp)
  %p: f32[1,2,4] = DequantizeLinear(%cp, %sp, %zp)
  %v: f32[1,4,3] = DequantizeLinear(%cv, %sv, %zv)
  %v_mean: f32[*] = ReduceMean(%v, %v_rows) {keepdims=1}
  %v_codes: u16[*] = QuantizeLinear(%v_mean, %sv, %zv)
  %v_numbers: f32[*] = DequantizeLinear(%v_codes, %sv, %zv)
  %v_centered: f32[*] = Sub(%v, %v_numbers)
  %v_codes_1: s16[*] = QuantizeLinear(%v_centered, %v_steps, %v_middle)
  %v_numbers_1: f32[*] = DequantizeLinear(%v_codes_1, %v_steps, %v_middle)
  %v_half_step: f32[*] = DequantizeLinear(%v_half, %sv, %v_half_zero)
  %v_raised: f32[*] = Add(%v_numbers, %v_half_step)
  %v_codes_2: u16[*] = QuantizeLinear(%v_raised, %sv, %zv)
  %v_numbers_2: f32[*] = DequantizeLinear(%v_codes_2, %sv, %zv)
  %v_product: f32[*] = MatMul(%p, %v_numbers_1)
  %v_codes_3: u16[*] = QuantizeLinear(%v_product, %v_steps, %v_product_middle)
  %v_numbers_3: f32[*] = DequantizeLinear(%v_codes_3, %v_steps, %v_product_middle)
  %y: f32[1,2,3] = Add(%v_numbers_3, %v_numbers_2)
  %o: u16[1,2,3] = QuantizeLinear(%y, %so, %zo)
}
)");
}

TEST(CenterAttention, ASignedVBecomesUnsigned) {
  Model model = Attention({.v = "s16"});
  EXPECT_EQ(CenterAttention(model, 4), 1);
  const std::string text = Print(model);
  EXPECT_NE(text.find("%v_zero = constant u16[] 32775\n"), std::string::npos);
  EXPECT_NE(text.find("%v_codes: u16[*] = QuantizeLinear(%v, %sv, %v_zero)\n"), std::string::npos);
  EXPECT_NE(text.find("%v_mean: f32[*] = ReduceMean(%v_numbers, %v_rows)"), std::string::npos);
}

TEST(CenterAttention, WhatIsNoSoftmaxInU16OverEnoughRowsStays) {
  const auto centered = [](const Form& form, std::int64_t least = 4) {
    Model model = Attention(form);
    return CenterAttention(model, least);
  };
  EXPECT_EQ(centered({.softmax = "Softmax(%x) {axis=2}"}), 1);
  EXPECT_EQ(centered({.softmax = "Softmax(%x) {axis=1}"}), 0);
  EXPECT_EQ(centered({.softmax = "Sigmoid(%x)"}), 0);
  EXPECT_EQ(centered({.p = "u8"}), 0);
  EXPECT_EQ(centered({.v = "u8"}), 0);
  EXPECT_EQ(centered({.y = "u8"}), 0);
  EXPECT_EQ(centered({.rows = "n"}), 0);
  EXPECT_EQ(centered({}, 5), 0);
}

TEST(CenterAttention, BesideLayersOf8BitsAllStays) {
  const auto centered = [](const std::string& dtype, const std::string& op) {
    Model model = Attention({.layer = op, .layer_dtype = dtype});
    return CenterAttention(model, 4);
  };
  EXPECT_EQ(centered("u8", "MatMul"), 0);
  EXPECT_EQ(centered("s8", "Gemm"), 0);
  EXPECT_EQ(centered("u8", "Add"), 1);
  EXPECT_EQ(centered("u16", "MatMul"), 1);
}

TEST(CenterAttention, IsForTheDeviceThatRoundsDown) {
  Model model = Attention({.rows = "128"});
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("cpu")).centered, 0);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).centered, 1);
  EXPECT_TRUE(model.graph->outputs()[0]->producer()->input(0)->producer()->Is("Add"));
  EXPECT_EQ(model.graph->outputs()[0]->producer()->input(0)->name(), "y");
}

}  // namespace
}  // namespace octavo
