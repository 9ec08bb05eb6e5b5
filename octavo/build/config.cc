#include "octavo/build/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/base/output.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxConfigBytes = std::size_t{4} << 20;
constexpr int kMaxDepth = 32;

Json ParseJson(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  try {
    return Json::parse(text, [&](int depth, Json::parse_event_t event, Json& parsed) {
      if (depth > kMaxDepth) throw std::runtime_error("parse error: nested too deep");
      if (event == Json::parse_event_t::object_start) keys.emplace_back();
      if (event == Json::parse_event_t::object_end) keys.pop_back();
      if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
        throw std::runtime_error("parse error: key '" + parsed.get<std::string>() + "' appears twice");
      }
      return true;
    });
  } catch (const std::exception& error) {
    std::string what = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." -> from "parse error" on
    if (const std::size_t at = what.find("] "); what.starts_with("[json.") && at != std::string::npos) {
      what = what.substr(at + 2);
    }
    ThrowUsage("not a JSON configuration", where, what);
  }
}

[[noreturn]] void WrongType(const std::string& key, const std::string& where, const char* wanted) {
  ThrowUsage("'" + key + "' must be " + wanted, where);
}

std::string String(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_string()) WrongType(key, where, "a string");
  return v.get<std::string>();
}
bool Bool(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_boolean()) WrongType(key, where, "true or false");
  return v.get<bool>();
}
std::int64_t Int(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_number_integer() || (v.is_number_unsigned() && v.get<std::uint64_t>() > INT64_MAX)) {
    WrongType(key, where, "an integer");
  }
  return v.get<std::int64_t>();
}
double Number(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_number()) WrongType(key, where, "a number");
  return v.get<double>();
}

float Float(const Json& v, const std::string& key, const std::string& where) {
  const double number = Number(v, key, where);
  if (!(std::fabs(number) <= std::numeric_limits<float>::max())) WrongType(key, where, "a number that a float holds");
  return static_cast<float>(number);
}

void CheckKeys(const Json& object, const std::vector<std::string>& known, const std::string& what,
               const std::string& where) {
  if (!object.is_object()) WrongType(what, where, "an object");
  for (const auto& item : object.items()) {
    if (std::find(known.begin(), known.end(), item.key()) != known.end()) continue;
    std::string how = DidYouMean(item.key(), known);
    if (how.empty()) {
      for (const std::string& name : known) how += (how.empty() ? "known keys are " : ", ") + name;
    }
    ThrowUsage("unknown key '" + item.key() + "'", where, how);
  }
}

const std::vector<std::string> kBuildKeys = {
    "schema_version", "model",        "data",     "validate_data", "device",           "dims",    "weights",
    "weight_map",     "quantization", "quantize", "compile",       "validate_samples", "min_sqnr"};
const std::vector<std::string> kCompileKeys = {"enabled", "options", "embed_context", "quantization"};
const std::vector<std::string> kDataKeys = {"path", "image"};
const std::vector<std::string> kImageKeys = {"layout", "size", "mean", "std", "scale", "color"};

std::string Absolute(const fs::path& path) {
  return path.empty() ? std::string() : fs::absolute(path).lexically_normal().string();
}

Json DataJson(const std::optional<DataOptions>& data) {
  if (!data) return nullptr;
  Json out;
  out["path"] = Absolute(data->path);
  if (data->image_options_given) {
    const ImageOptions& image = data->image;
    Json i;
    i["layout"] = image.layout ? Json(*image.layout == ImageLayout::kNchw ? "nchw" : "nhwc") : Json();
    i["size"] = Json::array({image.width, image.height});
    i["mean"] = image.mean;
    i["std"] = image.std;
    i["scale"] = image.scale;
    i["color"] = image.color == ImageColor::kRgb ? "rgb" : "bgr";
    out["image"] = std::move(i);
  }
  return out;
}

std::array<float, 3> Triple(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_array() || v.size() != 3) WrongType(key, where, "three numbers");
  std::array<float, 3> out{};
  for (std::size_t i = 0; i < 3; ++i) out[i] = Float(v[i], key, where);
  return out;
}

std::optional<DataOptions> DataFromJson(const Json& v, const std::string& key, const std::string& where) {
  if (v.is_null()) return std::nullopt;
  DataOptions out;
  if (v.is_string()) {
    out.path = v.get<std::string>();
    return out;
  }
  CheckKeys(v, kDataKeys, key, where);
  if (!v.contains("path")) ThrowUsage("'" + key + "' has no path", where);
  out.path = String(v["path"], "path", where);
  if (!v.contains("image") || v["image"].is_null()) return out;
  const Json& image = v["image"];
  CheckKeys(image, kImageKeys, "image", where);
  out.image_options_given = true;
  for (const auto& [name, value] : image.items()) {
    if (name == "layout" && !value.is_null()) {
      const std::string text = String(value, name, where);
      if (text != "nchw" && text != "nhwc") WrongType(name, where, "nchw or nhwc");
      out.image.layout = text == "nchw" ? ImageLayout::kNchw : ImageLayout::kNhwc;
    }
    if (name == "size") {
      if (!value.is_array() || value.size() != 2) WrongType(name, where, "[width, height]");
      const std::int64_t w = Int(value[0], name, where), h = Int(value[1], name, where);
      if (w < 0 || h < 0 || w > 65536 || h > 65536) WrongType(name, where, "[width, height] of at most 65536");
      out.image.width = static_cast<int>(w);
      out.image.height = static_cast<int>(h);
    }
    if (name == "mean") out.image.mean = Triple(value, name, where);
    if (name == "std") {
      out.image.std = Triple(value, name, where);
      for (const float s : out.image.std) {
        if (!(s > 0)) WrongType(name, where, "three positive numbers");
      }
    }
    if (name == "scale") out.image.scale = Float(value, name, where);
    if (name == "color") {
      const std::string text = String(value, name, where);
      if (text != "rgb" && text != "bgr") WrongType(name, where, "rgb or bgr");
      out.image.color = text == "rgb" ? ImageColor::kRgb : ImageColor::kBgr;
    }
  }
  return out;
}

QuantizationConfig Quantization(const Json& v, const std::string& key, const std::string& where) {
  if (!v.is_object()) WrongType(key, where, "an object");
  return QuantizationConfigFromJson(v.dump(), where);
}

bool IsBareQuantization(const Json& object) {
  const Json known = Json::parse(ToJson(QuantizationConfig{}));
  bool any = false;
  for (const auto& item : object.items()) {
    if (std::find(kBuildKeys.begin(), kBuildKeys.end(), item.key()) != kBuildKeys.end()) return false;
    any = any || known.contains(item.key());
  }
  return any;
}

}  // namespace

const QuantizationConfig& EffectiveQuantization(const BuildConfig& config) {
  static const QuantizationConfig kDefaults;
  if (config.quantization && config.compile.quantization) {
    throw ConfigConflictError("quantization is set both for the build and inside its compile section", "configuration",
                              "keep one of the two");
  }
  if (config.quantization) return *config.quantization;
  if (config.compile.quantization) return *config.compile.quantization;
  return kDefaults;
}

void Validate(const BuildConfig& config) {
  Validate(EffectiveQuantization(config));
  if (config.validate_samples < 1) {
    ThrowUsage("validate_samples must be at least 1", "validate_samples", "leave it out for 64");
  }
  if (config.min_sqnr && !std::isfinite(*config.min_sqnr))
    ThrowUsage("min_sqnr must be a finite number of dB", "min_sqnr", "write for example 20");
  if (config.weights.empty() && !config.weight_map.empty()) {
    ThrowUsage("a weight map without weights", config.weight_map.string(), "give --weights W.gguf");
  }
  std::set<std::string> seen;
  for (const auto& [name, value] : config.dims) {
    if (value < 1) ThrowUsage("a dimension must be positive", name + "=" + std::to_string(value));
    if (!seen.insert(name).second) ThrowUsage("dimension '" + name + "' is set twice", "--dim");
  }
}

std::string ToJson(const BuildConfig& config) {
  Json j;
  j["schema_version"] = 1;
  j["model"] = Absolute(config.model);
  j["data"] = DataJson(config.data);
  j["validate_data"] = DataJson(config.validate_data);
  const auto path = [](const fs::path& p) {
    return p.empty() ? Json() : Json(fs::absolute(p).lexically_normal().string());
  };
  j["weights"] = path(config.weights);
  j["weight_map"] = path(config.weight_map);
  j["device"] = config.device;
  j["dims"] = Json::object();
  for (const auto& [name, value] : config.dims) j["dims"][name] = value;
  j["quantization"] = Json::parse(ToJson(EffectiveQuantization(config)));
  j["quantize"] = config.quantize;
  Json options = Json::object();
  for (const auto& [name, value] : config.compile.options) options[name] = value;
  j["compile"]["enabled"] = config.compile.enabled;
  j["compile"]["options"] = std::move(options);
  j["compile"]["embed_context"] = config.compile.embed_context;
  j["validate_samples"] = config.validate_samples;
  j["min_sqnr"] = config.min_sqnr ? Json(*config.min_sqnr) : Json();
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

BuildConfig BuildConfigFromJson(const std::string& text, const std::string& where) {
  const Json j = ParseJson(text, where);
  if (!j.is_object()) ThrowUsage("a configuration is a JSON object", where);
  BuildConfig c;
  if (IsBareQuantization(j)) {
    c.quantization = Quantization(j, "quantization", where);
    return c;
  }
  CheckKeys(j, kBuildKeys, "configuration", where);
  for (const auto& [key, v] : j.items()) {
    if (key == "schema_version" && Int(v, key, where) != 1) {
      ThrowUsage("schema_version " + v.dump() + " is not known", where, "this version reads 1");
    }
    if (key == "model") c.model = String(v, key, where);
    if (key == "data" || key == "validate_data") {
      (key == "data" ? c.data : c.validate_data) = DataFromJson(v, key, where);
    }
    if (key == "weights" && !v.is_null()) c.weights = String(v, key, where);
    if (key == "weight_map" && !v.is_null()) c.weight_map = String(v, key, where);
    if (key == "device") c.device = String(v, key, where);
    if (key == "dims") {
      if (!v.is_object()) WrongType(key, where, "an object of name: size");
      for (const auto& [name, value] : v.items()) c.dims.emplace_back(name, Int(value, name, where));
    }
    if (key == "quantization" && !v.is_null()) c.quantization = Quantization(v, key, where);
    if (key == "quantize") c.quantize = Bool(v, key, where);
    if (key == "validate_samples") c.validate_samples = Int(v, key, where);
    if (key == "min_sqnr" && !v.is_null()) c.min_sqnr = Number(v, key, where);
    if (key == "compile") {
      CheckKeys(v, kCompileKeys, key, where);
      for (const auto& [name, value] : v.items()) {
        if (name == "enabled") c.compile.enabled = Bool(value, name, where);
        if (name == "embed_context") c.compile.embed_context = Bool(value, name, where);
        if (name == "quantization" && !value.is_null()) c.compile.quantization = Quantization(value, name, where);
        if (name == "options") {
          if (!value.is_object()) WrongType(name, where, "an object of name: text");
          for (const auto& [option, setting] : value.items()) {
            c.compile.options.emplace_back(option, String(setting, option, where));
          }
        }
      }
    }
  }
  EffectiveQuantization(c);  // a file that contradicts itself is refused where it is read
  return c;
}

BuildConfig ReadBuildConfig(const fs::path& path) {
  return BuildConfigFromJson(ReadTextFile(path, kMaxConfigBytes), path.string());
}

std::array<float, 3> ParseTriple(const std::string& text, const std::string& option) {
  std::array<float, 3> out{};
  std::size_t at = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const std::size_t end = i < 2 ? text.find(',', at) : text.size();
    const std::string part = end == std::string::npos ? "" : text.substr(at, end - at);
    char* stop = nullptr;
    const float value = std::strtof(part.c_str(), &stop);
    if (part.empty() || *stop != '\0' || !std::isfinite(value)) {
      ThrowUsage("'" + text + "' is not three numbers", option, "write " + option + " a,b,c");
    }
    out[i] = value;
    at = end + 1;
  }
  return out;
}

std::pair<int, int> ParseSize(const std::string& text, const std::string& option) {
  const std::size_t x = text.find('x');
  const auto number = [](const std::string& part) {
    if (part.empty() || part.size() > 5 || part.find_first_not_of("0123456789") != std::string::npos) return 0;
    return std::stoi(part);
  };
  const int width = x == std::string::npos ? 0 : number(text.substr(0, x));
  const int height = x == std::string::npos ? 0 : number(text.substr(x + 1));
  if (width < 1 || height < 1) ThrowUsage("'" + text + "' is not a size", option, "write " + option + " WIDTHxHEIGHT");
  return {width, height};
}

}  // namespace octavo
