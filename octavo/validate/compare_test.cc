#include "octavo/validate/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/emit/onnx.h"
#include "octavo/ir/text.h"
#include "octavo/validate/json_writer.h"
#include "octavo/validate/perf.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class CompareTest : public FolderTest {
 protected:
  void SetUp() override {
#ifdef OCTAVO_TEST_ORT_LIBRARY
    ::setenv("OCTAVO_ORT_LIBRARY", OCTAVO_TEST_ORT_LIBRARY, 0);
#endif
  }

  fs::path Write(const std::string& name, const std::string& text) {
    WriteOnnx(Parse(text), folder_ / name);
    return folder_ / name;
  }
  // y = x + bias, r = relu(y), scores = r * 2
  fs::path Model(const std::string& name, const std::string& bias, const std::string& factor = "2") {
    return Write(name,
                 "ir_version = 8\nopset \"\" = 13\ngraph @g(%x: f32[2,3]) -> (%scores) {\n"
                 "%b = constant f32[3] [" +
                     bias + "]\n%k = constant f32[] " + factor +
                     "\n"
                     "%y: f32[2,3] = Add(%x, %b)\n%r: f32[2,3] = Relu(%y)\n%scores: f32[2,3] = Mul(%r, %k)\n}\n");
  }
};

// Samples that a test writes down.
class Listed : public DataSource {
 public:
  explicit Listed(std::vector<std::vector<float>> samples) : samples_(std::move(samples)) {}
  std::size_t size() const override { return samples_.size(); }
  Sample Read(std::size_t i) const override {
    return {"sample " + std::to_string(i), {TensorRef::FromFloats({2, 3}, samples_[i])}};
  }
  std::string ContentHash() const override { return std::string(64, '0'); }
  std::string Describe() const override { return "a list"; }

 private:
  std::vector<std::vector<float>> samples_;
};

const Listed kData({{1, 2, 3, 4, 5, 6}, {6, 5, 4, 3, 2, 1}});

TEST_F(CompareTest, EqualModelsReadTheLimit) {
  const CompareResult r = CompareModels(Model("a.onnx", "0, 0, 0"), Model("b.onnx", "0, 0, 0"), kData, {});
  ASSERT_EQ(r.outputs.size(), 1u);
  EXPECT_EQ(r.samples, 2u);
  EXPECT_EQ(r.outputs[0].SqnrDb(), kSqnrLimitDb);
  EXPECT_EQ(r.outputs[0].Top1Agreement(), 1.0);
  EXPECT_EQ(r.outputs[0].stats.elements, 12u);
  EXPECT_GT(r.reference_seconds, 0);
  EXPECT_GT(r.candidate_seconds, 0);
}

TEST_F(CompareTest, KnownErrorGivesKnownFigures) {
  // The candidate is off by 2 * 0.5 in every element of column 0.
  const CompareResult r = CompareModels(Model("a.onnx", "0, 0, 0"), Model("b.onnx", "0.5, 0, 0"), kData, {});
  const double signal = 4 * 2 * (1 + 4 + 9 + 16 + 25 + 36), noise = 4 * 1.0;
  EXPECT_NEAR(r.outputs[0].SqnrDb(), 10 * std::log10(signal / noise), 1e-9);
  EXPECT_NEAR(r.outputs[0].stats.max_abs, 1.0, 1e-6);
  EXPECT_NEAR(r.outputs[0].stats.Mse(), noise / 12, 1e-9);
}

TEST_F(CompareTest, ThreadsDoNotChangeTheFigures) {
  std::vector<std::vector<float>> samples;
  for (int i = 0; i < 37; ++i) {
    samples.push_back({0.1f * static_cast<float>(i), 1.7f, -2.3f, 0.01f * static_cast<float>(i * i), 3.3f, 1e-3f});
  }
  const Listed data(samples);
  const fs::path a = Model("a.onnx", "0, 0, 0"), b = Model("b.onnx", "0.013, 0.7, -0.1");
  std::string table;
  for (const int threads : {1, 2, 5}) {
    CompareOptions options;
    options.threads = threads;
    const CompareResult r = CompareModels(a, b, data, options);
    EXPECT_EQ(r.outputs[0].stats.elements, 37u * 6);
    JsonWriter json;
    WriteOutputError(json, r.outputs[0]);
    const std::string text = json.Take();
    if (table.empty()) table = text;
    EXPECT_EQ(text, table) << threads;
  }
}

TEST_F(CompareTest, Top1CountsRows) {
  // Column 0 gains 10: it wins every row; the reference has it first in the two rows of sample 1 only.
  const CompareResult r = CompareModels(Model("a.onnx", "0, 0, 0"), Model("b.onnx", "10, 0, 0"), kData, {});
  EXPECT_EQ(r.outputs[0].rows, 4u);
  EXPECT_EQ(r.outputs[0].Top1Agreement(), 0.5);
}

TEST_F(CompareTest, SubsetOfSamples) {
  CompareOptions options;
  options.first = 1;
  options.count = 5;
  const CompareResult r = CompareModels(Model("a.onnx", "0, 0, 0"), Model("b.onnx", "10, 0, 0"), kData, options);
  EXPECT_EQ(r.samples, 1u);
  EXPECT_EQ(r.outputs[0].Top1Agreement(), 1.0);
  options.first = 2;
  EXPECT_THROW(CompareModels(folder_ / "a.onnx", folder_ / "b.onnx", kData, options), Error);
}

TEST_F(CompareTest, NonFiniteIsSeen) {
  const CompareResult r = CompareModels(Model("a.onnx", "0, 0, 0"), Model("b.onnx", "0, 0, 0", "inf"), kData, {});
  EXPECT_TRUE(HasNonFinite(r.outputs));
  EXPECT_EQ(r.outputs[0].SqnrDb(), -kSqnrLimitDb);
  EXPECT_THAT(ToTable(r.outputs, false), HasSubstr("NaN/Inf"));
}

TEST_F(CompareTest, LayersShowWhereItBegins) {
  const CompareResult r = CompareLayers(Model("a.onnx", "0, 0, 0"), Model("b.onnx", "0, 0, 0", "2.5"), kData, {});
  ASSERT_EQ(r.outputs.size(), 3u);
  EXPECT_EQ(r.outputs[0].name, "y");
  EXPECT_EQ(r.outputs[0].op, "Add");
  EXPECT_EQ(r.outputs[0].SqnrDb(), kSqnrLimitDb);
  EXPECT_EQ(r.outputs[1].SqnrDb(), kSqnrLimitDb);
  EXPECT_EQ(r.outputs[2].name, "scores");
  EXPECT_NEAR(r.outputs[2].SqnrDb(), 20 * std::log10(2 / 0.5), 1e-6);
}

TEST_F(CompareTest, LayersInSmallBatchesAreTheSame) {
  CompareOptions small;
  small.batch = 1;
  const fs::path a = Model("a.onnx", "0, 0, 0"), b = Model("b.onnx", "0.25, 0, 0");
  const CompareResult whole = CompareLayers(a, b, kData, {}), parts = CompareLayers(a, b, kData, small);
  ASSERT_EQ(whole.outputs.size(), parts.outputs.size());
  for (std::size_t i = 0; i < whole.outputs.size(); ++i) {
    EXPECT_EQ(whole.outputs[i].name, parts.outputs[i].name);
    EXPECT_EQ(whole.outputs[i].SqnrDb(), parts.outputs[i].SqnrDb());
  }
}

TEST_F(CompareTest, LayersReadQuantizedValuesAsTheirUsersDo) {
  // y is quantized to steps of 1: its users see 1.4 as 1.
  const fs::path a = Model("a.onnx", "0.4, 0.4, 0.4");
  const fs::path b = Write("b.onnx",
                           "ir_version = 8\nopset \"\" = 13\ngraph @g(%x: f32[2,3]) -> (%scores) {\n"
                           "%b = constant f32[3] [0.4, 0.4, 0.4]\n%k = constant f32[] 2\n%s = constant f32[] 1\n"
                           "%z = constant u8[] 0\n%y: f32[2,3] = Add(%x, %b)\n"
                           "%q: u8[2,3] = QuantizeLinear(%y, %s, %z)\n"
                           "%d: f32[2,3] = DequantizeLinear(%q, %s, %z)\n"
                           "%r: f32[2,3] = Relu(%d)\n%scores: f32[2,3] = Mul(%r, %k)\n}\n");
  const CompareResult r = CompareLayers(a, b, kData, {});
  ASSERT_EQ(r.outputs[0].name, "y");
  EXPECT_NEAR(r.outputs[0].stats.max_abs, 0.4, 1e-5);
}

TEST_F(CompareTest, LayersFollowWhatWasFolded) {
  // The candidate's y has the Mul by 3 in it: it stands for the reference's m, not for its y.
  const fs::path a = Write("a.onnx",
                           "ir_version = 8\nopset \"\" = 13\ngraph @g(%x: f32[2,3]) -> (%r) {\n"
                           "%k = constant f32[] 3\n%c = constant f32[3] [1, 1, 1]\n%y: f32[2,3] = Mul(%x, %c)\n"
                           "%m: f32[2,3] = Mul(%y, %k)\n%r: f32[2,3] = Relu(%m)\n}\n");
  const fs::path b = Write("b.onnx",
                           "ir_version = 8\nopset \"\" = 13\ngraph @g(%x: f32[2,3]) -> (%r) {\n"
                           "%c = constant f32[3] [3, 3, 3]\n%y: f32[2,3] = Mul(%x, %c)\n%r: f32[2,3] = Relu(%y)\n}\n");
  const CompareResult r = CompareLayers(a, b, kData, {});
  ASSERT_EQ(r.outputs.size(), 2u);
  EXPECT_EQ(r.outputs[0].name, "y");
  EXPECT_EQ(r.outputs[0].SqnrDb(), kSqnrLimitDb);
}

TEST_F(CompareTest, RefusesModelsThatDoNotFit) {
  const fs::path a = Model("a.onnx", "0, 0, 0");
  const fs::path other = Write("c.onnx",
                               "ir_version = 8\nopset \"\" = 13\ngraph @g(%z: f32[2,3]) -> (%y) {\n"
                               "%y: f32[2,3] = Relu(%z)\n}\n");
  try {
    CompareModels(a, other, kData, {});
    FAIL() << "different inputs were accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadInput);
    EXPECT_THAT(error.what(), HasSubstr("'z'"));
  }
  const fs::path two = Write("d.onnx",
                             "ir_version = 8\nopset \"\" = 13\ngraph @g(%x: f32[2,3]) -> (%y, %r) {\n"
                             "%y: f32[2,3] = Relu(%x)\n%r: f32[2,3] = Neg(%x)\n}\n");
  EXPECT_THROW(CompareModels(a, two, kData, {}), Error);
  const fs::path shape = Write("e.onnx",
                               "ir_version = 8\nopset \"\" = 13\ngraph @g(%x: f32[2,3]) -> (%scores) {\n"
                               "%scores: f32[3,2] = Transpose(%x) {perm=[1,0]}\n}\n");
  EXPECT_THROW(CompareModels(a, shape, kData, {}), Error);
}

TEST_F(CompareTest, JsonHasTheContractsKeys) {
  const fs::path a = Model("a.onnx", "0, 0, 0");
  const CompareResult r = CompareModels(a, a, kData, {});
  const std::string json = ToJson(r, &r);
  for (const char* key : {"\"samples\": 2", "\"outputs\"", "\"sqnr_db\": 300", "\"cosine\": 1", "\"max_abs\": 0",
                          "\"mse\": 0", "\"top1_agreement\": 1", "\"layers\""}) {
    EXPECT_THAT(json, HasSubstr(key));
  }
}

TEST(AddError, ComparesIntegersAndText) {
  OutputError ints;
  const std::vector<std::int64_t> a = {1, 2, 3}, b = {1, 2, 5};
  AddError(ints, TensorRef::FromInts(DType::kS64, {3}, a), TensorRef::FromInts(DType::kS64, {3}, b), "t");
  EXPECT_EQ(ints.stats.max_abs, 2);
  EXPECT_FALSE(ints.Top1Agreement());
  TensorRef text;
  text.dtype = DType::kString;
  text.dims = {2};
  text.strings = std::make_shared<const std::vector<std::string>>(std::vector<std::string>{"a", "b"});
  TensorRef other = text;
  other.strings = std::make_shared<const std::vector<std::string>>(std::vector<std::string>{"a", "c"});
  OutputError strings;
  AddError(strings, text, other, "t");
  EXPECT_EQ(strings.stats.max_abs, 1);
  EXPECT_NEAR(strings.SqnrDb(), 10 * std::log10(2.0), 1e-9);
  EXPECT_THROW(AddError(strings, text, TensorRef::FromFloats({2}, std::vector<float>{1, 2}), "t"), Error);
}

TEST(PooledSqnr, WeighsElementsNotOutputs) {
  OutputError big, small;
  const std::vector<float> ref(100, 1.0f), same(100, 1.0f), one(1, 1.0f), none(1, 0.0f);
  big.stats.Add(ref, same);
  small.stats.Add(one, none);
  EXPECT_NEAR(PooledSqnrDb({big, small}), 10 * std::log10(101.0), 1e-9);
}

TEST(Perf, PercentilesAreNearestRank) {
  std::vector<double> ms;
  for (int i = 100; i >= 1; --i) ms.push_back(i);
  const LatencyStats s = Summarize(ms);
  EXPECT_EQ(s.p50, 50);
  EXPECT_EQ(s.p90, 90);
  EXPECT_EQ(s.p95, 95);
  EXPECT_EQ(s.p99, 99);
  EXPECT_EQ(s.min, 1);
  EXPECT_EQ(s.max, 100);
  EXPECT_DOUBLE_EQ(s.mean, 50.5);
  EXPECT_NEAR(s.std, std::sqrt(100.0 * 101 / 12), 1e-9);  // n - 1 in the denominator
  EXPECT_NEAR(s.throughput, 1e3 / 50.5, 1e-9);
  EXPECT_EQ(Summarize({}).runs, 0u);
}

TEST_F(CompareTest, PerfRunsInTurn) {
  const fs::path a = Model("a.onnx", "0, 0, 0"), b = Model("b.onnx", "1, 0, 0");
  PerfOptions options;
  options.iterations = 7;
  options.warmup = 2;
  const PerfResult alone = MeasurePerf(a, std::nullopt, kData, options);
  EXPECT_EQ(alone.model.latency.runs, 7u);
  EXPECT_EQ(alone.model.raw_ms.size(), 7u);
  EXPECT_FALSE(alone.against);
  EXPECT_GT(alone.peak_rss_bytes, 0u);
  const PerfResult both = MeasurePerf(a, b, kData, options);
  ASSERT_TRUE(both.against);
  EXPECT_EQ(both.against->latency.runs, 7u);
  EXPECT_GT(both.ratio->median, 0);
  EXPECT_LE(both.ratio->p10, both.ratio->median);
  EXPECT_LE(both.ratio->median, both.ratio->p90);
  EXPECT_THAT(ToJson(both), HasSubstr("\"ratio\""));
}

}  // namespace
}  // namespace octavo
