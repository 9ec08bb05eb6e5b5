// Text in, text out: what each rule takes and, beside it, what it refuses and why.
#include "octavo/rewrite/rules/rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Ran {
  std::string text;  // of the graph afterwards
  std::int64_t applied = 0;
  std::string refusal;  // of the first refused node
};

Ran Apply(std::unique_ptr<Rule> rule, const std::string& text, RuleClass permitted = RuleClass::kLossy) {
  Model model = Parse("opset \"\" = 17\n" + text);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  RuleSet rules;
  rules.push_back(std::move(rule));
  const RewriteResult result = RunRules(model, rules, permitted);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  Ran ran;
  ran.text = Print(*model.graph);
  ran.applied = result.rules[0].applied;
  for (const TraceEntry& entry : result.trace) {
    if (!entry.applied && ran.refusal.empty()) ran.refusal = entry.reason;
  }
  return ran;
}

std::string Canonical(const std::string& text) { return Print(*Parse(text).graph); }

TEST(RemoveIdentity, TakesIdentityDropoutAndCastToTheSameType) {
  const Ran ran = Apply(RemoveIdentity(), R"(graph @g(%x: f32[2]) -> (%y) {
    %a: f32[2] = Identity(%x)
    %b: f32[2], %m: bool[2] = Dropout(%a)
    %c: f32[2] = Cast(%b) {to=1}
    %y: f32[2] = Relu(%c)
  })");
  EXPECT_EQ(ran.applied, 3);
  EXPECT_EQ(ran.text, Canonical(R"(graph @g(%x: f32[2]) -> (%y) {
    %y: f32[2] = Relu(%x)
  })"));
}

TEST(RemoveIdentity, GraphOutputKeepsItsName) {
  const Ran ran = Apply(RemoveIdentity(), R"(graph @g(%x: f32[2]) -> (%y) {
    %a: f32[2] = Relu(%x)
    %y: f32[2] = Identity(%a)
  })");
  EXPECT_EQ(ran.text, Canonical(R"(graph @g(%x: f32[2]) -> (%y) {
    %y: f32[2] = Relu(%x)
  })"));
}

TEST(RemoveIdentity, Refuses) {
  EXPECT_THAT(Apply(RemoveIdentity(), "graph @g(%x: f32[2]) -> (%y) { %y: f32[2] = Identity(%x) }").refusal,
              HasSubstr("gives a graph output its name"));
  EXPECT_THAT(
      Apply(RemoveIdentity(), R"(graph @g(%x: f32[2]) -> (%m) { %a: f32[2], %m: bool[2] = Dropout(%x) })").refusal,
      HasSubstr("mask output is used"));
  EXPECT_THAT(Apply(RemoveIdentity(), R"(graph @g(%x: f32[2], %t: bool[]) -> (%y) {
    %r = constant f32[] 0.5
    %a: f32[2] = Dropout(%x, %r, %t)
    %y: f32[2] = Relu(%a) })")
                  .refusal,
              HasSubstr("training_mode is not a constant"));
  EXPECT_THAT(Apply(RemoveIdentity(), R"(graph @g(%x: f32[2]) -> (%y) {
    %a = Relu(%x)
    %b = Cast(%a) {to=1}
    %y = Relu(%b) })")
                  .refusal,
              HasSubstr("type is not known"));
  EXPECT_EQ(
      Apply(RemoveIdentity(), R"(graph @g(%x: f32[2]) -> (%y) { %a: f16[2] = Cast(%x) {to=10} %y: f16[2] = Relu(%a) })")
          .applied,
      0);
}

TEST(RemoveNeutral, TakesOnesAndZerosThatKeepTheShape) {
  const Ran ran = Apply(RemoveNeutral(), R"(graph @g(%x: f32[2,3]) -> (%y) {
    %one = constant f32[1,3] [1, 1, 1]
    %zero = constant f32[] 0
    %a: f32[2,3] = Mul(%one, %x)
    %b: f32[2,3] = Div(%a, %one)
    %c: f32[2,3] = Sub(%b, %zero)
    %y: f32[2,3] = Relu(%c)
  })");
  EXPECT_EQ(ran.applied, 3);
  EXPECT_EQ(ran.text, Canonical("graph @g(%x: f32[2,3]) -> (%y) { %y: f32[2,3] = Relu(%x) }"));
}

TEST(ReciprocalToDiv, TakesFloats) {
  const Ran ran = Apply(ReciprocalToDiv(), R"(graph @g(%x: f32[3]) -> (%y) {
    %y: f32[3] = Reciprocal(%x)
  })");
  EXPECT_EQ(ran.text, Canonical(R"(graph @g(%x: f32[3]) -> (%y) {
    %y_one: f32[] = constant f32[] 1
    %y: f32[3] = Div(%y_one, %x)
  })"));
  EXPECT_THAT(Apply(ReciprocalToDiv(), R"(graph @g(%x: f16[3]) -> (%y) {
    %y: f16[3] = Reciprocal(%x)
  })")
                  .refusal,
              HasSubstr("not f32"));
}

TEST(MaxToRelu, TakesOnlyZero) {
  const auto run = [](const std::string& bound) {
    return Apply(MaxToRelu(),
                 "graph @g(%x: f32[3]) -> (%y) {\n %b = constant " + bound + "\n %y: f32[3] = Max(%b, %x)\n}");
  };
  EXPECT_EQ(run("f32[] 0").text, Canonical("graph @g(%x: f32[3]) -> (%y) {\n %y: f32[3] = Relu(%x)\n}"));
  EXPECT_EQ(run("f32[] 1").applied, 0);
  EXPECT_THAT(run("f32[1,1] [0]").refusal, HasSubstr("more dimensions"));
}

TEST(AverageToGlobal, TakesOneWindowOverAll) {
  const auto run = [](const std::string& out, const std::string& attributes) {
    return Apply(AverageToGlobal(),
                 "graph @g(%x: f32[1,3,6,6]) -> (%y) {\n %y: f32" + out + " = AveragePool(%x) {" + attributes + "}\n}");
  };
  const std::string all =
      Canonical("graph @g(%x: f32[1,3,6,6]) -> (%y) {\n %y: f32[1,3,1,1] = GlobalAveragePool(%x)\n}");
  EXPECT_EQ(run("[1,3,1,1]", "kernel_shape=[6, 6]").text, all);
  EXPECT_EQ(run("[1,3,1,1]", "kernel_shape=[7, 7], pads=[0, 0, 1, 1]").text, all);
  EXPECT_EQ(run("[1,3,1,1]", "kernel_shape=[6, 6], count_include_pad=1").text, all);
  EXPECT_THAT(run("[1,3,1,1]", "kernel_shape=[7, 7], pads=[0, 0, 1, 1], count_include_pad=1").refusal,
              HasSubstr("counts its padding"));
  EXPECT_THAT(run("[1,3,1,1]", "kernel_shape=[6, 5]").refusal, HasSubstr("leaves some out"));
  EXPECT_THAT(run("[1,3,1,1]", "kernel_shape=[7, 7], pads=[1, 2, 0, 0]").refusal, HasSubstr("leaves some out"));
  EXPECT_THAT(run("[1,3,2,1]", "kernel_shape=[6, 6], pads=[0, 0, 1, 0]").refusal, HasSubstr("leaves some out"));
}

TEST(ScaleLog, BringsFactorAndAddendIntoTheRangeOfHalves) {
  const auto run = [](const std::string& factor, const std::string& addend, const std::string& more = "") {
    return Apply(ScaleLog(), "graph @g(%x: f32[3]) -> (%y" + std::string(more.empty() ? "" : ", %z") +
                                 ") {\n %a = constant f32" + factor + "\n %b = constant f32" + addend +
                                 "\n %m: f32[3] = Mul(%x, %a)\n %s: f32[3] = Add(%b, %m)\n" + more +
                                 " %y: f32[3] = Log(%s)\n}");
  };
  EXPECT_EQ(run("[] 1048576", "[] 1").text, Canonical(R"(graph @g(%x: f32[3]) -> (%y) {
    %y_factor: f32[] = constant f32[] 64
    %y_addend: f32[] = constant f32[] 6.1035156e-05
    %y_shift: f32[] = constant f32[] 9.7040606
    %y_factor_done: f32[3] = Mul(%x, %y_factor)
    %y_addend_done: f32[3] = Add(%y_factor_done, %y_addend)
    %y_scaled: f32[3] = Log(%y_addend_done)
    %y: f32[3] = Add(%y_scaled, %y_shift)
  })"));
  EXPECT_THAT(run("[] 100", "[] 1").refusal, HasSubstr("the factor is small"));
  EXPECT_THAT(run("[] 1", "[] 1e-6").refusal, HasSubstr("small already"));
  EXPECT_THAT(run("[] 1048576", "[] -1").refusal, HasSubstr("not positive"));
  EXPECT_THAT(run("[] 1048576", "[] 1", " %z: f32[3] = Neg(%s)\n").refusal, HasSubstr("others read"));
  EXPECT_EQ(run("[3] [1048576, 1, 1]", "[] 1").applied, 0);
}

TEST(FillToNumber, AnOperandOfOneNumber) {
  const auto apply = [](const std::string& dims, const std::string& type, const std::string& attributes) {
    return Apply(FillToNumber(), "graph @g(%x: f32[4,3]) -> (%y) {\n %s = constant s64[" + dims + "\n %f: f32[" + type +
                                     "] = ConstantOfShape(%s)" + attributes + "\n %y = Mul(%f, %x)\n}");
  };
  EXPECT_THAT(apply("2] [4, 3]", "4,3", " {value=f32[1] [2]}").text, HasSubstr("f32[] 2"));
  EXPECT_THAT(apply("1] [3]", "3", "").text, Not(HasSubstr("ConstantOfShape")));
  EXPECT_THAT(apply("3] [2, 4, 3]", "2,4,3", "").text, HasSubstr("ConstantOfShape"));
}

TEST(TopKOfOne, TakesWhereThereIsNothingToChoose) {
  const auto run = [](const std::string& x, const std::string& k, const std::string& out) {
    return Apply(TopKOfOne(), "graph @g(%x: s32" + x + ") -> (%y, %z) {\n %k = constant s64[1] " + k + "\n %v: s32" +
                                  out + ", %i: s64" + out + " = TopK(%x, %k) {axis=0}\n %y: s32" + out +
                                  " = Neg(%v)\n %z: s64" + out + " = Neg(%i)\n}");
  };
  EXPECT_EQ(run("[1,2]", "[1]", "[1,2]").text, Canonical(R"(graph @g(%x: s32[1,2]) -> (%y, %z) {
    %i_zero: s64[1,2] = constant s64[1,2] [0, 0]
    %y: s32[1,2] = Neg(%x)
    %z: s64[1,2] = Neg(%i_zero)
  })"));
  EXPECT_THAT(run("[2,2]", "[1]", "[1,2]").refusal, HasSubstr("it chooses"));
  EXPECT_THAT(run("[n,2]", "[1]", "[1,2]").refusal, HasSubstr("not known"));
  EXPECT_THAT(Apply(TopKOfOne(), R"(graph @g(%x: s32[1]) -> (%v, %i) {
    %k = constant s64[1] [1]
    %v: s32[1], %i: s64[1] = TopK(%x, %k)
  })")
                  .refusal,
              HasSubstr("graph output"));
}

TEST(RemoveInfiniteBound, TakesOnlyWhatBoundsNothing) {
  const auto run = [](const std::string& op, const std::string& bound) {
    return Apply(RemoveInfiniteBound(), "graph @g(%x: f32[3]) -> (%y) {\n %b = constant " + bound +
                                            "\n %m: f32[3] = " + op + "(%b, %x)\n %y: f32[3] = Neg(%m)\n}");
  };
  const std::string gone = Canonical("graph @g(%x: f32[3]) -> (%y) {\n %y: f32[3] = Neg(%x)\n}");
  EXPECT_EQ(run("Max", "f32[] -inf").text, gone);
  EXPECT_EQ(run("Min", "f32[1] [inf]").text, gone);
  EXPECT_EQ(run("Max", "f32[] inf").applied, 0);
  EXPECT_EQ(run("Min", "f32[] 3").applied, 0);
  EXPECT_THAT(run("Max", "f32[1,1] [-inf]").refusal, HasSubstr("more dimensions"));
}

TEST(RemoveNeutral, Refuses) {
  EXPECT_THAT(Apply(RemoveNeutral(), R"(graph @g(%x: f32[3]) -> (%y) {
    %one = constant f32[2,1] [1, 1]
    %a: f32[2,3] = Mul(%x, %one)
    %y: f32[2,3] = Relu(%a) })")
                  .refusal,
              HasSubstr("more dimensions"));
  EXPECT_THAT(Apply(RemoveNeutral(), R"(graph @g(%x: f32[1]) -> (%y) {
    %one = constant f32[2] [1, 1]
    %a: f32[2] = Mul(%x, %one)
    %y: f32[2] = Relu(%a) })")
                  .refusal,
              HasSubstr("may broadcast a dimension"));
  EXPECT_THAT(Apply(RemoveNeutral(), R"(graph @g(%x: f32[2]) -> (%y) {
    %zero = constant f32[] -0
    %a: f32[2] = Sub(%x, %zero)
    %y: f32[2] = Relu(%a) })")
                  .refusal,
              HasSubstr("-0"));
  EXPECT_EQ(Apply(RemoveNeutral(), R"(graph @g(%x: f32[2]) -> (%y) {
    %one = constant f32[] 1
    %a: f32[2] = Div(%one, %x)
    %y: f32[2] = Relu(%a) })")
                .applied,
            0);
}

TEST(RemoveAddZero, IsOneLsbAndRunsOnlyWhereThatIsPermitted) {
  const std::string text = R"(graph @g(%x: f32[2]) -> (%y) {
    %zero = constant f32[] 0
    %a: f32[2] = Add(%x, %zero)
    %y: f32[2] = Relu(%a) })";
  EXPECT_EQ(Apply(RemoveAddZero(), text, RuleClass::kExact).applied, 0);
  EXPECT_EQ(Apply(RemoveAddZero(), text, RuleClass::kOneLsb).applied, 1);
}

TEST(FoldShape, TakesKnownDimensions) {
  const Ran ran = Apply(FoldShape(), R"(graph @g(%x: f32[n,3,5]) -> (%y, %z) {
    %s: s64[2] = Shape(%x) {start=-2}
    %y: s64[2] = Identity(%s)
    %r: f32[3,5] = Relu(%x)
    %n: s64[] = Size(%r)
    %z: s64[] = Identity(%n)
  })");
  EXPECT_EQ(ran.applied, 2);
  EXPECT_THAT(ran.text, HasSubstr("constant s64[2] [3, 5]"));
  EXPECT_THAT(ran.text, HasSubstr("constant s64[] 15"));
}

TEST(FoldShape, Refuses) {
  EXPECT_THAT(
      Apply(FoldShape(), R"(graph @g(%x: f32[n,3]) -> (%y) { %s: s64[2] = Shape(%x) %y: s64[2] = Identity(%s) })")
          .refusal,
      HasSubstr("dimension 0"));
  EXPECT_THAT(Apply(FoldShape(), R"(graph @g(%x: f32[*]) -> (%y) { %s: s64[2] = Shape(%x) %y: s64[2] = Identity(%s) })")
                  .refusal,
              HasSubstr("rank"));
  EXPECT_THAT(Apply(FoldShape(), "graph @g(%x: f32[3]) -> (%s) { %s: s64[1] = Shape(%x) }").refusal,
              HasSubstr("graph output"));
}

constexpr char kConvBn[] = R"(
    %w = constant f32[2,1,1,1] [2, 3]
    %s = constant f32[2] [4, 1]
    %b = constant f32[2] [1, 0]
    %m = constant f32[2] [0.5, 0]
    %v = constant f32[2] [3, 0]
)";

TEST(FoldBatchNorm, IntoConvWithoutBias) {
  const Ran ran = Apply(FoldBatchNorm(), std::string("graph @g(%x: f32[1,1,2,2]) -> (%y) {") + kConvBn + R"(
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %y: f32[1,2,2,2] = BatchNormalization(%c, %s, %b, %m, %v) {epsilon=1.0}
  })");
  // a = [4 / sqrt(4), 1 / sqrt(1)] = [2, 1]; b = [1 - 0.5 * 2, 0] = 0: no bias is made.
  EXPECT_EQ(ran.text, Canonical(R"(graph @g(%x: f32[1,1,2,2]) -> (%y) {
    %w = constant f32[2,1,1,1] [4, 3]
    %y: f32[1,2,2,2] = Conv(%x, %w)
  })"));
}

TEST(FoldBatchNorm, SharedWeightIsClonedForTheFoldedUse) {
  const Ran ran = Apply(FoldBatchNorm(), std::string("graph @g(%x: f32[1,1,2,2]) -> (%y, %z) {") + kConvBn + R"(
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %y: f32[1,2,2,2] = BatchNormalization(%c, %s, %b, %m, %v) {epsilon=1.0}
    %z: f32[1,2,2,2] = Conv(%x, %w)
  })");
  EXPECT_EQ(ran.text, Canonical(R"(graph @g(%x: f32[1,1,2,2]) -> (%y, %z) {
    %w = constant f32[2,1,1,1] [2, 3]
    %w_1 = constant f32[2,1,1,1] [4, 3]
    %y: f32[1,2,2,2] = Conv(%x, %w_1)
    %z: f32[1,2,2,2] = Conv(%x, %w)
  })"));
}

TEST(FoldBatchNorm, Refuses) {
  EXPECT_THAT(Apply(FoldBatchNorm(), std::string("graph @g(%x: f32[1,1,2,2]) -> (%y, %c) {") + kConvBn + R"(
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %y: f32[1,2,2,2] = BatchNormalization(%c, %s, %b, %m, %v)
  })")
                  .refusal,
              HasSubstr("has other uses"));
  EXPECT_THAT(Apply(FoldBatchNorm(), std::string("graph @g(%x: f32[1,2,2,2]) -> (%y) {") + kConvBn + R"(
    %c: f32[1,2,2,2] = Relu(%x)
    %y: f32[1,2,2,2] = BatchNormalization(%c, %s, %b, %m, %v)
  })")
                  .refusal,
              HasSubstr("comes from Relu"));
  EXPECT_THAT(Apply(FoldBatchNorm(), std::string("graph @g(%x: f32[1,1,2,2], %k: f32[2]) -> (%y) {") + kConvBn + R"(
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %y: f32[1,2,2,2] = BatchNormalization(%c, %k, %b, %m, %v)
  })")
                  .refusal,
              HasSubstr("parameter 1 is not an f32 constant"));
  EXPECT_THAT(Apply(FoldBatchNorm(), std::string("graph @g(%x: f32[1,1,2,2]) -> (%y) {") + kConvBn + R"(
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %y: f32[1,2,2,2] = BatchNormalization(%c, %s, %b, %m, %v) {epsilon=0.0}
  })")
                  .refusal,
              HasSubstr("channel 1 has no finite scale"));
  EXPECT_THAT(Apply(FoldBatchNorm(), std::string("graph @g(%x: f32[1,1,2,2]) -> (%y) {") + kConvBn + R"(
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %y: f32[1,2,2,2] = BatchNormalization(%c, %s, %b, %m, %v) {training_mode=1}
  })")
                  .refusal,
              HasSubstr("training mode"));
}

TEST(SplitBatchNorm, WhereThereIsNoLayer) {
  const Ran ran = Apply(SplitBatchNorm(), std::string("graph @g(%x: f32[1,2,2,2]) -> (%y) {") + kConvBn + R"(
    %y: f32[1,2,2,2] = BatchNormalization(%x, %s, %b, %m, %v) {epsilon=1.0}
  })");
  EXPECT_EQ(ran.applied, 1);
  EXPECT_THAT(ran.text, HasSubstr("constant f32[2,1,1] [2, 1]"));
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[1,2,2,2] = Add("));
  EXPECT_THAT(Apply(SplitBatchNorm(), std::string("graph @g(%x: f32[*]) -> (%y) {") + kConvBn + R"(
    %y: f32[*] = BatchNormalization(%x, %s, %b, %m, %v) {epsilon=1.0}
  })")
                  .refusal,
              HasSubstr("rank"));
}

TEST(FoldScale, IntoWeightsAndBias) {
  const Ran ran = Apply(FoldScale(), R"(graph @g(%x: f32[1,1,2,2]) -> (%y) {
    %w = constant f32[2,1,1,1] [2, 3]
    %k = constant f32[2,1,1] [2, 4]
    %d = constant f32[] 2
    %o = constant f32[1,2,1,1] [1, -1]
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %p: f32[1,2,2,2] = Mul(%k, %c)
    %q: f32[1,2,2,2] = Add(%p, %o)
    %r: f32[1,2,2,2] = Div(%q, %d)
    %y: f32[1,2,2,2] = Sub(%o, %r)
  })");
  // 2 k w / 2 and o / 2, then o - that.
  EXPECT_EQ(ran.applied, 4);
  EXPECT_THAT(ran.text, HasSubstr("constant f32[2,1,1,1] [-2, -6]"));
  EXPECT_THAT(ran.text, HasSubstr("constant f32[2] [0.5, -0.5]"));
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[1,2,2,2] = Conv("));
}

TEST(FoldScale, Refuses) {
  const auto conv = [](const std::string& constant, const std::string& op, const std::string& outputs = "%y") {
    return Apply(FoldScale(), "graph @g(%x: f32[1,1,2,2]) -> (" + outputs +
                                  ") {\n%w = constant f32[2,1,1,1] [2, 3]\n%k = constant " + constant +
                                  "\n%c: f32[*] = Conv(%x, %w)\n%y: f32[*] = " + op + "\n}")
        .refusal;
  };
  EXPECT_THAT(conv("f32[2] [1, 2]", "Mul(%c, %k)"), HasSubstr("axis 3, which is not the channel axis"));
  EXPECT_THAT(conv("f32[1,1,2,1,1] [1, 2]", "Mul(%c, %k)"), HasSubstr("rank 5"));
  EXPECT_THAT(conv("f32[] 2", "Div(%k, %c)"), HasSubstr("divisor"));
  EXPECT_THAT(conv("f32[] 0", "Div(%c, %k)"), HasSubstr("divisor of 0"));
  EXPECT_THAT(conv("f32[] 2", "Mul(%c, %k)", "%y, %c"), HasSubstr("other uses"));
  EXPECT_THAT(Apply(FoldScale(), R"(graph @g(%x: f32[4,2]) -> (%y) {
    %w = constant f32[2,2] [1, 2, 3, 4]
    %k = constant f32[2] [1, 2]
    %c: f32[4,2] = MatMul(%x, %w)
    %y: f32[4,2] = Add(%c, %k)
  })")
                  .refusal,
              HasSubstr("an Add behind it is its bias"));
}

// Every layer kind, checked by running it: folding is the same function up to rounding.
TEST(FoldScale, EveryLayerKindComputesTheSame) {
  const std::string layers[] = {
      R"(%w = constant f32[4,1,2,2] [1,2,3,4,5,6,7,8,-1,-2,-3,-4,-5,-6,-7,-8]
         %b = constant f32[4] [1,2,3,4]
         %k = constant f32[4,1,1] [0.5,-3,2,7]
         %o = constant f32[4,1,1] [0.25,-3,1,9]
         %c = Conv(%x, %w, %b) {group=2})",
      R"(%w = constant f32[2,2,2,2] [1,2,3,4,5,6,7,8,-1,-2,-3,-4,-5,-6,-7,-8]
         %k = constant f32[4,1,1] [0.5,-3,2,7]
         %o = constant f32[4,1,1] [0.25,-3,1,9]
         %c = ConvTranspose(%x, %w) {group=2})",
      R"(%w = constant f32[3,6] [1,2,3,4,5,6,7,8,-1,-2,-3,-4,-5,-6,-7,-8,9,10]
         %b = constant f32[1,3] [1,2,3]
         %k = constant f32[3] [0.5,-3,2]
         %o = constant f32[1,3] [0.25,-3,1]
         %f = Flatten(%x) {axis=3}
         %c = Gemm(%f, %w, %b) {alpha=0.5, beta=2.0, transB=1})"};
  for (const std::string& layer : layers) {
    SCOPED_TRACE(layer);
    const std::string size = layer.find("Gemm") == std::string::npos ? "5" : "6";
    Model model = Parse("opset \"\" = 17\ngraph @g(%x: f32[1,2,4," + size + "]) -> (%y) {\n" + layer +
                        "\n%m = Mul(%c, %k)\n%y: f32[*] = Add(%m, %o)\n}");
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 3);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    RuleSet rules;
    rules.push_back(FoldScale());
    EXPECT_EQ(RunRules(model, rules).rules[0].applied, 2);
    const std::vector<TensorRef> after = testing::RunModel(model, inputs);
    ASSERT_EQ(before[0].dims, after[0].dims);
    const std::vector<float> a = before[0].ToFloats(), b = after[0].ToFloats();
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4f * (1.0f + std::abs(a[i])));
  }
}

TEST(FoldConstants, FoldsChainsAndKeepsNames) {
  Model model = Parse(R"(opset "" = 17
  graph @g(%x: f32[6]) -> (%y) {
    %a = constant s64[] 2
    %axes = constant s64[1] [0]
    %t = constant s64[1] [3]
    %u: s64[1] = Unsqueeze(%a, %axes)
    %shape: s64[2] = Concat(%u, %t) {axis=0}
    %y: f32[*] = Reshape(%x, %shape)
  })");
  EXPECT_EQ(FoldConstants(model), 2);
  EXPECT_THAT(Print(*model.graph), HasSubstr("%shape = constant s64[2] [2, 3]"));
  EXPECT_EQ(model.graph->node_count(), 1u);
}

TEST(FoldConstants, WhatGrowsOnTheWayToASmallResultIsFolded) {
  // A product of 200 x 2 and 2 x 300 numbers: 240,000 bytes of 4,000.
  const auto grows = [](const std::string& rest) {
    std::string a, b;
    for (int i = 0; i < 400; ++i) a += (i > 0 ? ", " : "") + std::to_string(i % 7);
    for (int i = 0; i < 600; ++i) b += (i > 0 ? ", " : "") + std::to_string(i % 5);
    return Parse("ir_version = 8\nopset \"\" = 17\ngraph @g(%x: f32[200,300]) -> (%y) {\n%a = constant f32[200,2] [" +
                 a + "]\n%b = constant f32[2,300] [" + b + "]\n%p: f32[200,300] = MatMul(%a, %b)\n" + rest + "}\n");
  };
  Model model = grows("%m: f32[200,1] = ReduceMax(%p) {axes=[1]}\n%y: f32[200,300] = Add(%x, %m)\n");
  EXPECT_EQ(FoldConstants(model), 2);
  model = grows("%n: f32[200,300] = Neg(%p)\n%y: f32[200,300] = Add(%x, %n)\n");
  EXPECT_EQ(FoldConstants(model), 0);
}

TEST(FoldConstants, FillsAScalarWhoseTypeIsNotKnown) {
  Model model = Parse(R"(opset "" = 17
  graph @g(%x: bool[1,3]) -> (%y) {
    %none = constant s64[0] []
    %true = ConstantOfShape(%none) {value=bool[1] [1]}
    %y: bool[1,3] = And(%true, %x)
  })");
  EXPECT_EQ(FoldConstants(model), 1);
  EXPECT_THAT(Print(*model.graph), HasSubstr("%true = constant bool[] 1"));
}

TEST(FoldConstants, LeavesWhatIsRandomHugeQuantizedOrAnOutput) {
  Model model = Parse(R"(opset "" = 17
  graph @g() -> (%y, %z, %h) {
    %a = constant f32[2] [1, 2]
    %big = constant s64[3] [4096, 4096, 4]
    %y: f32[*] = Relu(%a)
    %r = RandomNormalLike(%a)
    %z: f32[*] = Relu(%r)
    %e = ConstantOfShape(%big)
    %h: f32[*] = ReduceSum(%e)
  })");
  EXPECT_EQ(FoldConstants(model), 0);
  EXPECT_EQ(model.graph->node_count(), 5u);
}

// Rules that undo each other are a bug, and are found.
class FlipRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "flip"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Relu", "Abs"}; }
  MatchOr<Node*> Match(Node& node) const override { return &node; }
  void Apply(Node* const& node, Rewriter&) const override { node->SetOp(node->op() == "Relu" ? "Abs" : "Relu"); }
};

TEST(Driver, RulesThatDoNotEndAreNamed) {
  Model model = Parse("graph @g(%x: f32[2]) -> (%y) { %y: f32[2] = Relu(%x) }");
  RuleSet rules;
  rules.push_back(std::make_unique<FlipRule>());
  try {
    RunRules(model, rules);
    FAIL() << "the driver came to an end";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("rule flip"));
  }
}

TEST(Driver, IsLinearInLongChains) {
  Model model;
  model.SetOpsetVersion("", 17);
  model.graph = std::make_unique<Graph>();
  Type type{DType::kF32, std::vector<Dim>{{2, {}}}, {}, {}};
  Value* value = model.graph->AddInput("x", type);
  for (int i = 0; i < 50000; ++i)
    value = model.graph->AddNode(i % 2 ? "Identity" : "Relu", "", {value}, {{"v", type}})->output();
  model.graph->AddOutput(model.graph->AddNode("Relu", "", {value}, {{"y", type}})->output());
  EXPECT_EQ(RunRules(model, FloatRules()).rules[0].applied, 25000);
  EXPECT_EQ(model.graph->node_count(), 25001u);
}

}  // namespace
}  // namespace octavo
