// Models that a compiler does not take as a whole. The compiler of these tests puts what it is given behind an
// EPContext node and keeps it beside; what comes out, with that in its place again, computes the same bits.
#include "octavo/compile/parts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "octavo/base/error.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/ir/copy_nodes.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/runtime/library_test_util.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// `%name: f32[2,4] = op(...)` in u8, and the codes and numbers behind it.
std::string Quantized(const std::string& name, const std::string& call) {
  return "    %" + name + "_f: f32[2,4] = " + call + "\n    %" + name + "_c: u8[2,4] = QuantizeLinear(%" + name +
         "_f, %s, %z)\n    %" + name + ": f32[2,4] = DequantizeLinear(%" + name + "_c, %s, %z)\n";
}

Model Text(const std::string& body, const std::string& outputs) {
  Model model = Parse("opset \"\" = 17\ngraph @g(%x: f32[2,4], %c: bool[1]) -> (" + outputs +
                      ") {\n    %s = constant f32[] 0.02\n    %z = constant u8[] 128\n" + body + "}");
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << body;
  return model;
}

// x -> Q -> Relu -> Sigmoid -> Erf -> Tanh -> Add(that of before Erf) -> y
Model Chain() {
  return Text("    %x_c: u8[2,4] = QuantizeLinear(%x, %s, %z)\n    %x_q: f32[2,4] = DequantizeLinear(%x_c, %s, %z)\n" +
                  Quantized("a", "Relu(%x_q)") + Quantized("b", "Sigmoid(%a)") + Quantized("e", "Erf(%b)") +
                  Quantized("t", "Tanh(%e)") + "    %b2: f32[2,4] = DequantizeLinear(%b_c, %s, %z)\n" +
                  Quantized("y", "Add(%t, %b2)"),
              "%y");
}

class PartsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "parts_test_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Refuses models with the nodes `refused_`, and with more nodes than `most_nodes_` (Q and DQ apart).
  EpCompileResult Compile(const fs::path& from, const fs::path& to) {
    Model model = ReadOnnx(from);
    std::size_t work = 0;
    EpCompileResult result;
    std::set<std::string> names;
    for (const Node* node : model.graph->nodes()) {
      names.insert(node->name);
      if (!node->Is("QuantizeLinear") && !node->Is("DequantizeLinear")) ++work;
      if (refused_.count(node->op()) > 0) ThrowUnsupported("it crashed", node->op());
      if (left_.count(node->op()) > 0) result.log.push_back({false, "Validation FAILED for " + node->name});
    }
    EXPECT_EQ(names.count(""), 0u);
    EXPECT_EQ(names.size(), model.graph->node_count());
    if (work > most_nodes_) ThrowUnsupported("out of memory", "compiler");
    if (result.log.empty()) {
      const fs::path binary = to.parent_path() / (to.stem().string() + "_ctx.bin");
      WriteOnnx(model, binary);
      Model context;
      context.opsets = model.opsets;
      context.SetOpsetVersion("com.microsoft", 1);
      context.graph = std::make_unique<Graph>();
      std::vector<Value*> inputs;
      for (const Value* v : model.graph->inputs()) inputs.push_back(context.graph->AddInput(v->name(), v->type));
      std::vector<Graph::OutputSpec> outputs;
      for (const Value* v : model.graph->outputs()) outputs.push_back({v->name(), v->type});
      Node* node = context.graph->AddNode("EPContext", "com.microsoft", inputs, outputs);
      node->name = "context_of_" + to.stem().string();
      node->SetAttribute("ep_cache_context", binary.filename().string());
      for (Value* v : node->outputs()) context.graph->AddOutput(v);
      WriteOnnx(context, to);
    } else {
      WriteOnnx(model, to);
    }
    return result;
  }

  InParts Split(const Model& model, const PartLimits& limits = {}) {
    return CompileInParts(
        model, folder_ / "model.onnx", *FindDevice("qnn"),
        [this](const fs::path& from, const fs::path& to) { return Compile(from, to); }, "as a whole it is refused",
        limits);
  }

  // What was written, with the contexts' models in their places.
  Model Unfolded(std::int64_t& contexts) const {
    Model model = ReadOnnx(folder_ / "model.onnx");
    EXPECT_EQ(Verify(model), std::vector<std::string>{});
    contexts = 0;
    for (Node* node : model.graph->nodes()) {
      if (!node->Is("EPContext", "com.microsoft")) continue;
      ++contexts;
      const Model part = ReadOnnx(folder_ / node->StringAttribute("ep_cache_context", ""));
      std::unordered_map<const Value*, Value*> mapping;
      for (std::size_t i = 0; i < part.graph->inputs().size(); ++i) mapping[part.graph->inputs()[i]] = node->input(i);
      std::set<const Value*> once(node->inputs().begin(), node->inputs().end());
      EXPECT_EQ(once.size(), node->inputs().size());
      CopyNodes(*part.graph, *model.graph, node, mapping);
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        Value* made = mapping.at(part.graph->outputs()[i]);
        model.graph->ReplaceAllUses(node->output(i), made);
        model.graph->SwapNames(node->output(i), made);
      }
      model.graph->Erase(node);
    }
    return model;
  }

  static std::vector<TensorRef> Run(const Model& model, bool condition) {
    OnnxSkeleton skeleton = SerializeSkeleton(model);
    SessionOptions options;
    options.optimization = GraphOptimization::kNone;
    const Session session(skeleton.bytes, std::move(skeleton.externals), options);
    std::vector<TensorRef> inputs;
    for (const Value* v : model.graph->inputs()) {
      inputs.push_back(v->type.dtype == DType::kBool
                           ? TensorRef::FromBytes(DType::kBool, {1}, std::vector<std::byte>(1, std::byte{condition}))
                           : TensorRef::FromFloats({2, 4}, std::vector<float>{-2, -1, -.5, 0, .3, .8, 1.5, 2.5}));
    }
    return session.Run(inputs);
  }

  void ExpectSame(const Model& model, std::int64_t contexts) const {
    std::int64_t found = 0;
    const Model unfolded = Unfolded(found);
    EXPECT_EQ(found, contexts);
    for (const bool condition : {true, false}) {
      const std::vector<TensorRef> want = Run(model, condition), got = Run(unfolded, condition);
      ASSERT_EQ(want.size(), got.size());
      for (std::size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(SameContent(want[i], got[i])) << i;
    }
    std::int64_t files = 0;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      files += entry.path().extension() == ".bin" ? 1 : 0;
      EXPECT_TRUE(entry.path().extension() == ".bin" || entry.path().filename() == "model.onnx") << entry.path();
    }
    EXPECT_EQ(files, contexts);  // those of tries are gone
  }

  std::vector<std::string> CpuOps() const {
    std::vector<std::string> ops;
    const Model written = ReadOnnx(folder_ / "model.onnx");
    for (const Node* node : written.graph->nodes()) {
      if (!node->Is("EPContext", "com.microsoft")) ops.push_back(node->op());
    }
    return ops;
  }

  fs::path folder_;
  std::set<std::string> refused_, left_;
  std::size_t most_nodes_ = 1000;
};

TEST_F(PartsTest, TheNodeThatCrashesTheCompilerIsFound) {
  const Model model = Chain();
  refused_ = {"Erf"};
  const InParts parts = Split(model);
  ASSERT_EQ(parts.reasons.size(), 1u);
  EXPECT_THAT(parts.reasons.begin()->second, HasSubstr("the provider says: it crashed"));
  ExpectSame(model, 2);
  // The codes on both sides of the cut are made where the numbers are.
  EXPECT_EQ(CpuOps(), std::vector<std::string>{"Erf"});
  EXPECT_LT(parts.tries, 12);
}

TEST_F(PartsTest, WhatTheCompilerLeavesGoesToTheCpuWithItsWords) {
  const Model model = Chain();
  left_ = {"Erf"};
  const InParts parts = Split(model);
  ASSERT_EQ(parts.reasons.size(), 1u);
  EXPECT_THAT(parts.reasons.begin()->second, HasSubstr("Validation FAILED"));
  ExpectSame(model, 2);
  EXPECT_EQ(parts.tries, 3);
}

TEST_F(PartsTest, AModelTooBigForOneContextBecomesSeveral) {
  const Model model = Chain();
  most_nodes_ = 2;
  const InParts parts = Split(model);
  EXPECT_TRUE(parts.reasons.empty());
  ExpectSame(model, 3);
  EXPECT_TRUE(CpuOps().empty());
}

TEST_F(PartsTest, AnIfAndWhatItCapturesStay) {
  const Model model = Text(Quantized("a", "Relu(%x)") +
                               "    %i: f32[2,4] = If(%c) {then_branch=graph @t() -> (%n) { %n: f32[2,4] = Neg(%a) }, "
                               "else_branch=graph @e() "
                               "-> (%m) { %m: f32[2,4] = Abs(%a_f) }}\n" +
                               Quantized("b", "Sigmoid(%i)") + Quantized("y", "Add(%b, %a)"),
                           "%y, %a");
  const InParts parts = Split(model);
  ASSERT_EQ(parts.reasons.size(), 1u);
  EXPECT_THAT(parts.reasons.begin()->second, HasSubstr("holds subgraphs"));
  ExpectSame(model, 2);
}

TEST_F(PartsTest, ALoopWhoseEndDependsOnDataStays) {
  const Model model =
      Text(Quantized("a", "Relu(%x)") +
               "    %i: f32[2,4] = Loop(_, %c, %a) {body=graph @b(%k: s64[], %go: bool[], %h: f32[2,4]) -> "
               "(%no, %n) { %n: f32[2,4] = Neg(%h)\n %no: bool[] = Not(%go) }}\n" +
               Quantized("b", "Sigmoid(%a)") + Quantized("y", "Mul(%b, %a)"),
           "%y, %i");
  const InParts parts = Split(model);
  ASSERT_EQ(parts.reasons.size(), 1u);
  EXPECT_THAT(parts.reasons.begin()->second, HasSubstr("whether it takes a first step is computed"));
}

TEST_F(PartsTest, MovingDataAloneIsNoWork) {
  const Model model = Text(Quantized("e", "Erf(%x)") + Quantized("i", "Identity(%e)") + Quantized("d", "Erf(%i)") +
                               Quantized("y", "Tanh(%d)"),
                           "%y");
  left_ = {"Erf"};
  const InParts parts = Split(model);
  EXPECT_EQ(parts.reasons.size(), 3u);
  ExpectSame(model, 1);
}

TEST_F(PartsTest, EqualValuesComeInOnce) {
  // The runtime would find that both Erf are one.
  const Model model = Text(Quantized("a", "Erf(%x)") + Quantized("b", "Erf(%x)") + Quantized("y", "Mul(%a, %b)"), "%y");
  left_ = {"Erf"};
  Split(model);
  ExpectSame(model, 1);
  const Model written = ReadOnnx(folder_ / "model.onnx");
  for (const Node* node : written.graph->nodes()) {
    if (!node->Is("EPContext", "com.microsoft")) continue;
    EXPECT_EQ(node->inputs().size(), 1u);
  }
}

std::string Refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUnsupported);
    return error.what();
  }
  return {};
}

TEST_F(PartsTest, WhereNothingIsLeftItIsRefusedWithReasons) {
  left_ = {"Relu", "Sigmoid", "Erf", "Tanh", "Add"};
  EXPECT_THAT(Refusal([&] { Split(Chain()); }), HasSubstr("takes no part"));
}

TEST_F(PartsTest, ACompilerThatRefusesAllIsAskedFewTimes) {
  most_nodes_ = 0;
  EXPECT_THAT(Refusal([&] { Split(Chain()); }), HasSubstr("as a whole it is refused"));
}

TEST_F(PartsTest, TriesAreBounded) {
  refused_ = {"Erf"};
  EXPECT_THAT(Refusal([&] { Split(Chain(), {.tries = 2, .seconds = 100}); }), HasSubstr("after 2 tries"));
}

TEST(NameNodes, EveryNodeHasItsOwn) {
  Model model = Chain();
  for (Node* node : model.graph->nodes()) node->name = node->Is("Relu") || node->Is("Tanh") ? "same" : "";
  EXPECT_GT(NameNodes(model), 0);
  std::set<std::string> names;
  for (const Node* node : model.graph->nodes()) names.insert(node->name);
  EXPECT_EQ(names.size(), model.graph->node_count());
  EXPECT_EQ(names.count("same"), 1u);
  EXPECT_EQ(NameNodes(model), 0);
}

TEST(SaidOf, NamesTheNodeAndKeepsTheReason) {
  const std::string listed =
      "Validation FAILED for 2 nodes in OrtNodeUnit (Gemm) :\n\tOperator type: DequantizeLinear Node name: fcb Node "
      "index: 1\n"
      "\tOperator type: Gemm Node name: fc Node index: 2\n\tREASON : no such weight. \n";
  const std::vector<EpMessage> log = {{false, "fc is fine"},
                                      {false, listed},
                                      {true, "Node 'conv_10_token_1': unsupported"},
                                      {true, "conv_1 has failed"}};
  EXPECT_EQ(SaidOf("fc", log), "Validation FAILED for 2 nodes in OrtNodeUnit (Gemm) : REASON : no such weight.");
  EXPECT_EQ(SaidOf("conv_1", log), "conv_1 has failed");
  EXPECT_EQ(SaidOf("conv_10", log), "Node 'conv_10_token_1': unsupported");
  EXPECT_EQ(SaidOf("c", log), "");
  EXPECT_EQ(SaidOf("", log), "");
}

}  // namespace
}  // namespace octavo
