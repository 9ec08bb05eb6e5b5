#include "octavo/ops/op_table.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace octavo {
namespace {

Node* AddConv(Graph& g, const char* op, Dims x, Dims w, Dims y) {
  const auto type = [](const Dims& dims) {
    Type t;
    t.dtype = DType::kF32;
    t.shape.emplace();
    for (const std::int64_t d : dims) t.shape->push_back({d, ""});
    return t;
  };
  Value* xv = g.AddInput("x", type(x));
  Value* wv = g.AddInput("w", type(w));
  return g.AddNode(op, "", {xv, wv}, {{"y", type(y)}});
}

TEST(OpTable, RowsAreUniqueAndConsistent) {
  std::set<std::string> seen;
  for (const OpInfo& info : AllOps()) {
    EXPECT_TRUE(seen.insert(std::string(info.domain) + ":" + std::string(info.op)).second) << info.op;
    if (info.weight_input >= 0) {
      EXPECT_TRUE(info.category == OpCategory::kWeighted || info.category == OpCategory::kMatMul) << info.op;
    }
    // Codes can only be moved unchanged by an operator that changes no value.
    if (info.flow == ParamFlow::kSameAsInput) {
      EXPECT_TRUE(info.value_preserving) << info.op;
    }
  }
}

TEST(OpTable, UnknownOperatorsPassThrough) {
  EXPECT_EQ(FindOp("Frobnicate", "").category, OpCategory::kOther);
  EXPECT_FALSE(KnownOp("Conv", "some.vendor"));
  EXPECT_TRUE(KnownOp("Conv", "ai.onnx"));
  EXPECT_EQ(FindOp("Conv", "ai.onnx").category, OpCategory::kWeighted);
}

TEST(OpTable, AxisRules) {
  Graph g;
  Node* conv = AddConv(g, "Conv", {1, 3, 8, 8}, {4, 3, 3, 3}, {1, 4, 6, 6});
  const OpInfo& info = FindOp(*conv);
  EXPECT_EQ(ResolveAxis(info.channel_axis, *conv, 4), 0);
  EXPECT_EQ(ResolveAxis(info.contracted_axis, *conv, 4), 1);
  EXPECT_EQ(ResolveAxis(FindOp("ConvTranspose", "").channel_axis, *conv, 4), 1);
  EXPECT_EQ(ResolveAxis(FindOp("MatMul", "").channel_axis, *conv, 3), 2);
  EXPECT_EQ(ResolveAxis(FindOp("MatMul", "").contracted_axis, *conv, 3), 1);
  EXPECT_EQ(ResolveAxis(FindOp("MatMul", "").channel_axis, *conv, 1), std::nullopt);

  Graph h;
  Node* gemm = AddConv(h, "Gemm", {1, 16}, {5, 16}, {1, 5});
  EXPECT_EQ(ResolveAxis(FindOp(*gemm).channel_axis, *gemm, 2), 1);
  gemm->SetAttribute("transB", std::int64_t{1});
  EXPECT_EQ(ResolveAxis(FindOp(*gemm).channel_axis, *gemm, 2), 0);
  EXPECT_EQ(ResolveAxis(FindOp(*gemm).contracted_axis, *gemm, 2), 1);
}

TEST(OpTable, MultiplyAccumulates) {
  Graph g;
  EXPECT_EQ(MultiplyAccumulates(*AddConv(g, "Conv", {1, 3, 8, 8}, {4, 3, 3, 3}, {1, 4, 6, 6})), 4u * 36 * 27);
  Graph h;
  EXPECT_EQ(MultiplyAccumulates(*AddConv(h, "ConvTranspose", {1, 3, 4, 4}, {3, 2, 2, 2}, {1, 2, 8, 8})), 48u * 8);
  Graph m;
  EXPECT_EQ(MultiplyAccumulates(*AddConv(m, "MatMul", {2, 5, 7}, {7, 3}, {2, 5, 3})), 30u * 7);
  Graph a;
  EXPECT_EQ(MultiplyAccumulates(*AddConv(a, "Add", {2}, {2}, {2})), 0u);
}

TEST(OpTable, DataInputs) {
  EXPECT_FALSE(IsDataInput(FindOp("Where", ""), 0));
  EXPECT_TRUE(IsDataInput(FindOp("Where", ""), 2));
  EXPECT_FALSE(IsDataInput(FindOp("Gather", ""), 1));
  EXPECT_TRUE(IsDataInput(FindOp("Concat", ""), 7));
}

}  // namespace
}  // namespace octavo
