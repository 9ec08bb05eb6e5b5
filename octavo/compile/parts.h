// A model that a device's compiler does not take as a whole, compiled in parts that it takes.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"
#include "octavo/runtime/device_worker.h"

namespace octavo {

// Compiles one model to another. Errors: kUnsupported, with the compiler's message.
using CompileOne = std::function<EpCompileResult(const std::filesystem::path& model, const std::filesystem::path& out)>;

struct PartLimits {
  std::int64_t tries = 160;          // of the compiler
  double seconds = DeviceSeconds();  // all tries together
};

struct InParts {
  std::unordered_map<std::string, std::string> reasons;  // node -> why it is on the CPU
  std::vector<EpMessage> log;                            // of the parts' compiler
  double seconds = 0;                                    // in the compiler, all tries together
  std::int64_t tries = 0;
};

// Gives every node a name of its own: compilers and their messages know nodes by it. Returns how many got another one.
std::int64_t NameNodes(Model& model);

// The provider's message about a node: the line of `log` that names it and says that something failed; or empty.
std::string SaidOf(const std::string& node, const std::vector<EpMessage>& log);

// Of a loop whose steps are not written out, as the end of a sentence: why. Empty for other nodes.
std::string WhyNoSteps(const Model& model, const Node& node);

// Splits `model` (plain ONNX with Q/DQ operators) between the device and the CPU, compiles each part of the device and
// writes to `out` the model in which EPContext nodes stand in their places; the parts' binaries lie beside it. A part
// holds all that the device takes up to the next node of the CPU, with the Q/DQ of its tensors. Nodes go to the CPU
// that hold subgraphs, that the compiler leaves there, or that it refuses even alone; where it refuses a part and no
// node of it, the part is split in two. Which one it is, is found by halving. Errors: kUnsupported with `refusal` (why
// the whole model was not taken) where nothing is left for the device, where the compiler refuses each of a few nodes
// alone, and beyond the limits.
InParts CompileInParts(const Model& model, const std::filesystem::path& out, const DeviceDescriptor& device,
                       const CompileOne& compile, const std::string& refusal, const PartLimits& limits = {});

}  // namespace octavo
