// The ONE quantization configuration: every command, the library and the manifest use it; one default a field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "octavo/calibrate/method.h"
#include "octavo/ir/dtype.h"

namespace octavo {

struct QuantizationConfig {
  std::string precision = "uint8";   // as INTERFACE.md; resolved by ResolvePrecision for a device
  std::optional<DType> weight_type;  // unset: the precision's
  std::optional<DType> activation_type;
  // The name of the precision, an MX format: what its products multiply takes that format too, at each run. In JSON and
  // on the command line it is a value of activation_type.
  std::string activation_mx;
  std::optional<bool> per_channel;  // unset: the precision's
  std::optional<bool> symmetric;    // activations; unset: the precision's. Weights follow their type.
  CalibrationMethod calibration = CalibrationMethod::kMinMax;
  double percentile = 99.99;
  std::int64_t samples = 128;  // or all there are
  std::uint64_t seed = 0;
  std::string distribution = "uniform";                        // of synthetic samples: uniform | normal
  std::int64_t block = 32;                                     // block size of weight-only formats
  std::vector<std::string> op_types;                           // empty: all that the device takes
  std::vector<std::string> exclude;                            // node names or globs
  std::vector<std::pair<std::string, std::string>> overrides;  // tensor name or glob -> type ("u8", "u16", "s8", "f32")
  std::string load_path, save_path;                            // calibration statistics
  std::string imatrix;                                         // importance matrix for formats that take one
  bool keep_float_auto = true;                                 // --keep-float auto|none
  bool requantize = false;

  bool operator==(const QuantizationConfig&) const = default;
};

// JSON form; ToJson(FromJson(x)) is canonical. Errors: kUsage naming the key for an unknown key, wrong type or value
// out of range. `where` names the file.
std::string ToJson(const QuantizationConfig& config);
QuantizationConfig QuantizationConfigFromJson(const std::string& text, const std::string& where);
// Ranges of the fields; a field that has no effect with this precision or calibration method, and is set, is refused.
void Validate(const QuantizationConfig& config);
// Resets such fields: they belonged to what a flag has overridden.
void DropIdleFields(QuantizationConfig& config);

}  // namespace octavo
