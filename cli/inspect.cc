#include "octavo/build/inspect.h"

#include <filesystem>
#include <memory>

#include "cli/options.h"

namespace octavo::cli {
namespace {

struct Flags : ConfigFlags {
  std::string file;
  InspectOptions options;
};

int Run(const Flags& flags) {
  ApplyQuiet(flags.common);
  RequireArgument(flags.file, "FILE", "octavo inspect FILE");
  const std::string file = ModelFile(flags.file);
  const InspectResult result = Inspect(file, flags.options);
  return Finish(flags.common, result.json, result.text);
}

}  // namespace

Command InspectCommand() {
  auto f = std::make_shared<Flags>();
  Command c;
  c.name = "inspect";
  c.summary = "what is in a model, weight or statistics file, what is quantized how";
  c.examples =
      "  octavo inspect out/model.onnx\n"
      "  octavo inspect out/ --nodes\n"
      "  octavo inspect q.onnx --ir\n"
      "  octavo inspect s.json\n";
  c.options.push_back(
      {"file", &f->file, "ONNX, GGUF, safetensors, Circle, statistics, or a build's output directory", "Inspect"});
  c.options.push_back({"--ir", &f->options.ir, "print the textual IR", "Inspect"});
  c.options.push_back({"--nodes", &f->options.nodes, "also a line for every node", "Inspect"});
  AddOptions(c.options, *f, 0);
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
