// The project's own operators (domain `octavo`, version 1) for ONNX Runtime: MXFakeQuantize, QuantizeMx, DequantizeMx
// and FakeQuantize, so that models that hold them run here. Internal to this room: it needs the runtime's headers.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <optional>
#include <string>

namespace octavo::internal {

// Every session can run the domain's operators. What they compute:
//  - MXFakeQuantize, QuantizeMx: numerics/mx.h (MxFakeQuantize) along `axis`; QuantizeMx stays in f32 on the grid;
//  - DequantizeMx: its input as it is;
//  - FakeQuantize(x, scale, zero_point): (clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max) -
//    zero_point) * scale in f32, per tensor or along `axis`; NaN becomes 0.
// A bad attribute or shape is an error of the session or of the run.
// `api`: the runtime that `options` belongs to; one a process. Returns null or the runtime's error, as its own
// functions do.
OrtStatus* AddProjectOps(const OrtApi& api, OrtSessionOptions* options);

// For InferOutputShapeFn of an operator with one output of its first input's shape. `type`: of the output's elements;
// absent: the input's. A dimension that is unknown and nameless gets the name `name` and its position: the runtime
// would take it for -1.
OrtStatus* InferSameShape(const OrtApi& api, OrtShapeInferContext* context,
                          std::optional<ONNXTensorElementDataType> type, const std::string& name);

// The API level that the operators are written against.
inline constexpr std::uint32_t kOpsApi = 23;

}  // namespace octavo::internal
