// What a device's arithmetic asks of a quantized model on its way into the compiler.
#pragma once

#include <cstdint>

#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"

namespace octavo {

struct DeviceForm {
  std::int64_t biases = 0;    // of convolutions, moved by what the device rounds down
  std::int64_t pads = 0;      // of averages, that no window reaches
  std::int64_t kernels = 0;   // of convolutions, that grew
  std::int64_t strides = 0;   // of convolutions, taken out of them
  std::int64_t widened = 0;   // inputs in 8 bits that go in in 16
  std::int64_t selected = 0;  // casts of bool that became a Where
  std::int64_t unrolled = 0;  // recurrent operators
  std::int64_t centered = 0;  // products of attention
  std::int64_t refit = 0;     // Softmaxes whose logits got another step
  std::int64_t rescaled = 0;  // depthwise convolutions whose channels got bigger scales
  std::int64_t split = 0;     // depthwise convolutions
  std::int64_t spelled = 0;   // float operators that became others
  std::int64_t bounded = 0;   // float operators kept apart from what they read
  std::int64_t ordered = 0;   // sums whose constant comes first
  std::int64_t recoded = 0;   // constants in the codes that they become
  std::int64_t concats = 0;   // inputs of Concats, in the codes that they become
  std::int64_t bridged = 0;   // conversions between 8 bits and coarser 16
  std::int64_t gathers = 0;   // Gathers and GatherNDs that became others
  std::int64_t padded = 0;    // Pads at the end of the last axis
  std::int64_t joined = 0;    // volumes in 8 bits that are converted before they are joined
  std::int64_t unfused = 0;   // products with a Sigmoid of one factor, and HardSwishes as two operators
  bool operator==(const DeviceForm&) const = default;
  bool changed() const { return *this != DeviceForm{}; }
};

// Changes `model` (plain ONNX with Q/DQ operators) where the device (device/arithmetic.h) computes something else
// than what Q/DQ mean, so that the device's results come nearer to those of `model` as it was. What comes out is for
// the device's compiler alone: elsewhere its numbers are worse.
DeviceForm ToDeviceForm(Model& model, const DeviceDescriptor& device);

}  // namespace octavo
