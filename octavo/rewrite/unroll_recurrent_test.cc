#include "octavo/rewrite/unroll_recurrent.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "octavo/emit/onnx.h"
#include "octavo/ir/text.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

constexpr std::int64_t kSteps = 5, kBatch = 2, kInputs = 3, kHidden = 4;

struct Case {
  std::string op;
  std::int64_t gates;
  std::string attributes;
  std::int64_t directions = 1;
  bool states = false;                     // with initial states
  std::vector<std::int64_t> lengths = {};  // of the sequences, computed; empty: none are given
};

std::string Numbers(std::int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> eighths(-9, 9);
  std::string out = "[";
  for (std::int64_t i = 0; i < n; ++i) out += (i > 0 ? ", " : "") + std::to_string(eighths(random) * 0.125);
  return out + "]";
}

std::string Sizes(std::vector<std::int64_t> dims) {
  std::string out = "f32[";
  for (std::size_t i = 0; i < dims.size(); ++i) out += (i > 0 ? "," : "") + std::to_string(dims[i]);
  return out + "]";
}

Model Recurrent(const Case& c, const std::string& x = Sizes({kSteps, kBatch, kInputs})) {
  const std::int64_t d = c.directions, rows = c.gates * kHidden;
  const bool cell = c.op == "LSTM";
  std::string text = "ir_version = 10\nopset \"\" = 17\ngraph @g(%x: " + x + (c.lengths.empty() ? "" : ", %n: s32[2]") +
                     ") -> (%y, %h" + (cell ? ", %c" : "") + ") {\n";
  text += "%w = constant " + Sizes({d, rows, kInputs}) + " " + Numbers(d * rows * kInputs, 1) + "\n";
  text += "%r = constant " + Sizes({d, rows, kHidden}) + " " + Numbers(d * rows * kHidden, 2) + "\n";
  text += "%b = constant " + Sizes({d, 2 * rows}) + " " + Numbers(2 * d * rows, 3) + "\n";
  text += "%h0 = constant " + Sizes({d, kBatch, kHidden}) + " " + Numbers(d * kBatch * kHidden, 4) + "\n";
  text += "%c0 = constant " + Sizes({d, kBatch, kHidden}) + " " + Numbers(d * kBatch * kHidden, 5) + "\n";
  text += "%y: " + Sizes({kSteps, d, kBatch, kHidden}) + ", %h: " + Sizes({d, kBatch, kHidden});
  if (cell) text += ", %c: " + Sizes({d, kBatch, kHidden});
  text += " = " + c.op + "(%x, %w, %r, %b";
  if (c.states || !c.lengths.empty()) text += c.lengths.empty() ? ", _" : ", %n";
  if (c.states) text += std::string(", %h0") + (cell ? ", %c0" : "");
  return Parse(text + ") {hidden_size=4" + (c.attributes.empty() ? "" : ", ") + c.attributes + "}\n}\n");
}

std::vector<TensorRef> Outputs(const Model& model, const std::vector<std::int64_t>& lengths = {}) {
  OnnxSkeleton s = SerializeSkeleton(model);
  SessionOptions options;
  options.optimization = GraphOptimization::kNone;
  options.intra_op_threads = 1;
  std::vector<float> x;
  for (std::int64_t i = 0; i < kSteps * kBatch * kInputs; ++i) x.push_back(std::sin(static_cast<float>(i) * 0.7f));
  std::vector<TensorRef> inputs = {TensorRef::FromFloats({kSteps, kBatch, kInputs}, x)};
  if (!lengths.empty()) inputs.push_back(TensorRef::FromInts(DType::kS32, {kBatch}, lengths));
  return Session(s.bytes, std::move(s.externals), options).Run(inputs);
}

class UnrollKinds : public testing::TestWithParam<Case> {};

TEST_P(UnrollKinds, GivesTheSameNumbers) {
  Model model = Recurrent(GetParam());
  const std::vector<TensorRef> before = Outputs(model, GetParam().lengths);
  ASSERT_EQ(UnrollRecurrent(model, kSteps), 1);
  for (const Node* node : model.graph->nodes()) EXPECT_NE(node->op(), GetParam().op);
  const std::vector<TensorRef> after = Outputs(model, GetParam().lengths);
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t o = 0; o < before.size(); ++o) {
    ASSERT_EQ(after[o].dims, before[o].dims);
    const std::vector<float> a = before[o].ToFloats(), b = after[o].ToFloats();
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(b[i], a[i], 2e-6) << o << " " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, UnrollKinds,
                         testing::Values(Case{"LSTM", 4, ""}, Case{"LSTM", 4, "direction=\"reverse\"", 1, true},
                                         Case{"LSTM", 4, "direction=\"bidirectional\"", 2},
                                         Case{"LSTM", 4, "direction=\"bidirectional\"", 2, true},
                                         Case{"GRU", 3, "", 1, true}, Case{"GRU", 3, "linear_before_reset=1"},
                                         Case{"GRU", 3, "direction=\"bidirectional\"", 2},
                                         Case{"GRU", 3, "direction=\"bidirectional\", linear_before_reset=1", 2, true},
                                         Case{"RNN", 1, "direction=\"reverse\""},
                                         Case{"RNN", 1, "direction=\"bidirectional\"", 2, true},
                                         Case{"LSTM", 4, "", 1, false, {5, 3}}, Case{"LSTM", 4, "", 1, true, {2, 5}},
                                         Case{"GRU", 3, "direction=\"reverse\"", 1, true, {3, 1}},
                                         Case{"GRU", 3, "direction=\"bidirectional\"", 2, false, {4, 2}},
                                         Case{"RNN", 1, "direction=\"bidirectional\"", 2, true, {1, 5}}));

TEST(UnrollRecurrent, WhatItDoesNotKnowStays) {
  const auto unrolled = [](const Case& c, std::int64_t most_steps = kSteps) {
    Model model = Recurrent(c);
    return UnrollRecurrent(model, most_steps);
  };
  EXPECT_EQ(unrolled({"LSTM", 4, ""}), 1);
  EXPECT_EQ(unrolled({"LSTM", 4, ""}, kSteps - 1), 0);
  EXPECT_EQ(unrolled({"LSTM", 4, "clip=3.0"}), 0);
  EXPECT_EQ(unrolled({"LSTM", 4, "input_forget=1"}), 0);
  EXPECT_EQ(unrolled({"LSTM", 4, "activations=[\"Sigmoid\", \"Relu\", \"Tanh\"]"}), 0);
  EXPECT_EQ(unrolled({"LSTM", 4, "activations=[\"Sigmoid\", \"tanh\", \"Tanh\"]"}), 1);
  Model model = Recurrent({"LSTM", 4, ""}, "f32[steps,2,3]");
  EXPECT_EQ(UnrollRecurrent(model, kSteps), 0);
}

}  // namespace
}  // namespace octavo
