#include "octavo/build/rewrite.h"

#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"
#include "octavo/import/onnx.h"

namespace octavo::cli {
namespace {

struct Flags {
  std::string model, out;
  std::optional<std::string> rule_class;
  std::vector<std::string> rules;
  bool trace = false, list = false, bisect = false;
  CommonFlags common;
  DataFlags data;
};

constexpr std::int64_t kBisectSamples = 4;

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
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
    const BuildConfig config = MakeConfig(flags.model, flags.common, flags.data, nullptr);
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
  c.options.push_back({"-o,--output", &f->out, "the file to write", g});
  c.options.push_back({"--rules", &f->rules, "A,B: only these rules (all)", g});
  c.options.push_back({"--class", &f->rule_class, "exact|onelsb|improves|lossy: what rules may do (improves)", g});
  c.options.push_back({"--trace", &f->trace, "print what was applied where, and why not elsewhere", g});
  c.options.push_back({"--list", &f->list, "print the rules, each with its proof", g});
  c.options.push_back({"--bisect", &f->bisect, "find the rule that changed the outputs (needs --data)", g});
  AddDataOptions(c.options, f->data);
  std::erase_if(c.options, [](const Option& o) {
    return o.names == "--seed" || o.names == "--distribution" || o.names == "--require-data";
  });
  AddCommonOptions(c.options, f->common, kDevice | kDims | kForce | kDryRun);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
