// Commands of the interface that this version does not have: they exist, and say so.
#include "cli/options.h"
#include "octavo/base/error.h"

namespace octavo::cli {
namespace {

Command Unbuilt(const std::string& name, const std::string& summary, const std::string& instead) {
  Command c;
  c.name = name;
  c.summary = summary + " (not built yet)";
  c.any_arguments = true;  // a call written for a later version gets the same answer
  c.run = [name, instead]() -> int { ThrowUnsupported("not built yet", "octavo " + name, instead); };
  return c;
}

}  // namespace

std::vector<Command> UnbuiltCommands() {
  std::vector<Command> out;
  out.push_back(Unbuilt("compile", "compile a quantized model for a device", "use octavo build --device cpu"));
  return out;
}

}  // namespace octavo::cli
