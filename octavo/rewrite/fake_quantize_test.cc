// The passes of fake quantization, text in and text out; after each one the model computes the same numbers.
#include "octavo/rewrite/fake_quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Pass = std::function<std::int64_t(Model&)>;

Model ParseModel(const std::string& text) {
  Model model = Parse("opset \"\" = 21\nopset \"octavo\" = 1\n" + text);
  model.ir_version = 10;
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  return model;
}

std::string Canonical(const std::string& text) { return Print(*Parse(text).graph); }

// Equal numbers: codes of integers have one zero.
bool SameNumbers(const std::vector<TensorRef>& a, const std::vector<TensorRef>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const std::vector<float> x = a[i].ToFloats(), y = b[i].ToFloats();
    if (a[i].dims != b[i].dims || !std::equal(x.begin(), x.end(), y.begin(), [](float s, float t) {
          return s == t || (std::isnan(s) && std::isnan(t));
        })) {
      return false;
    }
  }
  return true;
}

std::vector<TensorRef> RunLowered(const Model& model, const std::vector<TensorRef>& inputs) {
  Model lowered = Clone(model);
  RaiseOpsetForQuantization(lowered);
  LowerToQdq(lowered);
  EXPECT_EQ(Verify(lowered), std::vector<std::string>{}) << Print(lowered);
  return testing::RunModel(lowered, inputs);
}

// Runs a pass, checks its count and that results stay, and returns the text.
std::string After(const Pass& pass, const std::string& text, std::int64_t count, bool run = true) {
  Model model = ParseModel(text);
  TakeWarnings();
  std::vector<TensorRef> inputs, before;
  if (run) {
    inputs = testing::RandomInputs(model, 3);
    before = RunLowered(model, inputs);
  }
  EXPECT_EQ(pass(model), count) << text;
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << Print(model);
  if (run) {
    EXPECT_TRUE(SameNumbers(before, RunLowered(model, inputs))) << Print(*model.graph);
  }
  model.graph->EraseDead();
  return Print(*model.graph);
}

// A pass that leaves everything as it is; returns what it said.
std::vector<std::string> Refused(const Pass& pass, const std::string& text) {
  EXPECT_EQ(After(pass, text, 0, false), Canonical(text));
  return TakeWarnings();
}

// --- DecomposeFakeQuantize

TEST(DecomposeFakeQuantize, MxBecomesItsTwoHalves) {
  EXPECT_EQ(After(DecomposeFakeQuantize, R"(graph @g(%x: f32[2,40]) -> (%y) {
    %q: f32[2,40] = octavo::MXFakeQuantize(%x) {elem_format="mxfp4", axis=-1, rounding="even", block_size=16}
    %y: f32[2,40] = Neg(%q)
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,40]) -> (%y) {
    %q_mx: f32[2,40] = octavo::QuantizeMx(%x) {elem_format="mxfp4", rounding="even", axis=-1, block_size=16}
    %q: f32[2,40] = octavo::DequantizeMx(%q_mx) {elem_format="mxfp4", rounding="even", axis=-1, block_size=16}
    %y: f32[2,40] = Neg(%q)
  })"));
}

TEST(DecomposeFakeQuantize, AffineBecomesAPair) {
  EXPECT_EQ(After(DecomposeFakeQuantize, R"(graph @g(%x: f32[2,3]) -> (%y) {
    %s = constant f32[3] [0.01, 0.02, 0.5]
    %z = constant s32[3] [0, 1, -3]
    %y: f32[2,3] = octavo::FakeQuantize(%x, %s, %z) {quant_min=-128, quant_max=127, axis=1}
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,3]) -> (%y) {
    %s = constant f32[3] [0.01, 0.02, 0.5]
    %y_zero_point = constant s8[3] [0, 1, -3]
    %y_q: s8[2,3] = QuantizeLinear(%x, %s, %y_zero_point) {axis=1}
    %y: f32[2,3] = DequantizeLinear(%y_q, %s, %y_zero_point) {axis=1}
  })"));
}

TEST(DecomposeFakeQuantize, ANarrowRangeIsClippedFirst) {
  EXPECT_EQ(After(DecomposeFakeQuantize, R"(graph @g(%x: f32[2,3]) -> (%y) {
    %s = constant f32[] 0.25
    %z = constant f32[] 1
    %y: f32[2,3] = octavo::FakeQuantize(%x, %s, %z) {quant_min=-3, quant_max=4}
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,3]) -> (%y) {
    %s = constant f32[] 0.25
    %y_min = constant f32[] -1
    %y_max = constant f32[] 0.75
    %y_zero_point = constant s8[] 1
    %y_clipped: f32[2,3] = Clip(%x, %y_min, %y_max)
    %y_q: s8[2,3] = QuantizeLinear(%y_clipped, %s, %y_zero_point)
    %y: f32[2,3] = DequantizeLinear(%y_q, %s, %y_zero_point)
  })"));
}

TEST(DecomposeFakeQuantize, ANarrowRangeOfWeightsIsClippedHere) {
  EXPECT_EQ(After(DecomposeFakeQuantize, R"(graph @g(%x: f32[2,3]) -> (%y) {
    %w = constant f32[2,3] [-5, -0.5, 0.125, 0.25, 9, -9]
    %s = constant f32[2] [0.25, 0.5]
    %z = constant s32[2] [0, 1]
    %q: f32[2,3] = octavo::FakeQuantize(%w, %s, %z) {quant_min=-7, quant_max=7, axis=-2}
    %y: f32[2,3] = Add(%x, %q)
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,3]) -> (%y) {
    %s = constant f32[2] [0.25, 0.5]
    %q_clipped = constant f32[2,3] [-1.75, -0.5, 0.125, 0.25, 3, -4]
    %q_zero_point = constant s8[2] [0, 1]
    %q_q: s8[2,3] = QuantizeLinear(%q_clipped, %s, %q_zero_point) {axis=-2}
    %q: f32[2,3] = DequantizeLinear(%q_q, %s, %q_zero_point) {axis=-2}
    %y: f32[2,3] = Add(%x, %q)
  })"));
}

TEST(DecomposeFakeQuantize, SixteenBits) {
  EXPECT_THAT(After(DecomposeFakeQuantize, R"(graph @g(%x: f32[2,3]) -> (%y) {
    %s = constant f32[] 0.001
    %y: f32[2,3] = octavo::FakeQuantize(%x, %s) {quant_min=0, quant_max=65535}
  })",
                    1),
              HasSubstr("%y_zero_point = constant u16[] 0"));
}

TEST(DecomposeFakeQuantize, RefusalsSayWhy) {
  const auto affine = [](const std::string& parameters, const std::string& attributes, const std::string& inputs) {
    return "graph @g(%x: f32[2,2], %dynamic: f32[]) -> (%y) {\n" + parameters +
           "\n%y: f32[2,2] = octavo::FakeQuantize(%x, " + inputs + ") {" + attributes + "}\n}";
  };
  const std::string s = "%s = constant f32[] 0.1\n", ss = "%s = constant f32[2] [0.1, 0.2]\n";
  struct Row {
    std::string text, sentence;
  };
  for (const Row& row : {
           Row{affine("", "quant_max=255", "%dynamic"), "its scale is not a constant"},
           Row{affine(s, "quant_max=255", "%s, %dynamic"), "its zero point is not a constant"},
           Row{affine("%s = constant f16[] 0.5", "quant_max=255", "%s"), "its scale is not f32"},
           Row{affine(s, "quant_min=-70000, quant_max=255", "%s"), "its range fits no integer type of 8 or 16 bits"},
           Row{affine(s, "quant_min=9, quant_max=9", "%s"), "its range fits no integer type of 8 or 16 bits"},
           Row{affine(ss + "%z = constant s32[] 0", "quant_max=255, axis=1", "%s, %z"),
               "its zero point does not have the scale's shape"},
           Row{affine(s + "%z = constant f32[] 0.5", "quant_max=255", "%s, %z"), "a zero point is not a whole number"},
           Row{affine(s + "%z = constant s32[] 300", "quant_max=255", "%s, %z"),
               "a zero point lies outside of its range"},
           Row{affine(ss + "%z = constant s32[2] [0, 1]", "quant_max=15, axis=1", "%s, %z"),
               "its range is narrower than the integer type's, for each channel"},
           Row{"graph @g(%x: f32[2,2]) -> (%y) {\n%s = constant f32[3] [1, 2, 3]\n%w = constant f32[2] [1, 2]\n"
               "%y: f32[2] = octavo::FakeQuantize(%w, %s) {quant_max=15, axis=0}\n}",
               "its scales do not fit its axis"},
       }) {
    EXPECT_THAT(Refused(DecomposeFakeQuantize, row.text),
                ElementsAre("FakeQuantize stays as it is: FakeQuantize(y): " + row.sentence))
        << row.text;
  }
}

// --- FoldQuantOps

std::int64_t DecomposeAndFold(Model& model) {
  DecomposeFakeQuantize(model);
  return FoldQuantOps(model);
}

TEST(FoldQuantOps, AProducerTakesTheType) {
  EXPECT_EQ(After(DecomposeAndFold, R"(graph @g(%x: f32[2,40]) -> (%y) {
    %r: f32[2,40] = Relu(%x)
    %f: f32[2,40] = octavo::MXFakeQuantize(%r) {elem_format="mxint8", axis=-1}
    %y: f32[2,40] = Neg(%f)
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,40]) -> (%y) {
    %r: f32[2,40] # mx(mxint8, axis=1, block=32) = Relu(%x) form=qdq
    %y: f32[2,40] = Neg(%r)
  })"));
}

TEST(FoldQuantOps, ARoundingToEvenStaysAQuantize) {
  EXPECT_EQ(After(DecomposeAndFold, R"(graph @g(%x: f32[2,40]) -> (%y) {
    %r: f32[2,40] = Relu(%x)
    %f: f32[2,40] = octavo::MXFakeQuantize(%r) {elem_format="mxint8", axis=0, rounding="even", block_size=2}
    %y: f32[2,40] = Neg(%f)
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,40]) -> (%y) {
    %r: f32[2,40] = Relu(%x)
    %r_mx: f32[2,40] # mx(mxint8, axis=0, block=2) = Quantize(%r) {rounding="even"} form=qdq
    %y: f32[2,40] = Neg(%r_mx)
  })"));
}

TEST(FoldQuantOps, FloatUsersAndOutputsKeepTheFloatValue) {
  EXPECT_EQ(After(DecomposeAndFold, R"(graph @g(%x: f32[2,40]) -> (%y, %f) {
    %r: f32[2,40] = Relu(%x)
    %f: f32[2,40] = octavo::MXFakeQuantize(%r) {elem_format="mxfp4", axis=1}
    %y: f32[2,40] = Add(%f, %r)
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,40]) -> (%y, %f) {
    %r: f32[2,40] = Relu(%x)
    %r_mx: f32[2,40] # mx(mxfp4, axis=1, block=32) = Quantize(%r) form=qdq
    %f: f32[2,40] = Dequantize(%r_mx) form=qdq
    %y: f32[2,40] = Add(%r_mx, %r)
  })"));
}

TEST(FoldQuantOps, AConstantHoldsItsRoundedNumbers) {
  // 2.5 and 5 are ties of mxfp4 in a block whose largest number is 6.
  const auto model = [](const char* rounding) {
    return std::string(R"(graph @g(%x: f32[1,4]) -> (%y) {
    %w = constant f32[4,1] [6, 2.5, 5, -0.25]
    %f: f32[4,1] = octavo::MXFakeQuantize(%w) {elem_format="mxfp4", axis=-2, rounding=")") +
           rounding + "\"}\n%y: f32[1,1] = MatMul(%x, %f)\n}";
  };
  const auto folded = [](const char* numbers) {
    return Canonical(std::string("graph @g(%x: f32[1,4]) -> (%y) {\n%w: f32[4,1] # mx(mxfp4, axis=0, block=32) = "
                                 "constant f32[4,1] ") +
                     numbers + "\n%y: f32[1,1] = MatMul(%x, %w)\n}");
  };
  EXPECT_EQ(After(DecomposeAndFold, model("away"), 1), folded("[6, 3, 6, -0.5]"));
  EXPECT_EQ(After(DecomposeAndFold, model("even"), 1), folded("[6, 2, 4, -0]"));
}

TEST(FoldQuantOps, Nvfp4WeightsAreTheirTwinAtOnce) {
  EXPECT_EQ(After(DecomposeAndFold, R"(graph @g(%x: f32[1,4]) -> (%y) {
    %w = constant f32[4,1] [2688, 1344, 6, -1.5]
    %f: f32[4,1] = octavo::MXFakeQuantize(%w) {elem_format="nvfp4", axis=0, rounding="even", block_size=2}
    %y: f32[1,1] = MatMul(%x, %f)
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[1,4]) -> (%y) {
    %w: f32[4,1] # s8(axis=0, block=2, scale=f32[2,1] [224, 0.5]) = constant s8[4,1] [12, 6, 12, -3]
    %y: f32[1,1] = MatMul(%x, %w)
  })"));
}

TEST(FoldQuantOps, RefusalsSayWhy) {
  const auto mx = [](const std::string& attributes, const std::string& type = "f32[2,40]") {
    return "graph @g(%x: " + type + ") -> (%y) {\n%q: " + type + " = octavo::QuantizeMx(%x) {" + attributes +
           "}\n%y: " + type + " = octavo::DequantizeMx(%q) {" + attributes + "}\n}";
  };
  struct Row {
    std::string text, sentence;
  };
  for (const Row& row : {
           Row{mx(R"(elem_format="mxfp5")"), "elem_format 'mxfp5' is none of MX"},
           Row{mx("axis=1"), "elem_format '' is none of MX"},
           Row{mx(R"(elem_format="mxfp4", block_size=0)"), "its blocks have no elements"},
           Row{mx(R"(elem_format="mxfp4", shared_exponent="ceil")"), "its shared exponent is not floor"},
           Row{mx(R"(elem_format="mxfp4", rounding="up")"), "its rounding is neither away nor even"},
           Row{mx(R"(elem_format="mxfp4")", "f32[*]"), "the rank of its input is not known"},
       }) {
    EXPECT_THAT(Refused(FoldQuantOps, row.text),
                ElementsAre("QuantizeMx stays as it is: QuantizeMx(q): " + row.sentence))
        << row.text;
  }
  for (const char* axis : {"2", "-3"}) {
    try {
      Refused(FoldQuantOps, mx(R"(elem_format="mxfp4", axis=)" + std::string(axis)));
      FAIL() << "axis " << axis << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      EXPECT_EQ(error.reason(), "axis " + std::string(axis) + " is outside of a tensor of rank 2");
    }
  }
}

// --- FoldQdq, which takes both kinds: counterexamples that random graphs found

TEST(FoldQdqOfFakes, TiesToEvenAreNotSettledIntoTheProducer) {
  EXPECT_EQ(After(FoldQdq, R"(graph @g(%x: f32[2,40]) -> (%y) {
    %r: f32[2,40] = Relu(%x)
    %f: f32[2,40] = octavo::MXFakeQuantize(%r) {elem_format="mxfp4", axis=0, rounding="even"}
    %y: f32[2,40] = Neg(%f)
  })",
                  1),
            Canonical(R"(graph @g(%x: f32[2,40]) -> (%y) {
    %r: f32[2,40] = Relu(%x)
    %r_mx: f32[2,40] # mx(mxfp4, axis=0, block=32) = Quantize(%r) {rounding="even"} form=qdq
    %y: f32[2,40] = Neg(%r_mx) form=qdq
  })"));
}

TEST(FoldQdqOfFakes, AnAffineValueInFrontOfMxKeepsItsOwnCodes) {
  EXPECT_EQ(After(FoldQdq, R"(graph @g(%x: f32[2,40]) -> (%y) {
    %s = constant f32[] 0.03125
    %r: f32[2,40] = octavo::FakeQuantize(%x, %s) {quant_min=-128, quant_max=127}
    %f: f32[2,40] = octavo::MXFakeQuantize(%r) {elem_format="mxfp4", axis=1}
    %y: f32[2,40] = Neg(%f)
  })",
                  2),
            Canonical(R"(graph @g(%x: f32[2,40]) -> (%y) {
    %x_q: f32[2,40] # s8(scale=0.03125, zero=0) = Quantize(%x) form=qdq
    %r_mx: f32[2,40] # mx(mxfp4, axis=1, block=32) = Requantize(%x_q) form=qdq
    %y: f32[2,40] = Neg(%r_mx) form=qdq
  })"));
}

TEST(FoldQdqOfFakes, AnAffineWeightInFrontOfMxKeepsItsOwnCodes) {
  // 2.6 -> 2.5, a tie of mxfp4 in a block whose largest number is 6.
  EXPECT_EQ(After(FoldQdq, R"(graph @g(%x: f32[1,4]) -> (%y) {
    %w = constant f32[4,1] [6, 2.6, 5, -0.25]
    %s = constant f32[1] [0.5]
    %r: f32[4,1] = octavo::FakeQuantize(%w, %s) {quant_min=-32768, quant_max=32767, axis=1}
    %f: f32[4,1] = octavo::MXFakeQuantize(%r) {elem_format="mxfp4", axis=0}
    %y: f32[1,1] = MatMul(%x, %f)
  })",
                  2),
            Canonical(R"(graph @g(%x: f32[1,4]) -> (%y) {
    %w_codes: f32[4,1] # s16(scale=0.5, zero=0) = constant s16[4,1] [12, 5, 10, 0]
    %r_mx: f32[4,1] # mx(mxfp4, axis=0, block=32) = Requantize(%w_codes) form=qdq
    %y: f32[1,1] = MatMul(%x, %r_mx) form=qdq
  })"));
}

TEST(RoundMxAway, ChangesTiesOfMxAlone) {
  EXPECT_EQ(After(
                [](Model& model) {
                  DecomposeAndFold(model);
                  return RoundMxAway(model);
                },
                R"(graph @g(%x: f32[2,40]) -> (%y) {
    %f: f32[2,40] = octavo::MXFakeQuantize(%x) {elem_format="mxfp4", axis=1, rounding="even"}
    %g: f32[2,40] = octavo::MXFakeQuantize(%f) {elem_format="mxfp4", axis=0, rounding="away"}
    %y: f32[2,40] = Neg(%g)
  })",
                1, false),
            Canonical(R"(graph @g(%x: f32[2,40]) -> (%y) {
    %x_mx: f32[2,40] # mx(mxfp4, axis=1, block=32) = Quantize(%x) {rounding="away"} form=qdq
    %x_mx_mx: f32[2,40] # mx(mxfp4, axis=0, block=32) = Requantize(%x_mx) form=qdq
    %y: f32[2,40] = Neg(%x_mx_mx)
  })"));
}

// --- PropagateParams, ValuesWithoutParams, AssignMx

TEST(PropagateParams, ForwardAndBackwardThroughWhatMoves) {
  EXPECT_EQ(After(PropagateParams, R"(graph @g(%x: f32[2,4]) -> (%y) {
    %shape = constant s64[2] [4, 2]
    %a: f32[2,4] # u8(scale=0.01, zero=128) = Relu(%x) form=qdq
    %b: f32[4,2] = Reshape(%a, %shape)
    %c: f32[2,4] = Transpose(%b) {perm=[1, 0]}
    %d: f32[2,4] = Neg(%x)
    %e: f32[4,2] # u8(scale=0.02, zero=9) = Transpose(%d) {perm=[1, 0]} form=qdq
    %f: f32[2,4] = Transpose(%e) {perm=[1, 0]} form=qdq
    %y: f32[2,4] = Add(%c, %f)
  })",
                  4),
            Canonical(R"(graph @g(%x: f32[2,4]) -> (%y) {
    %shape = constant s64[2] [4, 2]
    %a: f32[2,4] # u8(scale=0.01, zero=128) = Relu(%x) form=qdq
    %b: f32[4,2] # u8(scale=0.01, zero=128) = Reshape(%a, %shape) form=qdq
    %c: f32[2,4] # u8(scale=0.01, zero=128) = Transpose(%b) {perm=[1, 0]} form=qdq
    %d: f32[2,4] # u8(scale=0.02, zero=9) = Neg(%x)
    %e: f32[4,2] # u8(scale=0.02, zero=9) = Transpose(%d) {perm=[1, 0]} form=qdq
    %f: f32[2,4] # u8(scale=0.02, zero=9) = Transpose(%e) {perm=[1, 0]} form=qdq
    %y: f32[2,4] = Add(%c, %f)
  })"));
}

TEST(PropagateParams, StopsAtOtherReadersArithmeticPadsAndAxes) {
  for (const char* text : {// %d is read as a float, too
                           R"(graph @g(%x: f32[2,4]) -> (%y) {
    %d: f32[2,4] = Neg(%x)
    %e: f32[4,2] # u8(scale=0.02, zero=9) = Transpose(%d) {perm=[1, 0]} form=qdq
    %f: f32[4,2] = Neg(%d)
    %y: f32[4,2] = Add(%e, %f) form=qdq
  })",
                           // parameters of an axis
                           R"(graph @g(%x: f32[2,2]) -> (%y) {
    %a: f32[2,2] # u8(axis=0, scale=f32[2] [0.01, 0.02], zero=u8[2] [1, 2]) = Relu(%x) form=qdq
    %b: f32[2,2] = Transpose(%a) {perm=[1, 0]} form=qdq
    %y: f32[2,2] = Neg(%b)
  })",
                           // a Pad may fill with a number of its own; Neg computes
                           R"(graph @g(%x: f32[2,2]) -> (%y) {
    %pads = constant s64[4] [1, 1, 1, 1]
    %a: f32[2,2] # u8(scale=0.01, zero=1) = Relu(%x) form=qdq
    %b: f32[4,4] = Pad(%a, %pads) form=qdq
    %y: f32[4,4] = Neg(%b)
  })"}) {
    EXPECT_EQ(After(PropagateParams, text, 0, false), Canonical(text));
  }
}

TEST(ValuesWithoutParams, ListsWhatIsComputedInFloat) {
  const Model model = ParseModel(R"(graph @g(%x: f32[2,4]) -> (%y) {
    %a: f32[2,4] # u8(scale=0.01, zero=128) = Relu(%x) form=qdq
    %b: f32[2,4] = Neg(%a) form=qdq
    %shape: s64[2] = Shape(%b)
    %y: f32[2,4] = Abs(%b)
  })");
  EXPECT_THAT(ValuesWithoutParams(model), ElementsAre("b"));
}

TEST(AssignMx, InputsWeightsAndResults) {
  const std::string after = After([](Model& m) { return AssignMx(m, "mxfp4"); }, R"(graph @g(%x: f32[2,4]) -> (%y) {
    %w = constant f32[4,3] [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    %b = constant f32[3] [1, 2, 3]
    %m: f32[2,3] = MatMul(%x, %w)
    %a: f32[2,3] = Add(%m, %b)
    %y: f32[2,3] = Neg(%a)
  })",
                                  1, false);
  const std::string fake =
      R"( {elem_format="mxfp4", axis=AXIS, block_size=32, rounding="away", shared_exponent="floor"})";
  const auto at = [&](const char* axis) { return std::string(fake).replace(fake.find("AXIS"), 4, axis); };
  EXPECT_EQ(after, Canonical(R"(graph @g(%x: f32[2,4]) -> (%y) {
    %w = constant f32[4,3] [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    %b = constant f32[3] [1, 2, 3]
    %x_fq: f32[2,4] = octavo::MXFakeQuantize(%x))" +
                             at("1") + R"(
    %w_fq: f32[4,3] = octavo::MXFakeQuantize(%w))" +
                             at("0") + R"(
    %m: f32[2,3] = MatMul(%x_fq, %w_fq)
    %a: f32[2,3] = Add(%m, %b)
    %a_fq: f32[2,3] = octavo::MXFakeQuantize(%a))" +
                             at("-1") + R"(
    %y: f32[2,3] = Neg(%a_fq)
  })"));
}

// --- every pass keeps what random graphs compute

std::string RandomGraph(std::mt19937& rng) {
  const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  int rows = 1 + pick(40), columns = 1 + pick(70), next = 0;
  const int first_rows = rows, first_columns = columns;
  std::string body, outputs, value = "x";
  constexpr const char* kFormats[] = {"mxint8",     "mxfp4",      "mxfp6_e2m3", "mxfp6_e3m2",
                                      "mxfp8_e4m3", "mxfp8_e5m2", "nvfp4"};
  const auto dims = [&] { return "f32[" + std::to_string(rows) + "," + std::to_string(columns) + "]"; };
  const auto add = [&](const std::string& type, const std::string& call) {
    const std::string name = "v" + std::to_string(next++);
    body += "  %" + name + ": " + type + " = " + call + "\n";
    return name;
  };
  const auto numbers = [&](int n) {
    std::string text = "[";
    for (int i = 0; i < n; ++i) {
      text += (i ? ", " : "") + std::to_string(static_cast<int>(rng() % 257) - 128) + "." + (pick(2) ? "5" : "25");
    }
    return text + "]";
  };
  // Affine parameters of every storage type, of the tensor or an axis: the whole range, or of a tensor a narrow one.
  const auto affine = [&](const std::string& of) {
    constexpr std::pair<int, int> kRanges[] = {{-128, 127}, {0, 255}, {-32768, 32767}, {0, 65535}};
    constexpr std::pair<int, int> kNarrow[] = {{-7, 7}, {0, 15}, {-127, 127}, {-32767, 32767}};
    const std::string s = "s" + std::to_string(next++), z = "z" + std::to_string(next++);
    const bool channels = pick(2) == 0, zero = pick(2) == 0;
    const int axis = pick(2), size = axis == 0 ? rows : columns;
    const auto [low, high] = !channels && pick(2) == 0 ? kNarrow[pick(4)] : kRanges[pick(4)];
    std::string scales, zeros;
    for (int i = 0; i < (channels ? size : 1); ++i) {
      scales += (i ? ", 0." : "0.") + std::to_string(1 + pick(99));
      zeros += (i ? ", " : "") + std::to_string(low + static_cast<int>(rng() % static_cast<unsigned>(high - low + 1)));
    }
    const std::string count = channels ? "[" + std::to_string(size) + "] [" : "[] ", end = channels ? "]" : "";
    body += "  %" + s + " = constant f32" + count + (!channels && pick(2) ? "0.03125" : scales) + end + "\n";
    if (zero) body += "  %" + z + " = constant s32" + count + zeros + end + "\n";
    return "octavo::FakeQuantize(%" + of + ", %" + s + (zero ? ", %" + z : "") + ") {quant_min=" + std::to_string(low) +
           ", quant_max=" + std::to_string(high) +
           (channels ? ", axis=" + std::to_string(axis - (pick(2) ? 2 : 0)) : "") + "}";
  };
  const auto fake = [&](const std::string& of) {
    if (pick(3) == 0) return affine(of);
    return "octavo::MXFakeQuantize(%" + of + ") {elem_format=\"" + kFormats[pick(7)] +
           "\", axis=" + std::to_string(pick(4) - 2) + ", rounding=\"" + (pick(2) ? "even" : "away") +
           "\", block_size=" + std::to_string(pick(2) ? 32 : 1 + pick(20)) + "}";
  };
  const int length = 3 + pick(8);
  for (int i = 0; i < length; ++i) {
    const std::string before = value;
    switch (pick(6)) {
      case 0:
        value = add(dims(), "Relu(%" + value + ")");
        break;
      case 1:
        std::swap(rows, columns);
        value = add(dims(), "Transpose(%" + value + ") {perm=[1, 0]}");
        break;
      case 2: {
        // Weights have one or more fakes behind each other, and other readers.
        const int batch = rows;
        rows = std::exchange(columns, 1 + pick(40));
        std::string weight = "w" + std::to_string(next++);
        body += "  %" + weight + " = constant " + dims() + " " + numbers(rows * columns) + "\n";
        const std::string constant = weight;
        weight = add(dims(), fake(weight));
        while (pick(3) == 0) weight = add(dims(), fake(weight));
        if (pick(4) == 0)
          weight = add(dims(), "Mul(%" + weight + ", %" + (pick(2) ? constant : add(dims(), fake(constant))) + ")");
        if (pick(4) == 0) {
          std::swap(rows, columns);
          weight = add(dims(), "Transpose(%" + weight + ") {perm=[1, 0]}");
          if (pick(2)) weight = add(dims(), fake(weight));
          std::swap(rows, columns);
          weight = add(dims(), "Transpose(%" + weight + ") {perm=[1, 0]}");
        }
        if (pick(8) == 0) outputs += ", %" + weight;
        rows = batch;
        value = add(dims(), "MatMul(%" + value + ", %" + weight + ")");
        break;
      }
      default:
        value = add(dims(), fake(value));
        if (pick(3) == 0) value = add(dims(), "Sub(%" + value + ", %" + before + ")");
    }
  }
  const std::string y = add(dims(), "Neg(%" + value + ")");
  return "graph @g(%x: f32[" + std::to_string(first_rows) + "," + std::to_string(first_columns) + "]) -> (%" + y +
         (pick(2) && value != "x" ? ", %" + value : "") + outputs + ") {\n" + body + "}";
}

TEST(FakeQuantization, EveryPassKeepsWhatRandomGraphsCompute) {
  // Other graphs: --gtest_shuffle --gtest_random_seed=N
  std::mt19937 rng(11 + static_cast<unsigned>(::testing::UnitTest::GetInstance()->random_seed()));
  for (int i = 0; i < 100; ++i) {
    const std::string text = RandomGraph(rng);
    SCOPED_TRACE(text.substr(0, 3000));
    Model model = ParseModel(text);
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, static_cast<std::uint64_t>(i));
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    const auto check = [&](const char* pass) {
      ASSERT_EQ(Verify(model), std::vector<std::string>{}) << pass;
      ASSERT_TRUE(SameNumbers(before, RunLowered(model, inputs))) << pass << "\n"
                                                                  << Print(*model.graph).substr(0, 3000);
    };
    DecomposeFakeQuantize(model);
    check("decompose");
    FoldQuantOps(model);
    check("fold");
    FoldQdq(model);
    check("fold-qdq");
    PropagateParams(model);
    check("propagate");
    EXPECT_THAT(TakeWarnings(), IsEmpty());
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace octavo
