#include "octavo/rewrite/raise_circle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/emit/circle.h"
#include "octavo/emit/lower_circle.h"
#include "octavo/rewrite/raising.h"
#include "octavo/rewrite/restore_circle.h"

namespace octavo {

using internal::Permuted;
using internal::PermutedData;
using internal::PermutedQuant;

void Raising::Run() {
  for (Value* input : std::vector<Value*>(graph_.inputs().begin(), graph_.inputs().end())) {
    if (input->type.quant) RawInput(*input);
  }
  for (Value* constant : graph_.constants()) WideBias(*constant);
  RestoreLayerNorms(graph_);
  for (Node* node : graph_.nodes()) {
    if (node->domain() == kCircleDomain) Raise(*node);
  }
  if (graph_.parent() == nullptr) graph_.EraseDead();
}

void Raising::Refuse(const Node& node, const std::string& why) const {
  ThrowUnsupported("no ONNX form: " + why,
                   node.op() + (node.output() == nullptr ? std::string() : " '" + node.output()->name() + "'"));
}

// ONNX has no codes of 64 bits: what is one, the bias of 16-bit activations, is written as its numbers.
void Raising::WideBias(Value& constant) {
  if (!constant.data || !constant.type.quant || constant.type.quant->kind != QuantType::Kind::kAffine ||
      constant.type.quant->affine.storage != DType::kS64) {
    return;
  }
  const std::vector<std::int64_t> codes = constant.data->ToInts();
  const Affine& affine = constant.type.quant->affine;
  const std::vector<float> scales = affine.scale.ToFloats();
  std::uint64_t inner = 1;
  if (affine.axis) {
    for (std::size_t i = static_cast<std::size_t>(*affine.axis) + 1; i < constant.data->dims.size(); ++i)
      inner *= static_cast<std::uint64_t>(constant.data->dims[i]);
  }
  std::vector<float> numbers(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const double scale = scales[scales.size() == 1 ? 0 : i / std::max<std::uint64_t>(inner, 1) % scales.size()];
    numbers[i] = static_cast<float>(static_cast<double>(codes[i]) * scale);
  }
  constant.data = TensorRef::FromFloats(constant.data->dims, numbers);
  constant.type.quant.reset();
}

void Raising::RawInput(Value& input) {
  if (input.type.quant->kind != QuantType::Kind::kAffine)
    ThrowUnsupported("a graph input of MX codes", "input '" + input.name() + "'");
  const Type type = input.type;
  Node* cast = graph_.AddNode(std::string(kStorageCast), std::string(kIrDomain), {&input},
                              {{input.name() + "_q", type}}, graph_.first());
  input.type.dtype = type.quant->affine.storage;
  input.type.quant.reset();
  graph_.ReplaceAllUses(&input, cast->output(), cast);
}

Dims Raising::DimsOf(const Node& node, std::size_t input, std::size_t rank) const {
  const Value* v = node.input(input);
  if (v == nullptr) Refuse(node, "input " + std::to_string(input) + " is not there");
  Dims dims = DimsOf(v);
  if (dims.size() != rank) Refuse(node, "input " + std::to_string(input) + " is not of rank " + std::to_string(rank));
  return dims;
}

std::vector<std::int64_t> Raising::IntsOf(const Node& node, std::size_t i) const {
  const Value* v = node.input(i);
  if (v == nullptr || !v->is_constant() || !v->data || !IsInteger(v->data->dtype))
    Refuse(node, "input " + std::to_string(i) + " is not a constant");
  return v->data->ToInts();
}

std::int64_t Raising::IntOf(const Node& node, std::size_t i) const {
  const std::vector<std::int64_t> numbers = IntsOf(node, i);
  if (numbers.size() != 1) Refuse(node, "input " + std::to_string(i) + " is not one number");
  return numbers[0];
}

std::int64_t Raising::AxisOf(const Node& node, std::int64_t axis, std::size_t rank) const {
  const auto n = static_cast<std::int64_t>(rank);
  if (axis < -n || axis >= n) Refuse(node, "its axis is outside of its rank");
  return axis < 0 ? axis + n : axis;
}

Value* Raising::Int64s(const std::vector<std::int64_t>& values, const std::string& name) {
  return graph_.AddConstant(name, TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(values.size())}, values));
}

Value* Raising::Scalar(float number, const std::string& name) {
  return graph_.AddConstant(name, TensorRef::Scalar(number));
}

// A constant, or an MX constant behind its QUANTIZE, in another order; anything else behind a Transpose.
Value* Raising::Move(Node& node, Value* v, const Perm& perm) {
  if (v == nullptr || DimsOf(v).size() != perm.size())
    Refuse(node, "an input is not of rank " + std::to_string(perm.size()));
  Value* numbers = v;
  std::optional<QuantType> quant = v->type.quant;
  if (v->producer() != nullptr && v->producer()->Is(kQuantize, kIrDomain) && quant &&
      quant->kind == QuantType::Kind::kMx && v->producer()->input(0)->is_constant()) {
    numbers = v->producer()->input(0);
  }
  if (!numbers->is_constant()) {
    Type type = internal::MakeType(v->type.dtype, Permuted(DimsOf(v), perm), quant);
    if (quant) type.quant = PermutedQuant(*quant, perm);
    Node* t = graph_.AddNode("Transpose", "", {v}, {{v->name() + "_t", type}}, &node);
    t->SetAttribute("perm", perm);
    return t->output();
  }
  TensorRef data = PermutedData(*numbers->data, perm);
  const Dims dims = data.dims;
  if (quant) quant = PermutedQuant(*quant, perm);
  return graph_.AddConstant(v->name(), std::move(data), internal::MakeType(v->type.dtype, dims, quant));
}

// Output 0 becomes `y`; y's type and name are the old value's.
void Raising::Replace(Node& node, Value* y) { ReplaceAll(node, {y}); }

void Raising::ReplaceAll(Node& node, const std::vector<Value*>& ys) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < ys.size(); ++i) {
    Value* old = node.output(i);
    ys[i]->type = old->type;
    graph_.ReplaceAllUses(old, ys[i]);
    names.push_back(old->name());
  }
  graph_.Erase(&node);
  for (std::size_t i = 0; i < ys.size(); ++i) graph_.Rename(ys[i], names[i]);
}

Value* Raising::Add(Node& before, const std::string& op, std::vector<Value*> inputs, const Type& type,
                    const std::string& domain) {
  return graph_.AddNode(op, domain, std::move(inputs), {{before.output()->name() + "_" + op, type}}, &before)->output();
}

// The float type of an output.
Type Raising::Plain(const Node& node, std::size_t output) const {
  Type type = node.output(output)->type;
  type.quant.reset();
  return type;
}

Type Raising::Shaped(const Node& node, const Dims& dims) const {
  return internal::MakeType(node.output()->type.dtype, dims);
}

Value* Raising::Reshaped(Node& node, Value* x, const Dims& dims) {
  return Add(node, "Reshape", {x, Int64s(dims, "shape")}, internal::MakeType(x->type.dtype, dims));
}

Value* Raising::Activate(Node& node, Value* y) {
  const std::string act = node.StringAttribute("fused_activation_function", "NONE");
  if (act == "NONE") return y;
  if (act == "RELU") return Add(node, "Relu", {y}, y->type);
  if (act == "TANH") return Add(node, "Tanh", {y}, y->type);
  if (act != "RELU6" && act != "RELU_N1_TO_1") Refuse(node, "activation " + act);
  Value* low = Scalar(act == "RELU6" ? 0.0f : -1.0f, "low");
  Value* high = Scalar(act == "RELU6" ? 6.0f : 1.0f, "high");
  return Add(node, "Clip", {y, low, high}, y->type);
}

// The activation works on NHWC or not alike: in front of the last Transpose.
void Raising::FinishSpatial(Node& node, Value* y) {
  y = Activate(node, y);
  // The numbers are rounded before they are moved: the value in front carries the type.
  if (node.output()->type.quant) y->type.quant = PermutedQuant(*node.output()->type.quant, Perm{0, 3, 1, 2});
  Value* back = Add(node, "Transpose", {y}, node.output()->type);
  back->producer()->SetAttribute("perm", Perm{0, 2, 3, 1});
  Replace(node, back);
}

Type Raising::SpatialType(const Node& node) const {
  if (DimsOf(node.output()).size() != 4) Refuse(node, "its output is not of rank 4");
  return internal::MakeType(DType::kF32, Permuted(DimsOf(node.output()), Perm{0, 3, 1, 2}));
}

void Raising::SetWindow(const Node& node, Node& to) const {
  to.SetAttribute("strides", Perm{node.IntAttribute("stride_h", 1), node.IntAttribute("stride_w", 1)});
  to.SetAttribute("auto_pad", std::string(node.StringAttribute("padding", "SAME") == "SAME" ? "SAME_UPPER" : "VALID"));
}

// The sizes that a file says are those that its windows give: one whose open dimensions it fills in anyhow is found
// here.
void Raising::CheckWindow(const Node& node, const Dims& in, const Dims& window, const Perm& dilation) const {
  const Dims out = DimsOf(node.output());
  const Perm stride{node.IntAttribute("stride_h", 1), node.IntAttribute("stride_w", 1)};
  const bool same = node.StringAttribute("padding", "SAME") == "SAME";
  for (std::size_t i = 0; i < 2; ++i) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    if (stride[i] <= 0 || dilation[i] <= 0 || dilation[i] > kMost || window[i] <= 0 || window[i] > kMost)
      Refuse(node, "its window");
    const std::int64_t covered = same ? 1 : (window[i] - 1) * dilation[i] + 1;
    const std::int64_t steps = in[i + 2] < covered ? 0 : (in[i + 2] - covered) / stride[i] + 1;
    if (out.size() != 4 || out[i + 1] != steps) Refuse(node, "its output is not of the size that its window gives");
  }
}

void Raising::Conv(Node& node) {
  const bool depthwise = node.op() == "DEPTHWISE_CONV_2D";
  Value* x = Move(node, node.input(0), {0, 3, 1, 2});
  Value* w = Move(node, node.input(1), depthwise ? Perm{3, 0, 1, 2} : Perm{0, 3, 1, 2});
  Value* y = Add(node, "Conv", {x, w}, SpatialType(node));
  Node& conv = *y->producer();
  if (node.input(2) != nullptr) conv.SetInput(2, node.input(2));
  SetWindow(node, conv);
  conv.SetAttribute("dilations",
                    Perm{node.IntAttribute("dilation_h_factor", 1), node.IntAttribute("dilation_w_factor", 1)});
  const Dims in = DimsOf(x), window = DimsOf(w), &dilation = *conv.IntsAttribute("dilations"),
             &stride = *conv.IntsAttribute("strides");
  const bool same = conv.StringAttribute("auto_pad", "VALID") != "VALID";
  CheckWindow(node, in, {window[2], window[3]}, dilation);
  if (same && (dilation[0] > 1 || dilation[1] > 1)) {  // onnxruntime pads by itself only without dilations
    Perm pads(4);
    for (std::size_t i = 0; i < 2; ++i) {
      const std::int64_t steps = (in[i + 2] + stride[i] - 1) / stride[i];
      const std::int64_t all =
          std::max<std::int64_t>((steps - 1) * stride[i] + (window[i + 2] - 1) * dilation[i] + 1 - in[i + 2], 0);
      pads[i] = all / 2;
      pads[i + 2] = all - all / 2;
    }
    conv.RemoveAttribute("auto_pad");
    conv.SetAttribute("pads", pads);
  }
  const std::int64_t channels = in[1], depth = window[1];
  if (depthwise)
    conv.SetAttribute("group", channels);
  else if (depth > 0 && depth != channels)
    conv.SetAttribute("group", channels / depth);
  FinishSpatial(node, y);
}

void Raising::TransposeConv(Node& node) {
  Value* x = Move(node, node.input(2), {0, 3, 1, 2});
  Value* w = Move(node, node.input(1), {3, 0, 1, 2});
  Value* y = Add(node, "ConvTranspose", {x, w}, SpatialType(node));
  Node& conv = *y->producer();
  if (node.input(3) != nullptr) conv.SetInput(2, node.input(3));
  SetWindow(node, conv);
  const Dims out = DimsOf(node.output());
  if (node.StringAttribute("padding", "SAME") == "SAME") {
    conv.SetAttribute("output_shape", Perm{out[1], out[2]});
  }
  FinishSpatial(node, y);
}

void Raising::Pool(Node& node) {
  Value* x = Move(node, node.input(0), {0, 3, 1, 2});
  Value* y = Add(node, node.op() == "MAX_POOL_2D" ? "MaxPool" : "AveragePool", {x}, SpatialType(node));
  SetWindow(node, *y->producer());
  y->producer()->SetAttribute("kernel_shape",
                              Perm{node.IntAttribute("filter_height", 1), node.IntAttribute("filter_width", 1)});
  CheckWindow(node, DimsOf(x), *y->producer()->IntsAttribute("kernel_shape"), {1, 1});
  FinishSpatial(node, y);
}

void Raising::Resize(Node& node) {
  const bool nearest = node.op() == "RESIZE_NEAREST_NEIGHBOR";
  Value* x = Move(node, node.input(0), {0, 3, 1, 2});
  const Dims out = Permuted(DimsOf(node.output()), Perm{0, 3, 1, 2});
  Value* y = Add(node, "Resize", {x, nullptr, nullptr, Int64s(out, "sizes")}, SpatialType(node));
  Node& resize = *y->producer();
  resize.SetAttribute("mode", std::string(nearest ? "nearest" : "linear"));
  resize.SetAttribute("coordinate_transformation_mode",
                      std::string(node.IntAttribute("align_corners", 0) != 0        ? "align_corners"
                                  : node.IntAttribute("half_pixel_centers", 0) != 0 ? "half_pixel"
                                                                                    : "asymmetric"));
  // Half pixels: the floor of (x + 1/2) * scale. Aligned corners: rounded. Both are a rounding of ONNX's coordinate.
  const bool centers = node.IntAttribute("align_corners", 0) != 0 || node.IntAttribute("half_pixel_centers", 0) != 0;
  if (nearest) resize.SetAttribute("nearest_mode", std::string(centers ? "round_prefer_ceil" : "floor"));
  FinishSpatial(node, y);
}

void Raising::DepthToSpace(Node& node) {
  if (DimsOf(node.input(0)).size() != 4 || DimsOf(node.output()).size() != 4) Refuse(node, "its rank is not 4");
  Value* x = Move(node, node.input(0), {0, 3, 1, 2});
  Value* y = Add(node, node.op() == "DEPTH_TO_SPACE" ? "DepthToSpace" : "SpaceToDepth", {x}, SpatialType(node));
  y->producer()->SetAttribute("blocksize", node.IntAttribute("block_size", 0));
  FinishSpatial(node, y);
}

// y = x / (bias + alpha * the sum of squares of 2 radius + 1 channels) ^ beta; ONNX has the mean of the squares.
void Raising::LocalResponse(Node& node) {
  Value* y = Add(node, "LRN", {Move(node, node.input(0), {0, 3, 1, 2})}, SpatialType(node));
  const std::int64_t radius = node.IntAttribute("radius", 0);
  if (radius < 0 || radius > 1 << 20) Refuse(node, "its radius");
  y->producer()->SetAttribute("size", 2 * radius + 1);
  y->producer()->SetAttribute("bias", node.FloatAttribute("bias", 0));
  y->producer()->SetAttribute("alpha", node.FloatAttribute("alpha", 0) * static_cast<float>(2 * radius + 1));
  y->producer()->SetAttribute("beta", node.FloatAttribute("beta", 0));
  FinishSpatial(node, y);
}

void Raising::FullyConnected(Node& node) {
  Value* x = node.input(0);
  const Dims in = DimsOf(x), w_dims = DimsOf(node, 1, 2);
  if (in.empty()) Refuse(node, "its input has no dimension");
  Type product = Plain(node);
  if (in.back() != w_dims[1] || (in.size() > 2 && node.IntAttribute("keep_num_dims", 0) == 0)) {
    std::int64_t n = 1;
    for (const std::int64_t d : in) n *= d;
    const Dims flat{n / std::max<std::int64_t>(w_dims[1], 1), w_dims[1]};
    Type type = internal::MakeType(x->type.dtype, flat, x->type.quant);
    x = Add(node, "Reshape", {x, Int64s(flat, "shape")}, type);
  }
  // What CircleLowering wrote as a Gemm: its sum begins with the bias. Its weights lay as a torch Linear has them: of
  // one row the runtime sums those in another order than transposed ones.
  const bool gemm = node.input(2) != nullptr && node.IntAttribute("keep_num_dims", 0) == 0 &&
                    DimsOf(node.output()).size() == 2 && DimsOf(x).size() == 2;
  Value* y = nullptr;
  if (gemm) {
    y = Add(node, "Gemm", {x, node.input(1), node.input(2)}, product);
    y->producer()->SetAttribute("transB", std::int64_t{1});
  } else {
    y = Add(node, "MatMul", {x, Move(node, node.input(1), {1, 0})}, product);
  }
  if (!gemm && node.input(2) != nullptr) y = Add(node, "Add", {y, node.input(2)}, product);
  Replace(node, Activate(node, y));
}

void Raising::BatchMatMul(Node& node) {
  Value *a = node.input(0), *b = node.input(1);
  const auto swap = [&](Value* v) {
    Perm perm;
    for (std::size_t i = 0; i < DimsOf(v).size(); ++i) perm.push_back(static_cast<std::int64_t>(i));
    if (perm.size() >= 2) std::swap(perm[perm.size() - 1], perm[perm.size() - 2]);
    return Move(node, v, perm);
  };
  if (b == nullptr) Refuse(node, "it has not two inputs");
  if (node.IntAttribute("adjoint_lhs", 0) != 0) a = swap(a);
  if (node.IntAttribute("adjoint_rhs", 0) != 0) b = swap(b);
  Replace(node, Add(node, "MatMul", {a, b}, Plain(node)));
}

namespace {

// Operators that are one of ONNX with the same inputs.
const std::string* SimpleName(std::string_view op) {
  static const auto* const names =
      new std::unordered_map<std::string_view, std::string>{{"ADD", "Add"},
                                                            {"SUB", "Sub"},
                                                            {"MUL", "Mul"},
                                                            {"DIV", "Div"},
                                                            {"POW", "Pow"},
                                                            {"MINIMUM", "Min"},
                                                            {"MAXIMUM", "Max"},
                                                            {"RELU", "Relu"},
                                                            {"LOGISTIC", "Sigmoid"},
                                                            {"TANH", "Tanh"},
                                                            {"EXP", "Exp"},
                                                            {"LOG", "Log"},
                                                            {"SQRT", "Sqrt"},
                                                            {"ABS", "Abs"},
                                                            {"NEG", "Neg"},
                                                            {"FLOOR", "Floor"},
                                                            {"CEIL", "Ceil"},
                                                            {"ROUND", "Round"},
                                                            {"SIN", "Sin"},
                                                            {"COS", "Cos"},
                                                            {"SIGN", "Sign"},
                                                            {"ELU", "Elu"},
                                                            {"LEAKY_RELU", "LeakyRelu"},
                                                            {"PRELU", "PRelu"},
                                                            {"HARD_SWISH", "HardSwish"},
                                                            {"SOFTMAX", "Softmax"},
                                                            {"LOG_SOFTMAX", "LogSoftmax"},
                                                            {"CONCATENATION", "Concat"},
                                                            {"CAST", "Cast"},
                                                            {"EQUAL", "Equal"},
                                                            {"LESS", "Less"},
                                                            {"LESS_EQUAL", "LessOrEqual"},
                                                            {"GREATER", "Greater"},
                                                            {"GREATER_EQUAL", "GreaterOrEqual"},
                                                            {"LOGICAL_AND", "And"},
                                                            {"LOGICAL_OR", "Or"},
                                                            {"LOGICAL_NOT", "Not"},
                                                            {"ADD_N", "Sum"}};
  const auto it = names->find(op);
  return it == names->end() ? nullptr : &it->second;
}

}  // namespace

void Raising::Simple(Node& node) {
  const std::string op = *SimpleName(node.op());
  std::vector<Value*> inputs(node.inputs().begin(), node.inputs().end());
  Value* y = Add(node, op, inputs, Plain(node));
  if (op == "LeakyRelu") y->producer()->SetAttribute("alpha", node.FloatAttribute("alpha", 0));
  if (op == "Softmax" || op == "LogSoftmax") {
    if (node.FloatAttribute("beta", 1) != 1) Refuse(node, "beta is not 1");
    y->producer()->SetAttribute("axis", std::int64_t{-1});
  }
  if (op == "Concat") y->producer()->SetAttribute("axis", node.IntAttribute("axis", 0));
  if (op == "Cast") y->producer()->SetAttribute("to", static_cast<std::int64_t>(node.output()->type.dtype));
  Replace(node, Activate(node, y));
}

// As exporters write it: x / sqrt 2, Erf, + 1, times x, times 1/2.
void Raising::Gelu(Node& node) {
  if (node.IntAttribute("approximate", 0) != 0) {
    Value* y = Add(node, "Gelu", {node.input(0)}, Plain(node));
    y->producer()->SetAttribute("approximate", std::string("tanh"));
    return Replace(node, y);
  }
  Value* x = node.input(0);
  const Type plain = Plain(node);
  const auto number = [&](float v) { return Scalar(v, "gelu"); };
  Value* erf = Add(node, "Erf", {Add(node, "Div", {x, number(std::sqrt(2.0f))}, plain)}, plain);
  Value* gate = Add(node, "Add", {erf, number(1)}, plain);
  Replace(node, Add(node, "Mul", {Add(node, "Mul", {x, gate}, plain), number(0.5f)}, plain));
}

// A mean over height and width of a picture: ONNX sums in the order of its own layout.
bool Raising::SpatialMean(Node& node) {
  const bool keeps = node.IntAttribute("keep_dims", 0) != 0;
  if (DimsOf(node.input(0)).size() != 4 || DimsOf(node.output()).size() != (keeps ? 4u : 2u)) return false;
  std::vector<std::int64_t> axes = IntsOf(node, 1);
  for (std::int64_t& a : axes) a += a < 0 ? 4 : 0;
  std::sort(axes.begin(), axes.end());
  if (axes != std::vector<std::int64_t>{1, 2}) return false;
  Value* x = Move(node, node.input(0), {0, 3, 1, 2});
  if (keeps) {
    FinishSpatial(node, Add(node, "GlobalAveragePool", {x}, SpatialType(node)));
  } else {
    Value* y = Add(node, "ReduceMean", {x, Int64s({2, 3}, "axes")}, Plain(node));
    y->producer()->SetAttribute("keepdims", std::int64_t{0});
    Replace(node, y);
  }
  return true;
}

void Raising::Reduce(Node& node) {
  static const auto* const names = new std::unordered_map<std::string_view, std::string>{{"MEAN", "ReduceMean"},
                                                                                         {"SUM", "ReduceSum"},
                                                                                         {"REDUCE_MAX", "ReduceMax"},
                                                                                         {"REDUCE_MIN", "ReduceMin"},
                                                                                         {"REDUCE_PROD", "ReduceProd"}};
  const std::string& op = names->at(node.op());
  if (op == "ReduceMean" && SpatialMean(node)) return;
  Value* y = Add(node, op, {node.input(0), Int64s(IntsOf(node, 1), "axes")}, Plain(node));
  y->producer()->SetAttribute("keepdims", node.IntAttribute("keep_dims", 0));
  Replace(node, y);
}

void Raising::QuantizeOrNot(Node& node) {
  const bool quantize = node.op() == "QUANTIZE";
  const bool from_codes = node.input(0)->type.quant.has_value();
  if (quantize && !node.output()->type.quant) Refuse(node, "its output has no parameters");
  if (!quantize && !from_codes) {
    if (!IsFloat(node.input(0)->type.dtype)) Refuse(node, "its input has no parameters");
    Value* y = Add(node, "Cast", {node.input(0)}, Plain(node));  // half-precision constants
    y->producer()->SetAttribute("to", std::int64_t{1});
    return Replace(node, y);
  }
  node.SetOp(std::string(!quantize ? kDequantize : from_codes ? kRequantize : kQuantize), std::string(kIrDomain));
  node.attributes().clear();
}

void Raising::Clip(Node& node) {
  const float low = node.op() == "RELU_N1_TO_1" ? -1 : 0, high = node.op() == "RELU6" ? 6 : 1;
  Replace(node, Add(node, "Clip", {node.input(0), Scalar(low, "low"), Scalar(high, "high")}, Plain(node)));
}

// Operators that ONNX says in several.
void Raising::Composed(Node& node) {
  const std::string op = node.op();
  const Type plain = Plain(node);
  Value *a = node.input(0), *b = node.input(1);
  if (op == "RSQRT") return Replace(node, Add(node, "Reciprocal", {Add(node, "Sqrt", {a}, plain)}, plain));
  if (op == "SQUARE") return Replace(node, Add(node, "Mul", {a, a}, plain));
  if (b == nullptr) Refuse(node, "it has not two inputs");
  if (op == "EMBEDDING_LOOKUP") return Replace(node, Add(node, "Gather", {b, a}, plain));
  if (op == "NOT_EQUAL") return Replace(node, Add(node, "Not", {Add(node, "Equal", {a, b}, plain)}, plain));
  if (op == "SQUARED_DIFFERENCE") {
    Value* d = Add(node, "Sub", {a, b}, plain);
    return Replace(node, Add(node, "Mul", {d, d}, plain));
  }
  // Rounded down: ONNX divides integers toward zero, and has a remainder of the divisor's sign for them alone.
  const bool integers = IsInteger(plain.dtype);
  if (integers) {
    Value* rest = Add(node, "Mod", {a, b}, plain);
    if (op == "FLOOR_MOD") return Replace(node, rest);
    return Replace(node, Add(node, "Div", {Add(node, "Sub", {a, rest}, plain), b}, plain));
  }
  Value* quotient = Add(node, "Floor", {Add(node, "Div", {a, b}, plain)}, plain);
  if (op == "FLOOR_DIV") return Replace(node, quotient);
  Replace(node, Add(node, "Sub", {a, Add(node, "Mul", {quotient, b}, plain)}, plain));
}

// x / max(the root of the sum of squares along the last axis, 1e-6)
void Raising::Normalize(Node& node) {
  Dims sums = DimsOf(node.input(0));
  if (sums.empty()) Refuse(node, "its input has no dimension");
  sums.back() = 1;
  const Type type = Shaped(node, sums);
  Value* norm = Add(node, "ReduceL2", {node.input(0), Int64s({-1}, "axes")}, type);
  norm->producer()->SetAttribute("keepdims", std::int64_t{1});
  norm = Add(node, "Max", {norm, Scalar(1e-6f, "least")}, type);
  Replace(node, Activate(node, Add(node, "Div", {node.input(0), norm}, Plain(node))));
}

void Raising::If(Node& node) {
  for (Graph* branch : node.subgraphs()) Raising(*branch).Run();
  node.SetOp("If");
}

void Raising::Raise(Node& node) {
  static const auto* const methods =
      new std::unordered_map<std::string_view, Method>{{"CONV_2D", &Raising::Conv},
                                                       {"DEPTHWISE_CONV_2D", &Raising::Conv},
                                                       {"TRANSPOSE_CONV", &Raising::TransposeConv},
                                                       {"MAX_POOL_2D", &Raising::Pool},
                                                       {"AVERAGE_POOL_2D", &Raising::Pool},
                                                       {"RESIZE_BILINEAR", &Raising::Resize},
                                                       {"RESIZE_NEAREST_NEIGHBOR", &Raising::Resize},
                                                       {"DEPTH_TO_SPACE", &Raising::DepthToSpace},
                                                       {"SPACE_TO_DEPTH", &Raising::DepthToSpace},
                                                       {"LOCAL_RESPONSE_NORMALIZATION", &Raising::LocalResponse},
                                                       {"FULLY_CONNECTED", &Raising::FullyConnected},
                                                       {"BATCH_MATMUL", &Raising::BatchMatMul},
                                                       {"GELU", &Raising::Gelu},
                                                       {"MEAN", &Raising::Reduce},
                                                       {"SUM", &Raising::Reduce},
                                                       {"REDUCE_MAX", &Raising::Reduce},
                                                       {"REDUCE_MIN", &Raising::Reduce},
                                                       {"REDUCE_PROD", &Raising::Reduce},
                                                       {"QUANTIZE", &Raising::QuantizeOrNot},
                                                       {"DEQUANTIZE", &Raising::QuantizeOrNot},
                                                       {"RELU6", &Raising::Clip},
                                                       {"RELU_0_TO_1", &Raising::Clip},
                                                       {"RELU_N1_TO_1", &Raising::Clip},
                                                       {"RSQRT", &Raising::Composed},
                                                       {"SQUARE", &Raising::Composed},
                                                       {"EMBEDDING_LOOKUP", &Raising::Composed},
                                                       {"NOT_EQUAL", &Raising::Composed},
                                                       {"SQUARED_DIFFERENCE", &Raising::Composed},
                                                       {"FLOOR_DIV", &Raising::Composed},
                                                       {"FLOOR_MOD", &Raising::Composed},
                                                       {"L2_NORMALIZATION", &Raising::Normalize},
                                                       {"IF", &Raising::If},
                                                       {"PAD", &Raising::Pad},
                                                       {"PADV2", &Raising::Pad},
                                                       {"MIRROR_PAD", &Raising::Pad},
                                                       {"SLICE", &Raising::Slice},
                                                       {"STRIDED_SLICE", &Raising::StridedSlice},
                                                       {"RESHAPE", &Raising::ToShape},
                                                       {"SQUEEZE", &Raising::ToShape},
                                                       {"EXPAND_DIMS", &Raising::ToShape},
                                                       {"SHAPE", &Raising::ToShape},
                                                       {"TRANSPOSE", &Raising::Transpose},
                                                       {"TILE", &Raising::Tile},
                                                       {"BROADCAST_TO", &Raising::Expand},
                                                       {"FILL", &Raising::Expand},
                                                       {"ZEROS_LIKE", &Raising::Expand},
                                                       {"SPLIT", &Raising::Split},
                                                       {"SPLIT_V", &Raising::Split},
                                                       {"PACK", &Raising::Pack},
                                                       {"UNPACK", &Raising::Unpack},
                                                       {"TOPK_V2", &Raising::TopK},
                                                       {"ARG_MAX", &Raising::ArgExtreme},
                                                       {"ARG_MIN", &Raising::ArgExtreme},
                                                       {"SELECT", &Raising::Select},
                                                       {"SELECT_V2", &Raising::Select},
                                                       {"GATHER", &Raising::Gather},
                                                       {"GATHER_ND", &Raising::GatherNd},
                                                       {"SCATTER_ND", &Raising::ScatterNd},
                                                       {"ONE_HOT", &Raising::OneHot},
                                                       {"REVERSE_V2", &Raising::Reverse},
                                                       {"CUMSUM", &Raising::CumSum},
                                                       {"SPACE_TO_BATCH_ND", &Raising::SpaceToBatch},
                                                       {"BATCH_TO_SPACE_ND", &Raising::BatchToSpace},
                                                       {"REDUCE_ANY", &Raising::ReduceBool},
                                                       {"REDUCE_ALL", &Raising::ReduceBool},
                                                       {"UNIDIRECTIONAL_SEQUENCE_LSTM", &Raising::Lstm}};
  if (node.outputs().empty() || node.input(0) == nullptr) Refuse(node, "it has no output or no input");
  for (const Value* output : node.outputs()) {
    if (output == nullptr) Refuse(node, "it lacks an output");
  }
  const auto it = methods->find(node.op());
  const bool several = node.op() == "SPLIT" || node.op() == "SPLIT_V" || node.op() == "UNPACK" ||
                       node.op() == "TOPK_V2" || node.op() == "IF";
  if (it == methods->end() && SimpleName(node.op()) == nullptr) Refuse(node, "the operator is not read");
  if (node.outputs().size() != 1 && !several) Refuse(node, "it has several outputs");
  if (it != methods->end()) return (this->*it->second)(node);
  Simple(node);
}

void RaiseCircle(Model& model) { Raising(*model.graph).Run(); }

}  // namespace octavo
