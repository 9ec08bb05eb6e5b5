#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Model ParseModel(const std::string& text, int opset = 21) {
  Model model = Parse("opset \"\" = " + std::to_string(opset) + "\nopset \"com.microsoft\" = 1\n" + text);
  model.ir_version = 10;
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  return model;
}

// Folds; checks that the result is well-formed and, lowered again, gives the same bits as before.
std::string Fold(const std::string& text, std::int64_t pairs, int opset = 21) {
  Model model = ParseModel(text, opset);
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 5);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  EXPECT_EQ(FoldQdq(model), pairs) << text;
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << Print(model);
  const std::string folded = Print(*model.graph);
  RaiseOpsetForQuantization(model);
  LowerToQdq(model);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << Print(model);
  EXPECT_TRUE(testing::SameBits(before, testing::RunModel(model, inputs))) << folded << "\n" << Print(*model.graph);
  return folded;
}

std::string Canonical(const std::string& text) { return Print(*Parse(text).graph); }

constexpr char kParams[] = "%s = constant f32[] 0.01\n%t = constant f32[] 0.02\n%z = constant u8[] 128\n";

TEST(FoldQdq, PairBecomesTheTypeOfItsProducer) {
  EXPECT_EQ(Fold(std::string("graph @g(%x: f32[4]) -> (%y) {\n") + kParams + R"(
    %r: f32[4] = Relu(%x)
    %q: u8[4] = QuantizeLinear(%r, %s, %z)
    %d: f32[4] = DequantizeLinear(%q, %s, %z)
    %y: f32[4] = Neg(%d)
  })",
                 1),
            Canonical(R"(graph @g(%x: f32[4]) -> (%y) {
    %r: f32[4] # u8(scale=0.01, zero=128) = Relu(%x) form=qdq
    %y: f32[4] = Neg(%r) form=qdq
  })"));
}

TEST(FoldQdq, FloatUsersKeepTheFloatValue) {
  EXPECT_EQ(Fold(std::string("graph @g(%x: f32[4]) -> (%y, %w) {\n") + kParams + R"(
    %r: f32[4] = Relu(%x)
    %q: u8[4] = QuantizeLinear(%r, %s, %z)
    %d: f32[4] = DequantizeLinear(%q, %s, %z)
    %e: f32[4] = DequantizeLinear(%q, %s, %z)
    %y: f32[4] = Add(%d, %e)
    %w: f32[4] = Neg(%r)
  })",
                 2),
            Canonical(R"(graph @g(%x: f32[4]) -> (%y, %w) {
    %r: f32[4] = Relu(%x)
    %r_q: f32[4] # u8(scale=0.01, zero=128) = Quantize(%r) form=qdq
    %y: f32[4] = Add(%r_q, %r_q) form=qdq
    %w: f32[4] = Neg(%r)
  })"));
}

TEST(FoldQdq, GraphInputAndOutput) {
  EXPECT_EQ(Fold(std::string("graph @g(%x: f32[4]) -> (%d, %q) {\n") + kParams + R"(
    %q: u8[4] = QuantizeLinear(%x, %s, %z)
    %d: f32[4] = DequantizeLinear(%q, %s, %z)
  })",
                 1),
            Canonical(R"(graph @g(%x: f32[4]) -> (%d, %q) {
    %x_q: f32[4] # u8(scale=0.01, zero=128) = Quantize(%x) form=qdq
    %q: u8[4] = StorageCast(%x_q) form=qdq
    %d: f32[4] = Dequantize(%x_q) form=qdq
  })"));
}

TEST(FoldQdq, RawIntegersInAndOut) {
  const std::string text = Fold(std::string("graph @g(%x: u8[4]) -> (%y) {\n") + kParams + R"(
    %d: f32[4] = DequantizeLinear(%x, %s, %z)
    %n: f32[4] = Neg(%d)
    %y: u8[4] = QuantizeLinear(%n, %t, %z)
  })",
                                1);
  EXPECT_THAT(text, HasSubstr("%d_q: f32[4] # u8(scale=0.01, zero=128) = StorageCast(%x)"));
  EXPECT_THAT(text, HasSubstr("%n: f32[4] # u8(scale=0.02, zero=128) = Neg(%d_q)"));
  EXPECT_THAT(text, HasSubstr("%y: u8[4] = StorageCast(%n)"));
}

TEST(FoldQdq, DifferentParametersDoNotPair) {
  const std::string text = Fold(std::string("graph @g(%x: f32[4]) -> (%y) {\n") + kParams + R"(
    %q: u8[4] = QuantizeLinear(%x, %s, %z)
    %d: f32[4] = DequantizeLinear(%q, %t, %z)
    %y: f32[4] = Neg(%d)
  })",
                                1);
  EXPECT_THAT(text, HasSubstr("StorageCast(%x_q)"));
  EXPECT_THAT(text, HasSubstr("%y: f32[4] = Neg(%d_q)"));
}

TEST(FoldQdq, ConsecutivePairsMeetInARequantize) {
  const std::string text = Fold(std::string("graph @g(%x: f32[4]) -> (%y) {\n") + kParams + R"(
    %q: u8[4] = QuantizeLinear(%x, %s, %z)
    %d: f32[4] = DequantizeLinear(%q, %s, %z)
    %q2: u8[4] = QuantizeLinear(%d, %t, %z)
    %d2: f32[4] = DequantizeLinear(%q2, %t, %z)
    %y: f32[4] = Neg(%d2)
  })",
                                2);
  EXPECT_THAT(text, HasSubstr("Requantize(%x_q)"));
}

TEST(FoldQdq, ConstantsOfCodesPerTensorAxisAndBlock) {
  const std::string text = Fold(R"(graph @g(%x: f32[2,4]) -> (%y, %z) {
    %w = constant s8[4,2] [1, -2, 3, -4, 5, -6, 7, -128]
    %s = constant f32[2] [0.5, 0.25]
    %b = constant s32[2] [100, -100]
    %u = constant s4[4,2] [1, -2, 3, -4, 5, -6, 7, -8]
    %us = constant f32[2,2] [0.5, 0.25, 1, 2]
    %wd: f32[4,2] = DequantizeLinear(%w, %s) {axis=-1}
    %bd: f32[2] = DequantizeLinear(%b, %s) {axis=0}
    %y: f32[2,2] = Gemm(%x, %wd, %bd)
    %ud: f32[4,2] = DequantizeLinear(%u, %us) {axis=0, block_size=2}
    %z: f32[2,2] = MatMul(%x, %ud)
  })",
                                3);
  EXPECT_THAT(text, HasSubstr("%w: f32[4,2] # s8(axis=1, scale=f32[2] [0.5, 0.25]) = constant s8"));
  EXPECT_THAT(text, HasSubstr("%b: f32[2] # s32(axis=0, scale=f32[2] [0.5, 0.25]) = constant s32"));
  EXPECT_THAT(text, HasSubstr("%u: f32[4,2] # s4(axis=0, block=2,"));
}

TEST(FoldQdq, OneConstantUnderTwoParametersIsTwoValues) {
  const std::string text = Fold(std::string("graph @g(%x: f32[2]) -> (%y) {\n") + kParams + R"(
    %w = constant u8[2] [1, 255]
    %a: f32[2] = DequantizeLinear(%w, %s, %z)
    %b: f32[2] = DequantizeLinear(%w, %t, %z)
    %c: f32[2] = DequantizeLinear(%w, %s, %z)
    %p: f32[2] = Add(%a, %b)
    %r: f32[2] = Add(%p, %c)
    %y: f32[2] = Mul(%r, %x)
  })",
                                3);
  EXPECT_THAT(text, HasSubstr("scale=0.01"));
  EXPECT_THAT(text, HasSubstr("scale=0.02"));
}

TEST(FoldQdq, FloatConstantBecomesCodes) {
  const std::string text = Fold(std::string("graph @g(%x: f32[3]) -> (%y) {\n") + kParams + R"(
    %w = constant f32[3] [0.105, -9, 0.02500001]
    %q: u8[3] = QuantizeLinear(%w, %s, %z)
    %d: f32[3] = DequantizeLinear(%q, %s, %z)
    %y: f32[3] = Mul(%x, %d)
  })",
                                1);
  EXPECT_THAT(text, Not(HasSubstr("Quantize(")));
  EXPECT_THAT(text, HasSubstr("= constant u8[3]"));
}

TEST(FoldQdq, DynamicParametersStayNodes) {
  const std::string text = Fold(R"(graph @g(%x: f32[4]) -> (%y) {
    %q: u8[4], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)
    %d: f32[4] = DequantizeLinear(%q, %s, %z)
    %y: f32[4] = Neg(%d)
  })",
                                0);
  EXPECT_THAT(text, HasSubstr("DequantizeLinear(%q, %s, %z)"));
}

TEST(FoldQdq, AxisFromTheEndOfUnknownRankStaysANode) {
  Model model = ParseModel(R"(graph @g(%x: f32[*]) -> (%y) {
    %s = constant f32[2] [0.5, 0.25]
    %r = Relu(%x)
    %q = QuantizeLinear(%r, %s) {axis=-1}
    %y = DequantizeLinear(%q, %s) {axis=-1}
  })");
  EXPECT_EQ(FoldQdq(model), 0);
  EXPECT_EQ(model.graph->node_count(), 3u);
}

TEST(FoldQdq, IntegerDataMovementKeepsItsCodes) {
  const std::string text = Fold(std::string("graph @g(%x: f32[2,3]) -> (%y) {\n") + kParams + R"(
    %q: u8[2,3] = QuantizeLinear(%x, %s, %z)
    %m: u8[3,2] = Transpose(%q)
    %d: f32[3,2] = DequantizeLinear(%m, %s, %z)
    %y: f32[3,2] = Neg(%d)
  })",
                                1);
  EXPECT_THAT(text, HasSubstr("Transpose(%q)"));
}

TEST(FoldQdq, ContribNodesBecomeTypesToo) {
  const std::string text = Fold(std::string("graph @g(%x: f32[4]) -> (%y) {\n") + R"(
    %s = constant f32[] 0.001
    %z = constant u16[] 32768
    %r: f32[4] = Relu(%x)
    %q: u16[4] = com.microsoft::QuantizeLinear(%r, %s, %z)
    %d: f32[4] = com.microsoft::DequantizeLinear(%q, %s, %z)
    %y: f32[4] = Neg(%d)
  })",
                                1, 13);
  EXPECT_THAT(text, HasSubstr("u16(scale=0.001, zero=32768)"));
}

TEST(FoldQdq, CapturedBySubgraph) {
  const std::string text = Fold(std::string("graph @g(%x: f32[4], %c: bool[]) -> (%y) {\n") + kParams + R"(
    %r: f32[4] = Relu(%x)
    %q: u8[4] = QuantizeLinear(%r, %s, %z)
    %d: f32[4] = DequantizeLinear(%q, %s, %z)
    %y: f32[4] = If(%c) {then_branch=graph @t() -> (%a) { %a: f32[4] = Neg(%d) }, else_branch=graph @e() -> (%b) { %b: f32[4] = Abs(%d) }}
  })",
                                1);
  EXPECT_THAT(text, HasSubstr("%d: f32[4] = Dequantize(%r)"));
}

TEST(IsQuantized, TypesAndOperators) {
  EXPECT_FALSE(IsQuantized(ParseModel("graph @g(%x: f32[4]) -> (%y) { %y: f32[4] = Relu(%x) }")));
  EXPECT_TRUE(IsQuantized(ParseModel("graph @g(%x: f32[4]) -> (%y) { %y: f32[4] # u8(scale=0.5) = Relu(%x) }")));
  EXPECT_TRUE(IsQuantized(ParseModel("graph @g(%x: u8[2,2]) -> (%y) { %y: s32[2,2] = MatMulInteger(%x, %x) }")));
  EXPECT_TRUE(
      IsQuantized(ParseModel("graph @g(%x: u8[2,2], %s: f32[]) -> (%y) { %y: f32[2,2] = DequantizeLinear(%x, %s) }")));
}

// Random graphs of float operators with Q/DQ of random parameters between them: shared codes, several DQs, float users,
// raw outputs, consecutive pairs, integer data movement.
class QdqGenerator {
 public:
  explicit QdqGenerator(std::uint64_t seed) : rng_(seed) {}

  Model Make() {
    Model model;
    model.ir_version = 10;
    model.SetOpsetVersion("", 21);
    model.graph = std::make_unique<Graph>();
    graph_ = model.graph.get();
    floats_.push_back(graph_->AddInput("x", Float()));
    for (int i = 0; i < 12; ++i) Step();
    graph_->AddOutput(AddFloat("Neg", {floats_.back()}));
    if (!codes_.empty() && Chance(2)) graph_->AddOutput(codes_.back().value);
    if (Chance(3) && floats_.back()->kind() == ValueKind::kResult) graph_->AddOutput(floats_.back());
    return model;
  }

 private:
  struct Params {
    Value *scale, *zero;
    DType storage;
    std::optional<std::int64_t> axis;
  };
  struct Codes {
    Value* value;
    Params params;
  };

  bool Chance(int n) { return rng_() % static_cast<unsigned>(n) == 0; }
  template <class T>
  T& Any(std::vector<T>& list) {
    // Mostly recent ones, so that graphs get deep.
    const std::size_t n = std::min<std::size_t>(list.size(), Chance(3) ? list.size() : 2);
    return list[list.size() - 1 - rng_() % n];
  }
  static Type Of(DType dtype) { return {dtype, std::vector<Dim>{{3, {}}, {4, {}}}, {}, {}}; }
  static Type Float() { return Of(DType::kF32); }

  Value* AddFloat(const std::string& op, std::vector<Value*> inputs) {
    return graph_->AddNode(op, "", std::move(inputs), {{"v", Float()}})->output();
  }

  Params MakeParams() {
    if (!params_.empty() && Chance(2)) return Any(params_);
    constexpr DType kTypes[] = {DType::kU8, DType::kS8, DType::kU16, DType::kS16};
    Params p{nullptr, nullptr, kTypes[rng_() % 4], {}};
    Dims dims;
    std::size_t n = 1;
    if (Chance(4)) {
      p.axis = static_cast<std::int64_t>(rng_() % 2);
      n = *p.axis == 0 ? 3 : 4;
      dims = {static_cast<std::int64_t>(n)};
    } else if (Chance(2)) {
      dims = {1};
    }
    std::vector<float> scales(n);
    std::vector<std::int64_t> zeros(n);
    for (std::size_t i = 0; i < n; ++i) {
      scales[i] = std::uniform_real_distribution<float>(0.001f, 0.1f)(rng_);
      zeros[i] = Chance(2) ? 0 : static_cast<std::int64_t>(rng_() % 100);
    }
    p.scale = graph_->AddConstant("s", TensorRef::FromFloats(dims, scales));
    if (p.storage != DType::kU8 || Chance(2))
      p.zero = graph_->AddConstant("z", TensorRef::FromInts(p.storage, dims, zeros));
    params_.push_back(p);
    return p;
  }

  Value* AddQdq(const std::string& op, Value* x, const Params& p) {
    std::vector<Value*> inputs{x, p.scale};
    if (p.zero != nullptr) inputs.push_back(p.zero);
    const bool q = op == "QuantizeLinear";
    Node* node = graph_->AddNode(op, "", std::move(inputs), {{q ? "q" : "d", q ? Of(p.storage) : Float()}});
    if (p.axis) node->SetAttribute("axis", Chance(2) ? *p.axis : *p.axis - 2);
    return node->output();
  }

  void Step() {
    switch (rng_() % 8) {
      case 0:
        floats_.push_back(AddFloat("Add", {Any(floats_), Any(floats_)}));
        break;
      case 1:
        floats_.push_back(AddFloat("Tanh", {Any(floats_)}));
        break;
      case 2: {  // constant codes
        const Params p = MakeParams();
        std::vector<std::int64_t> values(12);
        for (std::int64_t& v : values) v = IntegerMin(p.storage) + static_cast<std::int64_t>(rng_() % 256);
        Value* codes = graph_->AddConstant("w", TensorRef::FromInts(p.storage, {3, 4}, values));
        codes_.push_back({codes, p});
        floats_.push_back(AddFloat("Mul", {Any(floats_), AddQdq("DequantizeLinear", codes, p)}));
        break;
      }
      case 3:  // codes on their way through an integer operator
        if (!codes_.empty()) {
          const Codes from = Any(codes_);
          codes_.push_back(
              {graph_->AddNode("Identity", "", {from.value}, {{"i", Of(from.params.storage)}})->output(), from.params});
          break;
        }
        [[fallthrough]];
      case 4:  // codes read again, perhaps with other parameters
        if (!codes_.empty()) {
          const Codes from = Any(codes_);
          Params p = from.params;
          if (Chance(3))
            p.scale = graph_->AddConstant(
                "s", TensorRef::FromFloats(p.scale->data->dims, std::vector<float>(p.scale->data->elements(), 0.125f)));
          floats_.push_back(AddQdq("DequantizeLinear", from.value, p));
          break;
        }
        [[fallthrough]];
      default: {
        const Params p = MakeParams();
        Value* codes = AddQdq("QuantizeLinear", Any(floats_), p);
        codes_.push_back({codes, p});
        floats_.push_back(AddQdq("DequantizeLinear", codes, p));
      }
    }
  }

  std::mt19937_64 rng_;
  Graph* graph_ = nullptr;
  std::vector<Value*> floats_;
  std::vector<Codes> codes_;
  std::vector<Params> params_;
};

TEST(FoldQdq, RandomGraphsComeBackBitEqual) {
  std::int64_t folded = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Model model = QdqGenerator(seed).Make();
    const std::string original = Print(model);
    ASSERT_EQ(Verify(model), std::vector<std::string>{}) << original;
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, seed);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    folded += FoldQdq(model);
    ASSERT_EQ(Verify(model), std::vector<std::string>{}) << original << Print(model);
    VisitNodes(*model.graph, [&](Node& node) {
      EXPECT_TRUE(node.op() != "QuantizeLinear" && node.op() != "DequantizeLinear") << original;
    });
    const std::string text = Print(model);
    RaiseOpsetForQuantization(model);
    LowerToQdq(model);
    ASSERT_EQ(Verify(model), std::vector<std::string>{}) << text << Print(model);
    ASSERT_TRUE(testing::SameBits(before, testing::RunModel(model, inputs))) << original << text << Print(model);
    // What was lowered folds again to the same number of quantized values.
    FoldQdq(model);
    ASSERT_TRUE(IsQuantized(model) || folded == 0);
  }
  EXPECT_GT(folded, 1000);
}

}  // namespace
}  // namespace octavo
