#include "octavo/device/arithmetic.h"

#include <algorithm>

namespace octavo {
namespace {

// onnxruntime-qnn 2.7.0, htp_arch 73, in its x86 emulator, one operator at a time; convolutions a channel at a time,
// over biases, zero points, strides and kernels. A LayerNormalization from u8 to u8 is off by 0.7 steps of u8 (root
// mean square); with the input in 16 bits by 0.12, which is what rounding at ties makes. A product of two computed u8
// tensors is off by 0.6 steps, but with its second factor as s16 some of a ViT's are refused.
// A TopK of 8 bits gives values that are off by a step; in 16 bits it computes with fp16's eleven.
constexpr WidenedInput kQnnWidened[] = {
    {"LayerNormalization", 0},
    {"TopK", 0},
};

// In float the HTP computes Tanh and Sigmoid at 65 to 68 dB, but those that it fuses with what makes their input at 49
// dB (errors up to 0.005); another operator between them keeps them apart. The bounds: tanh(9) is 1 to 3e-8,
// sigmoid(-17) is 4e-8, and fp16 is a multiple of 6e-8.
constexpr BoundedInput kQnnCoarse[] = {
    {"Tanh", 9.0f},
    {"Sigmoid", 17.0f},
    {"Gelu", 65504.0f},
};

// An LRN between codes of u16 is refused (the model does not compile), in u8 it has 44 dB; behind a Clip, which keeps
// it float, 71 dB and 55 dB, which is what rounding to 8 bits leaves.
// A CumSum of u8 is off by 50 steps (root mean square), behind a Clip by 0.3.
// A Log of u16 gave one number for all in some graphs (-8 dB); behind a Clip it has 70 dB.
constexpr BoundedInput kQnnApart[] = {
    {"LRN", 65504.0f},
    {"CumSum", 65504.0f},
    {"Log", 65504.0f, 16},
};

// An LSTM has the coarse Tanh and Sigmoid at every step: 35 to 44 dB, 58 dB and more as operators of its own, which for
// 64 steps of both directions are 720. The provider leaves GRU and RNN to the CPU.
constexpr std::int64_t kQnnUnrolled = 256;

// A Softmax in 16 bits gives codes that are 0.4 to 0.75 too low (mean, in a ViT's layers of 257 tokens): its product
// with V is at 50 to 56 dB, of a centered V at 56 to 68. With random logits and V of 1600 rows: 38 to 50 and 46 to 66;
// of 512: 48 to 56 and 53 to 69; of 128: 58 to 64 and 58 to 70; of 64, where twice the step for V costs more: 57 to 69
// and 57 to 66.
constexpr std::int64_t kQnnCentered = 128;

// The type of the codes that `node` reads its first input from.
DType CodesIn(const Node& node) {
  const Node* from = node.input(0) == nullptr ? nullptr : node.input(0)->producer();
  const bool codes = from != nullptr && from->Is("DequantizeLinear") && from->input(0) != nullptr;
  return codes ? from->input(0)->type.dtype : DType::kUndefined;
}
bool FromBytes(const Node& node) { return BitWidth(CodesIn(node)) == 8; }
bool FromWords(const Node& node) { return BitWidth(CodesIn(node)) == 16; }
bool NotBetweenBytes(const Node& node) {
  return !FromBytes(node) ||
         !std::all_of(node.output()->uses().begin(), node.output()->uses().end(), [](const Use& use) {
           return use.node->Is("QuantizeLinear") && BitWidth(use.node->output()->type.dtype) == 8;
         });
}
bool OfAbsOrFromBytes(const Node& node) { return node.IntAttribute("p", 2) == 1 || FromBytes(node); }

// Operators alone between an Add and a Mul of [1,4,8,16], random numbers in [-4, 4] or what the operator takes.
// The provider leaves those without a remark to the CPU. Softplus from 16 bits is off by up to 0.015 (37 to 51 dB),
// spelled out by 0.004 (70 dB); Mish fails in a graph of convolutions.
constexpr LackedOp kQnnLacked[] = {
    {"Softplus", NotBetweenBytes},
    {"Mish"},
    {"Softsign"},
    {"Celu"},
    {"Sinh"},
    {"Cosh"},
    {"Tan"},
    {"Erf"},
    {"Asin"},
    {"Acos"},
    {"Asinh"},
    {"Acosh"},
    {"Atanh"},
    {"Shrink"},
    {"ThresholdedRelu"},
    {"PRelu", FromWords},
    {"Pow"},
    {"Mod"},
    {"IsInf"},
    {"Cast"},
    {"Div"},
    {"ReduceL1"},
    {"ReduceSumSquare"},
    {"ReduceLogSum"},
    {"ReduceLogSumExp"},
    {"ReduceProd"},
    {"GlobalLpPool"},
    {"LpPool"},
    {"LpNormalization", OfAbsOrFromBytes},
    {"MeanVarianceNormalization"},
    {"Hardmax"},
    {"OneHot"},
    {"CumSum"},
    {"ArgMax"},
    {"ArgMin"},
};

// A Softmax of u16 logits raises to powers of s' = floor(s log2(e) 2^22) 2^-22 in the place of s log2(e), as the slopes
// of its logarithms show for 25 steps s from 1e-6 to 3e-4 (0.9916 of what they should be at 3e-6 and 1.5e-5, 1.0001 at
// 4e-5); below 16 units there is nothing left of the powers (18 to 24 dB). Random logits in [-1, 1], rows of 64: 55 dB,
// with a whole number of units 87 dB; in [-2.5, 2.5] 60 and 81; in [-6, 6] (1108 units) 75 and 74.
constexpr SoftmaxSteps kQnnSoftmax = {.unit = 0.69314718055994530942 / 4194304.0, .least = 16, .most = 1024};

// Depthwise 1x1 in 16 bits: of 256 channels the compiler makes a context, of 288 it is ended by a segmentation fault,
// where the weights' scales lie near each other.
constexpr std::int64_t kQnnDepthwise = 256;
// Channels of one whose weights' scales differ by 64 times and less have 87 dB, by 100 and 128 times 13, by 204 -5 (a
// layer of a RepViT of 192 channels): results of other channels are at the end of the range.
constexpr double kQnnDepthwiseRatio = 32;

// A HardSwish behind a Conv or Gemm, of u8 and u16, x from -4 to -300 on, y in ranges of .54 to 6.4: up to 1.4, x below
// -3 gives what x + 1.6 or so should give, up to all that y holds (a Conv from -11.8 to .57 at -8 dB), whatever the
// codes of x hold: the device keeps x in units of y. From 1.6 on it is right, and so it is behind an Add or a MaxPool,
// where somebody else reads x, and as x HardSigmoid(x); behind a Clip, a Concat or another step of x it is not.
constexpr double kQnnHardSwish = 1.55;

// An average over tiles of 4x4 has 31 to 42 dB in 16 bits, of 6x6 30, of 8x8 14, of 16x16 6 (in 8 bits 14 of 8x8),
// where there are more than 2x2 of them or so; with a pad behind the last column, which no window reaches, 83 dB and
// more, and in 8 bits what rounding makes. Odd tiles, those of 2x2, windows that overlap, and one dimension are right.

// A convolution of one tap and stride 2 over the sum of two tensors of 8 numbers a channel came out as its first and
// third number and zeros: -0.4 to 2 dB, 63 and more over a Slice of the sum. Over a product, an activation, in two
// dimensions or in 8 bits it is right.
// The product of two parts of a Tanh in 16 bits, by a Split along the last axis, was at -4 dB, and that of a transposed
// Tanh and a constant. With a Clip behind the Tanh, which is float then: 71 to 73 dB. A Sigmoid and 8 bits are right.
// An Equal of an Expand, cast to float and multiplied by a matrix and then by a scalar, came out with its rows
// permuted; a Where in the place of the Cast comes out right.
// (x + c) s in float, c of [4,1,1] or [16], was at 9 to 24 dB, (c + x) s at 71, and so are a Sub, a Div, a c of one
// number, and a sum behind a Conv or MatMul.
// A Where or Concat of u16 numbers in [-4, 4] and of zeros in steps of 1 gave the least number for the zeros (1 dB); in
// steps of 0.1 and less, and in 8 bits, 0.
// Concat(a, Concat(b, c)) of u8, the Concats in different codes, and c too, with or without a Reshape, two Transposes,
// a Slice or a DepthToSpace between the two: where c is a Sigmoid, Tanh, HardSigmoid, Gelu, Elu, Abs, Sqrt, Exp, Log,
// Sin, Ceil, Pow or SiLU, its codes came out in those of the inner Concat, read as if they were of the outer one (9
// steps off where the zero points are 9 apart). A convolution, a MaxPool, a Resize, a Relu, a Mul, and 16 bits are
// right, and so is a Concat read by other operators than a Concat.
// Float numbers that a Split, a Reshape and a Concat moved came out half a step of 8 bits too low (mean; 0.56 steps
// root mean square); with a Clip before the QuantizeLinear 0.29, which is what rounding makes.
// A GatherND of planes or volumes ([N, a, b] by [n, 1]) by 31 indices and more was wrong in 5 of 7 tables, in 8 bits
// and in 16; of rows and of numbers it was right (30).
// A Gather moves rows, what lies behind its axis. Those of 8, 16 and 32 bytes of codes, by 32 indices and more, came out
// as others (the last one, or those of all but the first plane), for 8 lengths of the axis, 1 and 4 planes, constant
// tables of 8 bits excepted; rows of 1 to 4, 6, 10, 20, 40 and 64 bytes and more, those by 31 indices, and all along the
// last axis were right.
constexpr DeviceArithmetic kArithmetics[] = {
    {.device = "qnn",
     .conv16_lost_bits = 8,
     .conv16_pads_5x5_wrongly = true,
     .conv16_strides_twice = true,
     .multiplies_tanh16_wrongly = true,
     .fuses_silu16_wrongly = true,
     .widened = kQnnWidened,
     .lacked = kQnnLacked,
     .casts_bool_wrongly = true,
     .unrolled_steps = kQnnUnrolled,
     .centered_rows = kQnnCentered,
     .softmax16 = kQnnSoftmax,
     .depthwise16_channels = kQnnDepthwise,
     .depthwise16_ratio = kQnnDepthwiseRatio,
     .hardswish_range = kQnnHardSwish,
     .averages_tiles_wrongly = true,
     .scales_sums_wrongly = true,
     .overflows_constants16 = true,
     .converts_coarse16_wrongly = true,
     .gathers_planes_wrongly = true,
     .gathers_rows_wrongly = true,
     .pads_right_wrongly = true,
     .concat_copies_volumes = true,
     .converts_concats_once = true,
     .floors_moved_floats = true,
     .coarse_after_sums = kQnnCoarse,
     .taken_for_codes = kQnnApart},
};

constexpr DeviceArithmetic kAsMeant = {};

}  // namespace

bool Lacks(const DeviceArithmetic& arithmetic, const Node& node) {
  return std::any_of(arithmetic.lacked.begin(), arithmetic.lacked.end(), [&](const LackedOp& lacked) {
    return node.Is(lacked.op) && (lacked.when == nullptr || lacked.when(node));
  });
}

const DeviceArithmetic& ArithmeticOf(const DeviceDescriptor& device) {
  for (const DeviceArithmetic& arithmetic : kArithmetics) {
    if (arithmetic.device == device.name) return arithmetic;
  }
  return kAsMeant;
}

}  // namespace octavo
