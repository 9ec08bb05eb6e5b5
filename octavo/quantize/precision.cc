#include "octavo/quantize/precision.h"

#include <algorithm>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/quantize/weight_only.h"

namespace octavo {
namespace {

constexpr std::string_view kNames[] = {
    "uint8",      "int8",       "w8a16",      "int16",      "fp16",   "bf16",   "fp32",     "int4",  "mxint8", "mxfp4",
    "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "q8_0",   "q4_0",   "q4_1",     "q5_0",  "q5_1",   "q2_k",
    "q3_k",       "q4_k",       "q5_k",       "q6_k",       "iq4_nl", "iq4_xs", "mxfp4_gg", "nvfp4", "tq1_0",  "tq2_0",
};

bool Is8Bit(DType type) { return BitWidth(type) == 8; }

std::string Text(const ResolvedPrecision& p, bool converted, std::string_view note) {
  std::string text(Name(p.weight));
  text += p.per_channel ? " per channel" : " per tensor";
  if (p.weight_symmetric) text += ", symmetric";
  if (converted) {
    text += " (";
    text += note;
    text += ')';
  }
  return text;
}

void CheckType(DType type, const char* option) {
  switch (type) {
    case DType::kU8:
    case DType::kS8:
    case DType::kU16:
    case DType::kS16:
      return;
    default:
      ThrowUnsupported("nothing computes on codes of type '" + std::string(Name(type)) + "'", option,
                       "use u8, s8, u16 or s16");
  }
}

}  // namespace

std::span<const std::string_view> PrecisionNames() { return kNames; }

ResolvedPrecision ResolvePrecision(const QuantizationConfig& config, const DeviceDescriptor& device) {
  const std::string& name = config.precision;
  if (std::find(std::begin(kNames), std::end(kNames), name) == std::end(kNames)) {
    const std::vector<std::string> names(std::begin(kNames), std::end(kNames));
    ThrowUsage("unknown precision '" + name + "'", "--precision", DidYouMean(name, names));
  }
  ResolvedPrecision p;
  bool int8_weights = false;  // symmetric codes that a device may want in another, equal form
  if (name == "fp32") {
    p.weight_text = p.activation_text = "f32";
  } else if (name == "fp16" || name == "bf16") {
    p.kind = ResolvedPrecision::Kind::kHalf;
    p.half = name == "fp16" ? DType::kF16 : DType::kBF16;
    p.weight_bits = 16;
    p.weight_text = std::string(Name(p.half));
    p.activation_text = name == "bf16" ? "f32" : p.weight_text;  // no runtime here computes in bf16: it is storage
  } else if (name == "uint8") {
    p.kind = ResolvedPrecision::Kind::kStatic;
    p.weight = device.weight8_uint8;
    p.activation = device.activation8;
  } else if (name == "int8") {
    p.kind = ResolvedPrecision::Kind::kStatic;
    p.weight = DType::kS8;
    int8_weights = true;
    p.activation = device.activation8;
    p.per_channel = device.per_channel_int8;
    p.weight_symmetric = true;
  } else if (name == "w8a16") {
    p.kind = ResolvedPrecision::Kind::kStatic;
    // The codes of int8 are the best 8 bits where 16-bit activations run in float between their Q and DQ, and those
    // that an NPU multiplies 16 bits with.
    p.weight = DType::kS8;
    p.weight_symmetric = p.per_channel = true;
    p.activation = DType::kU16;
  } else if (name == "int16") {
    p.kind = ResolvedPrecision::Kind::kStatic;
    p.weight = DType::kS16;
    p.weight_symmetric = true;
    p.per_channel = !device.whole_graph;
    p.activation = DType::kU16;
  } else if (const std::optional<WeightOnlyFormat> format = FindWeightOnlyFormat(config)) {
    p.kind = ResolvedPrecision::Kind::kWeightOnly;
    p.weight_text = format->weight_text;
    p.weight_bits = format->bits_per_weight;
    p.activation_text =
        config.activation_mx.empty() ? "f32" : config.activation_mx + ", blocks of " + std::to_string(config.block);
  } else {
    ThrowInternal("precision '" + name + "' has no row");
  }
  if (p.kind != ResolvedPrecision::Kind::kStatic) {
    if (config.weight_type || config.activation_type) {
      ThrowUsage("weight and activation types do not go with precision '" + name + "'",
                 "--weight-type, --activation-type", "leave them out, or use a quantized precision");
    }
    return p;
  }
  if (config.weight_type) {
    const bool four = *config.weight_type == DType::kS4 && device.weights4;
    if (!four) CheckType(*config.weight_type, "--weight-type");
    if (four && config.per_channel == false) {
      ThrowUnsupported("device '" + std::string(device.name) + "' takes s4 weights with a scale a channel only",
                       "--per-tensor", "leave it out");
    }
    if (four) p.per_channel = true;
    p.weight = *config.weight_type;
    p.weight_symmetric = IsSignedInteger(p.weight);
    int8_weights = p.weight == DType::kS8;
  }
  if (config.activation_type) {
    CheckType(*config.activation_type, "--activation-type");
    p.activation = *config.activation_type;
  }
  const DType asked = p.activation;
  if (device.unsigned_activations && asked == DType::kS8) p.activation = DType::kU8;
  if (device.unsigned_activations && asked == DType::kS16) p.activation = DType::kU16;
  if (config.per_channel) p.per_channel = *config.per_channel;
  p.activation_symmetric = config.symmetric.value_or(false);
  // 16-bit activations run in float between their Q and DQ: the codes of s8 are exact there as they are.
  const bool converted = int8_weights && Is8Bit(p.activation) && device.weight8_int8 != DType::kS8;
  if (converted) p.weight = device.weight8_int8;
  // One zero point for all channels: only the middle code can be right for every channel.
  if (p.per_channel && device.one_zero_point_per_weight && Is8Bit(p.activation)) p.weight_symmetric = true;
  if (device.symmetric_weights16 && config.weight_type && !Is8Bit(p.activation)) p.weight_symmetric = true;
  p.weight_text = Text(p, converted, device.weight_note);
  p.activation_text = std::string(Name(p.activation)) + (p.activation_symmetric ? ", symmetric" : "");
  if (p.weight == DType::kS4) p.weight_text += ", s8 where the device takes one scale a tensor";
  if (p.activation != asked) {
    p.activation_text += " (the codes of " + std::string(Name(asked)) + " plus " + (Is8Bit(asked) ? "128" : "32768") +
                         ", exactly the same numbers: the device takes no others)";
  }
  p.weight_bits = BitWidth(p.weight);
  return p;
}

ResolvedPrecision SelectionPrecision(const QuantizationConfig& config, const DeviceDescriptor& device,
                                     const ResolvedPrecision& precision) {
  if (precision.kind != ResolvedPrecision::Kind::kStatic || BitWidth(precision.activation) == 8) return precision;
  QuantizationConfig eight = config;
  eight.precision = "int8";
  eight.weight_type.reset();
  eight.activation_type.reset();
  return ResolvePrecision(eight, device);
}

}  // namespace octavo
