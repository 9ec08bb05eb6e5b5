#include "octavo/runtime/ort.h"

#include <dlfcn.h>
#include <limits.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/log.h"

namespace octavo::internal {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHow = "set OCTAVO_ORT_LIBRARY to a libonnxruntime.so of version 1.23 or newer";

fs::path ExecutableDirectory() {
  std::error_code error;
  const fs::path exe = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::path() : exe.parent_path();
}

// The unversioned name first, then the highest versioned one (by name: deterministic, and right for equal digit
// counts).
std::vector<fs::path> LibrariesIn(const fs::path& directory) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name == "libonnxruntime.so" || name.rfind("libonnxruntime.so.", 0) == 0) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end(), [](const fs::path& a, const fs::path& b) {
    const bool a_plain = a.extension() == ".so", b_plain = b.extension() == ".so";
    return a_plain != b_plain ? a_plain : a > b;
  });
  return found;
}

std::atomic<void (*)(OrtLoggingLevel, const char*)> g_sink = nullptr;

// The runtime's messages are diagnostics of a library that users did not start: they go to the debug log only.
void ORT_API_CALL Log(void*, OrtLoggingLevel severity, const char*, const char*, const char*, const char* message) {
  if (const auto sink = g_sink.load()) sink(severity, message);
  if (GetLogLevel() >= LogLevel::kDebug) LogDebug(std::string("onnxruntime: ") + (message == nullptr ? "" : message));
}

struct Opened {
  void* handle = nullptr;
  std::string path;
};

Opened Open() {
  std::string tried;
  const auto open = [&](const std::string& path) -> void* {
    void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* why = ::dlerror();
      if (!tried.empty()) tried += "; ";
      tried += why == nullptr ? path : why;
    }
    return handle;
  };
  if (const char* env = std::getenv("OCTAVO_ORT_LIBRARY"); env != nullptr && *env != '\0') {
    // What the user named is taken or refused, never replaced by another one.
    if (void* handle = open(env)) return {handle, env};
    ThrowUnsupported("ONNX Runtime cannot be loaded", "OCTAVO_ORT_LIBRARY: " + tried, kHow);
  }
  if (const fs::path exe = ExecutableDirectory(); !exe.empty()) {
    for (const fs::path& directory : {exe.parent_path() / "lib" / "octavo", exe}) {
      const std::vector<fs::path> files = LibrariesIn(directory);
      if (files.empty()) tried += (tried.empty() ? "none in " : "; none in ") + directory.string();
      for (const fs::path& file : files) {
        if (void* handle = open(file.string())) return {handle, file.string()};
      }
    }
  }
  for (const char* name : {"libonnxruntime.so.1", "libonnxruntime.so"}) {
    if (void* handle = open(name)) return {handle, name};
  }
  ThrowUnsupported("ONNX Runtime was not found", tried, kHow);
}

OrtLibrary Load() {
  ForbidTelemetry();
  const Opened opened = Open();
  using GetApiBase = const OrtApiBase*(ORT_API_CALL*)() noexcept;
  const auto get_base = reinterpret_cast<GetApiBase>(::dlsym(opened.handle, "OrtGetApiBase"));
  if (get_base == nullptr) {
    ThrowUnsupported("the library is not ONNX Runtime (it has no OrtGetApiBase)", opened.path, kHow);
  }
  OrtLibrary library;
  library.path = opened.path;
  if (Dl_info info; ::dladdr(reinterpret_cast<void*>(get_base), &info) != 0 && info.dli_fname != nullptr) {
    library.path = info.dli_fname;
  }
  const OrtApiBase* base = get_base();
  library.version = base->GetVersionString();
  // Asked for before GetApi, which writes to stderr when it has to refuse.
  int major = 0, minor = 0;
  if (std::sscanf(library.version.c_str(), "%d.%d", &major, &minor) != 2 ||
      (major == 1 && minor < static_cast<int>(kOrtApi)) || major < 1) {
    ThrowUnsupported("ONNX Runtime " + library.version + " is too old", library.path, kHow);
  }
  library.api = base->GetApi(kOrtApi);
  if (library.api == nullptr) {
    ThrowUnsupported("ONNX Runtime " + library.version + " does not serve API 23", library.path, kHow);
  }
  ::Ort::InitApi(library.api);
  OrtStatus* status =
      library.api->CreateEnvWithCustomLogger(Log, nullptr, ORT_LOGGING_LEVEL_ERROR, "octavo", &library.env);
  if (status != nullptr) {
    ThrowUnsupported("ONNX Runtime cannot be started", TakeMessage(*library.api, status), kHow);
  }
  return library;
}

}  // namespace

void ForbidTelemetry() { ::setenv("ORT_DISABLE_TELEMETRY", "1", 0); }

const OrtLibrary& Ort() {
  // A failed load throws and is tried again on the next call.
  static const OrtLibrary library = Load();
  return library;
}

void SetLogSink(void (*sink)(OrtLoggingLevel severity, const char* message)) { g_sink = sink; }

std::string TakeMessage(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return {};
  std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  if (const auto end = message.find('\n'); end != std::string::npos) message.resize(end);
  return message.empty() ? "unknown error" : message;
}

}  // namespace octavo::internal
