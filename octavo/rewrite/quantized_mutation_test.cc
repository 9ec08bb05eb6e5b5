// What goes wrong when a condition of a rule is taken away: every one has a graph that it refuses, and that the rule
// computes wrongly without it.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/rewrite/quantized_test_util.h"

namespace octavo {
namespace {

using testing::ClassOf;
using testing::Codes;
using testing::Compare;
using testing::Cpu;
using testing::Ints;
using testing::Only;
using testing::ParseIr;
using testing::RunQdq;
using testing::RunQLinear;
using testing::Violation;

struct Case {
  std::string condition;
  std::string text;  // refused for this condition; without it, wrong
  double few = 1.0;  // for quantize-once: how much may differ
  int opset = 21;
  bool saturates = false;  // shows only on x86 without VNNI
  bool less = false;       // the condition limits what the rule takes, it is applied in any case
};

std::string LayerCase(const std::string& op, const std::string& w, const std::string& y, const std::string& b = "",
                      const std::string& attributes = "", const std::string& x = "u8(scale=0.02, zero=3)") {
  const bool conv = op == "Conv";
  const std::string xs = conv ? "1,4,6" : "6,4", ys = conv ? "1,4,6" : "6,4";
  const std::string raw = x.substr(0, x.find('('));
  const bool quantized = !y.empty();
  return "graph @g(%a: " + raw + "[" + xs + "]) -> (%o) {\n%x: f32[" + xs + "] # " + x + " = StorageCast(%a)\n" + w +
         "\n" + b + (b.empty() ? "" : "\n") + (quantized ? "%y: f32[" + ys + "] # " + y : "%o: f32[" + ys + "]") +
         " = " + op + "(%x, %w" + (b.empty() ? "" : ", %b") + ")" + attributes + "\n" +
         (quantized ? "%o: u8[" + ys + "] = StorageCast(%y)\n" : "") + "}";
}

std::vector<Case> Mutations() {
  std::vector<Case> cases;
  const std::string codes = " [1,250,3,44,105,6,77,8,9,200,11,12,0,255,90,17]";
  const std::string signs = " [1,-128,3,44,105,-6,77,8,9,-20,11,12,0,127,90,17]";
  const std::string bad_scale = "%b: f32[4] # s32(scale=0.0008) = constant s32[4] [1000,-2000,3000,500]";
  struct Layer {
    const char* rule;
    const char* op;
    const char* y;
    bool bias;
  };
  for (const Layer& l :
       {Layer{"qlinear-conv", "Conv", "u8(scale=0.05, zero=100)", true},
        Layer{"qlinear-matmul", "MatMul", "u8(scale=0.05, zero=100)", false},
        Layer{"matmul-integer-to-float", "MatMul", "", false}, Layer{"qgemm", "Gemm", "u8(scale=0.05, zero=100)", true},
        Layer{"qgemm-to-float", "Gemm", "", true}}) {
    const std::string rule = l.rule, op = l.op, y = l.y;
    const bool conv = op == "Conv";
    const std::string shape = conv ? "4,4,1" : "4,4", right = conv ? "0" : "1", wrong = conv ? "1" : "0";
    const std::string w8 = "%w: f32[" + shape + "] # u8(scale=0.01, zero=100) = constant u8[" + shape + "]" + codes;
    cases.push_back(
        {rule + "/weight-axis",
         LayerCase(op,
                   "%w: f32[" + shape + "] # u8(axis=" + wrong +
                       ", scale=f32[4] [0.01,0.002,0.03,0.0005], zero=u8[4] [100,100,100,100]) = constant u8[" + shape +
                       "]" + codes,
                   y)});
    Case saturation{rule + "/saturation",
                    LayerCase(op,
                              "%w: f32[" + shape + "] # s8(scale=0.01, zero=0) = constant s8[" + shape +
                                  "] "
                                  "[127,127,127,127,127,127,127,127,127,127,127,127,-128,-128,-128,-128]",
                              y.empty() ? y : "u8(scale=0.1, zero=100)", "", "", "u8(scale=0.02, zero=0)")};
    saturation.saturates = true;
    cases.push_back(saturation);
    if (l.bias) cases.push_back({rule + "/bias-scale", LayerCase(op, w8, y, bad_scale)});
    if (op == "Gemm") {
      cases.push_back({rule + "/plain",
                       LayerCase(op, w8, y, "%b: f32[4] # s32(scale=0.0002) = constant s32[4] [9000,-9000,3000,500]",
                                 " {alpha=0.5}")});
    }
    // 40,000 products of 255 and 255 pass 2^31.
    const std::string big = conv ? "1,40000,1" : "1,40000", wbig = conv ? "1,40000,1" : "40000,1",
                      out = conv ? "1,1,1" : "1,1";
    cases.push_back(
        {rule + "/sum-fits",
         "graph @g(%a: u8[" + out + "]) -> (%o) {\n%r: f32[" + out + "] # u8(scale=1, zero=0) = StorageCast(%a)\n" +
             "%s = constant s64[" + (conv ? "3" : "2") + "] [1, 40000" + (conv ? ", 1" : "") + "]\n%f: f32[" + out +
             "] = Dequantize(%r)\n" + "%m: f32[" + out + "] = Max(%f, %k)\n%k = constant f32[] 255\n%e: f32[" + big +
             "] = Expand(%m, %s)\n%x: f32[" + big + "] # u8(scale=1, zero=0) = Quantize(%e)\n%w: f32[" + wbig +
             "] # u8(scale=1, zero=0) = constant u8[" + wbig + "] splat(255)\n" +
             (y.empty() ? "%o: f32[" + out + "]" : "%y: f32[" + out + "] # u8(scale=12000000, zero=0)") + " = " + op +
             "(%x, %w)\n" + (y.empty() ? "" : "%o: u8[" + out + "] = StorageCast(%y)\n") + "}"});
  }
  const auto two = [](const std::string& a, const std::string& op, const std::string& y,
                      const std::string& shape = "256", const std::string& out = "256") {
    const std::string ta = a.substr(0, a.find('(')), ty = y.substr(0, y.find('('));
    return "graph @g(%a: " + ta + "[" + shape + "]) -> (%o) {\n%x: f32[" + shape + "] # " + a +
           " = StorageCast(%a)\n%y: f32[" + out + "] # " + y + " = " + op + "\n%o: " + ty + "[" + out +
           "] = StorageCast(%y)\n}";
  };
  const std::string p = "u8(scale=0.02, zero=100)", other = "u8(scale=0.03, zero=90)";
  cases.push_back({"s8-to-u8/no-raw-reader",
                   "graph @g(%x: f32[256]) -> (%o) {\n%q: f32[256] # s8(scale=0.02, zero=5) = Quantize(%x)\n%o: "
                   "s8[256] = StorageCast(%q)\n}"});
  cases.push_back({"s8-weight-to-u8/no-raw-reader",
                   "graph @g(%a: u8[6,4]) -> (%o, %r) {\n%x: f32[6,4] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: "
                   "f32[4,4] # s8(scale=0.01, zero=0) = constant s8[4,4]" +
                       signs + "\n%o: f32[6,4] = MatMul(%x, %w)\n%r: s8[4,4] = StorageCast(%w)\n}"});
  cases.push_back({"drop-requantize/same-parameters", two(p, "Requantize(%x)", other)});
  cases.push_back(
      {"drop-finer-requantize/integer-ratio", "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # " + p +
                                                  " = StorageCast(%a)\n%y: f32[256] # u16(scale=0.013, zero=30000) = "
                                                  "Requantize(%x)\n%o: f32[256] = Dequantize(%y)\n}"});
  cases.push_back({"drop-finer-requantize/no-saturation",
                   "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # u8(scale=0.5, zero=100) = StorageCast(%a)\n%y: "
                   "f32[256] # u8(scale=0.25, zero=100) = Requantize(%x)\n%o: f32[256] = Dequantize(%y)\n}"});
  cases.push_back({"drop-finer-requantize/no-raw-reader",
                   two("u8(scale=0.5, zero=100)", "Requantize(%x)", "u16(scale=0.25, zero=3000)")});
  cases.push_back(
      {"quantize-once/odd-ratio",
       "graph @g(%x: f32[4096]) -> (%o) {\n%q: f32[4096] # u16(scale=0.0078125, zero=32768) = Quantize(%x)\n%y: "
       "f32[4096] # u8(scale=0.015625, zero=128) = Requantize(%q)\n%o: u8[4096] = StorageCast(%y)\n}",
       0.01});
  cases.push_back({"quantize-once/nested-ranges",
                   "graph @g(%x: f32[4096]) -> (%o) {\n%q: f32[4096] # u8(scale=0.0078125, zero=0) = Quantize(%x)\n%y: "
                   "f32[4096] # u8(scale=0.0234375, zero=128) = Requantize(%q)\n%o: u8[4096] = StorageCast(%y)\n}",
                   0.01});
  cases.push_back({"absorb-requantize/one-use",
                   "graph @g(%a: u8[256]) -> (%o, %r) {\n%x: f32[256] # " + p + " = StorageCast(%a)\n%m: f32[256] # " +
                       p +
                       " = Tanh(%x)\n%y: f32[256] # u8(scale=0.015, zero=100)"
                       " = Requantize(%m)\n%o: u8[256] = StorageCast(%y)\n%r: u8[256] = StorageCast(%m)\n}"});
  // The lowest code of the first is a Relu.
  cases.push_back({"absorb-requantize/nested-ranges",
                   "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%m: f32[256] # u8(scale=0.01, zero=0) = Tanh(%x)\n%y: f32[256] # "
                       "u8(scale=0.01, zero=128) = Requantize(%m)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back({"drop-clip/same-parameters", two("u8(scale=0.02, zero=0)", "Relu(%x)", "u8(scale=0.03, zero=0)")});
  cases.push_back({"drop-clip/bounds-outside-codes", two(p, "Relu(%x)", p)});
  cases.push_back({"integer-clip/same-parameters", two(p, "Relu(%x)", other)});
  cases.push_back(
      {"quantize-before-clip/one-use", "graph @g(%a: u8[256]) -> (%o, %m) {\n%x: f32[256] # " + p +
                                           " = StorageCast(%a)\n%m: f32[256] = Mul(%x, %x)\n%y: f32[256] # " + p +
                                           " = Relu(%m)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back(
      {"quantize-before-move/one-use", "graph @g(%a: u8[256]) -> (%o, %m) {\n%x: f32[256] # " + p +
                                           " = StorageCast(%a)\n%m: f32[256] = Mul(%x, %x)\n%y: f32[256] # " + p +
                                           " = Identity(%m)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back(
      {"quantize-before-move/only-moves",
       "graph @g(%a: u8[1,1,1,256]) -> (%o) {\n%x0: f32[1,1,1,256] # u8(scale=0.01, zero=100) = StorageCast(%a)\n%k = "
       "constant f32[4] [1,1,1,3]\n%x: f32[1,1,1,256] = Mul(%x0, %x0)\n%y: f32[1,1,1,768] # " +
           other + " = Resize(%x, _, %k) {mode=\"linear\"}\n%o: u8[1,1,1,768] = StorageCast(%y)\n}"});
  cases.push_back(
      {"move-codes/only-moves", "graph @g(%a: u8[1,1,1,256]) -> (%o) {\n%x: f32[1,1,1,256] # " + p +
                                    " = StorageCast(%a)\n%k = constant f32[4] [1,1,1,3]\n%y: f32[1,1,1,768] # " + p +
                                    " = Resize(%x, _, %k) {mode=\"linear\"}\n%o: u8[1,1,1,768] = StorageCast(%y)\n}"});
  cases.push_back({"move-codes/same-parameters", two(p, "Identity(%x)", other)});
  cases.push_back(
      {"integer-pad/same-parameters", "graph @g(%a: u8[256]) -> (%o) {\n%x: f32[256] # " + p +
                                          " = StorageCast(%a)\n%k = constant s64[2] [1,1]\n%y: f32[258] # " + other +
                                          " = Pad(%x, %k)\n%o: u8[258] = StorageCast(%y)\n}"});
  cases.push_back({"qlinear-binary/one-type",
                   "graph @g(%a: u8[256], %b: s8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%w: f32[256] # s8(scale=0.02, zero=1) = StorageCast(%b)\n%y: f32[256] # " +
                       other + " = Add(%x, %w)\n%o: u8[256] = StorageCast(%y)\n}"});
  cases.push_back({"qlinear-join/one-type",
                   "graph @g(%a: u8[256], %b: s8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%w: f32[256] # s8(scale=0.02, zero=1) = StorageCast(%b)\n%y: f32[512] # " +
                       other + " = Concat(%x, %w) {axis=0}\n%o: u8[512] = StorageCast(%y)\n}"});
  cases.push_back(
      {"qlinear-table/one-type", two("s8(scale=0.05, zero=0)", "Sigmoid(%x)", "u8(scale=0.00390625, zero=0)")});
  cases.push_back({"qlinear-softmax/one-type",
                   two("s8(scale=0.05, zero=0)", "Softmax(%x)", "u8(scale=0.00390625, zero=0)", "2,128", "2,128")});
  cases.push_back({"qlinear-pool/one-type", two("s8(scale=0.05, zero=0)", "GlobalAveragePool(%x)",
                                                "u8(scale=0.01, zero=100)", "2,2,8,8", "2,2,1,1")});
  cases.push_back({"qlinear-pool/ratio", two("u8(scale=1000, zero=100)", "GlobalAveragePool(%x)",
                                             "u8(scale=0.00001, zero=100)", "2,2,1,2", "2,2,1,1")});
  const auto pairs = [](const std::string& op, const std::string& x, const std::string& w, const std::string& y) {
    return "graph @g(%a: u8[256,1], %b: u8[1,256]) -> (%o) {\n%x: f32[256,1] # u8(scale=" + x +
           ", zero=7) = StorageCast(%a)\n%w: f32[1,256] # u8(scale=" + w + ", zero=200) = StorageCast(%b)\n" +
           "%y: f32[256,256] # u8(scale=" + y + ", zero=128) = " + op +
           "(%x, %w)\n%o: u8[256,256] = StorageCast(%y)\n}";
  };
  cases.push_back({"qlinear-binary/ratio", pairs("Add", "12345.678", "9876.543", "0.0001")});
  cases.push_back({"qlinear-binary/ratio", pairs("Mul", "0.0153", "0.301", "1e-30")});
  cases.push_back({"qlinear-pool/plain",
                   two(p, "AveragePool(%x) {kernel_shape=[2,2], dilations=[2,2]}", p, "1,1,16,16", "1,1,14,14")});
  const std::string small = "%w: f32[4,4,1] # u8(scale=0.01, zero=100) = constant u8[4,4,1]" + codes;
  cases.push_back({"integer-bias/fits-int32",
                   LayerCase("Conv", small, "u8(scale=10000, zero=100)", "%b = constant f32[4] [1000000,1,2,3]")});
  cases.push_back({"integer-bias/below-half-a-step",
                   LayerCase("Conv", "%w: f32[4,4,1] # u8(scale=10, zero=0) = constant u8[4,4,1] splat(0)",
                             "u8(scale=0.01, zero=100)", "%b = constant f32[4] [0.09,0.08,-0.07,0.05]")});
  cases.push_back(
      {"add-into-bias/one-use",
       "graph @g(%a: u8[1,4,6]) -> (%o, %c) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n" + small +
           "\n%k = constant f32[4,1] [1,2,-1,0.5]\n%c: f32[1,4,6] = Conv(%x, %w)\n%y: f32[1,4,6] # u8(scale=0.1, "
           "zero=100) = Add(%c, %k)\n%o: u8[1,4,6] = StorageCast(%y)\n}"});
  cases.push_back({"add-into-bias/below-half-a-step",
                   "graph @g(%a: u8[1,4,6]) -> (%o) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: "
                   "f32[4,4,1] # u8(scale=10, zero=0) = constant u8[4,4,1] splat(0)\n%k = constant f32[4,1] "
                   "[0.09,0.08,-0.07,0.05]\n%c: f32[1,4,6] = Conv(%x, %w)\n%y: f32[1,4,6] # u8(scale=0.01, zero=100) = "
                   "Add(%c, %k)\n%o: u8[1,4,6] = StorageCast(%y)\n}"});
  cases.push_back({"add-into-bias/fits-int32",
                   "graph @g(%a: u8[1,4,6]) -> (%o) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n" +
                       small +
                       "\n%k = constant f32[4,1] [1000000,200000,-1,0.5]\n%c: f32[1,4,6] = Conv(%x, %w)\n%y: "
                       "f32[1,4,6] # u8(scale=10000, zero=100) = Add(%c, %k)\n%o: u8[1,4,6] = StorageCast(%y)\n}"});
  cases.push_back(
      {"scale-into-weight/one-use",
       "graph @g(%a: u8[1,4,6]) -> (%o, %c) {\n%x: f32[1,4,6] # u8(scale=0.02, zero=3) = StorageCast(%a)\n" + small +
           "\n%k = constant f32[] 3\n%c: f32[1,4,6] = Conv(%x, %w)\n%m: f32[1,4,6] = Mul(%c, %k)\n%o: f32[1,4,6] = "
           "Neg(%m)\n}"});
  const auto blocks = [](const std::string& axis, int block, const std::string& scales) {
    return "graph @g(%x: f32[2,32]) -> (%y) {\n%w: f32[32,32] # s4(axis=" + axis + ", block=" + std::to_string(block) +
           ", scale=f32[" + scales + "] " +
           Ints(static_cast<std::size_t>(32 * 32 / block),
                [](std::size_t i) { return static_cast<std::int64_t>(i % 9 + 1); }) +
           ") = constant s4[32,32] " +
           Ints(1024, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; }) +
           "\n%y: f32[2,32] = MatMul(%x, %w)\n}";
  };
  cases.push_back({"block-weights/blocks-along-the-sum", blocks("1", 16, "32,2")});
  cases.push_back({"block-weights/block-size", blocks("0", 8, "4,32")});
  const auto moved = [](const std::string& w, const std::string& op, const std::string& out) {
    return "graph @g(%x: f32[1]) -> (%o) {\n" + w + "\n%y: f32[" + out + "] = " + op + "\n%o: f32[" + out +
           "] = Add(%y, %x)\n}";
  };
  const std::string four =
      "%w: f32[4,4] # u8(axis=0, scale=f32[4] [0.01,0.2,0.03,4], zero=u8[4] [1,2,3,4]) = constant "
      "u8[4,4]" +
      codes;
  cases.push_back(
      {"move-parameters/axis-survives", moved(four + "\n%s = constant s64[3] [2,2,4]", "Reshape(%w, %s)", "2,2,4")});
  cases.push_back(
      {"move-parameters/one-axis", moved(four + "\n%i = constant s64[1,2] [1,0]", "Gather(%w, %i) {axis=0}", "1,2,4")});
  cases.push_back({"move-parameters/block-borders",
                   moved("%w: f32[48,2] # s4(axis=0, block=16, scale=f32[3,2] [1,20,3,40,5,60]) = constant s4[48,2] " +
                             Ints(96, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; }) +
                             "\n%a = constant s64[1] [8]\n%b = constant s64[1] [40]",
                         "Slice(%w, %a, %b)", "32,2")});
  const auto in_blocks = [&](const std::string& name, const std::string& rows, const std::string& count,
                             const std::string& scales) {
    const std::size_t n = 2 * static_cast<std::size_t>(std::stoi(rows));
    return "%" + name + ": f32[" + rows + ",2] # s4(axis=0, block=16, scale=f32[" + count + ",2] " + scales +
           ") = constant s4[" + rows + ",2] " +
           Ints(n, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; });
  };
  cases.push_back({"move-parameters/block-borders",
                   moved(in_blocks("w", "24", "2", "[1,20,3,40]") + "\n%s = constant s64[3] [2,12,2]",
                         "Reshape(%w, %s)", "2,12,2")});
  cases.push_back({"move-parameters/block-borders",
                   moved(in_blocks("w", "32", "2", "[1,20,3,40]") + "\n%i = constant s64[16] " +
                             Ints(16, [](std::size_t i) { return static_cast<std::int64_t>(i + 8); }),
                         "Gather(%w, %i) {axis=0}", "16,2")});
  cases.push_back(
      {"move-parameters/block-strides",
       moved(in_blocks("w", "32", "2", "[1,20,3,40]") + "\n%s = constant s64[2] [2,32]", "Reshape(%w, %s)", "2,32")});
  cases.push_back({"part-parameters/block-borders",
                   "graph @g(%x: f32[1]) -> (%o, %p) {\n" + in_blocks("w", "48", "3", "[1,20,3,40,5,60]") +
                       "\n%s = constant s64[2] [24,24]\n%y: f32[24,2], %z: f32[24,2] = Split(%w, %s) {axis=0}\n%o: "
                       "f32[24,2] = Add(%y, %x)\n%p: f32[24,2] = Add(%z, %x)\n}"});
  cases.push_back({"part-parameters/block-borders",
                   moved(in_blocks("w", "24", "2", "[1,20,3,40]") + "\n" + in_blocks("v", "16", "1", "[5,60]"),
                         "Concat(%w, %v) {axis=0}", "40,2")});
  cases.push_back({"part-parameters/same-parameters",
                   moved(four +
                             "\n%v: f32[4,4] # u8(axis=0, scale=f32[4] [0.02,0.2,0.03,4], zero=u8[4] [1,2,3,4]) = "
                             "constant u8[4,4]" +
                             codes,
                         "Concat(%w, %v) {axis=1}", "4,8")});
  cases.push_back(
      {"move-parameters/same-parameters",
       "graph @g(%a: u8[4,4]) -> (%o) {\n%x: f32[4,4] # u8(axis=0, scale=f32[4] [0.01,0.2,0.03,4], zero=u8[4] "
       "[1,2,3,4]) = StorageCast(%a)\n%y: f32[4,4] # u8(axis=1, scale=f32[4] [0.01,0.2,0.03,5], zero=u8[4] "
       "[1,2,3,4]) = Transpose(%x) {perm=[1,0]}\n%o: f32[4,4] = Dequantize(%y)\n}"});
  const auto dynamic = [](const std::string& scale, const std::string& weight_scale, const std::string& tail) {
    return "graph @g(%x: f32[3,4], %r: f32[3,1]) -> (%o) {\n%q: u8[3,4], %s: f32[], %z: u8[] = "
           "DynamicQuantizeLinear(%x)\n%w = constant s8[4,3] [1,-128,3,44,105,-6,77,8,9,-20,11,12]\n%wz = constant "
           "s8[] "
           "0\n%ws = constant " +
           weight_scale +
           "\n%i: s32[3,3] = MatMulInteger(%q, %w, %z, %wz)\n%f: f32[3,3] = "
           "Cast(%i) {to=1}\n%m: f32[*] = Mul(%" +
           scale + ", %ws)\n" + tail + "\n}";
  };
  const std::string plain = "%o: f32[3,3] = Mul(%f, %m)";
  cases.push_back({"dynamic-matmul/scales-of-columns", dynamic("s", "f32[3,1] [0.02,0.3,4]", plain)});
  Case bias{"dynamic-matmul/bias-of-columns",
            dynamic("s", "f32[3] [0.02,0.3,4]",
                    "%k = constant f32[3,1] [1,20,300]\n%p: f32[3,3] = Mul(%f, %m)\n%o: f32[3,3] = Add(%p, %k)")};
  bias.less = true;
  cases.push_back(bias);
  cases.push_back(
      {"float-weight/one-axis",
       "graph @g(%a: u8[1,32,3]) -> (%o) {\n%x: f32[1,32,3] # u8(scale=0.02, zero=3) = StorageCast(%a)\n%w: "
       "f32[2,32,1] # s4(axis=1, block=16, scale=f32[2,2,1] [1,20,3,40]) = constant s4[2,32,1] " +
           Ints(64, [](std::size_t i) { return static_cast<std::int64_t>(i * 7 % 16) - 8; }) +
           "\n%o: f32[1,2,3] = Conv(%x, %w)\n}"});
  cases.push_back({"join-codes/same-parameters",
                   "graph @g(%a: u8[256], %b: s8[256]) -> (%o) {\n%x: f32[256] # " + p +
                       " = StorageCast(%a)\n%w: f32[256] # s8(scale=0.02, zero=1) = StorageCast(%b)\n%y: f32[512] # " +
                       p + " = Concat(%x, %w) {axis=0}\n%o: u8[512] = StorageCast(%y)\n}"});
  // Nothing to raise, and no end of raising it.
  cases.push_back({"raise-weight-scale/overflows",
                   LayerCase("Conv", small, "u8(scale=0.1, zero=100)", "%b = constant f32[4] [10,1,2,3]")});
  cases.push_back({"choose-at-load/unsigned-weight",
                   "graph @g(%a: u8[3,128]) -> (%o) {\n%s = constant f32[] 0.01\n%za = constant u8[] 3\n%w = constant "
                   "s8[128,128] splat(-2)\n%zw = constant s8[] 1\n%so = constant f32[] 0.3\n%zo = constant u8[] 100\n"
                   "%o: u8[3,128] = QLinearMatMul(%a, %s, %za, %w, %s, %zw, %so, %zo)\n}"});
  cases.push_back(
      {"s8-sums-to-u8/signed-weight",
       "graph @g(%x: f32[3,4]) -> (%i) {\n%q: u8[3,4], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)\n%w "
       "= constant u8[4,3] [1,128,3,44,105,6,77,8,9,20,11,12]\n%i: s32[3,3] = MatMulInteger(%q, %w, %z)\n}"});
  return cases;
}

bool MachineSaturates() {
  std::ifstream info("/proc/cpuinfo");
  const std::string text((std::istreambuf_iterator<char>(info)), {});
  return text.find("avx2") != std::string::npos && text.find("vnni") == std::string::npos;
}

TEST(Mutation, EveryConditionHasACounterexample) {
  std::set<std::string> declared, tested;
  for (const auto& rule : QuantizedRules(Cpu(), 21)) {
    EXPECT_FALSE(rule->doc().conditions.empty()) << rule->name() << " says nothing that it rests on";
    for (const std::string_view c : rule->doc().conditions) {
      EXPECT_TRUE(c.starts_with(std::string(rule->name()) + "/")) << c;
      declared.emplace(c);
    }
  }
  for (const Case& c : Mutations()) {
    SCOPED_TRACE(c.condition + "\n" + c.text);
    tested.insert(c.condition);
    const std::string rule = c.condition.substr(0, c.condition.find('/'));
    const Model model = ParseIr(c.text, c.opset);
    std::vector<TensorRef> inputs = testing::RandomInputs(model, 9);
    for (TensorRef& input : inputs) {  // every code
      if (BitWidth(input.dtype) != 8 || input.dtype == DType::kBool) continue;
      input = Codes(input.dtype, input.dims,
                    [&](std::size_t i) { return static_cast<std::int64_t>(i % 256) + IntegerMin(input.dtype); });
    }
    if (c.condition.ends_with("/saturation")) {
      inputs[0] = Codes(DType::kU8, inputs[0].dims, [](std::size_t) { return 255; });
    }
    const std::vector<TensorRef> before = RunQdq(model, inputs);
    Model kept = Clone(model);
    const QuantizedRewriteResult refused = RewriteQuantized(kept, Cpu(), Only({rule}));
    EXPECT_EQ(refused.rules.rules[0].applied, c.less ? 1 : 0);
    ASSERT_FALSE(refused.rules.trace.empty()) << "refused without a sentence";
    if (!c.less) {
      EXPECT_GT(refused.rules.trace[0].reason.size(), 10u);
    }
    const std::vector<TensorRef> after = RunQLinear(kept, inputs);
    if (rule != "dynamic-matmul") {  // its sums as Q/DQ round otherwise
      EXPECT_TRUE(testing::SameBits(before, after));
    }
    EXPECT_EQ(Violation(Compare(before, after), ClassOf(rule)), "");

    DropCondition(c.condition);
    std::string wrong;
    std::int64_t applied = 0;
    try {
      Model taken = Clone(model);
      applied = RewriteQuantized(taken, Cpu(), Only({rule})).rules.rules[0].applied;
      LowerToQLinear(taken);
      const std::vector<std::string> problems = Verify(taken);
      wrong = problems.empty() ? Violation(Compare(before, testing::RunModel(taken, inputs)), ClassOf(rule), c.few)
                               : problems[0];
    } catch (const Error& error) {
      wrong = error.what();  // the runtime refuses the model, or the rule has no end
      if (wrong.find("do not come to an end: rule " + rule) != std::string::npos) applied = 1;
    }
    DropCondition({});
    EXPECT_GT(applied, 0) << "something else refuses it: " << wrong;
    if (!c.saturates || MachineSaturates()) {
      EXPECT_NE(wrong, "") << "nothing goes wrong without the condition";
    }
  }
  EXPECT_EQ(declared, tested);
}

}  // namespace
}  // namespace octavo
