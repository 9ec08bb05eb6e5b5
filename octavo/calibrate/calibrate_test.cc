#include "octavo/calibrate/calibrate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/calibrate/ranges.h"
#include "octavo/runtime/library_test_util.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

[[maybe_unused]] const bool g_quiet = [] {
  SetLogLevel(LogLevel::kWarn);
  return true;
}();

class Samples : public DataSource {
 public:
  explicit Samples(std::vector<std::vector<TensorRef>> samples) : samples_(std::move(samples)) {}
  std::size_t size() const override { return samples_.size(); }
  Sample Read(std::size_t i) const override { return {"s" + std::to_string(i), samples_[i]}; }
  std::string ContentHash() const override { return {}; }
  std::string Describe() const override { return "test samples"; }

 private:
  std::vector<std::vector<TensorRef>> samples_;
};

Type F32(std::vector<std::int64_t> dims) {
  Type type;
  type.dtype = DType::kF32;
  type.shape.emplace();
  for (const std::int64_t d : dims) type.shape->push_back({d, ""});
  return type;
}

Type OfType(DType dtype) {
  Type type;
  type.dtype = dtype;
  return type;
}

Model NewModel() {
  Model model;
  model.ir_version = 8;
  model.SetOpsetVersion("", 17);
  model.graph = std::make_unique<Graph>();
  model.graph->name = "g";
  return model;
}

TensorRef Floats(Dims dims, std::vector<float> values) { return TensorRef::FromFloats(std::move(dims), values); }

// x [1,4,6,6] -> Conv(w) -> c -> Relu -> r -> Add x -> y (output); r is an output, too.
Model ConvModel() {
  Model model = NewModel();
  Graph& g = *model.graph;
  Value* x = g.AddInput("x", F32({1, 4, 6, 6}));
  std::vector<float> weights(4 * 4 * 9);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = std::sin(static_cast<float>(i));
  Value* w = g.AddConstant("w", TensorRef::FromFloats({4, 4, 3, 3}, weights));
  Node* conv = g.AddNode("Conv", "", {x, w}, {{"c", F32({1, 4, 6, 6})}});
  conv->SetAttribute("pads", std::vector<std::int64_t>{1, 1, 1, 1});
  Node* relu = g.AddNode("Relu", "", {conv->output()}, {{"r", F32({1, 4, 6, 6})}});
  Node* add = g.AddNode("Add", "", {relu->output(), x}, {{"y", F32({1, 4, 6, 6})}});
  g.AddOutput(add->output());
  g.AddOutput(relu->output());
  return model;
}

std::vector<std::vector<TensorRef>> ConvSamples(int n, int seed = 0) {
  std::vector<std::vector<TensorRef>> samples;
  for (int s = 0; s < n; ++s) {
    std::vector<float> x(4 * 36);
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = std::sin(static_cast<float>(i * 31 + static_cast<std::size_t>((s + seed) * 1009))) *
             static_cast<float>(1 + s);
    }
    samples.push_back({TensorRef::FromFloats({1, 4, 6, 6}, x)});
  }
  return samples;
}

const std::vector<ObserveSpec> kConvSpecs = {
    {"x", true, 1}, {"c", false, 1}, {"r", true, std::nullopt}, {"y", true, -3}};

std::vector<std::vector<TensorRef>> Slice(const std::vector<std::vector<TensorRef>>& v, std::size_t from,
                                          std::size_t to) {
  return {v.begin() + static_cast<std::ptrdiff_t>(from), v.begin() + static_cast<std::ptrdiff_t>(to)};
}

TEST(Calibrate, SeesWhatTheModelComputes) {
  const Model model = ConvModel();
  const auto samples = ConvSamples(3);
  const Samples data(samples);
  const Statistics s = Calibrate(model, data, 0, 3, kConvSpecs);
  ASSERT_EQ(s.tensors.size(), 4u);
  EXPECT_EQ(s.samples.size(), 3u);
  EXPECT_EQ(s.model_sha256, ModelFingerprint(model));

  MinMax x;
  std::vector<double> sums(4), squares(4);
  for (const auto& sample : samples) {
    const auto values = sample[0].ToFloats();
    x.Add(values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      sums[i / 36] += values[i];
      squares[i / 36] += static_cast<double>(values[i]) * values[i];
    }
  }
  const TensorStatistics& sx = *s.Find("x");
  EXPECT_EQ(sx.range, x);
  EXPECT_EQ(sx.histogram->range, x);
  ASSERT_EQ(sx.channels->sums.size(), 4u);
  for (std::size_t c = 0; c < 4; ++c) {
    EXPECT_NEAR(sx.ChannelMean(c), sums[c] / (3 * 36), 1e-12);
    EXPECT_NEAR(sx.ChannelMeanSquare(c), squares[c] / (3 * 36), 1e-12);
  }
  EXPECT_LT(s.Find("c")->range.min, 0);
  EXPECT_FALSE(s.Find("c")->histogram.has_value());
  EXPECT_EQ(s.Find("r")->range.min, 0);
  EXPECT_EQ(s.Find("r")->range.max, s.Find("c")->range.max);
  EXPECT_EQ(s.Find("r")->range.elements, 3u * 4 * 36);
  EXPECT_EQ(s.Find("y")->channels->axis, 1);
  EXPECT_EQ(s.Find("none"), nullptr);
}

TEST(Calibrate, DoesNotDependOnTheNumberOfThreads) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(24));
  CalibrateOptions one, many;
  one.threads = 1;
  many.threads = 7;
  const std::string expected = ToJson(Calibrate(model, data, 0, 24, kConvSpecs, one));
  for (int repeat = 0; repeat < 3; ++repeat) {
    EXPECT_EQ(ToJson(Calibrate(model, data, 0, 24, kConvSpecs, many)), expected);
  }
}

TEST(Calibrate, ShardsMergeToOneRunBitForBit) {
  const Model model = ConvModel();
  const auto samples = ConvSamples(11);
  const Samples all(samples);
  const Statistics whole = Calibrate(model, all, 0, 11, kConvSpecs);
  const Statistics a = Calibrate(model, all, 0, 4, kConvSpecs);
  const Statistics b = Calibrate(model, all, 4, 5, kConvSpecs);
  const Samples rest(Slice(samples, 9, 11));  // a data set of its own: only what the samples hold counts
  const Statistics c = Calibrate(model, rest, 0, 2, kConvSpecs);
  Statistics left = a;
  left.Merge(b);
  left.Merge(c);
  Statistics right = c;
  Statistics inner = b;
  inner.Merge(a);
  right.Merge(inner);
  EXPECT_EQ(left, whole);
  EXPECT_EQ(ToJson(left), ToJson(whole));
  EXPECT_EQ(ToJson(right), ToJson(whole));
  Statistics empty = Calibrate(model, all, 0, 0, kConvSpecs);
  empty.Merge(whole);
  EXPECT_EQ(ToJson(empty), ToJson(whole));
}

TEST(Calibrate, LeavesTheModelAndItsOutputsAlone) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(1));
  const std::string before = ModelFingerprint(model);
  Calibrate(model, data, 0, 1, kConvSpecs);
  EXPECT_EQ(ModelFingerprint(model), before);
  EXPECT_EQ(model.graph->node_count(), 3u);
}

// if (flag) y = v + 1 (v captured) else y = -v; v = 2 x, observed. The else branch's value e is observed, too.
Model IfModel() {
  Model model = NewModel();
  Graph& g = *model.graph;
  Value* x = g.AddInput("x", F32({2}));
  Value* flag = g.AddInput("flag", OfType(DType::kBool));
  flag->type.shape.emplace();
  Value* v = g.AddNode("Add", "", {x, x}, {{"v", F32({2})}})->output();
  auto then_graph = std::make_unique<Graph>(&g);
  then_graph->name = "then";
  Value* one = then_graph->AddConstant("one", Floats({}, {1}));
  then_graph->AddOutput(then_graph->AddNode("Add", "", {v, one}, {{"t", F32({2})}})->output());
  auto else_graph = std::make_unique<Graph>(&g);
  else_graph->name = "else";
  else_graph->AddOutput(else_graph->AddNode("Neg", "", {v}, {{"e", F32({2})}})->output());
  Node* node = g.AddNode("If", "", {flag}, {{"y", F32({2})}});
  node->SetAttribute("then_branch", std::move(then_graph));
  node->SetAttribute("else_branch", std::move(else_graph));
  g.AddOutput(node->output());
  return model;
}

TEST(Calibrate, ObservesCapturesAndSubgraphs) {
  const Model model = IfModel();
  const auto flag = [](bool value) {
    return TensorRef::FromBytes(DType::kBool, {}, {static_cast<std::byte>(value ? 1 : 0)});
  };
  const std::vector<ObserveSpec> specs = {{"v", false, {}}, {"e", true, {}}, {"y", false, {}}, {"t", false, {}}};
  const Samples taken({{Floats({2}, {1, 2}), flag(true)}});
  const Statistics a = Calibrate(model, taken, 0, 1, specs);
  EXPECT_EQ(a.Find("v")->range.max, 4);
  EXPECT_EQ(a.Find("y")->range.max, 5);
  EXPECT_EQ(a.Find("t")->range.max, 5);
  EXPECT_EQ(a.Find("e")->range.elements, 0u);  // never ran
  EXPECT_FALSE(a.Find("e")->range.HasRange());
  EXPECT_EQ(ChooseRange(*a.Find("e"), CalibrationMethod::kEntropy, 99, DType::kU8, false), (QuantRange{0, 0}));
  EXPECT_EQ(StatisticsFromJson(ToJson(a), "test"), a);
  const Samples both({{Floats({2}, {1, 2}), flag(true)}, {Floats({2}, {3, 4}), flag(false)}});
  const Statistics b = Calibrate(model, both, 0, 2, specs);
  EXPECT_EQ(b.Find("e")->range.min, -8);
  EXPECT_EQ(b.Find("e")->range.elements, 2u);
  EXPECT_EQ(b.Find("y")->range.min, -8);
}

template <typename Fn>
Error Thrown(const Fn& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ExitCode::kOk, "");
}

TEST(Calibrate, NamesSampleAndValueOfANan) {
  Model model = NewModel();
  Graph& g = *model.graph;
  Value* x = g.AddInput("x", F32({2}));
  Value* root = g.AddNode("Sqrt", "", {x}, {{"root", F32({2})}})->output();
  Value* twice = g.AddNode("Add", "", {root, root}, {{"twice", F32({2})}})->output();
  g.AddOutput(twice);
  const std::vector<ObserveSpec> specs = {{"twice", true, {}}, {"root", false, {}}};
  std::vector<std::vector<TensorRef>> samples(40, {Floats({2}, {1, 4})});
  samples[13] = {Floats({2}, {1, -1})};
  samples[14] = {Floats({2}, {-1, -1})};
  const Samples data(samples);
  for (int threads : {1, 4}) {
    CalibrateOptions options;
    options.threads = threads;
    const Error e = Thrown([&] { Calibrate(model, data, 0, 40, specs, options); });
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    EXPECT_STREQ(e.what(), "the model computes NaN (value 'root', 1 elements): sample s13");
  }
  samples[5] = {Floats({2}, {1, std::numeric_limits<float>::infinity()})};
  const Error inf = Thrown([&] { Calibrate(model, Samples(samples), 0, 40, specs); });
  EXPECT_STREQ(inf.what(), "the data hold Inf (input 'x'): sample s5");
  samples[4] = {Floats({2}, {std::nanf(""), 1})};
  const Error nan = Thrown([&] { Calibrate(model, Samples(samples), 0, 40, {}); });
  EXPECT_STREQ(nan.what(), "the data hold NaN (input 'x'): sample s4");
}

TEST(Calibrate, CountsInfinitiesOfMasksAndGoesOn) {
  Model model = NewModel();
  Graph& g = *model.graph;
  Value* x = g.AddInput("x", F32({1, 2}));
  Value* mask = g.AddConstant("mask", Floats({1, 2}, {0, -std::numeric_limits<float>::infinity()}));
  Value* scores = g.AddNode("Add", "", {x, mask}, {{"scores", F32({1, 2})}})->output();
  Node* softmax = g.AddNode("Softmax", "", {scores}, {{"p", F32({1, 2})}});
  g.AddOutput(softmax->output());
  const std::vector<ObserveSpec> specs = {{"scores", true, 1}, {"p", true, 1}};
  const Samples data({{Floats({1, 2}, {3, 5})}, {Floats({1, 2}, {-2, 5})}});
  const Statistics s = Calibrate(model, data, 0, 2, specs);
  const TensorStatistics& t = *s.Find("scores");
  EXPECT_EQ(t.range.infs, 2u);
  EXPECT_EQ(t.range.min, -2);
  EXPECT_EQ(t.range.max, 3);
  EXPECT_FALSE(t.channels->finite);
  EXPECT_TRUE(t.channels->sums.empty());
  EXPECT_TRUE(s.Find("p")->channels->finite);
  EXPECT_EQ(StatisticsFromJson(ToJson(s), "test"), s);
}

TEST(Calibrate, NamesTheSampleThatTheModelCannotRun) {
  const Model model = ConvModel();
  auto samples = ConvSamples(3);
  samples[2] = {Floats({1, 4, 6, 5}, std::vector<float>(120))};
  const Error e = Thrown([&] { Calibrate(model, Samples(samples), 0, 3, kConvSpecs); });
  EXPECT_EQ(e.code(), ExitCode::kBadInput);
  EXPECT_THAT(e.what(), HasSubstr("sample s2"));
}

TEST(Calibrate, RefusesWhatCannotBeObserved) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(1));
  const auto fail = [&](const Model& m, const DataSource& d, std::vector<ObserveSpec> specs) {
    return Thrown([&] { Calibrate(m, d, 0, 1, specs); });
  };
  const Error unknown = fail(model, data, {{"rr", false, {}}});
  EXPECT_EQ(unknown.code(), ExitCode::kUsage);
  EXPECT_THAT(unknown.what(), HasSubstr("'r'"));
  EXPECT_THAT(fail(model, data, {{"w", false, {}}}).what(), HasSubstr("a constant cannot be observed"));
  EXPECT_THAT(fail(model, data, {{"c", false, {}}, {"c", true, {}}}).what(), HasSubstr("twice"));
  EXPECT_THAT(fail(model, data, {{"c", false, 4}}).what(), HasSubstr("no channel axis 4"));
  EXPECT_EQ(Thrown([&] { Calibrate(model, data, 1, 1, kConvSpecs); }).code(), ExitCode::kInternal);
  const Model flags = IfModel();
  const Samples one({{Floats({2}, {1, 2}), TensorRef::FromBytes(DType::kBool, {}, {std::byte{1}})}});
  EXPECT_THAT(fail(flags, one, {{"flag", false, {}}}).what(), HasSubstr("not a float"));
}

TEST(Calibrate, ObservesHalfPrecision) {
  Model model = NewModel();
  Graph& g = *model.graph;
  Value* x = g.AddInput("x", F32({3}));
  Type half = F32({3});
  half.dtype = DType::kF16;
  Node* cast = g.AddNode("Cast", "", {x}, {{"h", half}});
  cast->SetAttribute("to", static_cast<std::int64_t>(DType::kF16));
  Node* back = g.AddNode("Cast", "", {cast->output()}, {{"y", F32({3})}});
  back->SetAttribute("to", static_cast<std::int64_t>(DType::kF32));
  g.AddOutput(back->output());
  const std::vector<ObserveSpec> specs = {{"h", true, 0}};
  const Statistics s = Calibrate(model, Samples({{Floats({3}, {-1.5f, 0, 4})}}), 0, 1, specs);
  EXPECT_EQ(s.Find("h")->range.min, -1.5f);
  EXPECT_EQ(s.Find("h")->range.max, 4);
  EXPECT_EQ(s.Find("h")->ChannelMean(2), 4);
}

TEST(Statistics, SaveAndLoadAreTheIdentity) {
  const Model model = ConvModel();
  const Statistics s = Calibrate(model, Samples(ConvSamples(5)), 0, 5, kConvSpecs);
  const std::filesystem::path path = std::filesystem::path(::testing::TempDir()) / "octavo_statistics_test.json";
  SaveStatistics(s, path);
  const Statistics loaded = LoadStatistics(path);
  EXPECT_EQ(loaded, s);
  EXPECT_EQ(ToJson(loaded), ToJson(s));
  std::filesystem::remove(path);
}

TEST(Statistics, FloatsAndNamesSurvive) {
  Statistics s;
  s.model_sha256 = std::string(64, 'a');
  s.method = "mse";
  const float values[] = {
      std::numeric_limits<float>::denorm_min(), 0.1f, 1e-38f, 16777217.0f, -3.4028235e38f, 3.4028235e38f};
  for (const float v : values) {
    TensorStatistics t;
    t.range.Add({&v, 1});
    s.tensors["tensor \"" + std::to_string(v) + "\"\n\\/\xc3\xa9"] = t;
  }
  EXPECT_EQ(StatisticsFromJson(ToJson(s), "test"), s);
}

TEST(Statistics, MergeRefusesWhatDoesNotBelongTogether) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(2));
  const Statistics a = Calibrate(model, data, 0, 1, kConvSpecs);
  const auto refused = [&](const Statistics& b) { return std::string(Thrown([&] { Statistics(a).Merge(b); }).what()); };
  Model other = ConvModel();
  other.graph->FindValue("w")->data = TensorRef::FromFloats({4, 4, 3, 3}, std::vector<float>(144, 1.0f));
  EXPECT_THAT(refused(Calibrate(other, data, 1, 1, kConvSpecs)), HasSubstr("different models"));
  CalibrateOptions mse;
  mse.method = "mse";
  EXPECT_THAT(refused(Calibrate(model, data, 1, 1, kConvSpecs, mse)), HasSubstr("minmax and mse"));
  const std::vector<ObserveSpec> fewer(kConvSpecs.begin(), kConvSpecs.end() - 1);
  EXPECT_THAT(refused(Calibrate(model, data, 1, 1, fewer)), HasSubstr("y"));
  std::vector<ObserveSpec> changed = kConvSpecs;
  changed[0].histogram = false;
  EXPECT_THAT(refused(Calibrate(model, data, 1, 1, changed)), HasSubstr("histogram"));
}

TEST(Statistics, SumsAlongDifferentAxesAreGivenUpInAnyOrder) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(2));
  std::vector<ObserveSpec> changed = kConvSpecs;
  const auto observed =
      std::find_if(changed.begin(), changed.end(), [](const ObserveSpec& s) { return s.channel_axis; });
  ASSERT_NE(observed, changed.end());
  observed->channel_axis = 2;
  const Statistics a = Calibrate(model, data, 0, 1, kConvSpecs), b = Calibrate(model, data, 1, 1, changed);
  Statistics ab = a, ba = b;
  ab.Merge(b);
  ba.Merge(a);
  EXPECT_EQ(ToJson(ab), ToJson(ba));
  EXPECT_FALSE(ab.tensors.at(observed->value).channels->finite);
}

TEST(Statistics, WarnsWhenASampleIsMergedTwice) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(2));
  Statistics a = Calibrate(model, data, 0, 2, kConvSpecs);
  TakeWarnings();
  a.Merge(Calibrate(model, data, 1, 1, kConvSpecs));
  EXPECT_THAT(TakeWarnings(), ElementsAre(HasSubstr("1 calibration sample(s)")));
  EXPECT_EQ(a.samples.size(), 3u);
}

TEST(Statistics, KeptSamplesAreThoseOfTheSmallestDigests) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(20));
  const Statistics whole = Calibrate(model, data, 0, 20, kConvSpecs);
  ASSERT_EQ(whole.kept.size(), kKeptSamples);
  for (std::size_t i = 0; i < kKeptSamples; ++i) EXPECT_EQ(whole.kept[i].sha256, whole.samples[i]);  // both are sorted
  Statistics back = Calibrate(model, data, 12, 8, kConvSpecs);
  back.Merge(Calibrate(model, data, 0, 12, kConvSpecs));
  EXPECT_EQ(ToJson(back), ToJson(whole));
  const Statistics read = StatisticsFromJson(ToJson(whole), "f.json");
  ASSERT_EQ(read.kept.size(), whole.kept.size());
  for (std::size_t i = 0; i < read.kept.size(); ++i) {
    EXPECT_TRUE(SameContent(read.kept[i].tensors.at(0), whole.kept[i].tensors.at(0)));
  }
}

TEST(Statistics, HostileFilesAreRefusedByKey) {
  const Model model = ConvModel();
  const Statistics s = Calibrate(model, Samples(ConvSamples(1)), 0, 1, kConvSpecs);
  const std::string good = ToJson(s);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const auto at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const auto refused = [](const std::string& text) {
    const Error e = Thrown([&] { StatisticsFromJson(text, "f.json"); });
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    EXPECT_THAT(e.what(), HasSubstr("f.json"));
    return std::string(e.what());
  };
  EXPECT_THAT(refused(with("\"elements\": ", "\"elements\": -")), HasSubstr("tensors.c.elements"));
  EXPECT_THAT(refused(with("\"nans\": 0", "\"nans\": 0.5")), HasSubstr("tensors.c.nans"));
  EXPECT_THAT(refused(with("\"min\": -", "\"min\": -1" + std::string(50, '0'))), HasSubstr("tensors.c.min"));
  EXPECT_THAT(refused(with("\"nans\": 0", "\"nans\": 99999999")), HasSubstr("tensors.c.elements"));
  EXPECT_THAT(refused(with("\"nans\": 0", "\"nines\": 0")), HasSubstr("tensors.c.nines"));
  EXPECT_THAT(refused(with("\"channel_axis\": 1", "\"channel_axis\": 1e3")), HasSubstr("channel_axis"));
  EXPECT_THAT(refused(with("\"sums\": \"", "\"sums\": \"0x1p999999999999 ")), HasSubstr("tensors.c.sums"));
  EXPECT_THAT(refused(with("\"counts\": \"", "\"counts\": \"9999999999999999z ")), HasSubstr("counts"));
  EXPECT_THAT(refused(with("\"counts\": \"", "\"counts\": \"1 ")), HasSubstr("counts"));
  EXPECT_THAT(refused(with("\"exponent\": ", "\"exponent\": 500")), HasSubstr("exponent"));
  EXPECT_THAT(refused(with("\"model_sha256\": \"", "\"model_sha256\": \"x")), HasSubstr("model_sha256"));
  EXPECT_THAT(refused(with("\"method\"", "\"samples\": [], \"method\"")), HasSubstr("twice"));
  EXPECT_THAT(refused(with("\"method\"", "\"methods\"")), HasSubstr("method"));
  EXPECT_THAT(refused(std::string(100000, '[')), HasSubstr("deep"));
  for (std::size_t cut : {std::size_t{0}, std::size_t{10}, good.size() / 2, good.size() - 3}) {
    refused(good.substr(0, cut));
  }
  EXPECT_THAT(refused(with("\"data\": \"", "\"data\": \"AAAA")), HasSubstr("do not fit"));
  EXPECT_THAT(refused(with("\"data\": \"", "\"data\": \"*")), HasSubstr("do not fit"));
  EXPECT_THAT(refused(with("\"dims\": [1", "\"dims\": [16777217")), HasSubstr("small dims"));
  EXPECT_THAT(refused(with("\"dims\": [1", "\"dims\": [4194304, 4194304, 1")), HasSubstr("too large"));
  EXPECT_THAT(refused(with("\"dims\": [1", "\"dims\": [1, 1")), HasSubstr("digest"));
  const Error version =
      Thrown([&] { StatisticsFromJson(with("\"schema_version\": 1", "\"schema_version\": 2"), "f"); });
  EXPECT_EQ(version.code(), ExitCode::kUnsupported);
}

TEST(Ranges, EveryMethodStaysInsideTheDataAndHoldsZero) {
  TensorStatistics t;
  t.histogram.emplace();
  std::vector<float> x(20000);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) + 1.25f;  // 0.25 .. 2.25
  x[7] = 40;
  t.histogram->Add(x);
  t.range = t.histogram->range;
  for (const auto method : {CalibrationMethod::kMinMax, CalibrationMethod::kPercentile, CalibrationMethod::kEntropy,
                            CalibrationMethod::kMse}) {
    for (const bool symmetric : {false, true}) {
      const QuantRange r = ChooseRange(t, method, 99.9, DType::kU8, symmetric);
      EXPECT_LE(r.min, 0);
      EXPECT_GE(r.max, 1);
      EXPECT_LE(r.max, 40);
      EXPECT_EQ(r.min, symmetric ? -r.max : 0.0f);
      EXPECT_EQ(NeedsHistogram(method), method != CalibrationMethod::kMinMax);
    }
  }
  EXPECT_EQ(ChooseRange(t, CalibrationMethod::kMinMax, 0, DType::kU8, false), (QuantRange{0, 40}));
  EXPECT_LT(ChooseRange(t, CalibrationMethod::kPercentile, 99.9, DType::kU8, false).max, 3);
  EXPECT_THROW(ChooseRange(t, CalibrationMethod::kPercentile, 101, DType::kU8, false), Error);
  TensorStatistics plain;
  plain.range = t.range;
  EXPECT_EQ(ChooseRange(plain, CalibrationMethod::kMinMax, 0, DType::kU8, false), (QuantRange{0, 40}));
  EXPECT_THROW(ChooseRange(plain, CalibrationMethod::kMse, 0, DType::kU8, false), Error);
}

TEST(Calibration, RunsASampleWithTensorsRounded) {
  const Model model = ConvModel();
  KeptSample sample{"digest", {}};
  std::vector<float> x(4 * 6 * 6);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::cos(static_cast<float>(3 * i));
  sample.tensors = {Floats({1, 4, 6, 6}, x)};
  const std::vector<std::optional<Rounding>> none(1), some = {Rounding{{0.25f, 3}, DType::kU8}};
  const Node* add = model.graph->last();
  for (const bool all : {true, false}) {
    ObserveSpec spec;
    spec.value = "r";
    spec.rounds = true;
    if (!all) spec.round_users = {add};
    const Calibration calibration(model, {spec});
    const auto exact = calibration.RunRounded(sample, none), rounded = calibration.RunRounded(sample, some);
    ASSERT_EQ(exact.size(), 2u);
    ASSERT_EQ(rounded.size(), 2u);
    const std::size_t r = model.graph->outputs()[0]->name() == "r" ? 0 : 1;
    std::size_t differ = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float code = DequantizeOne(QuantizeOne(exact[r][i], 0.25f, 3, DType::kU8), 0.25f, 3);
      EXPECT_EQ(rounded[r][i], all ? code : exact[r][i]);  // the outside reads the rounded value only if all users do
      EXPECT_EQ(rounded[1 - r][i], code + x[i]);
      differ += code != exact[r][i] ? 1 : 0;
    }
    EXPECT_GT(differ, x.size() / 4);
    EXPECT_EQ(std::memcmp(sample.tensors[0].bytes.data(), x.data(), x.size() * sizeof(float)), 0);
  }
}

// What Gather remembers of the samples that are kept is what a run would give, whatever the number of threads.
TEST(Calibration, ReferencesAreThoseOfARun) {
  const Model model = ConvModel();
  const Samples data(ConvSamples(20));
  for (const int threads : {1, 3}) {
    CalibrateOptions options;
    options.threads = threads;
    Calibration calibration(model, kConvSpecs, options);
    const Statistics statistics = calibration.Gather(data, 0, 20);
    ASSERT_EQ(statistics.kept.size(), kKeptSamples);
    for (const KeptSample& sample : statistics.kept) {
      const auto run = calibration.RunRounded(sample, {});
      ASSERT_EQ(run.size(), 2u);
      EXPECT_EQ(calibration.Reference(sample), run);
      EXPECT_EQ(calibration.Reference(sample), run) << "it was handed out: now it is run";
    }
  }
}

TEST(Calibration, RoundsAGraphInputWithoutTouchingTheSample) {
  const Model model = ConvModel();
  std::vector<float> x(4 * 6 * 6, 0.1f);
  const KeptSample sample{"digest", {Floats({1, 4, 6, 6}, x)}};
  ObserveSpec spec;
  spec.value = "x";
  spec.rounds = true;
  const Calibration calibration(model, {spec});
  const std::vector<std::optional<Rounding>> some = {Rounding{{0.25f, 0}, DType::kU8}};
  const auto rounded = calibration.RunRounded(sample, some);
  for (const float v : rounded[model.graph->outputs()[0]->name() == "r" ? 1 : 0]) EXPECT_EQ(v, 0.0f);
  for (const float v : sample.tensors[0].ToFloats()) EXPECT_EQ(v, 0.1f);
}

TEST(Kept, LargeSamplesAreFewerAndMergeExactly) {
  const auto sample = [](std::size_t mib) {
    const auto n = static_cast<std::int64_t>(mib << 20);
    return std::vector<TensorRef>{TensorRef::FromBytes(DType::kU8, {n}, std::vector<std::byte>(mib << 20))};
  };
  Statistics whole, first, second;
  for (int i = 0; i < 12; ++i) {
    const std::string digest(1, static_cast<char>('a' + (i * 5) % 12));
    const std::vector<TensorRef> tensors = sample(i % 2 == 0 ? 12 : 1);
    whole.Keep(digest, tensors);
    (i < 6 ? first : second).Keep(digest, tensors);
  }
  whole.Keep("0", sample(33));
  std::size_t large = 0;
  for (const KeptSample& k : whole.kept) large += k.tensors[0].bytes.size() > (std::size_t{4} << 20) ? 1 : 0;
  EXPECT_EQ(large, 2u);
  EXPECT_EQ(whole.kept.size(), 8u);  // and the six small ones
  first.Merge(second);
  EXPECT_EQ(first.kept, whole.kept);
}

}  // namespace
}  // namespace octavo
