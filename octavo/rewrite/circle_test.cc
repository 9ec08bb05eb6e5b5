// The road of a quantized model to Circle and back: text in, text out, and random graphs through the file.
#include "octavo/emit/circle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "octavo/base/error.h"
#include "octavo/import/circle.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/raise_circle.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kHead = "ir_version = 10\nopset \"\" = 21\n";

Model ParseModel(const std::string& graph) {
  Model model = Parse(std::string(kHead) + graph);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << graph;
  return model;
}

std::string Lowered(const std::string& graph) {
  Model model = ParseModel(graph);
  FoldQdq(model);
  LowerToCircle(model);
  return Print(*model.graph);
}

// Through the file.
Model ThereAndBack(const Model& model) {
  Model copy = Clone(model);
  LowerToCircle(copy);
  const std::string file = SerializeCircle(copy);
  EXPECT_TRUE(VerifyCircle(std::as_bytes(std::span(file))).empty());
  Model back = ReadCircle(std::as_bytes(std::span(file)), "memory");
  RaiseCircle(back);
  EXPECT_EQ(Verify(back), std::vector<std::string>{}) << Print(back);
  return back;
}

TEST(CircleBias, OfInt8IsInt32AtTheProductsScale) {
  EXPECT_EQ(Lowered(R"(graph @g(%x: f32[1,2]) -> (%y) {
    %w: f32[2,2] # s8(scale=0.5) = constant s8[2,2] [1, -2, 3, -4]
    %b = constant f32[2] [1, -0.5]
    %x_q: f32[1,2] # s8(scale=0.25, zero=3) = Quantize(%x)
    %m: f32[1,2] # s8(scale=0.5, zero=-1) = Gemm(%x_q, %w, %b)
    %y: f32[1,2] = Dequantize(%m)
  })"),
            R"(graph @g(%x: f32[1,2]) -> (%y) {
  %w_1: f32[2,2] # s8(scale=0.5) = constant s8[2,2] [1, 3, -2, -4]
  %b: f32[2] # s32(scale=0.125) = constant s32[2] [8, -4]
  %x_q: f32[1,2] # s8(scale=0.25, zero=3) = circle::QUANTIZE(%x)
  %m: f32[1,2] # s8(scale=0.5, zero=-1) = circle::FULLY_CONNECTED(%x_q, %w_1, %b) {fused_activation_function="NONE", weights_format=0, keep_num_dims=0}
  %y: f32[1,2] = circle::DEQUANTIZE(%m)
}
)");
}

TEST(CircleBias, OfChannelsHasAScaleEach) {
  EXPECT_EQ(Lowered(R"(graph @g(%x: f32[1,2]) -> (%y) {
    %w: f32[2,2] # s8(axis=1, scale=f32[2] [0.5, 0.25]) = constant s8[2,2] [1, -2, 3, -4]
    %b = constant f32[2] [1, -0.5]
    %x_q: f32[1,2] # s8(scale=0.25, zero=3) = Quantize(%x)
    %m: f32[1,2] # s8(scale=0.5, zero=-1) = Gemm(%x_q, %w, %b)
    %y: f32[1,2] = Dequantize(%m)
  })"),
            R"(graph @g(%x: f32[1,2]) -> (%y) {
  %w_1: f32[2,2] # s8(axis=0, scale=f32[2] [0.5, 0.25]) = constant s8[2,2] [1, 3, -2, -4]
  %b: f32[2] # s32(axis=0, scale=f32[2] [0.125, 0.0625]) = constant s32[2] [8, -8]
  %x_q: f32[1,2] # s8(scale=0.25, zero=3) = circle::QUANTIZE(%x)
  %m: f32[1,2] # s8(scale=0.5, zero=-1) = circle::FULLY_CONNECTED(%x_q, %w_1, %b) {fused_activation_function="NONE", weights_format=0, keep_num_dims=0}
  %y: f32[1,2] = circle::DEQUANTIZE(%m)
}
)");
}

TEST(CircleBias, OfInt16IsInt64) {
  EXPECT_EQ(Lowered(R"(graph @g(%x: f32[1,2]) -> (%y) {
    %w: f32[2,2] # s8(scale=0.5) = constant s8[2,2] [1, -2, 3, -4]
    %b = constant f32[2] [1, -0.5]
    %x_q: f32[1,2] # s16(scale=0.25) = Quantize(%x)
    %m: f32[1,2] # s16(scale=0.5) = Gemm(%x_q, %w, %b)
    %y: f32[1,2] = Dequantize(%m)
  })"),
            R"(graph @g(%x: f32[1,2]) -> (%y) {
  %w_1: f32[2,2] # s8(scale=0.5) = constant s8[2,2] [1, 3, -2, -4]
  %b: f32[2] # s64(scale=0.125) = constant s64[2] [8, -4]
  %x_q: f32[1,2] # s16(scale=0.25) = circle::QUANTIZE(%x)
  %m: f32[1,2] # s16(scale=0.5) = circle::FULLY_CONNECTED(%x_q, %w_1, %b) {fused_activation_function="NONE", weights_format=0, keep_num_dims=0}
  %y: f32[1,2] = circle::DEQUANTIZE(%m)
}
)");
}

TEST(CircleMismatch, Int8OperandsOfAConcatAreRequantized) {
  EXPECT_EQ(Lowered(R"(graph @g(%a: f32[1,2], %b: f32[1,2]) -> (%y) {
    %a_q: f32[1,2] # s8(scale=0.25) = Quantize(%a)
    %b_q: f32[1,2] # s8(scale=0.5) = Quantize(%b)
    %c: f32[1,4] # s8(scale=0.5) = Concat(%a_q, %b_q) {axis=1}
    %y: f32[1,4] = Dequantize(%c)
  })"),
            R"(graph @g(%a: f32[1,2], %b: f32[1,2]) -> (%y) {
  %a_q: f32[1,2] # s8(scale=0.25) = circle::QUANTIZE(%a)
  %b_q: f32[1,2] # s8(scale=0.5) = circle::QUANTIZE(%b)
  %a_q_1: f32[1,2] # s8(scale=0.5) = circle::QUANTIZE(%a_q)
  %c: f32[1,4] # s8(scale=0.5) = circle::CONCATENATION(%a_q_1, %b_q) {axis=1, fused_activation_function="NONE"}
  %y: f32[1,4] = circle::DEQUANTIZE(%c)
}
)");
}

TEST(CircleMismatch, Uint8OnesGoThroughFloat) {
  EXPECT_EQ(Lowered(R"(graph @g(%a: f32[1,2], %b: f32[1,2]) -> (%y) {
    %a_q: f32[1,2] # u8(scale=0.25, zero=0) = Quantize(%a)
    %b_q: f32[1,2] # u8(scale=0.5, zero=0) = Quantize(%b)
    %c: f32[1,4] # u8(scale=0.5, zero=0) = Concat(%a_q, %b_q) {axis=1}
    %y: f32[1,4] = Dequantize(%c)
  })"),
            R"(graph @g(%a: f32[1,2], %b: f32[1,2]) -> (%y) {
  %a_q: f32[1,2] # u8(scale=0.25, zero=0) = circle::QUANTIZE(%a)
  %b_q: f32[1,2] # u8(scale=0.5, zero=0) = circle::QUANTIZE(%b)
  %a_q_numbers: f32[1,2] = circle::DEQUANTIZE(%a_q)
  %a_q_1: f32[1,2] # u8(scale=0.5, zero=0) = circle::QUANTIZE(%a_q_numbers)
  %c: f32[1,4] # u8(scale=0.5, zero=0) = circle::CONCATENATION(%a_q_1, %b_q) {axis=1, fused_activation_function="NONE"}
  %y: f32[1,4] = circle::DEQUANTIZE(%c)
}
)");
}

TEST(CircleMismatch, AFloatOperatorStandsBetweenDequantizeAndQuantize) {
  EXPECT_EQ(Lowered(R"(graph @g(%x: f32[1,2]) -> (%y) {
    %x_q: f32[1,2] # s8(scale=0.25) = Quantize(%x)
    %e: f32[1,2] # s8(scale=0.5) = Exp(%x_q)
    %y: f32[1,2] = Dequantize(%e)
  })"),
            R"(graph @g(%x: f32[1,2]) -> (%y) {
  %x_q: f32[1,2] # s8(scale=0.25) = circle::QUANTIZE(%x)
  %x_q_float: f32[1,2] = circle::DEQUANTIZE(%x_q)
  %e: f32[1,2] = circle::EXP(%x_q_float)
  %e_1: f32[1,2] # s8(scale=0.5) = circle::QUANTIZE(%e)
  %y: f32[1,2] = circle::DEQUANTIZE(%e_1)
}
)");
}

std::string RefusalOf(const std::string& graph) {
  Model model = ParseModel(graph);
  try {
    LowerToCircle(model);
  } catch (const Error& error) {
    return error.what();
  }
  return "lowered";
}

TEST(CircleRefusals, OfWhatNoOutputOfTheOperatorHas) {
  EXPECT_THAT(RefusalOf(R"(graph @g(%x: f32[1,2]) -> (%y, %m) {
    %y: f32[1,2], %m: bool[1,2] = Dropout(%x)
  })"),
              HasSubstr("its mask is used"));
}

// Kernels of 8-bit types read parameters that plain numbers do not have: LiteRT crashes.
TEST(CircleRefusals, OfArithmeticThatNoConsumerHas) {
  EXPECT_THAT(RefusalOf(R"(graph @g(%x: u8[2], %z: u8[2]) -> (%y) {
    %y: u8[2] = Add(%x, %z)
  })"),
              HasSubstr("no consumer calculates with plain u8 numbers: Add 'y'"));
  EXPECT_THAT(RefusalOf(R"(graph @g(%x: f64[2]) -> (%y) {
    %y: f64[2] = Relu(%x)
  })"),
              HasSubstr("no consumer calculates with plain f64 numbers: Relu 'y'"));
  EXPECT_THAT(RefusalOf(R"(graph @g(%x: s32[2], %z: s32[2]) -> (%y) {
    %y: bool[2] = Less(%x, %z)
  })"),
              "lowered");
  EXPECT_THAT(RefusalOf(R"(graph @g(%x: f32[2], %z: s32[2]) -> (%y) {
    %y: f32[2] = Pow(%x, %z)
  })"),
              HasSubstr("the exponent has another type than the base"));
}

// Consumers step by the sizes: what they would read elsewhere is gathered.
TEST(CircleLowering, ResizesWhosePixelsLieElsewhereAreGathered) {
  const auto resize = [](const std::string& scales, const std::string& sizes, const std::string& attributes) {
    return Lowered("graph @g(%x: f32[1,1,2,4]) -> (%y) {\n  %s = constant f32[4] [1, 1, " + scales +
                   "]\n  %y: f32[1,1," + sizes + "] = Resize(%x, _, %s) {" + attributes + "}\n}");
  };
  EXPECT_THAT(resize("2, 2", "4,8", "mode=\"linear\""), HasSubstr("RESIZE_BILINEAR"));
  EXPECT_THAT(resize("0.6, 0.6", "1,2", "mode=\"linear\""), AllOf(HasSubstr("GATHER"), Not(HasSubstr("RESIZE"))));
  EXPECT_THAT(resize("2, 2", "4,8", "mode=\"nearest\""), Not(HasSubstr("GATHER")));
  EXPECT_THAT(resize("2, 2", "4,8", "mode=\"nearest\", nearest_mode=\"ceil\""), HasSubstr("GATHER"));
  const auto refusal = [](const std::string& attributes) {
    return RefusalOf("graph @g(%x: f32[1,1,2,4]) -> (%y) {\n  %s = constant f32[4] [1, 1, 2, 2]\n" +
                     ("  %y: f32[1,1,4,8] = Resize(%x, _, %s) {" + attributes) + "}\n}");
  };
  EXPECT_THAT(refusal("mode=\"cubic\", antialias=1"), HasSubstr("antialiasing"));
  EXPECT_THAT(refusal("mode=\"linear\", coordinate_transformation_mode=\"tf_crop_and_resize\""),
              HasSubstr("coordinate transformation 'tf_crop_and_resize'"));
}

TEST(CircleRefusals, OfAnAverageThatCountsSomeOfThePadding) {
  EXPECT_THAT(RefusalOf(R"(graph @g(%x: f32[1,1,4,4]) -> (%y) {
    %y: f32[1,1,2,2] = AveragePool(%x) {kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1}
  })"),
              HasSubstr("ceil_mode with count_include_pad"));
}

TEST(CircleRoundTrip, TensorsWithoutElements) {
  const Model model = ParseModel(R"(graph @g(%x: f32[0,3], %unused: f32[0]) -> (%y, %z) {
    %shape = constant s64[2] [3, 0]
    %y: f32[3,0] = Reshape(%x, %shape) {allowzero=1}
    %z: f32[0,3] = Relu(%x)
  })");
  const Model back = ThereAndBack(model);
  EXPECT_EQ(back.graph->inputs().size(), 2u);
  EXPECT_EQ(back.graph->outputs().size(), 2u);
}

TEST(CircleQat, PairsOfATrainingToolBecomeParameters) {
  EXPECT_EQ(Lowered(R"(graph @g(%x: f32[1,2]) -> (%y) {
    %s = constant f32[] 0.25
    %z = constant u8[] 128
    %t = constant f32[] 0.5
    %n = constant s8[] 0
    %w = constant f32[2,2] [0.6, -1, 1.4, -2]
    %xq: u8[1,2] = QuantizeLinear(%x, %s, %z)
    %xd: f32[1,2] = DequantizeLinear(%xq, %s, %z)
    %wq: s8[2,2] = QuantizeLinear(%w, %t, %n)
    %wd: f32[2,2] = DequantizeLinear(%wq, %t, %n)
    %m: f32[1,2] = MatMul(%xd, %wd)
    %r: f32[1,2] = Relu(%m)
    %rq: u8[1,2] = QuantizeLinear(%r, %s, %z)
    %y: f32[1,2] = DequantizeLinear(%rq, %s, %z)
  })"),
            R"(graph @g(%x: f32[1,2]) -> (%y) {
  %w_codes_1: f32[2,2] # s8(scale=0.5, zero=0) = constant s8[2,2] [1, 3, -2, -4]
  %m_bias: f32[2] # s32(scale=0.125) = constant s32[2] [0, 0]
  %x_q: f32[1,2] # s8(scale=0.25, zero=0) = circle::QUANTIZE(%x)
  %r: f32[1,2] # s8(scale=0.25, zero=0) = circle::FULLY_CONNECTED(%x_q, %w_codes_1, %m_bias) {fused_activation_function="RELU", weights_format=0, keep_num_dims=1}
  %y: f32[1,2] = circle::DEQUANTIZE(%r)
}
)");
}

TEST(RaiseCircle, LayerNormalizationIsPutTogether) {
  const Model back = ThereAndBack(ParseModel(R"(graph @g(%x: f32[2,3,4]) -> (%y) {
    %s = constant f32[4] [1, 2, 3, 4]
    %b = constant f32[4] [0, 1, 0, 1]
    %y: f32[2,3,4] = LayerNormalization(%x, %s, %b) {axis=-1, epsilon=0.001}
  })"));
  EXPECT_EQ(Print(*back.graph), R"(graph @g(%x: f32[2,3,4]) -> (%y) {
  %s = constant f32[4] [1, 2, 3, 4]
  %b = constant f32[4] [0, 1, 0, 1]
  %y: f32[2,3,4] = LayerNormalization(%x, %s, %b) {axis=2, epsilon=0.001}
}
)");
}

TEST(RaiseCircle, AnotherReaderOfThePartsKeepsThem) {
  const auto raised = [](const std::string& outputs) {
    Model model = ParseModel("graph @g(%x: f32[2,4]) -> (" + outputs + R"() {
    %a = constant s32[1] [1]
    %s = constant f32[4] [1, 2, 3, 4]
    %e = constant f32[] 0.001
    %m: f32[2,1] = circle::MEAN(%x, %a) {keep_dims=1}
    %c: f32[2,4] = circle::SUB(%x, %m)
    %q: f32[2,4] = circle::MUL(%c, %c)
    %v: f32[2,1] = circle::MEAN(%q, %a) {keep_dims=1}
    %p: f32[2,1] = circle::ADD(%v, %e)
    %r: f32[2,1] = circle::RSQRT(%p)
    %n: f32[2,4] = circle::MUL(%c, %r)
    %y: f32[2,4] = circle::MUL(%n, %s)
  })");
    RaiseCircle(model);
    return Print(*model.graph);
  };
  EXPECT_THAT(raised("%y"), HasSubstr("LayerNormalization"));
  for (const char* outputs : {"%y, %c", "%y, %m", "%y, %v", "%y, %n", "%y, %r"}) {
    EXPECT_THAT(raised(outputs), Not(HasSubstr("LayerNormalization"))) << outputs;
  }
}

// --- random graphs through the file

std::string RandomPicture(std::mt19937& rng, bool quantized) {
  const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  struct Shape {
    int c, h, w;
  };
  Shape now{1 + pick(5), 3 + pick(6), 3 + pick(6)};
  const Shape first = now;
  int next = 0;
  std::string body, value = "x";
  const auto type = [](const Shape& s) {
    return "f32[1," + std::to_string(s.c) + "," + std::to_string(s.h) + "," + std::to_string(s.w) + "]";
  };
  // A scale of its own each; what moves codes keeps its input's.
  std::string params = " # u8(scale=0.02, zero=128)";
  const auto fresh = [&] { params = " # u8(scale=0.0" + std::to_string(11 + pick(40)) + ", zero=128)"; };
  const auto add = [&](const std::string& call, const Shape& to) {
    now = to;
    value = "v" + std::to_string(next++);
    body += "  %" + value + ": " + type(now) + (quantized ? params : "") + " = " + call + "\n";
  };
  const auto numbers = [&](int n, bool integers) {
    std::string list = "[";
    for (int i = 0; i < n; ++i) {
      list += (i ? ", " : "") + std::to_string(pick(200) - 100);
      if (!integers) list += "e-2";
    }
    return list + "]";
  };
  const auto weight = [&](const std::string& dims, int n) {
    const std::string name = "w" + std::to_string(next++);
    body += quantized ? "  %" + name + ": f32" + dims + " # u8(scale=0.01, zero=3) = constant u8" + dims + " "
                      : "  %" + name + " = constant f32" + dims + " ";
    std::string list = numbers(n, quantized);
    if (quantized) std::erase(list, '-');
    body += list + "\n";
    return "%" + name;
  };
  if (quantized) add("Quantize(%x)", now);
  for (int i = 0, n = 2 + pick(7); i < n; ++i) {
    const std::string x = "%" + value;
    switch (pick(11)) {
      case 0: {
        const int outputs = 1 + pick(6), k = 1 + 2 * pick(2), pad = k / 2;
        const std::string w = weight("[" + std::to_string(outputs) + "," + std::to_string(now.c) + "," +
                                         std::to_string(k) + "," + std::to_string(k) + "]",
                                     outputs * now.c * k * k);
        fresh();
        add("Conv(" + x + ", " + w + ") {pads=[" + std::to_string(pad) + ", " + std::to_string(pad) + ", " +
                std::to_string(pad) + ", " + std::to_string(pad) + "]}",
            {outputs, now.h, now.w});
        break;
      }
      case 1: {
        const std::string w = weight("[" + std::to_string(now.c) + ",1,3,3]", now.c * 9);
        fresh();
        add("Conv(" + x + ", " + w + ") {group=" + std::to_string(now.c) + ", pads=[1, 1, 1, 1]}", now);
        break;
      }
      case 2:
        if (now.h * now.w > 100) break;
        {
          const int outputs = 1 + pick(4), k = 2 + 2 * pick(2), pad = k / 2 - 1;
          const std::string w = weight("[" + std::to_string(now.c) + "," + std::to_string(outputs) + "," +
                                           std::to_string(k) + "," + std::to_string(k) + "]",
                                       outputs * now.c * k * k);
          fresh();
          add("ConvTranspose(" + x + ", " + w + ") {strides=[2, 2], pads=[" + std::to_string(pad) + ", " +
                  std::to_string(pad) + ", " + std::to_string(pad) + ", " + std::to_string(pad) + "]}",
              {outputs, now.h * 2, now.w * 2});
        }
        break;
      case 3:
        add("MaxPool(" + x + ") {kernel_shape=[3, 3], pads=[1, 1, 1, 1]}", now);
        break;
      case 4:
        fresh();
        add("Add(" + x + ", " + x + ")", now);
        break;
      case 5:
        fresh();
        add("Mul(" + x + ", " + weight("[" + std::to_string(now.c) + ",1,1]", now.c) + ")", now);
        break;
      case 6:
        add("Relu(" + x + ")", now);
        break;
      case 7: {
        Shape moved{now.c, now.w, now.h};
        add("Transpose(" + x + ") {perm=[0, 1, 3, 2]}", moved);
        break;
      }
      case 8:
        add("Concat(" + x + ", " + x + ") {axis=1}", {now.c * 2, now.h, now.w});
        break;
      case 9:
        if (now.h * now.w > 100) break;
        body += "  %k" + std::to_string(next) + " = constant s64[4] [1, " + std::to_string(now.c) + ", " +
                std::to_string(now.h * 2) + ", " + std::to_string(now.w * 2) + "]\n";
        add("Resize(" + x + ", _, _, %k" + std::to_string(next) +
                ") {mode=\"nearest\", coordinate_transformation_mode=\"asymmetric\", nearest_mode=\"floor\"}",
            {now.c, now.h * 2, now.w * 2});
        break;
      default:
        fresh();
        add("GlobalAveragePool(" + x + ")", {now.c, 1, 1});
        break;
    }
    if (now.c > 24) break;
  }
  body += "  %y: " + type(now) + (quantized ? " = Dequantize(%" : " = Identity(%") + value + ")\n";
  return "graph @g(%x: " + type(first) + ") -> (%y) {\n" + body + "}\n";
}

// ONNX -> Circle -> ONNX: float numbers within rounding, codes equal but for sums on the other side of a half.
TEST(CircleRoundTrip, RandomGraphsComputeTheSame) {
  std::mt19937 rng(20);
  std::int64_t codes = 0, equal = 0;
  for (int round = 0; round < 120; ++round) {
    const bool quantized = round % 2 == 1;
    const std::string text = RandomPicture(rng, quantized);
    SCOPED_TRACE(text);
    Model model = ParseModel(text);
    Model back = ThereAndBack(model);
    RaiseOpsetForQuantization(model);
    LowerToQdq(model);
    RaiseOpsetForQuantization(back);
    LowerToQdq(back);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, static_cast<std::uint64_t>(round));
    const std::vector<float> want = testing::RunModel(model, inputs)[0].ToFloats(),
                             got = testing::RunModel(back, inputs)[0].ToFloats();
    ASSERT_EQ(want.size(), got.size());
    float largest = 0;
    for (const float v : want) largest = std::max(largest, std::fabs(v));
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_NEAR(want[i], got[i], quantized ? 0.052f * 4 : 2e-5f * largest) << i;
      ++codes;
      equal += quantized && want[i] == got[i] ? 1 : 0;
      codes -= quantized ? 0 : 1;
    }
  }
  EXPECT_GE(static_cast<double>(equal), 0.999 * static_cast<double>(codes));
}

}  // namespace
}  // namespace octavo
