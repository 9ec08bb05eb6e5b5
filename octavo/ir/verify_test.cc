#include "octavo/ir/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/ir/text.h"

namespace octavo {

// Breaks what the public interface keeps whole.
struct GraphTestPeer {
  static std::vector<Use>& Uses(Value* v) { return v->uses_; }
  static std::vector<OutputUse>& OutputUses(Value* v) { return v->output_uses_; }
  static std::vector<Value*>& Inputs(Node* n) { return n->inputs_; }
  static std::vector<Value*>& Outputs(Graph* g) { return g->outputs_; }
  static Node*& Producer(Value* v) { return v->producer_; }
  static std::size_t& OutputIndex(Value* v) { return v->output_index_; }
  static ValueKind& Kind(Value* v) { return v->kind_; }
  static std::string& Name(Value* v) { return v->name_; }
  static Graph*& Owner(Value* v) { return v->graph_; }
  static Graph*& Owner(Node* n) { return n->graph_; }
  static Graph*& Parent(Graph* g) { return g->parent_; }
  static Node*& Prev(Node* n) { return n->prev_; }
  static Node*& Last(Graph* g) { return g->last_; }
  static std::size_t& Count(Graph* g) { return g->node_count_; }
};

namespace {

using Peer = GraphTestPeer;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::string_view kModel = R"(
graph @main(%x: f32[2,3], %d: s64[1] = s64[1] [0]) -> (%y) {
  %w = constant f32[2,3] [1, 2, 3, 4, 5, 6]
  %a: f32[2,3] = Add(%x, %w) @add
  %q: f32[2,3] # s8(axis=1, scale=f32[3] [1, 2, 3], zero=s8[3] [0, 1, 2]) = Quantize(%a) @quant
  %y: f32[2,3] = If(%d) {then_branch=graph @then() -> (%t) {
    %t: f32[2,3] = Dequantize(%q) @dequant
  }} @branch
}
)";

class VerifyTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_THAT(Verify(m_), IsEmpty()); }

  Graph& g() { return *m_.graph; }
  Graph& sub() { return *Named("branch")->subgraphs()[0]; }
  Value* V(std::string_view name) { return g().FindValue(name); }
  Affine& Q() { return V("q")->type.quant->affine; }
  Node* Named(std::string_view name) {
    Node* out = nullptr;
    VisitNodes(g(), [&](Node& n) {
      if (n.name == name) out = &n;
    });
    return out;
  }
  void Says(const std::string& what) { EXPECT_THAT(Verify(m_), Contains(HasSubstr(what))); }

  Model m_ = Parse(kModel);
};

TEST_F(VerifyTest, Model) {
  m_.functions.push_back("x");
  EXPECT_THAT(Verify(m_), ElementsAre("the model has 1 functions and 0 function ids"));
  EXPECT_THAT(Verify(Model{}), ElementsAre("the model has no graph"));
}

TEST_F(VerifyTest, ThrowNamesThePass) {
  VerifyOrThrow(m_, "import");
  V("w")->data.reset();
  try {
    VerifyOrThrow(m_, "some pass");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kInternal);
    EXPECT_THAT(e.what(), HasSubstr("after some pass: value 'w' is a constant without data"));
  }
}

TEST_F(VerifyTest, UseListTooShort) {
  const auto saved = Peer::Uses(V("x"));
  Peer::Uses(V("x")).clear();
  EXPECT_THAT(Verify(m_), ElementsAre("value 'x' has 0 entries in its use list for 1 uses"));
  Peer::Uses(V("x")) = saved;
}

TEST_F(VerifyTest, UseListNamesAnotherInput) {
  Peer::Uses(V("x"))[0].index = 1;
  Says("the use list of value 'x' names input 1 of node 'add' (Add), which is another value");
  Peer::Uses(V("x"))[0].index = 0;
}

TEST_F(VerifyTest, UseListNamesAnInputTwice) {
  Named("add")->SetInput(1, V("x"));
  const Use saved = Peer::Uses(V("x"))[0];
  Peer::Uses(V("x"))[0] = Peer::Uses(V("x"))[1];
  Says("twice");
  Peer::Uses(V("x"))[0] = saved;
}

TEST_F(VerifyTest, UseListNamesAForeignNode) {
  Graph other;
  Node* foreign = other.AddNode("Op", "", {}, {});
  Node* saved = Peer::Uses(V("x"))[0].node;
  Peer::Uses(V("x"))[0].node = foreign;
  Says("the use list of value 'x' names a node that is not in the model");
  Peer::Uses(V("x"))[0].node = saved;
}

TEST_F(VerifyTest, OutputUses) {
  Peer::OutputUses(V("y")).clear();
  Says("value 'y' counts its uses as a graph output wrongly");
  Peer::OutputUses(V("x")).push_back({&g(), 0});
  Says("value 'x' says it is a graph output that it is not");
}

TEST_F(VerifyTest, InputOfAnotherModel) {
  Graph other;
  Value* foreign = other.AddInput("x", V("x")->type);
  Value* saved = Peer::Inputs(Named("add"))[0];
  Peer::Inputs(Named("add"))[0] = foreign;
  Says("input 0 of node 'add' (Add) is a value that is not in the model");
  Peer::Inputs(Named("add"))[0] = saved;
}

TEST_F(VerifyTest, ProducerAndOutputIndex) {
  Peer::OutputIndex(V("a")) = 1;
  Says("value 'a' does not name node 'add' (Add) as its producer");
  Peer::OutputIndex(V("a")) = 0;
  Peer::Producer(V("a")) = Named("quant");
  Says("value 'a' does not name node 'add' (Add) as its producer");
  Peer::Producer(V("a")) = Named("add");
  Peer::Producer(V("w")) = Named("add");
  Says("value 'w' has a producer but is no node's output");
}

TEST_F(VerifyTest, UseBeforeDefinitionAndCycle) {
  g().MoveBefore(Named("quant"), Named("add"));
  Says("input 0 of node 'quant' (Quantize), value 'a', is used before it is defined, or in a cycle");
  g().MoveBefore(Named("add"), Named("quant"));
  EXPECT_THAT(Verify(m_), IsEmpty());
  Named("add")->SetInput(0, V("a"));
  Says("input 0 of node 'add' (Add), value 'a', is used before it is defined, or in a cycle");
}

TEST_F(VerifyTest, CaptureBeforeDefinition) {
  g().MoveBefore(Named("branch"), Named("quant"));
  Says("input 0 of node 'dequant' (Dequantize), value 'q', is used before it is defined");
}

TEST_F(VerifyTest, ValueOfASubgraphIsNotVisibleOutside) {
  Node* n = g().AddNode("Op", "", {}, {});
  n->name = "op";
  n->SetInput(0, sub().FindValue("t"));
  Says("input 0 of node 'op' (Op), value 't', is not visible there");
  n->SetInput(0, nullptr);
  Value* y = g().outputs()[0];
  g().SetOutput(0, sub().FindValue("t"));
  Says("output 0 of graph 'main', value 't', is not visible there");
  g().SetOutput(0, y);
  EXPECT_THAT(Verify(m_), IsEmpty());
}

TEST_F(VerifyTest, GraphOutputs) {
  Value* saved = Peer::Outputs(&g())[0];
  Peer::Outputs(&g())[0] = nullptr;
  Says("output 0 of graph 'main' is no value");
  Graph other;
  Peer::Outputs(&g())[0] = other.AddInput("o", Type{});
  Says("output 0 of graph 'main' is a value that is not in the model");
  Peer::Outputs(&g())[0] = saved;
}

TEST_F(VerifyTest, Names) {
  const std::string saved = V("a")->name();
  Value* a = V("a");
  Peer::Name(a) = "x";
  Says("value 'x' is not the value that graph 'main' finds by that name");
  Says("input 0 of node 'quant' (Quantize), value 'x', cannot be found by its name");
  Peer::Name(a) = "";
  Says("a value of graph 'main' has no name");
  Peer::Name(a) = saved;
}

TEST_F(VerifyTest, HiddenNames) {
  Value* t = sub().FindValue("t");
  Peer::Name(t) = "x";
  Says("value 'x' of graph 'then' hides a value of graph 'main'");
  Peer::Name(t) = "t";
}

TEST_F(VerifyTest, KindAndOwner) {
  Peer::Kind(V("x")) = ValueKind::kResult;
  Says("value 'x' has the wrong kind");
  Peer::Kind(V("x")) = ValueKind::kInput;
  Peer::Owner(V("x")) = &sub();
  Says("value 'x' stands in graph 'main' but says it belongs to another graph");
  Peer::Owner(V("x")) = &g();
  Peer::Owner(Named("add")) = &sub();
  Says("node 'add' (Add) stands in graph 'main' but says it belongs to another graph");
  Peer::Owner(Named("add")) = &g();
}

TEST_F(VerifyTest, NodeList) {
  Node* quant = Named("quant");
  Peer::Prev(quant) = nullptr;
  Says("node 'quant' (Quantize) is linked wrongly to the node before it");
  Peer::Prev(quant) = Named("add");
  ++Peer::Count(&g());
  Says("graph 'main' counts its nodes wrongly");
  --Peer::Count(&g());
  Node* last = Peer::Last(&g());
  Peer::Last(&g()) = quant;
  Says("graph 'main' does not know its last node");
  Peer::Last(&g()) = last;
}

TEST_F(VerifyTest, NodesAndAttributes) {
  Node* add = Named("add");
  add->attributes().push_back({"i", std::int64_t{1}});
  add->attributes().push_back({"i", std::int64_t{2}});
  Says("node 'add' (Add) has two attributes 'i'");
  TensorRef broken = TensorRef::Scalar(1);
  broken.dims = {2};
  add->SetAttribute("i", broken);
  Says("attribute 'i' of node 'add' (Add) has 4 bytes of data for 2 elements of f32");
  add->attributes().push_back({"g", std::unique_ptr<Graph>()});
  Says("attribute 'g' of node 'add' (Add) is a graph that is missing");
  add->SetOp("");
  Says("node 'add' () has no operator");
}

TEST_F(VerifyTest, SubgraphParent) {
  Peer::Parent(&sub()) = nullptr;
  Says("attribute 'then_branch' of node 'branch' (If) is a graph whose parent is not the graph of the node");
  Peer::Parent(&sub()) = &g();
  Graph other;
  Peer::Parent(&g()) = &other;
  Says("the main graph has a parent graph");
  Peer::Parent(&g()) = nullptr;
}

TEST_F(VerifyTest, ConstantData) {
  Value* w = V("w");
  w->data->dims = {2, 4};
  Says("value 'w' has 24 bytes of data for 8 elements of f32");
  w->data->dims = {3, 2};
  Says("value 'w' has data whose dimensions do not fit its type f32[2,3]");
  w->data->dims = {2, -3};
  Says("value 'w' has data of impossible dimensions");
  w->data->dims = {2, 3};
  w->data->dtype = DType::kS32;
  Says("value 'w' has data of s32 where its type says f32");
  w->data->dtype = DType::kUndefined;
  Says("value 'w' has data without an element type");
  w->data->dtype = DType::kString;
  Says("value 'w' has 0 strings for 6 elements");
  w->data.reset();
  Says("value 'w' is a constant without data");
}

TEST_F(VerifyTest, QuantizedConstantHoldsCodes) {
  Type t;
  t.dtype = DType::kF32;
  t.quant.emplace();
  t.quant->affine.storage = DType::kS8;
  t.quant->affine.scale = TensorRef::Scalar(1);
  Value* c = g().AddConstant("c", TensorRef::FromInts(DType::kS8, {1}, std::vector<std::int64_t>{1}), t);
  EXPECT_THAT(Verify(m_), IsEmpty());
  c->data = TensorRef::Scalar(1);
  Says("value 'c' has data of f32 where its type says s8");
}

TEST_F(VerifyTest, DataWhereNoneBelongs) {
  V("a")->data = TensorRef::Scalar(1);
  Says("value 'a' is a node's output but has data");
  V("d")->data = TensorRef::Scalar(1);
  Says("value 'd' has data of f32 where its type says s64");
}

TEST_F(VerifyTest, AffineAxisAndBlock) {
  Q().axis = 2;
  Says("value 'q' is quantized along axis 2 but has rank 2");
  Q().axis = -1;
  Says("value 'q' is quantized along the negative axis -1");
  Q().axis = 0;
  Says("value 'q' is quantized per axis with 3 scales for 2 indices");
  Q().axis.reset();
  Says("value 'q' is quantized per tensor but has more than one scale");
  Q().block = 2;
  Says("value 'q' has a quantization block without an axis");
  Q().axis = 1;
  Says("value 'q' is quantized in blocks but its scales lack the axis");
  Q().block = -2;
  Says("or a negative one");
}

TEST_F(VerifyTest, AffineScaleShapes) {
  const std::vector<float> ones(8, 1.0f);
  Q().zero_point.reset();
  Q().scale = TensorRef::FromFloats({1, 3}, std::span(ones).first(3));
  Says("value 'q' is quantized per axis but its scales are not a vector");
  Q().block = 2;
  Says("value 'q' is quantized in blocks but its scales do not fit dimension 0");
  Q().scale = TensorRef::FromFloats({2, 3}, std::span(ones).first(6));
  Says("value 'q' is quantized in blocks but its scales do not fit dimension 1");
  Q().scale = TensorRef::FromFloats({2, 2, 1}, std::span(ones).first(4));
  Says("value 'q' is quantized in blocks but its scales have another rank");
  Q().scale = TensorRef::FromFloats({2, 2}, std::span(ones).first(4));
  EXPECT_THAT(Verify(m_), IsEmpty());
}

TEST_F(VerifyTest, AffineScaleValues) {
  for (const float bad :
       {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Q().scale = TensorRef::FromFloats({3}, std::vector<float>{1, bad, 1});
    Says("value 'q' has a scale that is not positive and finite");
  }
  Q().scale.dims = {4};
  Says("value 'q' has scales: it has 12 bytes of data for 4 elements");
  Q().scale = TensorRef::FromInts(DType::kS32, {3}, std::vector<std::int64_t>{1, 1, 1});
  Says("value 'q' has scales of s32");
}

TEST_F(VerifyTest, AffineZeroPointsAndStorage) {
  Q().zero_point = TensorRef::FromInts(DType::kU8, {3}, std::vector<std::int64_t>{0, 0, 0});
  Says("value 'q' has zero points of u8 but is stored as s8");
  Q().zero_point = TensorRef::FromInts(DType::kS8, {1}, std::vector<std::int64_t>{0});
  Says("value 'q' has zero points of another shape than its scales");
  Q().zero_point->dims = {3};
  Says("value 'q' has zero points: it has 1 bytes of data for 3 elements");
  Q().storage = DType::kS64;
  Says("value 'q' is stored as s64, which is no storage type");
  Q().storage = DType::kF8E8M0;
  Says("value 'q' is stored as f8e8m0, which is no storage type");
}

TEST_F(VerifyTest, OtherQuantTypes) {
  QuantType& q = *V("q")->type.quant;
  q.kind = QuantType::Kind::kMx;
  Says("value 'q' is quantized in a format without a name");
  q.mx.format = "MXINT8";
  q.mx.axis = 1;
  EXPECT_THAT(Verify(m_), IsEmpty());
  q.mx.block = 0;
  Says("value 'q' is quantized in blocks of 0");
  q.kind = QuantType::Kind::kGgml;
  q.ggml.format = "Q8_0";
  q.ggml.axis = 5;
  Says("value 'q' is quantized along axis 5 but has rank 2");
  V("q")->type.dtype = DType::kS32;
  Says("value 'q' is quantized but does not mean a float type");
}

TEST_F(VerifyTest, UnknownElementType) {
  V("y")->type.dtype = static_cast<DType>(99);
  Says("value 'y' has no such element type");
}

TEST_F(VerifyTest, IrOperators) {
  Node* quant = Named("quant");
  const Type q = V("q")->type;
  V("q")->type.quant.reset();
  Says("node 'quant' (Quantize) needs a quantized output");
  Says("node 'dequant' (Dequantize) needs a quantized input");
  V("q")->type = q;
  V("a")->type.quant = q.quant;
  Says("node 'quant' (Quantize) needs a float input");
  V("a")->type.quant.reset();
  V("a")->type.dtype = DType::kS32;
  Says("node 'quant' (Quantize) needs a float input");
  V("a")->type = V("x")->type;
  sub().FindValue("t")->type.quant = q.quant;
  Says("node 'dequant' (Dequantize) needs a float output");
  sub().FindValue("t")->type = V("x")->type;
  sub().FindValue("t")->type.dtype = DType::kS32;
  Says("node 'dequant' (Dequantize) needs a float output");
  sub().FindValue("t")->type = V("x")->type;
  (*V("a")->type.shape)[0].value = 7;
  Says("node 'quant' (Quantize) changes the shape f32[7,3] to");
  V("a")->type = V("x")->type;
  quant->SetOp(std::string(kRequantize), std::string(kIrDomain));
  Says("node 'quant' (Requantize) needs a quantized input");
  quant->SetOp("Other", std::string(kIrDomain));
  Says("node 'quant' (Other) is not an operator of octavo.ir");
  quant->SetOp(std::string(kQuantize), std::string(kIrDomain));
  EXPECT_THAT(Verify(m_), IsEmpty());
  quant->SetInput(1, V("x"));
  Says("node 'quant' (Quantize) must have one input and one output");
}

TEST_F(VerifyTest, StorageCast) {
  Node* quant = Named("quant");
  quant->SetOp(std::string(kStorageCast), std::string(kIrDomain));
  Says("node 'quant' (StorageCast) casts between different storage types");
  V("a")->type.dtype = DType::kS8;
  EXPECT_THAT(Verify(m_), IsEmpty());
  V("a")->type = V("q")->type;
  Says("node 'quant' (StorageCast) must have exactly one quantized side");
}

TEST_F(VerifyTest, StopsCounting) {
  std::string text = "graph (%x: f32[1]) -> () {\n";
  for (int i = 0; i < 500; ++i) text += "%y" + std::to_string(i) + " = Op(%late)\n";
  EXPECT_EQ(Verify(Parse(text + "%late = Op(%x)\n}")).size(), 100u);
}

}  // namespace
}  // namespace octavo
