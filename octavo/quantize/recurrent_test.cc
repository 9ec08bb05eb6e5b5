#include "octavo/quantize/recurrent.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "octavo/ir/verify.h"
#include "octavo/numerics/affine.h"

namespace octavo {
namespace {

constexpr double kNoise = 1.6e-4;

std::vector<float> Normal(std::size_t n, unsigned seed) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal(0, 0.1f);
  std::vector<float> values(n);
  for (float& v : values) v = normal(gen);
  return values;
}

// %y, , = op(%x, %w, %r) with `directions` directions, 32 units and 40 columns.
Model Recurrent(const std::string& op, std::int64_t gates, std::int64_t directions, std::vector<float> w = {}) {
  Model model;
  model.SetOpsetVersion("", 17);
  model.graph = std::make_unique<Graph>();
  Graph& g = *model.graph;
  const std::int64_t rows = gates * 32;
  Type x_type, y_type;
  x_type.dtype = y_type.dtype = DType::kF32;
  x_type.shape = {{5, {}}, {1, {}}, {40, {}}};
  Value* x = g.AddInput("x", x_type);
  if (w.empty()) w = Normal(static_cast<std::size_t>(directions * rows * 40), 1);
  Value* wv = g.AddConstant("w", TensorRef::FromFloats({directions, rows, 40}, w));
  Value* rv = g.AddConstant(
      "r", TensorRef::FromFloats({directions, rows, 32}, Normal(static_cast<std::size_t>(directions * rows * 32), 2)));
  Node* node = g.AddNode(op, "", {x, wv, rv}, {{"y", y_type}});
  node->name = "cell";
  node->SetAttribute("hidden_size", std::int64_t{32});
  node->SetAttribute("direction", std::string(directions == 2 ? "bidirectional" : "forward"));
  g.AddOutput(node->output());
  return model;
}

const Node* Find(const Model& model, const char* op) {
  for (const Node* node = model.graph->first(); node != nullptr; node = node->next()) {
    if (node->Is(op)) return node;
  }
  return nullptr;
}

TEST(StoreRecurrentWeights, EachRowOfEachDirectionHasItsScale) {
  for (const auto& [op, gates] : {std::pair("LSTM", 4), std::pair("GRU", 3), std::pair("RNN", 1)}) {
    for (const DType storage : {DType::kS8, DType::kS16}) {
      const bool small = gates == 1;  // 32 * 40 * 2 numbers: too few
      Model model = Recurrent(op, gates, 2);
      const std::vector<float> w = model.graph->FindValue("w")->data->ToFloats();
      const std::vector<const Node*> nodes = StoreRecurrentWeights(model, {}, storage, kNoise, 2);
      Verify(model);
      if (small) {
        EXPECT_TRUE(nodes.empty());
        continue;
      }
      const Node* cell = Find(model, op);
      EXPECT_EQ(nodes, std::vector<const Node*>{cell});
      const Node* mul = cell->input(1)->producer();
      ASSERT_TRUE(mul != nullptr && mul->Is("Mul"));
      ASSERT_TRUE(mul->input(0)->producer()->Is("Cast"));
      ASSERT_TRUE(cell->input(2)->producer()->Is("Mul"));
      const Value* codes = mul->input(0)->producer()->input(0);
      EXPECT_EQ(codes->data->dtype, storage);
      const Dims dims{2, gates * 32, 40};
      EXPECT_EQ(codes->data->dims, dims);
      EXPECT_EQ(mul->input(1)->data->dims, (Dims{2, gates * 32, 1}));
      const std::vector<std::int64_t> ints = codes->data->ToInts();
      const std::vector<float> scales = mul->input(1)->data->ToFloats();
      for (std::size_t i = 0; i < w.size(); ++i) {
        const float scale = scales[i / 40];
        // Half a step, and what the product of a code and a scale is rounded by.
        EXPECT_LE(std::fabs(static_cast<float>(ints[i]) * scale - w[i]), 0.5f * scale + 1.2e-7f * std::fabs(w[i]));
      }
    }
  }
}

TEST(StoreRecurrentWeights, BehindOperatorsThatMoveNumbers) {
  Model model = Recurrent("LSTM", 4, 1);
  Graph& g = *model.graph;
  Value* gates = g.AddConstant("gates", TensorRef::FromFloats({128, 40}, Normal(std::size_t{128} * 40, 4)));
  Node* cell = g.FindValue("y")->producer();
  Value* axes = g.AddConstant("axes", TensorRef::FromInts(DType::kS64, {1}, std::vector<std::int64_t>{0}));
  Node* unsqueeze = g.AddNode("Unsqueeze", "", {gates, axes}, {{"wide", Type()}}, cell);
  cell->SetInput(1, unsqueeze->output());
  EXPECT_EQ(StoreRecurrentWeights(model, {}, DType::kS8, kNoise, 1), std::vector<const Node*>{cell});
  Verify(model);
  EXPECT_EQ(g.FindValue("gates"), nullptr);
  EXPECT_EQ(g.FindValue("gates_scale")->data->dims, (Dims{128, 1}));
  EXPECT_EQ(unsqueeze->input(0), g.FindValue("gates_scaled"));

  // What moves it gives it to something else too.
  Model shared = Recurrent("LSTM", 4, 1);
  Graph& h = *shared.graph;
  Value* w = h.FindValue("w");
  Node* reader = h.FindValue("y")->producer();
  Node* moved = h.AddNode("Identity", "", {w}, {{"moved", w->type}}, reader);
  reader->SetInput(1, moved->output());
  h.AddOutput(moved->output());
  StoreRecurrentWeights(shared, {}, DType::kS8, kNoise, 1);
  EXPECT_NE(h.FindValue("w"), nullptr);
}

TEST(StoreRecurrentWeights, WhatStaysInFloat) {
  const auto none = [](Model model, const QuantizationConfig& config = {}) {
    return StoreRecurrentWeights(model, config, DType::kS8, kNoise, 1).empty() &&
           model.graph->FindValue("w") != nullptr;
  };
  QuantizationConfig excluded;
  excluded.exclude = {"cell"};
  EXPECT_TRUE(none(Recurrent("LSTM", 4, 1), excluded));

  QuantizationConfig overridden;
  overridden.overrides = {{"w", "f32"}, {"r", "f32"}};
  EXPECT_TRUE(none(Recurrent("LSTM", 4, 1), overridden));
  overridden.overrides = {{"w", "s16"}, {"r", "f32"}};
  Model wide = Recurrent("LSTM", 4, 1);
  EXPECT_EQ(StoreRecurrentWeights(wide, overridden, DType::kS8, kNoise, 1).size(), 1U);
  EXPECT_EQ(wide.graph->FindValue("w_codes")->data->dtype, DType::kS16);
  EXPECT_NE(wide.graph->FindValue("r"), nullptr);

  std::vector<float> far = Normal(4 * 32 * 40, 3);
  for (std::size_t i = 0; i < far.size(); i += 40) far[i] = 20;  // one weight dwarfs the others of its row
  Model outliers = Recurrent("LSTM", 4, 1, far);
  StoreRecurrentWeights(outliers, {}, DType::kS8, 1e-9, 1);
  EXPECT_NE(outliers.graph->FindValue("w"), nullptr);

  far[7] = std::numeric_limits<float>::quiet_NaN();
  Model broken = Recurrent("LSTM", 4, 1, far);
  StoreRecurrentWeights(broken, {}, DType::kS8, 1, 1);
  EXPECT_NE(broken.graph->FindValue("w"), nullptr);
  EXPECT_NE(broken.graph->FindValue("r_codes"), nullptr);

  Model shared = Recurrent("LSTM", 4, 1);
  Value* w = shared.graph->FindValue("w");
  shared.graph->AddOutput(shared.graph->AddNode("Neg", "", {w}, {{"also", w->type}})->output());
  StoreRecurrentWeights(shared, {}, DType::kS8, kNoise, 1);
  EXPECT_NE(shared.graph->FindValue("w"), nullptr);
}

}  // namespace
}  // namespace octavo
