#include "octavo/compile/recode_concats.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "octavo/compile/device_form.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

struct Case {
  std::string op = "Sigmoid(%bd)";
  std::string moved = "Reshape(%id, %shape)";
  std::string inner = "0.02", outer = "0.03", dtype = "u8";
  std::string also = "";  // what else reads the inner Concat
};

// y = Concat(a, moved(Concat(b, op(b)))), %a and %b : f32[2,3].
Model Of(const Case& c) {
  std::string text = "ir_version = 10\nopset \"\" = 21\ngraph @g(%a: f32[2,6], %b: f32[2,3]) -> (%y";
  text += c.also.empty() ? ") {\n" : ", %z) {\n";
  text += "%pads = constant s64[4] [0, 0, 0, 0]\n%far = constant f32[] -1e9\n";
  text += "%shape = constant s64[2] [2, 6]\n%one = constant f32[] 0.00392\n%half = constant f32[] 0.01\n";
  text += "%zero = constant " + c.dtype + "[] 0\n%mid = constant " + c.dtype + "[] 100\n%middle = constant " + c.dtype +
          "[] 120\n%p = constant f32[] " + c.inner + "\n%r = constant f32[] " + c.outer + "\n";
  const auto coded = [&](const std::string& v, const std::string& of, const std::string& shape,
                         const std::string& params) {
    text += "%" + v + "q: " + c.dtype + shape + " = QuantizeLinear(%" + of + ", " + params + ")\n%" + v + "d: f32" +
            shape + " = DequantizeLinear(%" + v + "q, " + params + ")\n";
  };
  const std::string in = "%p, %mid", out = "%r, %middle";
  coded("a", "a", "[2,6]", "%half, %middle");
  coded("b", "b", "[2,3]", in);
  text += "%o: f32[2,3] = " + c.op + "\n";
  coded("o", "o", "[2,3]", "%one, %zero");
  text += "%i: f32[2,6] = Concat(%bd, %od) {axis=1}\n";
  coded("i", "i", "[2,6]", in);
  text += "%m: f32[2,6] = " + c.moved + "\n";
  coded("m", "m", "[2,6]", in);
  text += "%u: f32[4,6] = Concat(%ad, %md) {axis=0}\n";
  coded("u", "u", "[4,6]", out);
  text += "%y: f32[4,6] = Identity(%ud)\n";
  if (!c.also.empty()) text += "%z: f32[2,6] = " + c.also + "\n";
  Model model = Parse(text + "}");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

// Whether no Concat reads codes of another one's that are not its own.
bool OwnCodes(const Model& model) {
  for (const Node* node : model.graph->nodes()) {
    if (!node->Is("Concat")) continue;
    const Node* to = node->output()->uses()[0].node;
    for (const Value* input : node->inputs()) {
      const Value* codes = input->producer()->input(0);
      const Node* maker = codes->producer()->input(0)->producer();
      while (maker != nullptr && maker->Is("Reshape"))
        maker = maker->input(0)->producer()->input(0)->producer()->input(0)->producer();
      if (maker == nullptr || !maker->Is("Concat")) continue;
      if (input->producer()->input(1) != to->input(1) || input->producer()->input(2) != to->input(2)) return false;
    }
  }
  return true;
}

TEST(RecodeConcats, TheInnerHasTheCodesOfTheOuterAndTheSameNumbers) {
  for (const Case& c : {Case{}, Case{.op = "Tanh(%bd)"}, Case{.op = "Mul(%bd, %bd)"}, Case{.inner = "0.0051"},
                        Case{.moved = "Reshape(%id, %shape) {allowzero=0}"}, Case{.also = "Relu(%id)"}}) {
    Model model = Of(c);
    EXPECT_FALSE(OwnCodes(model));
    const Model before = Clone(model);
    EXPECT_EQ(RecodeConcats(model), 1) << c.op;
    if (c.also.empty()) model.graph->EraseDead();
    EXPECT_EQ(Verify(model), std::vector<std::string>{}) << c.op;
    EXPECT_EQ(OwnCodes(model), true) << c.op;
    testing::ExpectSameNumbers(before, model, 0, c.op);
    EXPECT_EQ(RecodeConcats(model), 0) << "again";
  }
}

TEST(RecodeConcats, OthersStay) {
  for (const Case& c : {Case{.op = "Transpose(%bd) {perm=[0, 1]}"}, Case{.moved = "Relu(%id)"},
                        Case{.moved = "Pad(%id, %pads, %far)"}, Case{.dtype = "u16"}}) {
    Model model = Of(c);
    EXPECT_EQ(RecodeConcats(model), 0) << c.op << c.moved << c.dtype;
  }
  Model model = Of(Case{});
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("cpu")).concats, 0);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).concats, 1);
  EXPECT_TRUE(Verify(model).empty());
}

// Concats of a Sigmoid, each but the first of the one before it, each in codes of its own.
Model Chain(int concats) {
  std::string text = "ir_version = 10\nopset \"\" = 21\ngraph @g(%b: f32[2,3]) -> (%y) {\n%zero = constant u8[] 0\n";
  for (int i = 0; i <= concats; ++i) {
    text += "%s" + std::to_string(i) + " = constant f32[] " + std::to_string(0.01 * (i + 1)) + "\n";
  }
  const auto coded = [&](const std::string& v, const std::string& of, int columns, int params) {
    const std::string with = "%s" + std::to_string(params) + ", %zero)\n", dims = "[2," + std::to_string(columns) + "]";
    text += "%" + v + "q: u8" + dims + " = QuantizeLinear(%" + of + ", " + with + "%" + v + "d: f32" + dims +
            " = DequantizeLinear(%" + v + "q, " + with;
  };
  coded("b", "b", 3, 0);
  text += "%o: f32[2,3] = Sigmoid(%bd)\n";
  coded("o", "o", 3, 0);
  for (int i = 1; i <= concats; ++i) {
    const std::string of = i == 1 ? "o" : "c" + std::to_string(i - 1), to = "c" + std::to_string(i);
    text += "%" + to + ": f32[2," + std::to_string(3 * (i + 1)) + "] = Concat(%" + of + "d, %bd) {axis=1}\n";
    coded(to, to, 3 * (i + 1), i);
  }
  const std::string all = std::to_string(3 * (concats + 1));
  return Parse(text + "%y: f32[2," + all + "] = Identity(%c" + std::to_string(concats) + "d)\n}");
}

TEST(RecodeConcats, CopiesAreBounded) {
  Model model = Chain(60);  // 1,770 copies without a bound
  EXPECT_EQ(RecodeConcats(model), 1000);
  model.graph->EraseDead();
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
}

TEST(RecodeConcats, OneInAnother) {
  Model model = Chain(3);
  const Model before = Clone(model);
  EXPECT_GT(RecodeConcats(model), 1);
  model.graph->EraseDead();
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_TRUE(OwnCodes(model));
  testing::ExpectSameNumbers(before, model, 0, "three");
}

}  // namespace
}  // namespace octavo
