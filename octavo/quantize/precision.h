// What a precision name means on a device: the one resolver, used by every command.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "octavo/device/descriptor.h"
#include "octavo/quantize/config.h"

namespace octavo {

struct ResolvedPrecision {
  enum class Kind {
    kFloat,      // fp32: simplified, not quantized
    kHalf,       // fp16, bf16
    kStatic,     // affine weights and activations
    kWeightOnly  // big weights in blocks (weight_only.h), float activations
  } kind = Kind::kFloat;
  DType half = DType::kUndefined;        // kHalf: f16 or bf16
  DType weight = DType::kUndefined;      // kStatic: storage type of the weights
  DType activation = DType::kUndefined;  // kStatic: storage type of the activations
  bool per_channel = false;              // weights: one scale an output channel
  bool weight_symmetric = false;         // zero point at the middle code (u8: 128, s8: 0)
  bool activation_symmetric = false;
  double weight_bits = 32;                   // bits that a quantized weight's number takes, scales included
  std::string weight_text, activation_text;  // for people and the manifest: "u8 per tensor", "u8"
};

// Every precision name.
std::span<const std::string_view> PrecisionNames();

// Applies the device and the config's own weight_type, activation_type, per_channel and symmetric. A type that the
// device cannot run exactly becomes one that it can by an exact rule that weight_text names (s8 -> u8 with zero point
// 128). Errors: kUsage for a name that is no precision (nearest names); kUnsupported for types that nothing can
// compute on.
ResolvedPrecision ResolvePrecision(const QuantizationConfig& config, const DeviceDescriptor& device);

// The 8-bit precision whose noise decides which nodes of `precision` stay in float. A static precision with 16-bit
// activations takes int8's selection, so that it never computes in codes where int8 does not; every other is its own.
ResolvedPrecision SelectionPrecision(const QuantizationConfig& config, const DeviceDescriptor& device,
                                     const ResolvedPrecision& precision);

}  // namespace octavo
