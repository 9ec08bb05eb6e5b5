#include "octavo/quantize/config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/numerics/ggml.h"
#include "octavo/numerics/mx.h"
#include "octavo/quantize/precision.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

constexpr std::pair<CalibrationMethod, const char*> kMethods[] = {{CalibrationMethod::kMinMax, "minmax"},
                                                                  {CalibrationMethod::kPercentile, "percentile"},
                                                                  {CalibrationMethod::kEntropy, "entropy"},
                                                                  {CalibrationMethod::kMse, "mse"}};
const std::vector<std::string> kOverrideTypes = {"u8", "s8", "u16", "s16", "f32"};
const std::vector<std::string> kDistributions = {"uniform", "normal"};

// Weight-only formats whose blocks have a size to choose; those of GGML have one of their own.
bool HasBlocks(const std::string& precision) {
  return precision == "int4" || (precision.starts_with("mx") && precision != "mxfp4_gg");
}

// The fields that nothing reads with this precision and this calibration method.
// F(name, pointer to the field, why, what to do)
template <class F>
void ForEachIdleField(const QuantizationConfig& c, F f) {
  using C = QuantizationConfig;
  const std::string leave = "leave it out";
  if (c.calibration != CalibrationMethod::kPercentile) {
    f("percentile", &C::percentile, "without calibration 'percentile'", "add --calibration percentile, or " + leave);
  }
  const std::string with = "with precision '" + c.precision + "'";
  const GgmlFormat* found = FindGgmlFormat(c.precision);
  const GgmlFormat* ggml = found != nullptr && found->is_block() && found->name == c.precision ? found : nullptr;
  const bool importance = ggml != nullptr && ggml->takes_importance;
  if (!importance) f("imatrix", &C::imatrix, with, leave + ", or use a GGML format that takes an importance matrix");
  const bool blocks = HasBlocks(c.precision);
  if (!blocks) f("block", &C::block, with, leave + ", or use int4 or an mx format");
  if (c.activation_mx != c.precision) {
    f("activation_type", &C::activation_mx, with, leave + ", or name the precision's own MX format");
  }
  const bool half = c.precision == "fp16" || c.precision == "bf16";
  const bool weight_only = blocks || ggml != nullptr;
  if (!half && !weight_only && c.precision != "fp32") return;
  f("weight_type", &C::weight_type, with, leave);
  f("activation_type", &C::activation_type, with, leave);
  f("per_channel", &C::per_channel, with, leave);
  f("symmetric", &C::symmetric, with, leave);
  f("calibration", &C::calibration, with, leave);
  f("percentile", &C::percentile, with, leave);
  f("keep_float", &C::keep_float_auto, with, leave);
  if (!importance) {
    f("load_path", &C::load_path, with, leave);
    f("save_path", &C::save_path, with, leave);
  }
  if (weight_only) return;
  f("overrides", &C::overrides, with, leave);
  if (half) return;
  f("op_types", &C::op_types, with, leave);
  f("exclude", &C::exclude, with, leave);
}

[[noreturn]] void WrongType(const std::string& key, const std::string& where, const char* wanted) {
  ThrowUsage("'" + key + "' must be " + wanted, where);
}

std::string GetString(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_string()) WrongType(key, where, "a string");
  return v.get<std::string>();
}

bool GetBool(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_boolean()) WrongType(key, where, "true or false");
  return v.get<bool>();
}

std::int64_t GetInt(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_number_integer() || (v.is_number_unsigned() && v.get<std::uint64_t>() > INT64_MAX)) {
    WrongType(key, where, "an integer");
  }
  return v.get<std::int64_t>();
}

std::vector<std::string> GetStrings(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_array()) WrongType(key, where, "a list of strings");
  std::vector<std::string> out;
  for (const Json& item : v) out.push_back(GetString(item, key, where));
  return out;
}

std::optional<bool> GetOptionalBool(const Json& v, const std::string& key, const std::string& where) {
  if (v.is_null()) return std::nullopt;
  return GetBool(v, key, where);
}

std::optional<DType> GetOptionalType(const Json& v, const std::string& key, const std::string& where) {
  if (v.is_null()) return std::nullopt;
  const std::string name = GetString(v, key, where);
  const std::optional<DType> type = ParseDType(name);
  if (!type) ThrowUsage("'" + key + "': unknown type '" + name + "'", where, "types are written u8, s8, u16, s16");
  return type;
}

Json TypeJson(const std::optional<DType>& type) { return type ? Json(std::string(Name(*type))) : Json(); }
Json BoolJson(const std::optional<bool>& value) { return value ? Json(*value) : Json(); }

}  // namespace

std::string ToJson(const QuantizationConfig& c) {
  Json j;
  j["precision"] = c.precision;
  j["weight_type"] = TypeJson(c.weight_type);
  j["activation_type"] = c.activation_mx.empty() ? TypeJson(c.activation_type) : Json(c.activation_mx);
  j["per_channel"] = BoolJson(c.per_channel);
  j["symmetric"] = BoolJson(c.symmetric);
  for (const auto& [method, name] : kMethods) {
    if (method == c.calibration) j["calibration"] = name;
  }
  j["percentile"] = c.percentile;
  j["samples"] = c.samples;
  j["seed"] = c.seed;
  j["distribution"] = c.distribution;
  j["block"] = c.block;
  j["op_types"] = c.op_types;
  j["exclude"] = c.exclude;
  j["overrides"] = Json::array();
  for (const auto& [tensor, type] : c.overrides) j["overrides"].push_back({tensor, type});
  j["load_path"] = c.load_path;
  j["save_path"] = c.save_path;
  j["imatrix"] = c.imatrix;
  j["keep_float"] = c.keep_float_auto ? "auto" : "none";
  j["requantize"] = c.requantize;
  // Text that is not UTF-8 cannot come from JSON, but can from a command line: it is shown, not thrown over.
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

QuantizationConfig QuantizationConfigFromJson(const std::string& text, const std::string& where) {
  Json j;
  try {
    int depth_limit = 0;
    j = Json::parse(text, [&depth_limit](int depth, Json::parse_event_t, Json&) {
      depth_limit = std::max(depth_limit, depth);
      if (depth > 16) throw std::runtime_error("nesting too deep");
      return true;
    });
  } catch (const std::exception& error) {
    ThrowUsage("not a JSON configuration", where, error.what());
  }
  if (!j.is_object()) ThrowUsage("a configuration is a JSON object", where);
  QuantizationConfig c;
  const Json known = Json::parse(ToJson(c));
  for (const auto& [key, v] : j.items()) {
    if (!known.contains(key)) {
      std::vector<std::string> names;
      for (const auto& item : known.items()) names.push_back(item.key());
      ThrowUsage("unknown key '" + key + "'", where, DidYouMean(key, names));
    }
    if (key == "precision") c.precision = GetString(v, key, where);
    if (key == "weight_type") c.weight_type = GetOptionalType(v, key, where);
    if (key == "activation_type") {
      if (v.is_string() && FindMxFormat(v.get<std::string>()) != nullptr) {
        c.activation_mx = v.get<std::string>();
      } else {
        c.activation_type = GetOptionalType(v, key, where);
      }
    }
    if (key == "per_channel") c.per_channel = GetOptionalBool(v, key, where);
    if (key == "symmetric") c.symmetric = GetOptionalBool(v, key, where);
    if (key == "calibration") {
      const std::string name = GetString(v, key, where);
      const auto* const it =
          std::find_if(std::begin(kMethods), std::end(kMethods), [&](const auto& m) { return name == m.second; });
      if (it == std::end(kMethods)) {
        ThrowUsage("'calibration': unknown method '" + name + "'", where, "use minmax, percentile, entropy or mse");
      }
      c.calibration = it->first;
    }
    if (key == "percentile") {
      if (!v.is_number()) WrongType(key, where, "a number");
      c.percentile = v.get<double>();
    }
    if (key == "samples") c.samples = GetInt(v, key, where);
    if (key == "seed") {
      if (!v.is_number_unsigned()) WrongType(key, where, "a non-negative integer");
      c.seed = v.get<std::uint64_t>();
    }
    if (key == "distribution") c.distribution = GetString(v, key, where);
    if (key == "block") c.block = GetInt(v, key, where);
    if (key == "op_types") c.op_types = GetStrings(v, key, where);
    if (key == "exclude") c.exclude = GetStrings(v, key, where);
    if (key == "overrides") {
      if (!v.is_array()) WrongType(key, where, "a list of [tensor, type] pairs");
      for (const Json& item : v) {
        const std::vector<std::string> pair = GetStrings(item, key, where);
        if (pair.size() != 2) WrongType(key, where, "a list of [tensor, type] pairs");
        c.overrides.emplace_back(pair[0], pair[1]);
      }
    }
    if (key == "load_path") c.load_path = GetString(v, key, where);
    if (key == "save_path") c.save_path = GetString(v, key, where);
    if (key == "imatrix") c.imatrix = GetString(v, key, where);
    if (key == "keep_float") {
      const std::string mode = GetString(v, key, where);
      if (mode != "auto" && mode != "none") WrongType(key, where, "\"auto\" or \"none\"");
      c.keep_float_auto = mode == "auto";
    }
    if (key == "requantize") c.requantize = GetBool(v, key, where);
  }
  try {
    Validate(c);
  } catch (const Error& error) {
    throw Error(error.code(), error.reason(), where + (error.where().empty() ? "" : ": " + error.where()), error.how());
  }
  return c;
}

void DropIdleFields(QuantizationConfig& c) {
  const QuantizationConfig fixed = c;
  ForEachIdleField(fixed, [&c](const char*, auto field, const std::string&, const std::string&) {
    c.*field = QuantizationConfig{}.*field;
  });
}

void Validate(const QuantizationConfig& c) {
  const auto names = PrecisionNames();
  if (std::find(names.begin(), names.end(), c.precision) == names.end()) {
    ThrowUsage("unknown precision '" + c.precision + "'", "precision",
               DidYouMean(c.precision, std::vector<std::string>(names.begin(), names.end())));
  }
  if (c.samples < 1) ThrowUsage("samples must be at least 1", "samples", "leave it out for 128");
  if (!std::isfinite(c.percentile) || c.percentile <= 50 || c.percentile > 100) {
    ThrowUsage("percentile must be above 50 and at most 100", "percentile", "99.99 is the default");
  }
  if (c.block < 1 || c.block > (1 << 20)) ThrowUsage("block must be from 1 to 1048576", "block", "32 is the default");
  if (std::find(kDistributions.begin(), kDistributions.end(), c.distribution) == kDistributions.end()) {
    ThrowUsage("unknown distribution '" + c.distribution + "'", "distribution", "use uniform or normal");
  }
  for (const auto& [tensor, type] : c.overrides) {
    if (tensor.empty()) ThrowUsage("an override without a tensor name", "overrides", "write TENSOR=TYPE");
    if (std::find(kOverrideTypes.begin(), kOverrideTypes.end(), type) == kOverrideTypes.end()) {
      ThrowUsage("override of '" + tensor + "': unknown type '" + type + "'", "overrides",
                 "use u8, s8, u16, s16, or f32 to keep it in float");
    }
  }
  if (!c.imatrix.empty() && !c.load_path.empty()) {
    ThrowUsage("both an importance matrix and statistics to make one of", "imatrix, load_path", "keep one of the two");
  }
  // A field that differs from its default says something: where nothing reads it, that is a mistake.
  ForEachIdleField(c, [&c](const char* name, auto field, const std::string& when, const std::string& how) {
    if (c.*field != QuantizationConfig{}.*field) ThrowUsage(std::string(name) + " has no effect " + when, name, how);
  });
}

}  // namespace octavo
