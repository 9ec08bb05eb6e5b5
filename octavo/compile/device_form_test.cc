#include "octavo/compile/device_form.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

// Conv of the codes of x: two channels, weights 1 and -2 at each of nine places (their sums are 9 and -18).
Model Layer(const std::string& dtype, const std::string& zero_point, const std::string& bias,
            const std::string& attributes, int kernel = 3) {
  std::string w = "[";
  for (int i = 0; i < 2 * kernel * kernel; ++i) {
    w += (i > 0 ? ", " : "") + std::string(i < kernel * kernel ? "1" : "-2");
  }
  const std::string k = std::to_string(kernel);
  std::string text = "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + dtype + "[1,2,8,8]) -> (%y) {\n";
  text += "%s = constant f32[] 0.5\n%z = constant " + dtype + "[] " + zero_point + "\n";
  text += "%w = constant s8[2,1," + k + "," + k + "] " + w + "]\n%sw = constant f32[] 0.25\n%zw = constant s8[] 0\n";
  text += "%d: f32[1,2,8,8] = DequantizeLinear(%x, %s, %z)\n%wd: f32[2,1,p,q] = DequantizeLinear(%w, %sw, %zw)\n";
  if (!bias.empty()) {
    text += "%b = constant s32[2] " + bias + "\n%sb = constant f32[] 0.125\n%bd: f32[2] = DequantizeLinear(%b, %sb)\n";
  }
  text += "%y: f32[1,2,r,s] = Conv(%d, %wd" + std::string(bias.empty() ? "" : ", %bd") + ") {" + attributes + "}\n}\n";
  return Parse(text);
}

const Node& ConvOf(const Model& model) {
  for (const Node* node : model.graph->nodes()) {
    if (node->Is("Conv")) return *node;
  }
  throw std::logic_error("no Conv");
}

std::vector<std::int64_t> BiasOf(const Model& model) {
  return ConvOf(model).input(2)->producer()->input(0)->data->ToInts();
}

constexpr const char* kPlain = "group=2, pads=[1, 1, 1, 1]";

TEST(DeviceForm, TheBiasMakesUpForWhatIsRoundedDown) {
  // Zero point 0: 1000 + 128 is 4.4 units of 256, -1000 + 128 is -3.4; half a unit more is truncated by the device.
  Model model = Layer("u16", "0", "[1000, -1000]", kPlain);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).biases, 1);
  EXPECT_EQ(BiasOf(model), (std::vector<std::int64_t>{4 * 256 + 128, -3 * 256 - 128}));
  // Zero point 100: its products are 900 (3.5 units: rounded down, or up, by 128 or less) and -1800 (-7.03 units).
  // 1000 + 128 - ((900 + 128) mod 256 - 128) = 1252: 4.9 units; -1000 + 128 - ((-1800 + 128) mod 256 - 128) = -864.
  model = Layer("u16", "100", "[1000, -1000]", kPlain);
  ToDeviceForm(model, *FindDevice("qnn"));
  EXPECT_EQ(BiasOf(model), (std::vector<std::int64_t>{5 * 256 + 128, -3 * 256 - 128}));
}

TEST(DeviceForm, AConvolutionWithoutABiasGetsOne) {
  Model model = Layer("u16", "200", "", kPlain);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).biases, 1);
  const Node& dequantize = *ConvOf(model).input(2)->producer();
  EXPECT_EQ(dequantize.input(1)->data->ToFloats(), (std::vector<float>{0.125f}));
  // 128 - ((1800 + 128) mod 256 - 128) = 120: 0.5 of a unit; 128 - ((-3600 + 128) mod 256 - 128) = 144: 0.6.
  EXPECT_EQ(BiasOf(model), (std::vector<std::int64_t>{0, 256 + 128}));
}

TEST(DeviceForm, TheBiasOfChannelsWithoutWeightsStays) {
  // The second channel's weights are -2, its zero point too.
  Model model = Layer("u16", "100", "[1000, -1000]", kPlain);
  const_cast<Value*>(ConvOf(model).input(1)->producer()->input(2))->data =
      TensorRef::FromInts(DType::kS8, {}, std::vector<std::int64_t>{-2});
  ToDeviceForm(model, *FindDevice("qnn"));
  EXPECT_EQ(BiasOf(model)[1], -1000);
  EXPECT_NE(BiasOf(model)[0], 1000);
}

TEST(DeviceForm, ChannelsOfOneTapGetScalesThatLieNear) {
  Model model = Parse(
      "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: u16[1,2,8,8]) -> (%y) {\n%s = constant f32[] 0.5\n"
      "%z = constant u16[] 0\n%w = constant s8[2,1,1,1] [100, -100]\n%sw = constant f32[2] [0.0625, 8]\n"
      "%zw = constant s8[2] [0, 0]\n%b = constant s32[2] [-4000, 5]\n%sb = constant f32[2] [0.03125, 4]\n"
      "%d: f32[1,2,8,8] = DequantizeLinear(%x, %s, %z)\n%wd: f32[2,1,1,1] = DequantizeLinear(%w, %sw, %zw) {axis=0}\n"
      "%bd: f32[2] = DequantizeLinear(%b, %sb) {axis=0}\n%y: f32[1,2,8,8] = Conv(%d, %wd, %bd) {group=2}\n}\n");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).rescaled, 1);
  EXPECT_TRUE(Verify(model).empty());
  EXPECT_EQ(BiasOf(model), (std::vector<std::int64_t>{-1000, 5}));
  const Node& w = *ConvOf(model).input(1)->producer();
  EXPECT_EQ(w.input(0)->data->ToInts(), (std::vector<std::int64_t>{25, -100}));
  EXPECT_EQ(w.input(1)->data->ToFloats(), (std::vector<float>{0.25f, 8.0f}));
  EXPECT_EQ(ConvOf(model).input(2)->producer()->input(1)->data->ToFloats(), (std::vector<float>{0.125f, 4.0f}));
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).rescaled, 0);
}

// An average over windows of a map of 8x8.
Model Average(const std::string& attributes) {
  return Parse(
      "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: f32[1,2,8,8]) -> (%y) {\n%y: f32[1,2,h,w] = AveragePool(%x) {" +
      attributes + "}\n}\n");
}

TEST(DeviceForm, AveragesOverEvenTilesGetAPadThatNoWindowReaches) {
  const auto pads = [](const std::string& attributes) {
    Model model = Average(attributes);
    const std::int64_t changed = ToDeviceForm(model, *FindDevice("qnn")).pads;
    const std::vector<std::int64_t>* all = model.graph->outputs()[0]->producer()->IntsAttribute("pads");
    const std::vector<std::int64_t> last = {0, 0, 0, 1};
    EXPECT_EQ(changed == 1, all != nullptr && *all == last);
    return changed;
  };
  EXPECT_EQ(pads("kernel_shape=[4, 4], strides=[4, 4]"), 1);
  EXPECT_EQ(pads("kernel_shape=[2, 4], strides=[2, 4], pads=[0, 0, 0, 0]"), 1);
  EXPECT_EQ(pads("kernel_shape=[2, 2], strides=[2, 2]"), 0);  // right as they are
  EXPECT_EQ(pads("kernel_shape=[8, 8], strides=[8, 8]"), 0);  // one window
  EXPECT_EQ(pads("kernel_shape=[4, 4], strides=[2, 2]"), 0);
  EXPECT_EQ(pads("kernel_shape=[6, 6], strides=[6, 6]"), 0);  // leaves a rest
  EXPECT_EQ(pads("kernel_shape=[4, 4], strides=[4, 4], pads=[2, 2, 2, 2]"), 0);
}

TEST(DeviceForm, WhatKeepsItsBitsStays) {
  const auto biases = [](const char* device, Model model) { return ToDeviceForm(model, *FindDevice(device)).biases; };
  EXPECT_EQ(biases("cpu", Layer("u16", "7", "[1, 2]", kPlain)), 0);
  EXPECT_EQ(biases("qnn", Layer("u8", "7", "[1, 2]", kPlain)), 0);
  EXPECT_EQ(biases("qnn", Layer("u16", "7", "[1, 2]", "group=2, strides=[2, 2], pads=[1, 1, 1, 1]")), 0);
  EXPECT_EQ(biases("qnn", Layer("u16", "7", "[1, 2]", "group=2, strides=[2, 1], pads=[1, 1, 1, 1]")), 1);
  EXPECT_EQ(biases("qnn", Layer("u16", "7", "[1, 2]", "group=2, strides=[2, 2]", 2)), 1);
  EXPECT_EQ(biases("qnn", Layer("u16", "7", "[1, 2]", "group=2", 1)), 0);
}

TEST(DeviceForm, ADepthwise5x5OfStride2Becomes6x6) {
  constexpr const char* kStride2 = "group=2, strides=[2, 2], pads=[2, 1, 2, 1]";
  Model model = Layer("u16", "7", "[1, 2]", kStride2, 5);
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).kernels, 1);
  const Node& conv = ConvOf(model);
  EXPECT_EQ(*conv.IntsAttribute("pads"), (std::vector<std::int64_t>{3, 2, 2, 1}));
  const std::vector<std::int64_t> codes = conv.input(1)->producer()->input(0)->data->ToInts();
  ASSERT_EQ(codes.size(), 72U);
  Model before = Layer("u16", "7", "[1, 2]", kStride2, 5);
  const std::vector<std::int64_t> small = ConvOf(before).input(1)->producer()->input(0)->data->ToInts();
  for (std::size_t i = 0; i < 72; ++i) {
    const std::size_t c = i / 36, y = i / 6 % 6, x = i % 6;
    EXPECT_EQ(codes[i], y == 0 || x == 0 ? 0 : small[c * 25 + (y - 1) * 5 + x - 1]) << i;
  }
  const auto kernels = [](Model m) { return ToDeviceForm(m, *FindDevice("qnn")).kernels; };
  EXPECT_EQ(kernels(Layer("u16", "0", "[1, 2]", kStride2, 5)), 1);  // wrong too where what is before moves the zero
  EXPECT_EQ(kernels(Layer("u16", "7", "[1, 2]", "group=2, strides=[2, 2]", 5)), 1);  // a Pad may stand before
  EXPECT_EQ(kernels(Layer("u8", "7", "[1, 2]", kStride2, 5)), 0);
  EXPECT_EQ(kernels(Layer("u16", "7", "[1, 2]", "group=2, strides=[2, 1], pads=[2, 2, 2, 2]", 5)), 0);
  EXPECT_EQ(kernels(Layer("u16", "7", "[1, 2]", "group=2, strides=[2, 2], pads=[1, 1, 1, 1]")), 0);
}

TEST(DeviceForm, AnInputThatIsRoundedTwiceIn8BitsIsWidenedWithoutAChange) {
  const auto normal = [](const std::string& x, const std::string& opset = "21") {
    return Parse("ir_version = 10\nopset \"\" = " + opset + "\ngraph @g(%a: " + x +
                 "[2,4]) -> (%y) {\n%s = constant f32[] 0.5\n%z = constant " + x +
                 "[] 3\n%g = constant f32[4] [1, 1, 1, 1]\n%ad: f32[2,4] = DequantizeLinear(%a, %s, %z)\n"
                 "%y: f32[2,4] = LayerNormalization(%ad, %g)\n}\n");
  };
  Model model = normal("u8");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).widened, 1);
  const Node& node = *model.graph->outputs()[0]->producer();
  const Node& dequantize = *node.input(0)->producer();
  EXPECT_EQ(dequantize.input(1)->data->ToFloats(), (std::vector<float>{0.5f / 257}));
  EXPECT_EQ(dequantize.input(2)->data->dtype, DType::kU16);
  EXPECT_EQ(dequantize.input(2)->data->ToInts(), (std::vector<std::int64_t>{3 * 257}));
  EXPECT_TRUE(dequantize.input(0)->producer()->Is("QuantizeLinear"));
  model = normal("u16");
  EXPECT_FALSE(ToDeviceForm(model, *FindDevice("qnn")).changed());
  model = normal("u8", "17");  // a model of 8 bits alone becomes one that has 16
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).widened, 1);
  EXPECT_EQ(model.OpsetVersion(), 21);
  model = normal("u8");
  EXPECT_FALSE(ToDeviceForm(model, *FindDevice("cpu")).changed());
}

TEST(DeviceForm, AWidenedOperatorThatGives8BitsGivesThemThrough16) {
  const auto normal = [](const std::string& y) {
    return Parse(
        "ir_version = 10\nopset \"\" = 21\ngraph @g(%a: u8[2,4]) -> (%q) {\n%s = constant f32[] 0.5\n"
        "%z = constant u8[] 3\n%o = constant " +
        y +
        "[] 7\n%g = constant f32[4] [1, 1, 1, 1]\n"
        "%ad: f32[2,4] = DequantizeLinear(%a, %s, %z)\n%y: f32[2,4] = LayerNormalization(%ad, %g)\n%q: " +
        y + "[2,4] = QuantizeLinear(%y, %s, %o)\n}\n");
  };
  Model model = normal("u8");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).widened, 1);
  const Node& wide = *model.graph->outputs()[0]->producer()->input(0)->producer();
  ASSERT_TRUE(wide.Is("DequantizeLinear"));
  EXPECT_EQ(wide.input(1)->data->ToFloats(), (std::vector<float>{0.5f / 257}));
  EXPECT_EQ(wide.input(2)->data->ToInts(), (std::vector<std::int64_t>{7 * 257}));
  EXPECT_TRUE(wide.input(0)->producer()->input(0)->producer()->Is("LayerNormalization"));
  model = normal("u16");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).widened, 1);
  EXPECT_TRUE(model.graph->outputs()[0]->producer()->input(0)->producer()->Is("LayerNormalization"));
}

TEST(DeviceForm, ACastOfBoolBecomesAWhereOfCodes) {
  const auto cast = [](const std::string& to, const std::string& behind) {
    return Parse(
        "ir_version = 10\nopset \"\" = 21\ngraph @g(%a: s32[4,1], %b: s32[1,3]) -> (%y) {\n"
        "%s = constant f32[] 0.00390625\n%z = constant u8[] 0\n%e: bool[4,3] = Equal(%a, %b)\n"
        "%c: f32[4,3] = Cast(%e) {to=" +
        to + "}\n" + behind + "}\n");
  };
  Model model = cast("1", "%y: u8[4,3] = QuantizeLinear(%c, %s, %z)\n");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).selected, 1);
  const Node& where = *model.graph->outputs()[0]->producer()->input(0)->producer();
  ASSERT_TRUE(where.Is("Where"));
  EXPECT_TRUE(where.input(0)->producer()->Is("Equal"));
  EXPECT_EQ(where.output()->name(), "c");
  EXPECT_EQ(where.input(1)->producer()->input(0)->data->ToInts(), std::vector<std::int64_t>{255});  // 0.99609375
  EXPECT_EQ(where.input(2)->producer()->input(0)->data->ToInts(), std::vector<std::int64_t>{0});
  model = cast("1", "%y: f32[4,3] = Neg(%c)\n");  // in float
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).selected, 1);
  const Node& plain = *model.graph->outputs()[0]->producer()->input(0)->producer();
  EXPECT_EQ(plain.input(1)->data->ToFloats(), std::vector<float>{1});
  EXPECT_EQ(plain.input(2)->data->ToFloats(), std::vector<float>{0});
  model = cast("7", "%y: s64[4,3] = Neg(%c)\n");
  EXPECT_FALSE(ToDeviceForm(model, *FindDevice("qnn")).changed());
  model = cast("1", "%y: f32[4,3] = Neg(%c)\n");
  EXPECT_FALSE(ToDeviceForm(model, *FindDevice("cpu")).changed());
}

TEST(DeviceForm, AFloatTanhIsKeptApartFromTheSumThatItReads) {
  const auto after = [](const std::string& maker, const std::string& op) {
    return Parse(
        "ir_version = 10\nopset \"\" = 21\ngraph @g(%a: f32[4,4], %b: f32[4,4]) -> (%y) {\n"
        "%m: f32[4,4] = " +
        maker + "(%a, %b)\n%y: f32[4,4] = " + op + "(%m)\n}\n");
  };
  Model model = after("Add", "Tanh");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).bounded, 1);
  const Node& clip = *model.graph->outputs()[0]->producer()->input(0)->producer();
  ASSERT_TRUE(clip.Is("Clip"));
  EXPECT_TRUE(clip.input(0)->producer()->Is("Add"));
  EXPECT_EQ(clip.input(1)->data->ToFloats(), std::vector<float>{-9});
  EXPECT_EQ(clip.input(2)->data->ToFloats(), std::vector<float>{9});
  const auto bounded = [](Model m) { return ToDeviceForm(m, *FindDevice("qnn")).bounded; };
  EXPECT_EQ(bounded(after("MatMul", "Sigmoid")), 1);
  EXPECT_EQ(bounded(after("Add", "Gelu")), 1);
  EXPECT_EQ(bounded(after("Mul", "Tanh")), 0);
  EXPECT_EQ(bounded(after("Add", "Exp")), 0);
}

TEST(DeviceForm, FloatsThatWereMovedAreClippedBeforeTheyAreRoundedTo8Bits) {
  const auto moved = [](const std::string& op, const std::string& codes) {
    return Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%a: f32[2,4], %q: " + codes +
                 "[2,4]) -> (%y, %v) {\n%s = constant f32[] 0.5\n%z = constant " + codes +
                 "[] 100\n%m: f32[2,4] = Mul(%a, %a)\n%t: f32[4,2] = " + op + "(%m)\n%y: " + codes +
                 "[4,2] = QuantizeLinear(%t, %s, %z)\n%d: f32[2,4] = DequantizeLinear(%q, %s, %z)\n"
                 "%u: f32[4,2] = Transpose(%d)\n%v: " +
                 codes + "[4,2] = QuantizeLinear(%u, %s, %z)\n}\n");
  };
  Model model = moved("Transpose", "u8");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).bounded, 1);
  const Node& clip = *model.graph->outputs()[0]->producer()->input(0)->producer();
  ASSERT_TRUE(clip.Is("Clip"));
  EXPECT_EQ(clip.input(1)->data->ToFloats(), std::vector<float>{-50});
  EXPECT_EQ(clip.input(2)->data->ToFloats(), std::vector<float>{77.5});
  EXPECT_TRUE(model.graph->outputs()[1]->producer()->input(0)->producer()->Is("Transpose"));  // codes are moved
  const auto bounded = [](Model m) { return ToDeviceForm(m, *FindDevice("qnn")).bounded; };
  EXPECT_EQ(bounded(moved("Transpose", "u16")), 0);
  EXPECT_EQ(bounded(moved("Exp", "u8")), 0);
}

TEST(DeviceForm, RecurrentOperatorsAreUnrolled) {
  Model model = Parse(
      "ir_version = 10\nopset \"\" = 17\ngraph @g(%x: f32[2,1,1]) -> (%y) {\n"
      "%w = constant f32[1,1,1] [0.5]\n%r = constant f32[1,1,1] [0.25]\n"
      "%y: f32[2,1,1,1] = RNN(%x, %w, %r) {hidden_size=1}\n}\n");
  const DeviceForm form = ToDeviceForm(model, *FindDevice("qnn"));
  EXPECT_EQ(form.unrolled, 1);
  EXPECT_EQ(form.bounded, 1);  // the first step reads the split sum of the inputs' products
  for (const Node* node : model.graph->nodes()) EXPECT_FALSE(node->Is("RNN"));
  EXPECT_EQ(model.graph->outputs()[0]->name(), "y");
}

// A convolution of one tap and stride 2 over what `op` makes of the codes of x, and another reader of that or none.
Model Strided(const std::string& op, const std::string& dtype = "u16", const std::string& width = "8",
              bool another_reader = false, const std::string& attributes = "strides=[1, 2]") {
  const std::string x = "[1,2,1," + width + "]";
  std::string text = "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + dtype + x + ") -> (%y" +
                     (another_reader ? ", %other" : "") + ") {\n";
  text += "%s = constant f32[] 0.5\n%z = constant " + dtype + "[] 0\n%d: f32" + x + " = DequantizeLinear(%x, %s, %z)\n";
  text += "%a: f32" + x + " = " + op + "(%d, %d)\n%q: " + dtype + x + " = QuantizeLinear(%a, %s, %z)\n";
  text += "%e: f32" + x + " = DequantizeLinear(%q, %s, %z)\n%w = constant s8[2,2,1,1] [1, 2, 3, 4]\n";
  text += "%sw = constant f32[] 0.25\n%zw = constant s8[] 0\n%wd: f32[2,2,1,1] = DequantizeLinear(%w, %sw, %zw)\n";
  if (another_reader) text += "%other: f32" + x + " = Neg(%e)\n";
  return Parse(text + "%y: f32[1,2,p,q] = Conv(%e, %wd) {" + attributes + "}\n}\n");
}

TEST(DeviceForm, AStrideOverASumBecomesASlice) {
  Model model = Strided("Add");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).strides, 1);
  const Node& conv = ConvOf(model);
  EXPECT_EQ(*conv.IntsAttribute("strides"), (std::vector<std::int64_t>{1, 1}));
  const Node* slice = conv.input(0)->producer()->input(0)->producer()->input(0)->producer();
  ASSERT_TRUE(slice->Is("Slice"));
  EXPECT_EQ(slice->input(4)->data->ToInts(), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(StaticShape(slice->output()->type), (Dims{1, 2, 1, 4}));

  const auto strides = [](Model m) { return ToDeviceForm(m, *FindDevice("qnn")).strides; };
  EXPECT_EQ(strides(Strided("Mul")), 0);
  EXPECT_EQ(strides(Strided("Add", "u8")), 0);
  EXPECT_EQ(strides(Strided("Add", "u16", "8", true)), 0);
  EXPECT_EQ(strides(Strided("Add", "u16", "n")), 0);
  EXPECT_EQ(strides(Strided("Add", "u16", "8", false, "strides=[1, 1]")), 0);
  EXPECT_EQ(strides(Strided("Add", "u16", "8", false, "strides=[1, 2], pads=[0, 0, 0, 1]")), 0);
}

TEST(DeviceForm, AnLrnIsKeptFromCodes) {
  const auto bounded = [](const std::string& op, const std::string& input) {
    Model model = Parse(
        "ir_version = 10\nopset \"\" = 21\ngraph @g(%x: u16[1,4,2,2]) -> (%y) {\n"
        "%s = constant f32[] 0.5\n%z = constant u16[] 0\n"
        "%d: f32[1,4,2,2] = DequantizeLinear(%x, %s, %z)\n%a: f32[1,4,2,2] = Abs(%d)\n"
        "%l: f32[1,4,2,2] = " +
        op + "(" + input + ") {size=3}\n%y: u16[1,4,2,2] = QuantizeLinear(%l, %s, %z)\n}\n");
    const auto count = ToDeviceForm(model, *FindDevice("qnn")).bounded;
    const Node* l = model.graph->FindValue("l")->producer();
    EXPECT_EQ(l->input(0)->producer()->Is("Clip"), count == 1);
    return count;
  };
  EXPECT_EQ(bounded("LRN", "%d"), 1);
  EXPECT_EQ(bounded("LRN", "%a"), 0);
  EXPECT_EQ(bounded("Neg", "%d"), 0);
}

TEST(DeviceForm, ATanhInSixteenBitsIsFloat) {
  const auto of = [](const std::string& op, const std::string& dtype) {
    return Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + dtype +
                 "[4]) -> (%y) {\n%s = constant f32[] 0.5\n" + "%z = constant " + dtype +
                 "[] 0\n%d: f32[4] = DequantizeLinear(%x, %s, %z)\n%t: f32[4] = " + op + "(%d)\n%y: " + dtype +
                 "[4] = QuantizeLinear(%t, %s, %z)\n}\n");
  };
  Model model = of("Tanh", "u16");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).bounded, 1);
  const Node* clip = model.graph->FindValue("y")->producer()->input(0)->producer();
  ASSERT_TRUE(clip->Is("Clip"));
  EXPECT_TRUE(clip->input(0)->producer()->Is("Tanh"));
  EXPECT_EQ(clip->input(1)->data->ToFloats(), (std::vector<float>{-1}));
  const auto bounded = [](Model m) { return ToDeviceForm(m, *FindDevice("qnn")).bounded; };
  EXPECT_EQ(bounded(of("Sigmoid", "u16")), 0);
  EXPECT_EQ(bounded(of("Tanh", "u8")), 0);
}

TEST(DeviceForm, AProductWithItsSigmoidInSixteenBitsIsKeptApart) {
  const auto silu = [](const std::string& op, const std::string& dtype, const std::string& factor) {
    const std::string type = dtype + "[4]", f32 = ": f32[4] = ";
    return Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%q: " + type + ", %p: " + type +
                 ") -> (%y) {\n%s = constant f32[] 0.5\n%z = constant " + dtype + "[] 0\n%d" + f32 +
                 "DequantizeLinear(%q, %s, %z)\n%e" + f32 + "DequantizeLinear(%" + factor + ", %s, %z)\n%t" + f32 + op +
                 "(%d)\n%u: " + type + " = QuantizeLinear(%t, %s, %z)\n%v" + f32 + "DequantizeLinear(%u, %s, %z)\n%m" +
                 f32 + "Mul(%v, %e)\n%y: " + type + " = QuantizeLinear(%m, %s, %z)\n}\n");
  };
  Model model = silu("Sigmoid", "u16", "q");
  EXPECT_EQ(ToDeviceForm(model, *FindDevice("qnn")).unfused, 1);
  const Node& apart = *model.graph->FindValue("m")->producer()->input(0)->producer();
  EXPECT_EQ(apart.input(1)->data->ToFloats(), std::vector<float>{0.5F * (1 + 1.0F / 512)});
  EXPECT_EQ(apart.input(0)->producer()->input(0)->name(), "v");
  const auto unfused = [](Model m) { return ToDeviceForm(m, *FindDevice("qnn")).unfused; };
  EXPECT_EQ(unfused(silu("HardSigmoid", "u16", "q")), 0);
  EXPECT_EQ(unfused(silu("Sigmoid", "u8", "q")), 0);
  EXPECT_EQ(unfused(silu("Sigmoid", "u16", "p")), 0);  // of another number: right as it is
}

TEST(DeviceForm, TheConstantOfAScaledSumComesFirst) {
  const auto ordered = [](const std::string& add, const std::string& constant) {
    Model model = Parse("opset \"\" = 20\ngraph @g(%x: f32[2,4]) -> (%y) {\n%c = constant f32" + constant +
                        "\n%s = constant f32[] 0.5\n%a: f32[2,4] = " + add + "\n%y: f32[2,4] = Mul(%a, %s)\n}");
    const std::int64_t count = ToDeviceForm(model, *FindDevice("qnn")).ordered;
    EXPECT_EQ(model.graph->FindValue("a")->producer()->input(0)->is_constant(), count > 0 || add == "Add(%c, %x)");
    return count;
  };
  EXPECT_EQ(ordered("Add(%x, %c)", "[4] [1, 2, 3, 4]"), 1);
  EXPECT_EQ(ordered("Add(%c, %x)", "[4] [1, 2, 3, 4]"), 0);
  EXPECT_EQ(ordered("Sub(%x, %c)", "[4] [1, 2, 3, 4]"), 0);
  EXPECT_EQ(ordered("Add(%x, %c)", "[] 2"), 0);
}

TEST(DeviceForm, ALogOfSixteenBitsIsFloat) {
  const auto bounded = [](const std::string& dtype) {
    Model model = Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + dtype +
                        "[4]) -> (%y) {\n%s = constant f32[] 0.5\n%z = constant " + dtype +
                        "[] 0\n%d: f32[4] = DequantizeLinear(%x, %s, %z)\n%t: f32[4] = Log(%d)\n%y: " + dtype +
                        "[4] = QuantizeLinear(%t, %s, %z)\n}\n");
    return ToDeviceForm(model, *FindDevice("qnn")).bounded;
  };
  EXPECT_EQ(bounded("u16"), 1);
  EXPECT_EQ(bounded("u8"), 0);
}

TEST(DeviceForm, WhatTheDeviceLacksIsSpelledOut) {
  const auto spelled = [](const std::string& op, const std::string& codes, const char* device = "qnn") {
    Model model = Parse("ir_version = 10\nopset \"\" = 21\ngraph @g(%x: " + codes +
                        "[2,4]) -> (%y) {\n%s = constant f32[] 0.5\n%z = constant " + codes +
                        "[] 0\n%d: f32[2,4] = DequantizeLinear(%x, %s, %z)\n%o: f32[2,4] = " + op + "\n%y: " + codes +
                        "[2,4] = QuantizeLinear(%o, %s, %z)\n}\n");
    const std::int64_t count = ToDeviceForm(model, *FindDevice(device)).spelled;
    EXPECT_EQ(Verify(model), std::vector<std::string>{}) << op;
    return count;
  };
  EXPECT_EQ(spelled("Mish(%d)", "u8"), 1);
  EXPECT_EQ(spelled("Mish(%d)", "u8", "cpu"), 0);
  EXPECT_EQ(spelled("Softplus(%d)", "u8"), 0);  // a table has it
  EXPECT_EQ(spelled("Softplus(%d)", "u16"), 1);
  EXPECT_EQ(spelled("LpNormalization(%d)", "u8"), 1);
  EXPECT_EQ(spelled("LpNormalization(%d)", "u16"), 0);
  EXPECT_EQ(spelled("LpNormalization(%d) {p=1}", "u16"), 1);
}

}  // namespace
}  // namespace octavo
