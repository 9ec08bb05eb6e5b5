// The rules of the quantized road, run before and after in ONNX Runtime with optimizations off: taken cases,
// exhaustive ones, and the driver.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "octavo/base/error.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/numerics/affine.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/rewrite/quantized_test_util.h"
#include "octavo/rewrite/rules/quantized.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using testing::ClassOf;
using testing::Codes;
using testing::Compare;
using testing::Cpu;
using ::testing::HasSubstr;
using testing::Ints;
using testing::Only;
using testing::ParseIr;
using testing::RunQdq;
using testing::RunQLinear;
using testing::Violation;

std::string Params(const char* type, double scale, int zero) {
  char text[80];
  std::snprintf(text, sizeof text, "# %s(scale=%.9g, zero=%d)", type, scale, zero);
  return text;
}
// --- Exhaustive --------------------------------------------------------------------------------------------------

// Random parameters of usual sizes.
std::vector<std::pair<double, int>> RandomParams(int n, int low, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<std::pair<double, int>> out;
  for (int i = 0; i < n; ++i) {
    out.emplace_back(std::ldexp(std::uniform_real_distribution<double>(1, 2)(rng), -static_cast<int>(rng() % 4) - 5),
                     low + static_cast<int>(rng() % 256));
  }
  return out;
}

void RunExhaustive(const std::string& rule, const std::string& text, const std::vector<TensorRef>& inputs,
                   int opset = 21) {
  SCOPED_TRACE(text);
  Model model = ParseIr(text, opset);
  const std::vector<TensorRef> before = RunQdq(model, inputs);
  const QuantizedRewriteResult result = RewriteQuantized(model, Cpu(), Only({rule}));
  ASSERT_EQ(result.rules.rules[0].applied, 1) << (result.rules.trace.empty() ? "" : result.rules.trace[0].reason);
  EXPECT_EQ(Violation(Compare(before, RunQLinear(model, inputs)), ClassOf(rule)), "");
}

class Exhaustive : public ::testing::TestWithParam<const char*> {
 protected:
  DType type() const { return *ParseDType(GetParam()); }
  int low() const { return static_cast<int>(IntegerMin(type())); }
  TensorRef All(Dims dims) const {
    return Codes(type(), std::move(dims), [&](std::size_t i) { return static_cast<std::int64_t>(i % 256) + low(); });
  }
};

TEST_P(Exhaustive, Binary) {
  const std::string t = GetParam();
  const auto p = RandomParams(36, low(), 11);
  for (std::size_t i = 0; i + 2 < p.size(); i += 3) {
    for (const char* op : {"Add", "Mul"}) {
      // The product's natural step, so that its codes are not all one.
      const double scale = op[0] == 'M' ? p[i].first * p[i + 1].first * 100 : p[i + 2].first;
      RunExhaustive("qlinear-binary",
                    "graph @g(%a: " + t + "[256,1], %b: " + t + "[1,256]) -> (%yc) {\n" + "%x: f32[256,1] " +
                        Params(GetParam(), p[i].first, p[i].second) + " = StorageCast(%a)\n" + "%w: f32[1,256] " +
                        Params(GetParam(), p[i + 1].first, p[i + 1].second) + " = StorageCast(%b)\n" +
                        "%y: f32[256,256] " + Params(GetParam(), scale, p[i + 2].second) + " = " + op + "(%x, %w)\n" +
                        "%yc: " + t + "[256,256] = StorageCast(%y)\n}",
                    {All({256, 1}), All({1, 256})});
    }
  }
}

TEST_P(Exhaustive, Table) {
  const std::string t = GetParam();
  const auto p = RandomParams(60, low(), 12);
  for (std::size_t i = 0; i + 1 < p.size(); i += 2) {
    for (const char* op : {"Sigmoid", "LeakyRelu"}) {
      const double scale = op[0] == 'S' ? 1.0 / 256 : p[i + 1].first;
      RunExhaustive("qlinear-table",
                    "graph @g(%a: " + t + "[256]) -> (%yc) {\n%x: f32[256] " +
                        Params(GetParam(), p[i].first * 4, p[i].second) + " = StorageCast(%a)\n%y: f32[256] " +
                        Params(GetParam(), scale, op[0] == 'S' ? low() : p[i + 1].second) + " = " + op +
                        "(%x)\n%yc: " + t + "[256] = StorageCast(%y)\n}",
                    {All({256})});
    }
  }
}

TEST_P(Exhaustive, Join) {
  const std::string t = GetParam();
  const auto p = RandomParams(30, low(), 13);
  for (std::size_t i = 0; i + 2 < p.size(); i += 3) {
    const std::string head = "%x: f32[256] " + Params(GetParam(), p[i].first, p[i].second) +
                             " = StorageCast(%a)\n%w: f32[256] " + Params(GetParam(), p[i + 1].first, p[i + 1].second) +
                             " = StorageCast(%b)\n";
    RunExhaustive("qlinear-join",
                  "graph @g(%a: " + t + "[256], %b: " + t + "[256]) -> (%yc) {\n" + head + "%y: f32[512] " +
                      Params(GetParam(), p[i + 2].first, p[i + 2].second) + " = Concat(%x, %w) {axis=0}\n%yc: " + t +
                      "[512] = StorageCast(%y)\n}",
                  {All({256}), All({256})});
    const std::vector<std::byte> yes(256, std::byte{1}), no(256, std::byte{0});
    for (const auto& condition : {yes, no}) {
      RunExhaustive("qlinear-join",
                    "graph @g(%c: bool[256], %a: " + t + "[256], %b: " + t + "[256]) -> (%yc) {\n" + head +
                        "%y: f32[256] " + Params(GetParam(), p[i + 2].first, p[i + 2].second) +
                        " = Where(%c, %x, %w)\n%yc: " + t + "[256] = StorageCast(%y)\n}",
                    {TensorRef::FromBytes(DType::kBool, {256}, condition), All({256}), All({256})});
    }
  }
}

TEST_P(Exhaustive, Pool) {
  const std::string t = GetParam();
  const auto p = RandomParams(24, low(), 14);
  for (std::size_t i = 0; i + 1 < p.size(); i += 2) {
    const std::int64_t n = 1 + static_cast<std::int64_t>(i / 2) % 9;
    const std::int64_t sums = 255 * n + 1;  // row r has codes that add up to r
    const std::string rows = std::to_string(sums), window = std::to_string(n);
    const TensorRef x = Codes(type(), {sums, 1, 1, n}, [&](std::size_t k) {
      const auto r = static_cast<std::int64_t>(k) / n, c = static_cast<std::int64_t>(k) % n;
      return std::clamp<std::int64_t>(r - 255 * c, 0, 255) + low();
    });
    for (const std::string& op :
         {std::string("GlobalAveragePool(%x)"), "AveragePool(%x) {kernel_shape=[1," + window + "]}"}) {
      RunExhaustive("qlinear-pool",
                    "graph @g(%a: " + t + "[" + rows + ",1,1," + window + "]) -> (%yc) {\n%x: f32[" + rows + ",1,1," +
                        window + "] " + Params(GetParam(), p[i].first, p[i].second) + " = StorageCast(%a)\n%y: f32[" +
                        rows + ",1,1,1] " + Params(GetParam(), p[i + 1].first, p[i + 1].second) + " = " + op +
                        "\n%yc: " + t + "[" + rows + ",1,1,1] = StorageCast(%y)\n}",
                    {x});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Codes, Exhaustive, ::testing::Values("u8", "s8"),
                         [](const auto& param) { return std::string(param.param); });

// --- Thresholds --------------------------------------------------------------------------------------------------

// Layers whose accumulator takes every integer of [0, 65280]: two products with weights 1 and 255. A bias moves the
// window; the kernel's result never decreases, and is within a step of the QDQ form at every one of them, so at every
// threshold between two codes.
void RunThresholds(const std::string& layer, const std::string& rule, bool bias, bool quantized) {
  constexpr std::int64_t kSums = 65281;
  const std::string rows = std::to_string(kSums);
  std::mt19937_64 rng(17);
  for (int round = 0; round < 6; ++round) {
    const double sx = std::ldexp(std::uniform_real_distribution<double>(1, 2)(rng), -7);
    const double sw = std::ldexp(std::uniform_real_distribution<double>(1, 2)(rng), -9);
    // The whole window in 256 codes, a part of it that saturates on both sides, one step a sum.
    const double sy = sx * sw * (round % 3 == 0 ? 256.01 : round % 3 == 1 ? 40.3 : 1.0001 * 255.5);
    const int zy = round % 2 == 0 ? 0 : 128;
    const std::int64_t shift = round % 2 == 0 ? 0 : -32640 - static_cast<std::int64_t>(rng() % 7);
    const bool conv = layer == "Conv";
    const std::string xshape = conv ? rows + ",2,1" : rows + ",2", yshape = conv ? rows + ",1,1" : rows + ",1";
    char sb[40];
    std::snprintf(sb, sizeof sb, "%.9g", static_cast<double>(static_cast<float>(sx) * static_cast<float>(sw)));
    const std::string text =
        "graph @g(%a: u8[" + xshape + "]) -> (%yc) {\n%x: f32[" + xshape + "] " + Params("u8", sx, 0) +
        " = StorageCast(%a)\n" + "%w: f32[" + (conv ? "1,2,1" : "2,1") + "] " + Params("u8", sw, 0) +
        " = constant u8[" + (conv ? "1,2,1" : "2,1") + "] [1, 255]\n" +
        (bias ? "%b: f32[1] # s32(scale=" + std::string(sb) + ") = constant s32[1] [" + std::to_string(shift) + "]\n"
              : std::string()) +
        (quantized ? "%y: f32[" + yshape + "] " + Params("u8", sy, zy) : "%yc: f32[" + yshape + "]") + " = " + layer +
        "(%x, %w" + (bias ? ", %b" : "") + ")\n" + (quantized ? "%yc: u8[" + yshape + "] = StorageCast(%y)\n" : "") +
        "}";
    SCOPED_TRACE(text);
    Model model = ParseIr(text);
    const TensorRef x = Codes(DType::kU8, conv ? Dims{kSums, 2, 1} : Dims{kSums, 2}, [](std::size_t k) {
      const auto sum = static_cast<std::int64_t>(k / 2);
      const std::int64_t high = sum / 255;  // 255 * high + low; the last sums take low up to 255
      return k % 2 == 1 ? std::min<std::int64_t>(high, 255) : sum - 255 * std::min<std::int64_t>(high, 255);
    });
    const std::vector<TensorRef> before = RunQdq(model, {x});
    ASSERT_EQ(RewriteQuantized(model, Cpu(), Only({rule})).rules.rules[0].applied, 1);
    const std::vector<TensorRef> after = RunQLinear(model, {x});
    EXPECT_EQ(Violation(Compare(before, after), ClassOf(rule)), "");
    if (quantized) {
      const std::vector<std::int64_t> codes = after[0].ToInts();
      EXPECT_TRUE(std::is_sorted(codes.begin(), codes.end())) << "the requantization is not monotone";
    } else {
      // One rounding of the exact sum times the scale (and one of the scales' product).
      const std::vector<float> values = after[0].ToFloats();
      for (std::int64_t s = 0; s < kSums; ++s) {
        const double exact =
            static_cast<double>(s + (bias ? shift : 0)) * static_cast<float>(sx) * static_cast<float>(sw);
        ASSERT_NEAR(values[static_cast<std::size_t>(s)], exact, std::fabs(exact) * 3e-7 + 1e-12) << s;
      }
    }
  }
}

TEST(Threshold, QLinearConv) { RunThresholds("Conv", "qlinear-conv", true, true); }
TEST(Threshold, QLinearMatMul) { RunThresholds("MatMul", "qlinear-matmul", false, true); }
TEST(Threshold, QGemm) { RunThresholds("Gemm", "qgemm", true, true); }
TEST(Threshold, MatMulIntegerToFloat) { RunThresholds("MatMul", "matmul-integer-to-float", false, false); }
TEST(Threshold, QGemmToFloat) { RunThresholds("Gemm", "qgemm-to-float", true, false); }

// Sums near the ends of int32, where f32 has fewer digits than the sum: still within a step.
TEST(Threshold, LargeSums) {
  for (const std::int64_t bias : {std::int64_t{2000000000}, std::int64_t{-2000000000}}) {
    const double unit = 1.0 / 1024;
    const double sy = unit * 2.1e9 / 255;
    const std::string text = "graph @g(%a: u8[256,1,1]) -> (%yc) {\n%x: f32[256,1,1] " + Params("u8", unit, 0) +
                             " = StorageCast(%a)\n%w: f32[1,1,1] " + Params("u8", 1.0, 0) +
                             " = constant u8[1,1,1] [255]\n%b: f32[1] # s32(scale=0.0009765625) = constant s32[1] [" +
                             std::to_string(bias) + "]\n%y: f32[256,1,1] " + Params("u8", sy, bias > 0 ? 0 : 255) +
                             " = Conv(%x, %w, %b)\n%yc: u8[256,1,1] = StorageCast(%y)\n}";
    RunExhaustive("qlinear-conv", text,
                  {Codes(DType::kU8, {256, 1, 1}, [](std::size_t i) { return static_cast<std::int64_t>(i); })});
  }
}

// --- Other oracles -----------------------------------------------------------------------------------------------

// The runtime's integer kernels write nothing where there is nothing to sum; its float products write the bias or
// zeros.
TEST(Layers, SumsOfNothingStayFloat) {
  const std::string head = "graph @g(%a: u8[3,0]) -> (%o) {\n%x: f32[3,0] # u8(scale=0.5, zero=7) = StorageCast(%a)\n";
  const std::string w = "%w: f32[0,4] # u8(scale=0.5, zero=7) = constant u8[0,4] []\n";
  const std::string tail = "\n%o: u8[3,4] = StorageCast(%y)\n}";
  const std::string y = "%y: f32[3,4] # u8(scale=0.5, zero=100) = ";
  for (const std::string& text : std::vector<std::string>{
           head + w + y + "MatMul(%x, %w)" + tail, head + w + y + "Gemm(%x, %w)" + tail,
           head + w + "%o: f32[3,4] = MatMul(%x, %w)\n}", head + w + "%o: f32[3,4] = Gemm(%x, %w)\n}",
           "graph @g(%a: u8[1,0,3]) -> (%o) {\n%x: f32[1,0,3] # u8(scale=0.5, zero=7) = StorageCast(%a)\n%w: "
           "f32[2,0,1] # "
           "u8(scale=0.5, zero=7) = constant u8[2,0,1] []\n%y: f32[1,2,3] # u8(scale=0.5, zero=100) = Conv(%x, "
           "%w)\n%o: "
           "u8[1,2,3] = StorageCast(%y)\n}"}) {
    SCOPED_TRACE(text);
    Model model = ParseIr(text);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 9), before = RunQdq(model, inputs);
    const QuantizedRewriteResult result = RewriteQuantized(model, Cpu(), {});
    EXPECT_EQ(result.integer_layers, 0);
    EXPECT_TRUE(std::any_of(result.rules.trace.begin(), result.rules.trace.end(),
                            [](const TraceEntry& t) { return t.reason.starts_with("it sums nothing"); }));
    // The runtime's float Conv writes nothing either.
    EXPECT_TRUE(text.find("Conv") != std::string::npos || testing::SameBits(before, RunQLinear(model, inputs)));
  }
}

// The layer writes the codes that the product behind it wrote, and becomes an integer one.
TEST(ScaleIntoWeight, KeepsTheQuantizationOfItsResult) {
  Model model = ParseIr(
      "graph @g(%a: u8[1,2,3]) -> (%o) {\n%x: f32[1,2,3] # u8(scale=0.5, zero=7) = StorageCast(%a)\n%w: f32[2,2,1] # "
      "u8(scale=0.25, zero=7) = constant u8[2,2,1] [1,200,30,44]\n%k = constant f32[2,1] [0.5,4]\n%c: f32[1,2,3] = "
      "Conv(%x, %w)\n%y: f32[1,2,3] # u8(scale=30, zero=100) = Mul(%c, %k)\n%o: u8[1,2,3] = StorageCast(%y)\n}");
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 9), before = RunQdq(model, inputs);
  const QuantizedRewriteResult result = RewriteQuantized(model, Cpu(), Only({"scale-into-weight", "qlinear-conv"}));
  EXPECT_EQ(result.rules.rules[0].applied, 1);
  EXPECT_EQ(result.integer_layers, 1);
  EXPECT_EQ(Violation(Compare(before, RunQLinear(model, inputs)), RuleClass::kOneLsb), "");
}

TEST(FloatWeight, SameBitsAsTheRuntime) {
  const std::string text =
      "graph @g(%x: f32[1,4,5]) -> (%y) {\n%w: f32[4,4,1] # s8(axis=1, scale=f32[4] [0.5, 0.1, 0.013, 3], zero=s8[4] "
      "[0, 3, -128, 127]) = constant s8[4,4,1] [1,-2,3,-4,5,-6,7,-8,-128,127,0,1,2,3,4,5]\n%y: f32[1,4,5] = Conv(%x, "
      "%w)\n}";
  Model model = ParseIr(text);
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 3);
  const std::vector<TensorRef> before = RunQdq(model, inputs);
  EXPECT_EQ(RewriteQuantized(model, Cpu(), Only({"float-weight"})).rules.rules[0].applied, 1);
  EXPECT_TRUE(testing::SameBits(before, RunQLinear(model, inputs)));
}

// A packed constant would be summed in another order; and a sum of scales along an axis cannot be loaded.
TEST(FloatWeight, RowsOfAProductAndScalesOfASum) {
  const std::string w = "%w: f32[37,3] # s8(axis=0, scale=f32[37] " +
                        Ints(37, [](std::size_t i) { return i % 5 + 1; }) + ") = constant s8[37,3] " +
                        Ints(111, [](std::size_t i) { return (i * 37) % 251 - 125; }) + "\n";
  const std::string head =
      "graph @g(%a: u8[1,37]) -> (%y) {\n%x: f32[1,37] # u8(scale=0.013, zero=3) = StorageCast(%a)\n";
  for (const std::string& text : std::vector<std::string>{
           head + w + "%y: f32[1,3] = MatMul(%x, %w)\n}", head + w + "%y: f32[1,3] = Gemm(%x, %w)\n}",
           "graph @g(%a: u8[2,37,3]) -> (%o) {\n%x: f32[2,37,3] # u8(scale=0.013, zero=3) = StorageCast(%a)\n" + w +
               "%y: f32[2,37,3] # u8(scale=0.1, zero=100) = Add(%w, %x)\n%o: u8[2,37,3] = StorageCast(%y)\n}"}) {
    SCOPED_TRACE(text);
    Model model = ParseIr(text);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 3), before = RunQdq(model, inputs);
    EXPECT_EQ(RewriteQuantized(model, Cpu(), Only({"float-weight"})).rules.rules[0].applied, 1);
    EXPECT_TRUE(testing::SameBits(before, RunQLinear(model, inputs)));
  }
}

TEST(Blocks, RepackingKeepsEveryCode) {
  // Unit vectors read the weights back one by one; every code is there, with partial blocks.
  const std::string text =
      "graph @g(%x: f32[40,40], %i: s64[16]) -> (%y, %z) {\n%w: f32[40,3] # s4(axis=0, block=16, scale=f32[3,3] "
      "[1,2,4,0.5,0.25,8,3,5,7]) = constant s4[40,3] " +
      Ints(120, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; }) +
      "\n%e: f32[16,32] # s4(axis=1, block=16, scale=f32[16,2] " +
      Ints(32, [](std::size_t i) { return static_cast<std::int64_t>(i + 1); }) + ") = constant s4[16,32] " +
      Ints(512, [](std::size_t i) { return static_cast<std::int64_t>(i * 5 % 16) - 8; }) +
      "\n%y: f32[40,3] = MatMul(%x, %w)\n%z: f32[16,32] = Gather(%e, %i)\n}";
  Model model = ParseIr(text);
  std::vector<float> identity(1600, 0.0f);
  for (std::size_t i = 0; i < 40; ++i) identity[i * 41] = 1;
  const std::vector<TensorRef> inputs = {
      TensorRef::FromFloats({40, 40}, identity),
      Codes(DType::kS64, {16}, [](std::size_t i) { return static_cast<std::int64_t>(15 - i); })};
  const std::vector<TensorRef> before = RunQdq(model, inputs);
  EXPECT_EQ(RewriteQuantized(model, Cpu(), Only({"block-weights"})).rules.rules[0].applied, 2);
  EXPECT_TRUE(testing::SameBits(before, RunQLinear(model, inputs)));
}

// Dimensions that a Slice cannot be listed for: none at all (a step back from the end), and more than fit in memory.
TEST(MoveParameters, SlicesOfNothingAndOfTooMuchAreRefused) {
  for (const auto& [rows, left] : {std::pair("0", "0"), std::pair("4611686018427387904", "1")}) {
    SCOPED_TRACE(rows);
    Model model = ParseIr("graph @g(%a: u8[" + std::string(rows) + ",4]) -> (%o) {\n%x: f32[" + rows +
                          ",4] # u8(axis=1, scale=f32[4] [0.01,0.2,0.03,4], zero=u8[4] [1,2,3,4]) = StorageCast(%a)\n"
                          "%s = constant s64[1] [-1]\n%e = constant s64[1] [-2]\n%c = constant s64[1] [0]\n"
                          "%d = constant s64[1] [-1]\n%y: f32[" +
                          left + ",4] = Slice(%x, %s, %e, %c, %d)\n%o: f32[" + left + ",4] = Relu(%y)\n}");
    const QuantizedRewriteResult result = RewriteQuantized(model, Cpu(), Only({"move-parameters"}));
    EXPECT_EQ(result.rules.rules[0].applied, 0);
    EXPECT_EQ(result.rules.rules[0].refused, 1);
  }
}

// A bias near 2^31 beside weights of zero: the worst weights would overflow, these do not; one code more, and it is
// left, unless the output's step is more than twice what a sum that wraps around is off by.
TEST(QLinearConv, ABiasBesideSmallWeightsFits) {
  struct Case {
    int code;
    std::string scale;
    bool taken;
  };
  for (const auto& [code, scale, taken] : {Case{128, "100", true}, Case{129, "100", false}, Case{129, "11000", true}}) {
    Model model = ParseIr(
        "graph @g(%a: u8[1,2,8]) -> (%o) {\n%x: f32[1,2,8] # u8(scale=1, zero=0) = StorageCast(%a)\n%w: f32[2,2,1] # "
        "u8(axis=0, scale=f32[2] [0.000001,1], zero=u8[2] [128,128]) = constant u8[2,2,1] [" +
        std::to_string(code) +
        ",128,255,0]\n%b: f32[2] # s32(axis=0, scale=f32[2] [0.000001,1]) = constant s32[2] [2147483600,5]\n%y: "
        "f32[1,2,8] # u8(scale=" +
        scale + ", zero=100) = Conv(%x, %w, %b)\n%o: u8[1,2,8] = StorageCast(%y)\n}");
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 5);
    const std::vector<TensorRef> before = RunQdq(model, inputs);
    const QuantizedRewriteResult result = RewriteQuantized(model, Cpu(), Only({"qlinear-conv"}));
    EXPECT_EQ(result.rules.rules[0].applied, taken ? 1 : 0);
    if (!taken) {
      EXPECT_THAT(result.rules.trace[0].reason, HasSubstr("may pass 2^31"));
    }
    EXPECT_EQ(Violation(Compare(before, RunQLinear(model, inputs)), RuleClass::kOneLsb), "");
  }
}

// Constants of all 256 codes, with scales along each axis, through each operator that moves them; slices of blocks
// along their borders.
TEST(MoveParameters, EveryCodeKeepsItsScale) {
  const std::string u8 = Ints(256, [](std::size_t i) { return static_cast<std::int64_t>(i * 37 % 256); });
  const std::string s4 = Ints(256, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; });
  struct Move {
    std::string op, out;
    std::int64_t axis;  // of the scales, in [4,8,8]; 3: blocks of 4 along axis 1
  };
  const std::vector<Move> moves = {{"Transpose(%w) {perm=[2,0,1]}", "8,4,8", 0},
                                   {"Transpose(%w) {perm=[2,0,1]}", "8,4,8", 1},
                                   {"Transpose(%w)", "8,8,4", 3},
                                   {"Reshape(%w, %s)", "2,2,64", 0},
                                   {"Reshape(%w, %s)", "4,8,8,1", 2},
                                   {"Flatten(%w) {axis=1}", "4,64", 0},
                                   {"Unsqueeze(%w, %u)", "4,1,8,8", 1},
                                   {"Gather(%w, %i) {axis=0}", "3,8,8", 0},
                                   {"Gather(%w, %i) {axis=1}", "4,3,8", 2},
                                   {"Slice(%w, %a, %b, %c, %d)", "4,3,8", 1},
                                   {"Slice(%w, %e, %f, %c, %g)", "4,4,8", 1},
                                   {"Slice(%w, %h, %b2, %c)", "4,4,8", 3},
                                   {"Slice(%w, %u, %b3, %u0)", "2,8,8", 3},
                                   {"Reshape(%w, %s)", "4,8,2,4", 3},
                                   {"Reshape(%w, %s)", "32,8", 3},
                                   {"Reshape(%w, %s)", "8,4,8", 3},
                                   {"Reshape(%w, %s)", "2,2,8,8,1", 3},
                                   {"Unsqueeze(%w, %u)", "4,1,8,8", 3},
                                   {"Flatten(%w) {axis=2}", "32,8", 3},
                                   {"Gather(%w, %i) {axis=0}", "3,8,8", 3},
                                   {"Gather(%w, %i) {axis=2}", "4,8,3", 3},
                                   {"Gather(%w, %j) {axis=1}", "4,4,8", 3}};
  for (const Move& move : moves) {
    const bool blocks = move.axis == 3;
    const std::size_t n = move.axis == 0 ? 4 : blocks ? 64 : 8;
    std::string scales = "[";
    for (std::size_t i = 0; i < n; ++i)
      scales += (i ? "," : "") + std::to_string(0.01 * static_cast<double>(i * i + 1));
    const std::string dims = blocks ? "4,2,8" : std::to_string(n);
    const std::string quant =
        blocks ? "s4(axis=1, block=4, scale=f32[" + dims + "] " + scales + "])"
               : "u8(axis=" + std::to_string(move.axis) + ", scale=f32[" + dims + "] " + scales + "], zero=u8[" + dims +
                     "] " + Ints(n, [](std::size_t i) { return static_cast<std::int64_t>(i * 30); }) + ")";
    Dims to;
    for (std::size_t at = 0; at < move.out.size();) {
      const std::size_t end = std::min(move.out.find(',', at), move.out.size());
      to.push_back(std::stoll(move.out.substr(at, end - at)));
      at = end + 1;
    }
    const std::string shape = "s64[" + std::to_string(to.size()) + "] [" + move.out + "]";
    if (move.op.starts_with("Reshape") && move.out == "2,2,64") continue;  // refused: see the mutations
    const std::string text =
        "graph @g(%x: f32[1]) -> (%o) {\n%w: f32[4,8,8] # " + quant + " = constant " + (blocks ? "s4" : "u8") +
        "[4,8,8] " + (blocks ? s4 : u8) + "\n%s = constant " + shape +
        "\n%j = constant s64[4] [4,5,6,-1]\n%u = constant s64[1] [1]\n%u0 = constant s64[1] [0]\n%i = constant s64[3] "
        "[3,0,-1]\n%a = constant s64[1] "
        "[1]\n%b = constant s64[1] [-1]\n%b2 = constant s64[1] [99]\n%b3 = constant s64[1] [3]\n%c = constant s64[1] "
        "[1]\n%d = constant s64[1] [2]\n%e = constant s64[1] [-1]\n%f = constant s64[1] [-99]\n%g = constant s64[1] "
        "[-2]\n%h = constant s64[1] [4]\n%y: f32[" +
        move.out + "] = " + move.op + "\n%o: f32[" + move.out + "] = Add(%y, %x)\n}";
    SCOPED_TRACE(text);
    Model model = ParseIr(text);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 3);
    const std::vector<TensorRef> before = RunQdq(model, inputs);
    const QuantizedRewriteResult result = RewriteQuantized(model, Cpu(), Only({"move-parameters"}));
    EXPECT_EQ(result.rules.rules[0].applied, 1) << (result.rules.trace.empty() ? "" : result.rules.trace[0].reason);
    EXPECT_TRUE(testing::SameBits(before, RunQLinear(model, inputs)));
  }
}

// Constants and inputs of all codes, with scales along each axis and in blocks, split and joined along each axis.
TEST(PartParameters, EveryCodeKeepsItsScale) {
  struct Case {
    int axis, block;
    bool constant;
    std::string refused;  // part of the sentence; empty: taken
  };
  for (int along = 0; along < 3; ++along) {
    for (const Case& c :
         {Case{0, 0, true, ""}, Case{1, 0, true, ""}, Case{2, 0, true, ""}, Case{1, 4, true, ""}, Case{0, 0, false, ""},
          Case{1, 0, false, ""}, Case{2, 0, false, ""}, Case{1, 3, true, along == 1 ? "out of blocks of 3" : ""}}) {
      const Dims dims = {4, 8, 8};
      const std::size_t n = c.block == 4   ? 64
                            : c.block == 3 ? 96
                                           : static_cast<std::size_t>(dims[static_cast<std::size_t>(c.axis)]);
      const std::string shape = c.block == 4 ? "4,2,8" : c.block == 3 ? "4,3,8" : std::to_string(n);
      std::string scales = "[";
      for (std::size_t i = 0; i < n; ++i)
        scales += (i ? "," : "") + std::to_string(0.01 * static_cast<double>(i * i + 1));
      const std::string quant = std::string(c.block > 0 ? "s4" : "u8") + "(axis=" + std::to_string(c.axis) +
                                (c.block > 0 ? ", block=" + std::to_string(c.block) : "") + ", scale=f32[" + shape +
                                "] " + scales + "])";
      Dims half = dims;
      half[static_cast<std::size_t>(along)] /= 2;
      const std::string part =
          "f32[" + std::to_string(half[0]) + "," + std::to_string(half[1]) + "," + std::to_string(half[2]) + "]";
      const std::string axis = " {axis=" + std::to_string(along) + "}\n";
      std::string text = std::string("graph @g(") + (c.constant ? "%a: f32[1]" : "%a: u8[4,8,8]") +
                         ") -> (%o, %p, %r) {\n%w: f32[4,8,8] # " + quant + " = ";
      text += c.constant ? std::string("constant ") + (c.block > 0 ? "s4" : "u8") + "[4,8,8] " +
                               Ints(256,
                                    [&](std::size_t i) {
                                      return c.block > 0 ? static_cast<std::int64_t>(i * 7 % 16) - 8
                                                         : static_cast<std::int64_t>(i * 37 % 256);
                                    })
                         : "StorageCast(%a)";
      text += "\n%b: " + part + ", %c: " + part + " = Split(%w) {num_outputs=2, axis=" + std::to_string(along) + "}\n" +
              "%o: " + part + " = Neg(%b)\n%p: " + part + " = Neg(%c)\n%j: f32[*] = Concat(%c, %b)" + axis +
              "%r: f32[4,8,8] = Neg(%j)\n}";
      SCOPED_TRACE(text);
      Model model = ParseIr(text);
      model.graph->FindValue("j")->type.shape = model.graph->FindValue("w")->type.shape;
      const std::vector<TensorRef> inputs = testing::RandomInputs(model, 3);
      const std::vector<TensorRef> before = RunQdq(model, inputs);
      const QuantizedRewriteResult result = RewriteQuantized(model, Cpu(), Only({"part-parameters"}));
      // The halves have different scales along the axis of scales, the same elsewhere: Concat takes both.
      EXPECT_EQ(result.rules.rules[0].applied, c.refused.empty() ? 2 : 0);
      if (!c.refused.empty()) {
        ASSERT_FALSE(result.rules.trace.empty());
        EXPECT_THAT(result.rules.trace[0].reason, HasSubstr(c.refused));
      }
      EXPECT_TRUE(testing::SameBits(before, RunQLinear(model, inputs)));
    }
  }
}

// Signed and unsigned weights, scales a column and one for all, with a bias and without. Signed ones have 7 bits: on a
// machine without VNNI the runtime's own kernel saturates with more.
TEST(DynamicMatMul, SameNumbers) {
  for (const std::string type : {"u8", "s8"}) {
    for (const std::string scales :
         {"f32[] 0.02", "f32[5] [0.02,0.3,0.001,4,0.05]", "f32[1,5] [0.02,0.3,0.001,4,0.05]"}) {
      for (const bool bias : {false, true}) {
        const std::int64_t low = type == "s8" ? -64 : 0, count = type == "s8" ? 128 : 256;
        const std::string text =
            "graph @g(%x: f32[3,52]) -> (%o) {\n%q: u8[3,52], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)\n%w = "
            "constant " +
            type + "[52,5] " + Ints(260, [&](std::size_t i) { return static_cast<std::int64_t>(i) % count + low; }) +
            "\n%wz = constant " + type + "[] " + (low < 0 ? "-3" : "131") + "\n%ws = constant " + scales +
            "\n%i: s32[3,5] = MatMulInteger(%q, %w, %z, %wz)\n%f: f32[3,5] = Cast(%i) {to=1}\n%m: f32[*] = Mul(%s, "
            "%ws)\n" +
            (bias ? "%k0 = constant f32[5] [1,2,-3,4,5]\n%k: f32[5] = Identity(%k0)\n%p: f32[3,5] = Mul(%m, %f)\n%o: "
                    "f32[3,5] = Add(%k, %p)"
                  : "%o: f32[3,5] = Mul(%f, %m)") +
            "\n}";
        SCOPED_TRACE(text);
        Model model = ParseIr(text);
        const std::vector<TensorRef> inputs = testing::RandomInputs(model, 8);
        const std::vector<TensorRef> before = testing::RunModel(model, inputs);
        EXPECT_EQ(RewriteQuantized(model, Cpu(), Only({"dynamic-matmul"})).rules.rules[0].applied, 1);
        EXPECT_THAT(Print(model), ::testing::Not(HasSubstr("Add(")));  // it takes the bias, shared through Identity too
        EXPECT_EQ(Violation(Compare(before, RunQLinear(model, inputs)), RuleClass::kImproves), "");
      }
    }
  }
}

// With a zero point, one a column, and none; the weight's other reader keeps its signed codes. 7 bits: see above.
TEST(S8SumsToU8, SameSums) {
  for (const std::string zero : {"s8[] -3", "s8[5] [0,1,-128,127,5]", ""}) {
    const std::string text =
        "graph @g(%x: f32[3,52]) -> (%i, %r) {\n%q: u8[3,52], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)\n%w = "
        "constant s8[52,5] " +
        Ints(260, [](std::size_t i) { return static_cast<std::int64_t>(i % 128) - 64; }) +
        (zero.empty() ? "" : "\n%wz = constant " + zero) + "\n%i: s32[3,5] = MatMulInteger(%q, %w, %z" +
        (zero.empty() ? "" : ", %wz") + ")\n%r: s8[52,5] = Identity(%w)\n}";
    SCOPED_TRACE(text);
    Model model = ParseIr(text);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 8);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    EXPECT_EQ(RewriteQuantized(model, Cpu(), Only({"s8-sums-to-u8"})).rules.rules[0].applied, 1);
    EXPECT_EQ(model.graph->FindValue("i")->producer()->input(1)->type.dtype, DType::kU8);
    EXPECT_TRUE(testing::SameBits(before, testing::RunModel(model, inputs)));
  }
}

// --- Catalogue, driver -------------------------------------------------------------------------------------------

TEST(Catalogue, EveryRuleSaysWhatItDoesAndWhyItMay) {
  std::set<std::string> names;
  for (const auto& rule : QuantizedRules(Cpu(), 21)) {
    EXPECT_TRUE(names.emplace(rule->name()).second);
    const RuleDoc doc = rule->doc();
    for (const std::string_view text : {doc.summary, doc.before, doc.after, doc.proof})
      EXPECT_GT(text.size(), 10u) << rule->name();
  }
  EXPECT_THAT(RuleCatalogue(Cpu()), HasSubstr("qlinear-conv (onelsb)"));
}

TEST(Catalogue, UnknownNamesAreUsageErrors) {
  Model model = ParseIr("graph @g(%x: f32[2]) -> (%y) {\n%y: f32[2] = Relu(%x)\n}");
  try {
    RewriteQuantized(model, Cpu(), Only({"qlinear-cnov"}));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("qlinear-conv"));
  }
  EXPECT_THROW(ParseRuleClass("exactly"), Error);
  EXPECT_EQ(ParseRuleClass("lossy"), RuleClass::kLossy);
}

TEST(Rewrite, ClassLimitsTheRules) {
  const std::string text =
      "graph @g(%a: u8[1,4,6]) -> (%o) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: f32[4,4,1] # "
      "u8(scale=0.01, zero=100) = constant u8[4,4,1] splat(3)\n%y: f32[1,4,6] # u8(scale=0.05, zero=100) = Conv(%x, "
      "%w)\n%o: u8[1,4,6] = StorageCast(%y)\n}";
  for (const auto& [rule_class, applied] : {std::pair(RuleClass::kExact, 0), std::pair(RuleClass::kOneLsb, 1)}) {
    Model model = ParseIr(text);
    QuantizedRewriteOptions options;
    options.permitted = rule_class;
    EXPECT_EQ(RewriteQuantized(model, Cpu(), options).integer_layers, applied);
  }
}

TEST(Rewrite, LimitStopsAfterThatManyApplications) {
  const std::string text =
      "graph @g(%a: u8[4]) -> (%o) {\n%x: f32[4] # u8(scale=0.5, zero=3) = StorageCast(%a)\n%b: f32[4] # u8(scale=0.5, "
      "zero=3) = Identity(%x)\n"
      "%c: f32[4] # u8(scale=0.5, zero=3) = Identity(%b)\n%o: u8[4] = StorageCast(%c)\n}";
  for (std::uint64_t limit : {0u, 1u, 2u, 3u}) {
    Model model = ParseIr(text);
    QuantizedRewriteOptions options;
    options.limit = limit;
    std::int64_t applied = 0;
    for (const RuleCount& rule : RewriteQuantized(model, Cpu(), options).rules.rules) applied += rule.applied;
    EXPECT_EQ(applied, static_cast<std::int64_t>(std::min<std::uint64_t>(limit, 2)));
  }
}

// QDQ -> QLinear -> file form -> QuantTypes -> QLinear again gives the same bits; and QDQ again gives the QDQ form's.
TEST(FoldQLinear, BothDirections) {
  const std::string text =
      "graph @g(%a: u8[1,4,6,6], %c: bool[1]) -> (%o, %p) {\n%x: f32[1,4,6,6] # u8(scale=0.02, zero=100) = "
      "StorageCast(%a)\n"
      "%w: f32[4,4,1,1] # u8(axis=0, scale=f32[4] [0.01,0.02,0.03,0.04], zero=u8[4] [128,128,128,128]) = constant "
      "u8[4,4,1,1] [1,250,3,44,105,6,77,8,9,200,11,12,0,255,90,17]\n"
      "%b: f32[4] # s32(axis=0, scale=f32[4] [0.0002,0.0004,0.0006,0.0008]) = constant s32[4] [100,-200,300,-400]\n"
      "%y: f32[1,4,6,6] # u8(scale=0.04, zero=90) = Conv(%x, %w, %b)\n%s: f32[1,4,6,6] # u8(scale=0.05, zero=90) = "
      "Add(%x, %y)\n"
      "%m: f32[1,4,6,6] # u8(scale=0.05, zero=90) = Relu(%s)\n%t: f32[1,4,6,6] # u8(scale=0.0039, zero=0) = "
      "Sigmoid(%m)\n"
      "%k: f32[1,8,6,6] # u8(scale=0.05, zero=90) = Concat(%m, %t) {axis=1}\n%g: f32[1,8,1,1] # u8(scale=0.03, "
      "zero=90) = GlobalAveragePool(%k)\n"
      "%g2: f32[1,8,1,1] # u8(scale=0.02, zero=80) = "
      "Mul(%g, %g)\n%h: f32[1,8,1,1] # u8(scale=0.04, zero=80) = Where(%c, %g, %g2)\n"
      "%f: f32[1,8] # u8(scale=0.04, zero=80) = Flatten(%h)\n%v: f32[8,3] # u8(scale=0.01, zero=128) = constant "
      "u8[8,3] splat(131)\n"
      "%o: f32[1,3] = MatMul(%f, %v)\n%q: f32[1,3] # u8(scale=0.01, zero=80) = Gemm(%f, %v)\n%p: u8[1,3] = "
      "StorageCast(%q)\n}";
  Model model = ParseIr(text);
  model.graph->SortTopologically();
  std::vector<TensorRef> inputs = testing::RandomInputs(model, 4);
  const std::vector<TensorRef> qdq = RunQdq(model, inputs);
  EXPECT_EQ(RewriteQuantized(model, Cpu()).rules.trace.size(), 11u) << Print(model);
  const std::vector<TensorRef> first = RunQLinear(model, inputs);
  EXPECT_EQ(FoldQdq(model), 0);
  EXPECT_EQ(FoldQLinear(model), 9) << Print(model);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  Model again = Clone(model);
  EXPECT_TRUE(testing::SameBits(first, RunQLinear(again, inputs))) << Print(again);
  EXPECT_TRUE(testing::SameBits(qdq, RunQdq(model, inputs)));
}

}  // namespace
}  // namespace octavo
