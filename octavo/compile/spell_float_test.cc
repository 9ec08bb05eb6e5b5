// Operators that a device has not, before and after.
#include "octavo/compile/spell_float.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/compile/device_form.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// On u16 codes that are numbers in [-2, 2].
Model Between(const std::string& op, const std::string& codes = "u16", const std::string& shape = "[2,3]") {
  Model model = Parse(
      "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: f32[2,3]) -> (%y) {\n"
      "%s = constant f32[] 0.02\n%z = constant " +
      codes + "[] 100\n%q: " + codes +
      "[2,3] = QuantizeLinear(%x, %s, %z)\n"
      "%d: f32[2,3] = DequantizeLinear(%q, %s, %z)\n%o: f32" +
      shape + " = " + op + "\n%r: " + codes + shape + " = QuantizeLinear(%o, %s, %z)\n%y: f32" + shape +
      " = DequantizeLinear(%r, %s, %z)\n}");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return model;
}

TEST(SpellFloat, ComputesTheSame) {
  const std::pair<const char*, const char*> cases[] = {{"Softplus(%d)", "[2,3]"},
                                                       {"Mish(%d)", "[2,3]"},
                                                       {"Softsign(%d)", "[2,3]"},
                                                       {"Celu(%d)", "[2,3]"},
                                                       {"Celu(%d) {alpha=0.5}", "[2,3]"},
                                                       {"Sinh(%d)", "[2,3]"},
                                                       {"Cosh(%d)", "[2,3]"},
                                                       {"ReduceL1(%d) {keepdims=0}", "[]"},
                                                       {"ReduceSumSquare(%d)", "[1,1]"}};
  for (const auto& [op, shape] : cases) {
    Model model = Between(op, "u16", shape);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 5);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    EXPECT_EQ(SpellFloat(model), 1) << op;
    EXPECT_EQ(Verify(model), std::vector<std::string>{}) << op;
    const std::string name(op, std::string_view(op).find('('));
    EXPECT_THAT(Print(*model.graph), Not(HasSubstr(" " + name + "("))) << op;
    const std::vector<TensorRef> after = testing::RunModel(model, inputs);
    ASSERT_EQ(after[0].dims, before[0].dims) << op;
    const std::vector<float> a = before[0].ToFloats(), b = after[0].ToFloats();
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.0201f) << op;  // a step of the codes
  }
}

TEST(SpellFloat, ReductionOverAnAttributesAxes) {
  Model model = Parse(R"(opset "" = 17
    graph @g(%x: f32[2,3]) -> (%y) { %y: f32[2,1] = ReduceL1(%x) {axes=[1]} })");
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 6);
  const std::vector<float> before = testing::RunModel(model, inputs)[0].ToFloats();
  EXPECT_EQ(SpellFloat(model), 1);
  const std::vector<float> after = testing::RunModel(model, inputs)[0].ToFloats();
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(before[i], after[i], 1e-5f);
}

TEST(SpellFloat, OthersStay) {
  Model model = Between("Softplus(%d)", "u8");  // a table has it
  EXPECT_EQ(SpellFloat(model), 0);
  model = Between("Celu(%d) {alpha=-1.0}");
  EXPECT_EQ(SpellFloat(model), 0);
  model = Between("ReduceL1(%d) {noop_with_empty_axes=1}");
  EXPECT_EQ(SpellFloat(model), 0);
  model = Between("Tanh(%d)");
  EXPECT_EQ(SpellFloat(model), 0);
  model = Between("Mish(%d)");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("cpu")).spelled, 0);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).spelled, 1);
}

}  // namespace
}  // namespace octavo
