// Whole-graph placement: text in, text out; and the choice of widths.
#include "octavo/quantize/whole_graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/quantize/whole_graph_logs.h"
#include "octavo/quantize/whole_graph_plan.h"
#include "octavo/quantize/whole_graph_widths.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

const DeviceDescriptor& Qnn() { return *FindDevice("qnn"); }

struct Planned {
  Model model;
  QuantizationConfig config;
  ResolvedPrecision precision;
  std::unique_ptr<WholeGraphPlan> plan;

  explicit Planned(const std::string& text) : model(Parse("opset \"\" = 17\n" + text)) {
    EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
    precision = ResolvePrecision(config, Qnn());
    plan = std::make_unique<WholeGraphPlan>(model, config, precision, Qnn());
  }
  bool Takes(const std::string& value) const {
    return plan->is_taken.count(model.graph->FindValue(value)->producer()) > 0;
  }
  std::string Reason(const std::string& node) const {
    for (const SkippedNode& s : plan->skipped) {
      if (s.node == node) return s.reason;
    }
    return "";
  }
  std::size_t Tensor(const std::string& value) const { return plan->tensor_of.at(model.graph->FindValue(value)); }
};

// The graph after quantization to uint8 from statistics in which every observed value spans [low, high].
std::string Quantized(const std::string& text, float low, float high, const std::string& precision_name = "uint8") {
  Model model = Parse("opset \"\" = 17\n" + text);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  QuantizationConfig config;
  config.precision = precision_name;
  config.keep_float_auto = false;
  const ResolvedPrecision precision = ResolvePrecision(config, Qnn());
  Statistics statistics;
  for (const ObserveSpec& spec : WholeGraphSpecs(model, config, precision, Qnn())) {
    TensorStatistics& t = statistics.tensors[spec.value];
    t.range.min = low;
    t.range.max = high;
    t.range.elements = 4;
  }
  std::optional<Calibration> no_probe;
  QuantizeResult result;
  WholeGraphQuantize(model, config, Qnn(), precision, statistics, no_probe, {}, 1, result);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return Print(*model.graph);
}

TEST(WholeGraph, ConstantsOfAConcatHaveItsCodes) {
  // Zeros of their own would have a step of 1 beside steps of 2 / 255.
  const std::string text = Quantized(R"(graph @g(%x: f32[1,2]) -> (%y) {
    %c = constant f32[1,2] [0, 0]
    %r: f32[1,2] = Tanh(%x)
    %k: f32[1,4] = Concat(%c, %r) {axis=1}
    %y: f32[1,4] = Sigmoid(%k)
  })",
                                     -1.0f, 1.0f);
  EXPECT_NE(text.find("[128, 128]"), std::string::npos) << text;
}

// Its bytes are nothing beside those of the result; the table of a vocabulary has the width of weights.
TEST(WholeGraph, ATableNoBiggerThanWhatIsLookedUpHasTheWidthOfTheResult) {
  const auto table = [](const std::string& indices, const char* precision) {
    const std::string text = "graph @g(%i: s64[" + indices +
                             "]) -> (%y) {\n  %t = constant f32[2,2] [0.5, -1, 0.25, 1]\n" + "  %r: f32[" + indices +
                             ",2] = Gather(%t, %i)\n  %y: f32[" + indices + ",2] = Sigmoid(%r)\n}";
    const std::string out = Quantized(text, -1.0f, 1.0f, precision);
    EXPECT_NE(out.find("= Gather(%t_codes"), std::string::npos) << out;
    return out.find("%t_codes: f32[2,2] # u16(") != std::string::npos ? 16 : 8;
  };
  EXPECT_EQ(table("2", "w8a16"), 16);
  EXPECT_EQ(table("1", "w8a16"), 8);
  EXPECT_EQ(table("2", "uint8"), 8);
}

TEST(WholeGraph, ALayerOfConstantsStaysInFloat) {
  const Planned p(R"(graph @g(%x: f32[2,3]) -> (%y) {
    %a = constant f32[2,2] [1, 2, 3, 4]
    %b = constant f32[2,3] [1, 2, 3, 4, 5, 6]
    %m: f32[2,3] = MatMul(%a, %b)
    %y: f32[2,3] = Add(%x, %m)
  })");
  EXPECT_FALSE(p.Takes("m"));
  EXPECT_TRUE(p.Takes("y"));
}

// What goes into the Log of a model, by the names of what the nodes make.
std::vector<std::string> IntoLogs(const std::string& text) {
  const Planned p(text);
  std::vector<std::string> names;
  for (const Node* node : LogInputs(p.model, *p.plan)) names.push_back(node->output()->name());
  return names;
}

TEST(WholeGraph, WhatGoesIntoALogarithmEndsAtTheLayerThatMakesIt) {
  // A spectrum: its power is taken, a filter bank sums it up.
  EXPECT_EQ(IntoLogs(R"(graph @g(%x: f32[1,4,8]) -> (%y, %z) {
    %w = constant f32[2,4,1] [1, 2, 3, 4, 5, 6, 7, 8]
    %bank = constant f32[8,3] [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]
    %tiny = constant f32[] 1e-5
    %in: f32[1,4,8] = Sigmoid(%x)
    %c: f32[1,2,8] = Conv(%in, %w)
    %p: f32[1,2,8] = Mul(%c, %c)
    %m: f32[1,2,3] = MatMul(%p, %bank)
    %s: f32[1,2,3] = Add(%m, %tiny)
    %l: f32[1,2,3] = Log(%s)
    %y: f32[1,2,3] = Tanh(%l)
    %z: f32[1,2,8] = Neg(%c)
  })"),
            (std::vector<std::string>{"c", "p", "m", "s", "l"}));
  // Of what a layer makes that reads no powers, nothing beyond the layer; of probabilities, nothing.
  EXPECT_EQ(IntoLogs(R"(graph @g(%x: f32[1,4]) -> (%y, %z) {
    %w = constant f32[4,2] [1, 2, 3, 4, 5, 6, 7, 8]
    %a: f32[1,4] = Abs(%x)
    %b: f32[1,4] = Sigmoid(%a)
    %c: f32[1,2] = MatMul(%b, %w)
    %r: f32[1,2] = Relu(%c)
    %y: f32[1,2] = Log(%r)
    %p: f32[1,2] = Softmax(%c)
    %z: f32[1,2] = Log(%p)
  })"),
            (std::vector<std::string>{"c", "r", "y", "z"}));
  EXPECT_EQ(IntoLogs("graph @g(%x: f32[1,4]) -> (%y) {\n %a: f32[1,4] = Sqrt(%x)\n %y: f32[1,4] = Neg(%a)\n}"),
            (std::vector<std::string>{}));
}

TEST(WholeGraph, WeightsBesideSixteenBitsAreSymmetricAndNoChannelFallsBelowTheRescaling) {
  const std::string text = R"(graph @g(%x: f32[1,1,2,2]) -> (%y) {
    %w = constant f32[3,1,1,1] [1.27, -12.7, 1e-9]
    %y: f32[1,3,2,2] = Conv(%x, %w)
  })";
  EXPECT_THAT(Quantized(text, 0, 65535, "w8a16"),
              HasSubstr("s8(axis=0, scale=f32[3] [0.01, 0.1, 9.536743e-07], zero=s8[3] [0, 0, 0]) = constant "
                        "s8[3,1,1,1] [127, -127, 0]"));
}

TEST(WholeGraph, TheSecondOperandOfASixteenBitProductIsSymmetric) {
  const std::string text = R"(graph @g(%x: f32[2,2]) -> (%y) {
    %a: f32[2,2] = Sigmoid(%x)
    %y: f32[2,2] = MatMul(%x, %a)
  })";
  const std::string wide = Quantized(text, 0, 65535, "w8a16");
  EXPECT_THAT(wide, HasSubstr("%a: f32[2,2] # u16("));
  EXPECT_THAT(wide, HasSubstr("%a_rq: f32[2,2] # s16("));
  EXPECT_THAT(wide, HasSubstr("= MatMul(%x_q, %a_rq)"));
  EXPECT_THAT(Quantized(text, 0, 255), HasSubstr("= MatMul(%x_q, %a)"));
}

TEST(WholeGraph, MovementSharesParametersAndReluGoesIntoTheCodes) {
  const std::string text = Quantized(R"(graph @g(%x: f32[1,2,2]) -> (%y) {
    %k = constant f32[1] [2]
    %a: f32[1,2,2] = Mul(%x, %k)
    %r: f32[1,2,2] = Relu(%a)
    %y: f32[1,2,2] = Transpose(%r) {perm=[0, 2, 1]}
  })",
                                     0, 255);
  EXPECT_EQ(text, Print(*Parse(R"(graph @g(%x: f32[1,2,2]) -> (%y) {
    %k_codes: f32[1] # u8(scale=0.007843138, zero=0) = constant u8[1] [255]
    %x_q: f32[1,2,2] # u8(scale=1, zero=0) = Quantize(%x) @x_q form=qdq
    %r: f32[1,2,2] # u8(scale=1, zero=0) = Mul(%x_q, %k_codes) form=qdq
    %y: f32[1,2,2] # u8(scale=1, zero=0) = Transpose(%r) {perm=[0, 2, 1]} form=qdq
  })")
                             .graph));
}

TEST(WholeGraph, TensorsOfZerosGetAStepOfOtherTensors) {
  const char* text = R"(graph @g(%x: f32[2,2]) -> (%y) {
    %y: f32[2,2] = Neg(%x)
  })";
  EXPECT_THAT(Quantized(text, 0, 0, "w8a16"), HasSubstr("%x_q: f32[2,2] # u16(scale=1.5259022e-05, zero=0)"));
  EXPECT_THAT(Quantized(text, 0, 0), HasSubstr("%x_q: f32[2,2] # u8(scale=0.003921569, zero=0)"));
}

TEST(WholeGraph, WidthsFollowThePrecision) {
  const char* text = R"(graph @g(%x: f32[2,2]) -> (%y) {
    %w = constant f32[2,2] [1, -1, 0.5, 0.25]
    %y: f32[2,2] = MatMul(%x, %w)
  })";
  EXPECT_THAT(Quantized(text, -1, 1), HasSubstr("%y: f32[2,2] # u8("));
  EXPECT_THAT(Quantized(text, -1, 1, "w8a16"), HasSubstr("%y: f32[2,2] # u16("));
  EXPECT_THAT(Quantized(text, -1, 1, "int8"), HasSubstr("%w: f32[2,2] # s8("));
  EXPECT_THAT(Quantized(text, -1, 1, "int16"), HasSubstr("%w: f32[2,2] # s16("));
}

TEST(WholeGraph, NormalizationsGetUnsignedScalesWhateverThePrecision) {
  const std::string text = Quantized(R"(graph @g(%x: f32[1,2]) -> (%y) {
    %s = constant f32[2] [1, 0.5]
    %b = constant f32[2] [0.25, -0.25]
    %y: f32[1,2] = LayerNormalization(%x, %s, %b) {axis=-1}
  })",
                                     -1, 1, "int8");
  EXPECT_THAT(text, HasSubstr("%s: f32[2] # u8("));
  EXPECT_THAT(text, HasSubstr("%b: f32[2] # s32("));
}

TEST(WholeGraphPlan, RefusalsSayWhy) {
  const Planned p(R"(graph @g(%x: f32[1,2,2]) -> (%y) {
    %e: f32[1,2,2] = Erf(%x)
    %s = constant f32[2,2] [1, 1, 1, 1]
    %n: f32[1,2,2] = LayerNormalization(%e, %s) {axis=1}
    %inf = constant f32[1] [inf]
    %m: f32[1,2,2] = Mul(%n, %inf)
    %y: f32[1,2,2] = Relu(%m)
  })");
  EXPECT_THAT(p.Reason("e"), HasSubstr("no Erf"));
  EXPECT_THAT(p.Reason("n"), HasSubstr("more than the last axis"));
  EXPECT_THAT(p.Reason("m"), HasSubstr("'inf' holds NaN or infinity"));
  EXPECT_TRUE(p.Takes("y"));
}

// ONNX Runtime aborts where a subgraph reads a quantized value behind data movement.
TEST(WholeGraphPlan, WhatMovesIntoASubgraphStaysFloat) {
  const char* head = R"(graph @g(%x: f32[1,4], %c: bool[]) -> (%y) {
    %a: f32[1,4] = Sigmoid(%x)
    %t: f32[4,1] = Transpose(%a) {perm=[1, 0]}
    %z: f32[4,1] = Sigmoid(%t)
    %y: f32[*] = If(%c) {then_branch=graph @t() -> (%p) { %p: f32[*] = Neg()";
  const Planned moved(std::string(head) + "%t) }, else_branch=graph @e() -> (%q) { %q: f32[*] = Abs(%x) }}\n}");
  EXPECT_FALSE(moved.Takes("a"));
  EXPECT_FALSE(moved.Takes("t"));
  EXPECT_THAT(moved.Reason("t"), HasSubstr("a subgraph reads its output behind data movement"));
  EXPECT_TRUE(moved.Takes("z"));
  const Planned direct(std::string(head) + "%z) }, else_branch=graph @e() -> (%q) { %q: f32[*] = Abs(%x) }}\n}");
  EXPECT_TRUE(direct.Takes("a"));
  EXPECT_TRUE(direct.Takes("t"));
  EXPECT_THAT(direct.Reason("p"), HasSubstr("subgraph"));
}

TEST(WholeGraphPlan, MasksAreFoundByWhatTheyAreMadeOf) {
  const char* text = R"(graph @g(%s: f32[1,4], %m: s64[1,4], %f: f32[1,4]) -> (%y) {
    %big = constant f32[1] [-10000]
    %c: f32[1,4] = Cast(%m) {to=1}
    %k: f32[1,4] = Mul(%c, %big)
    %a: f32[1,4] = Add(%s, )";
  const Planned mask(std::string(text) + "%k)\n %y: f32[1,4] = Softmax(%a)\n}");
  ASSERT_EQ(mask.plan->mask_sums.size(), 1u);
  EXPECT_EQ(mask.plan->mask_sums.begin()->second->name(), "s");
  EXPECT_EQ(mask.plan->mask_values.count(mask.model.graph->FindValue("big")), 1u);
  const Planned data(std::string(text) + "%f)\n %y: f32[1,4] = Softmax(%a)\n}");
  EXPECT_TRUE(data.plan->mask_sums.empty());
}

// As decoders are exported: a constant of zeros and -infinity is added, or Where puts it in the scores' place.
TEST(WholeGraphPlan, ConstantMasksAreMasks) {
  const auto plan = [](const std::string& body) {
    return Planned(
        "graph @g(%s: f32[2,2], %c: bool[2,2], %f: f32[2,2]) -> (%y) {\n"
        "  %causal = constant f32[2,2] [0, -inf, 0, 0]\n  %big = constant f32[] -3.4e38\n"
        "  %bias = constant f32[2,2] [0, -1, 0, 0]\n" +
        body + "\n}");
  };
  const auto score = [](const Planned& p, const std::string& sum) -> std::string {
    const auto it = p.plan->mask_sums.find(p.model.graph->FindValue(sum));
    return it == p.plan->mask_sums.end() ? "" : it->second->name();
  };
  const Planned add = plan("%a: f32[2,2] = Add(%s, %causal)\n%y: f32[2,2] = Softmax(%a)");
  EXPECT_TRUE(add.Takes("a"));
  EXPECT_EQ(score(add, "a"), "s");
  const Planned where = plan("%a: f32[2,2] = Where(%c, %s, %big)\n%y: f32[2,2] = Softmax(%a)");
  EXPECT_EQ(score(where, "a"), "s");
  EXPECT_EQ(where.plan->mask_values.count(where.model.graph->FindValue("big")), 1u);
  const Planned both = plan(
      "%a: f32[2,2] = Add(%causal, %s)\n%b: f32[2,2] = Where(%c, %big, %a)\n"
      "%t: f32[2,2] = Transpose(%b)\n%y: f32[2,2] = Softmax(%t)");
  EXPECT_EQ(score(both, "b"), "s");
  EXPECT_EQ(score(both, "a"), "s");
  const Planned bias = plan("%a: f32[2,2] = Add(%s, %bias)\n%y: f32[2,2] = Softmax(%a)");
  EXPECT_EQ(score(bias, "a"), "");
  // Infinity that something else than a Softmax reads has no codes.
  const Planned read = plan("%a: f32[2,2] = Add(%s, %causal)\n%p: f32[2,2] = Softmax(%a)\n%y: f32[2,2] = Add(%p, %a)");
  EXPECT_FALSE(read.Takes("a"));
  EXPECT_THAT(read.Reason("a"), HasSubstr("holds NaN or infinity"));
  const Planned hidden =
      plan("%a: f32[2,2] = Add(%s, %causal)\n%b: f32[2,2] = Add(%a, %f)\n%y: f32[2,2] = Softmax(%b)");
  EXPECT_FALSE(hidden.Takes("a"));
}

TEST(WholeGraphPlan, ADilatedAverageStaysFloat) {
  const auto pool = [](const std::string& size, const std::string& dilations) {
    return Planned("graph @g(%x: f32[1,1,8,8]) -> (%y) {\n  %y: f32[1,1," + size +
                   "] = AveragePool(%x) {kernel_shape=[2,2], dilations=[" + dilations + "]}\n}");
  };
  EXPECT_THAT(pool("6,6", "2,2").Reason("y"), HasSubstr("dilated"));
  EXPECT_TRUE(pool("7,7", "1,1").Takes("y"));
}

TEST(WholeGraphPlan, AReluWithAnotherReaderBesideItStays) {
  const Planned p(R"(graph @g(%x: f32[1,4]) -> (%y, %z) {
    %a: f32[1,4] = Sub(%x, %x)
    %y: f32[1,4] = Relu(%a)
    %z: f32[1,4] = Sigmoid(%a)
  })");
  EXPECT_TRUE(p.plan->absorbs.empty());
  EXPECT_NE(p.Tensor("a"), p.Tensor("y"));
}

// --- widths. Sites list the nodes that make and read them; node 0 -> site -> node 1 -> ...

TEST(Widths, NothingWhereTheTargetIsReached) {
  const std::vector<WidthNode> nodes = {{.cost = 10}, {.cost = 10}};
  const std::vector<WidthSite> sites = {{1e-3, {0, 1}}};
  const Widths w = ChooseWidths(nodes, sites);
  EXPECT_EQ(w.node, (std::vector<bool>{false, false}));
  EXPECT_DOUBLE_EQ(w.noise_left, 1e-3);
}

TEST(Widths, ATensorIsWideWithAllThatMakeAndReadIt) {
  const std::vector<WidthNode> nodes = {{.cost = 10}, {.cost = 10}, {.cost = 980}};
  const std::vector<WidthSite> sites = {{1e-1, {0, 1}}, {1e-3, {1, 2}}};
  const Widths w = ChooseWidths(nodes, sites);
  EXPECT_EQ(w.node, (std::vector<bool>{true, true, false}));
  EXPECT_NEAR(w.noise_left, 1e-3, 1e-12);
  EXPECT_NEAR(w.site_gone[0], 1e-1 / 1.01e-1, 1e-9);
  EXPECT_EQ(w.site_gone[1], 0);
  EXPECT_NEAR(w.cost_share, 0.02, 1e-9);
}

TEST(Widths, TheBudgetHoldsWhateverTheNoise) {
  const std::vector<WidthNode> nodes = {{.cost = 50}, {.cost = 50}};
  const std::vector<WidthSite> sites = {{1, {0}}, {0.5, {1}}};
  EXPECT_EQ(ChooseWidths(nodes, sites).node, (std::vector<bool>{false, false}));
  EXPECT_EQ(ChooseWidths(nodes, sites, {.budget = 0.5}).node, (std::vector<bool>{true, false}));
}

TEST(Widths, TheUsersWordStands) {
  const std::vector<WidthNode> nodes = {{.cost = 1, .fixed = true}, {.cost = 99}};
  const std::vector<WidthSite> sites = {{1, {0}}};
  EXPECT_EQ(ChooseWidths(nodes, sites).node, (std::vector<bool>{false, false}));
}

TEST(Widths, AWeightTakesItsNodeAlong) {
  const std::vector<WidthNode> nodes = {{.cost = 10, .weight_noise = 1e-1, .weight_widens = true}, {.cost = 90}};
  const Widths w = ChooseWidths(nodes, std::vector<WidthSite>{{1e-6, {0, 1}}});
  EXPECT_EQ(w.weight, (std::vector<bool>{true, false}));
  EXPECT_EQ(w.node, (std::vector<bool>{true, false}));
  EXPECT_NEAR(w.cost_share, 0.2, 1e-9);
}

TEST(Widths, WhatWeightsMakeAnywayIsNotChasedWithTensors) {
  const std::vector<WidthNode> nodes = {{.cost = 10, .weight_noise = 1e-1}, {.cost = 90}};
  const Widths w = ChooseWidths(nodes, std::vector<WidthSite>{{1e-3, {0}}});
  EXPECT_EQ(w.node, (std::vector<bool>{false, false}));
}

TEST(Widths, WhatTheTargetDoesNotNeedComesBack) {
  // Site 0 is the best for its cost, but site 1 alone is enough.
  const std::vector<WidthNode> nodes = {{.cost = 30}, {.cost = 5}, {.cost = 65}};
  const std::vector<WidthSite> sites = {{3e-3, {1}}, {2e-2, {0, 1}}, {1e-4, {2}}};
  const Widths w = ChooseWidths(nodes, sites);
  EXPECT_EQ(w.node, (std::vector<bool>{true, true, false}));
  EXPECT_NEAR(w.noise_left, 1e-4, 1e-12);
}

}  // namespace
}  // namespace octavo
