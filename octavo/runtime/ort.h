// The loaded ONNX Runtime. Internal to this room: include it only from its .cc files (it needs the runtime's headers).
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <string>

namespace octavo::internal {

// The API level that Octavo is written against; newer libraries serve it too.
inline constexpr std::uint32_t kOrtApi = 23;
static_assert(ORT_API_VERSION >= kOrtApi, "ONNX Runtime headers of API 23 (1.23) or newer are needed");

struct OrtLibrary {
  const OrtApi* api = nullptr;
  std::string version;    // "1.31.1"
  std::string path;       // the file the loader opened
  OrtEnv* env = nullptr;  // one a process, never released: the library's own statics may outlive ours
};

// Loads the library on first use. Thread safe. Errors: kUnsupported as documented in session.h.
const OrtLibrary& Ort();

// The runtime reports its use to its makers, unless this variable of the environment is set: it is, unless the user has
// set it otherwise. Called before the library is loaded.
void ForbidTelemetry();

// Where the runtime's messages go beside the debug log, of every severity that the session lets through; null: nowhere.
void SetLogSink(void (*sink)(OrtLoggingLevel severity, const char* message));

// Takes ownership of `status`; "" when it is null, else the first line of its message.
std::string TakeMessage(const OrtApi& api, OrtStatus* status);

}  // namespace octavo::internal
