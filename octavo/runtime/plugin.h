// Execution providers in plugin libraries (ONNX Runtime's EP ABI). Such a library is a stranger's code that may crash
// or hang: only a worker process (device_worker.h) calls what is declared here.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace octavo {

// One execution provider as a session or the compiler is to use it.
struct EpSpec {
  std::string name;                                          // "QNNExecutionProvider": registered under this name
  std::filesystem::path library;                             // of the plugin
  std::vector<std::pair<std::string, std::string>> options;  // of the provider
  bool cpu_fallback = true;  // false: a node that the provider does not take is an error
};

struct EpDevice {
  std::string ep, vendor, version;        // of the provider
  std::string hardware, hardware_vendor;  // "cpu", "gpu", "npu"; "AMD"
};

// Registers the library (once a process) and lists the devices that it offers on this machine; maybe none. Errors:
// kUnsupported with the runtime's message for a library that is missing, damaged, or refuses this runtime.
std::vector<EpDevice> EpDevices(const std::string& ep, const std::filesystem::path& library);

struct EpMessage {
  bool error = false;  // logged as an error or as fatal
  std::string text;
};

// What the runtime and the provider logged while a piece of work was done; bounded.
class EpLog {
 public:
  EpLog();  // starts to collect, one at a time in a process
  ~EpLog();
  EpLog(const EpLog&) = delete;
  EpLog& operator=(const EpLog&) = delete;
  std::vector<EpMessage> Take();
};

// The Compile API: `model` with what the provider takes replaced by EPContext nodes, written to `out`; the binary goes
// beside it, or into it when `embed`. Errors: kUnsupported with the provider's message.
void CompileForEp(const std::filesystem::path& model, const std::filesystem::path& out, const EpSpec& ep, bool embed);

}  // namespace octavo
