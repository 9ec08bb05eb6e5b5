#include <memory>

#include "cli/options.h"
#include "cli/quantize_gguf.h"
#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/build/pipeline.h"
#include "octavo/build/plan.h"
#include "octavo/build/summary.h"

namespace octavo::cli {
namespace {

struct Flags : ConfigFlags {
  std::string model, out;
  GgufFlags gguf;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  if (IsGgufFile(flags.model)) {
    RequireArgument(flags.out, "-o", "give -o Q.gguf");
    return QuantizeGgufFile(flags.model, flags.out, flags, flags.gguf);
  }
  if (flags.gguf.max_memory) {
    ThrowUsage("only quantizing a GGUF has a bound on memory", "--max-memory", "leave it out");
  }
  const BuildConfig config = MakeConfig(flags.model, flags);
  RequireModel(config, "octavo quantize M.onnx -o Q.onnx");
  RequireArgument(flags.out, "-o", "give -o Q.onnx");
  CheckOutputFile(flags.out, flags.common, "onnx");
  if (flags.common.dry_run) {
    return PrintPlan(MakePlan(config, flags.out, flags.data.require_data, PlanFor::kModel), flags.common);
  }
  const QuantizeFileResult result = QuantizeFile(config, flags.out, ThreadCount(flags.common), flags.data.require_data);
  return Finish(flags.common, ToJson(result.quantize), Summary(result));
}

}  // namespace

Command QuantizeCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "quantize";
  c.summary = "one model in, one quantized model out";
  c.examples =
      "  octavo quantize m.onnx -o q.onnx --precision uint8 --data samples/\n"
      "  octavo quantize m.onnx -o q.onnx --precision int8 --load-statistics s.json\n"
      "  octavo quantize m.onnx -o q.onnx --data samples/ --exclude 'head*' --override logits=u16\n"
      "  octavo quantize m.gguf -o q.gguf --precision q4_k --override '*ffn_down*=q6_k' --max-memory 512M\n";
  c.options.push_back({"model", &f->model, "the model: ONNX, or the weights of a GGUF", "Quantize"});
  c.options.push_back({"-o,--output FILE", &f->out, "the file to write", "Quantize"});
  c.options.push_back(
      {"--max-memory SIZE", &f->gguf.max_memory, "resident memory of quantizing a GGUF (1G)", "Quantize"});
  AddOptions(c.options, *f, kEveryGroup);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
