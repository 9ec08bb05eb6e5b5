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

struct Flags {
  std::string model, out;
  CommonFlags common;
  DataFlags data;
  QuantizationFlags quantization;
  GgufFlags gguf;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  if (IsGgufFile(flags.model)) {
    RequireArgument(flags.out, "-o", "give -o Q.gguf");
    return QuantizeGgufFile(flags.model, flags.out, flags.common, flags.data, flags.quantization, flags.gguf);
  }
  if (flags.gguf.max_memory) {
    ThrowUsage("only quantizing a GGUF has a bound on memory", "--max-memory", "leave it out");
  }
  const BuildConfig config = MakeConfig(flags.model, flags.common, flags.data, &flags.quantization);
  if (config.model.empty()) RequireArgument("", "the model", "octavo quantize M.onnx -o Q.onnx");
  RequireArgument(flags.out, "-o", "give -o Q.onnx");
  CheckOutputFile(flags.out, flags.common, "onnx");
  if (flags.common.dry_run) {
    return PrintPlan(MakePlan(config, flags.out, flags.data.require_data, PlanFor::kModel), flags.common);
  }
  const QuantizeFileResult result = QuantizeFile(config, flags.out, ThreadCount(flags.common), flags.data.require_data);
  WriteJson(flags.common, ToJson(result.quantize));
  Print(Summary(result));
  return 0;
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
  c.options.push_back({"-o,--output", &f->out, "the file to write", "Quantize"});
  c.options.push_back(
      {"--max-memory", &f->gguf.max_memory, "SIZE: resident memory of quantizing a GGUF (1G)", "Quantize"});
  AddDataOptions(c.options, f->data);
  AddQuantizationOptions(c.options, f->quantization);
  AddCommonOptions(c.options, f->common, kConfig | kDevice | kDims | kWeights | kForce | kDryRun);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
