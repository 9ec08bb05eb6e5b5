// Types that follow from a node's inputs by the operator's definition alone (ONNX operator spec, "Summary" and shape
// rules of each): what most of a quantized graph is. The rest is the runtime's to infer.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

using Shape = std::vector<Dim>;
using Guess = std::optional<Type>;

constexpr std::int64_t kMost = std::int64_t{1} << 40;  // of a dimension that is computed, and of every number it is of

bool Small(std::int64_t v) { return v >= 0 && v < kMost; }
bool Known(const Value* v) {
  return v != nullptr && v->type.dtype != DType::kUndefined && v->type.shape.has_value() && v->type.opaque.empty();
}
const Shape& ShapeOf(const Value& v) { return *v.type.shape; }
Type Make(DType dtype, Shape shape) {
  Type type;
  type.dtype = dtype;
  type.shape = std::move(shape);
  return type;
}

std::optional<std::vector<std::int64_t>> Constant(const Value* v) {
  if (v == nullptr || !v->is_constant() || !v->data || v->type.quant || !IsInteger(v->data->dtype)) return std::nullopt;
  constexpr std::size_t kMostNumbers = 64;  // these say something of each dimension
  if (v->data->dims.size() > 1 || (!v->data->dims.empty() && v->data->dims[0] > std::int64_t{kMostNumbers})) {
    return std::nullopt;
  }
  return v->data->ToInts();
}

// Numpy's rule. Dimensions of which nothing says that they are equal: nullopt.
std::optional<Shape> Broadcast(const Shape& a, const Shape& b) {
  const Shape &more = a.size() >= b.size() ? a : b, &fewer = a.size() >= b.size() ? b : a;
  Shape to = more;
  for (std::size_t i = 0; i < fewer.size(); ++i) {
    Dim& x = to[more.size() - fewer.size() + i];
    const Dim& y = fewer[i];
    if (y.value == 1 || (x == y && (x.known() || !x.symbol.empty()))) continue;
    if (x.value != 1) return std::nullopt;
    x = y;
  }
  return to;
}

Guess Elementwise(const Node& node, std::size_t first, DType dtype) {
  Shape shape;
  for (std::size_t i = 0; i < node.inputs().size(); ++i) {
    if (!Known(node.input(i))) return std::nullopt;
    if (i >= first && node.input(i)->type.dtype != node.input(first)->type.dtype) return std::nullopt;
    std::optional<Shape> both = i == 0 ? ShapeOf(*node.input(i)) : Broadcast(shape, ShapeOf(*node.input(i)));
    if (!both) return std::nullopt;
    shape = std::move(*both);
  }
  return Make(dtype, std::move(shape));
}

Guess MatMul(const Node& node) {
  if (!Known(node.input(1))) return std::nullopt;
  const Shape &a = ShapeOf(*node.input(0)), &b = ShapeOf(*node.input(1));
  if (a.size() < 2 || b.size() < 2) return std::nullopt;
  std::optional<Shape> to = Broadcast(Shape(a.begin(), a.end() - 2), Shape(b.begin(), b.end() - 2));
  if (!to) return std::nullopt;
  to->push_back(a[a.size() - 2]);
  to->push_back(b.back());
  return Make(node.input(0)->type.dtype, std::move(*to));
}

Guess Gemm(const Node& node) {
  if (!Known(node.input(1))) return std::nullopt;
  const Shape &a = ShapeOf(*node.input(0)), &b = ShapeOf(*node.input(1));
  if (a.size() != 2 || b.size() != 2) return std::nullopt;
  return Make(node.input(0)->type.dtype,
              {a[node.IntAttribute("transA", 0) != 0 ? 1 : 0], b[node.IntAttribute("transB", 0) != 0 ? 0 : 1]});
}

// Conv and pooling: positions of a window.
Guess Windows(const Node& node, std::vector<std::int64_t> kernel, Dim channels) {
  const Shape& x = ShapeOf(*node.input(0));
  if (x.size() < 3 || kernel.size() != x.size() - 2) return std::nullopt;
  if (node.IntAttribute("ceil_mode", 0) != 0 || !channels.known()) return std::nullopt;
  const std::size_t n = kernel.size();
  const auto list = [&](std::string_view name, std::size_t count, std::int64_t fallback) {
    const std::vector<std::int64_t>* given = node.IntsAttribute(name);
    return given == nullptr ? std::vector<std::int64_t>(count, fallback) : *given;
  };
  const std::vector<std::int64_t> strides = list("strides", n, 1), dilations = list("dilations", n, 1);
  const std::vector<std::int64_t> pads = list("pads", 2 * n, 0);
  const std::string automatic = node.StringAttribute("auto_pad", "NOTSET");
  if (strides.size() != n || dilations.size() != n || pads.size() != 2 * n) return std::nullopt;
  if (automatic != "NOTSET" && automatic != "") return std::nullopt;
  Shape to = {x[0], std::move(channels)};
  for (std::size_t i = 0; i < n; ++i) {
    constexpr std::int64_t kMostStep = std::int64_t{1} << 20;  // so that no product overflows
    const std::int64_t in = x[i + 2].value;
    for (const std::int64_t v : {strides[i], dilations[i], kernel[i]}) {
      if (v < 1 || v >= kMostStep) return std::nullopt;
    }
    if (!Small(in) || !Small(pads[i]) || !Small(pads[i + n])) return std::nullopt;
    const std::int64_t room = in + pads[i] + pads[i + n] - ((kernel[i] - 1) * dilations[i] + 1);
    if (room < 0) return std::nullopt;
    to.push_back({room / strides[i] + 1, {}});
  }
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Conv(const Node& node) {
  const Value* w = node.input(1);
  const std::optional<Dims> dims = Known(w) ? StaticShape(w->type) : std::nullopt;
  if (!dims || dims->size() < 3) return std::nullopt;
  return Windows(node, Dims(dims->begin() + 2, dims->end()), Dim{(*dims)[0], {}});
}

Guess Pool(const Node& node) {
  const std::vector<std::int64_t>* kernel = node.IntsAttribute("kernel_shape");
  if (kernel == nullptr || node.outputs().size() != 1 || ShapeOf(*node.input(0)).size() < 3) return std::nullopt;
  return Windows(node, *kernel, ShapeOf(*node.input(0))[1]);
}

Guess GlobalPool(const Node& node) {
  Shape to = ShapeOf(*node.input(0));
  for (std::size_t i = 2; i < to.size(); ++i) to[i] = Dim{1, {}};
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Transpose(const Node& node) {
  const Shape& x = ShapeOf(*node.input(0));
  std::vector<std::int64_t> perm(x.size());
  std::iota(perm.rbegin(), perm.rend(), 0);
  if (const std::vector<std::int64_t>* given = node.IntsAttribute("perm")) {
    if (!std::is_permutation(given->begin(), given->end(), perm.begin(), perm.end())) return std::nullopt;
    perm = *given;
  }
  Shape to;
  for (const std::int64_t p : perm) to.push_back(x[static_cast<std::size_t>(p)]);
  return Make(node.input(0)->type.dtype, std::move(to));
}

std::optional<std::int64_t> Product(const Shape& shape) {
  std::int64_t n = 1;
  for (const Dim& d : shape) {
    if (!Small(d.value) || (d.value > 0 && n > kMost / d.value)) return std::nullopt;
    n *= d.value;
  }
  return n;
}

Guess Reshape(const Node& node) {
  const auto wanted = Constant(node.input(1));
  const Shape& x = ShapeOf(*node.input(0));
  if (!wanted || node.IntAttribute("allowzero", 0) != 0) return std::nullopt;
  Shape to;
  std::optional<std::size_t> rest;
  for (std::size_t i = 0; i < wanted->size(); ++i) {
    const std::int64_t d = (*wanted)[i];
    if (d < -1 || (d == 0 && i >= x.size()) || (d == -1 && rest)) return std::nullopt;
    if (d == -1) rest = i;
    to.push_back(d == 0 ? x[i] : Dim{d == -1 ? 1 : d, {}});
  }
  const std::optional<std::int64_t> all = Product(x), others = Product(to);
  if (!all || !others || *others == 0 || *all % *others != 0) return std::nullopt;
  if (rest) to[*rest].value = *all / *others;
  if (!rest && *all != *others) return std::nullopt;
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Flatten(const Node& node) {
  const Shape& x = ShapeOf(*node.input(0));
  std::int64_t axis = node.IntAttribute("axis", 1);
  if (axis < 0) axis += std::ssize(x);
  if (axis < 0 || axis > std::ssize(x)) return std::nullopt;
  const auto rows = Product(Shape(x.begin(), x.begin() + axis)), columns = Product(Shape(x.begin() + axis, x.end()));
  if (!rows || !columns) return std::nullopt;
  return Make(node.input(0)->type.dtype, {Dim{*rows, {}}, Dim{*columns, {}}});
}

// Axes of a Squeeze or Unsqueeze, as positions among `rank` dimensions.
std::optional<std::vector<bool>> Axes(const Node& node, std::int64_t rank) {
  const std::vector<std::int64_t>* attribute = node.IntsAttribute("axes");
  const auto axes = attribute != nullptr ? std::optional(*attribute) : Constant(node.input(1));
  if (!axes || rank > 64) return std::nullopt;
  std::vector<bool> at(static_cast<std::size_t>(rank));
  for (const std::int64_t axis : *axes) {
    const std::int64_t i = axis < 0 ? axis + rank : axis;
    if (i < 0 || i >= rank || at[static_cast<std::size_t>(i)]) return std::nullopt;
    at[static_cast<std::size_t>(i)] = true;
  }
  return at;
}

Guess Squeeze(const Node& node) {
  const Shape& x = ShapeOf(*node.input(0));
  const auto at = Axes(node, std::ssize(x));
  if (!at) return std::nullopt;
  Shape to;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!(*at)[i]) to.push_back(x[i]);
    if ((*at)[i] && x[i].value != 1) return std::nullopt;
  }
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Unsqueeze(const Node& node) {
  const Shape& x = ShapeOf(*node.input(0));
  const std::vector<std::int64_t>* attribute = node.IntsAttribute("axes");
  const auto axes = attribute != nullptr ? std::optional(*attribute) : Constant(node.input(1));
  if (!axes) return std::nullopt;
  const auto at = Axes(node, std::ssize(x) + std::ssize(*axes));
  if (!at) return std::nullopt;
  Shape to;
  auto next = x.begin();
  for (const bool one : *at) to.push_back(one ? Dim{1, {}} : *next++);
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Concat(const Node& node) {
  Shape to = ShapeOf(*node.input(0));
  std::int64_t axis = node.IntAttribute("axis", std::numeric_limits<std::int64_t>::max());
  if (axis < 0) axis += std::ssize(to);
  if (axis < 0 || axis >= std::ssize(to)) return std::nullopt;
  const auto a = static_cast<std::size_t>(axis);
  to[a] = Dim{0, {}};
  for (const Value* v : node.inputs()) {
    if (!Known(v) || v->type.dtype != node.input(0)->type.dtype || ShapeOf(*v).size() != to.size()) return std::nullopt;
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (i != a && !(ShapeOf(*v)[i] == to[i])) return std::nullopt;
    }
    if (!Small(ShapeOf(*v)[a].value)) return std::nullopt;
    to[a].value += ShapeOf(*v)[a].value;
    if (!Small(to[a].value)) return std::nullopt;
  }
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Gather(const Node& node) {
  if (!Known(node.input(1))) return std::nullopt;
  const Shape &x = ShapeOf(*node.input(0)), &indices = ShapeOf(*node.input(1));
  std::int64_t axis = node.IntAttribute("axis", 0);
  if (axis < 0) axis += std::ssize(x);
  if (axis < 0 || axis >= std::ssize(x)) return std::nullopt;
  Shape to(x.begin(), x.begin() + axis);
  to.insert(to.end(), indices.begin(), indices.end());
  to.insert(to.end(), x.begin() + axis + 1, x.end());
  return Make(node.input(0)->type.dtype, std::move(to));
}

// A list of an attribute of old operator sets, or of an input of later ones.
std::optional<std::vector<std::int64_t>> List(const Node& node, std::string_view name, std::size_t input) {
  if (const std::vector<std::int64_t>* given = node.IntsAttribute(name)) return *given;
  return Constant(node.input(input));
}

Guess Slice(const Node& node) {
  Shape to = ShapeOf(*node.input(0));
  const auto starts = List(node, "starts", 1), ends = List(node, "ends", 2);
  if (!starts || !ends || starts->size() != ends->size()) return std::nullopt;
  std::vector<std::int64_t> axes(starts->size()), steps(starts->size(), 1);
  std::iota(axes.begin(), axes.end(), 0);
  if (node.input(3) != nullptr || node.FindAttribute("axes") != nullptr) {
    const auto given = List(node, "axes", 3);
    if (!given || given->size() != axes.size()) return std::nullopt;
    axes = *given;
  }
  if (node.input(4) != nullptr) {
    const auto given = Constant(node.input(4));
    if (!given || given->size() != steps.size()) return std::nullopt;
    steps = *given;
  }
  std::vector<bool> seen(to.size());
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const std::int64_t axis = axes[i] < 0 ? axes[i] + std::ssize(to) : axes[i];
    if (axis < 0 || axis >= std::ssize(to) || steps[i] < 1 || seen[static_cast<std::size_t>(axis)]) return std::nullopt;
    seen[static_cast<std::size_t>(axis)] = true;
    Dim& d = to[static_cast<std::size_t>(axis)];
    if (!Small(d.value)) return std::nullopt;
    const std::int64_t n = d.value;
    const auto bound = [n](std::int64_t v) { return std::clamp<std::int64_t>(v < 0 && v >= -n ? v + n : v, 0, n); };
    const std::int64_t count = bound((*ends)[i]) - bound((*starts)[i]);
    d.value = count <= 0 ? 0 : (count - 1) / steps[i] + 1;
  }
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Pad(const Node& node) {
  Shape to = ShapeOf(*node.input(0));
  const auto pads = List(node, "pads", 1);
  if (!pads || node.input(3) != nullptr || pads->size() != 2 * to.size()) return std::nullopt;
  for (std::size_t i = 0; i < to.size(); ++i) {
    const std::int64_t before = (*pads)[i], after = (*pads)[i + to.size()];
    if (before == 0 && after == 0) continue;
    if (!Small(to[i].value) || !Small(before) || !Small(after)) return std::nullopt;
    to[i].value += before + after;
  }
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Reduce(const Node& node) {
  const Shape& x = ShapeOf(*node.input(0));
  std::vector<bool> at(x.size(), true);
  if (node.input(1) != nullptr || node.FindAttribute("axes") != nullptr) {
    const auto axes = List(node, "axes", 1);
    if (!axes || axes->empty()) return std::nullopt;
    at.assign(x.size(), false);
    for (const std::int64_t axis : *axes) {
      const std::int64_t i = axis < 0 ? axis + std::ssize(x) : axis;
      if (i < 0 || i >= std::ssize(x)) return std::nullopt;
      at[static_cast<std::size_t>(i)] = true;
    }
  } else if (node.IntAttribute("noop_with_empty_axes", 0) != 0) {
    return std::nullopt;
  }
  Shape to;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!at[i]) to.push_back(x[i]);
    if (at[i] && node.IntAttribute("keepdims", 1) != 0) to.push_back(Dim{1, {}});
  }
  return Make(node.input(0)->type.dtype, std::move(to));
}

// Output `index` of a Split.
Guess SplitPart(const Node& node, std::size_t index) {
  if (!Known(node.input(0))) return std::nullopt;
  Shape to = ShapeOf(*node.input(0));
  std::int64_t axis = node.IntAttribute("axis", 0);
  if (axis < 0) axis += std::ssize(to);
  if (axis < 0 || axis >= std::ssize(to)) return std::nullopt;
  Dim& d = to[static_cast<std::size_t>(axis)];
  const auto parts = std::ssize(node.outputs());
  if (node.input(1) != nullptr || node.FindAttribute("split") != nullptr) {
    const auto sizes = List(node, "split", 1);
    if (!sizes || std::ssize(*sizes) != parts || !Small((*sizes)[index])) return std::nullopt;
    d = Dim{(*sizes)[index], {}};
  } else {
    if (!Small(d.value) || d.value % parts != 0) return std::nullopt;
    d.value /= parts;
  }
  return Make(node.input(0)->type.dtype, std::move(to));
}

Guess Quantize(const Node& node) {
  const Value* zero = node.input(2);
  if (zero == nullptr ? node.FindAttribute("output_dtype") != nullptr : zero->type.dtype == DType::kUndefined) {
    return std::nullopt;
  }
  return Make(zero == nullptr ? DType::kU8 : zero->type.dtype, ShapeOf(*node.input(0)));
}

Guess Dequantize(const Node& node) {
  const Value* scale = node.input(1);
  if (scale == nullptr || scale->type.dtype == DType::kUndefined || node.FindAttribute("output_dtype") != nullptr) {
    return std::nullopt;
  }
  return Make(scale->type.dtype, ShapeOf(*node.input(0)));
}

Guess Cast(const Node& node) {
  const std::int64_t to = node.IntAttribute("to", 0);  // DType is numbered as TensorProto.DataType
  if (to < 1 || to > static_cast<std::int64_t>(DType::kBF16)) return std::nullopt;
  return Make(static_cast<DType>(to), ShapeOf(*node.input(0)));
}

// One output, of input 0's type.
constexpr std::array<std::string_view, 37> kLikeInput = {"Abs",
                                                         "BatchNormalization",
                                                         "Ceil",
                                                         "Clip",
                                                         "Cos",
                                                         "Dropout",
                                                         "Elu",
                                                         "Erf",
                                                         "Exp",
                                                         "Floor",
                                                         "Gelu",
                                                         "HardSigmoid",
                                                         "HardSwish",
                                                         "Identity",
                                                         "LeakyRelu",
                                                         "Log",
                                                         "LogSoftmax",
                                                         "Mish",
                                                         "Neg",
                                                         "Reciprocal",
                                                         "Relu",
                                                         "Round",
                                                         "Selu",
                                                         "Sigmoid",
                                                         "Sign",
                                                         "Sin",
                                                         "Softmax",
                                                         "Softplus",
                                                         "Softsign",
                                                         "Sqrt",
                                                         "Tan",
                                                         "Tanh",
                                                         "ThresholdedRelu",
                                                         "Celu",
                                                         "InstanceNormalization",
                                                         "LayerNormalization",
                                                         "LRN"};

using Infer = Guess (*)(const Node&);
struct Row {
  std::string_view op;
  Infer infer;
};
Guess SameType(const Node& node) { return Elementwise(node, 0, node.input(0)->type.dtype); }
Guess WhereType(const Node& node) {
  return node.input(1) == nullptr ? std::nullopt : Elementwise(node, 1, node.input(1)->type.dtype);
}
constexpr std::array<Row, 31> kRows = {{{"Add", SameType},
                                        {"Sub", SameType},
                                        {"Mul", SameType},
                                        {"Div", SameType},
                                        {"Min", SameType},
                                        {"Max", SameType},
                                        {"Sum", SameType},
                                        {"Mean", SameType},
                                        {"Where", WhereType},
                                        {"MatMul", MatMul},
                                        {"Gemm", Gemm},
                                        {"Conv", Conv},
                                        {"MaxPool", Pool},
                                        {"AveragePool", Pool},
                                        {"GlobalAveragePool", GlobalPool},
                                        {"GlobalMaxPool", GlobalPool},
                                        {"Transpose", Transpose},
                                        {"Reshape", Reshape},
                                        {"Flatten", Flatten},
                                        {"Squeeze", Squeeze},
                                        {"Unsqueeze", Unsqueeze},
                                        {"Concat", Concat},
                                        {"Gather", Gather},
                                        {"Slice", Slice},
                                        {"Pad", Pad},
                                        {"ReduceMean", Reduce},
                                        {"ReduceSum", Reduce},
                                        {"ReduceMax", Reduce},
                                        {"ReduceMin", Reduce},
                                        {"QuantizeLinear", Quantize},
                                        {"DequantizeLinear", Dequantize}}};

Guess TypeOfResult(const Node& node) {
  if (!Known(node.input(0)) || !node.subgraphs().empty()) return std::nullopt;
  const bool pair = node.op() == "QuantizeLinear" || node.op() == "DequantizeLinear";
  if (!node.domain().empty() && !(pair && node.domain() == "com.microsoft")) return std::nullopt;
  if (node.op() == "Cast") return Cast(node);
  if (std::find(kLikeInput.begin(), kLikeInput.end(), node.op()) != kLikeInput.end()) {
    return Make(node.input(0)->type.dtype, ShapeOf(*node.input(0)));
  }
  const auto row = std::find_if(kRows.begin(), kRows.end(), [&](const Row& r) { return r.op == node.op(); });
  return row == kRows.end() ? std::nullopt : row->infer(node);
}

Guess TypeOfOutput(const Node& node, std::size_t i) {
  return node.Is("Split") ? SplitPart(node, i) : i == 0 ? TypeOfResult(node) : std::nullopt;
}

}  // namespace

bool FillTypes(Model& model) {
  std::vector<std::pair<Value*, Type>> declared;
  bool missing = false;
  for (Node* node = model.graph->first(); node != nullptr; node = node->next()) {
    for (Value* value : node->outputs()) {
      if (value == nullptr || value->type.quant || !value->type.opaque.empty()) continue;
      missing = missing || !value->type.shape.has_value();
      if (!value->is_graph_output()) declared.emplace_back(value, value->type);
    }
  }
  if (!missing) return true;
  for (auto& [value, type] : declared) value->type = Type{};
  bool complete = true;
  for (Node* node = model.graph->first(); node != nullptr && complete; node = node->next()) {
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      Value* value = node->output(i);
      if (value == nullptr || value->type.shape.has_value()) continue;
      Guess found;
      if (value->type.opaque.empty() && !value->type.quant) {
        found = TypeOfOutput(*node, i);
      }
      if (found && (value->type.dtype == DType::kUndefined || value->type.dtype == found->dtype)) {
        value->type = std::move(*found);
      } else {
        complete = false;
      }
    }
  }
  if (!complete) {
    for (auto& [value, type] : declared) value->type = std::move(type);
  }
  return complete;
}

std::int64_t DeriveTypes(Model& model) {
  std::int64_t derived = 0;
  for (Node* node : model.graph->nodes()) {
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      Value* value = node->output(i);
      if (value == nullptr || value->type.quant || !value->type.opaque.empty() || StaticShape(value->type)) continue;
      Guess found = TypeOfOutput(*node, i);
      if (!found || !StaticShape(*found) || value->is_graph_output()) continue;
      if (value->type.dtype != DType::kUndefined && value->type.dtype != found->dtype) continue;
      value->type = std::move(*found);
      ++derived;
    }
  }
  return derived;
}

}  // namespace octavo
