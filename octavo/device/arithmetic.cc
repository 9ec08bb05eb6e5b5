#include "octavo/device/arithmetic.h"

namespace octavo {
namespace {

// onnxruntime-qnn 2.7.0, htp_arch 73, in its x86 emulator, one operator at a time; convolutions a channel at a time,
// over biases, zero points, strides and kernels. A product of two u8 tensors is off by 0.6 steps of u8 (root mean
// square; 0.25 of them on average), a LayerNormalization from u8 to u8 by 0.7; with the input in 16 bits by 0.26 and
// 0.12, which is what rounding at ties makes.
constexpr WidenedInput kQnnWidened[] = {
    {"MatMul", 1, true},
    {"LayerNormalization", 0, false},
};

constexpr DeviceArithmetic kArithmetics[] = {
    {.device = "qnn", .conv16_lost_bits = 8, .conv16_pads_5x5_wrongly = true, .widened = kQnnWidened},
};

constexpr DeviceArithmetic kAsMeant = {};

}  // namespace

const DeviceArithmetic& ArithmeticOf(const DeviceDescriptor& device) {
  for (const DeviceArithmetic& arithmetic : kArithmetics) {
    if (arithmetic.device == device.name) return arithmetic;
  }
  return kAsMeant;
}

}  // namespace octavo
