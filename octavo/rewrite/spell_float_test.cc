// Operators that a device has not, before and after.
#include "octavo/rewrite/spell_float.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

bool All(const Node&) { return true; }

// On u16 codes that are numbers in [-2, 2].
Model Between(const std::string& op, const std::string& codes = "u16", const std::string& shape = "[2,3]") {
  Model model = Parse(
      "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: f32[2,3]) -> (%y) {\n"
      "%s = constant f32[] 0.02\n%z = constant " +
      codes + "[] 100\n%q: " + codes +
      "[2,3] = QuantizeLinear(%x, %s, %z)\n"
      "%d: f32[2,3] = DequantizeLinear(%q, %s, %z)\n%o: f32" +
      shape + " = " + op + "\n%r: " + codes + shape + " = QuantizeLinear(%o, %s, %z)\n%y: f32" + shape +
      " = DequantizeLinear(%r, %s, %z)\n}");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

TEST(SpellFloat, ComputesTheSame) {
  const std::pair<const char*, const char*> cases[] = {{"Softplus(%d)", "[2,3]"},
                                                       {"Mish(%d)", "[2,3]"},
                                                       {"Softsign(%d)", "[2,3]"},
                                                       {"Celu(%d)", "[2,3]"},
                                                       {"Celu(%d) {alpha=0.5}", "[2,3]"},
                                                       {"Sinh(%d)", "[2,3]"},
                                                       {"Cosh(%d)", "[2,3]"},
                                                       {"ReduceL1(%d) {keepdims=0}", "[]"},
                                                       {"ReduceSumSquare(%d)", "[1,1]"}};
  for (const auto& [op, shape] : cases) {
    Model model = Between(op, "u16", shape);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 5);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    EXPECT_EQ(SpellFloat(model, All), 1) << op;
    EXPECT_EQ(Verify(model), std::vector<std::string>{}) << op;
    const std::string name(op, std::string_view(op).find('('));
    EXPECT_THAT(Print(*model.graph), Not(HasSubstr(" " + name + "("))) << op;
    const std::vector<TensorRef> after = testing::RunModel(model, inputs);
    ASSERT_EQ(after[0].dims, before[0].dims) << op;
    const std::vector<float> a = before[0].ToFloats(), b = after[0].ToFloats();
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.0201f) << op;  // a step of the codes
  }
}

TEST(SpellFloat, ReductionOverAnAttributesAxes) {
  Model model = Parse(R"(opset "" = 17
    graph @g(%x: f32[2,3]) -> (%y) { %y: f32[2,1] = ReduceL1(%x) {axes=[1]} })");
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 6);
  const std::vector<float> before = testing::RunModel(model, inputs)[0].ToFloats();
  EXPECT_EQ(SpellFloat(model, All), 1);
  const std::vector<float> after = testing::RunModel(model, inputs)[0].ToFloats();
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(before[i], after[i], 1e-5f);
}

// A model of one operator on f32[2,3,4,4] in [-2, 2], before and after.
void ExpectSpelled(const std::string& op, const std::string& shape, const std::string& constants = "",
                   const std::string& type = "f32", float tolerance = 1e-4f) {
  Model model = Parse("opset \"\" = 20\ngraph @g(%x: f32[2,3,4,4]) -> (%y) {\n" + constants + "%y: " + type + shape +
                      " = " + op + "\n}");
  ASSERT_EQ(Verify(model), std::vector<std::string>{}) << op;
  const Model before = Clone(model);
  EXPECT_EQ(SpellFloat(model, All), 1) << op;
  model.graph->EraseDead();
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << op;
  testing::ExpectSameNumbers(before, model, tolerance, op);
  EXPECT_EQ(SpellFloat(model, All), 0) << op;  // nothing is spelled out twice
}

TEST(SpellFloat, Elementwise) {
  ExpectSpelled("Erf(%x)", "[2,3,4,4]");
  ExpectSpelled("Asinh(%x)", "[2,3,4,4]");
  ExpectSpelled("Shrink(%x) {lambd=0.7, bias=0.3}", "[2,3,4,4]");
  ExpectSpelled("ThresholdedRelu(%x) {alpha=0.5}", "[2,3,4,4]");
  ExpectSpelled("PRelu(%x, %s)", "[2,3,4,4]", "%s = constant f32[3,1,1] [0.1, 0.2, -0.3]\n");
  ExpectSpelled("Pow(%s, %x)", "[2,3,4,4]", "%s = constant f32[] 2.5\n");
  ExpectSpelled("Mod(%x, %s) {fmod=1}", "[2,3,4,4]", "%s = constant f32[] 0.75\n");
  const std::string positive = "%o = constant f32[] 3.5\n%p: f32[2,3,4,4] = Add(%x, %o)\n";
  ExpectSpelled("Pow(%p, %s)", "[2,3,4,4]", positive + "%s = constant f32[] -0.5\n");
  ExpectSpelled("Acosh(%p)", "[2,3,4,4]", positive);
  const std::string small = "%o = constant f32[] 0.45\n%p: f32[2,3,4,4] = Mul(%x, %o)\n";
  for (const char* op : {"Asin(%p)", "Acos(%p)", "Atanh(%p)", "Tan(%p)"}) ExpectSpelled(op, "[2,3,4,4]", small);
  ExpectSpelled("Cast(%x) {to=7}", "[2,3,4,4]", "", "s64");
  ExpectSpelled("Mod(%x, %s) {fmod=1}", "[2,3,4,4]", "%s = constant f32[] -1.5\n");
  // Of a division that is right already, nothing is taken off.
  const std::string whole = "%f: f32[2,3,4,4] = Mul(%x, %t)\n%w: f32[2,3,4,4] = Round(%f)\n";
  for (const char* divisor : {"2", "-3"}) {
    Model model = Parse(
        "opset \"\" = 20\ngraph @g(%x: f32[2,3,4,4]) -> (%y) {\n%t = constant f32[] 5\n%d = constant s64[] " +
        std::string(divisor) + "\n" + whole + "%i: s64[2,3,4,4] = Cast(%w) {to=7}\n%y: s64[2,3,4,4] = Div(%i, %d)\n}");
    const Model before = Clone(model);
    EXPECT_EQ(SpellFloat(model, All), 1);
    testing::ExpectSameNumbers(before, model, 0, divisor);
  }
  const std::string infinite = "%o = constant f32[] 0\n%l: f32[2,3,4,4] = Relu(%x)\n%p: f32[2,3,4,4] = Log(%l)\n";
  for (const char* only : {"", " {detect_negative=0}", " {detect_positive=0}"}) {
    Model model = Parse("opset \"\" = 20\ngraph @g(%x: f32[2,3,4,4]) -> (%y) {\n" + infinite +
                        "%i: bool[2,3,4,4] = IsInf(%p)" + only + "\n%y: f32[2,3,4,4] = Where(%i, %x, %o)\n}");
    const Model before = Clone(model);
    EXPECT_EQ(SpellFloat(model, All), 1);
    testing::ExpectSameNumbers(before, model, 0, only);
  }
}

TEST(SpellFloat, AlongAxes) {
  const std::string axes = "%a = constant s64[2] [1, -1]\n";
  for (const std::string op : {"ReduceLogSumExp", "ReduceProd", "ReduceL1", "ReduceSumSquare"}) {
    ExpectSpelled(op + "(%x, %a)", "[2,1,4,1]", axes);
    ExpectSpelled(op + "(%x, %a) {keepdims=0}", "[2,4]", axes);
    if (op != "ReduceProd") ExpectSpelled(op + "(%x) {keepdims=0}", "[]", "", "f32", 2e-4f);
  }
  ExpectSpelled("ReduceLogSum(%p, %a)", "[2,1,4,1]", axes + "%p: f32[2,3,4,4] = Exp(%x)\n");
  ExpectSpelled("GlobalLpPool(%x)", "[2,3,1,1]");
  ExpectSpelled("GlobalLpPool(%x) {p=1}", "[2,3,1,1]");
  ExpectSpelled("LpPool(%x) {kernel_shape=[2, 2]}", "[2,3,3,3]");
  ExpectSpelled("LpPool(%x) {kernel_shape=[3, 3], p=1, strides=[2, 2], pads=[1, 1, 1, 1]}", "[2,3,2,2]");
  ExpectSpelled("LpNormalization(%x) {p=1, axis=1}", "[2,3,4,4]");
  ExpectSpelled("LpNormalization(%x)", "[2,3,4,4]");
  ExpectSpelled("MeanVarianceNormalization(%x)", "[2,3,4,4]");
  ExpectSpelled("MeanVarianceNormalization(%x) {axes=[1, -1]}", "[2,3,4,4]");
  ExpectSpelled("Hardmax(%x) {axis=1}", "[2,3,4,4]");
  ExpectSpelled("CumSum(%x, %a) {exclusive=1}", "[2,3,4,4]", "%a = constant s64[] 1\n");
  ExpectSpelled("CumSum(%x, %a) {exclusive=1, reverse=1}", "[2,3,4,4]", "%a = constant s64[] -1\n");
  // Equal numbers are many among these: the last of them counts.
  const std::string rounded = "%f: f32[2,3,4,4] = Floor(%x)\n";
  ExpectSpelled("ArgMax(%f) {axis=-1, select_last_index=1}", "[2,3,4,1]", rounded, "s64", 0);
  ExpectSpelled("ArgMin(%f) {axis=1, keepdims=0, select_last_index=1}", "[2,4,4]", rounded, "s64", 0);
  ExpectSpelled("Hardmax(%f)", "[2,3,4,4]", rounded);
  // Indices from -2 to 2: from the end, and out of range.
  ExpectSpelled("OneHot(%i, %d, %v) {axis=1}", "[2,2,3,4,4]",
                "%d = constant s64[] 2\n%v = constant f32[2] [-1, 3]\n%f: f32[2,3,4,4] = Round(%x)\n"
                "%i: s64[2,3,4,4] = Cast(%f) {to=7}\n",
                "f32", 0);
}

TEST(SpellFloat, OthersStay) {
  Model model = Between("Softplus(%d)");
  EXPECT_EQ(SpellFloat(model, [](const Node& node) { return !node.Is("Softplus"); }), 0);
  model = Between("Celu(%d) {alpha=-1.0}");
  EXPECT_EQ(SpellFloat(model, All), 0);
  model = Between("ReduceL1(%d) {noop_with_empty_axes=1}");
  EXPECT_EQ(SpellFloat(model, All), 0);
  model = Between("Tanh(%d)");
  EXPECT_EQ(SpellFloat(model, All), 0);
  const auto stays = [](const std::string& op, const std::string& constants = "", int opset = 20) {
    Model of = Parse("opset \"\" = " + std::to_string(opset) + "\ngraph @g(%x: f32[2,3]) -> (%y) {\n" + constants +
                     "%y: f32[2,3] = " + op + "\n}");
    EXPECT_EQ(SpellFloat(of, All), 0) << op;
  };
  stays("Erf(%x)", "", 9);  // a Clip has no inputs for its bounds
  stays("Cast(%f) {to=7}", "%f: f32[2,3] = Floor(%x)\n");
  stays("Cast(%x) {to=10}");
  stays("Pow(%s, %x)", "%s = constant f32[] -2\n");
  stays("PRelu(%x, %s)", "%s = constant f32[] 0.5\n");
  stays("LpPool(%x) {p=3, kernel_shape=[1]}");
  stays("CumSum(%x, %a)", "%a = constant s64[] 1\n");
  stays("ArgMax(%x)");
  stays("ReduceProd(%l)", "%s = constant s64[2] [6, 6]\n%l: f32[6,6] = Expand(%x, %s)\n");  // 36 factors
  stays("ReduceProd(%x, %a)", "%n: s64[2] = Shape(%x)\n%a: s64[1] = ReduceMin(%n)\n");
}

}  // namespace
}  // namespace octavo
