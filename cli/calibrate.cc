#include <cstdio>
#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"
#include "octavo/build/plan.h"

namespace octavo::cli {
namespace {

struct Flags : ConfigFlags {
  std::vector<std::string> arguments;  // M.onnx, or: merge S1.json S2.json ...
  std::string out;
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
    const BuildConfig config = MakeConfig(flags.arguments.empty() ? "" : flags.arguments[0], flags);
    RequireModel(config, "octavo calibrate M.onnx --data D -o S.json");
    CheckOutputFile(flags.out, flags.common, "json");
    if (flags.common.dry_run) {
      return PrintPlan(MakePlan(config, flags.out, flags.data.require_data, PlanFor::kStatistics), flags.common);
    }
    result = CalibrateFile(config, flags.out, ThreadCount(flags.common), flags.data.require_data);
  }
  char line[160];
  std::snprintf(line, sizeof line, ": %zu samples, %zu tensors, %s, %.2f s\n", result.samples, result.tensors,
                result.method.c_str(), result.seconds);
  return Finish(flags.common, ToJson(result), (flags.common.dry_run ? "would write " : "") + flags.out + line);
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
  c.options.push_back({"-o,--output S.json", &f->out, "the file to write", "Calibrate"});
  AddOptions(c.options, *f, kEveryGroup & ~kStatistics);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
