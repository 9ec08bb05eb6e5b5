#include "octavo/build/compile_stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <vector>

#include "octavo/base/folder_test_util.h"
#include "octavo/base/log.h"
#include "octavo/emit/onnx.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// A Conv with a bias that is large beside its products; `coded`: between 16-bit codes, as nothing here would write it.
Model LargeBias(bool coded) {
  Model m;
  m.opsets = {{"", 21}};
  m.graph = std::make_unique<Graph>();
  Graph& g = *m.graph;
  const auto type = [](const Dims& dims) {
    Type t;
    t.dtype = DType::kF32;
    t.shape.emplace();
    for (const std::int64_t d : dims) t.shape->push_back({d, {}});
    return t;
  };
  std::vector<float> weights(8 * 3);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = 0.02f * std::sin(static_cast<float>(i));
  Value* x = g.AddInput("x", type({1, 3, 8, 8}));
  Value* w = g.AddConstant("w", TensorRef::FromFloats({8, 3, 1, 1}, weights));
  Value* b = g.AddConstant("b", TensorRef::FromFloats({8}, std::vector<float>(8, 6.0f)));
  const auto codes = [&](Value* v, const Dims& dims, const std::string& name, float scale, DType storage) {
    const std::int64_t zero = storage == DType::kU16 ? 32768 : 0;
    Value* s = g.AddConstant(name + "_s", TensorRef::Scalar(scale));
    Value* z = g.AddConstant(name + "_z", TensorRef::FromInts(storage, {}, {&zero, 1}));
    Type t = type(dims);
    t.dtype = storage;
    Value* q = g.AddNode("QuantizeLinear", "", {v, s, z}, {{name + "_q", t}})->output();
    return g.AddNode("DequantizeLinear", "", {q, s, z}, {{name + "_d", type(dims)}})->output();
  };
  if (coded) {
    x = codes(x, {1, 3, 8, 8}, "x", 8.0f / 65536, DType::kU16);
    w = codes(w, {8, 3, 1, 1}, "w", 0.02f / 32767, DType::kS16);
  }
  Value* y = g.AddNode("Conv", "", {x, w, b}, {{"y", type({1, 8, 8, 8})}})->output();
  if (coded) {
    g.Rename(y, "y_float");
    y = codes(y, {1, 8, 8, 8}, "y", 16.0f / 65536, DType::kU16);
    g.Rename(y, "y");
  }
  g.AddOutput(y);
  return m;
}

TEST(CompileStage, ADefaultSessionThatComputesSomethingElseIsWarnedOf) {
  namespace fs = std::filesystem;
  const TestFolder folder;
  const fs::path& dir = folder.path();
  Model source = LargeBias(false), coded = LargeBias(true);
  const auto data = SyntheticData(InputSpecs(*source.graph), Distribution::kUniform, 1, 8);
  const fs::path a = WriteOnnx(source, dir / "a.onnx").model, b = WriteOnnx(coded, dir / "b.onnx").model;
  CompareOptions options;
  options.threads = 1;
  Manifest manifest;
  manifest.quantize.nodes_quantized = 1;
  manifest.quantize.effective_weights = "u8";
  manifest.quantize.effective_activations = "u8";
  TakeWarnings();
  ValidateArtifact(a, b, {}, *data, options, manifest);
  EXPECT_THAT(TakeWarnings(), ElementsAre());  // 8 bits are not looked at twice
  manifest.quantize.effective_activations = "u16";
  ValidateArtifact(a, b, {}, *data, options, manifest);
  EXPECT_THAT(TakeWarnings(), ElementsAre(HasSubstr("graph optimizations change what the model computes")));
}

TEST(CompileStage, TheManifestSaysWhyAModelIsInParts) {
  CompileReport report;
  report.compiled = true;
  Manifest manifest;
  Record(report, manifest);
  EXPECT_THAT(ToJson(manifest), Not(HasSubstr("in_parts")));
  report.in_parts = "out of memory";
  Record(report, manifest);
  EXPECT_THAT(ToJson(manifest), HasSubstr("\"in_parts\": \"out of memory\""));
}

}  // namespace
}  // namespace octavo
