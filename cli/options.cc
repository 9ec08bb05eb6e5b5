#include "cli/options.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/output.h"
#include "octavo/build/pipeline.h"
#include "octavo/build/plan.h"
#include "octavo/build/summary.h"
#include "octavo/numerics/mx.h"

namespace octavo::cli {
namespace {

DType ParseTypeFlag(const std::string& text, const char* option) {
  if (text.starts_with("mx")) {
    ThrowUsage("'" + text + "' is a precision and no type", option, "give --precision " + text);
  }
  const std::optional<DType> type = ParseDType(text);
  const std::vector<std::string> known = {"u8", "s8", "u16", "s16"};
  if (!type) {
    const std::string how = DidYouMean(text, known);
    ThrowUsage("unknown type '" + text + "'", option, how.empty() ? "types are u8, s8, u16, s16" : how);
  }
  return *type;
}

CalibrationMethod ParseMethod(const std::string& text) {
  if (text == "minmax") return CalibrationMethod::kMinMax;
  if (text == "percentile") return CalibrationMethod::kPercentile;
  if (text == "entropy") return CalibrationMethod::kEntropy;
  if (text == "mse") return CalibrationMethod::kMse;
  const std::vector<std::string> known = {"minmax", "percentile", "entropy", "mse"};
  const std::string how = DidYouMean(text, known);
  ThrowUsage("unknown calibration method '" + text + "'", "--calibration",
             how.empty() ? "methods are minmax, percentile, entropy, mse" : how);
}

void ApplyData(const DataFlags& flags, BuildConfig& config) {
  const bool image = flags.layout || flags.size || flags.mean || flags.std || flags.scale || flags.color;
  if (flags.data) {
    config.data.emplace();
    config.data->path = *flags.data;
  }
  if (!image) return;
  if (!config.data) ThrowUsage("image options without data", "--image-*", "give --data D with images");
  config.data->image_options_given = true;
  ImageOptions& options = config.data->image;
  if (flags.layout) {
    if (*flags.layout != "nchw" && *flags.layout != "nhwc") {
      ThrowUsage("unknown layout '" + *flags.layout + "'", "--image-layout", "use nchw or nhwc");
    }
    options.layout = *flags.layout == "nchw" ? ImageLayout::kNchw : ImageLayout::kNhwc;
  }
  if (flags.size) std::tie(options.width, options.height) = ParseSize(*flags.size, "--image-size");
  if (flags.mean) options.mean = ParseTriple(*flags.mean, "--image-mean");
  if (flags.std) {
    options.std = ParseTriple(*flags.std, "--image-std");
    for (const float s : options.std) {
      if (s <= 0) ThrowUsage("a standard deviation must be positive", "--image-std");
    }
  }
  if (flags.scale) {
    char* end = nullptr;
    options.scale = std::strtof(flags.scale->c_str(), &end);
    if (flags.scale->empty() || *end != '\0' || !std::isfinite(options.scale)) {
      ThrowUsage("'" + *flags.scale + "' is not a number", "--image-scale");
    }
  }
  if (flags.color) {
    if (*flags.color != "rgb" && *flags.color != "bgr") {
      ThrowUsage("unknown color order '" + *flags.color + "'", "--image-color", "use rgb or bgr");
    }
    options.color = *flags.color == "rgb" ? ImageColor::kRgb : ImageColor::kBgr;
  }
}

void ApplyQuantization(const QuantizationFlags& flags, QuantizationConfig& q) {
  // What the file says for another precision or method goes with it; what flags say must have an effect.
  if (flags.precision) {
    q.precision = *flags.precision;
    DropIdleFields(q);
  }
  if (flags.calibration) {
    q.calibration = ParseMethod(*flags.calibration);
    if (q.calibration != CalibrationMethod::kPercentile) q.percentile = QuantizationConfig{}.percentile;
  }
  if (flags.percentile) {
    q.percentile = *flags.percentile;
    if (q.calibration != CalibrationMethod::kPercentile) {
      ThrowUsage("percentile has no effect without calibration 'percentile'", "--percentile",
                 "add --calibration percentile, or leave it out");
    }
  }
  if (flags.weight_type) q.weight_type = ParseTypeFlag(*flags.weight_type, "--weight-type");
  if (flags.activation_type) {
    q.activation_type.reset();
    q.activation_mx.clear();
    if (FindMxFormat(*flags.activation_type) != nullptr) {
      q.activation_mx = *flags.activation_type;
    } else {
      q.activation_type = ParseTypeFlag(*flags.activation_type, "--activation-type");
    }
  }
  if (flags.per_channel && flags.per_tensor) {
    ThrowUsage("both --per-channel and --per-tensor were given", "command line", "keep one of the two");
  }
  if (flags.per_channel || flags.per_tensor) q.per_channel = flags.per_channel;
  if (flags.symmetric && flags.asymmetric) {
    ThrowUsage("both --symmetric and --asymmetric were given", "command line", "keep one of the two");
  }
  if (flags.symmetric || flags.asymmetric) q.symmetric = flags.symmetric;
  if (flags.block) q.block = *flags.block;
  if (flags.keep_float) {
    if (*flags.keep_float != "auto" && *flags.keep_float != "none") {
      ThrowUsage("unknown value '" + *flags.keep_float + "'", "--keep-float", "use auto or none");
    }
    q.keep_float_auto = *flags.keep_float == "auto";
  }
  if (flags.load_path) q.load_path = *flags.load_path;
  if (flags.save_path) q.save_path = *flags.save_path;
  if (flags.imatrix) q.imatrix = *flags.imatrix;
  if (flags.requantize) q.requantize = true;
  if (!flags.op_types.empty()) {
    q.op_types = SplitCommas(flags.op_types);  // a list on the command line replaces the file's
    if (q.op_types.empty())
      ThrowUsage("no operator type is named", "--op-types", "write for example --op-types Conv,Gemm");
  }
  if (!flags.exclude.empty()) q.exclude = flags.exclude;
  if (!flags.overrides.empty()) q.overrides.clear();
  for (const std::string& text : flags.overrides) {
    const std::size_t eq = text.rfind('=');
    if (eq == std::string::npos || eq == 0 || eq + 1 == text.size()) {
      ThrowUsage("'" + text + "' is not TENSOR=TYPE", "--override", "write for example --override logits=f32");
    }
    q.overrides.emplace_back(text.substr(0, eq), text.substr(eq + 1));
  }
}

}  // namespace

std::vector<std::string> SplitCommas(const std::vector<std::string>& given) {
  std::vector<std::string> out;
  for (const std::string& text : given) {
    for (std::size_t at = 0; at <= text.size();) {
      const std::size_t end = std::min(text.find(',', at), text.size());
      if (end > at) out.push_back(text.substr(at, end - at));
      at = end + 1;
    }
  }
  return out;
}

namespace {

void AddDataOptions(std::vector<Option>& o, DataFlags& f, unsigned groups) {
  const std::string g = "Data";
  o.push_back({"--data D", &f.data, "samples: folder of .npz/.npy/.pb/images, or a stacked .npz", g});
  if (groups & kSamples) o.push_back({"--samples N", &f.samples, "how many calibrate (128, or all there are)", g});
  if (groups & kSynthetic) {
    o.push_back({"--seed S", &f.seed, "of synthetic samples (0)", g});
    o.push_back({"--distribution NAME", &f.distribution, "of synthetic samples: uniform|normal (uniform)", g});
  }
  if (groups & kRequireData) {
    o.push_back({"--require-data", &f.require_data, "no --data is an error (also OCTAVO_REQUIRE_DATA=1)", g});
  }
  o.push_back({"--image-layout L", &f.layout, "nchw|nhwc (from the model's channels)", g});
  o.push_back({"--image-size WxH", &f.size, "what images are resized to (from the model)", g});
  o.push_back({"--image-scale X", &f.scale, "pixels are multiplied by it first (1/255)", g});
  o.push_back({"--image-mean a,b,c", &f.mean, "then this is subtracted, a number a channel (0,0,0)", g});
  o.push_back({"--image-std a,b,c", &f.std, "then divided by this (1,1,1)", g});
  o.push_back({"--image-color ORDER", &f.color, "rgb|bgr (rgb)", g});
}

void AddQuantizationOptions(std::vector<Option>& o, QuantizationFlags& f, unsigned groups) {
  const std::string g = "Quantization";
  o.push_back({"-p,--precision P", &f.precision,
               "uint8|int8|w8a16|int16|fp16|bf16|fp32, or weights only: int4, mxint8, mxfp4, mxfp6_e2m3, mxfp6_e3m2, "
               "mxfp8_e4m3, mxfp8_e5m2, or a GGML format such as q8_0, q4_0, q4_k, q6_k, iq4_nl (uint8)",
               g});
  o.push_back({"--calibration METHOD", &f.calibration, "minmax|percentile|entropy|mse (minmax)", g});
  o.push_back({"--percentile X", &f.percentile, "of --calibration percentile, in percent (99.99)", g});
  o.push_back({"--per-channel", &f.per_channel, "one weight scale an output channel (the precision decides)", g});
  o.push_back({"--per-tensor", &f.per_tensor, "one weight scale a tensor", g});
  o.push_back(
      {"--symmetric", &f.symmetric, "activations with the zero point in the middle (the precision decides)", g});
  o.push_back({"--asymmetric", &f.asymmetric, "activations with a zero point of their own", g});
  o.push_back({"--weight-type T", &f.weight_type, "u8|s8|u16|s16; qnn: s4 too (the precision's)", g});
  o.push_back({"--activation-type T", &f.activation_type,
               "u8|s8|u16|s16, or the mx precision's own name (the precision's)", g});
  o.push_back({"--block N", &f.block, "values in a block of int4 and the mx formats (32)", g});
  o.push_back({"--op-types A,B", &f.op_types, "quantize only these operators (all that the device takes)", g});
  o.push_back({"--exclude NODE|GLOB", &f.exclude, "what stays float (repeatable)", g});
  o.push_back({"--override TENSOR=TYPE", &f.overrides, "u8|s8|u16|s16|f32 (repeatable)", g});
  o.push_back({"--keep-float auto|none", &f.keep_float, "leave in float what would be slower or worse (auto)", g});
  if (groups & kStatistics) {
    o.push_back({"--load-statistics S", &f.load_path, "statistics of `octavo calibrate` instead of data", g});
    o.push_back({"--save-statistics S", &f.save_path, "where to write the calibration statistics", g});
    o.push_back({"--imatrix F", &f.imatrix, "importance matrix (GGUF or .dat) for GGML formats", g});
  }
  o.push_back({"--requantize", &f.requantize, "drop the quantization that the model has", g});
}

void AddCommonOptions(std::vector<Option>& o, CommonFlags& f, unsigned groups) {
  const std::string g = "Common";
  if (groups & kConfig) o.push_back({"--config F", &f.config, "a build's config.json; flags override it", g});
  if (groups & kDevice) o.push_back({"--device D", &f.device, "cpu|qnn|openvino|dml (cpu)", g});
  if (groups & kWeights) {
    o.push_back({"--weights W", &f.weights, "a GGUF or safetensors file whose tensors replace initializers", g});
    o.push_back({"--weight-map F", &f.weight_map, "JSON, initializer -> tensor, where the names differ", g});
  }
  if (groups & kDims) o.push_back({"--dim NAME=VALUE", &f.dims, "fixes a symbolic dimension (repeatable)", g});
  if (groups & kThreads) o.push_back({"--threads N", &f.threads, "never changes the result (all cores)", g});
  if (groups & kForce) o.push_back({"-f,--force", &f.force, "replace what exists", g});
  if (groups & kDryRun) o.push_back({"--dry-run", &f.dry_run, "say what would be written, write nothing", g});
  o.push_back({"--json F", &f.json, "also write the result as JSON", g});
  o.push_back({"-q,--quiet", &f.quiet, "no progress, warnings only", g});
}

// --epoption K=V, over those of the configuration file. Errors: kUsage.
void AddProviderOptions(const std::vector<std::string>& texts, CompileConfig& config) {
  for (const std::string& text : texts) {
    const std::size_t eq = text.find('=');
    if (eq == std::string::npos || eq == 0) ThrowUsage("'" + text + "' is not K=V", "--epoption");
    config.options.emplace_back(text.substr(0, eq), text.substr(eq + 1));
  }
}

}  // namespace

void AddOptions(std::vector<Option>& options, ConfigFlags& flags, unsigned groups) {
  if (groups & kData) AddDataOptions(options, flags.data, groups);
  if (groups & kQuantization) AddQuantizationOptions(options, flags.quantization, groups);
  AddCommonOptions(options, flags.common, groups);
}

void AddBuildOptions(std::vector<Option>& o, BuildFlags& f, const std::string& g) {
  o.push_back({"-o,--output OUT/", &f.out, "the directory to make", g});
  o.push_back({"--validate-samples N", &f.validate_samples, "samples to validate on, at most (64)", g});
  o.push_back({"--no-cache", &f.no_cache, "do not reuse finished stages, keep none for later", g});
  o.push_back({"--epoption K=V", &f.epoptions, "for the device's execution provider (repeatable)", g});
  o.push_back({"--embed-context", &f.embed_context, "put the compiled context into the model", g});
}

std::vector<std::pair<std::string, std::int64_t>> ParseDims(const std::vector<std::string>& dims) {
  std::vector<std::pair<std::string, std::int64_t>> out;
  for (const std::string& text : dims) {
    const std::size_t eq = text.rfind('=');
    const std::string value = eq == std::string::npos ? "" : text.substr(eq + 1);
    if (eq == 0 || value.empty() || value.size() > 12 || value.find_first_not_of("0123456789") != std::string::npos ||
        std::stoll(value) < 1) {
      ThrowUsage("'" + text + "' is not NAME=VALUE with a positive value", "--dim", "write for example --dim batch=1");
    }
    const std::string name = text.substr(0, eq);
    if (std::any_of(out.begin(), out.end(), [&name](const auto& dim) { return dim.first == name; })) {
      ThrowUsage("dimension '" + name + "' is set twice", "--dim", "keep one of the two");
    }
    out.emplace_back(name, std::stoll(value));
  }
  return out;
}

BuildConfig CollectConfig(const std::string& model, const ConfigFlags& flags) {
  const CommonFlags& common = flags.common;
  const DataFlags& data = flags.data;
  BuildConfig config;
  if (common.config) {
    try {
      config = ReadBuildConfig(*common.config);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kBadInput) throw;
      throw Error(ExitCode::kUsage, error.reason(), error.where(), error.how());  // a configuration is usage
    }
  }
  if (!model.empty()) config.model = model;
  if (common.weights) config.weights = *common.weights;
  if (common.weight_map) config.weight_map = *common.weight_map;
  if (common.device) config.device = *common.device;
  for (auto& [name, value] : ParseDims(common.dims)) {
    std::erase_if(config.dims, [&given = name](const auto& dim) { return dim.first == given; });
    config.dims.emplace_back(name, value);
  }
  ApplyData(data, config);
  // Flags change whichever section the file used; with no file they are the build's.
  const bool set_in_compile = config.compile.quantization.has_value();
  QuantizationConfig q = EffectiveQuantization(config);
  const QuantizationConfig before = q;
  if (data.samples) q.samples = *data.samples;
  if (data.seed) {
    if (*data.seed < 0) ThrowUsage("seed must not be negative", "--seed");
    q.seed = static_cast<std::uint64_t>(*data.seed);
  }
  if (data.distribution) q.distribution = *data.distribution;
  ApplyQuantization(flags.quantization, q);
  if (set_in_compile && !(q == before)) {
    throw ConfigConflictError("quantization is set by flags and inside the compile section of " + *common.config,
                              "--config", "keep one of the two");
  }
  if (!set_in_compile) config.quantization = std::move(q);
  return config;
}

BuildConfig MakeConfig(const std::string& model, const ConfigFlags& flags) {
  BuildConfig config = CollectConfig(model, flags);
  Validate(config);
  return config;
}

void RequireModel(const BuildConfig& config, const std::string& how) {
  if (config.model.empty()) RequireArgument("", "the model", how);
}

std::string ModelFile(const std::string& path) {
  std::error_code error;
  const std::string inside = path + "/model.onnx";
  return std::filesystem::is_directory(path, error) && std::filesystem::exists(inside, error) ? inside : path;
}

int ThreadCount(const CommonFlags& common) {
  if (!common.threads) return 0;
  if (*common.threads < 1 || *common.threads > 1024) ThrowUsage("threads must be from 1 to 1024", "--threads");
  return static_cast<int>(*common.threads);
}

void ApplyQuiet(const CommonFlags& common) {
  if (common.quiet) SetLogLevel(LogLevel::kWarn);
}

void Print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    ThrowBadInput("cannot write the result", "stdout");
  }
}

void WriteJson(const CommonFlags& common, const std::string& text) {
  if (!common.json) return;
  OutputFile file(*common.json);
  file.Write(text);
  file.Commit();
}

void CheckOutputFile(const std::string& file, const CommonFlags& common, std::string_view format) {
  RequireArgument(file, "-o", "give -o FILE");
  constexpr std::pair<std::string_view, std::string_view> kFormats[] = {
      {".onnx", "onnx"}, {".gguf", "gguf"}, {".circle", "circle"}, {".tflite", "circle"}, {".mlir", "stablehlo"}};
  const std::string extension = std::filesystem::path(file).extension().string();
  for (const auto& [suffix, means] : kFormats) {
    if (extension != suffix || means == format) continue;
    ThrowUsage("the output would be " + std::string(format) + ", which its name denies", file,
               "choose another name, or write " + std::string(means) + " by octavo export --to " + std::string(means));
  }
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(file, error);
  if (file.ends_with('/') || std::filesystem::is_directory(status))
    ThrowUsage("the output is a directory", file, "name a file");
  if (std::filesystem::is_regular_file(status) && !common.force) {
    ThrowUsage("output file exists", file, "pass --force to replace it");
  }
}

int Finish(const CommonFlags& common, const std::string& json, const std::string& text) {
  WriteJson(common, json);
  Print(text);
  return 0;
}

int PrintPlan(const BuildPlan& plan, const CommonFlags& common) { return Finish(common, ToJson(plan), ToText(plan)); }

void RequireArgument(const std::string& value, const std::string& name, const std::string& how) {
  if (value.empty()) ThrowUsage("missing " + name, "command line", how);
}

int RunBuild(BuildConfig config, const BuildFlags& flags) {
  const CommonFlags& common = flags.common;
  RequireArgument(flags.out, "-o", "give -o OUT/");
  if (flags.embed_context) config.compile.embed_context = true;
  AddProviderOptions(flags.epoptions, config.compile);
  if (flags.validate_samples) config.validate_samples = *flags.validate_samples;
  Validate(config);
  const BuildOptions options = {.config = std::move(config),
                                .out = flags.out,
                                .threads = ThreadCount(common),
                                .force = common.force,
                                .require_data = flags.data.require_data,
                                .cache = !flags.no_cache};
  if (common.dry_run) {
    return PrintPlan(MakePlan(options.config, options.out, options.require_data, PlanFor::kBuild), common);
  }
  const BuildResult result = Build(options);
  if (result.up_to_date) {
    Print(options.out.string() + " is up to date\n");
    if (common.json) WriteJson(common, ReadManifest(options.out));
    return 0;
  }
  if (result.reused) return Finish(common, result.manifest_json, ReusedSummary(result, options.out));
  return Finish(common, result.manifest_json, Summary(result, options.out));
}

}  // namespace octavo::cli
