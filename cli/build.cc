#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"

namespace octavo::cli {
namespace {

struct Flags : BuildFlags {
  std::string onnx;
  std::optional<std::string> validate_data;
  std::optional<double> min_sqnr;
  bool no_quant = false, no_compile = false;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  BuildConfig config = MakeConfig(flags.onnx, flags);
  if (config.model.empty()) RequireArgument("", "--onnx", "give --onnx M.onnx");
  if (flags.no_quant) {
    const QuantizationFlags& q = flags.quantization;
    if (q.precision && *q.precision != "fp32") {
      ThrowUsage("both --no-quant and --precision " + *q.precision + " were given", "command line",
                 "keep one of the two");
    }
    if (q.calibration || q.percentile || q.weight_type || q.activation_type || q.keep_float || q.load_path ||
        q.save_path || q.block || q.per_channel || q.per_tensor || q.symmetric || q.asymmetric || !q.op_types.empty() ||
        !q.exclude.empty() || !q.overrides.empty()) {
      ThrowUsage("--no-quant was given, and options that say how to quantize", "command line", "keep one of the two");
    }
    config.quantize = false;
  }
  if (flags.no_compile) config.compile.enabled = false;
  if (flags.min_sqnr) config.min_sqnr = flags.min_sqnr;
  if (flags.validate_data) {
    config.validate_data.emplace();
    if (config.data) *config.validate_data = *config.data;  // the same image options
    config.validate_data->path = *flags.validate_data;
  }
  return RunBuild(std::move(config), flags);
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
  const std::string g = "Build";
  c.options.push_back({"--onnx M.onnx", &f->onnx, "the model", g});
  AddBuildOptions(c.options, *f, g);
  c.options.push_back({"--validate-data D", &f->validate_data, "validate on these (what --data has left)", g});
  c.options.push_back(
      {"--min-sqnr DB", &f->min_sqnr, "that every output must reach, else exit 5 and nothing is written", g});
  c.options.push_back({"--no-quant", &f->no_quant, "fold and check only", g});
  c.options.push_back({"--no-compile", &f->no_compile, "stop before the device's compiler", g});
  AddOptions(c.options, *f, kEveryGroup);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
