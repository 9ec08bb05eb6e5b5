#include "octavo/ir/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <fstream>
#include <iterator>

#include "octavo/base/error.h"
#include "octavo/ir/compare.h"
#include "octavo/ir/random_graph_test_util.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

const PrintOptions kFull{.max_literal_elements = 16, .full = true};

// What the parser says about `text`.
std::string Refusal(std::string_view text, const ParseOptions& options = {}) {
  try {
    Parse(text, "t", options);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    return e.what();
  }
  return "(parsed)";
}

// Text that is in the printed form already.
void ExpectCanonical(const std::string& text) { EXPECT_EQ(Print(Parse(text), kFull), text); }

TEST(Text, AModelOfEverythingIsCanonical) {
  ExpectCanonical(R"(ir_version = 10
opset "" = 21
opset "com.microsoft" = 1
metadata "author" = "a \"b\"\n\x01"
function "local:Foo" = hex"0a0b"
extras = hex"00ff"
graph @main(%x: f32[1,3,?,width,"w + 1"], %n: s64[1] extras=hex"01" = s64[1] [3], %seq: ?[*] opaque=hex"0a02") -> (%y, %"odd name:0") extras=hex"02" {
  %w: f32[2,3] # s8(axis=0, scale=f32[2] [0.5, 0.25], zero=s8[2] [0, -3]) = constant s8[2,3] [1, 2, 3, -4, -5, -128]
  %g: f32[512] # ggml(Q4_K, axis=0) extras=hex"03" = constant u8[4] [1, 2, 3, 4]
  %m: f32[64] # mx(MXFP4, axis=0, block=32) = constant u8[1] [7]
  %plain = constant f32[3] [0.1, -0, nan(0x7fc00001)]
  %s = constant string[2] ["a", "\xff"]
  %xq: f32[1,3] # u8(scale=0.0078, zero=128) = Quantize(%x)
  %y: f32[*] # s4(axis=1, block=32, scale=f16[1,2] [0.5, 65504]), _ = com.microsoft::QGemm(%xq, _, %w) {alpha=1.0, beta=-0.5, n=-1, mode="linear", t=f32[] 2.5, i=[1, 2], f=[1.0, nan(0x7fc00000), -inf], s=["a"], e=ints[], ef=floats[], es=strings[], "odd key"=opaque hex"0a"} @fc/MatMul overload="o" form=qlinear extras=hex"04"
  %"odd name:0": bool[] = If(%n) {then_branch=graph @then() -> (%t) {
    %k = constant s64[] 5
    %t = "a \"domain\""::"odd op"(%k, %xq)
  }, else_branch=graph @""() -> (%w) {
  }} form=qdq
  () = ""::Quantize()
  _ = "constant"() @"node name"
}
)");
}

TEST(Text, TheExampleOfTheDocumentationParses) {
  std::ifstream in(OCTAVO_SOURCE_DIR "/docs/ir.md");
  const std::string page((std::istreambuf_iterator<char>(in)), {});
  const std::size_t start = page.find("```\n");
  ASSERT_NE(start, std::string::npos);
  const Model m = Parse(page.substr(start + 4, page.find("```", start + 4) - start - 4));
  EXPECT_EQ(m.graph->node_count(), 3u);
  EXPECT_THAT(Print(m), HasSubstr("%c: f32[1,8,?,?] # u8(scale=0.0235, zero=0) = Conv(%xq, %w) {strides=[2, 2], "));
}

TEST(Text, SketchOfTheDesign) {
  const Model m = Parse(R"(
// Comments and layout are free; the header may be left out.
graph @cls(%x: f32[1,3,48,192]) -> (%c) {
  %w: f32[8,3,3,3] # s8(axis=0, scale=f32[8] splat(0.5)) = constant s8[8,3,3,3] splat(1)
  %xq: f32[1,3,48,192] # u8(scale=0.0078, zero=128) = Quantize(%x)
  %c: f32[1,8,24,96] # u8(scale=0.0235, zero=0) = Conv(%xq, %w) {strides=[2,2], pads=[1,1,1,1]}  // Relu absorbed
})");
  EXPECT_THAT(Verify(m), IsEmpty());
  const Value* c = m.graph->outputs()[0];
  EXPECT_EQ(c->type.quant->affine.scale.ToFloats()[0], 0.0235f);
  EXPECT_EQ(c->type.quant->affine.zero_point->dtype, DType::kU8);
  EXPECT_EQ(c->producer()->input(0)->producer()->domain(), kIrDomain);
  EXPECT_EQ(c->producer()->input(1)->type.quant->affine.scale.ToFloats(), std::vector<float>(8, 0.5f));
  EXPECT_EQ(*c->producer()->IntsAttribute("strides"), (std::vector<std::int64_t>{2, 2}));
}

TEST(Text, FullPrintOfRandomModelsParsesToTheSameModel) {
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    testing::RandomModel random(seed);
    const Model m = random.Make(random.Int(0, 30));
    ASSERT_THAT(Verify(m), IsEmpty()) << "seed " << seed;
    const std::string text = Print(m, kFull);
    const Model again = Parse(text);
    ASSERT_EQ(Difference(m, again), "") << "seed " << seed << "\n" << text;
    ASSERT_EQ(Print(again, kFull), text) << "seed " << seed;
    ASSERT_THAT(Verify(again), IsEmpty()) << "seed " << seed;
  }
}

// Everything but the values in blobs survives the short form too.
TEST(Text, ShortPrintOfRandomModelsParses) {
  for (std::uint64_t seed = 1000; seed < 1200; ++seed) {
    testing::RandomModel random(seed);
    const Model m = random.Make(random.Int(0, 20));
    const Model again = Parse(Print(m));
    EXPECT_EQ(again.graph->node_count(), m.graph->node_count());
    EXPECT_EQ(again.graph->constant_count(), m.graph->constant_count());
  }
}

// Random cuts and changes of valid text: an error or a model, never anything else, and what parses prints to a fixed
// point.
TEST(Text, DamagedTextIsRefusedOrParsed) {
  int refused = 0;
  int parsed = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    testing::RandomModel random(seed / 100);
    std::string text = Print(random.Make(6), kFull);
    std::mt19937_64 rng(seed);
    for (int edits = 1 + static_cast<int>(rng() % 3); edits > 0 && !text.empty(); --edits) {
      const std::size_t at = rng() % text.size();
      switch (rng() % 3) {
        case 0:
          text.erase(at, 1 + rng() % 4);
          break;
        case 1:
          text[at] = "(){}[]%#=,:\"0-9axfe_ "[rng() % 21];
          break;
        default:
          text.insert(at, text.substr(rng() % text.size(), 1 + rng() % 12));
      }
    }
    try {
      const Model m = Parse(text, "damaged", {.max_fill_bytes = 1 << 20});
      const std::string printed = Print(m, kFull);
      ASSERT_EQ(Print(Parse(printed), kFull), printed) << "seed " << seed;
      ++parsed;
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ExitCode::kBadInput) << e.what();
      ASSERT_THAT(e.what(), HasSubstr("damaged:"));
      ++refused;
    }
  }
  EXPECT_GT(refused, 300);
  EXPECT_GT(parsed, 30);
}

TEST(Text, BlobsNameTheirContentAndParseToZeros) {
  std::vector<float> values(17);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  Model m;
  m.graph = std::make_unique<Graph>();
  m.graph->AddConstant("w", TensorRef::FromFloats({17}, values));
  const std::string text = Print(m);
  EXPECT_THAT(text, HasSubstr("%w = constant f32[17] blob<"));
  EXPECT_EQ(Parse(text).graph->FindValue("w")->data->ToFloats(), std::vector<float>(17, 0.0f));
  values[3] = 5;
  m.graph->FindValue("w")->data = TensorRef::FromFloats({17}, values);
  EXPECT_NE(Print(m), text);
  EXPECT_THAT(Print(m, {.max_literal_elements = 17}), HasSubstr("[0, 1, 2, 5,"));
  EXPECT_THAT(Print(m, kFull), HasSubstr("[0, 1, 2, 5,"));
}

TEST(Text, ParameterValuesOfEveryFloatType) {
  const Model m = Parse(R"(graph () -> () {
  %a = constant f32[7] [1, 1e-45, -0, inf, -inf, nan, 0x7f800001]
  %b = constant f64[3] [0.1, 1e308, nan(0x7ff8000000000001)]
  %c = constant f16[4] [0.1, 65504, nan(0x7e01), 6e-8]
  %d = constant bf16[2] [3.140625, 1e38]
  %e = constant f8e4m3fn[2] [0x38, 0xff]
  %f = constant u64[1] [18446744073709551615]
  %g = constant s64[1] [-9223372036854775808]
  %h = constant bool[3] [true, false, 1]
  %i = constant c64[1] hex"0000803f00000000"
  %j = constant s4[3] [-8, 7, -1]
  %k = constant f32[0] []
})");
  const auto bits = [&](const char* name, std::uint64_t i) { return ElementBits(*m.graph->FindValue(name)->data, i); };
  EXPECT_EQ(bits("a", 1), 1u);
  EXPECT_EQ(bits("a", 2), 0x80000000u);
  EXPECT_EQ(bits("a", 5), 0x7fc00000u);
  EXPECT_EQ(bits("a", 6), 0x7f800001u);
  EXPECT_EQ(bits("b", 0), std::bit_cast<std::uint64_t>(0.1));
  EXPECT_EQ(bits("b", 2), 0x7ff8000000000001u);
  EXPECT_EQ(bits("c", 0), 0x2e66u);
  EXPECT_EQ(bits("c", 2), 0x7e01u);
  EXPECT_EQ(bits("c", 3), 1u);
  EXPECT_EQ(bits("e", 1), 0xffu);
  EXPECT_EQ(bits("f", 0), ~std::uint64_t{0});
  EXPECT_EQ(bits("g", 0), std::uint64_t{1} << 63);
  EXPECT_EQ(m.graph->FindValue("h")->data->ToInts(), (std::vector<std::int64_t>{1, 0, 1}));
  EXPECT_EQ(m.graph->FindValue("j")->data->ToInts(), (std::vector<std::int64_t>{-8, 7, -1}));
  EXPECT_EQ(Difference(m, Parse(Print(m, kFull))), "");
}

TEST(Text, BrokenModelsPrint) {
  Model m;
  EXPECT_EQ(Print(m), "ir_version = 8\n");
  m.graph = std::make_unique<Graph>();
  Value* w = m.graph->AddConstant("w", TensorRef::Scalar(1));
  w->data->dims = {5};
  EXPECT_THAT(Print(m), HasSubstr("f32[5] hex\"0000803f\""));
  w->data.reset();
  EXPECT_THAT(Print(m), HasSubstr("= constant none"));
}

TEST(Text, NamesCannotDriveTheTerminal) {
  Model m;
  m.graph = std::make_unique<Graph>();
  m.graph->name = "caf\xC3\xA9 \x1b[2J \xC2\x9B \xED\xA0\x80 \xFF";
  EXPECT_THAT(Print(*m.graph), StartsWith("graph @\"caf\xC3\xA9 \\x1b[2J \\xc2\\x9b \\xed\\xa0\\x80 \\xff\"("));
  EXPECT_EQ(Parse(Print(m)).graph->name, m.graph->name);
}

TEST(Text, ErrorsNameLineAndColumn) {
  EXPECT_EQ(Refusal("graph (%x: f32[1]) -> () {\n  %y = Relu(%z)\n}"), "no value 'z' is visible here: t:2:13");
  EXPECT_EQ(Refusal("graph (%x: f32[1]) -> () {\n  %x = Relu(%x)\n}"), "value 'x' is defined twice: t:2:3");
  EXPECT_EQ(Refusal("grahp () -> () {}"),
            "expected ir_version, opset, metadata, function, extras or graph, found 'grahp': t:1:1");
}

TEST(Text, Refusals) {
  const auto body = [](const std::string& line) { return Refusal("graph (%x: f32[1]) -> () {\n" + line + "\n}"); };
  EXPECT_THAT(Refusal(""), HasSubstr("found the end: t:1:1"));
  EXPECT_THAT(Refusal("graph () -> () {"), HasSubstr("t:1:17"));
  EXPECT_THAT(Refusal("graph () -> () {} graph"), HasSubstr("expected the end of the text"));
  EXPECT_THAT(Refusal("graph (%x) -> () {}"), HasSubstr("an input needs a type: t:1:8"));
  EXPECT_THAT(Refusal("graph () -> (%y) {}"), HasSubstr("no value 'y' is visible here: t:1:14"));
  EXPECT_THAT(Refusal("metadata \"a\" = \"\" metadata \"a\" = \"\" graph () -> () {}"), HasSubstr("twice"));
  EXPECT_THAT(Refusal("extras = hex\"abc\" graph () -> () {}"), HasSubstr("odd number"));
  EXPECT_THAT(Refusal("extras = hex\"ag\" graph () -> () {}"), HasSubstr("not a hexadecimal digit"));
  EXPECT_THAT(Refusal("metadata \"a"), HasSubstr("string without an end: t:1:10"));
  EXPECT_THAT(Refusal("metadata \"\\q\""), HasSubstr("unknown escape"));
  EXPECT_THAT(body("%y, %y = Op()"), HasSubstr("value 'y' is defined twice: t:2:5"));
  EXPECT_THAT(body("% = Op()"), HasSubstr("expected a name"));
  EXPECT_THAT(body("%\"\" = Op()"), HasSubstr("expected a name"));
  EXPECT_THAT(body("%y, %z = constant f32[] 1"), HasSubstr("a constant defines one value"));
  EXPECT_THAT(body("%y: f33[1] = Op()"), HasSubstr("expected an element type, found 'f33': t:2:5"));
  EXPECT_THAT(body("%y: f32[-1] = Op()"), HasSubstr("negative dimension"));
  EXPECT_THAT(body("%y = constant f32[-1] []"), HasSubstr("negative dimension"));
  EXPECT_THAT(body("%y = constant f32[2] [1]"), HasSubstr("fewer elements"));
  EXPECT_THAT(body("%y = constant f32[2] [1, 2, 3]"), HasSubstr("more elements"));
  EXPECT_THAT(body("%y = constant f32[2] hex\"00\""), HasSubstr("1 bytes for a tensor of 8"));
  EXPECT_THAT(body("%y = constant f32[1] [1e99]"), HasSubstr("within the range of f32"));
  EXPECT_THAT(body("%y = constant u8[1] [256]"), HasSubstr("within the range of u8"));
  EXPECT_THAT(body("%y = constant s4[1] [8]"), HasSubstr("within the range of s4"));
  EXPECT_THAT(body("%y = constant u8[1] [0x100]"), HasSubstr("fit the element type"));
  EXPECT_THAT(body("%y = constant u8[1] [nan]"), HasSubstr("as 0x3c"));
  EXPECT_THAT(body("%y = constant f8e5m2[1] [1.5]"), HasSubstr("as 0x3c"));
  EXPECT_THAT(body("%y = constant ?[1] [1]"), HasSubstr("needs an element type"));
  EXPECT_THAT(body("%y = constant f32[17] blob<0123>"), HasSubstr("16 hexadecimal digits"));
  EXPECT_THAT(body("%y: f32[1] # s8(axis=0) = Op()"), HasSubstr("without a scale"));
  EXPECT_THAT(body("%y: f32[1] # s8(scale=1, size=2) = Op()"), HasSubstr("unknown quantization parameter 'size'"));
  EXPECT_THAT(body("%y: f32[1] # string(scale=1) = Op()"), HasSubstr("not a storage type"));
  EXPECT_THAT(body("%y: f32[1] # ggml(Q8_0, block=1) = Op()"), HasSubstr("expected axis"));
  EXPECT_THAT(body("%y = Op() {a=1, a=2}"), HasSubstr("attribute 'a' twice: t:2:17"));
  EXPECT_THAT(body("%y = Op() {a=[]}"), HasSubstr("an empty list says its kind"));
  EXPECT_THAT(body("%y = Op() {a=[1, 2.5]}"), HasSubstr("the first element of a list tells its kind"));
  EXPECT_THAT(body("%y = Op() {a=99999999999999999999}"), HasSubstr("expected an integer"));
  EXPECT_THAT(body("%y = Op() {a=what}"), HasSubstr("expected an attribute's value"));
  EXPECT_THAT(body("%y = Op() form=other"), HasSubstr("expected qdq or qlinear"));
  EXPECT_THAT(body("%y = Op(%x"), HasSubstr("expected ','"));
  // The branch's value would hide a value that is defined after it.
  EXPECT_THAT(body("%y = If() {b=graph () -> () { %z = Op() }}\n%z = Op()"), HasSubstr("'z' is defined twice"));
}

TEST(Text, HostileSizesAreBounded) {
  const auto constant = [](const std::string& literal) {
    return Refusal("graph () -> () {\n%y = constant " + literal + "\n}", {.max_fill_bytes = 1 << 20});
  };
  EXPECT_THAT(constant("f32[4611686018427387904] [1]"), HasSubstr("needs an element type and a size"));
  EXPECT_THAT(constant("f32[9223372036854775807,9] [1]"), HasSubstr("overflow"));
  EXPECT_THAT(constant("f32[99999999999] [1]"), HasSubstr("fewer elements"));
  EXPECT_THAT(constant("string[99999999999] [\"\"]"), HasSubstr("fewer elements"));
  EXPECT_THAT(constant("f32[99999999999] splat(1)"), HasSubstr("too large"));
  EXPECT_THAT(constant("string[9223372036854775807] blob<0123456789abcdef>"), HasSubstr("too large"));
  EXPECT_THAT(constant("u8[700000] blob<0123456789abcdef>\n%z = constant u8[700000] splat(1)"),
              HasSubstr("too large together: t:3:15"));
  std::string deep = "graph () -> () {";
  for (int i = 0; i < 100000; ++i) deep += "_ = If() {b=graph () -> () {";
  EXPECT_THAT(Refusal(deep), HasSubstr("nested deeper than 64"));
  std::string just = "graph () -> () {";
  for (int i = 1; i < 64; ++i) just += "_ = If() {b=graph () -> () {";
  for (int i = 1; i < 64; ++i) just += "}}";
  EXPECT_EQ(Refusal(just + "}"), "(parsed)");
}

}  // namespace
}  // namespace octavo
