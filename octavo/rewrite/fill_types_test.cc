#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/ir/text.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

Model ParseIr(const std::string& text) {
  Model model = Parse("opset \"\" = 21\n" + text);
  model.ir_version = 10;
  return model;
}

// Forgets what is known of results; gives it, in their order.
std::vector<std::pair<Value*, Type>> Forget(Model& model) {
  std::vector<std::pair<Value*, Type>> was;
  for (Node* node : model.graph->nodes()) {
    for (Value* v : node->outputs()) was.emplace_back(v, v->type);
  }
  for (auto& [v, type] : was) v->type = Type{};
  return was;
}

constexpr const char* kInputs =
    "%x: f32[2,6,8,10], %m: f32[n,12], %q: u8[4,5], %b: bool[5], %i: s64[3,2], %d: f32[1,1,m]";

// Each result with the type that the operator's definition gives it.
const std::vector<std::string>& Cases() {
  static const std::vector<std::string> cases = {
      "%y: f32[2,6,8,10] = Relu(%x)",
      "%y: f32[n,12] = Softmax(%m)",
      "%y: f32[2,6,8,10] = Add(%x, %k)",
      "%y: f32[2,6,8,10] = Mul(%k, %x)",
      "%y: f32[1,n,12] = Add(%m, %e)",
      "%y: f32[n,12] = Add(%m, %m)",
      "%y: f32[4,5] = Where(%b, %z, %s)",
      "%y: f32[n,7] = MatMul(%m, %w)",
      "%y: f32[2,6,8,3] = MatMul(%x, %w2)",
      "%y: f32[n,7] = Gemm(%m, %wt) {transB=1}",
      "%y: f32[2,4,4,10] = Conv(%x, %c) {group=2, strides=[2,1], pads=[1,0,1,1]}",
      "%y: f32[2,4,6,7] = Conv(%x, %c) {group=2, dilations=[1,3]}",
      "%y: f32[2,6,4,5] = MaxPool(%x) {kernel_shape=[2,2], strides=[2,2]}",
      "%y: f32[2,6,8,10] = AveragePool(%x) {kernel_shape=[3,3], pads=[1,1,1,1]}",
      "%y: f32[2,6,1,1] = GlobalAveragePool(%x)",
      "%y: f32[12,n] = Transpose(%m)",
      "%y: f32[2,8,10,6] = Transpose(%x) {perm=[0,2,3,1]}",
      "%y: f32[2,480] = Reshape(%x, %r)",
      "%y: f32[12,80] = Flatten(%x) {axis=2}",
      "%y: f32[2,6,1,8,10,1] = Unsqueeze(%x, %u)",
      "%y: f32[m] = Squeeze(%d, %v)",
      "%y: f32[2,12,8,10] = Concat(%x, %x) {axis=1}",
      "%y: f32[2,3,2,8,10] = Gather(%x, %i) {axis=1}",
      "%y: f32[2,6,4,10] = Slice(%x, %p1, %p9, %p2)",
      "%y: f32[2,6,2,10] = Slice(%x, %p1, %p9, %p2, %p3)",
      "%y: f32[2,6,7,10] = Slice(%x, %p0, %m1, %p2)",
      "%y: f32[2,6,8,0] = Slice(%x, %p9, %p9, %p3)",
      "%y: f32[n,15] = Pad(%m, %pads)",
      "%y: f32[2,6] = ReduceMean(%x, %last) {keepdims=0}",
      "%y: f32[2,6,1,1] = ReduceMax(%x, %last)",
      "%y: f32[1,1,1,1] = ReduceMin(%x)",
      "%y: f32[2,2,8,10], %y2: f32[2,4,8,10] = Split(%x, %sizes) {axis=1}",
      "%y: f32[2,6,4,10], %y2: f32[2,6,4,10] = Split(%x) {axis=2, num_outputs=2}",
      "%y: s8[n,12] = QuantizeLinear(%m, %s, %zero)",
      "%y: u8[n,12] = QuantizeLinear(%m, %s)",
      "%y: f32[4,5] = DequantizeLinear(%q, %s)",
      "%y: s32[4,5] = Cast(%q) {to=6}",
  };
  return cases;
}

std::string Text(const std::string& line) {
  return std::string("graph @g(") + kInputs +
         ") -> (%o) {\n%k = constant f32[6,1,1] splat(2)\n%e = constant f32[1,1,12] splat(1)\n%z = constant f32[4,1] "
         "splat(1)\n%s = constant f32[] 0.5\n%w = constant f32[12,7] splat(1)\n%w2 = constant f32[10,3] splat(1)\n%wt "
         "= "
         "constant f32[7,12] splat(1)\n%c = constant f32[4,3,3,2] splat(1)\n%r = constant s64[2] [0,-1]\n%u = constant "
         "s64[2] [2,-1]\n%v = constant s64[2] [0,-2]\n%zero = constant s8[] 3\n%p0 = constant s64[1] [0]\n%p1 = "
         "constant "
         "s64[1] [4]\n%p9 = constant s64[1] [99]\n%p2 = constant s64[1] [2]\n%p3 = constant s64[1] [3]\n%m1 = constant "
         "s64[1] [-1]\n%pads = constant s64[4] [0,1,0,2]\n%last = constant s64[2] [2,-1]\n%sizes = constant s64[2] "
         "[2,4]\n" +
         line + "\n%o: " + line.substr(4, line.find(']') - 3) + " = Identity(%y)\n}";
}

TEST(FillTypes, WhatTheDefinitionSays) {
  for (const std::string& line : Cases()) {
    Model model = ParseIr(Text(line));
    const auto was = Forget(model);
    EXPECT_TRUE(FillTypes(model)) << line;
    for (const auto& [v, type] : was) EXPECT_EQ(ToString(v->type), ToString(type)) << line;
  }
}

// The runtime's inference of the same graphs.
TEST(FillTypes, AsTheRuntimeInfers) {
  for (const std::string& line : Cases()) {
    Model model = ParseIr(Text(line)), other = ParseIr(Text(line));
    Forget(model);
    FillTypes(model);
    for (Node* node : other.graph->nodes()) {
      for (Value* v : node->outputs()) {
        if (!v->is_graph_output()) v->type = Type{};
      }
    }
    InferTypes(other);
    const Type &a = model.graph->FindValue("y")->type, &b = other.graph->FindValue("y")->type;
    EXPECT_EQ(a.dtype, b.dtype) << line;
    ASSERT_TRUE(b.shape.has_value()) << line;
    ASSERT_EQ(a.shape->size(), b.shape->size()) << line;
    for (std::size_t i = 0; i < a.shape->size(); ++i) EXPECT_EQ((*a.shape)[i].value, (*b.shape)[i].value) << line;
  }
}

// A note that editors left behind is not believed where others are missing; and stands where something does not follow.
TEST(FillTypes, DeclaredTypesGo) {
  for (const bool follows : {true, false}) {
    Model model = ParseIr("graph @g(%x: f32[2,3]) -> (%o) {\n%a: f32[7,3] = Relu(%x)\n%b: f32[*] = " +
                          std::string(follows ? "Neg" : "Unheard") + "(%a)\n%o: f32[2,3] = Abs(%b)\n}");
    EXPECT_EQ(FillTypes(model), follows);
    EXPECT_EQ(ToString(model.graph->FindValue("a")->type), follows ? "f32[2,3]" : "f32[7,3]");
    EXPECT_EQ(ToString(model.graph->FindValue("b")->type), follows ? "f32[2,3]" : "f32[*]");
  }
}

// What does not follow, or is not to be computed, is left to the runtime.
TEST(FillTypes, WhatDoesNotFollowIsLeft) {
  for (const std::string line :
       {"%y: f32[n,12] = Add(%m, %t)",
        "%y: f32[2,6,3,4] = MaxPool(%x) {kernel_shape=[3,3], strides=[3,3], ceil_mode=1}",
        "%y: f32[2,6,8,10] = AveragePool(%x) {kernel_shape=[3,3], auto_pad=\"SAME_UPPER\"}",
        "%y: f32[2,6,8,10] = MaxPool(%x) {kernel_shape=[3,3], strides=[0,1]}",
        "%y: f32[2,6,8,10] = MaxPool(%x) {kernel_shape=[3,3], pads=[9223372036854775807,1,1,1]}",
        "%y: f32[2,6,8,10] = MaxPool(%x) {kernel_shape=[9223372036854775807,1], dilations=[9223372036854775807,1]}",
        "%y: f32[6,2] = Reshape(%m, %r)", "%y: f32[7] = Reshape(%x, %seven)", "%y: f32[12] = Squeeze(%m, %axis)",
        "%y: f32[2,6,8,10] = Transpose(%x) {perm=[0,1,2,2]}", "%y: f32[9] = Flatten(%x) {axis=7}",
        "%y: f32[2,6,3,10] = Slice(%x, %p1, %p0, %p2, %m1)", "%y: f32[2,6,9,10] = Expand(%x, %last)"}) {
    std::string text = Text(line);
    text.insert(text.find("%zero"), "%seven = constant s64[1] [7]\n%axis = constant s64[1] [0]\n");
    text.insert(text.find("%x:"), "%t: f32[p,12], ");
    Model model = ParseIr(text);
    Forget(model);
    EXPECT_FALSE(FillTypes(model)) << line;
    EXPECT_FALSE(model.graph->FindValue("y")->type.shape.has_value()) << line;
  }
}

// In any order of the known and the unknown; nothing that is known goes.
TEST(DeriveTypes, WhatFollowsIsDerivedAndTheRestStays) {
  Model model = ParseIr(R"(graph @g(%x: f32[2,3], %n: f32[n,3]) -> (%y) {
    %a: f32[*] = Neg(%x)
    %b: f32[m,3] = Abs(%a)
    %c: f32[k,3] = Neg(%n)
    %u: f32[5,3] = Unheard(%b)
    %d: f32[*] = Relu(%u)
    %i: s64[*] = Cast(%d) {to=7}
    %w: f16[*] = Neg(%x)
    %y: f32[o,3] = Abs(%d)
  })");
  EXPECT_EQ(DeriveTypes(model), 4);
  const auto type = [&](const char* name) { return ToString(model.graph->FindValue(name)->type); };
  EXPECT_EQ(type("a"), "f32[2,3]");
  EXPECT_EQ(type("b"), "f32[2,3]");
  EXPECT_EQ(type("c"), "f32[k,3]");
  EXPECT_EQ(type("d"), "f32[5,3]");
  EXPECT_EQ(type("i"), "s64[5,3]");
  EXPECT_EQ(type("w"), "f16[*]");  // the model says otherwise: the runtime's business
  EXPECT_EQ(type("y"), "f32[o,3]");
  EXPECT_EQ(DeriveTypes(model), 0);
}

TEST(InferMissingTypes, AsksOnlyWhereSomethingIsUnknown) {
  // The declared type is wrong: it stays if nobody asks.
  const char* head = "graph @g(%x: f32[2,3]) -> (%y) {\n%a: f32[7,7] = Neg(%x)\n%b: ";
  Model known = ParseIr(std::string(head) + "f32[2,3] = Abs(%x)\n%y: f32[2,3] = Abs(%b)\n}");
  InferMissingTypes(known);
  EXPECT_EQ(ToString(known.graph->FindValue("a")->type), "f32[7,7]");
  Model unknown = ParseIr(std::string(head) + "f32[*] = Abs(%x)\n%y: f32[2,3] = Abs(%b)\n}");
  InferMissingTypes(unknown);
  EXPECT_EQ(ToString(unknown.graph->FindValue("a")->type), "f32[2,3]");
  EXPECT_EQ(ToString(unknown.graph->FindValue("b")->type), "f32[2,3]");
}

// Of a scalar the runtime says as little as of a tensor of unknown rank.
TEST(InferMissingTypes, ScalarsHaveAShape) {
  Model model = ParseIr(
      "graph @g(%x: f32[2,3]) -> (%y) {\n%c = constant f32[] 0.5\n%s: f32[*] = Neg(%c)\n"
      "%y: f32[2,3] = Mul(%x, %s)\n}");
  InferMissingTypes(model);
  EXPECT_EQ(ToString(model.graph->FindValue("s")->type), "f32[]");
}

}  // namespace
}  // namespace octavo
