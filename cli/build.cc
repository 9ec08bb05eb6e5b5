#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"

namespace octavo::cli {
namespace {

struct Flags {
  std::string onnx, out;
  CommonFlags common;
  DataFlags data;
  QuantizationFlags quantization;
  std::optional<std::string> validate_data;
  std::optional<std::int64_t> validate_samples;
  std::optional<double> min_sqnr;
  bool no_quant = false, no_compile = false, no_cache = false, embed_context = false;
  std::vector<std::string> epoptions;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  BuildOptions options;
  BuildConfig& config = options.config;
  config = MakeConfig(flags.onnx, flags.common, flags.data, &flags.quantization);
  if (config.model.empty()) RequireArgument("", "--onnx", "give --onnx M.onnx");
  RequireArgument(flags.out, "-o", "give -o OUT/");
  if (flags.no_quant) {
    if (flags.quantization.precision && *flags.quantization.precision != "fp32") {
      ThrowUsage("both --no-quant and --precision " + *flags.quantization.precision + " were given", "command line",
                 "keep one of the two");
    }
    const QuantizationFlags& q = flags.quantization;
    if (q.calibration || q.percentile || q.weight_type || q.activation_type || q.keep_float || q.load_path ||
        q.save_path || q.block || q.per_channel || q.per_tensor || q.symmetric || q.asymmetric || !q.op_types.empty() ||
        !q.exclude.empty() || !q.overrides.empty()) {
      ThrowUsage("--no-quant was given, and options that say how to quantize", "command line", "keep one of the two");
    }
    config.quantize = false;
  }
  if (flags.no_compile) config.compile.enabled = false;
  if (flags.embed_context) config.compile.embed_context = true;
  AddProviderOptions(flags.epoptions, config.compile);
  if (flags.validate_samples) config.validate_samples = *flags.validate_samples;
  if (flags.min_sqnr) config.min_sqnr = flags.min_sqnr;
  if (flags.validate_data) {
    config.validate_data.emplace();
    if (config.data) *config.validate_data = *config.data;  // the same image options
    config.validate_data->path = *flags.validate_data;
  }
  options.out = flags.out;
  options.require_data = flags.data.require_data;
  options.cache = !flags.no_cache;
  return RunBuild(options, flags.common);
}

}  // namespace

Command BuildCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "build";
  c.summary = "quantize, check by running, validate on held-out samples, write OUT/ with a manifest";
  c.examples =
      "  octavo build --onnx m.onnx --device cpu --precision uint8 --data samples/ -o out/\n"
      "  octavo build --onnx m.onnx --device cpu --precision int8 --data photos/ --image-size 224x224 -o out/\n"
      "  octavo build --onnx m.onnx --precision fp16 --data samples/ --min-sqnr 55 -o out/\n"
      "  octavo build --config out/config.json -o again/\n";
  c.options.push_back({"--onnx", &f->onnx, "the model", "Build"});
  c.options.push_back({"-o,--output", &f->out, "the directory to make", "Build"});
  c.options.push_back(
      {"--validate-samples", &f->validate_samples, "held-out samples to validate on, at most (64)", "Build"});
  c.options.push_back(
      {"--validate-data", &f->validate_data, "validate on these instead of what --data has left", "Build"});
  c.options.push_back(
      {"--min-sqnr", &f->min_sqnr, "dB that every output must reach, else exit 5 and nothing is written", "Build"});
  c.options.push_back({"--no-quant", &f->no_quant, "fold and check only", "Build"});
  c.options.push_back({"--no-compile", &f->no_compile, "stop before the device's compiler", "Build"});
  c.options.push_back({"--no-cache", &f->no_cache, "do not reuse or keep calibration statistics", "Build"});
  c.options.push_back({"--epoption", &f->epoptions, "K=V for the device's execution provider (repeatable)", "Build"});
  c.options.push_back({"--embed-context", &f->embed_context, "put the compiled context into the model", "Build"});
  AddDataOptions(c.options, f->data);
  AddQuantizationOptions(c.options, f->quantization);
  AddCommonOptions(c.options, f->common, kConfig | kDevice | kDims | kWeights | kForce | kDryRun);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
