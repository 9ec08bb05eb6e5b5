#include "octavo/compile/pad_codes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/compile/device_form.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Padded {
  std::string type = "u8";
  std::string pads = "0, 0, 0, 0, 0, 0, 1, 1";
  std::string to_scale = "0.5", to_zero = "7";  // the Pad's input has 0.5 and 7
  std::string attributes = "";                  // of a convolution behind it; "": none
  std::string value = "0";
};

// A Pad between codes, and what reads it.
std::string Text(const Padded& p) {
  const std::string constants = "%s = constant f32[] 0.5\n%z = constant " + p.type + "[] 7\n%t = constant f32[] " +
                                p.to_scale + "\n%u = constant " + p.type + "[] " + p.to_zero +
                                "\n%p = constant s64[8] [" + p.pads + "]\n%v = constant f32[] " + p.value +
                                "\n%w = constant f32[1,1,2,2] [1, 2, 3, 4]\n";
  const std::string pad = "%d: f32[1,1,4,5] = DequantizeLinear(%x, %s, %z)\n%a: f32[1,1,5,6] = Pad(%d, %p, %v)\n";
  const std::string codes = p.type + "[1,1,5,6] = QuantizeLinear(%a, %t, %u)\n";
  std::string rest = "%y: " + codes;
  if (!p.attributes.empty()) {
    rest = "%q: " + codes + "%e: f32[1,1,5,6] = DequantizeLinear(%q, %t, %u)\n%y: f32[1,1,?,?] = Conv(%e, %w) {" +
           p.attributes + "}\n";
  }
  return "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + p.type + "[1,1,4,5]) -> (%y) {\n" + constants + pad +
         rest + "}\n";
}

// The text of what becomes of it, which gives the same bits.
std::string After(const Padded& p, std::int64_t changed = 1) {
  Model model = Parse(Text(p));
  EXPECT_TRUE(Verify(model).empty());
  const Model before = Clone(model);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).padded, changed) << Text(p);
  EXPECT_TRUE(Verify(model).empty());
  const std::vector<TensorRef> inputs = testing::RandomInputs(before, 5);
  EXPECT_TRUE(testing::SameBits(testing::RunModel(before, inputs), testing::RunModel(model, inputs))) << Text(p);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).padded, 0) << "again";
  return Print(*model.graph);
}

TEST(PadCodes, HaveAColumnAtTheLeftThatIsNotTaken) {
  for (const std::string type : {"u8", "u16"}) {
    for (const std::string value : {"0", "2.5"}) {
      const std::string text = After({.type = type, .to_scale = "0.25", .to_zero = "9", .value = value});
      EXPECT_THAT(text, AllOf(HasSubstr("[0, 0, 0, 1, 0, 0, 1, 1]"), HasSubstr("Gather"))) << text;
      EXPECT_THAT(text, HasSubstr(type + "[1,1,5,6] = QuantizeLinear(%a, %t, %u)"));
      EXPECT_EQ(text.find("QuantizeLinear(") != text.rfind("QuantizeLinear("), true) << "codes on both sides of it";
    }
  }
}

TEST(PadCodes, AConvolutionPadsByItself) {
  for (const std::string type : {"u8", "u16"}) {
    const std::string text = After({.type = type, .attributes = "kernel_shape=[2, 2], strides=[2, 2]"});
    EXPECT_THAT(text, AllOf(HasSubstr("pads=[0, 0, 1, 1]"), HasSubstr("Conv(%d"), Not(HasSubstr("Pad("))));
  }
  EXPECT_THAT(After({.attributes = "kernel_shape=[2, 2], pads=[1, 0, 0, 1]"}), HasSubstr("pads=[1, 0, 1, 2]"));
}

TEST(PadCodes, AConvolutionThatCannotLeavesIt) {
  const std::string conv = "kernel_shape=[2, 2]";
  for (const Padded& p :
       {Padded{.to_scale = "0.25", .attributes = conv}, Padded{.to_zero = "9", .attributes = conv},
        Padded{.attributes = conv, .value = "1"}, Padded{.attributes = conv + ", auto_pad=\"SAME_UPPER\""}}) {
    EXPECT_THAT(After(p), AllOf(HasSubstr("Gather"), HasSubstr("Conv(%e"))) << Text(p);
  }
}

TEST(PadCodes, OthersStay) {
  EXPECT_THAT(After({.pads = "0, 0, 0, 1, 0, 0, 1, 0"}, 0), Not(HasSubstr("Gather")));
  Model model = Parse(Text({}));
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("cpu")).padded, 0);
}

// Codes that are padded as they are.
TEST(PadCodes, OfIntegers) {
  Model model = Parse(R"(ir_version = 10
opset "" = 21
graph @g(%x: u8[1,1,4,5]) -> (%y) {
  %p = constant s64[8] [0, 0, 0, 0, 0, 0, 1, 2]
  %v = constant u8[] 9
  %y: u8[1,1,5,7] = Pad(%x, %p, %v)
})");
  const Model before = Clone(model);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).padded, 1);
  EXPECT_THAT(Print(*model.graph), AllOf(HasSubstr("Gather"), Not(HasSubstr("QuantizeLinear"))));
  const std::vector<TensorRef> inputs = testing::RandomInputs(before, 5);
  EXPECT_TRUE(testing::SameBits(testing::RunModel(before, inputs), testing::RunModel(model, inputs)));
}

}  // namespace
}  // namespace octavo
