// Gathers whose places are known, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::Ran;

Ran Apply(const std::string& graph) {
  RuleSet rules;
  rules.push_back(GatherNdToGather());
  rules.push_back(GatherAll());
  rules.push_back(GatherByMatrix());
  rules.push_back(FewerDimsTranspose());
  rules.push_back(ReshapeTwice());
  rules.push_back(ReverseToGather());
  return testing::ApplyRules("opset \"\" = 20\n" + graph, rules, RuleClass::kExact, 0);
}

TEST(GatherKnown, AllInOrderIsAReshape) {
  const Ran ran = Apply(R"(graph @g(%x: f32[2,3,4]) -> (%y) {
    %i = constant s64[1,3] [0, 1, -1]
    %y: f32[2,1,3,4] = Gather(%x, %i) {axis=1}
  })");
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[2,1,3,4] = Reshape(%x"));
  EXPECT_THAT(ran.text, Not(HasSubstr("Gather")));
}

TEST(GatherKnown, OtherGathersStay) {
  for (const auto& [indices, why] : {std::pair{"s64[3] [0, 2, 1]", "another order"},
                                     std::pair{"s64[2] [0, 1]", "takes some"}, std::pair{"s64[] 0", "takes some"}}) {
    const Ran ran = Apply("graph @g(%x: f32[2,3]) -> (%y) {\n  %i = constant " + std::string(indices) +
                          "\n  %a = Gather(%x, %i) {axis=1}\n  %y = Relu(%a)\n}");
    EXPECT_THAT(ran.text, HasSubstr("Gather(")) << indices;
    EXPECT_THAT(ran.refusal, HasSubstr(why)) << indices;
  }
}

TEST(GatherKnown, PointsBecomePlacesOfOneDimension) {
  const Ran ran = Apply(R"(graph @g(%x: f32[2,3,2]) -> (%y) {
    %i = constant s64[2,2] [0, 2, -1, 0]
    %y: f32[2,2] = GatherND(%x, %i)
  })");
  EXPECT_THAT(ran.text, HasSubstr("f32[6,2] = Reshape(%x"));
  EXPECT_THAT(ran.text, HasSubstr("= constant s64[2] [2, 3]"));
  EXPECT_THAT(ran.text, Not(HasSubstr("GatherND")));
}

// What masks of exported transformers are: every token of every row, by row and token.
TEST(GatherKnown, AllPointsInOrderAreAReshape) {
  const Ran ran = Apply(R"(graph @g(%x: f32[1,3]) -> (%y) {
    %i = constant s64[1,1,1,3,2] [0, 0, 0, 1, 0, 2]
    %y: f32[1,1,1,3] = GatherND(%x, %i)
  })");
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[1,1,1,3] = Reshape("));
  EXPECT_THAT(ran.text, Not(HasSubstr("Gather")));
}

TEST(GatherKnown, PointsThatAreNotKnownStay) {
  EXPECT_THAT(Apply("graph @g(%x: f32[2,3], %i: s64[2,2]) -> (%y) { %y: f32[2] = GatherND(%x, %i) }").refusal,
              HasSubstr("computed"));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[2,3]) -> (%y) {
    %i = constant s64[2,1] [0, 2]
    %y: f32[2] = GatherND(%x, %i) {batch_dims=1}
  })")
                  .refusal,
              HasSubstr("batch dimensions"));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[?,3]) -> (%y) {
    %i = constant s64[2,2] [0, 2, 0, 0]
    %y: f32[2] = GatherND(%x, %i)
  })")
                  .refusal,
              HasSubstr("not known"));
}

// Windows of an image, as im2col has them: of 2 by 3, which begin at every place and at every second one.
TEST(GatherKnown, WindowsOfAnImageNeedNoSixDimensions) {
  const Ran ran = Apply(R"(graph @g(%x: f32[1,2,4,5]) -> (%y) {
    %h = constant s64[3,2] [0, 1, 1, 2, 2, -1]
    %w = constant s64[2,3] [0, 1, 2, 2, 3, 4]
    %s = constant s64[3] [1, 12, 6]
    %a: f32[1,2,3,2,5] = Gather(%x, %h) {axis=2}
    %b: f32[1,2,3,2,2,3] = Gather(%a, %w) {axis=-1}
    %c: f32[1,2,2,3,3,2] = Transpose(%b) {perm=[0, 1, 3, 5, 2, 4]}
    %y: f32[1,12,6] = Reshape(%c, %s)
  })");
  EXPECT_THAT(ran.text, HasSubstr("f32[1,2,3,2,6] = Gather("));
  for (const Node* node : ran.model.graph->nodes()) EXPECT_LE(node->output()->type.shape->size(), 5u) << ran.text;
}

TEST(GatherKnown, WindowsOfWhatHasSixDimensions) {
  const Ran ran = Apply(R"(graph @g(%x: f32[1,2,3,2,2,2]) -> (%y) {
    %i = constant s64[2,2] [0, 2, 1, 1]
    %y: f32[1,2,2,2,2,2,2] = Gather(%x, %i) {axis=2}
  })");
  EXPECT_THAT(ran.text, HasSubstr("f32[2,4,8] = Gather("));
  EXPECT_THAT(ran.text, HasSubstr("%y: f32[1,2,2,2,2,2,2] = Reshape("));
}

TEST(GatherKnown, WindowsAtComputedPlacesStay) {
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[1,2,3,2,2], %i: s64[2,2]) -> (%y) {
    %y: f32[1,2,2,2,2,2] = Gather(%x, %i) {axis=2}
  })")
                  .refusal,
              HasSubstr("computed"));
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[2,3,2]) -> (%y) {
    %i = constant s64[2,2] [0, 2, 1, 1]
    %y: f32[2,2,2,2] = Gather(%x, %i) {axis=1}
  })")
                  .text,
              Not(HasSubstr("Reshape")));
}

TEST(GatherKnown, SequencesOfOneLengthBackwards) {
  const Ran ran = Apply(R"(graph @g(%x: f32[4,2,3]) -> (%y) {
    %n = constant s64[2] [3, 3]
    %y: f32[4,2,3] = ReverseSequence(%x, %n)
  })");
  EXPECT_THAT(ran.text, HasSubstr("= constant s64[4] [2, 1, 0, 3]"));
  EXPECT_THAT(ran.text, Not(HasSubstr("ReverseSequence")));
  const Ran other = Apply(R"(graph @g(%x: f32[2,4,3]) -> (%y) {
    %n = constant s64[2] [4, 4]
    %y: f32[2,4,3] = ReverseSequence(%x, %n) {batch_axis=0, time_axis=1}
  })");
  EXPECT_THAT(other.text, HasSubstr("{axis=1}"));
}

TEST(GatherKnown, SequencesOfSeveralLengthsStay) {
  EXPECT_THAT(Apply(R"(graph @g(%x: f32[4,2,3]) -> (%y) {
    %n = constant s64[2] [3, 4]
    %y: f32[4,2,3] = ReverseSequence(%x, %n)
  })")
                  .refusal,
              HasSubstr("several lengths"));
  EXPECT_THAT(
      Apply(R"(graph @g(%x: f32[4,2,3], %n: s64[2]) -> (%y) { %y: f32[4,2,3] = ReverseSequence(%x, %n) })").refusal,
      HasSubstr("computed"));
}

}  // namespace
}  // namespace octavo
