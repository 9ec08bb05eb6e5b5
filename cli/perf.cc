#include "octavo/validate/perf.h"

#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/build/pipeline.h"
#include "octavo/compile/compile.h"
#include "octavo/import/onnx.h"

namespace octavo::cli {
namespace {

struct Flags : ConfigFlags {
  std::string model;
  std::optional<std::string> against;
  std::optional<std::int64_t> iterations, warmup;
  std::optional<double> duration;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  RequireArgument(flags.model, "the model", "octavo perf M.onnx");
  const BuildConfig config = MakeConfig(flags.model, flags);
  PerfOptions options;
  options.threads = ThreadCount(flags.common);
  if (flags.iterations && flags.duration) {
    ThrowUsage("both --iterations and --duration were given", "command line", "keep one of the two");
  }
  if (flags.iterations) {
    if (*flags.iterations < 1 || *flags.iterations > 10'000'000)
      ThrowUsage("iterations must be from 1 to 10000000", "--iterations");
    options.iterations = *flags.iterations;
  }
  if (flags.warmup) {
    if (*flags.warmup < 0 || *flags.warmup > 10'000'000) ThrowUsage("warmup must be from 0 to 10000000", "--warmup");
    options.warmup = *flags.warmup;
  }
  if (flags.duration) {
    if (!(*flags.duration > 0 && *flags.duration < 1e6))
      ThrowUsage("duration must be a positive number of seconds", "--duration");
    options.seconds = *flags.duration;
  }
  const std::string model = ModelFile(flags.model);
  CompileContext context;
  context.options = config.compile.options;
  options.ep = ProviderFor(model, RequireDevice(config.device), context);
  std::optional<std::filesystem::path> against;
  if (flags.against) {
    against = ModelFile(*flags.against);
    ReadOnnx(*against);  // what is no model is said as everywhere
    options.against_ep = ProviderFor(*against, RequireDevice("cpu"), context);
  }
  std::unique_ptr<DataSource> data;
  {
    Model graph = ReadOnnx(model);
    FixDims(graph, config.dims);
    const std::vector<InputSpec> inputs = InputSpecs(*graph.graph);
    if (config.data) {
      if (flags.data.seed || flags.data.distribution) {
        LogWarning("the seed and the distribution are those of synthetic samples: with data they have no effect");
      }
      data = OpenData(*config.data, inputs);
    } else {
      const QuantizationConfig& q = EffectiveQuantization(config);
      data = SyntheticData(inputs, ParseDistribution(q.distribution), q.seed, 8);
    }
  }
  const PerfResult result = MeasurePerf(model, against, *data, options);
  std::string note;
  if (options.ep)
    note = "session with " + options.ep->name +
           " (what it does not take runs on the CPU; an emulator's times say nothing about its device)\n";
  return Finish(flags.common, ToJson(result), data->Describe() + "\n" + note + ToTable(result));
}

}  // namespace

Command PerfCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "perf";
  c.summary = "latency, throughput and memory of a model here, alone or in turn with another";
  c.examples =
      "  octavo perf out/model.onnx --against m.onnx --data samples/\n"
      "  octavo perf m.onnx --dim batch=1 --iterations 200 --threads 1 --json p.json\n";
  c.options.push_back({"model", &f->model, "the model, or a build's output directory", "Perf"});
  c.options.push_back(
      {"--against OTHER.onnx", &f->against, "another model, run in turn with this one on the same samples", "Perf"});
  c.options.push_back({"--iterations N", &f->iterations, "counted runs (as many as fit in --duration)", "Perf"});
  c.options.push_back({"--warmup N", &f->warmup, "runs that are not counted (5)", "Perf"});
  c.options.push_back({"--duration SECONDS", &f->duration, "of counted runs (3)", "Perf"});
  AddOptions(c.options, *f, kData | kSynthetic | kDevice | kDims | kThreads);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
