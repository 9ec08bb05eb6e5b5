// Device compilers and emulators in a process of their own.
//
// A plugin's compiler is a stranger's hundred megabytes: it may crash, hang, write to stdout or take the process down.
// So a child (octavo, started as its own worker) does what needs it and talks over a pipe; whatever happens to it
// is an Error here. The child dies with its parent.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "octavo/runtime/plugin.h"
#include "octavo/runtime/session.h"

namespace octavo {

// To be called first by a main() that can be such a child: where a parent started it as one, serves the parent until it
// hangs up, and ends the process; else remembers that children may be this program, whatever its file is called.
void ServeIfWorker(int argc, char** argv);

// How long a child may take for one piece of work, in seconds: $OCTAVO_DEVICE_SECONDS, or 1800.
double DeviceSeconds();

// What a compiler did.
struct EpCompileResult {
  std::vector<EpMessage> log;  // the provider's and the runtime's messages
  double seconds = 0;
};

class DeviceWorker {
 public:
  // Starts the child. The program is $OCTAVO_WORKER, this one if it called ServeIfWorker, or the octavo beside it.
  // Errors: kUnsupported when there is none.
  DeviceWorker();
  ~DeviceWorker();
  DeviceWorker(DeviceWorker&&) noexcept;

  // As plugin.h. Errors: those of the work done; kUnsupported when the child dies or gives no answer within the time
  // limit (DeviceSeconds).
  std::vector<EpDevice> Devices(const std::string& ep, const std::filesystem::path& library);
  EpCompileResult Compile(const std::filesystem::path& model, const std::filesystem::path& out, const EpSpec& ep,
                          bool embed);

  // One session a worker. `ep` may be null: the CPU's provider.
  void Open(const std::filesystem::path& model, const EpSpec* ep, GraphOptimization optimization, int threads);
  const std::vector<IoSpec>& inputs() const;
  const std::vector<IoSpec>& outputs() const;
  double load_seconds() const;
  struct RunResult {
    std::vector<TensorRef> outputs;
    double seconds = 0;  // inside the run alone, measured in the child
    std::uint64_t peak_rss_bytes = 0;
  };
  RunResult Run(std::span<const TensorRef> inputs);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
