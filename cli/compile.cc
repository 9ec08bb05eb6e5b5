#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"

namespace octavo::cli {
namespace {

struct Flags : BuildFlags {
  std::string model;
};

// A build that keeps the quantization that the model has; a configuration whose compile section holds one quantizes
// first.
int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  BuildConfig config = MakeConfig(flags.model, flags);
  RequireModel(config, "octavo compile Q.onnx --device D -o OUT/");
  if (config.quantization && config.compile.quantization) EffectiveQuantization(config);  // a conflict
  if (!config.compile.quantization) {
    config.quantize = false;
    config.quantization.reset();
  }
  config.compile.enabled = true;
  return RunBuild(std::move(config), flags);
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
  AddBuildOptions(c.options, *f, "Compile");
  AddOptions(c.options, *f, kEveryGroup & ~(kQuantization | kStatistics | kWeights));
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
