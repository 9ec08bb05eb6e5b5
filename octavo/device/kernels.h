// Integer kernels of a device: which operators it computes on codes, under which name and for which types.
#pragma once

#include <cstdint>
#include <string_view>

#include "octavo/device/descriptor.h"
#include "octavo/ir/dtype.h"

namespace octavo {

// What a kernel does with parameters.
enum class KernelKind : std::uint8_t {
  kOnCodes,  // the float operator itself, run on codes: moves, copies, compares
  kQLinear,  // an operator that takes scales and zero points
  kBlocks,   // float activations, weights in blocks
};

struct IntegerKernel {
  std::string_view op;  // the float operator (default domain)
  KernelKind kind = KernelKind::kOnCodes;
  std::string_view emitted, emitted_domain;  // the operator that is written
  bool signed_codes = false;                 // s8 as well as u8
  bool wide_codes = false;                   // u16 and s16 too
  std::int64_t opset = 7;                    // of the default domain, from which the kernel takes these types
};

// The kernel for a float operator; null when the device has none (a device that wants Q/DQ has none at all).
// `float_output`: of an operator that also has a form with integer inputs and float output.
const IntegerKernel* FindIntegerKernel(const DeviceDescriptor& device, std::string_view op, KernelKind kind,
                                       bool float_output = false);

// Whether the kernel takes codes of this type.
bool TakesCodes(const IntegerKernel& kernel, DType storage);

// True where u8 activations times s8 weights overflow 16-bit sums (x86 without VNNI): the target's property, never that
// of the building machine. There s8 weights become u8 with zero point + 128.
bool SaturatesU8S8(const DeviceDescriptor& device);
// True where the runtime fuses a DequantizeLinear of a weight without looking at its axis.
bool IgnoresWeightAxis(const DeviceDescriptor& device);

}  // namespace octavo
