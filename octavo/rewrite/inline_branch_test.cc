// Ifs: with constant conditions, with branches that the shapes rule out, and as a choice between computed branches.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Model ParseModel(const std::string& text) {
  Model model = Parse("opset \"\" = 17\n" + text);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  return model;
}

std::vector<TensorRef> Inputs(const Model& model, bool condition) {
  std::vector<TensorRef> inputs = testing::RandomInputs(model, 7);
  for (TensorRef& input : inputs) {
    if (input.dtype != DType::kBool) continue;
    input = TensorRef::FromBytes(DType::kBool, input.dims, std::vector<std::byte>(1, std::byte{condition}));
  }
  return inputs;
}

std::vector<std::string> OutputNames(const Model& model) {
  std::vector<std::string> names;
  for (const Value* v : model.graph->outputs()) names.push_back(v->name());
  return names;
}

// One branch returns what it captures, twice; the other one a constant, and an If of its own.
std::string TwoOutputs(bool condition) {
  return std::string("graph @g(%x: f32[2,3]) -> (%y, %z, %s) {\n") + "  %c = constant bool[1] [" +
         (condition ? "true" : "false") + R"(]
    %n: f32[2,3] = Neg(%x)
    %y: f32[2,3], %z: f32[2,3] = If(%c) {then_branch=graph @t() -> (%p, %q) {
        %p: f32[2,3] = Identity(%n)
        %q: f32[2,3] = Identity(%n) },
      else_branch=graph @e() -> (%k, %j) {
        %k = constant f32[2,3] [1, 2, 3, 4, 5, 6]
        %d = constant bool[1] [true]
        %j: f32[2,3] = If(%d) {then_branch=graph @tt() -> (%a) { %a: f32[2,3] = Abs(%x) },
          else_branch=graph @ee() -> (%b) { %b: f32[2,3] = Exp(%n) }}
      }}
    %s: f32[2,3] = Add(%y, %z)
  })";
}

TEST(InlineBranches, ConstantConditions) {
  for (const bool condition : {true, false}) {
    SCOPED_TRACE(condition);
    Model model = ParseModel(TwoOutputs(condition));
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 3);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    const std::vector<std::string> names = OutputNames(model);
    EXPECT_EQ(InlineBranches(model), condition ? 1 : 2);
    EXPECT_EQ(Verify(model), std::vector<std::string>{});
    EXPECT_THAT(Print(*model.graph), Not(HasSubstr("If(")));
    EXPECT_EQ(OutputNames(model), names);
    EXPECT_TRUE(testing::SameBits(before, testing::RunModel(model, inputs)));
    EXPECT_EQ(InlineBranches(model), 0);
  }
}

TEST(InlineBranches, ValuesOfTheBranchKeepTheirNames) {
  Model model = ParseModel(R"(graph @g(%x: f32[2]) -> (%y) {
    %c = constant bool[1] [false]
    %i: f32[2] = If(%c) {then_branch=graph @t() -> (%a) { %a: f32[2] = Neg(%x) },
      else_branch=graph @e() -> (%b) { %inner: f32[2] = Exp(%x)
                                       %b: f32[2] = Neg(%inner) }}
    %y: f32[2] = Abs(%i)
  })");
  EXPECT_EQ(InlineBranches(model), 1);
  EXPECT_NE(model.graph->FindValue("inner"), nullptr);
  EXPECT_NE(model.graph->FindValue("b"), nullptr);
}

constexpr const char* kChoice = R"(graph @g(%x: f32[2,3], %c: bool[]) -> (%y, %m) {
    %y: f32[2,3], %m: f32[2,1] = If(%c) {then_branch=graph @t() -> (%a, %am) {
        %a: f32[2,3] = Exp(%x)
        %am: f32[2,1] = ReduceMax(%a) {axes=[1]} },
      else_branch=graph @e() -> (%b, %bm) {
        %b: f32[2,3] = Neg(%x)
        %bm: f32[2,1] = ReduceMin(%b) {axes=[1]} }}
  })";

TEST(InlineBranches, AComputedConditionStays) {
  Model model = ParseModel(kChoice);
  EXPECT_EQ(InlineBranches(model), 0);
  EXPECT_THAT(Print(*model.graph), HasSubstr("If("));
}

TEST(SelectBranches, BothAreComputedAndOneIsTaken) {
  const Model source = ParseModel(kChoice);
  Model model = Clone(source);
  EXPECT_EQ(SelectBranches(model), 1);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_THAT(Print(*model.graph), Not(HasSubstr("If(")));
  EXPECT_EQ(OutputNames(model), OutputNames(source));
  for (const bool condition : {true, false}) {
    const std::vector<TensorRef> inputs = Inputs(source, condition);
    EXPECT_TRUE(testing::SameBits(testing::RunModel(source, inputs), testing::RunModel(model, inputs))) << condition;
  }
}

TEST(SelectBranches, OtherShapesAndRandomNumbersStay) {
  // Both branches run, and give different shapes.
  Model shapes = ParseModel(R"(graph @g(%x: f32[2,3], %c: bool[]) -> (%y) {
    %one = constant s64[1] [1]
    %y = If(%c) {then_branch=graph @t() -> (%a) { %a: f32[2,3] = Exp(%x) },
      else_branch=graph @e() -> (%b) { %b: f32[2,1] = ReduceMean(%x) {axes=[1]} }}
  })");
  EXPECT_EQ(SelectBranches(shapes), 0);
  EXPECT_THAT(Print(*shapes.graph), HasSubstr("If("));
  Model random = ParseModel(R"(graph @g(%x: f32[2,3], %c: bool[]) -> (%y) {
    %y: f32[2,3] = If(%c) {then_branch=graph @t() -> (%a) { %a: f32[2,3] = RandomUniformLike(%x) },
      else_branch=graph @e() -> (%b) { %b: f32[2,3] = Neg(%x) }}
  })");
  EXPECT_EQ(SelectBranches(random), 0);
}

TEST(SelectBranches, ABranchThatTheShapesRuleOutIsNone) {
  // 2 x 3 times 4 x 4 is no product: only the other branch can be meant.
  for (const bool first : {true, false}) {
    const std::string fits = "a) { %a: f32[2,3] = Neg(%x) }", wrong = "b) { %b: f32[4,4] = MatMul(%x, %w) }";
    const Model source = ParseModel(
        "graph @g(%x: f32[2,3], %c: bool[]) -> (%y) {\n  %w = constant f32[4,4] [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, "
        "4, "
        "5, 6, 7]\n  %y = If(%c) {then_branch=graph @t() -> (%" +
        (first ? fits : wrong) + ", else_branch=graph @e() -> (%" + (first ? wrong : fits) + "}\n}");
    for (const auto& pass : {SelectBranches, DropImpossibleBranches}) {
      Model model = Clone(source);
      EXPECT_EQ(pass(model), 1);
      EXPECT_EQ(Verify(model), std::vector<std::string>{});
      EXPECT_THAT(Print(*model.graph), Not(HasSubstr("If(")));
      const std::vector<TensorRef> inputs = Inputs(model, first);
      const std::vector<TensorRef> got = testing::RunModel(model, inputs);
      EXPECT_EQ(got[0].dims, (Dims{2, 3}));
    }
  }
}

TEST(DropImpossibleBranches, WhatCanRunStays) {
  Model model = ParseModel(kChoice);
  EXPECT_EQ(DropImpossibleBranches(model), 0);
  EXPECT_THAT(Print(*model.graph), HasSubstr("If("));
}

}  // namespace
}  // namespace octavo
