#include "octavo/device/kernels.h"

#include <span>

namespace octavo {
namespace {

using K = KernelKind;
constexpr std::string_view kMs = "com.microsoft";

constexpr IntegerKernel OnCodes(std::string_view op, std::int64_t opset, bool wide) {
  return {op, K::kOnCodes, op, {}, true, wide, opset};
}
constexpr IntegerKernel QLinear(std::string_view op, std::string_view emitted, std::string_view domain = kMs) {
  return {op, K::kQLinear, emitted, domain, true, false, 10};
}

// ONNX Runtime's CPU provider, 1.31.1: each row was run on it (tests/test_rewrite.py runs them again).
constexpr IntegerKernel kCpu[] = {
    OnCodes("Reshape", 7, true),
    OnCodes("Transpose", 7, true),
    OnCodes("Flatten", 9, true),
    OnCodes("Squeeze", 7, true),
    OnCodes("Unsqueeze", 7, true),
    OnCodes("Gather", 7, true),
    OnCodes("GatherElements", 11, true),
    OnCodes("GatherND", 11, true),
    OnCodes("Slice", 7, true),
    OnCodes("Expand", 8, true),
    OnCodes("Tile", 7, true),
    OnCodes("Identity", 7, true),
    OnCodes("Split", 7, true),
    OnCodes("Concat", 7, true),
    OnCodes("MaxPool", 12, false),
    OnCodes("ReduceMax", 12, false),
    OnCodes("ReduceMin", 12, false),
    OnCodes("Resize", 11, false),
    OnCodes("DepthToSpace", 11, false),
    OnCodes("SpaceToDepth", 11, false),
    OnCodes("Pad", 11, false),
    OnCodes("Where", 9, false),
    OnCodes("Clip", 12, false),
    OnCodes("Relu", 12, false),  // as a Clip

    QLinear("Conv", "QLinearConv", {}),
    QLinear("MatMul", "QLinearMatMul", {}),
    QLinear("Gemm", "QGemm"),
    QLinear("Add", "QLinearAdd"),
    QLinear("Mul", "QLinearMul"),
    QLinear("Concat", "QLinearConcat"),
    QLinear("Where", "QLinearWhere"),
    QLinear("AveragePool", "QLinearAveragePool"),
    QLinear("GlobalAveragePool", "QLinearGlobalAveragePool"),
    QLinear("LeakyRelu", "QLinearLeakyRelu"),
    QLinear("Sigmoid", "QLinearSigmoid"),
    QLinear("Softmax", "QLinearSoftmax"),

    {"MatMul", K::kBlocks, "MatMulNBits", kMs, true, false, 7},
    {"Gather", K::kBlocks, "GatherBlockQuantized", kMs, true, false, 7},
};
// Integer inputs, float output.
constexpr IntegerKernel kCpuFloatOutput[] = {
    QLinear("MatMul", "MatMulIntegerToFloat"),
    QLinear("Gemm", "QGemm"),
};

bool IsCpu(const DeviceDescriptor& device) { return device.ep == "CPUExecutionProvider"; }

}  // namespace

const IntegerKernel* FindIntegerKernel(const DeviceDescriptor& device, std::string_view op, KernelKind kind,
                                       bool float_output) {
  if (!IsCpu(device)) return nullptr;
  for (const IntegerKernel& kernel :
       float_output ? std::span<const IntegerKernel>(kCpuFloatOutput) : std::span<const IntegerKernel>(kCpu)) {
    if (kernel.op == op && kernel.kind == kind) return &kernel;
  }
  return nullptr;
}

bool TakesCodes(const IntegerKernel& kernel, DType storage) {
  switch (storage) {
    case DType::kU8:
      return true;
    case DType::kS8:
      return kernel.signed_codes;
    case DType::kU16:
    case DType::kS16:
      return kernel.wide_codes;
    default:
      return false;
  }
}

bool SaturatesU8S8(const DeviceDescriptor& device) { return IsCpu(device) && device.weight8_int8 == DType::kU8; }
bool IgnoresWeightAxis(const DeviceDescriptor& device) { return IsCpu(device); }

}  // namespace octavo
