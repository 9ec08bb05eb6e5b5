#include "octavo/compile/softmax_steps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "octavo/compile/codes.h"
#include "octavo/compile/device_form.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

constexpr double kUnit = 0x1p-22 * 0.69314718055994530942;

// Softmax of the codes of x, in steps of `units` (and of what is read `moved` before it, in the same codes).
Model Logits(double units, const std::string& dtype = "u16", bool moved = false, const std::string& outputs = "%y") {
  char scale[64];
  std::snprintf(scale, sizeof(scale), "%.9g", units * kUnit);
  std::string text = "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: f32[1,2,8]) -> (" + outputs + ") {\n";
  text += "%s = constant f32[] " + std::string(scale) + "\n%z = constant " + dtype + "[] 100\n";
  text += "%f: f32[1,2,8] = Relu(%x)\n%q: " + dtype + "[1,2,8] = QuantizeLinear(%f, %s, %z)\n";
  text += "%d: f32[1,2,8] = DequantizeLinear(%q, %s, %z)\n";
  if (moved) {
    text += "%t: f32[1,8,2] = Transpose(%d) {perm=[0, 2, 1]}\n%p: " + dtype + "[1,8,2] = QuantizeLinear(%t, %s, %z)\n";
    text += "%e: f32[1,8,2] = DequantizeLinear(%p, %s, %z)\n%y: f32[1,8,2] = Softmax(%e)\n}\n";
  } else {
    text += "%y: f32[1,2,8] = Softmax(%d)\n}\n";
  }
  return Parse(text);
}

const Node& SoftmaxOf(const Model& model) {
  for (const Node* node : model.graph->nodes()) {
    if (node->Is("Softmax")) return *node;
  }
  throw std::logic_error("no Softmax");
}

double UnitsOf(const Value* v) { return static_cast<double>(Behind(v)->scales.at(0)) / kUnit; }

std::int64_t Refit(Model& model) { return ToDeviceForm(model, *FindDevice("qnn")).refit; }

TEST(SoftmaxSteps, TheNextWholeNumberOfUnits) {
  for (const auto& [units, want] : {std::pair{184.67, 185.0}, {3.0, 16.0}, {1000.5, 1001.0}}) {
    Model model = Logits(units);
    EXPECT_EQ(Refit(model), 1) << units;
    const double got = UnitsOf(SoftmaxOf(model).input(0));
    EXPECT_GT(got, want) << units;
    EXPECT_LT(got, want + 0.01) << units;
    EXPECT_EQ(Behind(SoftmaxOf(model).input(0))->zeros, (std::vector<std::int64_t>{100}));
    EXPECT_TRUE(Verify(model).empty());
    EXPECT_EQ(Refit(model), 0) << "again";
  }
}

TEST(SoftmaxSteps, WhatMovesTheLogitsFollows) {
  Model model = Logits(184.67, "u16", true);
  EXPECT_EQ(Refit(model), 1);
  const Value* e = SoftmaxOf(model).input(0);
  const Node* transpose = e->producer()->input(0)->producer()->input(0)->producer();
  ASSERT_TRUE(transpose->Is("Transpose"));
  EXPECT_EQ(UnitsOf(e), UnitsOf(transpose->input(0)));
  EXPECT_NEAR(UnitsOf(e), 185, 0.01);
}

TEST(SoftmaxSteps, WhoElseReadsTheLogitsKeepsTheirCodes) {
  Model model = Logits(184.67, "u16", false, "%y, %d");
  EXPECT_EQ(Refit(model), 1);
  EXPECT_NEAR(UnitsOf(SoftmaxOf(model).input(0)), 185, 0.01);
  EXPECT_NEAR(UnitsOf(model.graph->outputs()[1]), 184.67, 0.01);
  model = Logits(184.67, "u16", true, "%y, %d");
  EXPECT_EQ(Refit(model), 0);
}

TEST(SoftmaxSteps, BigStepsAndBytesStay) {
  Model model = Logits(1100.5);
  EXPECT_EQ(Refit(model), 0);
  model = Logits(184.67, "u8");
  EXPECT_EQ(Refit(model), 0);
  model = Logits(184.67);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("cpu")).refit, 0);
}

}  // namespace
}  // namespace octavo
