// Quantized ONNX -> the artifact that a device runs, and what became of every node on the way.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/runtime/plugin.h"

namespace octavo {

// How a model is compiled, and whether it is quantized before that.
struct CompileContext {
  const DeviceDescriptor* device = nullptr;
  std::optional<QuantizationConfig> quantization;            // set: quantize first (quantize_stage.h), and how
  std::vector<std::pair<std::string, std::string>> options;  // of the provider, over the device's defaults
  bool embed = false;                                        // the binary inside the model
};

// A node that the device left to the CPU.
struct CpuNode {
  std::string node, op;
  std::string reason;  // from the descriptor, from the model's form, or the provider's own message
  std::string remedy;  // what would bring it onto the device
};

struct CompileReport {
  bool compiled = false;
  std::string not_compiled_here;  // why not, where the model is delivered as it is
  std::string in_parts;           // why the provider did not take it as a whole, where it is compiled in parts
  std::int64_t ep_context_nodes = 0;
  std::int64_t boundary_nodes = 0;  // Q and DQ at the model's inputs and outputs, on the CPU
  std::vector<CpuNode> cpu_nodes;   // everything else outside of the contexts
  double seconds = 0;
  std::string ep_version;
  std::vector<std::filesystem::path> files;  // the model first, then the context binaries
  std::optional<EpSpec> ep;                  // to run it with
};

// The provider's options in force: the device's defaults, then the user's. Errors: kUsage for an option that the device
// does not list, and for a value that is not among the choices of one; kUnsupported for a device that takes none.
std::vector<std::pair<std::string, std::string>> EffectiveOptions(const CompileContext& context);

// Whether the device's plugin and backend are here, and the runtime is new enough; nothing is loaded. Errors:
// kUnsupported.
void RequirePlugin(const DeviceDescriptor& device);

// Refuses what a device of static shapes cannot take. Errors: kUnsupported naming input and axis, and the --dim to
// give.
void RequireStaticInputs(const Graph& graph, const DeviceDescriptor& device);

// Whether the device's provider is here, without compiling anything: nullopt when it is and finds a device; else the
// reason. `missing` tells a library that is not here (a compile fails) from one that finds no device on this machine.
struct DeviceState {
  bool missing = false;
  std::string reason;
  std::string ep_version, library, hardware;
};
DeviceState LookForDevice(const DeviceDescriptor& device);

// The provider's library by its hash, and the libraries beside it by size and time: artifacts made by others are not
// reused.
// Empty for a device without a plugin, or without its library.
std::string ProviderIdentity(const DeviceDescriptor& device);

// Compiles `model` to `out`: as a whole, or for a whole-graph device in parts (parts.h) where the provider refuses that
// or does not run what it made. Where the plugin finds no device on this machine, or the device belongs to another
// system, the model is copied to `out` and not_compiled_here says why. Errors: kUnsupported: the plugin is missing or
// does not load, the provider refuses an option or every part of the model, or hangs.
CompileReport CompileModelFor(const std::filesystem::path& model, const std::filesystem::path& out,
                              const CompileContext& context);

// What runs `model`: the provider that its EPContext nodes were made by, or that of `device` for a model that is not
// compiled; nullopt: the CPU's. Errors: kUnsupported: the provider's plugin is not here, or finds no device; an
// EPContext of a provider that Octavo does not know.
std::optional<EpSpec> ProviderFor(const std::filesystem::path& model, const DeviceDescriptor& device,
                                  CompileContext context);

}  // namespace octavo
