#include "octavo/device/arithmetic.h"

namespace octavo {
namespace {

// onnxruntime-qnn 2.7.0, htp_arch 73, in its x86 emulator, one operator at a time; convolutions a channel at a time,
// over biases, zero points, strides and kernels. A LayerNormalization from u8 to u8 is off by 0.7 steps of u8 (root
// mean square); with the input in 16 bits by 0.12, which is what rounding at ties makes. A product of two computed u8
// tensors is off by 0.6 steps, but with its second factor as s16 some of a ViT's are refused.
constexpr WidenedInput kQnnWidened[] = {
    {"LayerNormalization", 0},
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
