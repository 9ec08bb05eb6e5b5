#include "octavo/build/export.h"

#include <map>
#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/plan.h"

namespace octavo::cli {
namespace {

struct Flags : ConfigFlags {
  std::string model, out, to;
  std::map<std::string, std::optional<std::string>, std::less<>> options;
  bool list = false;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  RequireArgument(flags.to, "--to", "give --to onnx");
  if (flags.list) {
    if (flags.common.json)
      ThrowUsage("--list-operators prints its result and writes no file", "--json", "leave it out");
    Print(ListOperators(flags.to));
    return 0;
  }
  ExportRequest request;
  request.to = flags.to;
  request.out = flags.out;
  // The types of a GGUF are its own: what is set for it is checked when they are chosen.
  request.config = flags.to == "gguf" ? CollectConfig(flags.model, flags) : MakeConfig(flags.model, flags);
  RequireModel(request.config, "octavo export M.onnx --to " + flags.to + " -o FILE");
  RequireArgument(flags.out, "-o", "give -o FILE");
  request.quantize = flags.quantization.precision.has_value() || flags.common.config.has_value();
  for (const auto& [name, value] : flags.options) {
    if (value) request.options.emplace(name, *value);
  }
  request.threads = ThreadCount(flags.common);
  request.require_data = flags.data.require_data;
  CheckExport(request);
  CheckOutputFile(flags.out, flags.common, flags.to);
  if (flags.common.dry_run) {
    BuildConfig config = request.config;
    if (!request.quantize) config.quantization = ProfilePrecision(request);
    BuildPlan plan = MakePlan(config, request.out, flags.data.require_data, PlanFor::kModel);
    PlanProfile(request, plan);
    plan.format = request.to;
    if (request.to == "gguf") plan.model_bytes.reset();  // what has no whole blocks is known when it is written
    // Text spells a byte in two digits; an archive beside it holds them as they are.
    if (request.to == "stablehlo" && request.Option("constants") != "parameters") *plan.model_bytes *= 2;
    return PrintPlan(plan, flags.common);
  }
  const ExportReport report = Export(request);
  return Finish(flags.common, ToJson(report), Summary(report));
}

}  // namespace

Command ExportCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "export";
  c.summary = "write another format";
  c.examples =
      "  octavo export m.onnx --to stablehlo -o m.mlir --dim batch=1\n"
      "  octavo export m.onnx --to stablehlo -o m.mlir --precision q4_k\n"
      "  octavo export m.onnx --to onnx -o q.onnx --precision int8 --data samples/\n";
  std::string targets;
  for (const ExportTarget& target : ExportTargets()) {
    targets += (targets.empty() ? "" : "; ") + std::string(target.name) + ": " + std::string(target.summary);
  }
  c.options.push_back({"model", &f->model, "the model", "Export"});
  c.options.push_back({"--to FORMAT", &f->to, targets, "Export"});
  c.options.push_back({"-o,--output FILE", &f->out, "the file to write", "Export"});
  c.options.push_back(
      {"--list-operators", &f->list, "print the operators that the format takes [stablehlo]", "Export"});
  for (const ExportOption& option : ExportOptions()) {
    c.options.push_back({"--" + std::string(option.name) + (option.name == "parameters" ? " M.gguf" : " NAME"),
                         &f->options[std::string(option.name)],
                         std::string(option.help) + " [" + std::string(option.targets) + "]", "Export"});
  }
  AddOptions(c.options, *f, kEveryGroup);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
