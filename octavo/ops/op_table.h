// The ONE table of operators: a row each, read by placement, rewriting and the emitters. Nobody keeps a second list.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "octavo/ir/graph.h"

namespace octavo {

enum class OpCategory : std::uint8_t {
  kWeighted,       // multiplies data with weights and sums: Conv, ConvTranspose, Gemm
  kMatMul,         // a product of two tensors either of which may be computed: MatMul
  kElementwise,    // arithmetic of several tensors, element by element
  kActivation,     // a function of one tensor, element by element
  kPool,           // reduces windows or axes
  kDataMovement,   // moves, copies or drops elements; computes nothing
  kNormalization,  // statistics over an axis, then scale and shift
  kShape,          // shapes, indices, constants
  kControl,        // holds subgraphs
  kQuantized,      // quantized by its own definition (QLinearConv, DequantizeLinear, ...)
  kOther,          // known to pass through untouched, or not known at all
};
std::string_view Name(OpCategory category);

// How the parameters of the output follow from those of the inputs.
enum class ParamFlow : std::uint8_t {
  kOwn,                // the output has a range of its own
  kSameAsInput,        // the codes of data input 0 are codes of the output
  kAllInputsEqual,     // exact in codes only if all data inputs share their parameters (Concat, Where)
  kUnitRange,          // output in [0, 1] whatever the input (Softmax, Sigmoid)
  kSymmetricUnitRange  // output in [-1, 1] (Tanh)
};

// Which axis of the weight a rule speaks of.
enum class AxisRule : std::uint8_t {
  kNone,
  kZero,
  kOne,
  kLast,          // rank - 1
  kSecondToLast,  // rank - 2; 0 for rank 1
  kGemmOut,       // 0 if transB else 1
  kGemmIn,        // 1 if transB else 0
};

struct OpInfo {
  std::string_view op, domain;
  OpCategory category = OpCategory::kOther;
  std::uint8_t data_inputs = 1;   // inputs [0, n) hold data; kVariadic: all of them
  std::int8_t weight_input = -1;  // position of the weight, if it is a constant
  std::int8_t bias_input = -1;
  AxisRule channel_axis = AxisRule::kNone;     // output channels in the weight
  AxisRule contracted_axis = AxisRule::kNone;  // the axis (of one group) that is summed over
  ParamFlow flow = ParamFlow::kOwn;
  bool value_preserving = false;  // every output element is an input element (or a stated constant, as in Pad)
};
inline constexpr std::uint8_t kVariadic = 255;

// The row of an operator; for an operator that is not in the table a row of category kOther, which nothing quantizes.
const OpInfo& FindOp(std::string_view op, std::string_view domain);
inline const OpInfo& FindOp(const Node& node) { return FindOp(node.op(), node.domain()); }
bool KnownOp(std::string_view op, std::string_view domain);
std::span<const OpInfo> AllOps();

// True if input `index` of a node of this row carries data (not a shape, an index or a parameter). A Where's condition
// and a weight are not data.
bool IsDataInput(const OpInfo& info, std::size_t index);

// The axis a rule means for `node` and a weight of `rank` dimensions; nullopt when the rule does not apply.
std::optional<std::int64_t> ResolveAxis(AxisRule rule, const Node& node, std::size_t rank);

// Multiply-accumulates of one execution of a weighted or matmul node, from static shapes; 0 when a shape is not known.
// ONNX operator spec: Conv: output elements * (C/group * kernel); Gemm, MatMul: output elements * K;
// ConvTranspose: input elements * (M/group * kernel).
std::uint64_t MultiplyAccumulates(const Node& node);

// As above with the output shape (Conv, Gemm, MatMul) or input shape (ConvTranspose) seen while running.
std::uint64_t MultiplyAccumulates(const Node& node, std::uint64_t data_input_elements, std::uint64_t output_elements);

}  // namespace octavo
