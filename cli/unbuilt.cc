// Commands of the interface that this version does not have: they exist, and say so.
#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"

namespace octavo::cli {
namespace {

struct Flags {
  std::vector<std::string> ignored;
  std::optional<std::string> out, device, to, constants, parameters, profile, form, weights, weight_map, precision;
};

Command Unbuilt(const std::string& name, const std::string& summary, const std::string& instead) {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = name;
  c.summary = summary + " (not built yet)";
  // The whole interface of the command is read, so that a call written for a later version gets this answer.
  c.options.push_back({"model", &f->ignored, "the model", name});
  c.options.push_back({"-o,--output", &f->out, "what to write", name});
  c.options.push_back({"--device", &f->device, "the device", name});
  if (name == "export") {
    c.options.push_back({"--to", &f->to, "stablehlo|circle|onnx|gguf", name});
    c.options.push_back({"--constants", &f->constants, "dequantize|codes|quant|packed|parameters", name});
    c.options.push_back({"--parameters", &f->parameters, "a GGUF with the parameters", name});
    c.options.push_back({"--profile", &f->profile, "of circle", name});
    c.options.push_back({"--form", &f->form, "qdq|qlinear", name});
    c.options.push_back({"--weights", &f->weights, "a GGUF that replaces initializers", name});
    c.options.push_back({"--weight-map", &f->weight_map, "names in it", name});
    c.options.push_back({"-p,--precision", &f->precision, "the precision", name});
  }
  c.run = [name, instead]() -> int { ThrowUnsupported("not built yet", "octavo " + name, instead); };
  return c;
}

}  // namespace

std::vector<Command> UnbuiltCommands() {
  std::vector<Command> out;
  out.push_back(Unbuilt("rewrite", "rewrite a quantized model", "octavo build rewrites what its device needs"));
  out.push_back(Unbuilt("compile", "compile a quantized model for a device", "use octavo build --device cpu"));
  out.push_back(Unbuilt("export", "write another format", "use octavo quantize for ONNX"));
  return out;
}

}  // namespace octavo::cli
