#include <cstdio>
#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"
#include "octavo/build/plan.h"

namespace octavo::cli {
namespace {

struct Flags {
  std::vector<std::string> arguments;  // M.onnx, or: merge S1.json S2.json ...
  std::string out;
  CommonFlags common;
  DataFlags data;
  QuantizationFlags quantization;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  const bool merge = !flags.arguments.empty() && flags.arguments[0] == "merge";
  CalibrateFileResult result;
  if (merge) {
    CheckOutputFile(flags.out, flags.common, "json");
    const std::vector<std::string> shards(flags.arguments.begin() + 1, flags.arguments.end());
    result = MergeStatistics(shards, flags.common.dry_run ? std::string() : flags.out);
  } else {
    if (flags.arguments.size() > 1) ThrowUsage("unexpected argument '" + flags.arguments[1] + "'", "octavo calibrate");
    const BuildConfig config =
        MakeConfig(flags.arguments.empty() ? "" : flags.arguments[0], flags.common, flags.data, &flags.quantization);
    if (config.model.empty()) RequireArgument("", "the model", "octavo calibrate M.onnx --data D -o S.json");
    CheckOutputFile(flags.out, flags.common, "json");
    if (flags.common.dry_run) {
      return PrintPlan(MakePlan(config, flags.out, flags.data.require_data, PlanFor::kStatistics), flags.common);
    }
    result = CalibrateFile(config, flags.out, ThreadCount(flags.common), flags.data.require_data);
  }
  WriteJson(flags.common, ToJson(result));
  char line[160];
  std::snprintf(line, sizeof line, ": %zu samples, %zu tensors, %s, %.2f s\n", result.samples, result.tensors,
                result.method.c_str(), result.seconds);
  Print((flags.common.dry_run ? "would write " : "") + flags.out + line);
  return 0;
}

}  // namespace

Command CalibrateCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "calibrate";
  c.summary = "gather calibration statistics into a file, or merge such files exactly";
  c.examples =
      "  octavo calibrate m.onnx --data samples/ -o s.json\n"
      "  octavo calibrate m.onnx --data shard1/ --calibration mse -o s1.json\n"
      "  octavo calibrate merge s1.json s2.json -o s.json\n";
  c.options.push_back({"arguments", &f->arguments, "the model; or: merge S1.json S2.json ...", "Calibrate"});
  c.options.push_back({"-o,--output", &f->out, "the file to write", "Calibrate"});
  AddDataOptions(c.options, f->data);
  AddQuantizationOptions(c.options, f->quantization);
  std::erase_if(c.options,
                [](const Option& o) { return o.names == "--load-statistics" || o.names == "--save-statistics"; });
  AddCommonOptions(c.options, f->common, kConfig | kDevice | kDims | kWeights | kForce | kDryRun);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
