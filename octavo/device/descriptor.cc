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

// Qualcomm's HTP through onnxruntime-qnn 2.7.0 (measured with its ahead-of-time compiler and x86 emulator): quantized
// tensors in and out, u8 or u16.
constexpr std::string_view kNpu = "u8 or u16 in and out";
constexpr std::string_view kNpuMove = "moves codes; the output has the input's parameters";

constexpr OpSupport kQnnOps[] = {
    {"Conv", "", S::kInteger, "u8 or u16 activations; u8, or s8 per channel weights; int32 bias", true},
    {"ConvTranspose", "", S::kInteger, "u8 or u16 activations; u8, or s8 weights; int32 bias"},
    {"Gemm", "", S::kInteger, "alpha = beta = 1; u8, or s8 per channel weights; int32 bias", true},
    {"MatMul", "", S::kInteger, "u8, or s8 per channel weights, or two computed operands", true},

    {"Add", "", S::kInteger, kNpu},
    {"Sub", "", S::kInteger, kNpu},
    {"Mul", "", S::kInteger, kNpu},
    {"Div", "", S::kInteger, kNpu},
    {"Pow", "", S::kInteger, kNpu},
    {"Min", "", S::kInteger, kNpu},
    {"Max", "", S::kInteger, kNpu},
    {"PRelu", "", S::kInteger, kNpu},
    {"Where", "", S::kInteger, "both values u8 or both u16"},

    {"Relu", "", S::kInteger, kNpu},
    {"Clip", "", S::kInteger, kNpu},
    {"LeakyRelu", "", S::kInteger, kNpu},
    {"Elu", "", S::kInteger, kNpu},
    {"Sigmoid", "", S::kInteger, kNpu},
    {"HardSigmoid", "", S::kInteger, kNpu},
    {"HardSwish", "", S::kInteger, kNpu},
    {"Softmax", "", S::kInteger, kNpu},
    {"LogSoftmax", "", S::kInteger, kNpu},
    {"Tanh", "", S::kInteger, kNpu},
    {"Gelu", "", S::kInteger, kNpu},
    {"Exp", "", S::kInteger, kNpu},
    {"Log", "", S::kInteger, kNpu},
    {"Sqrt", "", S::kInteger, kNpu},
    {"Abs", "", S::kInteger, kNpu},
    {"Neg", "", S::kInteger, kNpu},
    {"Sin", "", S::kInteger, kNpu},
    {"Cos", "", S::kInteger, kNpu},
    {"Floor", "", S::kInteger, kNpu},
    {"Round", "", S::kInteger, kNpu},
    {"Ceil", "", S::kInteger, kNpu},

    {"AveragePool", "", S::kInteger, kNpu},
    {"GlobalAveragePool", "", S::kInteger, kNpu},
    {"GlobalMaxPool", "", S::kPassThrough, kNpuMove},
    {"MaxPool", "", S::kPassThrough, kNpuMove},
    {"ReduceMean", "", S::kInteger, kNpu},
    {"ReduceSum", "", S::kInteger, kNpu},
    {"ReduceMax", "", S::kPassThrough, kNpuMove},
    {"ReduceMin", "", S::kPassThrough, kNpuMove},

    {"LayerNormalization", "", S::kInteger, "last axis; u8 scale (s8 is refused), int32 bias", false, true},
    {"InstanceNormalization", "", S::kInteger, "u8 scale (s8 is refused), int32 bias", false, true},
    {"LpNormalization", "", S::kInteger, kNpu},
    {"LRN", "", S::kFloatOnly, "the device takes LRN in u8 only, and loses 11 dB there: it runs in fp16"},

    {"Concat", "", S::kInteger, "each input and the output in parameters of their own"},
    {"Resize", "", S::kInteger, "nearest or linear, ranks 3 to 5"},
    {"Reshape", "", S::kPassThrough, kNpuMove},
    {"Flatten", "", S::kPassThrough, kNpuMove},
    {"Squeeze", "", S::kPassThrough, kNpuMove},
    {"Unsqueeze", "", S::kPassThrough, kNpuMove},
    {"Transpose", "", S::kPassThrough, kNpuMove},
    {"Identity", "", S::kPassThrough, kNpuMove},
    {"Slice", "", S::kPassThrough, kNpuMove},
    {"Split", "", S::kPassThrough, kNpuMove},
    {"Gather", "", S::kPassThrough, kNpuMove},
    {"GatherElements", "", S::kPassThrough, kNpuMove},
    {"GatherND", "", S::kPassThrough, kNpuMove},
    {"Expand", "", S::kPassThrough, kNpuMove},
    {"Tile", "", S::kPassThrough, kNpuMove},
    {"Pad", "", S::kPassThrough, kNpuMove},
    {"TopK", "", S::kPassThrough, kNpuMove},
    {"DepthToSpace", "", S::kPassThrough, kNpuMove},
    {"SpaceToDepth", "", S::kPassThrough, kNpuMove},

    {"Erf", "", S::kFloatOnly, "the device has no Erf outside of a Gelu"},
    {"Reciprocal", "", S::kFloatOnly, "the device has no Reciprocal: write 1 / x as a Div"},
    {"LSTM", "", S::kFloatOnly, "recurrent operators are not quantized"},
    {"GRU", "", S::kFloatOnly, "recurrent operators are not quantized"},
    {"Einsum", "", S::kFloatOnly, "the device takes Einsum in float only"},
};

constexpr PluginLibrary kQnnLibrary = {
    "libonnxruntime_providers_qnn.so",
    "OCTAVO_QNN_LIBRARY",
    "qnn-2.7.0/onnxruntime_qnn",
    "libQnnHtp.so",
    "backend_path",
    24,
    "run tools/qnn, or set OCTAVO_QNN_LIBRARY to the libonnxruntime_providers_qnn.so of onnxruntime-qnn",
};
constexpr EpOption kQnnOptions[] = {
    {"htp_arch", "73", "0|68|69|73|75|79|81", "generation of the HTP that the context is made for"},
    {"soc_model", "60", "#", "number of the SoC in the QNN SDK (60: Snapdragon X Elite)"},
    {"offload_graph_io_quantization", "0", "0|1", "1: the CPU quantizes inputs and dequantizes outputs"},
    {"htp_graph_finalization_optimization_mode", "", "0|1|2|3", "3: the longest compile, the fastest graph"},
    {"htp_performance_mode", "",
     "default|burst|balanced|high_performance|high_power_saver|low_balanced|extreme_power_saver|low_power_saver|"
     "power_saver|sustained_high_performance",
     "how the device clocks itself"},
    {"rpc_control_latency", "", "#", "microseconds that a call of the device may wait"},
    {"qnn_context_priority", "", "low|normal|normal_high|high", "of the context beside others on the device"},
    {"enable_htp_spill_fill_buffer", "", "0|1", "1: contexts share the buffer for what the on-chip memory lacks"},
    {"enable_htp_fp16_precision", "", "0|1", "1: float graphs run in fp16"},
    {"vtcm_mb", "", "#", "on-chip memory for the graph"},
};

constexpr PluginLibrary kOpenVinoLibrary = {
    "libonnxruntime_providers_openvino_plugin.so",
    "OCTAVO_OPENVINO_LIBRARY",
    "openvino-1.8.1/onnxruntime_ep_openvino",
    "",
    "",
    23,
    "run tools/qnn openvino, or set OCTAVO_OPENVINO_LIBRARY to the library of onnxruntime-ep-openvino",
};
constexpr EpOption kOpenVinoOptions[] = {
    {"device_type", "", "", "CPU, GPU or NPU; where it is not set, what the provider finds"},
    {"num_of_threads", "", "#", "of inference on the CPU"},
    {"num_streams", "", "#", "requests that run at once"},
    {"precision", "", "", "of inference: FP32, FP16 or ACCURACY (as the model has it)"},
    {"model_priority", "", "", "LOW, MEDIUM, HIGH or DEFAULT, beside other models on the device"},
    {"enable_qdq_optimizer", "", "", "the provider's own pass over Q/DQ, for the NPU"},
    {"load_config", "", "", "a JSON file of OpenVINO's properties"},
};

constexpr DeviceDescriptor kDevices[] = {
    {"cpu", "CPUExecutionProvider", DType::kU8, DType::kU8, DType::kU8, true, true,
     "u8 with zero point 128: the codes of s8 plus 128, exactly the same numbers; u8 activations with s8 weights "
     "saturate "
     "on x86 without VNNI",
     kCpuOps},
    {.name = "qnn",
     .ep = "QNNExecutionProvider",
     .activation8 = DType::kU8,
     .weight8_uint8 = DType::kU8,
     .weight8_int8 = DType::kS8,
     .per_channel_int8 = true,
     .one_zero_point_per_weight = true,  // others are refused, each with its operator
     .weight_note = "",
     .ops = kQnnOps,
     .whole_graph = true,
     .static_shapes = true,
     .compiles = true,
     .integer_bias16 = true,
     .weights4 = true,
     .unsigned_activations = true,  // with s8 the biases stay on the CPU, and a CNN of 46 dB had 13
     // Measured in the emulator, one operator at a time: with another zero point than the middle one the results are
     // off by 8 to 26 steps of 16 bits (root mean square; 0.5 with the middle one). Below 2^-23 a channel's outputs
     // saturate.
     .symmetric_weights16 = true,
     .least_rescale = 0x1p-20f,
     .plugin = &kQnnLibrary,
     .options = kQnnOptions,
     .float_note = "the HTP computes float graphs in fp16"},
    // QDQ with s8 weights per channel and u8 activations is what the provider's own quantizer writes.
    {.name = "openvino",
     .ep = "OpenVINOExecutionProvider",
     .activation8 = DType::kU8,
     .weight8_uint8 = DType::kU8,
     .weight8_int8 = DType::kS8,
     .per_channel_int8 = true,
     .one_zero_point_per_weight = true,
     .weight_note = "",
     .ops = kCpuOps,
     .compiles = true,
     .plugin = &kOpenVinoLibrary,
     .options = kOpenVinoOptions},
    {.name = "dml",
     .ep = "DmlExecutionProvider",
     .activation8 = DType::kU8,
     .weight8_uint8 = DType::kU8,
     .weight8_int8 = DType::kS8,
     .per_channel_int8 = true,
     .one_zero_point_per_weight = true,
     .weight_note = "",
     .ops = kCpuOps,
     .system = "Windows"},
};

const OpSupport* Find(std::span<const OpSupport> ops, std::string_view op, std::string_view domain) {
  if (domain == "ai.onnx") domain = {};
  for (const OpSupport& row : ops) {
    if (row.op == op && row.domain == domain) return &row;
  }
  return nullptr;
}

}  // namespace

const OpSupport* DeviceDescriptor::Row(std::string_view op, std::string_view domain) const {
  return Find(ops, op, domain);
}

QuantSupport DeviceDescriptor::Support(std::string_view op, std::string_view domain) const {
  const OpSupport* row = Find(ops, op, domain);
  return row == nullptr ? QuantSupport::kFloatOnly : row->support;
}

std::string_view DeviceDescriptor::Reason(std::string_view op, std::string_view domain) const {
  const OpSupport* row = Find(ops, op, domain);
  return row == nullptr ? std::string_view(whole_graph ? "the device is not known to take this operator"
                                                       : "the device has no integer kernel for this operator")
                        : row->reason;
}

const DeviceDescriptor* FindDevice(std::string_view name) {
  for (const DeviceDescriptor& device : kDevices) {
    if (device.name == name) return &device;
  }
  return nullptr;
}

std::span<const DeviceDescriptor> Devices() { return kDevices; }

}  // namespace octavo
