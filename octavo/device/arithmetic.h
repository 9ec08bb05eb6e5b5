// Where a device computes something else than what Q/DQ operators mean, as data (measured): read by what makes up for
// it on the way into the device's compiler (compile/device_form.h).
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "octavo/device/descriptor.h"

namespace octavo {

// An input that goes in as u16 where it is computed as u8: else the results are rounded twice.
struct WidenedInput {
  std::string_view op;
  std::size_t input;
};

struct DeviceArithmetic {
  std::string_view device;  // the descriptor's name
  // Convolutions of 16-bit activations and 8-bit weights. Their sums of products lose this many low bits, rounded down;
  // so does their bias, rounded towards zero, and the products of the input's zero point, rounded to nearest. 0:
  // nothing is lost.
  int conv16_lost_bits = 0;
  bool conv16_pads_5x5_wrongly = false;  // depthwise 5x5 of stride 2: padding is not the input's zero
  std::span<const WidenedInput> widened = {};
};

// Of this device; one without entries for a device that computes what is meant.
const DeviceArithmetic& ArithmeticOf(const DeviceDescriptor& device);

}  // namespace octavo
