#include "octavo/quantize/early_weights.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "octavo/base/thread_pool.h"
#include "octavo/device/descriptor.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"

namespace octavo {
namespace {

TensorRef Random(Dims dims, unsigned seed) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(dims[0] * dims[1]));
  for (float& v : values) v = normal(gen);
  values[3] = 30;  // worth a search
  return TensorRef::FromFloats(std::move(dims), values);
}

// ids -> Gather -> MatMul -> Gemm with a transposed weight, in a file.
Model FromFile(const std::filesystem::path& path) {
  Model model;
  model.SetOpsetVersion("", 17);
  model.graph = std::make_unique<Graph>();
  Graph& g = *model.graph;
  Type ids_type, float_type;
  ids_type.dtype = DType::kS64;
  ids_type.shape = {{-1, "n"}};
  float_type.dtype = DType::kF32;
  float_type.shape = {{-1, "n"}, {64, {}}};
  Value* ids = g.AddInput("ids", ids_type);
  Value* table = g.AddConstant("table", Random({600, 64}, 1));
  Value* first = g.AddConstant("first", Random({64, 64}, 2));
  Value* second = g.AddConstant("second", Random({64, 64}, 3));
  Node* gather = g.AddNode("Gather", "", {table, ids}, {{"rows", float_type}});
  Node* matmul = g.AddNode("MatMul", "", {gather->output(), first}, {{"h", float_type}});
  Node* gemm = g.AddNode("Gemm", "", {matmul->output(), second}, {{"y", float_type}});
  gemm->SetAttribute("transB", std::int64_t{1});
  g.AddOutput(gemm->output());
  WriteOnnx(model, path);
  return ReadOnnx(path);
}

class EarlyWeightsTest : public ::testing::Test {
 protected:
  EarlyWeightsTest()
      : path_(std::filesystem::path(::testing::TempDir()) / ("early_weights_" + std::to_string(::getpid()) + ".onnx")),
        model_(FromFile(path_)) {
    config_.precision = "uint8";
    precision_ = ResolvePrecision(config_, *FindDevice("cpu"));
  }
  ~EarlyWeightsTest() override { std::filesystem::remove(path_); }
  const TensorRef& Data(const char* name) const { return *model_.graph->FindValue(name)->data; }

  std::filesystem::path path_;
  Model model_;
  QuantizationConfig config_;
  ResolvedPrecision precision_;
};

TEST_F(EarlyWeightsTest, GivesWhatTheCallerWouldHaveFound) {
  int early_results = 0;
  for (int attempt = 0; attempt < 200 && early_results < 3; ++attempt) {
    EarlyWeights early(model_, config_, precision_);
    std::this_thread::sleep_for(std::chrono::milliseconds(attempt));  // who asks at once is left to do it himself
    for (const auto& [name, axis] : {std::pair("second", 0), std::pair("first", 1)}) {
      const WeightOptions options = WeightOptionsOf(config_, precision_, name);
      const std::optional<WeightStudy> found = early.TakeWeight(Data(name), axis, options);
      if (!found) continue;
      const WeightStudy own = StudyWeight(Data(name), axis, options);
      EXPECT_EQ(found->params, own.params);
      EXPECT_EQ(found->largest, own.largest);
      EXPECT_EQ(own.largest, LargestOfChannels(Data(name), axis));
      EXPECT_FALSE(early.TakeWeight(Data(name), axis, options)) << "given out once";
      ++early_results;
    }
    if (const std::optional<EncodedTable> table = early.TakeTable(Data("table"))) {
      const EncodedTable own = EncodeTable(Data("table"), 1);
      EXPECT_EQ(table->scales, own.scales);
      EXPECT_TRUE(std::equal(own.codes.bytes().begin(), own.codes.bytes().end(), table->codes.bytes().begin()));
      EXPECT_EQ(table->error, own.error);
      ++early_results;
    }
  }
  EXPECT_GE(early_results, 3);
}

TEST_F(EarlyWeightsTest, AnswersOnlyForTheSameWeightReadTheSameWay) {
  EarlyWeights early(model_, config_, precision_);
  WeightOptions options = WeightOptionsOf(config_, precision_, "first");
  EXPECT_FALSE(early.TakeWeight(Data("first"), 0, options)) << "another axis";
  options.symmetric = !options.symmetric;
  EXPECT_FALSE(early.TakeWeight(Data("first"), 1, options));
  options.symmetric = !options.symmetric;
  EXPECT_FALSE(early.TakeWeight(TensorRef::FromFloats(Data("first").dims, Data("first").ToFloats()), 1, options))
      << "the same numbers elsewhere";
  EXPECT_FALSE(early.TakeTable(Data("first")));
}

TEST_F(EarlyWeightsTest, ManyMayAsk) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    EarlyWeights early(model_, config_, precision_);
    const WeightOptions options = WeightOptionsOf(config_, precision_, "first");
    std::atomic<int> given{0};
    ParallelFor(8, 4, [&](std::size_t) {
      if (early.TakeWeight(Data("first"), 1, options)) ++given;
    });
    EXPECT_LE(given.load(), 1);
  }
}

}  // namespace
}  // namespace octavo
