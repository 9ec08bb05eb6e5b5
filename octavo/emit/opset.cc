// Raising the default operator set. Only what this file knows is raised: an operator is either in the list of those
// whose meaning never changed between versions 7 and 25 (apart from wider types and new optional attributes), or it
// has rules in kChanges, or the model is refused.
#include <algorithm>
#include <array>
#include <bit>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/emit/onnx.h"
#include "octavo/emit/onnx_serialize.h"
#include "octavo/ir/make_type.h"

namespace octavo {
namespace {

// A reason for refusal, or "" when the node has its old meaning under the new version.
using Reason = std::string;

struct Context {
  // The one float type of the model, kUndefined if there are more: the type of a value that has none on record.
  DType float_type;
};

constexpr std::string_view kStableOps[] = {"Abs",
                                           "Acos",
                                           "Acosh",
                                           "Add",
                                           "AffineGrid",
                                           "And",
                                           "ArgMax",
                                           "ArgMin",
                                           "Asin",
                                           "Asinh",
                                           "Atan",
                                           "Atanh",
                                           "AveragePool",
                                           "BatchNormalization",
                                           "Bernoulli",
                                           "BitShift",
                                           "BitwiseAnd",
                                           "BitwiseNot",
                                           "BitwiseOr",
                                           "BitwiseXor",
                                           "BlackmanWindow",
                                           "Cast",
                                           "CastLike",
                                           "Ceil",
                                           "Celu",
                                           "CenterCropPad",
                                           "Clip",
                                           "Col2Im",
                                           "Compress",
                                           "Concat",
                                           "ConcatFromSequence",
                                           "Constant",
                                           "ConstantOfShape",
                                           "Conv",
                                           "ConvInteger",
                                           "ConvTranspose",
                                           "Cos",
                                           "Cosh",
                                           "CumSum",
                                           "DFT",
                                           "DeformConv",
                                           "DepthToSpace",
                                           "DequantizeLinear",
                                           "Det",
                                           "Div",
                                           "Dropout",
                                           "DynamicQuantizeLinear",
                                           "Einsum",
                                           "Elu",
                                           "Equal",
                                           "Erf",
                                           "Exp",
                                           "Expand",
                                           "EyeLike",
                                           "Flatten",
                                           "Floor",
                                           "GRU",
                                           "Gather",
                                           "GatherElements",
                                           "GatherND",
                                           "Gelu",
                                           "Gemm",
                                           "GlobalAveragePool",
                                           "GlobalLpPool",
                                           "GlobalMaxPool",
                                           "Greater",
                                           "GreaterOrEqual",
                                           "GridSample",
                                           "GroupNormalization",
                                           "HammingWindow",
                                           "HannWindow",
                                           "HardSigmoid",
                                           "HardSwish",
                                           "Hardmax",
                                           "Identity",
                                           "If",
                                           "ImageDecoder",
                                           "InstanceNormalization",
                                           "IsInf",
                                           "IsNaN",
                                           "LRN",
                                           "LSTM",
                                           "LayerNormalization",
                                           "LeakyRelu",
                                           "Less",
                                           "LessOrEqual",
                                           "Log",
                                           "LogSoftmax",
                                           "Loop",
                                           "LpNormalization",
                                           "LpPool",
                                           "MatMul",
                                           "MatMulInteger",
                                           "Max",
                                           "MaxPool",
                                           "MaxRoiPool",
                                           "MaxUnpool",
                                           "Mean",
                                           "MeanVarianceNormalization",
                                           "MelWeightMatrix",
                                           "Min",
                                           "Mish",
                                           "Mod",
                                           "Mul",
                                           "Multinomial",
                                           "Neg",
                                           "NegativeLogLikelihoodLoss",
                                           "NonMaxSuppression",
                                           "NonZero",
                                           "Not",
                                           "OneHot",
                                           "Optional",
                                           "OptionalGetElement",
                                           "OptionalHasElement",
                                           "Or",
                                           "PRelu",
                                           "Pad",
                                           "Pow",
                                           "QLinearConv",
                                           "QLinearMatMul",
                                           "QuantizeLinear",
                                           "RMSNormalization",
                                           "RNN",
                                           "RandomNormal",
                                           "RandomNormalLike",
                                           "RandomUniform",
                                           "RandomUniformLike",
                                           "Range",
                                           "Reciprocal",
                                           "ReduceL1",
                                           "ReduceL2",
                                           "ReduceLogSum",
                                           "ReduceLogSumExp",
                                           "ReduceMax",
                                           "ReduceMean",
                                           "ReduceMin",
                                           "ReduceProd",
                                           "ReduceSum",
                                           "ReduceSumSquare",
                                           "RegexFullMatch",
                                           "Relu",
                                           "Reshape",
                                           "Resize",
                                           "ReverseSequence",
                                           "RoiAlign",
                                           "RotaryEmbedding",
                                           "Round",
                                           "STFT",
                                           "Scan",
                                           "Scatter",
                                           "ScatterElements",
                                           "ScatterND",
                                           "Selu",
                                           "SequenceAt",
                                           "SequenceConstruct",
                                           "SequenceEmpty",
                                           "SequenceErase",
                                           "SequenceInsert",
                                           "SequenceLength",
                                           "SequenceMap",
                                           "Shape",
                                           "Shrink",
                                           "Sigmoid",
                                           "Sign",
                                           "Sin",
                                           "Sinh",
                                           "Size",
                                           "Slice",
                                           "Softmax",
                                           "SoftmaxCrossEntropyLoss",
                                           "Softplus",
                                           "Softsign",
                                           "SpaceToDepth",
                                           "Split",
                                           "SplitToSequence",
                                           "Sqrt",
                                           "Squeeze",
                                           "StringConcat",
                                           "StringNormalizer",
                                           "StringSplit",
                                           "Sub",
                                           "Sum",
                                           "Tan",
                                           "Tanh",
                                           "TfIdfVectorizer",
                                           "ThresholdedRelu",
                                           "Tile",
                                           "TopK",
                                           "Transpose",
                                           "Trilu",
                                           "Unique",
                                           "Unsqueeze",
                                           "Upsample",
                                           "Where",
                                           "Xor"};

std::string NewName(const Node& node, std::string_view what) {
  const Value* output = node.output();
  return node.graph()->UniqueName((output ? output->name() : node.op()) + "_" + std::string(what));
}

// attribute (ints) -> int64 input `index`; nothing when the attribute is absent.
void IntsToInput(Node& node, std::string_view attribute, std::size_t index) {
  const std::vector<std::int64_t>* ints = node.IntsAttribute(attribute);
  if (!ints) return;
  TensorRef data = TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(ints->size())}, *ints);
  node.SetInput(index, node.graph()->AddConstant(NewName(node, attribute), std::move(data)));
  node.RemoveAttribute(attribute);
}

// attribute (float) -> scalar input `index` of the type of input 0.
Reason FloatToInput(Node& node, const Context& context, std::string_view attribute, std::size_t index) {
  if (!node.FindAttribute(attribute)) return {};
  const float value = node.FloatAttribute(attribute, 0.0f);
  DType dtype = node.input(0) ? node.input(0)->type.dtype : DType::kUndefined;
  if (dtype == DType::kUndefined) dtype = context.float_type;
  if (dtype != DType::kF32) {
    return "its attribute '" + std::string(attribute) +
           "' becomes an input of the data's type, which is not known to be f32";
  }
  node.SetInput(index, node.graph()->AddConstant(NewName(node, attribute), TensorRef::Scalar(value)));
  node.RemoveAttribute(attribute);
  return {};
}

// Rank of a value where the graph tells it without inference proper.
std::optional<std::size_t> RankOf(const Value* value, int steps = 16) {
  if (!value || steps == 0) return std::nullopt;
  if (value->type.shape) return value->type.shape->size();
  if (value->data) return value->data->dims.size();
  const Node* node = value->producer();
  if (!node || !node->domain().empty()) return std::nullopt;
  const std::string& op = node->op();
  if (op == "Gemm" || op == "Flatten") return 2;
  constexpr std::string_view kSame[] = {
      "Relu", "Sigmoid",   "Tanh", "Clip",    "Dropout",     "Identity",         "BatchNormalization",
      "Cast", "Transpose", "Conv", "MaxPool", "AveragePool", "GlobalAveragePool"};
  if (std::find(std::begin(kSame), std::end(kSame), op) != std::end(kSame)) return RankOf(node->input(0), steps - 1);
  if (op == "Add" || op == "Sub" || op == "Mul" || op == "Div") {
    const auto a = RankOf(node->input(0), steps - 1), b = RankOf(node->input(1), steps - 1);
    if (a && b) return std::max(*a, *b);
  }
  if (op == "MatMul") {
    const auto a = RankOf(node->input(0), steps - 1), b = RankOf(node->input(1), steps - 1);
    if (a && b && *a >= 2 && *b >= 2) return std::max(*a, *b);
  }
  if (op == "Reshape" && node->input(1)) {
    const Value& shape = *node->input(1);  // its length is the rank
    if (shape.data && shape.data->dims.size() == 1) return static_cast<std::size_t>(shape.data->dims[0]);
    const std::optional<Dims> length = StaticShape(shape.type);
    if (length && length->size() == 1) return static_cast<std::size_t>((*length)[0]);
  }
  return std::nullopt;
}

// Softmax, LogSoftmax, Hardmax at 13: from "flatten to 2-D at axis (default 1)" to "along axis (default -1)".
//   Before: y = Softmax(x) {axis=k}
//   After:  y = Reshape(Softmax(Flatten(x) {axis=k}) {axis=-1}, Shape(x)); just Softmax(x) if the dimensions behind
//   axis k
//           are all 1
Reason FlattenSoftmax(Node& node, const Context&) {
  const std::int64_t axis = node.IntAttribute("axis", 1);
  const std::optional<std::size_t> rank = RankOf(node.input(0));
  const auto alone = [&] {
    if (!node.input(0)->type.shape) return false;
    const std::vector<Dim>& dims = *node.input(0)->type.shape;
    const std::int64_t at = axis < 0 ? axis + std::ssize(dims) : axis;
    return at >= 0 && at < std::ssize(dims) &&
           std::all_of(dims.begin() + at + 1, dims.end(), [](const Dim& d) { return d.value == 1; });
  };
  if (axis == -1 || (rank && axis == static_cast<std::int64_t>(*rank) - 1) || (node.input(0) && alone())) {
    node.SetAttribute("axis", axis);
    return {};
  }
  Graph& graph = *node.graph();
  Value *x = node.input(0), *y = node.output();
  if (!x || !y) return "it has no input or no output";
  const Type flat{.dtype = y->type.dtype, .shape = {}, .quant = {}, .opaque = {}};
  Value* shape = nullptr;
  if (const std::optional<Dims> dims = StaticShape(x->type)) {
    shape = graph.AddConstant(NewName(node, "shape"), TensorRef::FromInts(DType::kS64, {std::ssize(*dims)}, *dims));
  } else {
    const Type type{.dtype = DType::kS64, .shape = {}, .quant = {}, .opaque = {}};
    shape = graph.AddNode("Shape", "", {x}, {{NewName(node, "shape"), type}}, &node)->output();
  }
  Node* flatten = graph.AddNode("Flatten", "", {x}, {{NewName(node, "flat"), flat}}, &node);
  flatten->SetAttribute("axis", axis);
  node.SetInput(0, flatten->output());
  node.SetAttribute("axis", std::int64_t{-1});
  Node* reshape = graph.AddNode("Reshape", "", {y, shape}, {{NewName(node, "2d"), y->type}}, node.next());
  graph.ReplaceAllUses(y, reshape->output(), reshape);
  graph.SwapNames(y, reshape->output());
  std::swap(y->extras, reshape->output()->extras);
  y->type = flat;
  return {};
}

Reason AxesToInput(Node& node, const Context&) {
  IntsToInput(node, "axes", 1);
  return {};
}

Reason SliceToInputs(Node& node, const Context&) {
  IntsToInput(node, "starts", 1);
  IntsToInput(node, "ends", 2);
  IntsToInput(node, "axes", 3);
  return {};
}

Reason TopKToInput(Node& node, const Context&) {
  const std::int64_t k = node.IntAttribute("k", -1);
  if (k < 0) return "it has no attribute 'k'";
  node.SetInput(1, node.graph()->AddConstant(NewName(node, "k"), TensorRef::FromInts(DType::kS64, {1}, {&k, 1})));
  node.RemoveAttribute("k");
  return {};
}

Reason PadToInputs(Node& node, const Context& context) {
  IntsToInput(node, "pads", 1);
  return FloatToInput(node, context, "value", 2);
}

Reason ClipToInputs(Node& node, const Context& context) {
  Reason reason = FloatToInput(node, context, "min", 1);
  return reason.empty() ? FloatToInput(node, context, "max", 2) : reason;
}

Reason SplitToInput(Node& node, const Context&) {
  IntsToInput(node, "split", 1);
  return {};
}

Reason SplitCount(Node& node, const Context&) {
  if (!node.input(1)) node.SetAttribute("num_outputs", static_cast<std::int64_t>(node.outputs().size()));
  return {};
}

Reason UpsampleScales(Node& node, const Context&) {
  const Attribute* attribute = node.FindAttribute("scales");
  const auto* scales = attribute ? std::get_if<std::vector<float>>(&attribute->value) : nullptr;
  if (!scales) return "it has no attribute 'scales'";
  TensorRef data = TensorRef::FromFloats({static_cast<std::int64_t>(scales->size())}, *scales);
  node.SetInput(1, node.graph()->AddConstant(NewName(node, "scales"), std::move(data)));
  node.RemoveAttribute("scales");
  return {};
}

Reason UpsampleToResize(Node& node, const Context&) {
  node.SetOp("Resize");
  return {};
}

// Resize-10 is what Resize-11 calls asymmetric. Its nearest rounds down when growing and up when shrinking; only the
// former has a name in Resize-11 that holds for every axis.
Reason ResizeAsymmetric(Node& node, const Context&) {
  Value* scales = node.input(1);
  if (node.StringAttribute("mode", "nearest") == "nearest") {
    if (!scales || !scales->is_constant() || scales->data->dtype != DType::kF32) return "its scales are not constant";
    for (float scale : scales->data->ToFloats()) {
      if (!(scale >= 1.0f)) return "it shrinks by 'nearest', which rounds another way since operator set 11";
    }
    node.SetAttribute("nearest_mode", std::string("floor"));
  }
  node.SetAttribute("coordinate_transformation_mode", std::string("asymmetric"));
  node.SetInput(1, nullptr);
  node.SetInput(2, scales);
  return {};
}

Reason ResizeModes(Node& node, const Context&) {
  if (node.StringAttribute("coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn") {
    return "its mode tf_half_pixel_for_nn is gone since operator set 13";
  }
  return {};
}

Reason BatchNormSpatial(Node& node, const Context&) {
  if (node.IntAttribute("spatial", 1) == 0) return "its attribute spatial=0 is gone since operator set 9";
  node.RemoveAttribute("spatial");
  return {};
}

// Extra outputs of training, which nothing reads in an inference model.
Reason DropOutputs(Node& node, const char* why) {
  for (std::size_t i = 1; i < node.outputs().size(); ++i) {
    if (!node.output(i)) continue;
    if (!node.output(i)->dead()) return why;
    node.graph()->EraseResult(&node, i);
  }
  return {};
}

Reason BatchNormOutputs(Node& node, const Context&) {
  return DropOutputs(node, "its training outputs are used, and changed in operator set 14");
}

Reason DropoutMask(Node& node, const Context&) {
  return DropOutputs(node, "its mask is used, and changed its type in operator set 10");
}

Reason DropoutRatio(Node& node, const Context&) {
  node.RemoveAttribute("ratio");  // says nothing at inference
  return {};
}

Reason RenameScatter(Node& node, const Context&) {
  node.SetOp("ScatterElements");
  return {};
}

Reason RoiAlignMode(Node& node, const Context&) {
  node.SetAttribute("coordinate_transformation_mode", std::string("output_half_pixel"));
  return {};
}

Reason GridSampleMode(Node& node, const Context&) {
  const std::string mode = node.StringAttribute("mode", "bilinear");
  if (mode == "bilinear") node.SetAttribute("mode", std::string("linear"));
  if (mode == "bicubic") node.SetAttribute("mode", std::string("cubic"));
  return {};
}

Reason PoolCeil(Node& node, const Context&) {
  if (node.IntAttribute("ceil_mode", 0) != 0 && node.IntAttribute("count_include_pad", 0) != 0) {
    return "ceil_mode with count_include_pad divides by another count since operator set 19";
  }
  return {};
}

Reason RefuseScan(Node&, const Context&) { return "Scan changed its inputs in operator set 9"; }

// GroupNormalization at 21: from a scale and a bias a group to those a channel.
//   Before: y = GroupNormalization(x, scale : [G], bias)
//   After:  y = GroupNormalization(x, Reshape(Expand(Reshape(scale, [G, 1]), [G, C / G]), [C]), ...)
Reason GroupNormChannels(Node& node, const Context&) {
  const std::int64_t groups = node.IntAttribute("num_groups", 0);
  const Value* x = node.input(0);
  const bool known = x != nullptr && x->type.shape && x->type.shape->size() >= 2 && (*x->type.shape)[1].known();
  const std::int64_t channels = known ? (*x->type.shape)[1].value : 0;
  if (groups < 1 || channels < 1 || channels % groups != 0) {
    return "its scale and bias are per channel since operator set 21, and the number of its channels is not known";
  }
  Graph& graph = *node.graph();
  const auto ints = [&](const Dims& values) {
    return graph.AddConstant(NewName(node, "shape"),
                             TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(values.size())}, values));
  };
  for (std::size_t i = 1; i <= 2; ++i) {
    Value* v = node.input(i);
    if (v == nullptr) return "it has no scale or no bias";
    const auto add = [&](const char* op, const Dims& dims) {
      v = graph.AddNode(op, "", {v, ints(dims)}, {{NewName(node, "channels"), TypeOf(v->type.dtype, dims)}}, &node)
              ->output();
    };
    add("Reshape", {groups, 1});
    add("Expand", {groups, channels / groups});
    add("Reshape", {channels});
    node.SetInput(i, v);
  }
  return {};
}
Reason RefuseDft(Node&, const Context&) { return "its axis became an input in operator set 20"; }

struct Change {
  std::string_view op;
  std::int64_t version;  // the operator set that brought it
  Reason (*apply)(Node&, const Context&);
};

constexpr Change kChanges[] = {
    {"AveragePool", 19, PoolCeil},
    {"BatchNormalization", 9, BatchNormSpatial},
    {"BatchNormalization", 14, BatchNormOutputs},
    {"Clip", 11, ClipToInputs},
    {"DFT", 20, RefuseDft},
    {"Dropout", 10, DropoutMask},
    {"Dropout", 12, DropoutRatio},
    {"GridSample", 20, GridSampleMode},
    {"GroupNormalization", 21, GroupNormChannels},
    {"Hardmax", 13, FlattenSoftmax},
    {"LogSoftmax", 13, FlattenSoftmax},
    {"Pad", 11, PadToInputs},
    {"ReduceL1", 18, AxesToInput},
    {"ReduceL2", 18, AxesToInput},
    {"ReduceLogSum", 18, AxesToInput},
    {"ReduceLogSumExp", 18, AxesToInput},
    {"ReduceMax", 18, AxesToInput},
    {"ReduceMean", 18, AxesToInput},
    {"ReduceMin", 18, AxesToInput},
    {"ReduceProd", 18, AxesToInput},
    {"ReduceSum", 13, AxesToInput},
    {"ReduceSumSquare", 18, AxesToInput},
    {"Resize", 11, ResizeAsymmetric},
    {"Resize", 13, ResizeModes},
    {"RoiAlign", 16, RoiAlignMode},
    {"Scan", 9, RefuseScan},
    {"Scatter", 11, RenameScatter},
    {"Slice", 10, SliceToInputs},
    {"Softmax", 13, FlattenSoftmax},
    {"Split", 13, SplitToInput},
    {"Split", 18, SplitCount},
    {"Squeeze", 13, AxesToInput},
    {"TopK", 10, TopKToInput},
    {"Unsqueeze", 13, AxesToInput},
    {"Upsample", 9, UpsampleScales},
    {"Upsample", 10, UpsampleToResize},
};

std::int64_t RequiredOpset(const Type& type) {
  if (type.quant && type.quant->kind == QuantType::Kind::kGgml) return 21;  // see lower_ggml.h
  if (type.quant && type.quant->kind == QuantType::Kind::kMx) return 21;    // see lower_mx.h
  if (!type.quant || type.quant->kind != QuantType::Kind::kAffine) return 0;
  const Affine& affine = type.quant->affine;
  std::int64_t version = 10;
  const auto need = [&](bool condition, std::int64_t v) {
    if (condition) version = std::max(version, v);
  };
  need(affine.axis.has_value(), 13);
  need(IsFloat(affine.storage) || affine.scale.dtype != DType::kF32, 19);
  need(affine.block > 0, 21);
  need(BitWidth(affine.storage) == 16 || BitWidth(affine.storage) == 4, 21);
  need(affine.scale.dtype == DType::kF8E8M0, 24);
  need(affine.storage == DType::kF4E2M1 || type.dtype != affine.scale.dtype, 23);
  need(BitWidth(affine.storage) == 2, 25);
  return version;
}

template <typename Fn>
void ForEachValue(const Graph& graph, const Fn& fn) {
  for (const Value* value : graph.inputs()) fn(*value);
  for (const Value* value : graph.constants()) fn(*value);
  for (const Node* node = graph.first(); node; node = node->next()) {
    for (const Value* value : node->outputs()) {
      if (value) fn(*value);
    }
    for (const Graph* sub : node->subgraphs()) ForEachValue(*sub, fn);
  }
}

DType SoleFloatType(const Model& model) {
  bool other = false;
  const auto see = [&](DType dtype) { other |= IsFloat(dtype) && dtype != DType::kF32; };
  ForEachValue(*model.graph, [&](const Value& value) { see(value.data ? value.data->dtype : value.type.dtype); });
  VisitNodes(std::as_const(*model.graph), [&](const Node& node) {
    if (node.op() == "Cast")
      see(static_cast<DType>(std::clamp<std::int64_t>(node.IntAttribute("to", 1), 0, kDTypeCount - 1)));
  });
  return other ? DType::kUndefined : DType::kF32;
}

std::int64_t IrVersionForOpset(std::int64_t opset) {
  // docs/Versioning.md of onnx: the releases that brought each operator set.
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 10> kReleases = {
      {{25, 13}, {24, 12}, {23, 11}, {21, 10}, {19, 9}, {15, 8}, {12, 7}, {11, 6}, {10, 5}, {9, 4}}};
  for (const auto& [version, ir] : kReleases) {
    if (opset >= version) return ir;
  }
  return 3;
}

std::string Describe(const Node& node) { return "node '" + node.name + "' (" + node.op() + ")"; }

}  // namespace

void RaiseOpsetForQuantization(Model& model) {
  std::int64_t target = 0;
  ForEachValue(*model.graph, [&](const Value& value) { target = std::max(target, RequiredOpset(value.type)); });
  // In operator set 10 ONNX Runtime's own bias quantization (of a convolution that it gives a BatchNormalization's
  // bias) uses a Round that stands in 11, and the model does not load.
  if (target == 10 && model.OpsetVersion() < 11) {
    Model trial = Clone(model);  // a refusal leaves a model half changed
    try {
      RaiseOpset(trial, 11, "operator set 11");
      target = 11;
    } catch (const Error& error) {
      LogDebug(std::string("operator set 10 has to do: ") + error.what());
    }
  }
  RaiseOpset(model, target, "operator set " + std::to_string(target) + ", which the quantized types need");
}

void RaiseOpset(Model& model, std::int64_t target, const std::string& goal) {
  const std::int64_t present = model.OpsetVersion();
  if (target <= present) return;
  if (!model.functions.empty()) {
    ThrowUnsupported("cannot raise a model with functions to " + goal, "function " + model.function_ids.front(),
                     "inline the functions or convert the model with onnx.version_converter");
  }
  const Context context{SoleFloatType(model)};
  const std::unordered_set<std::string_view> stable(std::begin(kStableOps), std::end(kStableOps));
  std::vector<Node*> nodes;
  VisitNodes(*model.graph, [&](Node& node) {
    if (!node.domain().empty()) return;
    if (!stable.contains(node.op())) {
      ThrowUnsupported("cannot raise the model to " + goal, Describe(node),
                       "octavo does not know how this operator changed since operator set " + std::to_string(present));
    }
    nodes.push_back(&node);
  });
  for (std::int64_t version = present + 1; version <= target && present > 0; ++version) {
    for (Node* node : nodes) {
      for (const Change& change : kChanges) {
        if (change.version != version || change.op != node->op()) continue;
        const Reason reason = change.apply(*node, context);
        if (!reason.empty()) ThrowUnsupported("cannot raise the model to " + goal, Describe(*node), reason);
      }
    }
  }
  model.SetOpsetVersion("", target);
  model.ir_version = std::max(model.ir_version, IrVersionForOpset(target));
}

}  // namespace octavo
