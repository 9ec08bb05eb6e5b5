#include "octavo/emit/lower_ggml.h"

#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "octavo/base/error.h"
#include "octavo/emit/onnx.h"
#include "octavo/ir/verify.h"
#include "octavo/numerics/ggml.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A model that multiplies by a weight of 512 rows along `axis` in blocks of `format`.
Model WithWeight(const std::string& format, const Dims& dims, std::int64_t axis) {
  const GgmlFormat& f = *FindGgmlFormat(format);
  Model model;
  model.graph = std::make_unique<Graph>();
  model.SetOpsetVersion("", 17);
  Type x{.dtype = DType::kF32, .shape = {{{4, ""}, {512, ""}}}, .quant = {}, .opaque = {}};
  Value* input = model.graph->AddInput("x", x);
  Type type{.dtype = DType::kF32, .shape = std::vector<Dim>(), .quant = QuantType{}, .opaque = {}};
  for (const std::int64_t d : dims) type.shape->push_back({d, {}});
  type.quant->kind = QuantType::Kind::kGgml;
  type.quant->ggml = {format, axis};
  std::vector<std::byte> bytes(ElementCount(dims) / f.block * f.block_bytes);
  const auto size = static_cast<std::int64_t>(bytes.size());
  Value* weight = model.graph->AddConstant("w", TensorRef::FromBytes(DType::kU8, {size}, std::move(bytes)), type);
  Type y{.dtype = DType::kF32, .shape = {{{4, ""}, {dims[1], ""}}}, .quant = {}, .opaque = {}};
  Node* node = model.graph->AddNode("MatMul", "", {input, weight}, {{"y", y}});
  model.graph->AddOutput(node->output());
  return model;
}

std::vector<std::string> Ops(const Model& model) {
  std::vector<std::string> ops;
  for (const Node* node = model.graph->first(); node; node = node->next()) ops.push_back(node->op());
  return ops;
}

TEST(LowerGgml, EightBitsAreABlockedDequantizeLinear) {
  Model model = WithWeight("q8_0", {512, 3}, 0);
  RaiseOpsetForQuantization(model);
  EXPECT_EQ(model.OpsetVersion(), 21);
  LowerToQdq(model);
  EXPECT_THAT(Ops(model), ElementsAre("Cast", "DequantizeLinear", "Reshape", "MatMul"));
  const Node* dequantize = model.graph->nodes()[1];
  EXPECT_EQ(dequantize->IntAttribute("block_size", 0), 32);
  EXPECT_EQ(dequantize->input(0)->data->dims, (Dims{1, 16, 32, 3}));
  EXPECT_EQ(model.graph->first()->input(0)->data->dtype, DType::kF16);
  EXPECT_EQ(model.graph->last()->input(1)->name(), "w_dequantized");
  VerifyOrThrow(model, "LowerToQdq");
}

TEST(LowerGgml, EveryFormatBecomesPlainOnnx) {
  std::set<std::string> seen;
  for (const GgmlFormat& format : GgmlFormats()) {
    if (!format.is_block()) continue;
    for (const std::int64_t axis : {0, 1}) {
      SCOPED_TRACE(format.name);
      Model model = WithWeight(std::string(format.name), axis == 0 ? Dims{512, 3} : Dims{512, 256}, axis);
      LowerToQdq(model);
      VerifyOrThrow(model, "LowerToQdq");
      for (const Value* constant : model.graph->constants()) EXPECT_FALSE(constant->type.quant) << constant->name();
      for (const Node* node = model.graph->first(); node; node = node->next()) {
        EXPECT_EQ(node->domain(), "");
        seen.insert(node->op());
      }
    }
  }
  EXPECT_THAT(seen, ElementsAre("Add", "BitShift", "BitwiseAnd", "BitwiseOr", "Cast", "DequantizeLinear", "Gather",
                                "MatMul", "Mul", "Reshape", "Sub"));
}

TEST(LowerGgml, ComputedValuesInBlocksAndWrongBytesAreRefused) {
  Model model = WithWeight("q8_0", {512, 3}, 0);
  Value* y = model.graph->last()->output();
  y->type.quant = QuantType{};
  y->type.quant->kind = QuantType::Kind::kGgml;
  y->type.quant->ggml = {"q8_0", 0};
  try {
    LowerToQdq(model);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("only weights are stored in blocks"));
  }
  model = WithWeight("q8_0", {512, 3}, 0);
  model.graph->constants()[0]->type.shape->at(1).value = 4;
  try {
    LowerToQdq(model);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadInput);
    EXPECT_THAT(error.what(), HasSubstr("do not fill the tensor"));
  }
}

}  // namespace
}  // namespace octavo
