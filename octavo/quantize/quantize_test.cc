#include "octavo/quantize/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "octavo/base/error.h"
#include "octavo/emit/onnx.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/quantize/dead_zone.h"
#include "octavo/quantize/placement.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

class QuantizeTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
#ifdef OCTAVO_TEST_ORT_LIBRARY
    setenv("OCTAVO_ORT_LIBRARY", OCTAVO_TEST_ORT_LIBRARY, 0);
#endif
  }
};

Type F32(Dims dims) {
  Type t;
  t.dtype = DType::kF32;
  t.shape.emplace();
  for (const std::int64_t d : dims) t.shape->push_back({d, {}});
  return t;
}

// Deterministic numbers in [-1, 1).
std::vector<float> Noise(std::size_t n, std::uint32_t seed) {
  std::vector<float> v(n);
  std::uint32_t s = seed * 2654435761u + 1;
  for (float& x : v) {
    s = s * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<std::int32_t>(s)) / 2147483648.0f;
  }
  return v;
}

Value* Weight(Graph& g, const char* name, Dims dims, std::uint32_t seed) {
  return g.AddConstant(name, TensorRef::FromFloats(dims, Noise(ElementCount(dims), seed)));
}

// x -> Conv -> Relu -> MaxPool -> Conv -> HardSwish -> GlobalAveragePool -> Flatten -> Gemm
Model TinyCnn() {
  Model m;
  m.opsets = {{"", 14}};
  m.graph = std::make_unique<Graph>();
  Graph& g = *m.graph;
  Value* x = g.AddInput("x", F32({1, 3, 16, 16}));
  Node* c1 = g.AddNode("Conv", "", {x, Weight(g, "w1", {8, 3, 3, 3}, 1), Weight(g, "b1", {8}, 2)},
                       {{"c1", F32({1, 8, 14, 14})}});
  c1->name = "conv1";
  Node* r1 = g.AddNode("Relu", "", {c1->output()}, {{"r1", F32({1, 8, 14, 14})}});
  Node* p1 = g.AddNode("MaxPool", "", {r1->output()}, {{"p1", F32({1, 8, 7, 7})}});
  p1->SetAttribute("kernel_shape", std::vector<std::int64_t>{2, 2});
  p1->SetAttribute("strides", std::vector<std::int64_t>{2, 2});
  Node* c2 = g.AddNode("Conv", "", {p1->output(), Weight(g, "w2", {16, 8, 3, 3}, 3)}, {{"c2", F32({1, 16, 5, 5})}});
  c2->name = "conv2";
  Node* h = g.AddNode("HardSwish", "", {c2->output()}, {{"h", F32({1, 16, 5, 5})}});
  Node* a = g.AddNode("GlobalAveragePool", "", {h->output()}, {{"a", F32({1, 16, 1, 1})}});
  Node* f = g.AddNode("Flatten", "", {a->output()}, {{"f", F32({1, 16})}});
  Node* y =
      g.AddNode("Gemm", "", {f->output(), Weight(g, "w3", {16, 4}, 4), Weight(g, "b3", {4}, 5)}, {{"y", F32({1, 4})}});
  y->name = "head";
  g.AddOutput(y->output());
  return m;
}

std::vector<float> RunModel(const Model& model, const Sample& sample,
                            GraphOptimization optimization = GraphOptimization::kNone) {
  OnnxSkeleton s = SerializeSkeleton(model);
  SessionOptions options;
  options.optimization = optimization;
  options.intra_op_threads = 1;
  return Session(s.bytes, std::move(s.externals), options).Run(sample.tensors)[0].ToFloats();
}

double Sqnr(const Model& reference, const Model& quantized, const DataSource& data, std::size_t first, std::size_t n,
            GraphOptimization optimization = GraphOptimization::kNone) {
  Model lowered = Clone(quantized);
  LowerToQdq(lowered);
  VerifyOrThrow(lowered, "lowering");
  ErrorStats stats;
  for (std::size_t i = first; i < first + n; ++i) {
    const Sample sample = data.Read(i);
    stats.Add(RunModel(reference, sample), RunModel(lowered, sample, optimization));
  }
  return stats.SqnrDb();
}

TEST_F(QuantizeTest, TinyCnnEndToEnd) {
  const Model reference = TinyCnn();
  const auto data = SyntheticData(InputSpecs(*reference.graph), Distribution::kNormal, 1, 24);
  for (const auto& [precision, least] :
       {std::pair{"uint8", 25.0}, {"int8", 25.0}, {"w8a16", 30.0}, {"int16", 65.0}, {"fp16", 50.0}, {"fp32", 100.0}}) {
    Model m = Clone(reference);
    QuantizationConfig config;
    config.precision = precision;
    config.samples = 16;
    const QuantizeResult r = Quantize(m, config, *FindDevice("cpu"), data.get(), 2);
    VerifyOrThrow(m, precision);
    // On calibration samples: what lies outside their range is clipped, whatever the number of bits.
    EXPECT_GT(Sqnr(reference, m, *data, 0, 8), least) << precision;
    if (std::string(precision) == "int8") {
      EXPECT_EQ(r.calibration_samples, 16);
      EXPECT_GE(r.nodes_quantized, 1);
      EXPECT_GE(r.integer_mac_share, 0.69);
      EXPECT_THAT(r.effective_weights, HasSubstr("zero point 128"));
    }
  }
}

// The selection is int8's, so finer codes of the same tensors cannot be worse.
TEST_F(QuantizeTest, SixteenBitsKeepWhatEightKeep) {
  const Model reference = TinyCnn();
  const auto data = SyntheticData(InputSpecs(*reference.graph), Distribution::kNormal, 1, 24);
  std::vector<double> sqnr;
  std::vector<std::int64_t> quantized;
  for (const char* precision : {"int8", "w8a16", "int16"}) {
    Model m = Clone(reference);
    QuantizationConfig config;
    config.precision = precision;
    quantized.push_back(Quantize(m, config, *FindDevice("cpu"), data.get(), 2).nodes_quantized);
    sqnr.push_back(Sqnr(reference, m, *data, 0, 24, GraphOptimization::kAll));
  }
  EXPECT_EQ(quantized[0], quantized[1]);
  EXPECT_EQ(quantized[0], quantized[2]);
  EXPECT_GT(sqnr[1], sqnr[0]);
  EXPECT_GT(sqnr[2], sqnr[1]);
}

// ONNX Runtime's default session makes the bias of a Conv int32 at the product of the scales: with two 16-bit operands
// a bias that is large beside the products would be clipped there.
TEST_F(QuantizeTest, LargeBiasBesideSixteenBits) {
  Model reference;
  reference.opsets = {{"", 14}};
  reference.graph = std::make_unique<Graph>();
  Graph& g = *reference.graph;
  Value* x = g.AddInput("x", F32({1, 3, 8, 8}));
  std::vector<float> weights, bias;
  for (int i = 0; i < 8 * 3 * 9; ++i) weights.push_back(0.02f * std::sin(static_cast<float>(i)));
  for (int i = 0; i < 8; ++i) bias.push_back(i % 2 == 0 ? 6.0f : -5.0f);
  Value* w = g.AddConstant("w", TensorRef::FromFloats({8, 3, 3, 3}, weights));
  Value* b = g.AddConstant("b", TensorRef::FromFloats({8}, bias));
  Node* conv = g.AddNode("Conv", "", {x, w, b}, {{"y", F32({1, 8, 6, 6})}});
  g.AddOutput(conv->output());
  const auto data = SyntheticData(InputSpecs(g), Distribution::kNormal, 1, 8);
  Model m = Clone(reference);
  QuantizationConfig config;
  config.precision = "int16";
  config.keep_float_auto = false;
  EXPECT_EQ(Quantize(m, config, *FindDevice("cpu"), data.get(), 1).nodes_quantized, 1);
  EXPECT_GT(Sqnr(reference, m, *data, 0, 8), 70);
  EXPECT_GT(Sqnr(reference, m, *data, 0, 8, GraphOptimization::kAll), 70);
}

TEST_F(QuantizeTest, EverythingIntegerWhenNothingIsKept) {
  Model m = TinyCnn();
  const auto data = SyntheticData(InputSpecs(*m.graph), Distribution::kNormal, 1, 8);
  QuantizationConfig config;
  config.keep_float_auto = false;
  const QuantizeResult r = Quantize(m, config, *FindDevice("cpu"), data.get(), 1);
  EXPECT_EQ(r.nodes_quantized, 3);
  EXPECT_EQ(r.integer_mac_share, 1.0);
  const Graph& g = *m.graph;
  // The Relu is gone, its name is on the Conv's output, and the MaxPool moves the same codes.
  const Value* r1 = g.FindValue("r1");
  ASSERT_NE(r1, nullptr);
  ASSERT_TRUE(r1->type.quant);
  EXPECT_TRUE(r1->producer()->Is("Conv"));
  const Value* p1 = g.FindValue("p1");
  ASSERT_TRUE(p1->type.quant);
  EXPECT_TRUE(SameParams(*p1->type.quant, *r1->type.quant));
  // Weights are stored small, the bias as int32 at the product of the scales.
  EXPECT_EQ(g.FindValue("w1")->data->dtype, DType::kU8);
  const Value* b1 = g.FindValue("b1");
  EXPECT_EQ(b1->data->dtype, DType::kS32);
  const Value* xq = r1->producer()->input(0);
  EXPECT_EQ(b1->type.quant->affine.scale.ToFloats()[0],
            xq->type.quant->affine.scale.ToFloats()[0] * g.FindValue("w1")->type.quant->affine.scale.ToFloats()[0]);
  // Integer in, float out.
  EXPECT_FALSE(g.FindValue("y")->type.quant);
}

TEST_F(QuantizeTest, ThreadsLeaveNoTrace) {
  const auto data = SyntheticData(InputSpecs(*TinyCnn().graph), Distribution::kNormal, 1, 8);
  QuantizationConfig config;
  config.precision = "int8";
  Model one = TinyCnn(), four = TinyCnn();
  Quantize(one, config, *FindDevice("cpu"), data.get(), 1);
  Quantize(four, config, *FindDevice("cpu"), data.get(), 4);
  EXPECT_EQ(Print(one, {.full = true}), Print(four, {.full = true}));
}

TEST_F(QuantizeTest, BiasCorrectionTakesTheMeanErrorAway) {
  // One MatMul with an Add behind it; inputs with a large mean, so that weight errors shift the output.
  Model reference;
  reference.opsets = {{"", 14}};
  reference.graph = std::make_unique<Graph>();
  Graph& g = *reference.graph;
  Value* x = g.AddInput("x", F32({4, 64}));
  Node* mm = g.AddNode("MatMul", "", {x, Weight(g, "w", {64, 8}, 3)}, {{"m", F32({4, 8})}});
  Node* add = g.AddNode("Add", "", {mm->output(), Weight(g, "b", {8}, 4)}, {{"y", F32({4, 8})}});
  g.AddOutput(add->output());
  const auto data = SyntheticData(InputSpecs(g), Distribution::kUniform, 1, 32);  // mean 1/2
  Model m = Clone(reference);
  QuantizationConfig config;
  config.keep_float_auto = false;
  Quantize(m, config, *FindDevice("cpu"), data.get(), 1);
  Model uncorrected = Clone(m);
  uncorrected.graph->FindValue("b")->data = reference.graph->FindValue("b")->data;
  const double with = Sqnr(reference, m, *data, 0, 32), without = Sqnr(reference, uncorrected, *data, 0, 32);
  EXPECT_GT(with, without + 1);
}

TEST_F(QuantizeTest, AQuantizedModelKeepsItsQuantization) {
  Model m = TinyCnn();
  const auto data = SyntheticData(InputSpecs(*m.graph), Distribution::kNormal, 1, 8);
  QuantizationConfig config;
  Quantize(m, config, *FindDevice("cpu"), data.get(), 1);
  LowerToQdq(m);
  const std::string before = Print(m);
  EXPECT_TRUE(Quantize(m, config, *FindDevice("cpu"), data.get(), 1).skipped);
  EXPECT_EQ(Print(m), before);
  config.requantize = true;
  config.precision = "int8";
  const QuantizeResult again = Quantize(m, config, *FindDevice("cpu"), data.get(), 1);
  EXPECT_FALSE(again.skipped);
  EXPECT_GE(again.nodes_quantized, 1);
  EXPECT_GT(Sqnr(TinyCnn(), m, *data, 0, 8), 20);
}

TEST_F(QuantizeTest, StatisticsGiveTheSameParameters) {
  const auto data = SyntheticData(InputSpecs(*TinyCnn().graph), Distribution::kNormal, 1, 8);
  QuantizationConfig config;
  config.save_path = ::testing::TempDir() + "octavo_quantize_test_statistics.json";
  Model a = TinyCnn(), b = TinyCnn();
  Quantize(a, config, *FindDevice("cpu"), data.get(), 1);
  config.load_path = config.save_path;
  config.save_path.clear();
  const QuantizeResult r = Quantize(b, config, *FindDevice("cpu"), data.get(), 1);
  EXPECT_EQ(r.calibration_source, "loaded");
  EXPECT_EQ(Print(a, {.full = true}), Print(b, {.full = true}));
  Model other = TinyCnn();
  other.graph->FindValue("w2")->data = TensorRef::FromFloats({16, 8, 3, 3}, Noise(16 * 8 * 9, 99));
  EXPECT_THROW(Quantize(other, config, *FindDevice("cpu"), data.get(), 1), Error);
}

TEST_F(QuantizeTest, SelectorsThatMatchNothingNameTheNearest) {
  const auto data = SyntheticData(InputSpecs(*TinyCnn().graph), Distribution::kNormal, 1, 4);
  const auto failure = [&](QuantizationConfig config) -> std::string {
    Model m = TinyCnn();
    try {
      Quantize(m, config, *FindDevice("cpu"), data.get(), 1);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      return error.what();
    }
    return "no error";
  };
  QuantizationConfig exclude, op_types, overrides;
  exclude.exclude = {"conv3"};
  op_types.op_types = {"Cov"};
  overrides.overrides = {{"r11", "f32"}};
  EXPECT_THAT(failure(exclude), HasSubstr("conv1"));
  EXPECT_THAT(failure(op_types), HasSubstr("Conv"));
  EXPECT_THAT(failure(overrides), HasSubstr("r1"));
}

TEST_F(QuantizeTest, ExcludesAndOverrides) {
  const auto data = SyntheticData(InputSpecs(*TinyCnn().graph), Distribution::kNormal, 1, 4);
  QuantizationConfig config;
  config.keep_float_auto = false;
  config.exclude = {"conv*"};
  Model m = TinyCnn();
  EXPECT_EQ(Quantize(m, config, *FindDevice("cpu"), data.get(), 1).nodes_quantized, 1);
  config.exclude.clear();
  config.overrides = {{"f", "u16"}, {"w2", "f32"}};
  m = TinyCnn();
  const QuantizeResult r = Quantize(m, config, *FindDevice("cpu"), data.get(), 1);
  EXPECT_EQ(r.nodes_quantized, 2);
  const Value* f = m.graph->FindValue("y")->producer()->input(0);
  ASSERT_TRUE(f->type.quant);
  EXPECT_EQ(f->type.quant->affine.storage, DType::kU16);
}

TEST_F(QuantizeTest, ATableWhoseRowsAProductQuantizes) {
  Model reference;
  reference.opsets = {{"", 17}};
  reference.graph = std::make_unique<Graph>();
  Graph& g = *reference.graph;
  Type ids;
  ids.dtype = DType::kS64;
  ids.shape.emplace();
  ids.shape->push_back({8, {}});
  Value* x = g.AddInput("ids", ids);
  Value* rows = g.AddNode("Gather", "", {Weight(g, "table", {512, 64}, 7), x}, {{"rows", F32({8, 64})}})->output();
  g.AddOutput(g.AddNode("MatMul", "", {rows, Weight(g, "w", {64, 32}, 3)}, {{"y", F32({8, 32})}})->output());
  const auto data = SyntheticData(InputSpecs(g), Distribution::kUniform, 1, 8);
  for (const char* precision : {"uint8", "int8"}) {
    Model m = Clone(reference);
    QuantizationConfig config;
    config.precision = precision;
    const QuantizeResult r = Quantize(m, config, *FindDevice("cpu"), data.get(), 1);
    VerifyOrThrow(m, precision);
    EXPECT_EQ(r.nodes_quantized, 1);
    const Value* codes = m.graph->FindValue("table_codes");
    ASSERT_NE(codes, nullptr);
    EXPECT_EQ(codes->data->dtype, DType::kS8);
    EXPECT_GT(Sqnr(reference, m, *data, 0, 8), 30) << precision;
  }
}

TEST_F(QuantizeTest, HalfCountsOnlyWhatIsHalf) {
  Model m;
  m.opsets = {{"", 17}};
  m.graph = std::make_unique<Graph>();
  Graph& g = *m.graph;
  Type flag;
  flag.dtype = DType::kBool;
  flag.shape.emplace();
  Value* condition = g.AddInput("condition", flag);
  Value* x = g.AddInput("x", F32({4}));
  Node* branch = g.AddNode("If", "", {condition}, {{"y", F32({4})}});
  for (const char* name : {"then_branch", "else_branch"}) {
    auto sub = std::make_unique<Graph>(&g);
    sub->AddOutput(sub->AddNode("Relu", "", {x}, {{std::string(name) + "_y", F32({4})}})->output());
    branch->SetAttribute(name, std::move(sub));
  }
  g.AddOutput(branch->output());
  QuantizationConfig config;
  config.precision = "fp16";
  const QuantizeResult r = Quantize(m, config, *FindDevice("cpu"), nullptr, 1);
  EXPECT_EQ(r.nodes_total, 3);
  EXPECT_EQ(r.nodes_quantized, 0);
  EXPECT_EQ(r.nodes_skipped.size(), 3u);
}

TEST(Placement, SaysWhyNot) {
  Model m;
  m.opsets = {{"", 14}};
  m.graph = std::make_unique<Graph>();
  Graph& g = *m.graph;
  Value* x = g.AddInput("x", F32({2, 4, 4}));
  Node* scores = g.AddNode("MatMul", "", {x, x}, {{"scores", F32({2, 4, 4})}});
  Node* soft = g.AddNode("Softmax", "", {scores->output()}, {{"soft", F32({2, 4, 4})}});
  g.AddOutput(soft->output());
  const QuantizationConfig config;
  const DeviceDescriptor& cpu = *FindDevice("cpu");
  const Placement p = PlaceNodes(m, config, ResolvePrecision(config, cpu), cpu);
  EXPECT_TRUE(p.nodes.empty());
  ASSERT_EQ(p.skipped.size(), 2u);
  EXPECT_THAT(p.skipped[0].reason, HasSubstr("both operands are computed"));
  EXPECT_EQ(p.nodes_total, 2);
}

// A float copy would have to stay for the subgraph, and the file would grow.
TEST(Placement, AWeightThatASubgraphReadsTooIsStoredOnce) {
  const auto skipped = [](const std::string& read) {
    const Model m = Parse(R"(opset "" = 17
graph @g(%x: f32[1,2], %c: bool[]) -> (%y, %z) {
    %w = constant f32[2,2] [1, -1, 0.5, 0.25]
    %v = constant f32[2,2] [1, -1, 0.5, 0.5]
    %y: f32[1,2] = MatMul(%x, %w)
    %z: f32[*] = If(%c) {then_branch=graph @t() -> (%p) { %p: f32[1,2] = MatMul(%x, )" +
                          read +
                          R"() }, else_branch=graph @e() -> (%q) { %q: f32[1,2] = Abs(%x) }}
  })");
    const DeviceDescriptor& cpu = *FindDevice("cpu");
    const QuantizationConfig config;
    std::string reason;
    for (const SkippedNode& s : PlaceNodes(m, config, ResolvePrecision(config, cpu), cpu).skipped) {
      if (s.node == "y") reason = s.reason;
    }
    return reason;
  };
  EXPECT_THAT(skipped("%w"), HasSubstr("a subgraph reads its weight too"));
  EXPECT_EQ(skipped("%v"), "");
}

TEST(Placement, AWeightThatALoopCarriesIsStoredOnce) {
  const Model m = Parse(R"(opset "" = 17
graph @g(%x: f32[1,2], %n: s64[], %c: bool[]) -> (%y, %z) {
    %w = constant f32[2,2] [1, -1, 0.5, 0.25]
    %y: f32[1,2] = MatMul(%x, %w)
    %z: f32[2,2] = Loop(%n, %c, %w) {body=graph @b(%i: s64[], %d: bool[], %s: f32[2,2]) -> (%e, %t) {
      %e: bool[] = Identity(%d)
      %t: f32[2,2] = Abs(%s)
    }}
  })");
  const DeviceDescriptor& cpu = *FindDevice("cpu");
  const QuantizationConfig config;
  const Placement p = PlaceNodes(m, config, ResolvePrecision(config, cpu), cpu);
  EXPECT_TRUE(p.nodes.empty());
  ASSERT_FALSE(p.skipped.empty());
  EXPECT_THAT(p.skipped[0].reason, HasSubstr("a subgraph reads its weight too"));
}

TEST(Placement, WeightsWhoseScaleWouldUnderflowStayInFloat) {
  for (const float size : {1e-37f, 1e-30f}) {
    Model m;
    m.opsets = {{"", 14}};
    m.graph = std::make_unique<Graph>();
    Graph& g = *m.graph;
    Value* x = g.AddInput("x", F32({2, 4}));
    std::vector<float> weights = Noise(16, 1);
    for (float& w : weights) w *= size;
    Value* w = g.AddConstant("w", TensorRef::FromFloats({4, 4}, weights));
    g.AddOutput(g.AddNode("MatMul", "", {x, w}, {{"y", F32({2, 4})}})->output());
    const QuantizationConfig config;
    const DeviceDescriptor& cpu = *FindDevice("cpu");
    const Placement p = PlaceNodes(m, config, ResolvePrecision(config, cpu), cpu);
    EXPECT_EQ(p.nodes.size(), size < 1e-35f ? 0u : 1u);
    ASSERT_EQ(p.skipped.size(), size < 1e-35f ? 1u : 0u);
    if (!p.skipped.empty()) {
      EXPECT_THAT(p.skipped[0].reason, HasSubstr("underflow"));
    }
  }
}

TEST(DeadZone, HardSwishDoesNotSeeBelowMinusThree) {
  Graph g;
  Value* x = g.AddInput("x", F32({1}));
  Node* v = g.AddNode("Neg", "", {x}, {{"v", F32({1})}});
  Node* h = g.AddNode("HardSwish", "", {v->output()}, {{"h", F32({1})}});
  g.AddOutput(h->output());
  const ValueRange r = CutDeadZone(*v->output(), {-12, 5});
  EXPECT_NEAR(r.min, -3, 0.05);
  EXPECT_EQ(r.max, 5);
}

TEST(DeadZone, WrittenOutHardSwishAndAnOutsideUser) {
  Graph g;
  Value* x = g.AddInput("x", F32({1}));
  Value* v = g.AddNode("Neg", "", {x}, {{"v", F32({1})}})->output();
  Value* three = g.AddConstant("three", TensorRef::Scalar(3));
  Value* zero = g.AddConstant("zero", TensorRef::Scalar(0));
  Value* six = g.AddConstant("six", TensorRef::Scalar(6));
  Value* add = g.AddNode("Add", "", {v, three}, {{"add", F32({1})}})->output();
  Value* clip = g.AddNode("Clip", "", {add, zero, six}, {{"clip", F32({1})}})->output();
  Value* mul = g.AddNode("Mul", "", {v, clip}, {{"mul", F32({1})}})->output();
  g.AddOutput(g.AddNode("MaxPool", "", {mul}, {{"out", F32({1})}})->output());
  EXPECT_NEAR(CutDeadZone(*v, {-12, 5}).min, -3, 0.05);
  g.AddOutput(v);  // now the outside sees all of it
  EXPECT_EQ(CutDeadZone(*v, {-12, 5}).min, -12);
}

}  // namespace
}  // namespace octavo
