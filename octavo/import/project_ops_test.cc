#include "octavo/import/project_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/ir/text.h"

namespace octavo {
namespace {

using testing::HasSubstr;

// What is said of a model; "" where there is nothing to say.
std::string Said(const std::string& body, const std::string& version = "1") {
  const Model model = Parse("ir_version = 10\nopset \"\" = 20\nopset \"octavo\" = " + version +
                            "\ngraph @g(%x: f32[2,8], %dynamic: f32[]) -> (%y) {\n" + body + "\n}");
  try {
    CheckProjectOps(model, "m.onnx");
  } catch (const Error& error) {
    EXPECT_THAT(error.where(), HasSubstr("m.onnx"));
    return std::to_string(static_cast<int>(error.code())) + " " + error.reason();
  }
  return "";
}

std::string Mx(const std::string& attributes) {
  return Said("%y: f32[2,8] = octavo::MXFakeQuantize(%x) {" + attributes + "}");
}

TEST(CheckProjectOps, Mx) {
  EXPECT_EQ(Mx(R"(elem_format="mxfp4", axis=-2, block_size=1, rounding="even", shared_exponent="floor")"), "");
  EXPECT_EQ(Mx(R"(elem_format="mxfp4", axis=2)"), "3 axis 2 is outside of a tensor of rank 2");
  EXPECT_EQ(Mx(R"(elem_format="mxfp5")"), "3 unknown elem_format 'mxfp5'");
  EXPECT_EQ(Mx(R"(elem_format="mxfp4", block_size=0)"), "3 block_size is 0");
  EXPECT_EQ(Mx(R"(elem_format="mxfp4", blocks=32)"), "3 unknown attribute 'blocks'");
  EXPECT_EQ(Said(R"(%y = octavo::MXFakeQuantize(%x) {elem_format="mxfp4"})", "2"),
            "4 version 2 of the domain 'octavo'");
  EXPECT_EQ(Said("%y = octavo::MxFakeQuantize(%x)"), "4 the domain 'octavo' has no such operator");
}

// Types that a file declares of values inside may be stale: only those that chains of the own operators hand on count.
TEST(CheckProjectOps, RanksAreThoseOfInputs) {
  const std::string late = R"(octavo::MXFakeQuantize(%h) {elem_format="mxfp4", axis=2})";
  EXPECT_EQ(Said("%h: f32[8] = Relu(%x)\n%y = " + late), "");
  EXPECT_EQ(Said("%h: f32[2,8,1] = octavo::MXFakeQuantize(%x) {elem_format=\"mxint8\"}\n%y = " + late),
            "3 axis 2 is outside of a tensor of rank 2");
}

TEST(CheckProjectOps, Affine) {
  const std::string s = "%s = constant f32[2] [0.1, 0.2]\n%z = constant s32[2] [0, 300]\n%y = octavo::FakeQuantize";
  EXPECT_EQ(Said(s + "(%x, %s) {axis=0}"), "");
  EXPECT_EQ(Said(s + "(%x, %dynamic, %dynamic)"), "");
  EXPECT_EQ(Said(s + "(%x, %s) {axis=1}"), "3 2 scales for 8 channels");
  EXPECT_EQ(Said(s + "(%x, %s)"), "3 2 scales without an axis");
  EXPECT_EQ(Said(s + "(%x, %s, %z) {axis=0}"), "3 zero point 1 is 300");
  EXPECT_EQ(Said(s + "(%x)"), "3 a required input is missing");
  EXPECT_THAT(Said("%s = constant f32[] -1\n%y = octavo::FakeQuantize(%x, %s)"), HasSubstr("3 scale 0 is -1.0"));
}

TEST(CheckProjectOps, Pairs) {
  const std::string codes =
      "%s = constant f32[2] [0.1, 0]\n%w = constant u8[2,8] [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]\n";
  EXPECT_EQ(Said(codes + "%y = DequantizeLinear(%w, %s) {axis=0}"), "");
  EXPECT_EQ(Said(codes + "%y = DequantizeLinear(%w, %s) {axis=1}"), "3 2 scales for 8 channels");
  EXPECT_THAT(Said(codes + "%y = QuantizeLinear(%x, %s) {axis=0}"), HasSubstr("3 scale 1 is 0.0"));
}

}  // namespace
}  // namespace octavo
