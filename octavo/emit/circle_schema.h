// What the writer and the verifier share of the schema. Internal to this room: include it only from its .cc files.
#pragma once

#include <circle_generated.h>
#include <flatbuffers/minireflect.h>

#include <optional>
#include <string_view>

#include "octavo/ir/type.h"

namespace octavo::internal {

// The options table of each operator ("" where it has none). The operators' numbers, the tables' numbers and their
// fields are the schema's.
struct CircleOp {
  std::string_view name, options;
};
inline constexpr CircleOp kCircleOps[] = {
    {"ADD", "AddOptions"},
    {"AVERAGE_POOL_2D", "Pool2DOptions"},
    {"CONCATENATION", "ConcatenationOptions"},
    {"CONV_2D", "Conv2DOptions"},
    {"DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"},
    {"DEPTH_TO_SPACE", "DepthToSpaceOptions"},
    {"DEQUANTIZE", "DequantizeOptions"},
    {"FLOOR", ""},
    {"FULLY_CONNECTED", "FullyConnectedOptions"},
    {"LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalizationOptions"},
    {"LOGISTIC", ""},
    {"MAX_POOL_2D", "Pool2DOptions"},
    {"MUL", "MulOptions"},
    {"RELU", ""},
    {"RELU6", ""},
    {"RESHAPE", "ReshapeOptions"},
    {"RESIZE_BILINEAR", "ResizeBilinearOptions"},
    {"SOFTMAX", "SoftmaxOptions"},
    {"SPACE_TO_DEPTH", "SpaceToDepthOptions"},
    {"TANH", ""},
    {"PAD", "PadOptions"},
    {"GATHER", "GatherOptions"},
    {"TRANSPOSE", "TransposeOptions"},
    {"MEAN", "ReducerOptions"},
    {"SUB", "SubOptions"},
    {"DIV", "DivOptions"},
    {"STRIDED_SLICE", "StridedSliceOptions"},
    {"EXP", "ExpOptions"},
    {"SPLIT", "SplitOptions"},
    {"LOG_SOFTMAX", "LogSoftmaxOptions"},
    {"CAST", "CastOptions"},
    {"PRELU", ""},
    {"MAXIMUM", "MaximumMinimumOptions"},
    {"ARG_MAX", "ArgMaxOptions"},
    {"MINIMUM", "MaximumMinimumOptions"},
    {"LESS", "LessOptions"},
    {"NEG", "NegOptions"},
    {"PADV2", "PadV2Options"},
    {"GREATER", "GreaterOptions"},
    {"GREATER_EQUAL", "GreaterEqualOptions"},
    {"LESS_EQUAL", "LessEqualOptions"},
    {"SLICE", "SliceOptions"},
    {"SIN", ""},
    {"TRANSPOSE_CONV", "TransposeConvOptions"},
    {"TILE", "TileOptions"},
    {"EQUAL", "EqualOptions"},
    {"NOT_EQUAL", "NotEqualOptions"},
    {"LOG", ""},
    {"SUM", "ReducerOptions"},
    {"SQRT", ""},
    {"RSQRT", ""},
    {"POW", "PowOptions"},
    {"ARG_MIN", "ArgMinOptions"},
    {"REDUCE_PROD", "ReducerOptions"},
    {"REDUCE_MAX", "ReducerOptions"},
    {"LOGICAL_OR", "LogicalOrOptions"},
    {"LOGICAL_AND", "LogicalAndOptions"},
    {"LOGICAL_NOT", "LogicalNotOptions"},
    {"REDUCE_MIN", "ReducerOptions"},
    {"RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"},
    {"LEAKY_RELU", "LeakyReluOptions"},
    {"ABS", "AbsOptions"},
    {"SPLIT_V", "SplitVOptions"},
    {"CEIL", ""},
    {"REVERSE_V2", "ReverseV2Options"},
    {"COS", "CosOptions"},
    {"ELU", ""},
    {"QUANTIZE", "QuantizeOptions"},
    {"ROUND", ""},
    {"HARD_SWISH", "HardSwishOptions"},
    {"SELECT_V2", "SelectV2Options"},
    {"BATCH_MATMUL", "BatchMatMulOptions"},
    {"CUMSUM", "CumsumOptions"},
    {"BROADCAST_TO", "BroadcastToOptions"},
    {"GELU", "GeluOptions"},
    {"SIGN", "SignOptions"},
};
const CircleOp* FindCircleOp(std::string_view name);

// Number of a name in an enumeration or union of the schema, and the reverse.
std::optional<std::int64_t> SchemaValue(const flatbuffers::TypeTable& table, std::string_view name);
std::string_view SchemaName(const flatbuffers::TypeTable& table, std::int64_t value);  // "" when there is none
// The fields of an options table by the union's number; null for a table that the subset has not.
const flatbuffers::TypeTable* OptionsTable(std::int64_t number);

// Tensor type of a value; nullopt when Circle has none.
std::optional<fbs::TensorType> CircleTypeOf(const Type& type);
// Bits an element takes; 0 where the payload has no size of its own (strings, MX).
int BitsOf(fbs::TensorType type);

}  // namespace octavo::internal
