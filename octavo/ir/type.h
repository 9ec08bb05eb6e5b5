// Types of values: `Type{expressed dtype, shape, optional quantization}` - the one idea of the design.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "octavo/ir/dtype.h"
#include "octavo/ir/tensor.h"

namespace octavo {

// One dimension: known (value >= 0), symbolic (value < 0, symbol set) or unknown (value < 0, symbol empty).
struct Dim {
  std::int64_t value = -1;
  std::string symbol;
  bool known() const { return value >= 0; }
  bool operator==(const Dim&) const = default;
};

// Affine quantization, ONNX QuantizeLinear semantics (operator spec, opset 21):
//   q = saturate(round_half_even(x / scale) + zero_point),  x ~ (q - zero_point) * scale.
// Granularity: per tensor (axis unset, one scale); per axis (axis set, block 0, one scale an index); blocked
// (axis set, block > 0: one scale per `block` elements along axis).
struct Affine {
  DType storage = DType::kU8;        // integer type of the codes (2..32 bits), or an 8-bit float
  std::optional<std::int64_t> axis;  // non-negative
  std::int64_t block = 0;
  TensorRef scale;  // f32, f16 or bf16: its dtype is part of the semantics; [] or [1] or [C] or blocked shape
  std::optional<TensorRef> zero_point;  // dtype == storage, shape of scale; absent means 0

  bool per_tensor() const { return !axis.has_value(); }
};

// Bit-equality of everything that QuantizeLinear / DequantizeLinear read (absent zero point equals an all-zero one;
// [] equals [1] for per-tensor parameters).
bool SameParams(const Affine& a, const Affine& b);

// A GGML block format (Q8_0, Q4_K, ...); rows of blocks run along `axis`. See numerics for the layouts.
struct GgmlBlock {
  std::string format;
  std::int64_t axis = 0;
};

// An OCP MX format (MXINT8, MXFP4, ...); shared exponents along `axis`, `block` elements each.
struct Mx {
  std::string format;
  std::int64_t axis = 0;
  std::int64_t block = 32;
};

struct QuantType {
  enum class Kind { kAffine, kGgml, kMx } kind = Kind::kAffine;
  Affine affine;
  GgmlBlock ggml;
  Mx mx;
};
bool SameParams(const QuantType& a, const QuantType& b);

struct Type {
  DType dtype = DType::kUndefined;        // what the value means (f32 for a quantized value)
  std::optional<std::vector<Dim>> shape;  // nullopt: rank unknown
  std::optional<QuantType> quant;         // how it is stored, if quantized
  std::string opaque;                     // serialized TypeProto of a non-tensor value (sequence, map, optional)
};

// Bit-equality of all fields, tensors compared by content.
bool SameType(const Type& a, const Type& b);

// Type of unquantized data: its dtype and its dims.
Type TypeOf(const TensorRef& data);

// "f32[1,3,?,width]", "f32[*]" when the rank is unknown; a quantized type adds a summary: "f32[8,3] # s8(axis=0)".
std::string ToString(const Type& type);
// Dimensions when all are known.
std::optional<Dims> StaticShape(const Type& type);

}  // namespace octavo
