#include "octavo/emit/stablehlo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <random>

#include "octavo/base/error.h"
#include "octavo/base/output.h"
#include "octavo/emit/stablehlo_blocks.h"
#include "octavo/emit/stablehlo_builder.h"
#include "octavo/emit/stablehlo_trace.h"
#include "octavo/ir/text.h"
#include "octavo/numerics/ggml.h"

namespace octavo {
namespace {

using stablehlo::BlockForm;
using stablehlo::BlockParts;
using ::testing::Contains;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

std::string WriteText(const Model& model, const StablehloOptions& options = {}) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / ("octavo_" + std::to_string(getpid()) + ".mlir");
  WriteStablehlo(model, path, options);
  std::string text = ReadTextFile(path, std::size_t{1} << 24);
  std::filesystem::remove(path);
  return text;
}

// What the parts make is, bit for bit, what the format's decoder makes: for encoded numbers and for any bytes that have
// finite scales.
TEST(StablehloBlocks, PartsMakeTheDecodersBits) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 0.2f);
  int formats = 0;
  for (const BlockForm& form : stablehlo::BlockForms()) {
    const GgmlFormat* format = FindGgmlFormat(form.format);
    ASSERT_NE(format, nullptr) << form.format;
    ++formats;
    const std::size_t n = 2048, blocks = n / format->block;
    std::vector<float> x(n), want(n);
    for (float& v : x) v = normal(random);
    std::vector<std::byte> bytes(blocks * format->block_bytes);
    EncodeGgml(*format, x, n, {}, bytes, 1, "test");
    for (int round = 0; round < 2; ++round) {
      DecodeGgml(*format, bytes, want, 1, "test");
      const BlockParts parts = stablehlo::TakeApart(form, bytes);
      for (std::size_t i = 0; i < n; ++i) {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(stablehlo::BlockValue(form, parts, i) + 0.0f),
                  std::bit_cast<std::uint32_t>(want[i] + 0.0f))
            << form.format << " element " << i;
      }
      // The second round: codes that no encoder wrote, scales as they are.
      const std::size_t first = form.format == "q8_0" || form.format == "q4_0" ? 2 : format->block_bytes;
      for (std::size_t b = 0; b < blocks; ++b) {
        for (std::size_t i = first; i < format->block_bytes; ++i) {
          bytes[b * format->block_bytes + i] = static_cast<std::byte>(random() & 255);
        }
      }
    }
  }
  EXPECT_EQ(formats, 16);
  EXPECT_EQ(stablehlo::FindBlockForm("f32"), nullptr);
}

TEST(StablehloText, LiteralsAreExact) {
  using stablehlo::BitsOf;
  using stablehlo::ScalarLiteral;
  EXPECT_EQ(ScalarLiteral(DType::kF32, BitsOf(DType::kF32, -1.5)), "0xBFC00000");
  EXPECT_EQ(ScalarLiteral(DType::kF16, BitsOf(DType::kF16, 1)), "0x3C00");
  EXPECT_EQ(ScalarLiteral(DType::kS8, BitsOf(DType::kS8, -200)), "-128");
  EXPECT_EQ(ScalarLiteral(DType::kU8, BitsOf(DType::kU8, 300)), "255");
  EXPECT_EQ(ScalarLiteral(DType::kS64, BitsOf(DType::kS64, -3)), "-3");
  EXPECT_EQ(ScalarLiteral(DType::kF32, BitsOf(DType::kF32, -INFINITY)), "0xFF800000");
  EXPECT_EQ(stablehlo::Quoted("a\"b\\\n\xc3"), "\"a\\22b\\5C\\0A\\C3\"");
}

TEST(Stablehlo, FourBitCodesAreMaskedAndSmallOnesAreBytes) {
  stablehlo::TextWriter text;
  stablehlo::Builder b(text);
  std::vector<std::int64_t> codes(514);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::int64_t>(i % 16) - 8;
  b.Ints(DType::kS4, {257, 2}, codes);
  EXPECT_THAT(text.text(), HasSubstr("dense<\"0x08090A0B0C0D0E0F0001020304050607"));
  EXPECT_THAT(text.text(), HasSubstr("tensor<257x2xi4>"));
  codes.resize(6);
  b.Ints(DType::kS4, {3, 2}, codes);
  EXPECT_THAT(text.text(), HasSubstr("dense<\"0xF8F9FAFBFCFD\"> : tensor<3x2xi8>"));
}

Model ModelOf(const std::string& body) { return Parse("ir_version = 10\nopset \"\" = 17\n" + body); }

TEST(StablehloTrace, FollowsMovesAndSaysWhereItEnds) {
  const Model m = ModelOf(R"(graph @g(%x: f32[1,32]) -> (%y, %z, %c) {
  %w: f32[2,32] # s8(axis=1, block=8, scale=f32[2,4] splat(0.5)) = constant s8[2,32] splat(1)
  %t: f32[32,2] = Transpose(%w) {perm=[1, 0]}
  %y: f32[1,2] = MatMul(%x, %t) @mm
  %eight = constant s64[1] [8]
  %sixteen = constant s64[1] [16]
  %thirteen = constant s64[1] [13]
  %one = constant s64[1] [1]
  %s: f32[2,8] = Slice(%w, %eight, %sixteen, %one)
  %z: f32[2,8] = Relu(%s) @relu
  %b: f32[2,5] = Slice(%w, %eight, %thirteen, %one) @cut
  %c: f32[2,5] = Relu(%b)
}
)");
  const stablehlo::EncodingTrace trace = stablehlo::TraceEncodings(*m.graph);
  EXPECT_THAT(trace.lines, Contains("weight 'w' (s8) reaches MatMul 'mm' through Transpose"));
  EXPECT_THAT(trace.lines, Contains("weight 'w' (s8) reaches Relu 'relu' through Slice"));
  EXPECT_THAT(trace.lines, Contains("weight 'w' (s8) is dequantized at Slice 'cut': it cuts blocks of 8 at 8 to 13"));
}

TEST(Stablehlo, PackedWeightsStandBehindBarriersAndUnsignedOnesAreShifted) {
  const Model m = ModelOf(R"(graph @g(%x: f32[4]) -> (%y) {
  %w: f32[4] # u8(scale=0.5, zero=130) = constant u8[4] [0, 128, 130, 255]
  %y: f32[4] = Add(%x, %w)
}
)");
  const std::string text = WriteText(m);
  EXPECT_THAT(text, HasSubstr("dense<\"0x8000027F\"> : tensor<4xi8>"));
  EXPECT_THAT(text, HasSubstr("stablehlo.optimization_barrier"));
  EXPECT_THAT(text, HasSubstr("octavo.tensor_layouts = {\"w\" = {encoding = \"u8\""));
  EXPECT_THAT(text, HasSubstr("0xC0000000"));  // -2: the shifted zero point
}

TEST(Stablehlo, KernelsOfCodesAreLaidOutOnceBeforeTheirConvolution) {
  const Model m = ModelOf(R"(graph @g(%x: f32[1,4,9,9]) -> (%y, %z) {
  %w: f32[6,4,3,2] # s8(axis=0, scale=f32[6] splat(0.5)) = constant s8[6,4,3,2] splat(3)
  %f = constant f32[6,4,3,2] splat(3)
  %y: f32[1,6,7,8] = Conv(%x, %w)
  %z: f32[1,6,7,8] = Conv(%x, %f)
}
)");
  const std::string packed = WriteText(m);
  EXPECT_THAT(packed, HasSubstr("dims = [2, 3, 1, 0] : (tensor<6x4x3x2xf32>) -> tensor<3x2x4x6xf32>"));
  EXPECT_THAT(packed, ContainsRegex("optimization_barrier %[0-9]+ : tensor<3x2x4x6xf32>"));
  EXPECT_THAT(packed, HasSubstr("[b, f, 0, 1]x[0, 1, i, o]->[b, f, 0, 1]"));
  EXPECT_THAT(packed, HasSubstr("[b, f, 0, 1]x[o, i, 0, 1]->[b, f, 0, 1]"));  // the constant
  StablehloOptions codes;
  codes.constants = ConstantForm::kCodes;
  EXPECT_THAT(WriteText(m, codes), ::testing::Not(HasSubstr("[0, 1, i, o]")));
  const std::string integers = WriteText(ModelOf(R"(graph @g(%x: u8[1,4,9,9]) -> (%y) {
  %w = constant s8[6,4,3,2] splat(3)
  %y: s32[1,6,7,8] = ConvInteger(%x, %w)
}
)"));
  EXPECT_THAT(integers, ContainsRegex("optimization_barrier %[0-9]+ : tensor<6x4x3x2xi8>"));  // stored in 8 bits
  EXPECT_THAT(integers, ContainsRegex("optimization_barrier %[0-9]+ : tensor<3x2x4x6xi32>"));
}

TEST(Stablehlo, ShapesThatAreComputedAreKnown) {
  const Model m = ModelOf(R"(graph @g(%x: f32[2,6]) -> (%y) {
  %shape: s64[2] = Shape(%x)
  %two = constant s64[] 2
  %one = constant s64[] 1
  %axes = constant s64[1] [0]
  %n: s64[] = Gather(%shape, %one)
  %h: s64[] = Div(%n, %two)
  %u: s64[1] = Unsqueeze(%h, %axes)
  %rest = constant s64[1] [-1]
  %to: s64[2] = Concat(%u, %rest) {axis=0}
  %y: f32[?,?] = Reshape(%x, %to)
}
)");
  const std::string text = WriteText(m);
  EXPECT_THAT(text, HasSubstr("-> (tensor<3x4xf32>) {"));
  EXPECT_THAT(text, HasSubstr("stablehlo.reshape %arg0 : (tensor<2x6xf32>) -> tensor<3x4xf32>"));
}

TEST(Stablehlo, AKnownConditionLeavesOneBranch) {
  const Model m = ModelOf(R"(graph @g(%x: f32[2,6]) -> (%y) {
  %n: s64[] = Size(%x)
  %twelve = constant s64[] 12
  %c: bool[] = Equal(%n, %twelve)
  %y: f32[2,6] = If(%c) {else_branch=graph @e() -> (%b) {
      %b: f32[2,6] = Abs(%x)
    }, then_branch=graph @t() -> (%a) {
      %a: f32[2,6] = Neg(%x)
    }}
}
)");
  const std::string text = WriteText(m);
  EXPECT_THAT(text, HasSubstr("stablehlo.negate %arg0"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("stablehlo.if")));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("stablehlo.abs")));
}

TEST(Stablehlo, WrongShapesOfResultsAreNoted) {
  const Model m = ModelOf(R"(graph @g(%x: f32[2,6]) -> (%y) {
  %h: f32[n] = Neg(%x)
  %y: f32[?,?] = Abs(%h)
}
)");
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "octavo_notes.mlir";
  const StablehloResult result = WriteStablehlo(m, path, {});
  EXPECT_THAT(ReadTextFile(path, std::size_t{1} << 20), HasSubstr("stablehlo.abs %0 : tensor<2x6xf32>"));
  std::filesystem::remove(path);
  EXPECT_THAT(result.notes, Contains(HasSubstr("the result 'h' of Neg 'h' is f32[n]; it is [2, 6]")));
}

TEST(Stablehlo, RecurrentOperatorsAreLoops) {
  const std::string text = WriteText(ModelOf(R"(graph @g(%x: f32[7,2,3]) -> (%y) {
  %w = constant f32[1,16,3] splat(0.5)
  %r = constant f32[1,16,4] splat(0.25)
  %y: f32[7,1,2,4] = LSTM(%x, %w, %r) {hidden_size=4}
}
)"));
  // The product with the input once for all steps, in the loop the one with the state.
  EXPECT_THAT(text, HasSubstr("contracting_dims = [2] x [1] : (tensor<7x2x3xf32>, tensor<16x3xf32>)"));
  const std::size_t loop = text.find("stablehlo.while");
  ASSERT_NE(loop, std::string::npos);
  EXPECT_NE(text.find("contracting_dims = [1] x [1] : (tensor<2x4xf32>, tensor<16x4xf32>)"), std::string::npos);
  EXPECT_GT(text.find("contracting_dims = [1] x [1]"), loop);
}

TEST(Stablehlo, AKnownNumberOfStepsIsFollowed) {
  const auto loop = [](const std::string& rows) {
    return WriteText(ModelOf("graph @g(%x: f32[" + rows + R"(,3]) -> (%y) {
  %sizes: s64[2] = Shape(%x)
  %zero = constant s64[] 0
  %one = constant s64[] 1
  %n: s64[] = Gather(%sizes, %zero)
  %start = constant f32[3] splat(1)
  %t, %y: f32[3] = Loop(_, _, %zero, %start) {body=graph @b(%i: s64[], %c: bool[], %at: s64[], %s: f32[3]) -> (%more, %next, %sum) {
      %row: f32[3] = Gather(%x, %at)
      %sum: f32[3] = Add(%s, %row)
      %next: s64[] = Add(%at, %one)
      %more: bool[] = Less(%next, %n)
    }}
}
)"));
  };
  const std::string seven = loop("7"), one = loop("1");
  EXPECT_THAT(seven, HasSubstr("stablehlo.while"));
  EXPECT_THAT(seven, HasSubstr("dense<6> : tensor<i64>"));  // the first step stands before it
  EXPECT_THAT(one, ::testing::Not(HasSubstr("stablehlo.while")));
}

std::string Refused(const std::string& body, const StablehloOptions& options = {}) {
  try {
    WriteText(ModelOf(body), options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUnsupported);
    return error.what();
  }
  return "(written)";
}

TEST(Stablehlo, RefusalsNameNodeAndReason) {
  EXPECT_THAT(Refused("graph @g(%x: f32[n]) -> (%x) {\n}\n"), HasSubstr("--dim n=1"));
  EXPECT_THAT(Refused("graph @g(%x: f32[2]) -> (%y) {\n  %y = NonZero(%x) @here\n}\n"),
              HasSubstr("operator NonZero has no lowering: node NonZero 'here'"));
  StablehloOptions quant;
  quant.constants = ConstantForm::kQuant;
  EXPECT_THAT(Refused(R"(graph @g(%x: f32[2,3]) -> (%y) {
  %w: f32[2,3] # s8(axis=0, scale=f32[2] [1, 2]) = constant s8[2,3] splat(1)
  %y: f32[2,3] = Add(%x, %w)
}
)",
                      quant),
              HasSubstr("along axis 0, which is not the last: weight 'w'"));
}

}  // namespace
}  // namespace octavo
