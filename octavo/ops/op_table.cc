#include "octavo/ops/op_table.h"

#include <limits>
#include <string>
#include <unordered_map>

namespace octavo {
namespace {

using C = OpCategory;
using F = ParamFlow;
using A = AxisRule;
constexpr std::string_view kMs = "com.microsoft";

constexpr OpInfo Weighted(std::string_view op, A channel, A contracted, std::string_view domain = {}) {
  return {op, domain, C::kWeighted, 1, 1, 2, channel, contracted, F::kOwn, false};
}
constexpr OpInfo Row(std::string_view op, C category, std::uint8_t data = 1, F flow = F::kOwn,
                     std::string_view domain = {}) {
  return {op, domain, category, data, -1, -1, A::kNone, A::kNone, flow, false};
}
constexpr OpInfo Move(std::string_view op, F flow = F::kSameAsInput, std::uint8_t data = 1,
                      std::string_view domain = {}) {
  return {op, domain, C::kDataMovement, data, -1, -1, A::kNone, A::kNone, flow, true};
}
// W and R, inputs 1 and 2, are [directions, rows, columns].
constexpr OpInfo Recurrent(std::string_view op) {
  return {op, {}, C::kOther, 1, -1, -1, A::kOne, A::kLast, F::kOwn, false};
}
// A pool or reduction whose result is one of its inputs' elements.
constexpr OpInfo Select(std::string_view op) {
  return {op, {}, C::kPool, 1, -1, -1, A::kNone, A::kNone, F::kSameAsInput, true};
}

constexpr OpInfo kTable[] = {
    // Weighted and matmul.
    Weighted("Conv", A::kZero, A::kOne),
    Weighted("ConvTranspose", A::kOne, A::kZero),
    Weighted("Gemm", A::kGemmOut, A::kGemmIn),
    Weighted("FusedConv", A::kZero, A::kOne, kMs),
    Weighted("FusedGemm", A::kGemmOut, A::kGemmIn, kMs),
    {"MatMul", {}, C::kMatMul, 2, 1, -1, A::kLast, A::kSecondToLast, F::kOwn, false},
    {"FusedMatMul", kMs, C::kMatMul, 2, 1, -1, A::kNone, A::kNone, F::kOwn, false},
    {"Einsum", {}, C::kMatMul, kVariadic, -1, -1, A::kNone, A::kNone, F::kOwn, false},

    // Elementwise over several tensors.
    Row("Add", C::kElementwise, 2),
    Row("Sub", C::kElementwise, 2),
    Row("Mul", C::kElementwise, 2),
    Row("Div", C::kElementwise, 2),
    Row("Pow", C::kElementwise, 2),
    Row("Mod", C::kElementwise, 2),
    Row("Min", C::kElementwise, kVariadic),
    Row("Max", C::kElementwise, kVariadic),
    Row("Mean", C::kElementwise, kVariadic),
    Row("Sum", C::kElementwise, kVariadic),
    Row("PRelu", C::kElementwise, 1),
    {"Where", {}, C::kElementwise, 3, -1, -1, A::kNone, A::kNone, F::kAllInputsEqual, true},

    // Activations.
    Row("Relu", C::kActivation),
    Row("Clip", C::kActivation),
    Row("LeakyRelu", C::kActivation),
    Row("ThresholdedRelu", C::kActivation),
    Row("Elu", C::kActivation),
    Row("Selu", C::kActivation),
    Row("Celu", C::kActivation),
    Row("Sigmoid", C::kActivation, 1, F::kUnitRange),
    Row("HardSigmoid", C::kActivation, 1, F::kUnitRange),
    Row("HardSwish", C::kActivation),
    Row("Softmax", C::kActivation, 1, F::kUnitRange),
    Row("LogSoftmax", C::kActivation),
    Row("Hardmax", C::kActivation, 1, F::kUnitRange),
    Row("Tanh", C::kActivation, 1, F::kSymmetricUnitRange),
    Row("Softsign", C::kActivation, 1, F::kSymmetricUnitRange),
    Row("Sin", C::kActivation, 1, F::kSymmetricUnitRange),
    Row("Cos", C::kActivation, 1, F::kSymmetricUnitRange),
    Row("Erf", C::kActivation, 1, F::kSymmetricUnitRange),
    Row("Softplus", C::kActivation),
    Row("Gelu", C::kActivation),
    Row("Gelu", C::kActivation, 1, F::kOwn, kMs),
    Row("FastGelu", C::kActivation, 1, F::kOwn, kMs),
    Row("BiasGelu", C::kActivation, 1, F::kOwn, kMs),
    Row("QuickGelu", C::kActivation, 1, F::kOwn, kMs),
    Row("Mish", C::kActivation),
    Row("Swish", C::kActivation),
    Row("Exp", C::kActivation),
    Row("Log", C::kActivation),
    Row("Sqrt", C::kActivation),
    Row("Reciprocal", C::kActivation),
    Row("Abs", C::kActivation),
    Row("Neg", C::kActivation),
    Row("Sign", C::kActivation, 1, F::kSymmetricUnitRange),
    Row("Floor", C::kActivation),
    Row("Ceil", C::kActivation),
    Row("Round", C::kActivation),
    Row("Tan", C::kActivation),
    Row("Atan", C::kActivation),

    // Pools and reductions.
    Select("MaxPool"),
    Select("GlobalMaxPool"),
    Select("ReduceMax"),
    Select("ReduceMin"),
    Row("AveragePool", C::kPool),
    Row("GlobalAveragePool", C::kPool),
    Row("LpPool", C::kPool),
    Row("GlobalLpPool", C::kPool),
    Row("ReduceMean", C::kPool),
    Row("ReduceSum", C::kPool),
    Row("ReduceProd", C::kPool),
    Row("ReduceL1", C::kPool),
    Row("ReduceL2", C::kPool),
    Row("ReduceSumSquare", C::kPool),
    Row("ReduceLogSum", C::kPool),
    Row("ReduceLogSumExp", C::kPool),
    Row("CumSum", C::kPool),

    // Data movement.
    Move("Reshape"),
    Move("Flatten"),
    Move("Squeeze"),
    Move("Unsqueeze"),
    Move("Transpose"),
    Move("Identity"),
    Move("Slice"),
    Move("Split"),
    Move("Gather"),
    Move("GatherElements"),
    Move("GatherND"),
    Move("Expand"),
    Move("Tile"),
    Move("Pad"),
    Move("DepthToSpace"),
    Move("SpaceToDepth"),
    Move("ReverseSequence"),
    Move("Compress"),
    Move("TopK"),
    Move("Dropout"),
    Move("Concat", F::kAllInputsEqual, kVariadic),
    Move("ScatterElements", F::kAllInputsEqual),
    Move("ScatterND", F::kAllInputsEqual),
    Move("Trilu"),
    Move("CenterCropPad"),
    // Resize and GridSample interpolate unless the mode is nearest: movement by category, preserving only by attribute.
    {"Resize", {}, C::kDataMovement, 1, -1, -1, A::kNone, A::kNone, F::kOwn, false},
    {"Upsample", {}, C::kDataMovement, 1, -1, -1, A::kNone, A::kNone, F::kOwn, false},
    {"GridSample", {}, C::kDataMovement, 1, -1, -1, A::kNone, A::kNone, F::kOwn, false},
    {"RoiAlign", {}, C::kDataMovement, 1, -1, -1, A::kNone, A::kNone, F::kOwn, false},

    // Normalization.
    Row("LayerNormalization", C::kNormalization),
    Row("InstanceNormalization", C::kNormalization),
    Row("GroupNormalization", C::kNormalization),
    Row("RMSNormalization", C::kNormalization),
    Row("LpNormalization", C::kNormalization, 1, F::kSymmetricUnitRange),
    Row("MeanVarianceNormalization", C::kNormalization),
    Row("LRN", C::kNormalization),
    Row("BatchNormalization", C::kNormalization),
    Row("SkipLayerNormalization", C::kNormalization, 2, F::kOwn, kMs),
    Row("SimplifiedLayerNormalization", C::kNormalization),
    Row("EmbedLayerNormalization", C::kNormalization, 0, F::kOwn, kMs),

    // Shapes, indices, comparisons: nothing to quantize.
    Row("Shape", C::kShape, 0),
    Row("Size", C::kShape, 0),
    Row("Constant", C::kShape, 0),
    Row("ConstantOfShape", C::kShape, 0),
    Row("Range", C::kShape, 0),
    Row("Cast", C::kShape, 0),
    Row("CastLike", C::kShape, 0),
    Row("NonZero", C::kShape, 0),
    Row("OneHot", C::kShape, 0),
    Row("EyeLike", C::kShape, 0),
    Row("ArgMax", C::kShape, 0),
    Row("ArgMin", C::kShape, 0),
    Row("NonMaxSuppression", C::kShape, 0),
    Row("Equal", C::kShape, 0),
    Row("Less", C::kShape, 0),
    Row("LessOrEqual", C::kShape, 0),
    Row("Greater", C::kShape, 0),
    Row("GreaterOrEqual", C::kShape, 0),
    Row("Not", C::kShape, 0),
    Row("And", C::kShape, 0),
    Row("Or", C::kShape, 0),
    Row("Xor", C::kShape, 0),
    Row("IsNaN", C::kShape, 0),
    Row("IsInf", C::kShape, 0),

    // Control flow.
    Row("If", C::kControl, 0),
    Row("Loop", C::kControl, 0),
    Row("Scan", C::kControl, 0),
    Row("SequenceMap", C::kControl, 0),

    // Recurrent networks and attention as one operator: no integer form that a device here takes.
    Recurrent("LSTM"),
    Recurrent("GRU"),
    Recurrent("RNN"),
    Row("Attention", C::kOther),
    Row("Attention", C::kOther, 1, F::kOwn, kMs),
    Row("MultiHeadAttention", C::kOther, 1, F::kOwn, kMs),

    // Quantized by definition.
    Row("QuantizeLinear", C::kQuantized),
    Row("DequantizeLinear", C::kQuantized),
    Row("DynamicQuantizeLinear", C::kQuantized),
    Row("QLinearConv", C::kQuantized),
    Row("QLinearMatMul", C::kQuantized),
    Row("ConvInteger", C::kQuantized),
    Row("MatMulInteger", C::kQuantized),
    Row("QuantizeLinear", C::kQuantized, 1, F::kOwn, kMs),
    Row("DequantizeLinear", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearAdd", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearMul", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearConcat", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearWhere", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearAveragePool", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearGlobalAveragePool", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearLeakyRelu", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearSigmoid", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearSoftmax", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearReduceMean", C::kQuantized, 1, F::kOwn, kMs),
    Row("QLinearConv", C::kQuantized, 1, F::kOwn, kMs),
    Row("QGemm", C::kQuantized, 1, F::kOwn, kMs),
    Row("MatMulIntegerToFloat", C::kQuantized, 1, F::kOwn, kMs),
    Row("DynamicQuantizeMatMul", C::kQuantized, 1, F::kOwn, kMs),
    Row("MatMulNBits", C::kQuantized, 1, F::kOwn, kMs),
    Row("GatherBlockQuantized", C::kQuantized, 1, F::kOwn, kMs),
    // The project's own (INTERFACE.md); type and shape of the output are those of input 0.
    Row("MXFakeQuantize", C::kQuantized, 1, F::kOwn, "octavo"),
    Row("QuantizeMx", C::kQuantized, 1, F::kOwn, "octavo"),
    Row("DequantizeMx", C::kQuantized, 1, F::kOwn, "octavo"),
    Row("FakeQuantize", C::kQuantized, 1, F::kOwn, "octavo"),
    Row(kQuantize, C::kQuantized, 1, F::kOwn, kIrDomain),
    Row(kDequantize, C::kQuantized, 1, F::kOwn, kIrDomain),
    Row(kRequantize, C::kQuantized, 1, F::kOwn, kIrDomain),
    Row(kStorageCast, C::kQuantized, 1, F::kOwn, kIrDomain),
};

std::string Key(std::string_view op, std::string_view domain) {
  std::string key(domain == "ai.onnx" ? std::string_view{} : domain);
  key += ':';
  key += op;
  return key;
}

const std::unordered_map<std::string, const OpInfo*>& Index() {
  static const auto* const index = [] {
    auto* map = new std::unordered_map<std::string, const OpInfo*>;
    for (const OpInfo& info : kTable) map->emplace(Key(info.op, info.domain), &info);
    return map;
  }();
  return *index;
}

// Product that sticks at the top instead of wrapping: shapes come from a file.
std::uint64_t Multiply(std::uint64_t a, std::uint64_t b) {
  if (a != 0 && b > std::numeric_limits<std::uint64_t>::max() / a) return std::numeric_limits<std::uint64_t>::max();
  return a * b;
}

std::optional<std::uint64_t> StaticElements(const Value* value) {
  if (value == nullptr) return std::nullopt;
  const std::optional<Dims> dims = StaticShape(value->type);
  if (!dims) return std::nullopt;
  std::uint64_t n = 1;
  for (const std::int64_t d : *dims) n = Multiply(n, static_cast<std::uint64_t>(d));
  return n;
}

// Multiplications for each output element (each input element for ConvTranspose).
std::uint64_t ProductsPerElement(const Node& node) {
  const OpInfo& info = FindOp(node);
  const Value* b = node.input(1);
  if (b == nullptr) return 0;
  const std::optional<Dims> dims = StaticShape(b->type);
  if (info.category == OpCategory::kMatMul) {
    if (dims && !dims->empty()) {
      return static_cast<std::uint64_t>((*dims)[dims->size() >= 2 ? dims->size() - 2 : 0]);
    }
    const Value* a = node.input(0);
    const std::optional<Dims> left = a == nullptr ? std::nullopt : StaticShape(a->type);
    return left && !left->empty() ? static_cast<std::uint64_t>(left->back()) : 0;
  }
  if (!dims || dims->size() < 2) return 0;
  if (node.Is("Gemm")) return static_cast<std::uint64_t>((*dims)[node.IntAttribute("transB", 0) != 0 ? 1 : 0]);
  std::uint64_t n = 1;
  for (std::size_t i = 1; i < dims->size(); ++i) n = Multiply(n, static_cast<std::uint64_t>((*dims)[i]));
  return n;  // Conv [M, C/group, k...]; ConvTranspose [C, M/group, k...]
}

}  // namespace

std::string_view Name(OpCategory category) {
  switch (category) {
    case C::kWeighted:
      return "weighted";
    case C::kMatMul:
      return "matmul";
    case C::kElementwise:
      return "elementwise";
    case C::kActivation:
      return "activation";
    case C::kPool:
      return "pool";
    case C::kDataMovement:
      return "data movement";
    case C::kNormalization:
      return "normalization";
    case C::kShape:
      return "shape";
    case C::kControl:
      return "control";
    case C::kQuantized:
      return "quantized";
    case C::kOther:
      return "other";
  }
  return "other";
}

const OpInfo& FindOp(std::string_view op, std::string_view domain) {
  static constexpr OpInfo kUnknown{};
  const auto it = Index().find(Key(op, domain));
  return it == Index().end() ? kUnknown : *it->second;
}

bool KnownOp(std::string_view op, std::string_view domain) { return Index().count(Key(op, domain)) > 0; }

std::span<const OpInfo> AllOps() { return kTable; }

bool IsDataInput(const OpInfo& info, std::size_t index) {
  if (info.op == "Where") return index == 1 || index == 2;
  if (info.op == "ScatterElements" || info.op == "ScatterND") return index == 0 || index == 2;
  return info.data_inputs == kVariadic || index < info.data_inputs;
}

std::optional<std::int64_t> ResolveAxis(AxisRule rule, const Node& node, std::size_t rank) {
  const auto checked = [rank](std::int64_t axis) -> std::optional<std::int64_t> {
    if (axis < 0 || axis >= static_cast<std::int64_t>(rank)) return std::nullopt;
    return axis;
  };
  const auto r = static_cast<std::int64_t>(rank);
  const bool transposed = node.IntAttribute("transB", 0) != 0;
  switch (rule) {
    case A::kNone:
      return std::nullopt;
    case A::kZero:
      return checked(0);
    case A::kOne:
      return checked(1);
    case A::kLast:
      return r >= 2 ? checked(r - 1) : std::nullopt;  // a vector on the right has no output channel
    case A::kSecondToLast:
      return checked(r >= 2 ? r - 2 : 0);
    case A::kGemmOut:
      return checked(transposed ? 0 : 1);
    case A::kGemmIn:
      return checked(transposed ? 1 : 0);
  }
  return std::nullopt;
}

std::uint64_t MultiplyAccumulates(const Node& node, std::uint64_t data_input_elements, std::uint64_t output_elements) {
  const OpInfo& info = FindOp(node);
  if (info.category != OpCategory::kWeighted && info.category != OpCategory::kMatMul) return 0;
  return Multiply(node.Is("ConvTranspose") ? data_input_elements : output_elements, ProductsPerElement(node));
}

std::uint64_t MultiplyAccumulates(const Node& node) {
  const std::optional<std::uint64_t> out = StaticElements(node.output());
  const std::optional<std::uint64_t> in = StaticElements(node.input(0));
  if (node.Is("ConvTranspose") ? !in : !out) return 0;
  return MultiplyAccumulates(node, in.value_or(0), out.value_or(0));
}

}  // namespace octavo
