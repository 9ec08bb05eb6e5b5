// StableHLO operations as functions: each writes a line and returns the value it defines. Shapes are computed and
// checked here, once; what a call gets wrong is Error(kInternal).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/emit/stablehlo_text.h"
#include "octavo/ir/tensor.h"

namespace octavo::stablehlo {

// !quant.uniform<i8:f32, scale:zero>
struct UniformElement {
  double scale = 1;
  std::int64_t zero = 0;
};

struct Tensor {
  std::string ssa;                  // "%12"
  DType dtype = DType::kUndefined;  // with `uniform`: of the codes
  Dims dims;
  std::optional<std::uint64_t> splat;     // the bits of every element, where they are known to be equal
  std::optional<UniformElement> uniform;  // set: the type is a quantized one

  std::size_t rank() const { return dims.size(); }
  std::string type() const;
};

enum class Compare { kEq, kNe, kLt, kLe, kGt, kGe };
enum class Reduction { kAdd, kMax, kMin, kMul, kAnd, kOr };

// One spatial dimension of a window or convolution.
struct WindowDim {
  std::int64_t size = 1, stride = 1, pad_low = 0, pad_high = 0, dilation = 1, input_dilation = 1;
  std::int64_t extent() const { return (size - 1) * dilation + 1; }
};

// Where a convolution's kernel comes from. IREE (3.13) lays out a constant as its loops read it, but fuses what
// computes a kernel into the convolution, element by element and once for every output (70 times the time), or reads it
// as it lies. A computed one is therefore moved to channels-last first, behind a barrier.
enum class KernelFrom { kStored, kComputed };

class Builder {
 public:
  explicit Builder(TextWriter& text) : text_(text) {}
  TextWriter& text() { return text_; }

  std::string NewName() { return "%" + std::to_string(next_++); }
  // Writes `%n = <operation> : <types>` and gives the result.
  Tensor Define(std::string_view operation, DType dtype, Dims dims);

  // --- constants
  Tensor SplatBits(DType dtype, Dims dims, std::uint64_t bits);
  Tensor Splat(DType dtype, Dims dims, double value);  // rounded to the type
  // The tensor's data as they are; bools, 4-bit codes and empty tensors in the form that consumers take.
  // `attributes`: "" or "{...}" put on the operation.
  Tensor Constant(const TensorRef& data, std::string_view attributes = {});
  Tensor Ints(DType dtype, Dims dims, std::span<const std::int64_t> values);
  Tensor Floats(Dims dims, std::span<const float> values);

  // --- element by element; binary operands are broadcast to each other and must agree in type
  Tensor Unary(std::string_view op, const Tensor& x);
  Tensor Binary(std::string_view op, const Tensor& a, const Tensor& b);
  Tensor Add(const Tensor& a, const Tensor& b) { return Binary("add", a, b); }
  Tensor Sub(const Tensor& a, const Tensor& b) { return Binary("subtract", a, b); }
  Tensor Mul(const Tensor& a, const Tensor& b) { return Binary("multiply", a, b); }
  Tensor Div(const Tensor& a, const Tensor& b) { return Binary("divide", a, b); }
  Tensor Max(const Tensor& a, const Tensor& b) { return Binary("maximum", a, b); }
  Tensor Min(const Tensor& a, const Tensor& b) { return Binary("minimum", a, b); }
  // The same with a number, rounded to the tensor's type.
  Tensor Add(const Tensor& a, double b) { return Binary("add", a, Splat(a.dtype, {}, b)); }
  Tensor Mul(const Tensor& a, double b) { return Binary("multiply", a, Splat(a.dtype, {}, b)); }
  Tensor Div(const Tensor& a, double b) { return Binary("divide", a, Splat(a.dtype, {}, b)); }
  Tensor Max(const Tensor& a, double b) { return Binary("maximum", a, Splat(a.dtype, {}, b)); }
  Tensor Min(const Tensor& a, double b) { return Binary("minimum", a, Splat(a.dtype, {}, b)); }
  Tensor CompareTo(Compare how, const Tensor& a, const Tensor& b);
  Tensor Select(const Tensor& condition, const Tensor& a, const Tensor& b);
  // stablehlo.convert with ONNX's meaning of bool, floats cut to integers. An unsigned integer goes to float by way of
  // a wider signed one: a direct conversion that feeds a product loses its unsignedness in IREE.
  Tensor Convert(const Tensor& x, DType dtype);
  Tensor Bitcast(const Tensor& x, DType dtype);  // of equal width
  // Pairs along the last dimension, which goes, as one number of twice the width: the first is the low half.
  Tensor BitcastPairs(const Tensor& x, DType dtype);
  Tensor Barrier(const Tensor& x);                                // stablehlo.optimization_barrier
  Tensor AsUniform(const Tensor& codes, UniformElement element);  // the same bits with a quantized type
  Tensor UniformDequantize(const Tensor& x);                      // to f32; what has no quantized type stays itself

  // --- shapes
  Tensor Reshape(const Tensor& x, Dims dims);
  Tensor Transpose(const Tensor& x, std::span<const std::int64_t> permutation);
  Tensor BroadcastInDim(const Tensor& x, Dims dims, std::span<const std::int64_t> map);
  Tensor BroadcastTo(const Tensor& x, const Dims& dims);  // as numpy: aligned at the last dimension
  Tensor Slice(const Tensor& x, std::span<const std::int64_t> start, std::span<const std::int64_t> limit,
               std::span<const std::int64_t> stride);
  Tensor SliceAxis(const Tensor& x, std::size_t axis, std::int64_t start, std::int64_t limit, std::int64_t stride = 1);
  Tensor Concat(std::span<const Tensor> parts, std::size_t axis);
  Tensor Pad(const Tensor& x, const Tensor& value, std::span<const std::int64_t> low,
             std::span<const std::int64_t> high);
  Tensor Reverse(const Tensor& x, std::span<const std::int64_t> axes);
  Tensor Iota(DType dtype, Dims dims, std::size_t axis);
  // Elements of `x` along `axis` at `indices` (all in range): ONNX Gather.
  Tensor Gather(const Tensor& x, const Tensor& indices, std::size_t axis);
  // Rows of `x` [n, rest] replaced by, or combined with, rows of `updates` [m, rest] at `indices` [m, 1] (in range).
  // Without a reduction the order of equal indices is open.
  Tensor Scatter(const Tensor& x, const Tensor& indices, const Tensor& updates, std::optional<Reduction> how);
  // Row `at` (a scalar of s64, in range) of x: [n, rest..] to [1, rest..]; and x with that row replaced.
  Tensor Row(const Tensor& x, const Tensor& at);
  Tensor WithRow(const Tensor& x, const Tensor& row, const Tensor& at);
  // Sorted along the last axis, and the places (s32) where the elements stood. Equal elements keep their order.
  std::pair<Tensor, Tensor> Sorted(const Tensor& x, bool descending);

  // --- control; what a body defines is known inside it alone
  using StepBody = std::function<std::vector<Tensor>(const Tensor& step, std::span<const Tensor> state)>;
  using BranchBody = std::function<std::vector<Tensor>()>;
  using StateBody = std::function<std::vector<Tensor>(std::span<const Tensor> state)>;
  using StateTest = std::function<Tensor(std::span<const Tensor> state)>;
  // The state once `goes_on`, a scalar of bool, is false; the body keeps its types.
  std::vector<Tensor> While(std::span<const Tensor> state, const StateTest& goes_on, const StateBody& body);
  // The state after `count` steps (s64, from 0); the body keeps its types.
  std::vector<Tensor> Repeat(std::int64_t count, std::span<const Tensor> state, const StepBody& body);
  // Both branches give `count` tensors, of the same types.
  std::vector<Tensor> If(const Tensor& condition, std::size_t count, const BranchBody& yes, const BranchBody& no);

  // --- sums and products
  Tensor Reduce(const Tensor& x, std::span<const std::int64_t> axes, Reduction how);      // the axes go
  Tensor ReduceKeep(const Tensor& x, std::span<const std::int64_t> axes, Reduction how);  // the axes become 1
  // `window`: one entry a dimension of x.
  Tensor ReduceWindow(const Tensor& x, std::span<const WindowDim> window, Reduction how);
  // The product of two quantized types is one of i32 with the product of their scales. Result dimensions: batch, then
  // those of a, then those of b.
  Tensor Dot(const Tensor& a, const Tensor& b, std::span<const std::int64_t> batch_a,
             std::span<const std::int64_t> batch_b, std::span<const std::int64_t> contract_a,
             std::span<const std::int64_t> contract_b);
  // input: [N, C, spatial...], w: [O, C/groups, spatial...].
  Tensor Convolution(const Tensor& input, const Tensor& w, std::span<const WindowDim> given, std::int64_t groups,
                     KernelFrom from);

 private:
  TextWriter& text_;
  std::uint64_t next_ = 0;
};

// Shape that numpy broadcasting gives; nullopt when the two do not go together.
std::optional<Dims> BroadcastShape(const Dims& a, const Dims& b);
// The bits of `value` in a type, rounded to nearest even; integers saturate.
std::uint64_t BitsOf(DType dtype, double value);

}  // namespace octavo::stablehlo
