#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"

namespace octavo::cli {
namespace {

struct Flags {
  std::string model, out;
  CommonFlags common;
  DataFlags data;
  std::vector<std::string> epoptions;
  bool embed_context = false, no_cache = false;
  std::optional<std::int64_t> validate_samples;
};

// A build that keeps the quantization that the model has; a configuration whose compile section holds one quantizes
// first.
int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  RequireArgument(flags.model, "the model", "octavo compile Q.onnx --device D -o OUT/");
  RequireArgument(flags.out, "-o", "give -o OUT/");
  BuildOptions options;
  BuildConfig& config = options.config;
  config = MakeConfig(flags.model, flags.common, flags.data, nullptr);
  if (config.quantization && config.compile.quantization) EffectiveQuantization(config);  // a conflict
  if (!config.compile.quantization) {
    config.quantize = false;
    config.quantization.reset();
  }
  config.compile.enabled = true;
  if (flags.embed_context) config.compile.embed_context = true;
  AddProviderOptions(flags.epoptions, config.compile);
  if (flags.validate_samples) config.validate_samples = *flags.validate_samples;
  options.out = flags.out;
  options.require_data = flags.data.require_data;
  options.cache = !flags.no_cache;
  return RunBuild(options, flags.common);
}

}  // namespace

Command CompileCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "compile";
  c.summary = "compile a model, quantized or not, into what a device runs";
  c.examples =
      "  octavo compile q.onnx --device qnn --data samples/ -o npu/\n"
      "  octavo compile q.onnx --device qnn --data samples/ --epoption htp_arch=75 --embed-context -o npu/\n";
  c.options.push_back({"model", &f->model, "the model", "Compile"});
  c.options.push_back({"-o,--output", &f->out, "output directory", "Compile"});
  c.options.push_back({"--epoption", &f->epoptions, "option K=V of the execution provider (repeatable)", "Compile"});
  c.options.push_back({"--embed-context", &f->embed_context, "put the compiled context into the model", "Compile"});
  c.options.push_back({"--validate-samples", &f->validate_samples, "samples to validate on (64)", "Compile"});
  c.options.push_back({"--no-cache", &f->no_cache, "do not reuse finished stages", "Compile"});
  AddDataOptions(c.options, f->data);
  AddCommonOptions(c.options, f->common, kConfig | kDevice | kDims | kForce | kDryRun);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
