#include "octavo/runtime/session.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/runtime/external_data.h"
#include "octavo/runtime/mx_op.h"
#include "octavo/runtime/ort.h"
#include "octavo/runtime/plugin_session.h"
#include "octavo/runtime/run_arena.h"

namespace octavo {
namespace {

using internal::kOrtApi;
using internal::TakeMessage;

// DType is numbered as TensorProto.DataType; the runtime's enumeration is that too up to float4e2m1 (23), and leaves it
// after.
constexpr int kLastCommonDType = 23;

bool HasOrtType(DType dtype) { return dtype != DType::kUndefined && static_cast<int>(dtype) <= kLastCommonDType; }

ONNXTensorElementDataType ToOrt(DType dtype, const std::string& where) {
  if (!HasOrtType(dtype)) {
    ThrowUnsupported("ONNX Runtime has no tensors of type " + std::string(Name(dtype)), where);
  }
  return static_cast<ONNXTensorElementDataType>(static_cast<int>(dtype));
}

DType FromOrt(ONNXTensorElementDataType type) {
  const int number = static_cast<int>(type);
  return number > 0 && number <= kLastCommonDType ? static_cast<DType>(number) : DType::kUndefined;
}

// What the observer needs of the run that is going on. Kernels run on the thread that called Run (one thread inside an
// operator, sequential execution: the constructor insists), so a thread-local pointer finds it.
struct CurrentRun {
  void* context = nullptr;
  std::exception_ptr failure;
};
thread_local CurrentRun* t_run = nullptr;

class RunScope {
 public:
  explicit RunScope(CurrentRun* run) : previous_(std::exchange(t_run, run)) {}
  ~RunScope() { t_run = previous_; }
  RunScope(const RunScope&) = delete;
  RunScope& operator=(const RunScope&) = delete;

 private:
  CurrentRun* previous_;  // an observer may run another session
};

// ------------------------------------------------------------------------------------------------ the Observe operator

struct ObserveOp : OrtCustomOp {  // or Round, which has a rounder in place of the observer
  ObserveOp(const OrtApi& ort_api, Observer observe, Rounder round);
  const OrtApi& api;
  Observer observer;
  Rounder rounder;
};

struct ObserveKernel {
  const ObserveOp& op;
  std::int64_t id;
};

OrtStatus* ComputeObserve(const ObserveKernel& kernel, OrtKernelContext* context) {
  const OrtApi& api = kernel.op.api;
  const OrtValue* input = nullptr;
  if (OrtStatus* s = api.KernelContext_GetInput(context, 0, &input)) return s;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (OrtStatus* s = api.GetTensorTypeAndShape(input, &info)) return s;
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> keep(
      info, api.ReleaseTensorTypeAndShapeInfo);
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::size_t rank = 0;
  if (OrtStatus* s = api.GetTensorElementType(info, &type)) return s;
  if (OrtStatus* s = api.GetDimensionsCount(info, &rank)) return s;
  std::vector<std::int64_t> dims(rank);
  if (OrtStatus* s = api.GetDimensions(info, dims.data(), rank)) return s;
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
    return api.CreateStatus(ORT_NOT_IMPLEMENTED, "a string tensor cannot be observed");
  }
  std::size_t bytes = 0;
  if (OrtStatus* s = api.GetTensorSizeInBytes(input, &bytes)) return s;
  void* data = nullptr;
  // The C API has no const form before 1.24; nothing is written through this pointer.
  if (OrtStatus* s = api.GetTensorMutableData(const_cast<OrtValue*>(input), &data)) return s;
  OrtValue* output = nullptr;
  if (OrtStatus* s = api.KernelContext_GetOutput(context, 0, dims.data(), rank, &output)) return s;
  void* target = nullptr;
  if (OrtStatus* s = api.GetTensorMutableData(output, &target)) return s;
  if (t_run == nullptr) {
    return api.CreateStatus(ORT_FAIL, "the observer was called outside of a run on its thread");
  }
  try {
    if (kernel.op.rounder) {
      if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT &&
          kernel.op.rounder(kernel.id, {static_cast<const float*>(data), bytes / sizeof(float)},
                            static_cast<float*>(target), t_run->context)) {
        return nullptr;
      }
    } else {
      kernel.op.observer(kernel.id, FromOrt(type), dims, data, t_run->context);
    }
  } catch (...) {
    t_run->failure = std::current_exception();  // no exception may cross the runtime: Run rethrows it
    return api.CreateStatus(ORT_FAIL, "the observer failed");
  }
  if (target != data && bytes > 0) std::memcpy(target, data, bytes);
  return nullptr;
}

// The output has the input's type and shape.
OrtStatus* InferObserve(const OrtApi& api, OrtShapeInferContext* context) {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* s = api.ShapeInferContext_GetAttribute(context, "id", &attribute)) return s;
  std::int64_t id = 0;
  std::size_t size = 0;
  if (OrtStatus* s = api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &id, sizeof id, &size)) return s;
  return internal::InferSameShape(api, context, std::nullopt, "octavo_observed_" + std::to_string(id));
}

ObserveOp::ObserveOp(const OrtApi& ort_api, Observer observe, Rounder round)
    : OrtCustomOp{}, api(ort_api), observer(std::move(observe)), rounder(std::move(round)) {
  OrtCustomOp& op = *this;
  op.version = kOrtApi;
  op.GetName = [](const OrtCustomOp* self) {
    return static_cast<const ObserveOp*>(self)->rounder ? kRoundOp : kObserveOp;
  };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi* kernel_api, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatus* {
    std::int64_t id = 0;
    if (OrtStatus* s = kernel_api->KernelInfoGetAttribute_int64(info, "id", &id)) return s;
    *kernel = new ObserveKernel{static_cast<const ObserveOp&>(*self), id};
    return nullptr;
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
    return ComputeObserve(*static_cast<const ObserveKernel*>(kernel), context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<ObserveKernel*>(kernel); };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatus* {
    return InferObserve(static_cast<const ObserveOp*>(self)->api, context);
  };
  // The output IS the input (as for Reshape and Identity), whoever else reads it: nothing is copied and no activation
  // lives longer than in the bare model. Consumers that work in place look at the use count of the shared buffer.
  op.GetAliasMap = [](int** input, int** output) -> std::size_t {
    *input = new int[1]{0};
    *output = new int[1]{0};
    return 1;
  };
  op.ReleaseAliasMap = [](int* input, int* output) {
    delete[] input;
    delete[] output;
  };
  if (rounder) {  // what it changes, others may need unchanged: the runtime decides whether it works in place
    op.GetMayInplace = std::exchange(op.GetAliasMap, nullptr);
    op.ReleaseMayInplace = std::exchange(op.ReleaseAliasMap, nullptr);
  }
}

// ----------------------------------------------------------------------------------------------------------
// conversions

void Check(const OrtApi& api, OrtStatus* status, const char* what, const std::string& where) {
  if (status != nullptr) ThrowBadInput(what, where, TakeMessage(api, status));
}

std::size_t Alignment(DType dtype) {
  const int bits = BitWidth(dtype);
  return bits >= 64 ? 8 : bits >= 16 ? static_cast<std::size_t>(bits) / 8 : 1;
}

// Where in a file the tensor's bytes lie, if they do: the runtime then maps them itself, so that they are never copied
// (what it is handed as a value it copies while loading). The location is relative to "/", the folder that a session is
// given for external data.
std::optional<internal::FileRange> InFile(const TensorRef& tensor) {
  if (tensor.file == nullptr || tensor.bytes.empty()) return std::nullopt;
  const std::span<const std::byte> all = tensor.file->bytes();
  const std::less<const std::byte*> before;
  if (before(tensor.bytes.data(), all.data()) ||
      before(all.data() + all.size(), tensor.bytes.data() + tensor.bytes.size())) {
    return std::nullopt;
  }
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(tensor.file->path(), error);
  // The name may have been removed or given to another file since it was mapped; the mapping is still right.
  if (error || std::filesystem::file_size(path, error) != all.size() || error) return std::nullopt;
  return internal::FileRange{path.relative_path().string(),
                             static_cast<std::uint64_t>(tensor.bytes.data() - all.data()), tensor.bytes.size()};
}

// A runtime value that views `tensor`. `copies` keeps aligned copies of unaligned inputs alive; null: the runtime only
// copies from the view (initializers).
::Ort::Value View(const OrtApi& api, const OrtMemoryInfo* memory, const TensorRef& tensor, const std::string& where,
                  std::vector<std::vector<std::byte>>* copies) {
  const ONNXTensorElementDataType type = ToOrt(tensor.dtype, where);
  OrtValue* value = nullptr;
  if (tensor.dtype == DType::kString) {
    if (tensor.strings == nullptr || tensor.strings->size() != tensor.elements()) {
      ThrowInternal("a string tensor without its strings", where);
    }
    OrtAllocator* allocator = nullptr;
    Check(api, api.GetAllocatorWithDefaultOptions(&allocator), "ONNX Runtime failed", where);
    Check(api, api.CreateTensorAsOrtValue(allocator, tensor.dims.data(), tensor.dims.size(), type, &value),
          "ONNX Runtime refuses the tensor", where);
    ::Ort::Value owned(value);
    std::vector<const char*> pointers;
    for (const std::string& s : *tensor.strings) pointers.push_back(s.c_str());
    Check(api, api.FillStringTensor(value, pointers.data(), pointers.size()), "ONNX Runtime refuses the tensor", where);
    return owned;
  }
  const auto bytes = ByteSize(tensor.dtype, ElementCount(tensor.dims, where));
  if (!bytes || *bytes != tensor.bytes.size()) ThrowInternal("a tensor whose bytes do not fit its shape", where);
  static std::byte nothing[8];
  const std::byte* data = tensor.bytes.empty() ? nothing : tensor.bytes.data();
  if (copies != nullptr && reinterpret_cast<std::uintptr_t>(data) % Alignment(tensor.dtype) != 0) {
    copies->emplace_back(tensor.bytes.begin(), tensor.bytes.end());
    data = copies->back().data();
  }
  // The runtime writes to no input and to no initializer; its C API has no const form.
  Check(api,
        api.CreateTensorWithDataAsOrtValue(memory, const_cast<std::byte*>(data), tensor.bytes.size(),
                                           tensor.dims.data(), tensor.dims.size(), type, &value),
        "ONNX Runtime refuses the tensor", where);
  return ::Ort::Value(value);
}

TensorRef Take(const OrtApi& api, ::Ort::Value value, const std::string& name) {
  auto owner = std::make_shared<::Ort::Value>(std::move(value));
  TensorRef out;
  int is_tensor = 0;
  if (static_cast<OrtValue*>(*owner) == nullptr) ThrowUnsupported("the output is an empty optional", name);
  Check(api, api.IsTensor(*owner, &is_tensor), "ONNX Runtime failed", name);
  if (is_tensor == 0) ThrowUnsupported("the output is not a tensor", name);
  const auto info = owner->GetTensorTypeAndShapeInfo();
  out.dtype = FromOrt(info.GetElementType());
  if (out.dtype == DType::kUndefined)
    ThrowUnsupported("the output has an element type that Octavo does not know", name);
  out.dims = info.GetShape();
  if (out.dtype == DType::kString) {
    auto strings = std::make_shared<std::vector<std::string>>();
    for (std::uint64_t i = 0, n = out.elements(); i < n; ++i) strings->push_back(owner->GetStringTensorElement(i));
    out.strings = std::move(strings);
    return out;
  }
  std::size_t bytes = 0;
  void* data = nullptr;
  Check(api, api.GetTensorSizeInBytes(*owner, &bytes), "ONNX Runtime failed", name);
  Check(api, api.GetTensorMutableData(*owner, &data), "ONNX Runtime failed", name);
  out.bytes = {static_cast<const std::byte*>(data), bytes};
  out.owner = std::shared_ptr<const void>(owner, data);
  return out;
}

Type ToType(const ::Ort::TypeInfo& info) {
  Type type;
  if (info.GetONNXType() != ONNX_TYPE_TENSOR) return type;
  const auto tensor = info.GetTensorTypeAndShapeInfo();
  type.dtype = FromOrt(tensor.GetElementType());
  // To API 23 a scalar and a tensor of unknown rank look the same: neither gets a shape here.
  const std::vector<std::int64_t> dims = tensor.GetShape();
  if (dims.empty()) return type;
  const std::vector<const char*> symbols = tensor.GetSymbolicDimensions();
  std::vector<Dim> shape(dims.size());
  for (std::size_t i = 0; i < dims.size(); ++i) {
    shape[i].value = dims[i] >= 0 ? dims[i] : -1;
    if (dims[i] < 0 && i < symbols.size() && symbols[i] != nullptr) shape[i].symbol = symbols[i];
  }
  type.shape = std::move(shape);
  return type;
}

}  // namespace

std::string OrtVersion() { return internal::Ort().version; }
std::string OrtLibraryPath() { return internal::Ort().path; }

RuntimePreload::RuntimePreload() {
  internal::ForbidTelemetry();  // here: no thread may change the environment while another one reads it
  try {
    thread_ = std::thread([] {
      try {
        internal::Ort();
      } catch (const std::exception&) {
      }
    });
  } catch (const std::system_error&) {  // no thread to be had: it is loaded when it is needed
  }
}
RuntimePreload::~RuntimePreload() {
  if (thread_.joinable()) thread_.join();
}

// The arenas of a session that has one for each run: as many as ever ran at once.
class RunArenas {
 public:
  RunArenas() = default;
  ~RunArenas() {
    for (internal::RunArena* arena : all_) arena->Release();
  }
  RunArenas(const RunArenas&) = delete;
  RunArenas& operator=(const RunArenas&) = delete;

  internal::RunArena* Take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      all_.push_back(internal::RunArena::Make());
      return all_.back();
    }
    // One that holds no outputs of an earlier run, if there is one: blocks then lie where they lay before.
    const auto empty =
        std::find_if(idle_.begin(), idle_.end(), [](const internal::RunArena* arena) { return arena->Empty(); });
    std::swap(*(empty != idle_.end() ? empty : idle_.begin()), idle_.back());
    internal::RunArena* arena = idle_.back();
    idle_.pop_back();
    return arena;
  }
  void Return(internal::RunArena* arena) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(arena);
  }

 private:
  std::mutex mutex_;
  std::vector<internal::RunArena*> all_, idle_;
};

// An arena for the run that goes on.
class BorrowedArena {
 public:
  explicit BorrowedArena(RunArenas* arenas)
      : arenas_(arenas), arena_(arenas != nullptr ? arenas->Take() : nullptr), scope_(arena_) {}
  ~BorrowedArena() {
    if (arenas_ != nullptr) arenas_->Return(arena_);
  }
  BorrowedArena(const BorrowedArena&) = delete;
  BorrowedArena& operator=(const BorrowedArena&) = delete;

 private:
  RunArenas* arenas_;
  internal::RunArena* arena_;
  internal::ArenaScope scope_;
};

struct Session::Impl {
  const OrtApi& api = *internal::Ort().api;
  std::unique_ptr<RunArenas> arenas;  // null: the runtime's own
  std::string where;
  // Declared before the session, so destroyed after it: the session's kernels and weights refer to them.
  std::unique_ptr<ObserveOp> observe, round;
  ::Ort::CustomOpDomain domain{nullptr};
  std::vector<std::pair<std::string, TensorRef>> initializers;  // their files stay mapped as long as the session
  std::vector<std::pair<std::string, TensorRef>> in_memory;     // those of them that lie in no file
  std::vector<::Ort::Value> initializer_values, in_place_values;
  bool weights_in_files = false;
  ::Ort::MemoryInfo memory{nullptr};
  ::Ort::Session session{nullptr};
  std::vector<IoSpec> inputs, outputs;
  std::vector<const char*> input_names, output_names;
  std::unordered_map<std::string, std::size_t> output_index;

  void Load(const SessionOptions& options,
            const std::function<OrtStatus*(const OrtSessionOptions*, OrtSession**)>& create);
};

void Session::Impl::Load(const SessionOptions& options,
                         const std::function<OrtStatus*(const OrtSessionOptions*, OrtSession**)>& create) {
  if ((options.observer || options.rounder) && options.intra_op_threads != 1) {
    ThrowInternal("an observer needs intra_op_threads = 1: kernels must run on the thread of their run", where);
  }
  try {
    ::Ort::SessionOptions so;
    constexpr GraphOptimizationLevel kLevels[] = {ORT_DISABLE_ALL, ORT_ENABLE_BASIC, ORT_ENABLE_EXTENDED,
                                                  ORT_ENABLE_ALL};
    so.SetGraphOptimizationLevel(kLevels[static_cast<int>(options.optimization)]);
    so.SetIntraOpNumThreads(options.intra_op_threads);
    so.SetExecutionMode(ORT_SEQUENTIAL);
    so.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    if (!options.arena) so.DisableCpuMemArena();
    if (!options.memory_pattern) so.DisableMemPattern();
    ::Ort::ThrowOnError(internal::AddProjectOps(api, so));
    if (options.disable_prepacking) so.AddConfigEntry("session.disable_prepacking", "1");
    for (const auto& [key, value] : options.config) so.AddConfigEntry(key.c_str(), value.c_str());
    if (options.ep) internal::AppendEp(so, *options.ep);
    if (options.observer || options.rounder) {
      domain = ::Ort::CustomOpDomain(kObserveDomain);
      if (options.observer) {
        observe = std::make_unique<ObserveOp>(api, options.observer, nullptr);
        domain.Add(observe.get());
      }
      if (options.rounder) {
        round = std::make_unique<ObserveOp>(api, nullptr, options.rounder);
        domain.Add(round.get());
      }
      so.Add(domain);
    }
    memory = ::Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    if (options.run_arenas && internal::OfferRunArenas(internal::Ort())) {
      arenas = std::make_unique<RunArenas>();
      so.AddConfigEntry("session.use_env_allocators", "1");
    }
    for (const std::string& name : options.in_place) {
      const auto it = std::find_if(initializers.begin(), initializers.end(),
                                   [&](const auto& initializer) { return initializer.first == name; });
      if (it == initializers.end()) ThrowInternal("an initializer that is not there is to be read in place", name);
      in_place_values.push_back(View(api, memory, it->second, name, nullptr));
      so.AddInitializer(it->first.c_str(), in_place_values.back());
    }
    if (weights_in_files) so.AddConfigEntry("session.model_external_initializers_file_folder_path", "/");
    if (!in_memory.empty()) {
      std::vector<std::string> names;
      for (const auto& [name, tensor] : in_memory) {
        names.push_back(name);
        initializer_values.push_back(View(api, memory, tensor, name, nullptr));
      }
      so.AddExternalInitializers(names, initializer_values);
    }
    OrtSession* raw = nullptr;
    internal::RunArena* arena = arenas ? arenas->Take() : nullptr;  // what loading leaves there stays there
    OrtStatus* status = nullptr;
    {
      const internal::ArenaScope scope(arena);
      status = create(so, &raw);
    }
    if (status != nullptr) ThrowBadInput("ONNX Runtime refuses the model", where, TakeMessage(api, status));
    session = ::Ort::Session(raw);
    if (arena != nullptr) arena->Trim();
    ::Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
      inputs.push_back({session.GetInputNameAllocated(i, allocator).get(), ToType(session.GetInputTypeInfo(i))});
    }
    for (std::size_t i = 0; i < session.GetOutputCount(); ++i) {
      outputs.push_back({session.GetOutputNameAllocated(i, allocator).get(), ToType(session.GetOutputTypeInfo(i))});
    }
  } catch (const ::Ort::Exception& e) {
    std::string message = e.what();
    if (const auto end = message.find('\n'); end != std::string::npos) message.resize(end);
    ThrowBadInput("ONNX Runtime refuses the model", where, message);
  }
  LogDebug("session: " + where + " loaded");
  for (const IoSpec& spec : inputs) input_names.push_back(spec.name.c_str());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    output_names.push_back(outputs[i].name.c_str());
    output_index.emplace(outputs[i].name, i);
  }
}

Session::Session(const std::filesystem::path& model, const SessionOptions& options) : impl_(std::make_unique<Impl>()) {
  impl_->where = model.string();
  impl_->Load(options, [&](const OrtSessionOptions* so, OrtSession** out) {
    return impl_->api.CreateSession(internal::Ort().env, model.c_str(), so, out);
  });
}

Session::Session(std::string_view model_bytes, std::vector<std::pair<std::string, TensorRef>> initializers,
                 const SessionOptions& options)
    : impl_(std::make_unique<Impl>()) {
  impl_->where = "model in memory";
  impl_->initializers = std::move(initializers);
  std::unordered_map<std::string, internal::FileRange> ranges;
  for (const auto& entry : impl_->initializers) {
    if (std::optional<internal::FileRange> range = InFile(entry.second)) {
      ranges.emplace(entry.first, std::move(*range));
    } else {
      impl_->in_memory.push_back(entry);
    }
  }
  std::string pointed;
  if (!ranges.empty()) {
    pointed = internal::PointAtFiles(model_bytes, ranges);
    model_bytes = pointed;
    impl_->weights_in_files = true;
  }
  impl_->Load(options, [&](const OrtSessionOptions* so, OrtSession** out) {
    return impl_->api.CreateSessionFromArray(internal::Ort().env, model_bytes.data(), model_bytes.size(), so, out);
  });
}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;

const std::vector<IoSpec>& Session::inputs() const { return impl_->inputs; }
const std::vector<IoSpec>& Session::outputs() const { return impl_->outputs; }
std::vector<std::string> Session::TensorOutputs() const {
  std::vector<std::string> names;
  for (const IoSpec& spec : outputs()) {
    if (spec.type.dtype != DType::kUndefined) names.push_back(spec.name);
  }
  return names;
}

std::vector<TensorRef> Session::Run(std::span<const TensorRef> inputs, std::span<const std::string> wanted,
                                    void* run_context) const {
  const Impl& s = *impl_;
  if (inputs.size() != s.inputs.size()) {
    ThrowBadInput("the model has " + std::to_string(s.inputs.size()) + " inputs, " + std::to_string(inputs.size()) +
                      " tensors were given",
                  s.where);
  }
  std::vector<std::vector<std::byte>> copies;
  copies.reserve(inputs.size());
  std::vector<::Ort::Value> owned;
  std::vector<const OrtValue*> values;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const IoSpec& spec = s.inputs[i];
    if (inputs[i].dtype != spec.type.dtype) {
      ThrowBadInput("input '" + spec.name + "' is " + std::string(Name(spec.type.dtype)) + ", found " +
                        std::string(Name(inputs[i].dtype)),
                    s.where);
    }
    owned.push_back(View(s.api, s.memory, inputs[i], spec.name, &copies));
    values.push_back(owned.back());
  }
  std::vector<const char*> names;
  for (const std::string& name : wanted) {
    const auto it = s.output_index.find(name);
    if (it == s.output_index.end()) ThrowInternal("the model has no output '" + name + "'", s.where);
    names.push_back(s.output_names[it->second]);
  }
  if (wanted.empty()) names = s.output_names;
  std::vector<OrtValue*> raw(names.size(), nullptr);

  CurrentRun run{run_context, nullptr};
  OrtStatus* status = nullptr;
  {
    const RunScope scope(&run);
    const BorrowedArena arena(s.arenas.get());
    status = s.api.Run(const_cast<OrtSession*>(static_cast<const OrtSession*>(s.session)), nullptr,
                       s.input_names.data(), values.data(), values.size(), names.data(), names.size(), raw.data());
  }
  std::vector<::Ort::Value> results;
  for (OrtValue* value : raw) results.emplace_back(value);
  const std::string message = TakeMessage(s.api, status);
  if (run.failure) std::rethrow_exception(run.failure);
  if (!message.empty()) ThrowBadInput("ONNX Runtime failed to run the model", s.where, message);
  std::vector<TensorRef> out;
  out.reserve(results.size());
  try {
    for (std::size_t i = 0; i < results.size(); ++i) out.push_back(Take(s.api, std::move(results[i]), names[i]));
  } catch (const ::Ort::Exception& e) {
    ThrowBadInput("ONNX Runtime failed to run the model", s.where, e.what());
  }
  return out;
}

}  // namespace octavo
