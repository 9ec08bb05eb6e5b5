// The rules of the quantized road, run before and after in ONNX Runtime with optimizations off: taken cases, refused
// cases, exhaustive ones, and what goes wrong when a condition is taken away.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
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

using testing::Cpu;
using ::testing::HasSubstr;
using testing::Only;
using testing::ParseIr;

std::vector<TensorRef> RunQdq(const Model& source, const std::vector<TensorRef>& inputs) {
  Model model = Clone(source);
  UseQdqForm(model);
  LowerToQdq(model);
  return testing::RunModel(model, inputs);
}

std::vector<TensorRef> RunQLinear(Model& model, const std::vector<TensorRef>& inputs) {
  LowerToQLinear(model);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << Print(model);
  return testing::RunModel(model, inputs);
}

struct Difference {
  std::int64_t codes = 0;  // largest, of integer outputs
  std::uint64_t differing = 0, total = 0;
  double relative = 0;  // largest |a - b| / (largest |a|), of float outputs
};

Difference Compare(const std::vector<TensorRef>& a, const std::vector<TensorRef>& b) {
  Difference d;
  EXPECT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].dims != b[i].dims) {
      d.codes = 1000;
      continue;
    }
    if (IsFloat(a[i].dtype)) {
      const std::vector<float> x = a[i].ToFloats(), y = b[i].ToFloats();
      double most = 1e-30, worst = 0;
      for (std::size_t k = 0; k < x.size(); ++k) {
        most = std::max(most, std::fabs(static_cast<double>(x[k])));
        worst = std::max(worst, std::fabs(static_cast<double>(x[k]) - y[k]));
        d.differing += x[k] != y[k] ? 1 : 0;
      }
      d.total += x.size();
      d.relative = std::max(d.relative, worst / most);
    } else {
      const std::vector<std::int64_t> x = a[i].ToInts(), y = b[i].ToInts();
      for (std::size_t k = 0; k < x.size(); ++k) {
        d.codes = std::max<std::int64_t>(d.codes, std::abs(x[k] - y[k]));
        d.differing += x[k] != y[k] ? 1 : 0;
      }
      d.total += x.size();
    }
  }
  return d;
}

// What is not within the class of the rule, as a sentence; empty when all is. `few`: the most that may differ at all.
std::string Violation(const Difference& d, RuleClass rule_class, double few = 1.0) {
  const auto share = static_cast<double>(d.differing) / static_cast<double>(std::max<std::uint64_t>(d.total, 1));
  if (rule_class == RuleClass::kExact && d.differing > 0) return std::to_string(d.differing) + " values differ";
  if (d.codes > 1) return "codes differ by " + std::to_string(d.codes);
  if (d.relative > 1e-5) return "floats differ by " + std::to_string(d.relative);
  if (share > few) return "a share of " + std::to_string(share) + " differs";
  return {};
}

RuleClass ClassOf(const std::string& name) {
  for (const auto& rule : QuantizedRules(Cpu(), 21)) {
    if (rule->name() == name) return rule->rule_class();
  }
  ADD_FAILURE() << name;
  return RuleClass::kExact;
}

std::string Params(const char* type, double scale, int zero) {
  char text[80];
  std::snprintf(text, sizeof text, "# %s(scale=%.9g, zero=%d)", type, scale, zero);
  return text;
}
std::string Ints(std::size_t n, const std::function<std::int64_t(std::size_t)>& f) {
  std::string text = "[";
  for (std::size_t i = 0; i < n; ++i) text += (i ? "," : "") + std::to_string(f(i));
  return text + "]";
}
TensorRef Codes(DType type, Dims dims, const std::function<std::int64_t(std::size_t)>& f) {
  std::vector<std::int64_t> v(ElementCount(dims));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = f(i);
  return TensorRef::FromInts(type, std::move(dims), v);
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

// Signed and unsigned weights, scales a column and one for all, with a bias and without.
TEST(DynamicMatMul, SameNumbers) {
  for (const std::string type : {"u8", "s8"}) {
    for (const std::string scales :
         {"f32[] 0.02", "f32[5] [0.02,0.3,0.001,4,0.05]", "f32[1,5] [0.02,0.3,0.001,4,0.05]"}) {
      for (const bool bias : {false, true}) {
        const std::int64_t low = type == "s8" ? -128 : 0;
        const std::string text =
            "graph @g(%x: f32[3,52]) -> (%o) {\n%q: u8[3,52], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)\n%w = "
            "constant " +
            type + "[52,5] " + Ints(260, [&](std::size_t i) { return static_cast<std::int64_t>(i % 256) + low; }) +
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

// With a zero point, one a column, and none; the weight's other reader keeps its signed codes.
TEST(S8SumsToU8, SameSums) {
  for (const std::string zero : {"s8[] -3", "s8[5] [0,1,-128,127,5]", ""}) {
    const std::string text =
        "graph @g(%x: f32[3,52]) -> (%i, %r) {\n%q: u8[3,52], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)\n%w = "
        "constant s8[52,5] " +
        Ints(260, [](std::size_t i) { return static_cast<std::int64_t>(i % 256) - 128; }) +
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

// --- Mutation ----------------------------------------------------------------------------------------------------

struct Case {
  std::string condition;
  std::string text;  // refused for this condition; without it, wrong
  double few = 1.0;  // for quantize-once: how much may differ
  int opset = 21;
  bool saturates = false;  // shows only on x86 without VNNI
  bool less = false;       // the condition limits what the rule takes, it is applied in any case
};

std::string LayerCase(const std::string& op, const std::string& w, const std::string& y, const std::string& b = "",
                      const std::string& attributes = "", const std::string& x = "u8(scale=0.02, zero=3)") {
  const bool conv = op == "Conv";
  const std::string xs = conv ? "1,4,6" : "6,4", ys = conv ? "1,4,6" : "6,4";
  const std::string raw = x.substr(0, x.find('('));
  const bool quantized = !y.empty();
  return "graph @g(%a: " + raw + "[" + xs + "]) -> (%o) {\n%x: f32[" + xs + "] # " + x + " = StorageCast(%a)\n" + w +
         "\n" + b + (b.empty() ? "" : "\n") + (quantized ? "%y: f32[" + ys + "] # " + y : "%o: f32[" + ys + "]") +
         " = " + op + "(%x, %w" + (b.empty() ? "" : ", %b") + ")" + attributes + "\n" +
         (quantized ? "%o: u8[" + ys + "] = StorageCast(%y)\n" : "") + "}";
}

std::vector<Case> Mutations() {
  std::vector<Case> cases;
  const std::string codes = " [1,250,3,44,105,6,77,8,9,200,11,12,0,255,90,17]";
  const std::string signs = " [1,-128,3,44,105,-6,77,8,9,-20,11,12,0,127,90,17]";
  const std::string bad_scale = "%b: f32[4] # s32(scale=0.0008) = constant s32[4] [1000,-2000,3000,500]";
  struct Layer {
    const char* rule;
    const char* op;
    const char* y;
    bool bias;
  };
  for (const Layer& l :
       {Layer{"qlinear-conv", "Conv", "u8(scale=0.05, zero=100)", true},
        Layer{"qlinear-matmul", "MatMul", "u8(scale=0.05, zero=100)", false},
        Layer{"matmul-integer-to-float", "MatMul", "", false}, Layer{"qgemm", "Gemm", "u8(scale=0.05, zero=100)", true},
        Layer{"qgemm-to-float", "Gemm", "", true}}) {
    const std::string rule = l.rule, op = l.op, y = l.y;
    const bool conv = op == "Conv";
    const std::string shape = conv ? "4,4,1" : "4,4", right = conv ? "0" : "1", wrong = conv ? "1" : "0";
    const std::string w8 = "%w: f32[" + shape + "] # u8(scale=0.01, zero=100) = constant u8[" + shape + "]" + codes;
    cases.push_back(
        {rule + "/weight-axis",
         LayerCase(op,
                   "%w: f32[" + shape + "] # u8(axis=" + wrong +
                       ", scale=f32[4] [0.01,0.002,0.03,0.0005], zero=u8[4] [100,100,100,100]) = constant u8[" + shape +
                       "]" + codes,
                   y)});
    Case saturation{rule + "/saturation",
                    LayerCase(op,
                              "%w: f32[" + shape + "] # s8(scale=0.01, zero=0) = constant s8[" + shape +
                                  "] "
                                  "[127,127,127,127,127,127,127,127,127,127,127,127,-128,-128,-128,-128]",
                              y.empty() ? y : "u8(scale=0.1, zero=100)", "", "", "u8(scale=0.02, zero=0)")};
    saturation.saturates = true;
    cases.push_back(saturation);
    if (l.bias) cases.push_back({rule + "/bias-scale", LayerCase(op, w8, y, bad_scale)});
    if (op == "Gemm") {
      cases.push_back({rule + "/plain",
                       LayerCase(op, w8, y, "%b: f32[4] # s32(scale=0.0002) = constant s32[4] [9000,-9000,3000,500]",
                                 " {alpha=0.5}")});
    }
    // 40,000 products of 255 and 255 pass 2^31.
    const std::string big = conv ? "1,40000,1" : "1,40000", wbig = conv ? "1,40000,1" : "40000,1",
                      out = conv ? "1,1,1" : "1,1";
    cases.push_back(
        {rule + "/sum-fits",
         "graph @g(%a: u8[" + out + "]) -> (%o) {\n%r: f32[" + out + "] # u8(scale=1, zero=0) = StorageCast(%a)\n" +
             "%s = constant s64[" + (conv ? "3" : "2") + "] [1, 40000" + (conv ? ", 1" : "") + "]\n%f: f32[" + out +
             "] = Dequantize(%r)\n" + "%m: f32[" + out + "] = Max(%f, %k)\n%k = constant f32[] 255\n%e: f32[" + big +
             "] = Expand(%m, %s)\n%x: f32[" + big + "] # u8(scale=1, zero=0) = Quantize(%e)\n%w: f32[" + wbig +
             "] # u8(scale=1, zero=0) = constant u8[" + wbig + "] splat(255)\n" +
             (y.empty() ? "%o: f32[" + out + "]" : "%y: f32[" + out + "] # u8(scale=12000000, zero=0)") + " = " + op +
             "(%x, %w)\n" + (y.empty() ? "" : "%o: u8[" + out + "] = StorageCast(%y)\n") + "}"});
  }
  const auto two = [](const std::string& a, const std::string& op, const std::string& y,
                      const std::string& shape = "256", const std::string& out = "256") {
    const std::string ta = a.substr(0, a.find('(')), ty = y.substr(0, y.find('('));
    return "graph @g(%a: " + ta + "[" + shape + "]) -> (%o) {\n%x: f32[" + shape + "] # " + a +
           " = StorageCast(%a)\n%y: f32[" + out + "] # " + y + " = " + op + "\n%o: " + ty + "[" + out +
           "] = StorageCast(%y)\n}";
  };
  const std::string p = "u8(scale=0.02, zero=100)", other = "u8(scale=0.03, zero=90)";
  cases.push_back({"s8-to-u8/no-raw-reader",
                   "graph @g(%x: f32[256]) -> (%o) {\n%q: f32[256] # s8(scale=0.02, zero=5) = Quantize(%x)\n%o: "
                   "s8[256] = StorageCast(%q)\n}"});
  cases.push_back({"s8-weight-to-u8/no-raw-reader",
                   "graph @g(%a: u8[6,4]) -> (%o, %r) {\n%x: f32[6,4] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: "
                   "f32[4,4] # s8(scale=0.01, zero=0) = constant s8[4,4]" +
                       signs + "\n%o: f32[6,4] = MatMul(%x, %w)\n%r: s8[4,4] = StorageCast(%w)\n}"});
  cases.push_back({"drop-requantize/same-parameters", two(p, "Requantize(%x)", other)});
  cases.push_back(
      {"drop-finer-requantize/integer-ratio", "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # " + p +
                                                  " = StorageCast(%a)\n%y: f32[256] # u16(scale=0.013, zero=30000) = "
                                                  "Requantize(%x)\n%o: f32[256] = Dequantize(%y)\n}"});
  cases.push_back({"drop-finer-requantize/no-saturation",
                   "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # u8(scale=0.5, zero=100) = StorageCast(%a)\n%y: "
                   "f32[256] # u8(scale=0.25, zero=100) = Requantize(%x)\n%o: f32[256] = Dequantize(%y)\n}"});
  cases.push_back({"drop-finer-requantize/no-raw-reader",
                   two("u8(scale=0.5, zero=100)", "Requantize(%x)", "u16(scale=0.25, zero=3000)")});
  cases.push_back(
      {"quantize-once/odd-ratio",
       "graph @g(%x: f32[4096]) -> (%o) {\n%q: f32[4096] # u16(scale=0.0078125, zero=32768) = Quantize(%x)\n%y: "
       "f32[4096] # u8(scale=0.015625, zero=128) = Requantize(%q)\n%o: u8[4096] = StorageCast(%y)\n}",
       0.01});
  cases.push_back({"quantize-once/nested-ranges",
                   "graph @g(%x: f32[4096]) -> (%o) {\n%q: f32[4096] # u8(scale=0.0078125, zero=0) = Quantize(%x)\n%y: "
                   "f32[4096] # u8(scale=0.0234375, zero=128) = Requantize(%q)\n%o: u8[4096] = StorageCast(%y)\n}",
                   0.01});
  cases.push_back({"absorb-requantize/one-use",
                   "graph @g(%a: u8[256]) -> (%o, %r) {\n%x: f32[256] # " + p + " = StorageCast(%a)\n%m: f32[256] # " +
                       p +
                       " = Tanh(%x)\n%y: f32[256] # u8(scale=0.015, zero=100)"
                       " = Requantize(%m)\n%o: u8[256] = StorageCast(%y)\n%r: u8[256] = StorageCast(%m)\n}"});
  // The lowest code of the first is a Relu.
  cases.push_back({"absorb-requantize/nested-ranges",
                   "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%m: f32[256] # u8(scale=0.01, zero=0) = Tanh(%x)\n%y: f32[256] # "
                       "u8(scale=0.01, zero=128) = Requantize(%m)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back({"drop-clip/same-parameters", two("u8(scale=0.02, zero=0)", "Relu(%x)", "u8(scale=0.03, zero=0)")});
  cases.push_back({"drop-clip/bounds-outside-codes", two(p, "Relu(%x)", p)});
  cases.push_back({"integer-clip/same-parameters", two(p, "Relu(%x)", other)});
  cases.push_back(
      {"quantize-before-clip/one-use", "graph @g(%a: u8[256]) -> (%o, %m) {\n%x: f32[256] # " + p +
                                           " = StorageCast(%a)\n%m: f32[256] = Mul(%x, %x)\n%y: f32[256] # " + p +
                                           " = Relu(%m)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back(
      {"quantize-before-move/one-use", "graph @g(%a: u8[256]) -> (%o, %m) {\n%x: f32[256] # " + p +
                                           " = StorageCast(%a)\n%m: f32[256] = Mul(%x, %x)\n%y: f32[256] # " + p +
                                           " = Identity(%m)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back(
      {"quantize-before-move/only-moves",
       "graph @g(%a: u8[1,1,1,256]) -> (%o) {\n%x0: f32[1,1,1,256] # u8(scale=0.01, zero=100) = StorageCast(%a)\n%k = "
       "constant f32[4] [1,1,1,3]\n%x: f32[1,1,1,256] = Mul(%x0, %x0)\n%y: f32[1,1,1,768] # " +
           other + " = Resize(%x, _, %k) {mode=\"linear\"}\n%o: u8[1,1,1,768] = StorageCast(%y)\n}"});
  cases.push_back(
      {"move-codes/only-moves", "graph @g(%a: u8[1,1,1,256]) -> (%o) {\n%x: f32[1,1,1,256] # " + p +
                                    " = StorageCast(%a)\n%k = constant f32[4] [1,1,1,3]\n%y: f32[1,1,1,768] # " + p +
                                    " = Resize(%x, _, %k) {mode=\"linear\"}\n%o: u8[1,1,1,768] = StorageCast(%y)\n}"});
  cases.push_back({"move-codes/same-parameters", two(p, "Identity(%x)", other)});
  cases.push_back(
      {"integer-pad/same-parameters", "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # " + p +
                                          " = StorageCast(%a)\n%k = constant s64[2] [1,1]\n%y: f32[258] # " + other +
                                          " = Pad(%x, %k)\n%o: u8[258] = StorageCast(%y)\n}"});
  cases.push_back({"qlinear-binary/one-type",
                   "graph @g(%a: u8[256], %b: s8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%w: f32[256] # s8(scale=0.02, zero=1) = StorageCast(%b)\n%y: f32[256] # " +
                       other + " = Add(%x, %w)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back({"qlinear-join/one-type",
                   "graph @g(%a: u8[256], %b: s8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%w: f32[256] # s8(scale=0.02, zero=1) = StorageCast(%b)\n%y: f32[512] # " +
                       other + " = Concat(%x, %w) {axis=0}\n%o: u8[512] = StorageCast(%y)\n}"});
  cases.push_back(
      {"qlinear-table/one-type", two("s8(scale=0.05, zero=0)", "Sigmoid(%x)", "u8(scale=0.00390625, zero=0)")});
  cases.push_back({"qlinear-softmax/one-type",
                   two("s8(scale=0.05, zero=0)", "Softmax(%x)", "u8(scale=0.00390625, zero=0)", "2,128", "2,128")});
  cases.push_back({"qlinear-pool/one-type", two("s8(scale=0.05, zero=0)", "GlobalAveragePool(%x)",
                                                "u8(scale=0.01, zero=100)", "2,2,8,8", "2,2,1,1")});
  cases.push_back({"qlinear-pool/ratio", two("u8(scale=1000, zero=100)", "GlobalAveragePool(%x)",
                                             "u8(scale=0.00001, zero=100)", "2,2,1,2", "2,2,1,1")});
  const auto pairs = [](const std::string& op, const std::string& x, const std::string& w, const std::string& y) {
    return "graph @g(%a: u8[256,1], %b: u8[1,256]) -> (%o) {\n%x: f32[256,1] # u8(scale=" + x +
           ", zero=7) = StorageCast(%a)\n%w: f32[1,256] # u8(scale=" + w + ", zero=200) = StorageCast(%b)\n" +
           "%y: f32[256,256] # u8(scale=" + y + ", zero=128) = " + op +
           "(%x, %w)\n%o: u8[256,256] = StorageCast(%y)\n}";
  };
  cases.push_back({"qlinear-binary/ratio", pairs("Add", "12345.678", "9876.543", "0.0001")});
  cases.push_back({"qlinear-binary/ratio", pairs("Mul", "0.0153", "0.301", "1e-30")});
  cases.push_back({"qlinear-pool/plain",
                   two(p, "AveragePool(%x) {kernel_shape=[2,2], dilations=[2,2]}", p, "1,1,16,16", "1,1,14,14")});
  const std::string small = "%w: f32[4,4,1] # u8(scale=0.01, zero=100) = constant u8[4,4,1]" + codes;
  cases.push_back({"integer-bias/fits-int32",
                   LayerCase("Conv", small, "u8(scale=10000, zero=100)", "%b = constant f32[4] [1000000,1,2,3]")});
  cases.push_back({"integer-bias/below-half-a-step",
                   LayerCase("Conv", "%w: f32[4,4,1] # u8(scale=10, zero=0) = constant u8[4,4,1] splat(0)",
                             "u8(scale=0.01, zero=100)", "%b = constant f32[4] [0.09,0.08,-0.07,0.05]")});
  cases.push_back(
      {"add-into-bias/one-use",
       "graph @g(%a: u8[1,4,6]) -> (%o, %c) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n" + small +
           "\n%k = constant f32[4,1] [1,2,-1,0.5]\n%c: f32[1,4,6] = Conv(%x, %w)\n%y: f32[1,4,6] # u8(scale=0.1, "
           "zero=100) = Add(%c, %k)\n%o: u8[1,4,6] = StorageCast(%y)\n}"});
  cases.push_back({"add-into-bias/below-half-a-step",
                   "graph @g(%a: u8[1,4,6]) -> (%o) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: "
                   "f32[4,4,1] # u8(scale=10, zero=0) = constant u8[4,4,1] splat(0)\n%k = constant f32[4,1] "
                   "[0.09,0.08,-0.07,0.05]\n%c: f32[1,4,6] = Conv(%x, %w)\n%y: f32[1,4,6] # u8(scale=0.01, zero=100) = "
                   "Add(%c, %k)\n%o: u8[1,4,6] = StorageCast(%y)\n}"});
  cases.push_back({"add-into-bias/fits-int32",
                   "graph @g(%a: u8[1,4,6]) -> (%o) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n" +
                       small +
                       "\n%k = constant f32[4,1] [1000000,200000,-1,0.5]\n%c: f32[1,4,6] = Conv(%x, %w)\n%y: "
                       "f32[1,4,6] # u8(scale=10000, zero=100) = Add(%c, %k)\n%o: u8[1,4,6] = StorageCast(%y)\n}"});
  cases.push_back(
      {"scale-into-weight/one-use",
       "graph @g(%a: u8[1,4,6]) -> (%o, %c) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n" + small +
           "\n%k = constant f32[] 3\n%c: f32[1,4,6] = Conv(%x, %w)\n%m: f32[1,4,6] = Mul(%c, %k)\n%o: f32[1,4,6] = "
           "Neg(%m)\n}"});
  const auto blocks = [](const std::string& axis, int block, const std::string& scales) {
    return "graph @g(%x: f32[2,32]) -> (%y) {\n%w: f32[32,32] # s4(axis=" + axis + ", block=" + std::to_string(block) +
           ", scale=f32[" + scales + "] " +
           Ints(static_cast<std::size_t>(32 * 32 / block),
                [](std::size_t i) { return static_cast<std::int64_t>(i % 9 + 1); }) +
           ") = constant s4[32,32] " +
           Ints(1024, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; }) +
           "\n%y: f32[2,32] = MatMul(%x, %w)\n}";
  };
  cases.push_back({"block-weights/blocks-along-the-sum", blocks("1", 16, "32,2")});
  cases.push_back({"block-weights/block-size", blocks("0", 8, "4,32")});
  const auto moved = [](const std::string& w, const std::string& op, const std::string& out) {
    return "graph @g(%x: f32[1]) -> (%o) {\n" + w + "\n%y: f32[" + out + "] = " + op + "\n%o: f32[" + out +
           "] = Add(%y, %x)\n}";
  };
  const std::string four =
      "%w: f32[4,4] # u8(axis=0, scale=f32[4] [0.01,0.2,0.03,4], zero=u8[4] [1,2,3,4]) = constant "
      "u8[4,4]" +
      codes;
  cases.push_back(
      {"move-parameters/axis-survives", moved(four + "\n%s = constant s64[3] [2,2,4]", "Reshape(%w, %s)", "2,2,4")});
  cases.push_back(
      {"move-parameters/one-axis", moved(four + "\n%i = constant s64[1,2] [1,0]", "Gather(%w, %i) {axis=0}", "1,2,4")});
  cases.push_back({"move-parameters/block-borders",
                   moved("%w: f32[48,2] # s4(axis=0, block=16, scale=f32[3,2] [1,20,3,40,5,60]) = constant s4[48,2] " +
                             Ints(96, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; }) +
                             "\n%a = constant s64[1] [8]\n%b = constant s64[1] [40]",
                         "Slice(%w, %a, %b)", "32,2")});
  const auto in_blocks = [&](const std::string& name, const std::string& rows, const std::string& count,
                             const std::string& scales) {
    const std::size_t n = 2 * static_cast<std::size_t>(std::stoi(rows));
    return "%" + name + ": f32[" + rows + ",2] # s4(axis=0, block=16, scale=f32[" + count + ",2] " + scales +
           ") = constant s4[" + rows + ",2] " +
           Ints(n, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; });
  };
  cases.push_back({"move-parameters/block-borders",
                   moved(in_blocks("w", "24", "2", "[1,20,3,40]") + "\n%s = constant s64[3] [2,12,2]",
                         "Reshape(%w, %s)", "2,12,2")});
  cases.push_back({"move-parameters/block-borders",
                   moved(in_blocks("w", "32", "2", "[1,20,3,40]") + "\n%i = constant s64[16] " +
                             Ints(16, [](std::size_t i) { return static_cast<std::int64_t>(i + 8); }),
                         "Gather(%w, %i) {axis=0}", "16,2")});
  cases.push_back(
      {"move-parameters/block-strides",
       moved(in_blocks("w", "32", "2", "[1,20,3,40]") + "\n%s = constant s64[2] [2,32]", "Reshape(%w, %s)", "2,32")});
  cases.push_back({"part-parameters/block-borders",
                   "graph @g(%x: f32[1]) -> (%o, %p) {\n" + in_blocks("w", "48", "3", "[1,20,3,40,5,60]") +
                       "\n%s = constant s64[2] [24,24]\n%y: f32[24,2], %z: f32[24,2] = Split(%w, %s) {axis=0}\n%o: "
                       "f32[24,2] = Add(%y, %x)\n%p: f32[24,2] = Add(%z, %x)\n}"});
  cases.push_back({"part-parameters/block-borders",
                   moved(in_blocks("w", "24", "2", "[1,20,3,40]") + "\n" + in_blocks("v", "16", "1", "[5,60]"),
                         "Concat(%w, %v) {axis=0}", "40,2")});
  cases.push_back({"part-parameters/same-parameters",
                   moved(four +
                             "\n%v: f32[4,4] # u8(axis=0, scale=f32[4] [0.02,0.2,0.03,4], zero=u8[4] [1,2,3,4]) = "
                             "constant u8[4,4]" +
                             codes,
                         "Concat(%w, %v) {axis=1}", "4,8")});
  cases.push_back(
      {"move-parameters/same-parameters",
       "graph @g(%a: u8[4,4]) -> (%o) {\n%x: f32[4,4] # u8(axis=0, scale=f32[4] [0.01,0.2,0.03,4], zero=u8[4] "
       "[1,2,3,4]) = StorageCast(%a)\n%y: f32[4,4] # u8(axis=1, scale=f32[4] [0.01,0.2,0.03,5], zero=u8[4] "
       "[1,2,3,4]) = Transpose(%x) {perm=[1,0]}\n%o: f32[4,4] = Dequantize(%y)\n}"});
  const auto dynamic = [](const std::string& scale, const std::string& weight_scale, const std::string& tail) {
    return "graph @g(%x: f32[3,4], %r: f32[3,1]) -> (%o) {\n%q: u8[3,4], %s: f32[], %z: u8[] = "
           "DynamicQuantizeLinear(%x)\n%w = constant s8[4,3] [1,-128,3,44,105,-6,77,8,9,-20,11,12]\n%wz = constant "
           "s8[] "
           "0\n%ws = constant " +
           weight_scale +
           "\n%i: s32[3,3] = MatMulInteger(%q, %w, %z, %wz)\n%f: f32[3,3] = "
           "Cast(%i) {to=1}\n%m: f32[*] = Mul(%" +
           scale + ", %ws)\n" + tail + "\n}";
  };
  const std::string plain = "%o: f32[3,3] = Mul(%f, %m)";
  cases.push_back({"dynamic-matmul/scales-of-columns", dynamic("s", "f32[3,1] [0.02,0.3,4]", plain)});
  Case bias{"dynamic-matmul/bias-of-columns",
            dynamic("s", "f32[3] [0.02,0.3,4]",
                    "%k = constant f32[3,1] [1,20,300]\n%p: f32[3,3] = Mul(%f, %m)\n%o: f32[3,3] = Add(%p, %k)")};
  bias.less = true;
  cases.push_back(bias);
  cases.push_back(
      {"float-weight/one-axis",
       "graph @g(%a: u8[1,32,3]) -> (%o) {\n%x: f32[1,32,3] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: "
       "f32[2,32,1] # s4(axis=1, block=16, scale=f32[2,2,1] [1,20,3,40]) = constant s4[2,32,1] " +
           Ints(64, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; }) +
           "\n%o: f32[1,2,3] = Conv(%x, %w)\n}"});
  cases.push_back({"join-codes/same-parameters",
                   "graph @g(%a: u8[256], %b: s8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%w: f32[256] # s8(scale=0.02, zero=1) = StorageCast(%b)\n%y: f32[512] # " +
                       p + " = Concat(%x, %w) {axis=0}\n%o: u8[512] = StorageCast(%y)\n}"});
  // Nothing to raise, and no end of raising it.
  cases.push_back({"raise-weight-scale/overflows",
                   LayerCase("Conv", small, "u8(scale=0.1, zero=100)", "%b = constant f32[4] [10,1,2,3]")});
  cases.push_back({"choose-at-load/unsigned-weight",
                   "graph @g(%a: u8[3,128]) -> (%o) {\n%s = constant f32[] 0.01\n%za = constant u8[] 3\n%w = constant "
                   "s8[128,128] splat(-2)\n%zw = constant s8[] 1\n%so = constant f32[] 0.3\n%zo = constant u8[] 100\n"
                   "%o: u8[3,128] = QLinearMatMul(%a, %s, %za, %w, %s, %zw, %so, %zo)\n}"});
  cases.push_back(
      {"s8-sums-to-u8/signed-weight",
       "graph @g(%x: f32[3,4]) -> (%i) {\n%q: u8[3,4], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)\n%w "
       "= constant u8[4,3] [1,128,3,44,105,6,77,8,9,20,11,12]\n%i: s32[3,3] = MatMulInteger(%q, %w, %z)\n}"});
  return cases;
}

bool MachineSaturates() {
  std::ifstream info("/proc/cpuinfo");
  const std::string text((std::istreambuf_iterator<char>(info)), {});
  return text.find("avx2") != std::string::npos && text.find("vnni") == std::string::npos;
}

TEST(Mutation, EveryConditionHasACounterexample) {
  std::set<std::string> declared, tested;
  for (const auto& rule : QuantizedRules(Cpu(), 21)) {
    EXPECT_FALSE(rule->doc().conditions.empty()) << rule->name() << " says nothing that it rests on";
    for (const std::string_view c : rule->doc().conditions) {
      EXPECT_TRUE(c.starts_with(std::string(rule->name()) + "/")) << c;
      declared.emplace(c);
    }
  }
  for (const Case& c : Mutations()) {
    SCOPED_TRACE(c.condition + "\n" + c.text);
    tested.insert(c.condition);
    const std::string rule = c.condition.substr(0, c.condition.find('/'));
    const Model model = ParseIr(c.text, c.opset);
    std::vector<TensorRef> inputs = testing::RandomInputs(model, 9);
    for (TensorRef& input : inputs) {  // every code
      if (BitWidth(input.dtype) != 8 || input.dtype == DType::kBool) continue;
      input = Codes(input.dtype, input.dims,
                    [&](std::size_t i) { return static_cast<std::int64_t>(i % 256) + IntegerMin(input.dtype); });
    }
    if (c.condition.ends_with("/saturation")) {
      inputs[0] = Codes(DType::kU8, inputs[0].dims, [](std::size_t) { return 255; });
    }
    const std::vector<TensorRef> before = RunQdq(model, inputs);
    Model kept = Clone(model);
    const QuantizedRewriteResult refused = RewriteQuantized(kept, Cpu(), Only({rule}));
    EXPECT_EQ(refused.rules.rules[0].applied, c.less ? 1 : 0);
    ASSERT_FALSE(refused.rules.trace.empty()) << "refused without a sentence";
    if (!c.less) {
      EXPECT_GT(refused.rules.trace[0].reason.size(), 10u);
    }
    const std::vector<TensorRef> after = RunQLinear(kept, inputs);
    if (rule != "dynamic-matmul") {  // its sums as Q/DQ round otherwise
      EXPECT_TRUE(testing::SameBits(before, after));
    }
    EXPECT_EQ(Violation(Compare(before, after), ClassOf(rule)), "");

    DropCondition(c.condition);
    std::string wrong;
    std::int64_t applied = 0;
    try {
      Model taken = Clone(model);
      applied = RewriteQuantized(taken, Cpu(), Only({rule})).rules.rules[0].applied;
      LowerToQLinear(taken);
      const std::vector<std::string> problems = Verify(taken);
      wrong = problems.empty() ? Violation(Compare(before, testing::RunModel(taken, inputs)), ClassOf(rule), c.few)
                               : problems[0];
    } catch (const Error& error) {
      wrong = error.what();  // the runtime refuses the model, or the rule has no end
      if (wrong.find("do not come to an end: rule " + rule) != std::string::npos) applied = 1;
    }
    DropCondition({});
    EXPECT_GT(applied, 0) << "something else refuses it: " << wrong;
    if (!c.saturates || MachineSaturates()) {
      EXPECT_NE(wrong, "") << "nothing goes wrong without the condition";
    }
  }
  EXPECT_EQ(declared, tested);
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
  const std::string text = LayerCase("Conv", "%w: f32[4,4,1] # u8(scale=0.01, zero=100) = constant u8[4,4,1] splat(3)",
                                     "u8(scale=0.05, zero=100)");
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
