#include "octavo/runtime/plugin.h"

#include <map>
#include <mutex>
#include <system_error>

#include "octavo/base/error.h"
#include "octavo/runtime/plugin_session.h"

namespace octavo {
namespace {

using internal::TakeMessage;

constexpr std::size_t kMostMessages = 20000;
constexpr std::size_t kMostMessageBytes = 2000;

std::mutex g_log_mutex;
std::vector<EpMessage>* g_log = nullptr;

void Collect(OrtLoggingLevel severity, const char* message) {
  const std::lock_guard lock(g_log_mutex);
  if (g_log == nullptr || message == nullptr || g_log->size() >= kMostMessages) return;
  g_log->push_back({severity >= ORT_LOGGING_LEVEL_ERROR, std::string(message).substr(0, kMostMessageBytes)});
}

// Registering a library twice under one name is an error of the runtime.
void Register(const std::string& ep, const std::filesystem::path& library) {
  static std::map<std::string, std::filesystem::path> registered;
  if (const auto it = registered.find(ep); it != registered.end()) {
    if (it->second == library) return;
    ThrowInternal("two libraries for one execution provider", ep);
  }
  std::error_code error;
  if (!std::filesystem::is_regular_file(library, error)) {
    ThrowUnsupported("the library of " + ep + " was not found", library.string());
  }
  const internal::OrtLibrary& ort = internal::Ort();
  if (OrtStatus* status = ort.api->RegisterExecutionProviderLibrary(ort.env, ep.c_str(), library.c_str())) {
    ThrowUnsupported("the library of " + ep + " cannot be loaded", library.string(), TakeMessage(*ort.api, status));
  }
  registered.emplace(ep, library);
}

std::vector<const OrtEpDevice*> DevicesOf(const std::string& ep) {
  const internal::OrtLibrary& ort = internal::Ort();
  const OrtEpDevice* const* devices = nullptr;
  std::size_t count = 0;
  if (OrtStatus* status = ort.api->GetEpDevices(ort.env, &devices, &count)) {
    ThrowUnsupported("the runtime cannot list its devices", ep, TakeMessage(*ort.api, status));
  }
  std::vector<const OrtEpDevice*> found;
  for (std::size_t i = 0; i < count; ++i) {
    if (ort.api->EpDevice_EpName(devices[i]) == ep) found.push_back(devices[i]);
  }
  return found;
}

std::string Text(const char* text) { return text == nullptr ? "" : text; }

}  // namespace

std::vector<EpDevice> EpDevices(const std::string& ep, const std::filesystem::path& library) {
  Register(ep, library);
  const OrtApi& api = *internal::Ort().api;
  std::vector<EpDevice> out;
  for (const OrtEpDevice* device : DevicesOf(ep)) {
    EpDevice row;
    row.ep = ep;
    row.vendor = Text(api.EpDevice_EpVendor(device));
    if (const OrtKeyValuePairs* metadata = api.EpDevice_EpMetadata(device)) {
      row.version = Text(api.GetKeyValue(metadata, "version"));
    }
    if (const OrtHardwareDevice* hardware = api.EpDevice_Device(device)) {
      constexpr const char* kTypes[] = {"cpu", "gpu", "npu"};
      const auto type = static_cast<unsigned>(api.HardwareDevice_Type(hardware));
      row.hardware = type < 3 ? kTypes[type] : "other";
      row.hardware_vendor = Text(api.HardwareDevice_Vendor(hardware));
    }
    out.push_back(std::move(row));
  }
  return out;
}

EpLog::EpLog() {
  {
    const std::lock_guard lock(g_log_mutex);
    if (g_log != nullptr) ThrowInternal("two collectors of provider messages");
    g_log = new std::vector<EpMessage>;
  }
  internal::SetLogSink(Collect);
}

EpLog::~EpLog() {
  internal::SetLogSink(nullptr);
  const std::lock_guard lock(g_log_mutex);
  delete g_log;
  g_log = nullptr;
}

std::vector<EpMessage> EpLog::Take() {
  const std::lock_guard lock(g_log_mutex);
  return std::exchange(*g_log, {});
}

namespace internal {

void AppendEp(OrtSessionOptions* options, const EpSpec& ep) {
  Register(ep.name, ep.library);
  const OrtLibrary& ort = Ort();
  const std::vector<const OrtEpDevice*> devices = DevicesOf(ep.name);
  if (devices.empty()) ThrowUnsupported(ep.name + " finds no device on this machine", ep.library.string());
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : ep.options) {
    keys.push_back(key.c_str());
    values.push_back(value.c_str());
  }
  if (OrtStatus* status = ort.api->SessionOptionsAppendExecutionProvider_V2(
          options, ort.env, devices.data(), devices.size(), keys.data(), values.data(), keys.size())) {
    ThrowUnsupported(ep.name + " refuses its options", ep.library.string(), TakeMessage(*ort.api, status));
  }
  if (!ep.cpu_fallback) {
    if (OrtStatus* status = ort.api->AddSessionConfigEntry(options, "session.disable_cpu_ep_fallback", "1")) {
      ThrowUnsupported("the runtime refuses a session option", ep.name, TakeMessage(*ort.api, status));
    }
  }
}

}  // namespace internal

void CompileForEp(const std::filesystem::path& model, const std::filesystem::path& out, const EpSpec& ep, bool embed) {
  const internal::OrtLibrary& ort = internal::Ort();
  const OrtApi& api = *ort.api;
  const OrtCompileApi* compile = api.GetCompileApi();
  if (compile == nullptr) ThrowUnsupported("ONNX Runtime " + ort.version + " has no Compile API", ort.path);
  const auto check = [&](OrtStatus* status, const char* what) {
    if (status != nullptr) ThrowUnsupported(what, ep.name, TakeMessage(api, status));
  };
  OrtSessionOptions* raw = nullptr;
  check(api.CreateSessionOptions(&raw), "the runtime has no session options");
  const std::unique_ptr<OrtSessionOptions, decltype(api.ReleaseSessionOptions)> options(raw, api.ReleaseSessionOptions);
  check(api.SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_VERBOSE), "the runtime refuses a log level");
  internal::AppendEp(raw, ep);
  OrtModelCompilationOptions* raw_compile = nullptr;
  check(compile->CreateModelCompilationOptionsFromSessionOptions(ort.env, raw, &raw_compile),
        "the compiler refuses its options");
  const std::unique_ptr<OrtModelCompilationOptions, decltype(compile->ReleaseModelCompilationOptions)> job(
      raw_compile, compile->ReleaseModelCompilationOptions);
  check(compile->ModelCompilationOptions_SetInputModelPath(raw_compile, model.c_str()), "the model cannot be compiled");
  check(compile->ModelCompilationOptions_SetOutputModelPath(raw_compile, out.c_str()), "the model cannot be compiled");
  check(compile->ModelCompilationOptions_SetEpContextEmbedMode(raw_compile, embed), "the model cannot be compiled");
  check(compile->CompileModel(ort.env, raw_compile), "the model cannot be compiled");
}

}  // namespace octavo
