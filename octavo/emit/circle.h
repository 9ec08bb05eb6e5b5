// IR -> Circle, in two steps: a lowering within the IR to operators of the domain `circle`, and a serializer that only
// writes down what it is given.
//
// An operator of the domain `circle` is named as Circle's BuiltinOperator ("CONV_2D") and has the attributes of its
// options table under the schema's names (emit/circle.fbs); an enumeration is a string ("SAME"). Every value has a
// static shape, in Circle's layouts (activations NHWC, convolution weights OHWI); its type and QuantType are the
// tensor's type and quantization parameters. An absent optional input is a null.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

inline constexpr std::string_view kCircleDomain = "circle";

struct CircleReport {
  std::map<std::string, std::int64_t> operators;  // of the file, by name
  std::int64_t integer_operators = 0;             // computing operators with quantized inputs and outputs
  std::int64_t float_operators = 0;
  // Nodes between quantized values that are computed in float, because no consumer has them in that type: "node (Op):
  // reason".
  std::vector<std::string> kept_float;
};

// Replaces the main graph of a folded model (QuantTypes on values; rewrite/passes.h) by one of `circle` operators.
//  - Graph inputs and outputs keep name, layout and type; a quantized type at the border gets QUANTIZE or DEQUANTIZE.
//  - Layouts meet in TRANSPOSE at the borders and where a shape operator needs the order of its elements, never within
//  a
//    chain of convolutions, pools and elementwise operators.
//  - Where all inputs and the output are quantized and Circle's consumers have that kernel, the operator is integer;
//    else it is float between DEQUANTIZE and QUANTIZE and stands in the report.
//  - Operators that Circle lacks are decomposed (LayerNormalization, HardSwish, grouped convolution, ...).
// Preconditions: static shapes (kUnsupported, naming the value, otherwise). Errors: kUnsupported, naming node and
// reason, for what has no form in Circle.
CircleReport LowerToCircle(Model& model);

// Whether an operator has a form in Circle, or is said in several there. Others can be spelled out before
// (rewrite/spell_float.h).
bool LowersToCircle(std::string_view op);

struct CircleWriteOptions {
  // Models whose constants pass this many bytes are written with buffer offsets: their payload follows the flatbuffer.
  std::uint64_t largest_inline = std::uint64_t{1} << 30;
};

// Writes a lowered model, whole or not at all, after both verifiers have passed it. Deterministic. Errors: kUnsupported
// for types that Circle has not; kInternal for a model that was not lowered.
void WriteCircle(const Model& model, const std::filesystem::path& path, const CircleWriteOptions& options = {});
std::string SerializeCircle(const Model& model);  // with the constants inside; for tests and small models

// The structural verifier, over the flatbuffers verifier: indices in range, buffers of the size that type and shape
// say, every tensor written once and before it is read, quantization parameters that fit type and shape, equal
// parameters where consumers take them for granted, ranks and channel counts of the weighted operators. Empty when the
// file is well-formed; else one sentence a violation. Safe on hostile bytes.
// `file_bytes`: of the whole file, where `file` is only its flatbuffer; 0: it is all there is.
std::vector<std::string> VerifyCircle(std::span<const std::byte> file, std::uint64_t file_bytes = 0);

}  // namespace octavo
