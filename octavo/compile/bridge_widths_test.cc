#include "octavo/compile/bridge_widths.h"

#include <gtest/gtest.h>

#include <string>

#include "octavo/compile/codes.h"
#include "octavo/compile/device_form.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

Model Converted(const std::string& from, const std::string& scale, const std::string& to, const std::string& to_scale) {
  return Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + from + "[4]) -> (%y) {\n%s = constant f32[] " +
               scale + "\n%z = constant " + from + "[] 7\n%t = constant f32[] " + to_scale + "\n%u = constant " + to +
               "[] 9\n%d: f32[4] = DequantizeLinear(%x, %s, %z)\n%y: " + to + "[4] = QuantizeLinear(%d, %t, %u)\n}\n");
}

std::int64_t Bridged(Model& model) { return ToDeviceForm(model, *FindDevice("qnn")).bridged; }

TEST(BridgeWidths, WhereSixteenBitsAreCoarser) {
  for (const bool up : {false, true}) {
    Model model = up ? Converted("u8", "0.5", "u16", "1.0") : Converted("u16", "1.0", "u8", "0.5");
    EXPECT_EQ(Bridged(model), 1);
    EXPECT_TRUE(Verify(model).empty());
    const std::optional<Codes> between = Behind(model.graph->outputs()[0]->producer()->input(0));
    ASSERT_TRUE(between.has_value());
    EXPECT_EQ(between->storage, DType::kU16);
    EXPECT_EQ(between->scales, (std::vector<float>{0.5F / 256}));
    EXPECT_EQ(between->zeros, (std::vector<std::int64_t>{(up ? 7 : 9) * 256}));
    EXPECT_EQ(Bridged(model), 0) << "again";
  }
}

TEST(BridgeWidths, OthersStay) {
  Model model = Converted("u16", "0.001", "u8", "0.5");
  EXPECT_EQ(Bridged(model), 0);
  model = Converted("u8", "0.5", "u16", "0.001");
  EXPECT_EQ(Bridged(model), 0);
  model = Converted("u16", "1.0", "u16", "0.5");
  EXPECT_EQ(Bridged(model), 0);
  model = Converted("u16", "1.0", "u8", "0.5");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("cpu")).bridged, 0);
}

}  // namespace
}  // namespace octavo
