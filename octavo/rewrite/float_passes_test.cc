// SimplifyFloat, EqualizeLayers and ConvertToHalf as functions of whole models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "octavo/base/error.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using testing::ParseModel;

// Random small convolutional networks: layers with and without bias, groups, normalizations, scales, residuals,
// dropout, shape arithmetic.
class FloatGenerator {
 public:
  explicit FloatGenerator(std::uint64_t seed) : rng_(seed) {}

  Model Make() {
    Model model;
    model.SetOpsetVersion("", 17);
    model.graph = std::make_unique<Graph>();
    graph_ = model.graph.get();
    Value* value = graph_->AddInput("x", {DType::kF32, std::vector<Dim>{{1, {}}, {4, {}}, {6, {}}, {6, {}}}, {}, {}});
    Value* earlier = value;
    for (int i = 0; i < 8; ++i) {
      Value* next = Step(value, earlier);
      if (Chance(3)) earlier = next;
      value = next;
    }
    graph_->AddOutput(value);
    if (earlier->kind() == ValueKind::kResult && Chance(4)) graph_->AddOutput(earlier);
    return model;
  }

 private:
  bool Chance(int n) { return rng_() % static_cast<unsigned>(n) == 0; }
  Value* Constant(Dims dims, float low, float high) {
    std::vector<float> values(ElementCount(dims));
    for (float& v : values) v = std::uniform_real_distribution<float>(low, high)(rng_);
    return graph_->AddConstant("c", TensorRef::FromFloats(std::move(dims), values));
  }
  Node* Add(const std::string& op, std::vector<Value*> inputs) {
    return graph_->AddNode(op, "", std::move(inputs), {{"v", {}}});
  }

  Value* Step(Value* x, Value* earlier) {
    switch (rng_() % 9) {
      case 0:
      case 1: {
        const std::int64_t group = Chance(2) ? 1 : Chance(2) ? 2 : 4;
        std::vector<Value*> inputs{x, Constant({4, 4 / group, 3, 3}, -1, 1)};
        if (Chance(2)) inputs.push_back(Constant({4}, -1, 1));
        Node* conv = Add(Chance(4) ? "ConvTranspose" : "Conv", std::move(inputs));
        conv->SetAttribute("group", group);
        conv->SetAttribute("pads", std::vector<std::int64_t>{1, 1, 1, 1});
        return conv->output();
      }
      case 2:
        return Add("BatchNormalization",
                   {x, Constant({4}, -2, 2), Constant({4}, -1, 1), Constant({4}, -1, 1), Constant({4}, 0.1f, 2)})
            ->output();
      case 3: {
        constexpr const char* kOps[] = {"Mul", "Div", "Add", "Sub"};
        const Dims shapes[] = {{4, 1, 1}, {1, 4, 1, 1}, {}, {1}, {6}, {6, 1}};
        Value* constant = Constant(shapes[rng_() % 6], 0.5f, 2);
        const char* op = kOps[rng_() % 4];
        return op[0] != 'D' && Chance(2) ? Add(op, {constant, x})->output() : Add(op, {x, constant})->output();
      }
      case 4:
        return Add(Chance(2) ? "Relu" : "LeakyRelu", {x})->output();
      case 5:
        return Add("Add", {x, earlier})->output();
      case 6:
        return Add(Chance(2) ? "Identity" : "Dropout", {x})->output();
      case 7: {  // Reshape to its own shape, computed
        Value* shape = Add("Shape", {x})->output();
        Node* cast = Add("Cast", {shape});
        cast->SetAttribute("to", static_cast<std::int64_t>(DType::kS64));
        return Add("Reshape", {x, cast->output()})->output();
      }
      default:
        return Add("HardSigmoid", {x})->output();
    }
  }

  std::mt19937_64 rng_;
  Graph* graph_ = nullptr;
};

double Sqnr(const std::vector<TensorRef>& a, const std::vector<TensorRef>& b) {
  EXPECT_EQ(a.size(), b.size());
  ErrorStats stats;
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].dims, b[i].dims);
    stats.Add(a[i].ToFloats(), b[i].ToFloats());
  }
  return stats.SqnrDb();
}

TEST(SimplifyFloat, RandomNetworksComputeTheSame) {
  std::int64_t applied = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Model model = FloatGenerator(seed).Make();
    const std::string original = Print(model);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, seed);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    for (const PassCount& count : SimplifyFloat(model)) applied += count.applied;
    ASSERT_EQ(Verify(model), std::vector<std::string>{}) << original << Print(model);
    ASSERT_GT(Sqnr(before, testing::RunModel(model, inputs)), 90.0) << original << Print(model);
    Model equalized = Clone(model);
    const std::vector<TensorRef> simplified = testing::RunModel(model, inputs);
    if (EqualizeLayers(equalized) > 0) {
      ASSERT_TRUE(testing::SameBits(simplified, testing::RunModel(equalized, inputs)))
          << Print(model) << Print(equalized);
    }
  }
  EXPECT_GT(applied, 400);
}

TEST(SimplifyFloat, ShapeChainsOfIntermediatesFold) {
  Model model = ParseModel(R"(graph @g(%x: f32[1,2,4,6]) -> (%y) {
    %zero = constant s64[1] [0]
    %minus = constant s64[1] [-1]
    %r = Relu(%x)
    %s = Shape(%r)
    %b = Gather(%s, %zero)
    %t = Concat(%b, %minus) {axis=0}
    %y = Reshape(%r, %t)
  })");
  SimplifyFloat(model);
  EXPECT_EQ(model.graph->node_count(), 2u) << Print(model);
  EXPECT_THAT(Print(*model.graph), HasSubstr("constant s64[2] [1, -1]"));
}

TEST(SimplifyFloatDeathTest, NeedsTheRuntime) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";  // a process of its own, which has loaded no runtime yet
  const auto simplify = [] {
    ::setenv("OCTAVO_ORT_LIBRARY", "/nonexistent/libonnxruntime.so", 1);
    Model model = ParseModel("graph @g(%x: f32[2]) -> (%y) { %y: f32[2] = Relu(%x) }");
    try {
      SimplifyFloat(model);
    } catch (const Error& error) {
      std::exit(static_cast<int>(error.code()));
    }
    std::exit(0);
  };
  EXPECT_EXIT(simplify(), ::testing::ExitedWithCode(static_cast<int>(ExitCode::kUnsupported)), "");
}

constexpr char kChain[] = R"(graph @g(%x: f32[1,1,2,2]) -> (%y) {
    %w = constant f32[2,1,1,1] [64, 1]
    %b = constant f32[2] [32, 1]
    %v = constant f32[1,2,1,1] [1, 1]
    %c: f32[1,2,2,2] = Conv(%x, %w, %b)
    %r: f32[1,2,2,2] = )";

TEST(EqualizeLayers, ThroughReluExactly) {
  Model model = ParseModel(std::string(kChain) + "Relu(%c)\n%y: f32[1,1,2,2] = Conv(%r, %v) }");
  // A second row in each weight, so that moving a channel's range costs neither.
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 3);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  EXPECT_EQ(EqualizeLayers(model), 0) << "the second weight would get worse: [8, 1] for [1, 1]";
  Model wide = ParseModel(R"(graph @g(%x: f32[1,1,2,2]) -> (%y) {
    %w = constant f32[2,1,1,1] [64, 1]
    %b = constant f32[2] [32, 1]
    %v = constant f32[1,2,1,1] [1, 64]
    %c: f32[1,2,2,2] = Conv(%x, %w, %b)
    %r: f32[1,2,2,2] = Relu(%c)
    %y: f32[1,1,2,2] = Conv(%r, %v) })");
  const std::vector<TensorRef> reference = testing::RunModel(wide, inputs);
  EXPECT_EQ(EqualizeLayers(wide), 1);
  EXPECT_TRUE(testing::SameBits(reference, testing::RunModel(wide, inputs)));
  const std::string text = Print(*wide.graph);
  EXPECT_THAT(text, HasSubstr("%w = constant f32[2,1,1,1] [8, 8]"));
  EXPECT_THAT(text, HasSubstr("%v = constant f32[1,2,1,1] [8, 8]"));
  EXPECT_THAT(text, HasSubstr("%b = constant f32[2] [4, 8]"));
}

TEST(EqualizeLayers, NotThroughOtherActivationsOrSharedValues) {
  std::string text = R"(graph @g(%x: f32[1,1,2,2]) -> (%y, %z) {
    %w = constant f32[2,1,1,1] [64, 1]
    %v = constant f32[1,2,1,1] [1, 64]
    %c: f32[1,2,2,2] = Conv(%x, %w)
    %r: f32[1,2,2,2] = HardSwish(%c)
    %y: f32[1,1,2,2] = Conv(%r, %v)
    %z: f32[1,1,2,2] = Abs(%x) })";
  Model model = ParseModel(text);
  EXPECT_EQ(EqualizeLayers(model), 0);
  text.replace(text.find("HardSwish"), 9, "Relu");
  model = ParseModel(text);
  EXPECT_EQ(EqualizeLayers(model), 1);
  text.replace(text.find("Abs(%x)"), 7, "Abs(%r)");
  text.replace(text.find("f32[1,1,2,2] = Abs"), 18, "f32[1,2,2,2] = Abs");
  model = ParseModel(text);
  EXPECT_EQ(EqualizeLayers(model), 0);
}

TEST(ConvertToHalf, KeepsInterfaceAndClampsWhatOverflows) {
  Model model = ParseModel(R"(graph @g(%x: f32[2,2]) -> (%y) {
    %m = constant f32[2,2] [-3.4028235e+38, 1, 1e9, -inf]
    %a: f32[2,2] = Max(%x, %m)
    %s: f32[2,2] = Softmax(%a)
    %y: f32[2,2] = Neg(%s)
  })");
  const HalfResult result = ConvertToHalf(model, DType::kF16);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_EQ(result.overflows, 2u);
  ASSERT_EQ(result.kept_float.size(), 1u);
  EXPECT_EQ(result.kept_float[0].op, "Softmax");
  const std::string text = Print(*model.graph);
  EXPECT_THAT(text, HasSubstr("constant f16[2,2] [-65504, 1, 65504, -inf]"));
  EXPECT_EQ(model.graph->outputs()[0]->name(), "y");
  EXPECT_EQ(model.graph->outputs()[0]->type.dtype, DType::kF32);
  const std::vector<TensorRef> got = testing::RunModel(model, testing::RandomInputs(model, 1));
  EXPECT_EQ(got[0].dtype, DType::kF32);
}

TEST(ConvertToHalf, ResizeScalesAndSubgraphsStayFloat) {
  Model model = ParseModel(R"(graph @g(%x: f32[1,1,2,2], %c: bool[]) -> (%y) {
    %scales = constant f32[4] [1, 1, 2, 2]
    %r: f32[1,1,4,4] = Resize(%x, _, %scales)
    %y: f32[1,1,4,4] = If(%c) {then_branch=graph @t() -> (%a) { %a: f32[1,1,4,4] = Neg(%r) }, else_branch=graph @e() -> (%b) { %b: f32[1,1,4,4] = Abs(%r) }}
  })");
  std::vector<TensorRef> inputs = testing::RandomInputs(model, 1);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  ConvertToHalf(model, DType::kF16);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_THAT(Print(*model.graph), HasSubstr("%scales = constant f32[4]"));
  EXPECT_GT(Sqnr(before, testing::RunModel(model, inputs)), 55.0);
}

TEST(ConvertToHalf, RandomNetworksRunCloseToFloat) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Model model = FloatGenerator(seed).Make();
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, seed);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    ConvertToHalf(model, DType::kF16);
    ASSERT_EQ(Verify(model), std::vector<std::string>{}) << Print(model);
    ASSERT_GT(Sqnr(before, testing::RunModel(model, inputs)), 45.0) << Print(model);
  }
}

// A normalization that is spelled out is one chain of its input: nothing between its parts is rounded.
TEST(ConvertToHalf, NormalizationsThatAreSpelledOutStayFloat) {
  Model model = ParseModel(R"(graph @g(%x: f32[4,64]) -> (%y) {
    %two = constant f32[] 2
    %small = constant f32[] 1e-6
    %gain = constant f32[64] splat(0.5)
    %h: f32[4,64] = Neg(%x)
    %m: f32[4,1] = ReduceMean(%h) {axes=[-1]}
    %d: f32[4,64] = Sub(%h, %m)
    %s: f32[4,64] = Pow(%d, %two)
    %v: f32[4,1] = ReduceMean(%s) {axes=[-1]}
    %e: f32[4,1] = Add(%v, %small)
    %r: f32[4,1] = Sqrt(%e)
    %q: f32[4,64] = Div(%d, %r)
    %z: f32[4,64] = Mul(%q, %gain)
    %y: f32[4,64] = Abs(%z)
  })",
                           13);
  const HalfResult result = ConvertToHalf(model, DType::kF16);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  for (const char* name : {"m", "d", "s", "v", "e", "r", "q", "z"}) {
    ASSERT_NE(model.graph->FindValue(name), nullptr) << name;
    EXPECT_EQ(model.graph->FindValue(name)->type.dtype, DType::kF32) << name;
  }
  EXPECT_EQ(model.graph->FindValue("h")->type.dtype, DType::kF32) << "Neg is part of the chain of x";
  EXPECT_EQ(result.kept_float.size(), 10u);
}

TEST(ConvertToHalf, OperatorsWithoutA16BitFormRun) {
  Model model = ParseModel("graph @g(%x: f32[2,3]) -> (%y) { %a: f32[2,3] = Neg(%x)\n%y: f32[2,3] = Celu(%a) }");
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 1);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  ConvertToHalf(model, DType::kF16);
  EXPECT_GT(Sqnr(before, testing::RunModel(model, inputs)), 55.0);
}

TEST(ConvertToHalf, Bf16StoresWeightsAndComputesInFloat) {
  std::vector<float> numbers(65 * 64);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = 0.01f * static_cast<float>(i % 97) - 0.4f;
  Model model = ParseModel(R"(graph @g(%x: f32[2,65]) -> (%y) {
    %w = constant f32[65,64] splat(0)
    %b = constant f32[64] splat(0)
    %m: f32[2,64] = MatMul(%x, %w)
    %y: f32[2,64] = Add(%m, %b)
  })");
  Graph& graph = *model.graph;
  graph.FindValue("w")->data = TensorRef::FromFloats({65, 64}, numbers);
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 1);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  const HalfResult result = ConvertToHalf(model, DType::kBF16);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_EQ(graph.FindValue("w")->data->dtype, DType::kBF16);
  EXPECT_EQ(graph.FindValue("b")->data->dtype, DType::kF32) << "64 numbers are not worth a Cast";
  EXPECT_EQ(graph.FindValue("m")->type.dtype, DType::kF32);
  ASSERT_EQ(result.kept_float.size(), 1u);
  EXPECT_EQ(result.kept_float[0].node, "y");
  // 8 bits of mantissa: one half of 2^-8 at most, relative to each weight.
  const double sqnr = Sqnr(before, testing::RunModel(model, inputs));
  EXPECT_GT(sqnr, 48.0);
  EXPECT_LT(sqnr, 70.0) << "the weights were not rounded";
}

TEST(ConvertToHalf, WeightsBeyondTheRangeOfHalfStayFloat) {
  for (const float scale : {1e-9f, 1e-7f, 1.0f, 1e6f}) {
    SCOPED_TRACE(scale);
    std::vector<float> numbers(65 * 64);
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = scale * (0.01f * static_cast<float>(i % 97) - 0.4f);
    Model model = ParseModel(R"(graph @g(%x: f32[2,65]) -> (%y) {
      %w = constant f32[65,64] splat(0)
      %y: f32[2,64] = MatMul(%x, %w)
    })");
    model.graph->FindValue("w")->data = TensorRef::FromFloats({65, 64}, numbers);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 1);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    const HalfResult result = ConvertToHalf(model, DType::kF16);
    EXPECT_EQ(result.overflows, 0u);
    EXPECT_EQ(result.kept_float.size(), scale == 1.0f ? 0u : 1u);
    EXPECT_GT(Sqnr(before, testing::RunModel(model, inputs)), 55.0);
  }
}

// One number that f16 rounds is the same error everywhere; 0.5 is exact.
TEST(ConvertToHalf, ScalesAndShiftsOfWholeTensorsStayFloatUnlessTheyAreExact) {
  for (const auto& [number, kept] : {std::pair{"0.1", 1u}, {"0.5", 0u}}) {
    Model model = ParseModel(std::string("graph @g(%x: f32[2,3]) -> (%y) { %c = constant f32[1] [") + number +
                             "]\n%a: f32[2,3] = Relu(%x)\n%y: f32[2,3] = Mul(%c, %a) }");
    const HalfResult result = ConvertToHalf(model, DType::kF16);
    ASSERT_EQ(result.kept_float.size(), kept) << number;
    for (const KeptNode& node : result.kept_float) EXPECT_EQ(node.op, "Mul");
  }
}

TEST(ConvertToHalf, StoredNodesComputeInFloatWithWeightsOf16Bits) {
  Model model = ParseModel(R"(graph @g(%x: f32[2,65]) -> (%y) {
    %w = constant f32[65,64] splat(0.3)
    %v = constant f32[64,65] splat(0.3)
    %m: f32[2,64] = MatMul(%x, %w)
    %y: f32[2,65] = MatMul(%m, %v)
  })");
  HalfOptions options;
  options.store = [](const Node& node) { return node.output()->name() == "m" ? "asked" : ""; };
  options.round = [](const Value& constant, std::span<const float> values, std::span<std::uint16_t> halves) {
    EXPECT_EQ(values.size(), halves.size());
    if (constant.name() == "w") ++halves[0];
  };
  const HalfResult result = ConvertToHalf(model, DType::kF16, options);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  ASSERT_EQ(result.kept_float.size(), 1u);
  EXPECT_EQ(result.kept_float[0].reason, "asked");
  Graph& graph = *model.graph;
  EXPECT_EQ(graph.FindValue("m")->type.dtype, DType::kF32);
  ASSERT_NE(graph.FindValue("w_half"), nullptr);
  EXPECT_EQ(graph.FindValue("w"), nullptr) << "the float weights are gone";
  const std::vector<float> numbers = graph.FindValue("w_half")->data->ToFloats();
  EXPECT_NEAR(numbers[1], 0.3f, 1e-4);
  EXPECT_GT(numbers[0], numbers[1]) << "rounded as asked";
  EXPECT_EQ(graph.FindValue("v_half")->data->ToFloats()[0], numbers[1]);
}

// Recurrent networks that are spelled out as loops hold their weights in constants of the main graph.
TEST(ConvertToHalf, WeightsOfSubgraphsAreStoredIn16BitsOnce) {
  Model model = ParseModel(R"(graph @g(%x: f32[2,65], %c: bool[]) -> (%y) {
    %w = constant f32[65,64] splat(0.3)
    %m: f32[2,64] = MatMul(%x, %w)
    %i: f32[2,64] = If(%c) {then_branch=graph @t() -> (%a) { %a: f32[2,64] = MatMul(%x, %w) }, else_branch=graph @e() -> (%b) { %b: f32[2,64] = Abs(%m) }}
    %y: f32[2,64] = Add(%m, %i)
  })");
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 1);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  ConvertToHalf(model, DType::kF16);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  for (const Value* constant : model.graph->constants()) EXPECT_EQ(constant->data->dtype, DType::kF16);
  EXPECT_EQ(model.graph->constants().size(), 1u);
  EXPECT_GT(Sqnr(before, testing::RunModel(model, inputs)), 55.0);
}

TEST(ConvertToHalf, Refuses) {
  Model model = ParseModel("graph @g(%x: f32[2]) -> (%y) { %y: f32[2] = Relu(%x) }", 11);
  EXPECT_THROW(ConvertToHalf(model, DType::kF32), Error);
}

TEST(ConvertToHalf, RaisesTheOperatorSetForBf16) {
  Model model = ParseModel("graph @g(%x: f32[2]) -> (%y) { %y: f32[2] = Relu(%x) }", 11);
  ConvertToHalf(model, DType::kBF16);
  EXPECT_EQ(model.OpsetVersion(), 13);
  Model unknown = ParseModel("graph @g(%x: f32[2]) -> (%y) { %y: f32[2] = OfTomorrow(%x) }", 11);
  EXPECT_THROW(ConvertToHalf(unknown, DType::kBF16), Error);
}

}  // namespace
}  // namespace octavo
