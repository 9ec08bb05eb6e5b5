#include "octavo/runtime/mx_op.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "octavo/numerics/mx.h"

namespace octavo::internal {
namespace {

enum class Kind { kFake, kQuantize, kDequantize, kAffine };
constexpr const char* kNames[] = {"MXFakeQuantize", "QuantizeMx", "DequantizeMx", "FakeQuantize"};

struct ProjectOp : OrtCustomOp {
  explicit ProjectOp(Kind k);
  Kind kind;
};

struct Kernel {
  Kind kind = Kind::kFake;
  const MxFormat* format = nullptr;
  MxRounding rounding = MxRounding::kAway;
  std::int64_t axis = 0, block = 32;
  bool per_axis = false;
  float low = 0, high = 255;
};

// Set once, before the first kernel is made: a process has one runtime.
std::atomic<const OrtApi*> g_api{nullptr};
const OrtApi& Api() { return *g_api.load(std::memory_order_acquire); }

OrtStatus* Fail(const std::string& text) { return Api().CreateStatus(ORT_INVALID_ARGUMENT, text.c_str()); }

// `fallback` stays where the attribute is absent.
void ReadInt(const OrtKernelInfo* info, const char* name, std::int64_t& value) {
  std::int64_t read = 0;
  if (OrtStatus* s = Api().KernelInfoGetAttribute_int64(info, name, &read))
    Api().ReleaseStatus(s);
  else
    value = read;
}
void ReadText(const OrtKernelInfo* info, const char* name, std::string& value) {
  std::size_t size = 0;
  if (OrtStatus* s = Api().KernelInfoGetAttribute_string(info, name, nullptr, &size)) {
    Api().ReleaseStatus(s);
    return;
  }
  std::string text(size, '\0');
  if (OrtStatus* s = Api().KernelInfoGetAttribute_string(info, name, text.data(), &size)) {
    Api().ReleaseStatus(s);
    return;
  }
  text.resize(std::strlen(text.c_str()));
  value = std::move(text);
}

OrtStatus* Create(Kind kind, const OrtKernelInfo* info, void** out) {
  auto kernel = std::make_unique<Kernel>();
  kernel->kind = kind;
  if (kind == Kind::kAffine) {
    std::int64_t low = 0, high = 255, axis = INT64_MIN;
    ReadInt(info, "quant_min", low);
    ReadInt(info, "quant_max", high);
    ReadInt(info, "axis", axis);
    if (low >= high || low < -(std::int64_t{1} << 23) || high > (std::int64_t{1} << 23))
      return Fail("FakeQuantize: bad quant_min or quant_max");
    kernel->low = static_cast<float>(low);
    kernel->high = static_cast<float>(high);
    kernel->per_axis = axis != INT64_MIN;
    kernel->axis = kernel->per_axis ? axis : 0;
  } else {
    std::string format, rounding = "away", shared = "floor";
    kernel->axis = -1;
    ReadText(info, "elem_format", format);
    ReadText(info, "rounding", rounding);
    ReadText(info, "shared_exponent", shared);
    ReadInt(info, "axis", kernel->axis);
    kernel->format = FindMxFormat(format);
    if (kernel->format != nullptr) kernel->block = kernel->format->block;
    ReadInt(info, "block_size", kernel->block);
    const std::string op = kNames[static_cast<int>(kind)];
    if (kernel->format == nullptr) return Fail(op + ": unknown elem_format '" + format + "'");
    if (rounding != "away" && rounding != "even") return Fail(op + ": rounding must be away or even");
    if (shared != "floor") return Fail(op + ": shared_exponent must be floor");
    if (kernel->block < 1) return Fail(op + ": block_size must be positive");
    kernel->rounding = rounding == "even" ? MxRounding::kEven : MxRounding::kAway;
  }
  *out = kernel.release();
  return nullptr;
}

struct Tensor {
  const OrtValue* value = nullptr;
  std::vector<std::int64_t> dims;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  void* data = nullptr;
};

OrtStatus* Read(OrtKernelContext* context, std::size_t i, Tensor& t) {
  const OrtApi& api = Api();
  if (OrtStatus* s = api.KernelContext_GetInput(context, i, &t.value)) return s;
  if (t.value == nullptr) return nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (OrtStatus* s = api.GetTensorTypeAndShape(t.value, &info)) return s;
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> keep(
      info, api.ReleaseTensorTypeAndShapeInfo);
  if (OrtStatus* s = api.GetTensorElementType(info, &t.type)) return s;
  std::size_t rank = 0;
  if (OrtStatus* s = api.GetDimensionsCount(info, &rank)) return s;
  t.dims.resize(rank);
  if (OrtStatus* s = api.GetDimensions(info, t.dims.data(), rank)) return s;
  return api.GetTensorMutableData(const_cast<OrtValue*>(t.value), &t.data);
}

std::size_t Count(const std::vector<std::int64_t>& dims, std::size_t from, std::size_t to) {
  std::size_t n = 1;
  for (std::size_t i = from; i < to; ++i) n *= static_cast<std::size_t>(dims[i]);
  return n;
}

std::vector<float> Numbers(const Tensor& t) {
  std::vector<float> out(Count(t.dims, 0, t.dims.size()));
  const auto take = [&](auto zero) {
    const auto* p = static_cast<const decltype(zero)*>(t.data);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(p[i]);
  };
  switch (t.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      take(0.0f);
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      take(std::int64_t{0});
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      take(std::int32_t{0});
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
      take(std::int16_t{0});
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      take(std::uint16_t{0});
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      take(std::int8_t{0});
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      take(std::uint8_t{0});
      break;
    default:
      out.clear();
  }
  return out;
}

OrtStatus* Compute(const Kernel& k, OrtKernelContext* context) {
  const OrtApi& api = Api();
  const std::string op = kNames[static_cast<int>(k.kind)];
  Tensor x;
  if (OrtStatus* s = Read(context, 0, x)) return s;
  OrtValue* output = nullptr;
  if (OrtStatus* s = api.KernelContext_GetOutput(context, 0, x.dims.data(), x.dims.size(), &output)) return s;
  void* target = nullptr;
  if (OrtStatus* s = api.GetTensorMutableData(output, &target)) return s;
  const auto* in = static_cast<const float*>(x.data);
  auto* out = static_cast<float*>(target);
  const std::size_t n = Count(x.dims, 0, x.dims.size());
  const auto rank = static_cast<std::int64_t>(x.dims.size());
  if (k.kind == Kind::kDequantize) {
    if (n > 0 && in != out) std::memcpy(out, in, n * sizeof(float));
    return nullptr;
  }
  const std::int64_t axis = k.axis < 0 ? k.axis + rank : k.axis;
  if ((k.per_axis || k.kind != Kind::kAffine) && (axis < 0 || axis >= rank)) {
    return Fail(op + ": axis " + std::to_string(k.axis) + " is outside of a tensor of rank " + std::to_string(rank));
  }
  if (k.kind != Kind::kAffine) {
    MxShape shape;
    shape.block = static_cast<std::size_t>(k.block);
    shape.n = static_cast<std::size_t>(x.dims[static_cast<std::size_t>(axis)]);
    shape.outer = Count(x.dims, 0, static_cast<std::size_t>(axis));
    shape.inner = Count(x.dims, static_cast<std::size_t>(axis) + 1, x.dims.size());
    if (n > 0) MxFakeQuantize(in, shape, *k.format, k.rounding, out);
    return nullptr;
  }
  Tensor scale, zero;
  if (OrtStatus* s = Read(context, 1, scale)) return s;
  if (OrtStatus* s = Read(context, 2, zero)) return s;
  const std::vector<float> scales = Numbers(scale);
  std::vector<float> zeros(scales.size(), 0.0f);
  if (zero.value != nullptr) zeros = Numbers(zero);
  const std::size_t channels = k.per_axis ? static_cast<std::size_t>(x.dims[static_cast<std::size_t>(axis)]) : 1;
  if ((scales.size() != channels && scales.size() != 1) || zeros.size() != scales.size()) {
    return Fail("FakeQuantize: " + std::to_string(scales.size()) + " scales and " + std::to_string(zeros.size()) +
                " zero points for " + std::to_string(channels) + " channels");
  }
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (!(scales[i] > 0) || std::isinf(scales[i])) return Fail("FakeQuantize: a scale is not finite and above 0");
    if (!(zeros[i] >= k.low && zeros[i] <= k.high))
      return Fail("FakeQuantize: a zero point lies outside of quant_min and quant_max");
  }
  const std::size_t inner = k.per_axis ? Count(x.dims, static_cast<std::size_t>(axis) + 1, x.dims.size()) : n;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t c = scales.size() == 1 ? 0 : i / inner % channels;
    const float q = std::nearbyint(in[i] / scales[c]) + zeros[c];
    const float clamped = std::isnan(q) ? zeros[c] : std::fmin(std::fmax(q, k.low), k.high);
    out[i] = (clamped - zeros[c]) * scales[c];
  }
  return nullptr;
}

// The output is f32 of the input's shape.
OrtStatus* Infer(OrtShapeInferContext* context) {
  static std::atomic<std::uint64_t> counter{0};
  return InferSameShape(Api(), context, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "octavo_mx_" + std::to_string(counter++));
}

ProjectOp::ProjectOp(Kind k) : OrtCustomOp{}, kind(k) {
  OrtCustomOp& op = *this;
  op.version = kOpsApi;
  op.GetName = [](const OrtCustomOp* self) {
    return kNames[static_cast<int>(static_cast<const ProjectOp*>(self)->kind)];
  };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp* self) -> std::size_t {
    return static_cast<const ProjectOp*>(self)->kind == Kind::kAffine ? 3 : 1;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t i) {
    return i == 2 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t i) {
    return i == 2 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatus* {
    return Create(static_cast<const ProjectOp*>(self)->kind, info, kernel);
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
    return Compute(*static_cast<const Kernel*>(kernel), context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatus* {
    return Infer(context);
  };
}

}  // namespace

OrtStatus* InferSameShape(const OrtApi& api, OrtShapeInferContext* context,
                          std::optional<ONNXTensorElementDataType> type, const std::string& name) {
  OrtTensorTypeAndShapeInfo* input = nullptr;  // owned by the context
  if (OrtStatus* s = api.ShapeInferContext_GetInputTypeShape(context, 0, &input)) return s;
  std::size_t rank = 0;
  if (OrtStatus* s = api.GetDimensionsCount(input, &rank)) return s;
  if (rank == 0) return nullptr;  // how an unknown rank reads, too. The element type is inferred without our help.
  std::vector<std::int64_t> dims(rank);
  if (OrtStatus* s = api.GetDimensions(input, dims.data(), rank)) return s;
  std::vector<const char*> symbols(rank, nullptr);
  if (OrtStatus* s = api.GetSymbolicDimensions(input, symbols.data(), rank)) return s;
  std::vector<std::string> names(rank);
  for (std::size_t i = 0; i < rank; ++i) {
    if (symbols[i] != nullptr) names[i] = symbols[i];
    if (dims[i] < 0 && names[i].empty()) names[i] = name + "_" + std::to_string(i);
    symbols[i] = names[i].c_str();
  }
  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  if (OrtStatus* s = api.GetTensorElementType(input, &element)) return s;
  OrtTensorTypeAndShapeInfo* output = nullptr;
  if (OrtStatus* s = api.CreateTensorTypeAndShapeInfo(&output)) return s;
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> keep(
      output, api.ReleaseTensorTypeAndShapeInfo);
  if (OrtStatus* s = api.SetTensorElementType(output, type.value_or(element))) return s;
  if (OrtStatus* s = api.SetDimensions(output, dims.data(), rank)) return s;
  if (OrtStatus* s = api.SetSymbolicDimensions(output, symbols.data(), rank)) return s;
  return api.ShapeInferContext_SetOutputTypeShape(context, 0, output);
}

OrtStatus* AddProjectOps(const OrtApi& api, OrtSessionOptions* options) {
  g_api.store(&api, std::memory_order_release);
  // One a process, never released: sessions refer to it until the runtime goes.
  static OrtCustomOpDomain* domain = nullptr;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    if (OrtStatus* s = api.CreateCustomOpDomain("octavo", &made)) return s;
    for (const Kind kind : {Kind::kFake, Kind::kQuantize, Kind::kDequantize, Kind::kAffine}) {
      if (OrtStatus* s = api.CustomOpDomain_Add(made, new ProjectOp(kind))) return s;
    }
    domain = made;
  }
  return api.AddCustomOpDomain(options, domain);
}

}  // namespace octavo::internal
