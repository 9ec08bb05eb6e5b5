#include "octavo/validate/compare.h"

#include <cstdio>
#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/build/pipeline.h"
#include "octavo/import/onnx.h"

namespace octavo::cli {
namespace {

struct Flags : ConfigFlags {
  std::string reference, candidate;
  bool per_layer = false, no_optimization = false;
  std::optional<double> min_sqnr;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  RequireArgument(flags.reference, "the reference model", "octavo compare REF.onnx NEW.onnx --data D");
  RequireArgument(flags.candidate, "the second model", "octavo compare REF.onnx NEW.onnx --data D");
  if (!flags.data.data) {
    ThrowUsage("no data: random inputs say nothing about accuracy", "--data", "give --data D with real samples");
  }
  const BuildConfig config = MakeConfig(flags.reference, flags);
  const std::string reference_file = ModelFile(flags.reference), candidate_file = ModelFile(flags.candidate);
  const Model reference = ReadOnnx(reference_file);
  ReadOnnx(candidate_file);  // what is no model is said as everywhere
  const DataPlan data = OpenSamples(reference, config, true, 0);
  CompareOptions options;
  options.threads = ThreadCount(flags.common);
  options.count = flags.data.samples ? data.calibration : 0;
  if (flags.no_optimization) options.candidate_optimization = GraphOptimization::kNone;
  const CompareResult result = CompareModels(reference_file, candidate_file, *data.source, options);
  std::optional<CompareResult> layers;
  if (flags.per_layer) layers = CompareLayers(reference_file, candidate_file, *data.source, options);
  WriteJson(flags.common, ToJson(result, layers ? &*layers : nullptr));
  char line[160];
  std::snprintf(line, sizeof line, "%zu samples, %.2f s\n", result.samples, result.seconds);
  std::string text = line + ToTable(result.outputs, false);
  if (layers) {
    text += "\nvalues that both models have, in the order of execution, optimizations off:\n" +
            ToTable(layers->outputs, true);
  }
  Print(text);
  for (const OutputError& o : result.outputs) {
    if (o.stats.non_finite > 0) {
      throw Error(ExitCode::kGate, "NaN or infinity where the reference has none", "output " + o.name);
    }
    if (flags.min_sqnr && o.SqnrDb() < *flags.min_sqnr) {
      std::snprintf(line, sizeof line, "SQNR %.2f dB is below --min-sqnr %g", o.SqnrDb(), *flags.min_sqnr);
      throw Error(ExitCode::kGate, line, "output " + o.name);
    }
  }
  return 0;
}

}  // namespace

Command CompareCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "compare";
  c.summary = "how far the outputs of one model are from those of another on the same data";
  c.examples =
      "  octavo compare m.onnx out/model.onnx --data samples/\n"
      "  octavo compare m.onnx q.onnx --data samples/ --samples 4 --per-layer --json c.json\n";
  c.options.push_back({"reference", &f->reference, "the reference model (run with optimizations off)", "Compare"});
  c.options.push_back({"candidate", &f->candidate, "the other model (run in the default session)", "Compare"});
  c.options.push_back({"--per-layer", &f->per_layer, "also every value that both models have", "Compare"});
  c.options.push_back(
      {"--no-optimization", &f->no_optimization, "run the other model with optimizations off too", "Compare"});
  c.options.push_back({"--min-sqnr DB", &f->min_sqnr, "that every output must reach, else exit 5", "Compare"});
  c.options.push_back({"--samples N", &f->data.samples, "how many of the samples to run (all)", "Compare"});
  AddOptions(c.options, *f, kData | kThreads);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
