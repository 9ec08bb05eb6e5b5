#include "octavo/device/descriptor.h"

namespace octavo {
namespace {

using S = QuantSupport;
constexpr std::string_view kMs = "com.microsoft";

// ONNX Runtime's CPU execution provider, 1.31.1: what its selectors fuse by themselves at load (measured).
constexpr OpSupport kCpuOps[] = {
    {"Conv", "", S::kInteger, "QLinearConv needs u8 input, 8-bit weights and u8 output"},
    {"MatMul", "", S::kIntegerFloatOut, "MatMulIntegerToFloat: quantized inputs, float output"},
    {"Gemm", "", S::kIntegerFloatOut, "QGemm: quantized inputs, float output, alpha = beta = 1"},
    {"Add", "", S::kInteger, "QLinearAdd: all u8 or all s8"},
    {"Mul", "", S::kInteger, "QLinearMul: all u8 or all s8"},
    {"Concat", "", S::kInteger, "QLinearConcat: all u8 or all s8"},
    {"Where", "", S::kInteger, "QLinearWhere: all u8 or all s8"},
    {"AveragePool", "", S::kInteger, "QLinearAveragePool: input and output of one type"},
    {"GlobalAveragePool", "", S::kInteger, "QLinearGlobalAveragePool: input and output of one type"},
    {"LeakyRelu", "", S::kInteger, "QLinearLeakyRelu: input and output of one type"},
    {"Sigmoid", "", S::kInteger, "QLinearSigmoid: input and output of one type"},
    {"Softmax", "", S::kInteger, "QLinearSoftmax: input and output of one type"},

    {"Reshape", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Transpose", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Flatten", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Squeeze", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Unsqueeze", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Gather", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Slice", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Expand", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Tile", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Identity", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"Split", "", S::kPassThrough, "moves codes: equal scalar parameters on both sides"},
    {"MaxPool", "", S::kPassThrough, "selects codes: 8-bit types only"},
    {"ReduceMax", "", S::kPassThrough, "selects codes: 8-bit types only"},
    {"ReduceMin", "", S::kPassThrough, "selects codes: 8-bit types only"},
    {"Resize", "", S::kPassThrough, "selects codes: 8-bit types, mode nearest only"},
    {"DepthToSpace", "", S::kPassThrough, "selects codes: 8-bit types only"},

    {"ConvTranspose", "", S::kFloatOnly, "the runtime has no integer ConvTranspose"},
    {"Pad", "", S::kFloatOnly, "the runtime does not fuse Pad with its Q/DQ"},
    {"Relu", "", S::kFloatOnly, "a Relu that no convolution absorbs runs in float"},
    {"Clip", "", S::kFloatOnly, "a Clip that no convolution absorbs runs in float"},
    {"SpaceToDepth", "", S::kFloatOnly, "the runtime does not fuse SpaceToDepth with its Q/DQ"},
    {"GatherND", "", S::kFloatOnly, "the runtime does not fuse GatherND with its Q/DQ"},
    {"ReduceMean", "", S::kFloatOnly, "the runtime does not fuse ReduceMean with its Q/DQ"},
    {"Sub", "", S::kFloatOnly, "the runtime has no integer Sub"},
    {"Div", "", S::kFloatOnly, "the runtime has no integer Div"},
    {"Min", "", S::kFloatOnly, "the runtime does not fuse Min with its Q/DQ"},
    {"Max", "", S::kFloatOnly, "the runtime does not fuse Max with its Q/DQ"},
    {"Pow", "", S::kFloatOnly, "the runtime has no integer Pow"},
    {"PRelu", "", S::kFloatOnly, "the runtime has no integer PRelu"},
    {"Tanh", "", S::kFloatOnly, "the runtime has no integer Tanh"},
    {"Gelu", "", S::kFloatOnly, "the runtime has no integer Gelu"},
    {"Exp", "", S::kFloatOnly, "the runtime has no integer Exp"},
    {"Erf", "", S::kFloatOnly, "the runtime has no integer Erf"},
    {"Neg", "", S::kFloatOnly, "the runtime has no integer Neg"},
    {"Abs", "", S::kFloatOnly, "the runtime has no integer Abs"},
    {"LayerNormalization", "", S::kFloatOnly, "the runtime has no integer LayerNormalization"},
    {"FusedConv", kMs, S::kFloatOnly, "fused by a runtime already: quantize the model it was made from"},
};

constexpr DeviceDescriptor kDevices[] = {
    {"cpu", "CPUExecutionProvider", DType::kU8, DType::kU8, DType::kU8, true, true,
     "u8 with zero point 128: the codes of s8 plus 128, exactly the same numbers; u8 activations with s8 weights "
     "saturate "
     "on x86 without VNNI",
     kCpuOps},
};

const OpSupport* Find(std::span<const OpSupport> ops, std::string_view op, std::string_view domain) {
  if (domain == "ai.onnx") domain = {};
  for (const OpSupport& row : ops) {
    if (row.op == op && row.domain == domain) return &row;
  }
  return nullptr;
}

}  // namespace

QuantSupport DeviceDescriptor::Support(std::string_view op, std::string_view domain) const {
  const OpSupport* row = Find(ops, op, domain);
  return row == nullptr ? QuantSupport::kFloatOnly : row->support;
}

std::string_view DeviceDescriptor::Reason(std::string_view op, std::string_view domain) const {
  const OpSupport* row = Find(ops, op, domain);
  return row == nullptr ? std::string_view("the device has no integer kernel for this operator") : row->reason;
}

const DeviceDescriptor* FindDevice(std::string_view name) {
  for (const DeviceDescriptor& device : kDevices) {
    if (device.name == name) return &device;
  }
  return nullptr;
}

std::span<const DeviceDescriptor> Devices() { return kDevices; }

}  // namespace octavo
