#include "octavo/compile/concat_volumes.h"

#include <gtest/gtest.h>

#include <string>

#include "octavo/compile/codes.h"
#include "octavo/compile/device_form.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

// Two tensors of codes joined along their channels; the second has the parameters of the result.
std::string Joined(const std::string& type, const std::string& dims, const std::string& out, int opset = 21) {
  const std::string in = type + "[" + dims + "]";
  return "ir_version = 10\nopset \"\" = " + std::to_string(opset) + "\ngraph @g(%a: " + in + ", %b: " + in +
         ") -> (%y) {\n%s = constant f32[] 0.5\n%z = constant " + type +
         "[] 7\n%t = constant f32[] 0.75\n%u = constant " + type + "[] 30\n%c: f32[" + dims +
         "] = DequantizeLinear(%a, %s, %z)\n%d: f32[" + dims + "] = DequantizeLinear(%b, %t, %u)\n%j: f32[" + out +
         "] = Concat(%c, %d) {axis=1}\n%y: " + type + "[" + out + "] = QuantizeLinear(%j, %t, %u)\n}\n";
}

std::int64_t Converted(Model& model) { return ToDeviceForm(model, *FindDevice("qnn")).joined; }

TEST(ConcatVolumes, OperandsInOtherParametersAreConvertedBefore) {
  for (const int opset : {21, 17}) {
    Model model = Parse(Joined("u8", "1,2,3,2,2", "1,4,3,2,2", opset));
    const Model before = Clone(model);
    EXPECT_EQ(Converted(model), 1);
    EXPECT_TRUE(Verify(model).empty());
    const Node* concat = model.graph->outputs()[0]->producer()->input(0)->producer();
    ASSERT_TRUE(concat->Is("Concat"));
    const std::optional<Codes> joined = Behind(concat->input(0));
    ASSERT_TRUE(joined.has_value());
    EXPECT_EQ(joined->scales, (std::vector<float>{0.75F}));
    EXPECT_EQ(joined->zeros, (std::vector<std::int64_t>{30}));
    const std::optional<Codes> wide = Behind(joined->dequantize->input(0)->producer()->input(0));
    ASSERT_TRUE(wide.has_value());
    EXPECT_EQ(wide->storage, DType::kU16);
    EXPECT_EQ(wide->zeros, (std::vector<std::int64_t>{7 * 257}));
    EXPECT_EQ(concat->input(1)->producer()->input(0), model.graph->inputs()[1]);
    const std::vector<TensorRef> inputs = testing::RandomInputs(before, 5);
    EXPECT_TRUE(testing::SameBits(testing::RunModel(before, inputs), testing::RunModel(model, inputs)));
    EXPECT_EQ(Converted(model), 0) << "again";
  }
}

TEST(ConcatVolumes, OthersStay) {
  Model image = Parse(Joined("u8", "1,2,3,2", "1,4,3,2"));
  EXPECT_EQ(Converted(image), 0);
  Model words = Parse(Joined("u16", "1,2,3,2,2", "1,4,3,2,2"));
  EXPECT_EQ(Converted(words), 0);
  Model elsewhere = Parse(Joined("u8", "1,2,3,2,2", "1,4,3,2,2"));
  EXPECT_EQ(ToDeviceForm(elsewhere, *FindDevice("cpu")).joined, 0);
}

}  // namespace
}  // namespace octavo
