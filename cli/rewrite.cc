#include "octavo/build/rewrite.h"

#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"
#include "octavo/import/onnx.h"

namespace octavo::cli {
namespace {

struct Flags : ConfigFlags {
  std::string model, out;
  std::optional<std::string> rule_class;
  std::vector<std::string> rules;
  bool trace = false, list = false, bisect = false;
};

constexpr std::int64_t kBisectSamples = 4;

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  if ((flags.list || flags.bisect) && (!flags.out.empty() || flags.common.json)) {
    ThrowUsage(std::string(flags.list ? "--list" : "--bisect") + " prints its result and writes no file",
               flags.out.empty() ? "--json" : "-o", "leave it out");
  }
  const std::string device = flags.common.device.value_or("cpu");
  if (flags.list) {
    Print(RuleCatalogue(RequireDevice(device)));
    return 0;
  }
  RequireArgument(flags.model, "the model", "octavo rewrite Q.onnx -o R.onnx");
  RewriteFileOptions options;
  options.model = flags.model;
  options.dims = ParseDims(flags.common.dims);
  options.device = &RequireDevice(device);
  if (flags.rule_class) options.rules.permitted = ParseRuleClass(*flags.rule_class);
  options.rules.rules = SplitCommas(flags.rules);
  if (flags.bisect) {
    if (!flags.data.data) ThrowUsage("nothing to run the model on", "--bisect", "give --data D");
    const BuildConfig config = MakeConfig(flags.model, flags);
    Model model = ReadOnnx(flags.model);
    if (!options.dims.empty()) FixDims(model, options.dims);
    const DataPlan data = OpenSamples(model, config, true, 0);
    const auto samples = static_cast<std::size_t>(flags.data.samples.value_or(kBisectSamples));
    Print(Summary(BisectRewrite(options, *data.source, samples, ThreadCount(flags.common))));
    return 0;
  }
  if (!flags.common.dry_run || !flags.out.empty()) CheckOutputFile(flags.out, flags.common, "onnx");
  const RewriteFileResult result = RewriteFile(options, flags.common.dry_run ? std::string() : flags.out);
  WriteJson(flags.common, ToJson(result));
  if (flags.trace) Print(Trace(result.rewrite.rules));
  Print(Summary(result));
  return 0;
}

}  // namespace

Command RewriteCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "rewrite";
  c.summary = "integer operators instead of Q/DQ pairs, rule by rule";
  c.examples =
      "  octavo rewrite q.onnx -o r.onnx\n"
      "  octavo rewrite q.onnx -o r.onnx --class exact --trace\n"
      "  octavo rewrite q.onnx --bisect --data samples/\n"
      "  octavo rewrite --list\n";
  const std::string g = "Rewrite";
  c.options.push_back({"model", &f->model, "the quantized model", g});
  c.options.push_back({"-o,--output R.onnx", &f->out, "the file to write", g});
  c.options.push_back({"--rules A,B", &f->rules, "only these rules (all)", g});
  c.options.push_back({"--class C", &f->rule_class, "exact|onelsb|improves|lossy: what rules may do (improves)", g});
  c.options.push_back({"--trace", &f->trace, "print what was applied where, and why not elsewhere", g});
  c.options.push_back({"--list", &f->list, "print the rules, each with its proof", g});
  c.options.push_back({"--bisect", &f->bisect, "find the rule that changed the outputs (needs --data)", g});
  c.options.push_back({"--samples N", &f->data.samples, "how many --bisect runs (4)", g});
  AddOptions(c.options, *f, kData | kDevice | kDims | kThreads | kForce | kDryRun);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
