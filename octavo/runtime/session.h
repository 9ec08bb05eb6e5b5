// ONNX Runtime behind a small wall: opened with dlopen (never linked), no ORT header outside this room.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/ir/tensor.h"
#include "octavo/ir/type.h"
#include "octavo/runtime/plugin.h"

namespace octavo {

// Where the library is looked for, in order: $OCTAVO_ORT_LIBRARY (a file), <prefix of this executable>/lib/octavo/,
// <directory of this executable>/, then the dynamic loader's path. kUnsupported with the list of places tried, or when
// the library's API is older than 23.
std::string OrtVersion();  // "1.31.1"; loads the library
std::string OrtLibraryPath();

// Loads the library on a thread of its own while the caller does other things; the destructor waits for it. What goes
// wrong is said by the first call that needs the library.
class RuntimePreload {
 public:
  RuntimePreload();
  ~RuntimePreload();
  RuntimePreload(const RuntimePreload&) = delete;
  RuntimePreload& operator=(const RuntimePreload&) = delete;

 private:
  std::thread thread_;
};

// Called for each observed tensor, on the thread that runs the sample, in the data path. `id` is the node's "id"
// attribute. `data` is valid during the call only. An exception ends the run and is rethrown by Session::Run.
using Observer = std::function<void(std::int64_t id, DType dtype, std::span<const std::int64_t> dims, const void* data,
                                    void* run_context)>;

// Domain and operator of the observer: Observe(x) -> y, attribute `id` (int); y is x, in place where the runtime
// allows.
inline constexpr const char* kObserveDomain = "octavo.runtime";
inline constexpr const char* kObserveOp = "Observe";

// Called for each tensor on its way through a Round node, on the thread that runs the sample. Writes y (which may be x)
// and returns true, or returns false: y becomes x. Tensors that are not f32 pass without a call.
using Rounder = std::function<bool(std::int64_t id, std::span<const float> x, float* y, void* run_context)>;
// Round(x) -> y, attribute `id` (int), in the observer's domain. In place only where nobody else needs x.
inline constexpr const char* kRoundOp = "Round";

enum class GraphOptimization { kNone, kBasic, kExtended, kAll };

// Models with more weights than this run without prepacking: their weights stay mapped instead of being copied.
inline constexpr std::uint64_t kMostPrepackedBytes = std::uint64_t{1} << 30;

struct SessionOptions {
  GraphOptimization optimization = GraphOptimization::kAll;
  int intra_op_threads = 0;         // 0: all cores
  bool disable_prepacking = false;  // weights stay where they are mapped (big models)
  bool arena = true;                // CPU memory arena
  // After the first run of a shape the runtime places all activations in one block. Runs of different shapes, or in
  // parallel, need less memory without: what one leaves free, the next uses.
  bool memory_pattern = true;
  // Each run takes its memory from an arena of its own in place of one for all (`arena` then has no effect): how runs
  // in parallel overlap does not show in the memory that they need.
  bool run_arenas = false;
  // Initializers in mapped files that the runtime reads where the caller mapped them: the caller may drop their pages
  // between and during runs.
  std::vector<std::string> in_place;
  std::vector<std::pair<std::string, std::string>> config;  // session config entries
  std::optional<EpSpec> ep;  // a plugin's execution provider beside the CPU's; in worker processes only
  // Registers the observer operator when set. Needs intra_op_threads = 1 (kInternal otherwise): the runtime then runs
  // kernels on the thread that called Run, which is how an observer finds its run's context.
  Observer observer;
  Rounder rounder;  // the same for the Round operator
};

struct IoSpec {
  std::string name;
  Type type;  // dtype and shape (symbols kept)
};

class Session {
 public:
  // From a file. Errors: kBadInput (the runtime refuses the model; its message, first line, is included).
  Session(const std::filesystem::path& model, const SessionOptions& options);
  // From bytes; `initializers` are those that the model marks as external, in the top graph. Those whose bytes lie in
  // a mapped file (TensorRef::file) are mapped by the runtime from that file, wherever the model said they were:
  // nothing is copied. Others are copied by the runtime while it loads. All stay alive as long as the session.
  Session(std::string_view model_bytes, std::vector<std::pair<std::string, TensorRef>> initializers,
          const SessionOptions& options);
  ~Session();
  Session(Session&&) noexcept;

  const std::vector<IoSpec>& inputs() const;
  const std::vector<IoSpec>& outputs() const;
  // Names of the outputs that are tensors: those that Run can return (a sequence or map is not).
  std::vector<std::string> TensorOutputs() const;

  // Inputs in the order of inputs(); outputs in the order of outputs(), or only `wanted` (by name) when not empty.
  // Outputs own their memory (the runtime's, no copy). Thread safe. Errors: kBadInput with the runtime's message.
  std::vector<TensorRef> Run(std::span<const TensorRef> inputs, std::span<const std::string> wanted = {},
                             void* run_context = nullptr) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
