// The lowering to Circle, shared by its files. Internal to this room.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/emit/circle.h"
#include "octavo/ir/graph.h"

namespace octavo::internal {

// Where the channel axis of a value of rank 3 and more stands: as in ONNX (axis 1), or last. One layout for lower
// ranks.
enum class Layout : std::uint8_t { kFirst = 0, kLast = 1 };

using Option = std::variant<std::int64_t, float, std::string>;
using Attributes = std::vector<std::pair<std::string, Option>>;

// What the integer kernels of the consumers take.
enum class Storage : std::uint8_t { kFloat, kU8, kS8, kS16, kMx, kOther };
Storage StorageOf(const Type& type);

std::vector<std::int64_t> ToLast(std::size_t rank);   // permutation first -> last: 0, 2, .., 1
std::vector<std::int64_t> ToFirst(std::size_t rank);  // its inverse
Dims Permuted(const Dims& dims, std::span<const std::int64_t> perm);
// The numbers of codes, blocks along an axis too; `where` names them in errors.
TensorRef Dequantized(const TensorRef& codes, const Affine& affine, const std::string& where);
TensorRef PermutedData(const TensorRef& data, std::span<const std::int64_t> perm);
QuantType PermutedQuant(QuantType quant, std::span<const std::int64_t> perm);
Type MakeType(DType dtype, const Dims& dims, std::optional<QuantType> quant = std::nullopt);
QuantType PerTensor(DType storage, float scale, std::int64_t zero_point);
bool SameQuant(const Type& a, const Type& b);
Dims ShapeOf(const Value* v);  // precondition: static
std::vector<float> ScalesOf(const Type& type);
bool HasZeroPoints(const Type& type);  // one that is not 0
bool PerTensorType(const Type& type);  // affine, one scale

// Padding of one spatial dimension, before and after.
struct Pads {
  std::int64_t before = 0, after = 0;
};
// What SAME means (TensorFlow): out = ceil(in / stride), the odd one of the padding after.
bool IsSame(std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t dilation, Pads pads);
// The first n numbers of an attribute; `fallback` where it has fewer.
std::vector<std::int64_t> Ints(const Node& node, std::string_view name, std::size_t n, std::int64_t fallback);
// The node's padding for spatial sizes `in`.
std::vector<Pads> PadsOf(const Node& node, const std::vector<std::int64_t>& in, const std::vector<std::int64_t>& kernel,
                         const std::vector<std::int64_t>& strides, const std::vector<std::int64_t>& dilations);

class CircleLowering {
 public:
  explicit CircleLowering(Model& model);
  CircleReport Run();

  using Handler = void (CircleLowering::*)(const Node&);
  static const std::unordered_map<std::string_view, Handler>& Handlers();

 private:
  // --- values ------------------------------------------------------------------------------------------------------
  // The new value that holds `old` in this layout, as it is typed or (as_float) as float numbers. Makes a TRANSPOSE,
  // RESHAPE, DEQUANTIZE or converted constant the first time.
  Value* Get(const Value* old, Layout layout, bool as_float);
  Value* GetConstant(const Value* old, Layout layout, bool as_float);
  void Set(const Value* old, Layout layout, bool as_float, Value* value);
  bool Has(const Value* old, Layout layout) const;
  // kLast where the value is there in that layout, else kFirst.
  Layout Prefer(const Value* old) const;
  const Dims& DimsOf(const Value* old);  // kUnsupported when they are not static

  // --- operators ---------------------------------------------------------------------------------------------------
  Value* Emit(std::string_view op, std::vector<Value*> inputs, const std::string& name, Type type,
              Attributes attributes = {});
  Value* Transpose(Value* x, std::span<const std::int64_t> perm, const std::string& name);
  Value* Reshape(Value* x, const Dims& dims, const std::string& name);
  Value* Quantize(Value* x, const QuantType& quant, const std::string& name);  // also between two integer types
  Value* Int32s(std::span<const std::int64_t> values, const std::string& name);
  Value* Int32Scalar(std::int64_t value, const std::string& name);
  Value* Floats(const Dims& dims, std::span<const float> values, const std::string& name);
  Value* Scalar(float value, const std::string& name);
  // Float arithmetic of a decomposition; dims of the result are the broadcast ones.
  Value* Binary(std::string_view op, Value* a, Value* b, const std::string& name, std::string_view activation = "NONE");
  Value* Unary(std::string_view op, Value* a, const std::string& name);
  Value* Mean(Value* x, std::span<const std::int64_t> axes, bool keep, const std::string& name,
              std::string_view op = "MEAN");

  // --- deciding ----------------------------------------------------------------------------------------------------
  // True when `node` runs in integers: every value of `data` and the output are of one storage that `circle_op` has a
  // kernel for. False and a line in the report when some of them are quantized and it does not.
  bool Integer(const Node& node, std::string_view circle_op, std::span<const Value* const> data);
  void KeptFloat(const Node& node, const std::string& reason);
  // The value that the node's result goes to: its output, or that of an activation fused behind it.
  const Value* OutputOf(const Node& node) const;
  std::string_view ActivationOf(const Node& node) const;
  // Hands over a result: float where not `integer` (quantized here if the output is), of type y->type where integer.
  void Finish(const Node& node, Layout layout, Value* result, bool integer);
  // Type of the node's output in a layout: the old type where integer, else float.
  Type OutType(const Node& node, Layout layout, bool integer);
  [[noreturn]] void Refuse(const Node& node, const std::string& reason) const;

  const TensorRef* ConstantData(const Node& node, std::size_t i) const;  // of an unquantized constant input
  std::vector<std::int64_t> RequireInts(const Node& node, std::size_t i, const char* what) const;
  std::int64_t Axis(const Node& node, std::int64_t axis, std::size_t rank) const;
  std::int64_t MapAxis(std::int64_t axis, Layout layout, std::size_t rank) const;

  // --- prepasses ---------------------------------------------------------------------------------------------------
  void UnifySigns();
  void CastBeforeExpand();
  void AddAxis();
  void FindFusions();
  void FindGelu(const Node& erf);

  // --- handlers ----------------------------------------------------------------------------------------------------
  void Conv(const Node& node);
  void ConvTranspose(const Node& node);
  void Gemm(const Node& node);
  void MatMul(const Node& node);
  void FullyConnected(const Node& node, Value* x, const Value* weight, bool transposed, const Value* bias, bool integer,
                      float alpha, float beta);
  Value* Bias(const Node& node, const Value* bias, std::int64_t channels, Value* x, Value* w, bool integer);
  Value* ConvPiece(const Node& node, Value* x, Value* w, Value* b, bool depthwise, std::string_view padding,
                   const Type& type, const std::string& name);
  // In operators that onert has too (lower_circle_upscale.cc). Each pixel `factor` times in both directions, NHWC.
  Value* RepeatPixels(Value* x, std::int64_t factor, const std::string& name);
  // A ConvTranspose of weight `raw` (ONNX layout) whose output is the stride times its input; null where it is no such.
  Value* ConvTransposeAsConv(const Node& node, Value* x, Value* raw, const Type& type, bool integer);
  void Elementwise(const Node& node);
  void Variadic(const Node& node);
  void DivNode(const Node& node);
  void PowNode(const Node& node);
  void Compare(const Node& node);
  void Where(const Node& node);
  void Activation(const Node& node);
  void Clip(const Node& node);
  void HardSigmoid(const Node& node);
  void HardSwish(const Node& node);
  void LeakyRelu(const Node& node);
  void PRelu(const Node& node);
  void Gelu(const Node& node);
  void Silu(const Node& node);
  void Erf(const Node& node);
  void Reciprocal(const Node& node);
  void EluOf(const Node& node);
  void Softmax(const Node& node);
  void Pool(const Node& node);
  void GlobalPool(const Node& node);
  Value* WindowShares(const Dims& in, const Dims& out, std::span<const std::int64_t> kernel,
                      std::span<const std::int64_t> strides, std::span<const Pads> pads, const std::string& name);
  void Reduce(const Node& node);
  void ReshapeNode(const Node& node);
  void TransposeNode(const Node& node);
  void Identity(const Node& node);
  void Concat(const Node& node);
  void Split(const Node& node);
  void Slice(const Node& node);
  void Gather(const Node& node);
  void GatherNd(const Node& node);
  void GatherElements(const Node& node);
  // GATHER of x's elements, taken as rows of x's last dimensions from `first` on, at the row numbers `rows`.
  void GatherRows(const Node& node, std::size_t first, Value* rows);
  void CumSum(const Node& node);
  void Expand(const Node& node);
  void Tile(const Node& node);
  void Pad(const Node& node);
  void Resize(const Node& node);
  struct NativeResize;
  std::optional<NativeResize> ReadNativeResize(const Node& node);
  void ResizeByTaps(const Node& node);
  void Cast(const Node& node);
  void LayerNorm(const Node& node);
  void InstanceNorm(const Node& node);
  void LocalResponse(const Node& node);
  void BatchNorm(const Node& node);
  void ArgMax(const Node& node);
  void DepthToSpace(const Node& node);
  void QuantizeNode(const Node& node);
  void DequantizeNode(const Node& node);

  Value* ElementwiseOperand(const Value* old, Layout layout, std::size_t rank, bool as_float);
  // Refuses arithmetic on numbers that no consumer calculates with: plain (not quantized) integers but s32 and s64,
  // f64.
  void RequireArithmetic(const Node& node, std::span<const Value* const> operands) const;
  Layout ElementwiseLayout(const Node& node, std::span<const Value* const> operands) const;
  void MoveLike(const Node& node, const Value* x, Layout layout, bool integer, Value* result);

  Model& model_;
  Graph& old_;
  std::unique_ptr<Graph> new_;
  // MX values are in the graph. A difference in the last bit grows to a step of the next of them, so operators are said
  // such that the file read back computes the same numbers (rewrite/raise_circle.h, restore_circle.h).
  bool exact_ = false;
  CircleReport report_;
  struct Forms {
    Value* at[2][2] = {};  // [layout][as float]
  };
  std::unordered_map<const Value*, Forms> forms_;
  std::unordered_map<const Value*, Dims> dims_;
  std::unordered_map<const Node*, const Node*> fused_;     // node -> the activation behind it
  std::unordered_map<const Node*, const Node*> bias_add_;  // MatMul -> the Add of its bias
  std::unordered_map<const Node*, std::string_view> activation_;
  struct GeluMatch {
    const Value* x;
  };
  std::unordered_map<const Node*, GeluMatch> gelu_;  // last node of the pattern
  std::unordered_set<const Node*> absorbed_;         // nothing is emitted for them
};

}  // namespace octavo::internal
