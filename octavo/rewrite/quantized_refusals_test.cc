// Every sentence with which a rule of the quantized road refuses, by a graph that it refuses: without the check the
// rule would apply, or say something else. What goes wrong without the conditions that the rules name themselves is
// shown by Mutation.EveryConditionHasACounterexample.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "octavo/rewrite/quantized_test_util.h"

namespace octavo {
namespace {

struct RefusedCase {
  std::string rule, reason, text;
  int opset = 21;
};

void ExpectRefused(const std::vector<RefusedCase>& cases) {
  for (const RefusedCase& c : cases) {
    SCOPED_TRACE(c.rule + ": " + c.reason + "\n" + c.text);
    Model model = testing::ParseIr(c.text, c.opset);
    const QuantizedRewriteResult result = RewriteQuantized(model, testing::Cpu(), testing::Only({c.rule}));
    EXPECT_EQ(result.rules.rules[0].applied, 0);
    EXPECT_TRUE(std::any_of(result.rules.trace.begin(), result.rules.trace.end(), [&](const TraceEntry& t) {
      return t.reason.find(c.reason) != std::string::npos;
    })) << (result.rules.trace.empty() ? "no sentence" : result.rules.trace[0].reason);
  }
}

// A layer of %x [6,4] or [1,4,6] and %w [4,4] or [4,4,1]; `y`: quantization of the output, or nothing.
struct Layer {
  std::string rule, op, y = "u8(scale=0.05, zero=100)";
  std::string x = "u8(scale=0.02, zero=3)", w = "u8(scale=0.01, zero=100)", more = "", last = "", attributes = "";
  bool conv() const { return op == "Conv"; }
  static std::string Raw(const std::string& type) { return type.substr(0, type.find('(')); }
  std::string Text() const {
    const std::string xs = conv() ? "[1,4,6]" : "[6,4]", ws = conv() ? "[4,4,1]" : "[4,4]";
    const std::string weight = w.empty() ? "%w = constant f32" + ws + " splat(1)\n"
                                         : "%w: f32" + ws + " # " + w + " = constant " + Raw(w) + ws + " splat(7)\n";
    return "graph @g(%a: " + Raw(x) + xs + ", %f: f32[4]) -> (%o) {\n%x: f32" + xs + " # " + x +
           " = StorageCast(%a)\n" + weight + more + (y.empty() ? "%o: f32" + xs : "%y: f32" + xs + " # " + y) + " = " +
           op + "(%x, %w" + last + ")" + attributes + "\n" +
           (y.empty() ? "" : "%o: " + Raw(y) + xs + " = StorageCast(%y)\n") + "}";
  }
};

TEST(Refused, Layers) {
  std::vector<RefusedCase> cases;
  const std::string zeros = ", scale=f32[4] [0.1,0.2,0.3,0.4], zero=u8[4] [1,2,3,4])";
  for (const Layer& plain : {Layer{"qlinear-conv", "Conv"}, Layer{"qlinear-matmul", "MatMul"}, Layer{"qgemm", "Gemm"},
                             Layer{"matmul-integer-to-float", "MatMul", ""}, Layer{"qgemm-to-float", "Gemm", ""}}) {
    const auto add = [&](const std::string& reason, auto change) {
      Layer layer = plain;
      change(layer);
      cases.push_back({layer.rule, reason, layer.Text()});
    };
    add("its input is not quantized to 8 bits per tensor", [](Layer& l) { l.x = "u16(scale=0.001, zero=3)"; });
    add("its weight is not quantized with f32 scales", [](Layer& l) { l.w.clear(); });
    add("its weight has codes of type s16; the kernel takes 8 bits", [](Layer& l) { l.w = "s16(scale=0.01, zero=0)"; });
    add("the channels of its weight have different zero points",
        [&](Layer& l) { l.w = std::string("u8(axis=") + (l.conv() ? "0" : "1") + zeros; });
    add("there is no kernel for s8 activations and u8 weights", [](Layer& l) {
      l.x = "s8(scale=0.02, zero=3)";
      if (!l.y.empty()) l.y = "s8(scale=0.05, zero=3)";
    });
    if (!plain.y.empty()) {
      add("its input has codes of type u8 and its output of type s8", [](Layer& l) { l.y = "s8(scale=0.05, zero=3)"; });
      add("its output is not quantized to 8 bits per tensor", [](Layer& l) { l.y = "u16(scale=0.001, zero=3)"; });
    }
    if (plain.op == "MatMul") continue;
    add("its bias is no constant of s32 codes", [](Layer& l) { l.last = ", %f"; });
    add("its bias has a zero point other than 0", [](Layer& l) {
      l.more = "%b: f32[4] # s32(scale=0.0002, zero=3) = constant s32[4] [3,4,5,6]\n";
      l.last = ", %b";
    });
    if (plain.op == "Conv") continue;
    add("beta is not 1", [](Layer& l) {
      l.more = "%b: f32[4] # s32(scale=0.0002) = constant s32[4] [3,4,5,6]\n";
      l.last = ", %b";
      l.attributes = " {beta=0.5}";
    });
    add("its bias is not one number a column", [](Layer& l) {
      l.more = "%b: f32[6,4] # s32(scale=0.0002) = constant s32[6,4] splat(3)\n";
      l.last = ", %b";
    });
  }
  cases.push_back({"qlinear-matmul", "its right operand has one scale an index and more than two dimensions",
                   "graph @g(%a: u8[2,6,4]) -> (%o) {\n%x: f32[2,6,4] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: "
                   "f32[2,4,4] # u8(axis=2, scale=f32[4] [1,2,3,4]) = constant u8[2,4,4] splat(7)\n%y: f32[2,6,4] # "
                   "u8(scale=9, zero=0) = MatMul(%x, %w)\n%o: u8[2,6,4] = StorageCast(%y)\n}"});
  ExpectRefused(cases);
}

TEST(Refused, BiasesAndFactors) {
  const std::string b = "%b = constant f32[4] [1,2,3,4]\n", given = ", %b";
  const auto behind = [](Layer layer, const std::string& tail, const std::string& out) {
    layer.y.clear();
    std::string text = layer.Text();
    text.replace(text.find("%o: f32"), 2, "%c");
    text.replace(text.find("-> (%o)"), 7, "-> (" + out + ")");
    return text.substr(0, text.size() - 1) + tail + "\n}";
  };
  const std::string add =
      "%k = constant f32[4] [1,2,3,4]\n%y: f32[6,4] # u8(scale=0.1, zero=100) = Add(%c, %k)\n%o: "
      "u8[6,4] = StorageCast(%y)";
  const auto mul = [](const std::string& k, const char* op = "Mul") {
    return "%k = constant f32[4] " + k + "\n%m: f32[6,4] = " + op + "(%c, %k)\n%o: f32[6,4] = Neg(%m)";
  };
  const Layer gemm{"", "Gemm"};
  Layer beta = gemm, computed = gemm, wide = gemm, biased = gemm;
  beta.more = biased.more = b;
  beta.last = biased.last = given;
  beta.attributes = " {beta=0.5}";
  computed.last = ", %f";
  wide.more = "%b = constant f32[6,4] splat(1)\n";
  wide.last = given;
  Layer plain = biased;
  plain.y.clear();
  Layer nan = biased;
  nan.more = "%b = constant f32[4] [1,nan,3,4]\n";
  ExpectRefused({
      {"integer-bias", "its output is float", plain.Text()},
      {"integer-bias", "beta is not 1", beta.Text()},
      {"integer-bias", "its bias is computed, or is not one finite number", computed.Text()},
      {"integer-bias", "its bias is computed, or is not one finite number", wide.Text()},
      {"integer-bias", "its bias is computed, or is not one finite number", nan.Text()},
      {"raise-weight-scale", "its bias is computed, or is not one finite number", computed.Text()},
      {"add-into-bias", "beta is not 1", behind(beta, add, "%o")},
      {"add-into-bias", "is computed, or is not one number a channel", behind(computed, add, "%o")},
      {"add-into-bias", "is computed, or is not one number a channel", behind(wide, add, "%o")},
      {"scale-into-weight", "is computed", behind(computed, mul("[1,2,3,4]"), "%o")},
      {"scale-into-weight", "is not one number a channel", behind(wide, mul("[1,2,3,4]"), "%o")},
      {"scale-into-weight", "the factor 0 in channel 1", behind(gemm, mul("[1,0,3,4]"), "%o")},
      {"scale-into-weight", "the factor -3 in channel 2", behind(gemm, mul("[1,2,-3,4]"), "%o")},
      {"scale-into-weight", "the factor inf in channel 3", behind(gemm, mul("[1,2,3,0]", "Div"), "%o")},
      {"scale-into-weight", "makes no positive normal scale", behind(gemm, mul("[1e-40,2,3,4]"), "%o")},
  });
}

// One value, one operator; `x`, `y`: quantizations.
std::string One(const std::string& x, const std::string& y, const std::string& shape, const std::string& out,
                const std::string& more, const std::string& op, const std::string& inputs = "") {
  return "graph @g(%a: " + Layer::Raw(x) + shape + inputs + ") -> (%o) {\n%x: f32" + shape + " # " + x +
         " = StorageCast(%a)\n" + more + "%y: f32" + out + (y.empty() ? "" : " # " + y) + " = " + op +
         "\n%o: " + (y.empty() ? "f32" + out + " = Neg(%y)" : Layer::Raw(y) + out + " = StorageCast(%y)") + "\n}";
}

TEST(Refused, CodesThatMoveAndClip) {
  const std::string p = "u8(scale=0.02, zero=100)", wide = "u16(scale=0.02, zero=100)";
  const std::string each = "u8(axis=0, scale=f32[4] [0.1,0.2,0.3,0.4])";
  const std::string two = "constant s64[2] [1,1]\n";
  ExpectRefused({
      {"move-codes", "one scale an index", One(each, p, "[4,4]", "[4,4]", "", "Transpose(%x) {perm=[1,0]}")},
      {"move-codes", "has no MaxPool for u16",
       One(wide, wide, "[1,1,4]", "[1,1,3]", "", "MaxPool(%x) {kernel_shape=[2]}")},
      {"move-codes", "takes integers from operator set 12 on",
       One(p, p, "[1,1,4]", "[1,1,3]", "", "MaxPool(%x) {kernel_shape=[2]}"), 11},
      {"move-codes", "it may write extrapolation_value",
       One(p, p, "[1,1,4,4]", "[1,1,8,8]", "%r = constant f32[8] [0,0,-1,-1,1,1,2,2]\n%k = constant f32[4] [1,1,2,2]\n",
           "Resize(%x, %r, %k) {mode=\"nearest\", coordinate_transformation_mode=\"tf_crop_and_resize\", "
           "extrapolation_value=9.0}")},
      {"move-codes", "its output 'z' is float",
       "graph @g(%a: u8[4]) -> (%o, %n) {\n%x: f32[4] # " + p +
           " = StorageCast(%a)\n%s = constant s64[2] [2,2]\n%y: "
           "f32[2] # " +
           p + ", %z: f32[2] = Split(%x, %s)\n%o: u8[2] = StorageCast(%y)\n%n: f32[2] = Neg(%z)\n}"},
      {"move-codes", "its indices are used",
       "graph @g(%a: u8[1,1,4]) -> (%o, %i) {\n%x: f32[1,1,4] # " + p + " = StorageCast(%a)\n%y: f32[1,1,3] # " + p +
           ", %i: s64[1,1,3] = MaxPool(%x) {kernel_shape=[2]}\n%o: u8[1,1,3] = StorageCast(%y)\n}"},
      {"join-codes", "input 1 is not quantized per tensor",
       One(p, p, "[4]", "[8]", "", "Concat(%x, %f) {axis=0}", ", %f: f32[4]")},
      {"join-codes", "has no Where for u16", One(wide, wide, "[4]", "[4]", "", "Where(%c, %x, %x)", ", %c: bool[4]")},
      {"integer-pad", "has no Pad for u16", One(wide, wide, "[4]", "[6]", "%k = " + two, "Pad(%x, %k)")},
      {"integer-pad", "its padding is an attribute", One(p, p, "[4]", "[6]", "", "Pad(%x) {pads=[1,1]}"), 10},
      {"integer-pad", "its constant is computed, or has parameters of its own",
       One(p, p, "[4]", "[6]", "%k = " + two, "Pad(%x, %k, %v)", ", %v: f32[]")},
      {"integer-pad", "its constant is computed, or has parameters of its own",
       One(p, p, "[4]", "[6]", "%k = " + two + "%v: f32[] # u8(scale=0.5, zero=0) = constant u8[] 3\n",
           "Pad(%x, %k, %v)")},
      {"integer-pad", "it pads with NaN",
       One(p, p, "[4]", "[6]", "%k = " + two + "%v = constant f32[] nan\n", "Pad(%x, %k, %v)")},
      {"integer-clip", "has no integer Clip for u16", One(wide, wide, "[4]", "[4]", "", "Relu(%x)")},
      {"integer-clip", "takes integers from operator set 12 on", One(p, p, "[4]", "[4]", "", "Relu(%x)"), 11},
      {"integer-clip", "its bounds are computed", One(p, p, "[4]", "[4]", "", "Clip(%x, %v)", ", %v: f32[]")},
      {"integer-clip", "crossed",
       One(p, p, "[4]", "[4]", "%l = constant f32[] 1\n%h = constant f32[] -1\n", "Clip(%x, %l, %h)")},
      {"drop-clip", "its bounds are computed", One(p, p, "[4]", "[4]", "", "Clip(%x, %v)", ", %v: f32[]")},
      {"absorb-requantize", "the first quantization is of a float value",
       "graph @g(%x: f32[4]) -> (%o) {\n%q: f32[4] # u8(scale=0.02, zero=100) = Quantize(%x)\n%y: f32[4] # "
       "u8(scale=0.01, zero=100) = Requantize(%q)\n%o: u8[4] = StorageCast(%y)\n}"},
      {"absorb-requantize", "it quantizes the output of Requantize again",
       One(p, "u8(scale=0.03, zero=1)", "[4]", "[4]", "%m: f32[4] # u8(scale=0.01, zero=100) = Requantize(%x)\n",
           "Requantize(%m)")},
      {"absorb-requantize", "it cannot write other parameters than it reads",
       One(p, "u8(scale=0.01, zero=100)", "[4]", "[4]", "%m: f32[4] # " + p + " = Identity(%x)\n", "Requantize(%m)")},
      {"choose-at-load", "its activations are not u8",
       "graph @g(%a: s8[3,128]) -> (%o) {\n%s = constant f32[] 0.01\n%za = constant s8[] 3\n%w = constant u8[128,128] "
       "splat(2)\n%zw = constant u8[] 1\n%zo = constant s8[] 9\n%o: s8[3,128] = QLinearMatMul(%a, %s, %za, %w, %s, "
       "%zw, "
       "%s, %zo)\n}"},
      {"float-weight", "its weight is computed",
       One(p, "", "[4,4]", "[4,4]", "%w: f32[4,4] # u8(axis=0, scale=f32[4] [1,2,3,4]) = StorageCast(%b)\n",
           "MatMul(%x, %w)", ", %b: u8[4,4]")},
      {"float-weight", "is computed and has scales along axis 0",
       One(p, p, "[4,4]", "[4,4]", "%w: f32[4,4] # u8(axis=0, scale=f32[4] [1,2,3,4]) = StorageCast(%b)\n",
           "Add(%x, %w)", ", %b: u8[4,4]")},
  });
}

TEST(Refused, Elementwise) {
  const std::string p = "u8(scale=0.02, zero=100)", wide = "u16(scale=0.02, zero=100)", image = "[1,2,4,4]";
  std::vector<RefusedCase> cases;
  for (const auto& [rule, op, out] : {std::array<std::string, 3>{"qlinear-binary", "Add(%x, %x)", image},
                                      {"qlinear-table", "Sigmoid(%x)", image},
                                      {"qlinear-join", "Where(%c, %x, %x)", image},
                                      {"qlinear-softmax", "Softmax(%x)", image},
                                      {"qlinear-pool", "GlobalAveragePool(%x)", "[1,2,1,1]"}}) {
    cases.push_back({rule, "its output is not quantized to 8 bits per tensor",
                     One(p, wide, image, out, "", op, ", %c: bool[1,2,4,4]")});
    cases.push_back({rule, "its input 'x' is not quantized to 8 bits per tensor",
                     One(wide, p, image, out, "", op, ", %c: bool[1,2,4,4]")});
  }
  cases.push_back(
      {"qlinear-pool", "their number is rounded up",
       One(p, p, image, "[1,2,2,2]", "", "AveragePool(%x) {kernel_shape=[3,3], strides=[2,2], ceil_mode=1}")});
  ExpectRefused(cases);
}

TEST(Refused, Blocks) {
  const auto product = [](const std::string& type, const std::string& codes, const std::string& scales,
                          const std::string& shape, const std::string& op, const std::string& out = "[2,4]") {
    return "graph @g(%x: f32[2,32], %i: s64[2], %j: s64[2,32]) -> (%o) {\n%w: f32" + shape + " # " + type + "(" +
           codes + "block=16, scale=f32" + scales + " splat(0.5)) = constant " + type + shape +
           " splat(3)\n%k = constant s64[5] [0,1,2,3,0]\n%y: f32" + out + " = " + op + "\n%o: f32" + out +
           " = Neg(%y)\n}";
  };
  const std::string quantized =
      "graph @g(%a: u8[2,32]) -> (%o) {\n%x: f32[2,32] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: f32[32,4] # "
      "s4(axis=0, block=16, scale=f32[2,4] splat(0.5)) = constant s4[32,4] splat(3)\n%o: f32[2,4] = MatMul(%x, %w)\n}";
  ExpectRefused({
      {"block-weights", "its activations are quantized too", quantized},
      {"block-weights", "its weight has 3 dimensions",
       product("s4", "axis=1, ", "[2,2,4]", "[2,32,4]", "MatMul(%x, %w)", "[2,2,4]")},
      {"block-weights", "its weight has codes of type s8",
       product("s8", "axis=0, ", "[2,4]", "[32,4]", "MatMul(%x, %w)")},
      {"block-weights", "a zero point other than the middle code",
       product("u4", "axis=0, ", "[2,4]", "[32,4]", "MatMul(%x, %w)")},
      {"move-parameters", "it takes 5 of 4 rows",
       product("s4", "axis=1, ", "[4,2]", "[4,32]", "Gather(%w, %k)", "[5,32]")},
      {"block-weights", "it does not gather whole rows",
       product("s4", "axis=1, ", "[4,2]", "[4,32]", "Gather(%w, %i) {axis=1}", "[4,2]")},
      {"block-weights", "rows of 31 4-bit codes are no whole bytes",
       product("s4", "axis=1, ", "[4,2]", "[4,31]", "Gather(%w, %i)", "[2,31]")},
  });
}

TEST(Refused, ParametersThatMove) {
  const auto moved = [](const std::string& op, const std::string& out, const std::string& more = "",
                        const std::string& type = "u8(axis=0, scale=f32[4] [1,2,3,4])") {
    return "graph @g(%x: f32[1], %i: s64[2], %n: s64[1]) -> (%o) {\n%w: f32[4,4] # " + type + " = constant " +
           Layer::Raw(type) + "[4,4] splat(3)\n" + more + "%y: f32" + out + " = " + op + "\n%o: f32" + out +
           " = Add(%y, %x)\n}";
  };
  const auto n = [](const char* name, const char* v) {
    return std::string("%") + name + " = constant s64[1] [" + v + "]\n";
  };
  const std::string ends = n("b", "1") + n("e", "3");
  const std::string split =
      "graph @g(%i: s64[2]) -> (%o, %p) {\n%w: f32[4,4] # u8(axis=0, scale=f32[4] [1,2,3,4]) = "
      "constant u8[4,4] splat(3)\n%y: f32[2,4], %z: f32[2,4] = Split(%w, %i) {axis=0}\n%o: f32[2,4] "
      "= Neg(%y)\n%p: f32[2,4] = Neg(%z)\n}";
  const std::string halves = "%y: f32[2,4], %z: f32[2,4] = ";
  const auto parts = [](const std::string& op, const std::string& y = "") {
    return "graph @g(%x: f32[1]) -> (%o, %p) {\n%w: f32[4,4] # u8(axis=0, scale=f32[4] [1,2,3,4]) = constant u8[4,4] "
           "splat(3)\n%k = constant s64[2] [2,2]\n%e = constant s64[2] [3,2]\n%y: f32[2,4]" +
           y + ", %z: f32[2,4] = " + op + "\n%o: f32[2,4] = Add(%y, %x)\n%p: f32[2,4] = Add(%z, %x)\n}";
  };
  const auto four = [](const std::string& line) {
    return "graph @g(%b: s4[4,4]) -> (%o) {\n%w: f32[4,4] # s4(axis=0, scale=f32[4] [1,2,3,4]) = StorageCast(%b)\n%k = "
           "constant s64[2] [2,2]\n" +
           line + "\n%o: f32[*] = Neg(%y)\n}";
  };
  ExpectRefused({
      {"move-parameters", "its bounds are computed", moved("Slice(%w, %n, %e)", "[2,4]", ends)},
      {"move-parameters", "its axes are computed", moved("Slice(%w, %b, %e, %n)", "[2,4]", ends)},
      {"move-parameters", "its steps are computed", moved("Slice(%w, %b, %e, %a, %n)", "[2,4]", ends + n("a", "0"))},
      {"move-parameters", "its axes or steps are not those of a Slice",
       moved("Slice(%w, %b, %e, %a)", "[2,4]", ends + n("a", "7"))},
      {"move-parameters", "its axes or steps are not those of a Slice",
       moved("Slice(%w, %b, %e, %a, %t)", "[2,4]", ends + n("a", "0") + n("t", "0"))},
      {"move-parameters", "it leaves none of the 4 indices", moved("Slice(%w, %e, %b)", "[0,4]", ends)},
      {"move-parameters", "by computed indices", moved("Gather(%w, %i) {axis=0}", "[2,4]")},
      {"move-parameters", "index 9 is outside of 4 scales",
       moved("Gather(%w, %k) {axis=0}", "[1,4]", "%k = constant s64[1] [9]\n")},
      {"move-parameters", "its axis is none of",
       moved("Gather(%w, %k) {axis=5}", "[1,4]", "%k = constant s64[1] [1]\n")},
      {"move-parameters", "its perm does not permute", moved("Transpose(%w) {perm=[1,0,2]}", "[4,4]")},
      {"move-parameters", "the shape of its result is not known", moved("Reshape(%w, %n)", "[*]")},
      {"move-parameters", "the device has no Transpose for s4", four("%y: f32[4,4] = Transpose(%w) {perm=[1,0]}")},
      {"part-parameters", "the device has no Split for s4", four(halves + "Split(%w, %k)")},
      {"part-parameters", "the sizes of its parts are computed", split},
      {"part-parameters", "or are not those of", parts("Split(%w, %e)")},
      {"part-parameters", "its axis is none of", parts("Split(%w, %k) {axis=7}")},
      {"part-parameters", "is quantized with other parameters than its inputs'",
       parts("Split(%w, %k)", " # u8(axis=0, scale=f32[2] [1,5])")},
  });
}

TEST(Refused, IntegerProducts) {
  const std::string q = "%q: u8[3,4], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)\n";
  const std::string w = "%w = constant s8[4,3] splat(-5)\n%wz = constant s8[] 0\n%ws = constant f32[] 0.02\n";
  const std::string sums = "%i: s32[3,3] = MatMulInteger(%q, %w, %z, %wz)\n";
  const std::string cast = "%f: f32[3,3] = Cast(%i) {to=1}\n", both = "%m: f32[] = Mul(%s, %ws)\n";
  const std::string end = "%o: f32[3,3] = Mul(%f, %m)\n}";
  const auto graph = [](const std::string& body) {
    return "graph @g(%x: f32[3,4], %r: s8[4,3], %t: f32[], %rows: f32[3,1], %zero: s8[], %zs: u8[3]) -> (%o) {\n" +
           body;
  };
  const auto with = [](std::string text, const std::string& from, const std::string& to) {
    return text.replace(text.find(from), from.size(), to);
  };
  const std::string full = graph(q + w + sums + cast + both + end);
  ExpectRefused({
      {"dynamic-matmul", "its sums are used as integers", graph(q + w + sums + "%o: s32[3,3] = Neg(%i)\n}")},
      {"dynamic-matmul", "its sums are used as integers", with(full, "{to=1}", "{to=11}")},
      {"dynamic-matmul", "its sums are not scaled by one Mul",
       graph(q + w + sums + cast + "%o: f32[3,3] = Neg(%f)\n}")},
      {"dynamic-matmul", "is no product of the activations' and the weight's",
       graph(q + w + sums + cast + "%o: f32[3,3] = Mul(%f, %s)\n}")},
      {"dynamic-matmul", "none is constant, or the other is no scalar", with(full, "Mul(%s, %ws)", "Mul(%s, %t)")},
      {"dynamic-matmul", "none is constant, or the other is no scalar",
       with(with(full, "%m: f32[]", "%m: f32[3,1]"), "Mul(%s, %ws)", "Mul(%rows, %ws)")},
      {"dynamic-matmul", "its right operand is no constant matrix", with(full, "(%q, %w,", "(%q, %r,")},
      {"dynamic-matmul", "the zero point of its weight is computed", with(full, "%z, %wz)", "%z, %zero)")},
      {"dynamic-matmul", "its weight has 2 scales", with(full, "constant f32[] 0.02", "constant f32[2] [0.02,0.03]")},
      {"dynamic-matmul", "its activations have a zero point a row", with(full, "%z, %wz)", "%zs, %wz)")},
      {"s8-sums-to-u8", "its right operand is computed", with(full, "(%q, %w,", "(%q, %r,")},
      {"s8-sums-to-u8", "the zero point of its weight is computed", with(full, "%z, %wz)", "%z, %zero)")},
  });
}

// A bias of another zero point or scale is not integer as the kernels mean it.
TEST(Taken, IntegerBiases) {
  for (const char* bias : {"s32(scale=0.0002, zero=3)", "s32(scale=0.0003)", "s8(scale=0.0002)"}) {
    Layer layer{"integer-bias", "Gemm"};
    layer.more = std::string("%b: f32[4] # ") + bias + " = constant " + Layer::Raw(bias) + "[4] [3,4,5,6]\n";
    layer.last = ", %b";
    Model model = testing::ParseIr(layer.Text());
    EXPECT_EQ(RewriteQuantized(model, testing::Cpu(), testing::Only({"integer-bias"})).rules.rules[0].applied, 1)
        << bias;
    EXPECT_EQ(RewriteQuantized(model, testing::Cpu(), testing::Only({"qgemm"})).rules.rules[0].applied, 1) << bias;
  }
}

// What only the CPU's kernels call for is left alone for other devices; where theirs are missing, a sentence says so.
TEST(Refused, OtherDevices) {
  const DeviceDescriptor& npu = *FindDevice("qnn");
  const std::string p = "u8(scale=0.02, zero=100)", s = "s8(scale=0.01, zero=0)", image = "[1,2,4,4]";
  const Layer conv{"", "Conv"}, matmul{"", "MatMul"}, gemm{"", "Gemm"};
  Layer to_float = matmul, gemm_to_float = gemm, is_signed = matmul, rows = matmul;
  to_float.y = gemm_to_float.y = "";
  is_signed.w = s;
  rows.w = "u8(axis=0, scale=f32[4] [1,2,3,4])";
  for (const auto& [rule, text, cpu, reason] : std::vector<std::tuple<std::string, std::string, int, std::string>>{
           {"qlinear-conv", conv.Text(), 1, "convolutions between Q and DQ"},
           {"qlinear-matmul", matmul.Text(), 1, "matrix products between Q and DQ"},
           {"matmul-integer-to-float", to_float.Text(), 1, "matrix products between Q and DQ"},
           {"qgemm", gemm.Text(), 1, "Gemm between Q and DQ"},
           {"qgemm-to-float", gemm_to_float.Text(), 1, "Gemm between Q and DQ"},
           {"qlinear-binary", One(p, p, image, image, "", "Add(%x, %x)"), 1, "Add between Q and DQ"},
           {"s8-weight-to-u8", is_signed.Text(), 1, ""},
           {"float-weight", rows.Text(), 1, ""}}) {
    SCOPED_TRACE(rule);
    Model here = testing::ParseIr(text), there = testing::ParseIr(text);
    EXPECT_EQ(RewriteQuantized(here, testing::Cpu(), testing::Only({rule})).rules.rules[0].applied, cpu);
    const QuantizedRewriteResult result = RewriteQuantized(there, npu, testing::Only({rule}));
    EXPECT_EQ(result.rules.rules[0].applied, 0);
    EXPECT_EQ(result.rules.trace.empty(), reason.empty());
    for (const TraceEntry& t : result.rules.trace) EXPECT_THAT(t.reason, ::testing::HasSubstr(reason));
  }
}

}  // namespace
}  // namespace octavo
