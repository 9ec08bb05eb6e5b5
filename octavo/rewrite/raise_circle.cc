#include "octavo/rewrite/raise_circle.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/emit/circle.h"
#include "octavo/emit/lower_circle.h"
#include "octavo/rewrite/restore_circle.h"

namespace octavo {
namespace {

using internal::Permuted;
using internal::PermutedData;
using internal::PermutedQuant;
using Perm = std::vector<std::int64_t>;

class Raising {
 public:
  explicit Raising(Model& model) : graph_(*model.graph) {}

  void Run() {
    for (Value* input : std::vector<Value*>(graph_.inputs().begin(), graph_.inputs().end())) {
      if (input->type.quant) RawInput(*input);
    }
    for (Value* constant : graph_.constants()) WideBias(*constant);
    RestoreLayerNorms(graph_);
    for (Node* node : graph_.nodes()) {
      if (node->domain() == kCircleDomain) Raise(*node);
    }
    graph_.EraseDead();
  }

 private:
  [[noreturn]] void Refuse(const Node& node, const std::string& why) const {
    ThrowUnsupported("no ONNX form: " + why, node.op() + " '" + node.output()->name() + "'");
  }

  // ONNX has no codes of 64 bits: what is one, the bias of 16-bit activations, is written as its numbers.
  static void WideBias(Value& constant) {
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

  void RawInput(Value& input) {
    if (input.type.quant->kind != QuantType::Kind::kAffine)
      ThrowUnsupported("a graph input of MX codes", "input '" + input.name() + "'");
    const Type type = input.type;
    Node* cast = graph_.AddNode(std::string(kStorageCast), std::string(kIrDomain), {&input},
                                {{input.name() + "_q", type}}, graph_.first());
    input.type.dtype = type.quant->affine.storage;
    input.type.quant.reset();
    graph_.ReplaceAllUses(&input, cast->output(), cast);
  }

  Dims DimsOf(const Value* v) const { return *StaticShape(v->type); }

  std::vector<std::int64_t> IntsOf(const Node& node, std::size_t i) const {
    const Value* v = node.input(i);
    if (v == nullptr || !v->is_constant() || !v->data || !IsInteger(v->data->dtype))
      Refuse(node, "input " + std::to_string(i) + " is not a constant");
    return v->data->ToInts();
  }

  Value* Int64s(const std::vector<std::int64_t>& values, const std::string& name) {
    return graph_.AddConstant(name,
                              TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(values.size())}, values));
  }

  // A constant, or an MX constant behind its QUANTIZE, in another order; anything else behind a Transpose.
  Value* Move(Node& node, Value* v, const Perm& perm) {
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
  void Replace(Node& node, Value* y) {
    Value* old = node.output();
    y->type = old->type;
    graph_.ReplaceAllUses(old, y);
    const std::string name = old->name();
    graph_.Erase(&node);
    graph_.Rename(y, name);
  }

  Value* Add(Node& before, const std::string& op, std::vector<Value*> inputs, const Type& type,
             const std::string& domain = {}) {
    return graph_.AddNode(op, domain, std::move(inputs), {{before.output()->name() + "_" + op, type}}, &before)
        ->output();
  }

  // The float type of the node's output.
  Type Plain(const Node& node) const {
    Type type = node.output()->type;
    type.quant.reset();
    return type;
  }

  Value* Activate(Node& node, Value* y) {
    const std::string act = node.StringAttribute("fused_activation_function", "NONE");
    if (act == "NONE") return y;
    if (act == "RELU") return Add(node, "Relu", {y}, y->type);
    if (act == "TANH") return Add(node, "Tanh", {y}, y->type);
    if (act != "RELU6" && act != "RELU_N1_TO_1") Refuse(node, "activation " + act);
    Value* low = graph_.AddConstant("low", TensorRef::Scalar(act == "RELU6" ? 0.0f : -1.0f));
    Value* high = graph_.AddConstant("high", TensorRef::Scalar(act == "RELU6" ? 6.0f : 1.0f));
    return Add(node, "Clip", {y, low, high}, y->type);
  }

  // The activation works on NHWC or not alike: in front of the last Transpose.
  void FinishSpatial(Node& node, Value* y) {
    y = Activate(node, y);
    // The numbers are rounded before they are moved: the value in front carries the type.
    if (node.output()->type.quant) y->type.quant = PermutedQuant(*node.output()->type.quant, Perm{0, 3, 1, 2});
    Value* back = Add(node, "Transpose", {y}, node.output()->type);
    back->producer()->SetAttribute("perm", Perm{0, 2, 3, 1});
    Replace(node, back);
  }

  Type SpatialType(const Node& node) const {
    return internal::MakeType(DType::kF32, Permuted(DimsOf(node.output()), Perm{0, 3, 1, 2}));
  }

  void SetWindow(const Node& node, Node& to) const {
    to.SetAttribute("strides", Perm{node.IntAttribute("stride_h", 1), node.IntAttribute("stride_w", 1)});
    to.SetAttribute("auto_pad",
                    std::string(node.StringAttribute("padding", "SAME") == "SAME" ? "SAME_UPPER" : "VALID"));
  }

  void Conv(Node& node) {
    const bool depthwise = node.op() == "DEPTHWISE_CONV_2D";
    Value* x = Move(node, node.input(0), {0, 3, 1, 2});
    Value* w = Move(node, node.input(1), depthwise ? Perm{3, 0, 1, 2} : Perm{0, 3, 1, 2});
    Value* y = Add(node, "Conv", {x, w}, SpatialType(node));
    Node& conv = *y->producer();
    if (node.input(2) != nullptr) conv.SetInput(2, node.input(2));
    SetWindow(node, conv);
    conv.SetAttribute("dilations",
                      Perm{node.IntAttribute("dilation_h_factor", 1), node.IntAttribute("dilation_w_factor", 1)});
    const std::int64_t channels = DimsOf(x)[1], depth = DimsOf(w)[1];
    if (depthwise)
      conv.SetAttribute("group", channels);
    else if (depth > 0 && depth != channels)
      conv.SetAttribute("group", channels / depth);
    FinishSpatial(node, y);
  }

  void TransposeConv(Node& node) {
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

  void Pool(Node& node) {
    Value* x = Move(node, node.input(0), {0, 3, 1, 2});
    Value* y = Add(node, node.op() == "MAX_POOL_2D" ? "MaxPool" : "AveragePool", {x}, SpatialType(node));
    SetWindow(node, *y->producer());
    y->producer()->SetAttribute("kernel_shape",
                                Perm{node.IntAttribute("filter_height", 1), node.IntAttribute("filter_width", 1)});
    FinishSpatial(node, y);
  }

  void Resize(Node& node) {
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
    if (nearest) resize.SetAttribute("nearest_mode", std::string("floor"));
    FinishSpatial(node, y);
  }

  void DepthToSpace(Node& node) {
    if (DimsOf(node.input(0)).size() != 4 || DimsOf(node.output()).size() != 4) Refuse(node, "its rank is not 4");
    Value* x = Move(node, node.input(0), {0, 3, 1, 2});
    Value* y = Add(node, node.op() == "DEPTH_TO_SPACE" ? "DepthToSpace" : "SpaceToDepth", {x}, SpatialType(node));
    y->producer()->SetAttribute("blocksize", node.IntAttribute("block_size", 0));
    FinishSpatial(node, y);
  }

  void FullyConnected(Node& node) {
    Value* x = node.input(0);
    const Dims in = DimsOf(x), w_dims = DimsOf(node.input(1));
    Type product = Plain(node);
    if (in.back() != w_dims[1] || (in.size() > 2 && node.IntAttribute("keep_num_dims", 0) == 0)) {
      std::int64_t n = 1;
      for (const std::int64_t d : in) n *= d;
      const Dims flat{n / std::max<std::int64_t>(w_dims[1], 1), w_dims[1]};
      Type type = internal::MakeType(x->type.dtype, flat, x->type.quant);
      x = Add(node, "Reshape", {x, Int64s(flat, "shape")}, type);
    }
    Value* w = Move(node, node.input(1), {1, 0});
    // What CircleLowering wrote as a Gemm: its sum begins with the bias.
    const bool gemm = node.input(2) != nullptr && node.IntAttribute("keep_num_dims", 0) == 0 &&
                      DimsOf(node.output()).size() == 2 && DimsOf(x).size() == 2;
    Value* y = gemm ? Add(node, "Gemm", {x, w, node.input(2)}, product) : Add(node, "MatMul", {x, w}, product);
    if (!gemm && node.input(2) != nullptr) y = Add(node, "Add", {y, node.input(2)}, product);
    Replace(node, Activate(node, y));
  }

  void Simple(Node& node, const std::string& op) {
    std::vector<Value*> inputs(node.inputs().begin(), node.inputs().end());
    Value* y = Add(node, op, inputs, Plain(node));
    if (op == "LeakyRelu") y->producer()->SetAttribute("alpha", node.FloatAttribute("alpha", 0));
    if (op == "Gelu")
      y->producer()->SetAttribute("approximate",
                                  std::string(node.IntAttribute("approximate", 0) != 0 ? "tanh" : "none"));
    if (op == "Softmax" || op == "LogSoftmax") {
      if (node.FloatAttribute("beta", 1) != 1) Refuse(node, "beta is not 1");
      y->producer()->SetAttribute("axis", std::int64_t{-1});
    }
    if (op == "Gather") {
      if (node.IntAttribute("batch_dims", 0) != 0) Refuse(node, "batch_dims");
      y->producer()->SetAttribute("axis", node.IntAttribute("axis", 0));
    }
    if (op == "Concat") y->producer()->SetAttribute("axis", node.IntAttribute("axis", 0));
    if (op == "Cast") y->producer()->SetAttribute("to", static_cast<std::int64_t>(node.output()->type.dtype));
    Replace(node, Activate(node, y));
  }

  // As exporters write it: x / sqrt 2, Erf, + 1, times x, times 1/2.
  void Gelu(Node& node) {
    if (node.IntAttribute("approximate", 0) != 0) return Simple(node, "Gelu");
    Value* x = node.input(0);
    const Type plain = Plain(node);
    const auto number = [&](float v) { return graph_.AddConstant("gelu", TensorRef::Scalar(v)); };
    Value* erf = Add(node, "Erf", {Add(node, "Div", {x, number(std::sqrt(2.0f))}, plain)}, plain);
    Value* gate = Add(node, "Add", {erf, number(1)}, plain);
    Replace(node, Add(node, "Mul", {Add(node, "Mul", {x, gate}, plain), number(0.5f)}, plain));
  }

  // A mean over height and width of a picture: ONNX sums in the order of its own layout.
  bool SpatialMean(Node& node) {
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

  void Reduce(Node& node, const std::string& op) {
    if (op == "ReduceMean" && SpatialMean(node)) return;
    Value* y = Add(node, op, {node.input(0), Int64s(IntsOf(node, 1), "axes")}, Plain(node));
    y->producer()->SetAttribute("keepdims", node.IntAttribute("keep_dims", 0));
    Replace(node, y);
  }

  void Pad(Node& node) {
    const std::vector<std::int64_t> table = IntsOf(node, 1);
    std::vector<std::int64_t> pads(table.size());
    const std::size_t rank = table.size() / 2;
    for (std::size_t i = 0; i < rank; ++i) {
      pads[i] = table[2 * i];
      pads[i + rank] = table[2 * i + 1];
    }
    std::vector<Value*> inputs{node.input(0), Int64s(pads, "pads")};
    if (node.input(2) != nullptr) {
      Value* v = node.input(2);
      if (!v->is_constant() || !v->data || v->data->elements() != 1) Refuse(node, "the value it pads with is computed");
      TensorRef scalar = *v->data;
      scalar.dims = {};
      Type type = v->type;
      type.shape.emplace();
      inputs.push_back(graph_.AddConstant(v->name(), scalar, type));
    }
    Replace(node, Add(node, "Pad", inputs, Plain(node)));
  }

  void Slice(Node& node) {
    const Dims in = DimsOf(node.input(0));
    std::vector<std::int64_t> begin = IntsOf(node, 1), end = IntsOf(node, 2), steps(begin.size(), 1),
                              axes(begin.size());
    if (begin.size() != in.size() || end.size() != in.size()) Refuse(node, "its lists do not fit its input");
    for (std::size_t i = 0; i < axes.size(); ++i) axes[i] = static_cast<std::int64_t>(i);
    if (node.op() == "SLICE") {
      for (std::size_t i = 0; i < end.size(); ++i) end[i] = end[i] < 0 ? in[i] : begin[i] + end[i];
    } else {
      steps = IntsOf(node, 3);
      for (const char* mask : {"ellipsis_mask", "new_axis_mask", "shrink_axis_mask"}) {
        if (node.IntAttribute(mask, 0) != 0) Refuse(node, mask);
      }
      for (std::size_t i = 0; i < begin.size(); ++i) {
        if (steps.size() != begin.size() || steps[i] <= 0) Refuse(node, "its steps");
        if ((node.IntAttribute("begin_mask", 0) >> i & 1) != 0) begin[i] = 0;
        if ((node.IntAttribute("end_mask", 0) >> i & 1) != 0) end[i] = in[i];
      }
    }
    Replace(node, Add(node, "Slice",
                      {node.input(0), Int64s(begin, "starts"), Int64s(end, "ends"), Int64s(axes, "axes"),
                       Int64s(steps, "steps")},
                      Plain(node)));
  }

  void Raise(Node& node) {
    static const auto* const simple =
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
                                                              {"GATHER", "Gather"},
                                                              {"CONCATENATION", "Concat"},
                                                              {"CAST", "Cast"},
                                                              {"SELECT_V2", "Where"},
                                                              {"SELECT", "Where"},
                                                              {"EQUAL", "Equal"},
                                                              {"LESS", "Less"},
                                                              {"LESS_EQUAL", "LessOrEqual"},
                                                              {"GREATER", "Greater"},
                                                              {"GREATER_EQUAL", "GreaterOrEqual"},
                                                              {"LOGICAL_AND", "And"},
                                                              {"LOGICAL_OR", "Or"},
                                                              {"LOGICAL_NOT", "Not"}};
    static const auto* const reductions =
        new std::unordered_map<std::string_view, std::string>{{"MEAN", "ReduceMean"},
                                                              {"SUM", "ReduceSum"},
                                                              {"REDUCE_MAX", "ReduceMax"},
                                                              {"REDUCE_MIN", "ReduceMin"},
                                                              {"REDUCE_PROD", "ReduceProd"}};
    if (node.outputs().size() != 1 || node.input(0) == nullptr) Refuse(node, "it has not one output and an input");
    const std::string op = node.op();
    if (const auto it = simple->find(op); it != simple->end()) return Simple(node, it->second);
    if (const auto it = reductions->find(op); it != reductions->end()) return Reduce(node, it->second);
    if (op == "CONV_2D" || op == "DEPTHWISE_CONV_2D") return Conv(node);
    if (op == "TRANSPOSE_CONV") return TransposeConv(node);
    if (op == "MAX_POOL_2D" || op == "AVERAGE_POOL_2D") return Pool(node);
    if (op == "RESIZE_BILINEAR" || op == "RESIZE_NEAREST_NEIGHBOR") return Resize(node);
    if (op == "FULLY_CONNECTED") return FullyConnected(node);
    if (op == "GELU") return Gelu(node);
    if (op == "DEPTH_TO_SPACE" || op == "SPACE_TO_DEPTH") return DepthToSpace(node);
    if (op == "PAD" || op == "PADV2") return Pad(node);
    if (op == "STRIDED_SLICE" || op == "SLICE") return Slice(node);
    if (op == "RESHAPE" || op == "SQUEEZE" || op == "EXPAND_DIMS") {
      return Replace(node, Add(node, "Reshape", {node.input(0), Int64s(DimsOf(node.output()), "shape")}, Plain(node)));
    }
    if (op == "TRANSPOSE") {
      Value* y = Add(node, "Transpose", {node.input(0)}, Plain(node));
      y->producer()->SetAttribute("perm", IntsOf(node, 1));
      return Replace(node, y);
    }
    if (op == "TILE")
      return Replace(node, Add(node, "Tile", {node.input(0), Int64s(IntsOf(node, 1), "repeats")}, Plain(node)));
    if (op == "RELU6") {
      Value* low = graph_.AddConstant("low", TensorRef::Scalar(0));
      Value* high = graph_.AddConstant("high", TensorRef::Scalar(6));
      return Replace(node, Add(node, "Clip", {node.input(0), low, high}, Plain(node)));
    }
    if (op == "RSQRT") {
      Value* root = Add(node, "Sqrt", {node.input(0)}, Plain(node));
      return Replace(node, Add(node, "Reciprocal", {root}, Plain(node)));
    }
    if (op == "BATCH_MATMUL") {
      Value *a = node.input(0), *b = node.input(1);
      const auto swap = [&](Value* v) {
        Perm perm;
        for (std::size_t i = 0; i < DimsOf(v).size(); ++i) perm.push_back(static_cast<std::int64_t>(i));
        if (perm.size() >= 2) std::swap(perm[perm.size() - 1], perm[perm.size() - 2]);
        return Move(node, v, perm);
      };
      if (node.IntAttribute("adjoint_lhs", 0) != 0) a = swap(a);
      if (node.IntAttribute("adjoint_rhs", 0) != 0) b = swap(b);
      return Replace(node, Add(node, "MatMul", {a, b}, Plain(node)));
    }
    if (op == "QUANTIZE" || op == "DEQUANTIZE") {
      const bool from_codes = node.input(0)->type.quant.has_value();
      if (op == "QUANTIZE" && !node.output()->type.quant) Refuse(node, "its output has no parameters");
      if (op == "DEQUANTIZE" && !from_codes) {
        if (!IsFloat(node.input(0)->type.dtype)) Refuse(node, "its input has no parameters");
        Value* y = Add(node, "Cast", {node.input(0)}, Plain(node));  // half-precision constants
        y->producer()->SetAttribute("to", std::int64_t{1});
        return Replace(node, y);
      }
      node.SetOp(std::string(op == "DEQUANTIZE" ? kDequantize
                             : from_codes       ? kRequantize
                                                : kQuantize),
                 std::string(kIrDomain));
      node.attributes().clear();
      return;
    }
    Refuse(node, "the operator is not raised");
  }

  Graph& graph_;
};

}  // namespace

void RaiseCircle(Model& model) { Raising(model).Run(); }

}  // namespace octavo
