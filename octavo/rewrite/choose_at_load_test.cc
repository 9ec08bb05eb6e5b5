// Products whose kernel the loading machine chooses: both branches, the way back, and what is left alone.
#include <gtest/gtest.h>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

Model Convolution(int k) {
  std::string codes;
  for (int i = 0; i < k * 64; ++i) codes += (i ? "," : "") + std::to_string((i * 37 + i / 256) % 256);
  Model model = Parse(
      "opset \"\" = 21\ngraph @g(%x: u8[1,64,9,7]) -> (%y) {\n%xs = constant f32[] 0.02\n%xz = constant u8[] "
      "100\n%w = constant u8[" +
      std::to_string(k / 4) + ",64,2,2] [" + codes +
      "]\n%ws = constant f32[] 0.01\n%wz = constant u8[] 117\n%ys = constant f32[] 0.9\n%yz = constant u8[] "
      "77\n%y: u8[1," +
      std::to_string(k / 4) +
      ",4,4] = QLinearConv(%x, %xs, %xz, %w, %ws, %wz, %ys, %yz) "
      "{strides=[2,2], pads=[0,1,0,0]}\n}");
  model.ir_version = 10;
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

// %k: the rows of the weight. All weight codes occur.
Model Product(const std::string& op, int k) {
  if (op == "QLinearConv") return Convolution(k);
  const std::string rows = std::to_string(k),
                    head = "opset \"\" = 21\nopset \"com.microsoft\" = 1\ngraph @g(%x: u8[3," + rows +
                           "]) -> (%y) {\n%xs = constant f32[] "
                           "0.02\n%xz = constant u8[] 100\n%w = constant u8[" +
                           rows + ",64] [";
  std::string codes;
  for (int i = 0; i < k * 64; ++i) codes += (i ? "," : "") + std::to_string((i * 37 + i / 256) % 256);
  const std::string params =
      "]\n%ws = constant f32[] 0.01\n%wz = constant u8[] 117\n%ys = constant f32[] 0.9\n%yz = "
      "constant u8[] 77\n%y: ";
  const std::string product =
      op == "QLinearMatMul" ? "u8[3,64] = QLinearMatMul(%x, %xs, %xz, %w, %ws, %wz, %ys, %yz)"
      : op == "QGemm"       ? "u8[3,64] = com.microsoft::QGemm(%x, %xs, %xz, %w, %ws, %wz, _, %ys, %yz) {alpha=1.0}"
                            : "f32[3,64] = com.microsoft::MatMulIntegerToFloat(%x, %w, %xs, %ws, %xz, %wz)";
  Model model = Parse(head + codes + params + product + "\n}");
  model.ir_version = 10;
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

QuantizedRewriteResult Choose(Model& model, std::uint64_t limit = 100) {
  QuantizedRewriteOptions options;
  options.rules = {"choose-at-load"};
  options.limit = limit;
  QuantizedRewriteResult result;
  result.rules.rules.push_back({"choose-at-load", RuleClass::kExact, 0, 0});
  RewriteLowered(model, *FindDevice("cpu"), options, result);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return result;
}

class ChooseAtLoad : public ::testing::TestWithParam<const char*> {};

TEST_P(ChooseAtLoad, BothBranchesAreEqual) {
  Model model = Product(GetParam(), 256);
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 5);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  EXPECT_EQ(Choose(model).rules.rules[0].applied, 1);
  EXPECT_TRUE(testing::SameBits(before, testing::RunModel(model, inputs)));
  Model saturating = Clone(model);
  for (Value* v : saturating.graph->constants()) {
    if (v->data->dtype != DType::kS32 || v->data->dims != Dims{16, 16}) continue;
    const std::vector<std::int64_t> sums(256, 16 * 127);  // as on a machine where every pair saturates
    v->data = TensorRef::FromInts(DType::kS32, {16, 16}, sums);
  }
  EXPECT_TRUE(testing::SameBits(before, testing::RunModel(saturating, inputs)));
  EXPECT_EQ(FoldChoices(*model.graph), 1);
  model.graph->EraseDead();
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_TRUE(testing::SameBits(before, testing::RunModel(model, inputs)));
  EXPECT_TRUE(model.graph->first()->Is(GetParam(), model.graph->first()->domain())) << Print(model);
  EXPECT_EQ(model.graph->first(), model.graph->last());
}

INSTANTIATE_TEST_SUITE_P(Products, ChooseAtLoad,
                         ::testing::Values("QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "QLinearConv"));

TEST(ChooseAtLoadRefuses, SmallProductsAndOtherDevices) {
  Model small = Product("QLinearMatMul", 64);
  const QuantizedRewriteResult result = Choose(small);
  EXPECT_EQ(result.rules.rules[0].applied, 0);
  ASSERT_EQ(result.rules.trace.size(), 1u);
  EXPECT_NE(result.rules.trace[0].reason.find("4096 weights"), std::string::npos);
  Model none = Product("QLinearMatMul", 256);
  EXPECT_EQ(Choose(none, 0).rules.rules[0].applied, 0);  // the limit of a bisection
}

// A branch that computes something else is no choice of kernels: the If stays.
TEST(ChooseAtLoadRefuses, BranchesThatDiffer) {
  for (const int change : {0, 1, 2}) {
    Model model = Product("QLinearMatMul", 256);
    Choose(model);
    Node* choice = model.graph->last();
    ASSERT_TRUE(choice->Is("If"));
    Graph* right = choice->subgraphs()[1];
    if (change == 0) right->last()->SetInput(1, right->last()->input(4));  // another scale
    if (change == 1) {
      const std::int64_t shift = 127;
      right->first()->next()->SetInput(1, right->AddConstant("k", TensorRef::FromInts(DType::kS32, {}, {&shift, 1})));
    }
    if (change == 2) {
      const std::int64_t zero = 118;
      right->last()->SetInput(5, model.graph->AddConstant("z", TensorRef::FromInts(DType::kU8, {}, {&zero, 1})));
    }
    EXPECT_EQ(FoldChoices(*model.graph), 0) << change;
  }
}

}  // namespace
}  // namespace octavo
