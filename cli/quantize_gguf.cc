#include "cli/quantize_gguf.h"

#include <filesystem>

#include "octavo/base/error.h"
#include "octavo/build/gguf_quantize.h"

namespace octavo::cli {

bool IsGgufFile(const std::string& file) {
  std::error_code error;
  return std::filesystem::is_regular_file(file, error) && IsGguf(file);
}

int QuantizeGgufFile(const std::string& source, const std::string& out, const ConfigFlags& flags,
                     const GgufFlags& gguf) {
  const CommonFlags& common = flags.common;
  const DataFlags& data = flags.data;
  const auto refuse = [](bool given, const char* option) {
    if (given) ThrowUsage("a GGUF holds weights and no operators: nothing to use this for", option, "leave it out");
  };
  refuse(data.data || data.layout || data.size || data.mean || data.std || data.scale || data.color, "--data");
  refuse(data.require_data, "--require-data");
  refuse(common.device.has_value(), "--device");
  refuse(!common.dims.empty(), "--dim");
  refuse(common.weights || common.weight_map, "--weights");
  if (!flags.quantization.precision && !common.config) {
    ThrowUsage("no precision", "--precision", "give for example --precision q4_k");
  }
  const BuildConfig config = CollectConfig(source, flags);
  GgufQuantizeOptions options;
  options.source = source;
  options.config = EffectiveQuantization(config);
  options.threads = ThreadCount(common);
  options.imatrix = options.config.imatrix;
  if (gguf.max_memory) options.max_memory = ParseBytes(*gguf.max_memory, "--max-memory");
  CheckOutputFile(out, common, "gguf");
  const Gguf file = Gguf::Open(source);
  if (common.dry_run) {
    const GgufQuantizePlan plan = PlanGgufQuantize(file, options);
    return Finish(common, PlanJson(file, plan, out), PlanText(file, plan, out));
  }
  const GgufQuantizeResult result = QuantizeGguf(file, options, out);
  return Finish(common, PlanJson(file, result.plan, out), Summary(file, result, out));
}

}  // namespace octavo::cli
