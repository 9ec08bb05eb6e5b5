// ONNX Runtime's own operators and what they are written as: the runtime runs both and gives the same numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::Ran;

constexpr float kClose = 2e-5F;

// `inputs` and `nodes` of a graph whose result is %y.
Ran Apply(const std::string& inputs, const std::string& nodes, float tolerance = kClose) {
  const std::string text = "ir_version = 9\nopset \"\" = 20\nopset \"com.microsoft\" = 1\ngraph @g(" + inputs +
                           ") -> (%y) {\n" + nodes + "\n}";
  return testing::ApplyRules(text, ContribRules(), RuleClass::kImproves, tolerance);
}

void ExpectStandard(const Ran& ran, const std::vector<std::string>& parts) {
  EXPECT_THAT(ran.text, Not(HasSubstr("com.microsoft"))) << ran.refusal;
  for (const std::string& part : parts) EXPECT_THAT(ran.text, HasSubstr(part));
}

// What is refused runs in neither form here: some of it the runtime refuses too.
void ExpectRefused(const std::string& inputs, const std::string& nodes, const std::string& why) {
  const Ran ran = Apply(inputs, nodes, -1);
  EXPECT_THAT(ran.refusal, HasSubstr(why)) << nodes;
  EXPECT_THAT(ran.text, HasSubstr("com.microsoft"));
}

constexpr const char* kFour = "%b = constant f32[4] [0.5, -1, 2, 0.25]\n";

TEST(Contrib, Gelus) {
  ExpectStandard(Apply("%x: f32[2,3,4]", "%y: f32[2,3,4] = com.microsoft::Gelu(%x)"), {"%y: f32[2,3,4] = Gelu(%x)\n"});
  ExpectStandard(Apply("%x: f32[2,3,4]", std::string(kFour) + "%y: f32[2,3,4] = com.microsoft::BiasGelu(%x, %b)"),
                 {"Add(%x, %b)", "= Gelu("});
  ExpectStandard(Apply("%x: f32[2,3,4]", "%y: f32[2,3,4] = com.microsoft::FastGelu(%x)"),
                 {"= Gelu(%x) {approximate=\"tanh\"}"});
  ExpectStandard(Apply("%x: f32[2,3,4]", std::string(kFour) + "%y: f32[2,3,4] = com.microsoft::FastGelu(%x, %b)"),
                 {"Add(%x, %b)", "{approximate=\"tanh\"}"});
}

TEST(Contrib, GelusThatStay) {
  ExpectRefused("%x: f32[2,?]", "%y: f32[2,?] = com.microsoft::Gelu(%x)", "its dimensions are not known");
  ExpectRefused("%x: f32[2,0]", "%y: f32[2,0] = com.microsoft::Gelu(%x)", "it has no elements");
  ExpectRefused("%x: f16[2]", "%y: f16[2] = com.microsoft::Gelu(%x)", "its result is not f32");
  ExpectRefused("%x: f32[2,3], %c: f32[1]", "%y: f32[2,3] = com.microsoft::BiasGelu(%x, %c)", "one number a column");
}

TEST(Contrib, QuickGelu) {
  ExpectStandard(Apply("%x: f32[5]", "%y: f32[5] = com.microsoft::QuickGelu(%x)"),
                 {"constant f32[] 1.702", "Sigmoid("});
  ExpectStandard(Apply("%x: f32[5]", "%y: f32[5] = com.microsoft::QuickGelu(%x) {alpha=3.0}"), {"constant f32[] 3"});
  const Ran silu = Apply("%x: f32[5]", "%y: f32[5] = com.microsoft::QuickGelu(%x) {alpha=1.0}");
  ExpectStandard(silu, {"Sigmoid(%x)"});
  EXPECT_THAT(silu.text, Not(HasSubstr("constant")));
}

TEST(Contrib, SkipLayerNormalization) {
  const std::string constants =
      std::string(kFour) + "%g = constant f32[4] [1, 0.5, 2, -1]\n%c = constant f32[4] [3, 0, -1, 1]\n";
  const auto apply = [&](const std::string& skip, const std::string& node) {
    return Apply("%x: f32[2,3,4], %s: f32" + skip, constants + node);
  };
  ExpectStandard(apply("[2,3,4]", "%y: f32[2,3,4] = com.microsoft::SkipLayerNormalization(%x, %s, %g, %b, %c)"),
                 {"= Add(%x, %c)", "= LayerNormalization(", "epsilon=1e-12"});
  const Ran plain = apply("[3,4]", "%y: f32[2,3,4] = com.microsoft::SkipLayerNormalization(%x, %s, %g) {epsilon=0.25}");
  ExpectStandard(plain, {"= Add(%x, %s)", "epsilon=0.25"});
  ExpectStandard(apply("[1,3,4]", "%y: f32[2,3,4] = com.microsoft::SkipLayerNormalization(%x, %s, %g, %b)"), {});
  // The sum is used inside, and it is an output of the graph.
  ExpectStandard(
      apply("[2,3,4]",
            "%n: f32[2,3,4], _, _, %sum: f32[2,3,4] = com.microsoft::SkipLayerNormalization(%x, %s, %g, %b, %c)\n"
            "%y: f32[2,3,4] = Sub(%n, %sum)"),
      {"LayerNormalization("});
  ExpectStandard(
      apply("[2,3,4]", "%n: f32[2,3,4], _, _, %y: f32[2,3,4] = com.microsoft::SkipLayerNormalization(%x, %s, %g)"),
      {"%y: f32[2,3,4] = Add(%x, %s)"});
}

// The bias goes to the product, where it becomes that of a layer.
TEST(Contrib, SkipLayerNormalizationOfAProduct) {
  const Ran ran = Apply("%x: f32[1,3,4], %s: f32[1,3,4]", std::string(kFour) + R"(
    %w = constant f32[4,4] [1, 2, 0, 1, -1, 0.5, 1, 0, 2, 1, 0, 1, 0, -1, 1, 2]
    %p: f32[1,3,4] = MatMul(%s, %w)
    %y: f32[1,3,4] = com.microsoft::SkipLayerNormalization(%x, %p, %b, %b, %b))");
  ExpectStandard(ran, {"= Add(%p, %b)"});
}

TEST(Contrib, SkipLayerNormalizationThatStays) {
  const std::string inputs = "%x: f32[2,3,4], %s: f32[2,3,4]";
  ExpectRefused(inputs, std::string(kFour) + R"(
    %n: f32[2,3,4], %y: f32[2,3,1] = com.microsoft::SkipLayerNormalization(%x, %s, %b))",
                "its mean or deviation is used");
  ExpectRefused("%x: f32[1,3,4], %s: f32[2,3,4]", std::string(kFour) + R"(
    %y: f32[1,3,4] = com.microsoft::SkipLayerNormalization(%x, %s, %b))",
                "has other dimensions");
  ExpectRefused("%x: f32[2,?,4], %s: f32[2,?,4]", std::string(kFour) + R"(
    %y: f32[2,?,4] = com.microsoft::SkipLayerNormalization(%x, %s, %b))",
                "its dimensions are not known");
}

TEST(Contrib, FusedMatMul) {
  struct Case {
    const char *a, *b, *y, *attributes;
  };
  for (const Case& c :
       {Case{"2,3,4", "2,4,5", "2,3,5", "alpha=0.25"}, Case{"2,4,3", "2,5,4", "2,3,5", "transA=1, transB=1"},
        Case{"2,2,3,4", "2,2,5,4", "2,2,3,5", "transB=1, alpha=3.0"}}) {
    const Ran ran =
        Apply("%a: f32[" + std::string(c.a) + "], %b: f32[" + c.b + "]",
              "%y: f32[" + std::string(c.y) + "] = com.microsoft::FusedMatMul(%a, %b) {" + c.attributes + "}");
    ExpectStandard(ran, {"MatMul("});
  }
  const Ran constant = Apply("%a: f32[3,2]", R"(
    %w = constant f32[3,2] [1, 2, 3, 4, 5, 6]
    %y: f32[3,3] = com.microsoft::FusedMatMul(%a, %w) {transB=1})");
  ExpectStandard(constant, {"constant f32[2,3] [1, 3, 5, 2, 4, 6]", "= MatMul("});
  EXPECT_THAT(constant.text, Not(HasSubstr("Transpose")));
}

TEST(Contrib, FusedMatMulThatStays) {
  ExpectRefused("%a: f32[2,3,4], %b: f32[4,2,5]", "%y: f32[2,3,5] = com.microsoft::FusedMatMul(%a, %b) {transBatchB=1}",
                "moves the first dimension");
  ExpectRefused("%a: f32[4,5], %b: f32[4]", "%y: f32[5] = com.microsoft::FusedMatMul(%a, %b) {transA=1}",
                "one of them is a vector");
}

TEST(Contrib, FusedGemm) {
  const std::string start =
      "%y: f32[3,4] = com.microsoft::FusedGemm(%a, %w, %b) {transA=1, alpha=0.5, beta=2.0, activation=";
  const std::vector<std::pair<std::string, std::string>> activations = {
      {"\"Relu\"", "= Relu("},
      {"\"Tanh\"", "= Tanh("},
      {"\"Sigmoid\"", "= Sigmoid("},
      {"\"LeakyRelu\", activation_alpha=0.25", "{alpha=0.25}"},
      {"\"HardSigmoid\", activation_alpha=0.25, activation_beta=0.75", "{alpha=0.25, beta=0.75}"},
      {"\"Elu\", activation_alpha=0.5", "= Elu("},
      {"\"Selu\", activation_alpha=1.5, activation_gamma=0.75", "{alpha=1.5, gamma=0.75}"},
      {"\"Softplus\"", "= Softplus("},
      {"\"Softsign\"", "= Softsign("},
      {"\"ThresholdedRelu\", activation_alpha=0.5", "= ThresholdedRelu("}};
  const std::string inputs = "%a: f32[5,3], %w: f32[5,4]";
  for (const auto& [activation, part] : activations) {
    ExpectStandard(Apply(inputs, kFour + start + activation + "}"), {"= Gemm(%a, %w, %b)", part});
  }
  ExpectRefused(inputs, kFour + start + "\"LeakyRelu\"}", "parameters of its activation are missing");
  ExpectRefused(inputs, kFour + start + "\"Clip\"}", "\"Clip\" is none that the runtime has there");
}

TEST(Contrib, FusedConv) {
  const std::string constants =
      "%w = constant f32[2,1,2,2] [1, -2, 0.5, 1, 0.25, -1, 2, 0.5]\n%b = constant f32[2] [0.5, -0.25]\n";
  const std::string start = "%y: f32[1,2,5,3] = com.microsoft::FusedConv(%x, %w, %b";
  const std::string form = " {group=2, pads=[1, 0, 1, 0], strides=[1, 1], kernel_shape=[2, 2], dilations=[1, 1]";
  const std::string inputs = "%x: f32[1,2,4,4], %z: f32[1,2,5,3]";
  const std::vector<std::pair<std::string, std::string>> activations = {
      {"\"Relu\"", "= Relu("},
      {"\"Tanh\"", "= Tanh("},
      {"\"Sigmoid\"", "= Sigmoid("},
      {"\"LeakyRelu\", activation_params=[0.25]", "{alpha=0.25}"},
      {"\"HardSigmoid\", activation_params=[0.25, 0.75]", "{alpha=0.25, beta=0.75}"},
      {"\"Clip\", activation_params=[-0.5, 1.5]", "= Clip("}};
  for (const auto& [activation, part] : activations) {
    ExpectStandard(Apply(inputs, constants + start + ")" + form + ", activation=" + activation + "}"),
                   {"= Conv(%x, %w, %b)", "pads=[1, 0, 1, 0]", part});
  }
  ExpectStandard(Apply(inputs, constants + start + ", %z)" + form + ", activation=\"Relu\"}"), {"Add(", "Relu("});
  ExpectStandard(Apply(inputs, constants + start + ", %z)" + form + "}"), {"= Add("});
  const std::string no_bias = "%y: f32[1,2,5,3] = com.microsoft::FusedConv(%x, %w, _, %z)" + form + "}";
  ExpectStandard(Apply(inputs, constants + no_bias), {"= Conv(%x, %w)"});
  ExpectRefused(inputs, constants + start + ")" + form + ", activation=\"Elu\"}",
                "\"Elu\" is none that the runtime has");
  ExpectRefused(inputs, constants + start + ")" + form + ", activation=\"Clip\", activation_params=[0.5]}", "missing");
}

// Inputs of 64 bits are 0 or 1 in these runs.
TEST(Contrib, EmbedLayerNormalization) {
  const std::string constants = R"(
    %words = constant f32[2,4] [1, 2, 3, 5, -1, 0.5, 2, 0]
    %places = constant f32[4,4] [0, 1, 0, 2, 1, 1, 0, -1, 0.5, 2, 1, 0, 9, 9, 9, 9]
    %rows = constant f32[2,4] [0.1, 0.2, -0.3, 0.4, 1, 0, 0, 1]
    %g = constant f32[4] [1, 0.5, 2, -1]
    %b = constant f32[4] [3, 0, -1, 1]
    %ids: s32[2,3] = Cast(%i) {to=6}
    %kinds: s32[2,3] = Cast(%k) {to=6}
    %mask: s32[2,3] = Cast(%m) {to=6}
  )";
  const std::string inputs = "%i: s64[2,3], %k: s64[2,3], %m: s64[2,3]";
  const auto apply = [&](const std::string& nodes) { return Apply(inputs, constants + nodes); };
  const std::string op = "com.microsoft::EmbedLayerNormalization(%ids, ";
  ExpectStandard(apply("%y: f32[2,3,4], _ = " + op + "%kinds, %words, %places, %rows, %g, %b) {epsilon=0.5}"),
                 {"Gather(%words, %ids)", "Gather(%rows, %kinds)", "constant f32[3,4]", "epsilon=0.5"});
  ExpectStandard(apply("%y: f32[2,3,4], _ = " + op + "_, %words, %places, _, %g, %b)"), {"Gather(%words, %ids)"});
  ExpectStandard(apply("%y: f32[2,3,4], _ = " + op + "_, %words, %places, _, %g, %b, _, %kinds)"),
                 {"Gather(%places, %kinds)"});
  ExpectStandard(apply("%e: f32[2,3,4], %n: s32[2] = " + op +
                       "_, %words, %places, _, %g, %b, %mask)\n"
                       "%y: f32[2] = Cast(%n) {to=1}"),
                 {"ReduceSum(%mask"});
  ExpectStandard(apply("%e: f32[2,3,4], _, %y: f32[2,3,4] = " + op + "_, %words, %places, _, %g, %b)"),
                 {"%y: f32[2,3,4] = Add("});
  ExpectRefused(inputs,
                constants + "%e: f32[2,3,4], %n: s32[2] = " + op + "_, %words, %places, _, %g, %b)\n" +
                    "%y: f32[2] = Cast(%n) {to=1}",
                "and it has no mask");
}

}  // namespace
}  // namespace octavo
