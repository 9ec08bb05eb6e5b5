#include "octavo/emit/onnx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/import/onnx.h"
#include "octavo/import/onnx_bytes.h"
#include "octavo/ir/compare.h"
#include "octavo/ir/text.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

class WriteOnnxTest : public FolderTest {};

// Everything the IR holds: subgraphs, captures, absent inputs, all kinds of attributes, strings, sub-byte constants.
Model Rich() {
  Model model = Parse(R"(ir_version = 10
opset "" = 21
opset "my.domain" = 3
metadata "key" = "value"
graph @main(%c: bool[], %x: f32["batch",4], %s: f32[?]) -> (%y, %w4, %x) {
  %w = constant f32[4] [1.5, -2.0, 0.0, 3.0]
  %w4 = constant s4[3] [1, -8, 7]
  %i = constant s64[] 5
  %z: f32["batch",4] = Add(%x, %w) @add
  %k: f32[*] = my.domain::Custom(%z, _, %i) {a=1, b=2.5, s="text", l=[1, -2], f=[0.5, 1.5], names=["p", "q"]}
  %y: f32[*] = If(%c) {then_branch=graph @t() -> (%t) {
    %t: f32[*] = Relu(%k)
  }, else_branch=graph @e() -> (%e) {
    %one = constant f32[] 1.0
    %e: f32[*] = Mul(%k, %one)
  }}
}
)");
  TensorRef text;
  text.dtype = DType::kString;
  text.dims = {2};
  text.strings = std::make_shared<const std::vector<std::string>>(std::vector<std::string>{"a", "b"});
  model.graph->AddConstant("text", text);
  model.graph->AddConstant("big", TensorRef::FromFloats({600}, std::vector<float>(600, 0.25f)));
  model.graph->AddConstant("big2", TensorRef::FromFloats({2000}, std::vector<float>(2000, 0.75f)));
  return model;
}

TEST_F(WriteOnnxTest, WhatIsWrittenIsReadAgain) {
  const Model model = Rich();
  const OnnxFiles files = WriteOnnx(model, folder_ / "m.onnx");
  EXPECT_TRUE(files.data.empty());
  EXPECT_EQ(Difference(model, ReadOnnx(files.model)), "");
  WriteOnnx(Rich(), folder_ / "again.onnx");
  EXPECT_EQ(Slurp(files.model), Slurp(folder_ / "again.onnx"));
}

// ONNX Runtime refuses a graph with two nodes of one name.
TEST_F(WriteOnnxTest, EveryNodeHasANameOfItsOwn) {
  const Model model = Parse(R"(opset "" = 17
graph @g(%x: f32[4]) -> (%y) {
  %a: f32[4] = Relu(%x) @n
  %b: f32[4] = Relu(%a) @n
  %c: f32[4] = Relu(%b) @n_2
  %d: f32[4] = Relu(%c)
  %e: f32[4] = Relu(%d)
  %y: f32[4] = Relu(%e) @n
})");
  const Model read = ReadOnnx(WriteOnnx(model, folder_ / "m.onnx").model);
  std::vector<std::string> names;
  for (const Node* node : read.graph->nodes()) names.push_back(node->name);
  EXPECT_EQ(names, (std::vector<std::string>{"n", "n_3", "n_2", "", "", "n_4"}));
}

TEST_F(WriteOnnxTest, ExternalData) {
  const Model model = Rich();
  const OnnxFiles files = WriteOnnx(model, folder_ / "m.onnx", {.force_external_data = true});
  ASSERT_EQ(files.data, std::vector<fs::path>{folder_ / "m.onnx.data"});
  // big (2,400 bytes) at 0; big2 (8,000 bytes) starts on a page.
  EXPECT_EQ(fs::file_size(files.data[0]), 4096u + 8000u);
  EXPECT_EQ(Difference(model, ReadOnnx(files.model)), "");
}

TEST_F(WriteOnnxTest, ReplacesTheFileItWasReadFrom) {
  WriteOnnx(Rich(), folder_ / "m.onnx");
  const Model model = ReadOnnx(folder_ / "m.onnx");
  WriteOnnx(model, folder_ / "m.onnx");
  EXPECT_EQ(Difference(Rich(), ReadOnnx(folder_ / "m.onnx")), "");
}

TEST_F(WriteOnnxTest, MissingDomainsAreImported) {
  Model model = Parse(
      "ir_version = 8\nopset \"\" = 17\ngraph @g(%x: f32[2]) -> (%y) {\n  %y: f32[2] = com.microsoft::Gelu(%x)\n}\n");
  WriteOnnx(model, folder_ / "m.onnx");
  EXPECT_EQ(ReadOnnx(folder_ / "m.onnx").OpsetVersion("com.microsoft"), 1);
}

TEST_F(WriteOnnxTest, QuantizedTypesMustBeLoweredFirst) {
  const Model model = Parse(R"(ir_version = 8
opset "" = 17
graph @g(%x: f32[2]) -> (%y) {
  %q: f32[2] # u8(scale=0.5) = Quantize(%x)
  %y: f32[2] = Dequantize(%q)
}
)");
  EXPECT_THROW(WriteOnnx(model, folder_ / "m.onnx"), Error);
  EXPECT_FALSE(fs::exists(folder_ / "m.onnx"));
}

TEST(SerializeSkeleton, LargeConstantsAreLeftOut) {
  const Model model = Rich();
  const OnnxSkeleton skeleton = SerializeSkeleton(model);
  ASSERT_EQ(skeleton.externals.size(), 2u);
  EXPECT_EQ(skeleton.externals[0].first, "big");
  EXPECT_EQ(skeleton.externals[0].second.bytes.data(), model.graph->FindValue("big")->data->bytes.data());
  EXPECT_LT(skeleton.bytes.size(), 2400u);
  const auto owner = std::make_shared<std::string>(skeleton.bytes);
  EXPECT_THROW(ReadOnnxBytes(std::as_bytes(std::span(*owner)), owner, "skeleton"), Error);  // its data are elsewhere
}

}  // namespace
}  // namespace octavo
