// What a device can take, as data: read by placement, rewriting and the compile report; nobody has a second list.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/dtype.h"

namespace octavo {

// How an operator runs when its tensors are quantized on this device.
enum class QuantSupport {
  kInteger,        // an integer kernel exists for the QDQ group
  kIntegerFloatOut,// integer inputs, float output (MatMulIntegerToFloat): no Q needed behind it
  kPassThrough,    // data movement in integers
  kFloatOnly,      // computes in float: quantizing around it only costs
};

struct OpSupport {
  std::string_view op, domain;
  QuantSupport support;
  std::string_view reason;   // why not integer, or which constraint applies
};

struct DeviceDescriptor {
  std::string_view name;      // "cpu"
  std::string_view ep;        // "CPUExecutionProvider"
  DType activation8, weight8_uint8, weight8_int8;  // 8-bit types that are exact here, for precision uint8 and int8
  // "int8" weights are symmetric per channel; stored as `weight8_int8`, u8 with zero point 128 where s8 is not exact.
  bool per_channel_int8;
  bool one_zero_point_per_weight;   // all channels of a u8 weight share one zero point
  std::string_view weight_note;     // the reason of weight8_int8, for the manifest
  std::span<const OpSupport> ops;   // an operator not listed is kFloatOnly

  QuantSupport Support(std::string_view op, std::string_view domain) const;
  std::string_view Reason(std::string_view op, std::string_view domain) const;
};

// Built devices; null for a name that is not known or not built yet (qnn, openvino, dml are named in messages).
const DeviceDescriptor* FindDevice(std::string_view name);
std::span<const DeviceDescriptor> Devices();

}  // namespace octavo
