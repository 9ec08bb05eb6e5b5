#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/emit/onnx.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

std::string Lowered(std::string_view text) {
  Model model = Parse(text);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  LowerToQdq(model);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return Print(*model.graph);
}

constexpr std::string_view kHead = "ir_version = 8\nopset \"\" = 21\n";

std::string In(std::string_view graph) { return std::string(kHead) + std::string(graph); }

TEST(LowerQdq, QuantizeOpAndConstantWeight) {
  const std::string out = Lowered(In(R"(graph @g(%x: f32[1,2]) -> (%y) {
  %w: f32[2,2] # s8(axis=1, scale=f32[2] [0.5, 0.25]) = constant s8[2,2] [1, -2, 3, -4]
  %x_q: f32[1,2] # u8(scale=0.5, zero=128) = Quantize(%x)
  %m: f32[1,2] # u8(scale=0.25, zero=3) = MatMul(%x_q, %w)
  %r: f32[1,2] # u8(scale=0.25, zero=3) = Relu(%m)
  %y: f32[1,2] = Dequantize(%r)
}
)"));
  EXPECT_EQ(out, R"(graph @g(%x: f32[1,2]) -> (%y) {
  %w_quantized = constant s8[2,2] [1, -2, 3, -4]
  %w_scale = constant f32[2] [0.5, 0.25]
  %x_q_scale = constant f32[] 0.5
  %x_q_zero_point = constant u8[] 128
  %m_scale = constant f32[] 0.25
  %m_zero_point = constant u8[] 3
  %r_scale = constant f32[] 0.25
  %r_zero_point = constant u8[] 3
  %x_q_quantized: u8[1,2] = QuantizeLinear(%x, %x_q_scale, %x_q_zero_point)
  %w_dequantized: f32[2,2] = DequantizeLinear(%w_quantized, %w_scale) {axis=1} @w_dequantized
  %x_q_dequantized: f32[1,2] = DequantizeLinear(%x_q_quantized, %x_q_scale, %x_q_zero_point) @x_q_dequantized
  %m: f32[1,2] = MatMul(%x_q_dequantized, %w_dequantized)
  %m_quantized: u8[1,2] = QuantizeLinear(%m, %m_scale, %m_zero_point) @m_quantized
  %m_dequantized: f32[1,2] = DequantizeLinear(%m_quantized, %m_scale, %m_zero_point) @m_dequantized
  %r: f32[1,2] = Relu(%m_dequantized)
  %r_quantized: u8[1,2] = QuantizeLinear(%r, %r_scale, %r_zero_point) @r_quantized
  %y: f32[1,2] = DequantizeLinear(%r_quantized, %r_scale, %r_zero_point)
}
)");
}

TEST(LowerQdq, GraphOutputKeepsItsName) {
  const std::string out = Lowered(In(R"(graph @g(%x: f32[2]) -> (%y) {
  %xq: f32[2] # s8(scale=0.5) = Quantize(%x)
  %y: f32[2] # s8(scale=0.25) = Relu(%xq)
}
)"));
  EXPECT_EQ(out, R"(graph @g(%x: f32[2]) -> (%y) {
  %xq_scale = constant f32[] 0.5
  %xq_zero_point = constant s8[] 0
  %y_scale = constant f32[] 0.25
  %y_zero_point = constant s8[] 0
  %xq_quantized: s8[2] = QuantizeLinear(%x, %xq_scale, %xq_zero_point)
  %xq_dequantized: f32[2] = DequantizeLinear(%xq_quantized, %xq_scale, %xq_zero_point) @xq_dequantized
  %y_float: f32[2] = Relu(%xq_dequantized)
  %y_quantized: s8[2] = QuantizeLinear(%y_float, %y_scale, %y_zero_point) @y_quantized
  %y: f32[2] = DequantizeLinear(%y_quantized, %y_scale, %y_zero_point) @y
}
)");
}

TEST(LowerQdq, RequantizeIsDequantizeAndQuantize) {
  const std::string out = Lowered(In(R"(graph @g(%x: f32[2]) -> (%y) {
  %a: f32[2] # u8(scale=0.5, zero=1) = Quantize(%x)
  %b: f32[2] # u8(scale=0.25, zero=2) = Requantize(%a)
  %y: f32[2] = Dequantize(%b)
}
)"));
  EXPECT_EQ(out, R"(graph @g(%x: f32[2]) -> (%y) {
  %a_scale = constant f32[] 0.5
  %a_zero_point = constant u8[] 1
  %b_scale = constant f32[] 0.25
  %b_zero_point = constant u8[] 2
  %a_quantized: u8[2] = QuantizeLinear(%x, %a_scale, %a_zero_point)
  %a_dequantized: f32[2] = DequantizeLinear(%a_quantized, %a_scale, %a_zero_point) @a_dequantized
  %b_quantized: u8[2] = QuantizeLinear(%a_dequantized, %b_scale, %b_zero_point)
  %y: f32[2] = DequantizeLinear(%b_quantized, %b_scale, %b_zero_point)
}
)");
}

TEST(LowerQdq, StorageCastsVanish) {
  const std::string out = Lowered(In(R"(graph @g(%x: u8[2]) -> (%y, %z) {
  %a: f32[2] # u8(scale=0.5, zero=1) = StorageCast(%x)
  %b: f32[2] # u8(scale=0.25, zero=2) = Relu(%a)
  %y: u8[2] = StorageCast(%b)
  %z: u8[2] = StorageCast(%a)
}
)"));
  EXPECT_EQ(out, R"(graph @g(%x: u8[2]) -> (%y, %z) {
  %a_scale = constant f32[] 0.5
  %a_zero_point = constant u8[] 1
  %b_scale = constant f32[] 0.25
  %b_zero_point = constant u8[] 2
  %a_dequantized: f32[2] = DequantizeLinear(%x, %a_scale, %a_zero_point) @a_dequantized
  %b: f32[2] = Relu(%a_dequantized)
  %y: u8[2] = QuantizeLinear(%b, %b_scale, %b_zero_point) @b_quantized
  %z: u8[2] = Identity(%x)
}
)");
}

TEST(LowerQdq, CaptureIsDequantizedOutside) {
  const std::string out = Lowered(In(R"(graph @g(%c: bool[], %x: f32[2]) -> (%y) {
  %a: f32[2] # u8(scale=0.5, zero=1) = Quantize(%x)
  %y: f32[2] = If(%c) {then_branch=graph @t() -> (%t) {
    %t: f32[2] = Relu(%a)
  }, else_branch=graph @e() -> (%e) {
    %e: f32[2] = Dequantize(%a)
  }}
}
)"));
  EXPECT_EQ(out, R"(graph @g(%c: bool[], %x: f32[2]) -> (%y) {
  %a_scale = constant f32[] 0.5
  %a_zero_point = constant u8[] 1
  %a_quantized: u8[2] = QuantizeLinear(%x, %a_scale, %a_zero_point)
  %a_dequantized: f32[2] = DequantizeLinear(%a_quantized, %a_scale, %a_zero_point) @a_dequantized
  %y: f32[2] = If(%c) {then_branch=graph @t() -> (%t) {
    %t: f32[2] = Relu(%a_dequantized)
  }, else_branch=graph @e() -> (%e) {
    %e: f32[2] = DequantizeLinear(%a_quantized, %a_scale, %a_zero_point)
  }}
}
)");
}

TEST(LowerQdq, BlockedWeight) {
  const std::string out = Lowered(In(R"(graph @g(%x: f32[1,4]) -> (%y) {
  %w: f32[4,1] # s4(axis=0, block=2, scale=f32[2,1] [0.5, 0.25]) = constant s4[4,1] [1, 2, 3, 4]
  %y: f32[1,1] = MatMul(%x, %w)
}
)"));
  EXPECT_EQ(out, R"(graph @g(%x: f32[1,4]) -> (%y) {
  %w_quantized = constant s4[4,1] [1, 2, 3, 4]
  %w_scale = constant f32[2,1] [0.5, 0.25]
  %w_dequantized: f32[4,1] = DequantizeLinear(%w_quantized, %w_scale) {axis=0, block_size=2} @w_dequantized
  %y: f32[1,1] = MatMul(%x, %w_dequantized)
}
)");
}

TEST(LowerQdq, OutputOfQuantizeAndReadTwice) {
  const std::string out = Lowered(In(R"(graph @g(%x: f32[2]) -> (%a, %s) {
  %a: f32[2] # u8(scale=0.5) = Quantize(%x)
  %s: f32[2] = Add(%a, %a)
}
)"));
  EXPECT_EQ(out, R"(graph @g(%x: f32[2]) -> (%a, %s) {
  %a_scale = constant f32[] 0.5
  %a_quantized: u8[2] = QuantizeLinear(%x, %a_scale)
  %a_dequantized: f32[2] = DequantizeLinear(%a_quantized, %a_scale) @a_dequantized
  %a_dequantized_1: f32[2] = DequantizeLinear(%a_quantized, %a_scale) @a_dequantized_1
  %s: f32[2] = Add(%a_dequantized, %a_dequantized_1)
  %a: f32[2] = DequantizeLinear(%a_quantized, %a_scale) @a
}
)");
}

}  // namespace
}  // namespace octavo
