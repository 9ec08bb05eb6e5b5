// Before:  %y = QLinearConv %x, s_x, z_x, %w, s_w, z_w, s_y, z_y, %b
// After:   %xq = StorageCast %x;  %yq : u8(s_y, z_y) = Conv %xq, %w, %b  form=qlinear;  %y = StorageCast %yq
// StorageCasts that meet vanish, so a chain of integer operators becomes a chain of operators on quantized values.
#include <algorithm>
#include <unordered_map>

#include "octavo/rewrite/quantized.h"

namespace octavo {
namespace {

constexpr std::string_view kMs = "com.microsoft";

const Value* Plain(const Value* v) {
  return v != nullptr && v->is_constant() && v->data && !v->type.quant ? v : nullptr;
}

// Affine parameters from a scale and a zero point; `axis` where they hold more than one number.
std::optional<QuantType> MakeType(const Value* scale, const Value* zero, DType storage,
                                  std::optional<std::int64_t> axis) {
  if (Plain(scale) == nullptr || scale->data->dtype != DType::kF32) return std::nullopt;
  if (zero != nullptr && (Plain(zero) == nullptr || zero->data->dtype != storage)) return std::nullopt;
  if (!IsInteger(storage) || BitWidth(storage) > 32) return std::nullopt;
  for (const float s : scale->data->ToFloats()) {
    if (!(s > 0)) return std::nullopt;
  }
  QuantType type;
  Affine& a = type.affine;
  a.storage = storage;
  a.scale = *scale->data;
  if (zero != nullptr) a.zero_point = *zero->data;
  const std::uint64_t n = a.scale.elements();
  if (n == 0) return std::nullopt;
  if (a.zero_point && a.zero_point->elements() != n) {
    // One zero point for many scales (or one scale for many zero points, which nothing makes).
    if (a.zero_point->elements() != 1) return std::nullopt;
    const std::vector<std::int64_t> all(n, a.zero_point->ToInts()[0]);
    a.zero_point = TensorRef::FromInts(storage, {static_cast<std::int64_t>(n)}, all);
  }
  if (n == 1) {
    a.scale.dims = {};
    if (a.zero_point) a.zero_point->dims = {};
    return type;
  }
  if (!axis || *axis < 0) return std::nullopt;
  a.scale.dims = {static_cast<std::int64_t>(n)};
  if (a.zero_point) a.zero_point->dims = a.scale.dims;
  a.axis = axis;
  return type;
}

class Folder {
 public:
  explicit Folder(Graph& graph) : graph_(graph) {}

  std::int64_t Run() {
    std::int64_t folded = 0;
    for (Node* node : graph_.nodes()) {
      // First: they take operators behind them along, which a snapshot of all nodes would still hold.
      if (!node->domain().empty() || (node->op() != "MatMulInteger" && node->op() != "ConvInteger")) continue;
      folded += FoldSums(*node, node->op() == "ConvInteger") ? 1 : 0;
    }
    for (Node* node : graph_.nodes()) folded += Fold(*node) ? 1 : 0;
    for (Node* node : graph_.nodes()) Meet(*node);
    return folded;
  }

 private:
  struct Operand {
    Value* codes = nullptr;
    std::optional<QuantType> type;  // unset: a plain value
  };

  static DType StorageOf(const Value* codes, const Value* zero) {
    if (zero != nullptr) return zero->type.dtype != DType::kUndefined ? zero->type.dtype : DType::kU8;
    return codes->type.dtype != DType::kUndefined ? codes->type.dtype : DType::kU8;
  }

  Operand Quantized(const Node& node, std::size_t x, std::size_t scale, std::size_t zero,
                    std::optional<std::int64_t> axis = std::nullopt) {
    Operand o;
    o.codes = node.input(x);
    if (o.codes == nullptr) return o;
    if (axis && *axis < 0) {
      const auto rank = o.codes->type.shape ? static_cast<std::int64_t>(o.codes->type.shape->size()) : 0;
      axis = rank + *axis;
    }
    o.type = MakeType(node.input(scale), node.input(zero), StorageOf(o.codes, node.input(zero)), axis);
    return o;
  }

  // The operand as a quantized value in front of `before`.
  Value* Typed(const Operand& o, Node* before) {
    if (o.codes == nullptr || !o.type) return o.codes;
    if (Plain(o.codes) != nullptr) {
      for (Value* known : constants_[o.codes]) {
        if (SameParams(*known->type.quant, *o.type)) return known;
      }
      Type type = TypeOf(*o.codes->data);
      type.dtype = DType::kF32;
      type.quant = o.type;
      Value* v = graph_.AddConstant(o.codes->name() + "_typed", *o.codes->data, std::move(type));
      constants_[o.codes].push_back(v);
      return v;
    }
    Type type = o.codes->type;
    type.dtype = DType::kF32;
    type.quant = o.type;
    Node* cast = graph_.AddNode(std::string(kStorageCast), std::string(kIrDomain), {o.codes},
                                {{o.codes->name() + "_typed", std::move(type)}}, before);
    return cast->output();
  }

  // `node` becomes `op` of the operands; `result`: parameters of its output, unset for a float one.
  bool Become(Node& node, const std::string& op, const std::vector<Operand>& operands, bool typed_result,
              const std::optional<QuantType>& result, std::initializer_list<std::string_view> drop = {}) {
    Value* y = node.output();
    if (y == nullptr || (typed_result && !result)) return false;
    std::vector<Value*> inputs;
    for (const Operand& o : operands) inputs.push_back(Typed(o, &node));
    while (!inputs.empty() && inputs.back() == nullptr) inputs.pop_back();
    Type type = y->type;
    type.dtype = DType::kF32;
    type.quant = typed_result ? result : std::nullopt;
    Node* fresh = graph_.AddNode(op, "", std::move(inputs), {{y->name() + "_value", type}}, &node);
    fresh->name = node.name;
    fresh->extras = node.extras;
    fresh->form = QuantForm::kQLinear;
    for (Attribute& a : node.attributes()) {
      if (std::find(drop.begin(), drop.end(), a.name) == drop.end()) fresh->SetAttribute(a.name, std::move(a.value));
    }
    Value* made = fresh->output();
    const std::string name = y->name();
    const std::string extras = y->extras;
    if (typed_result) {
      Type raw = y->type;
      raw.dtype = result->affine.storage;
      Node* cast =
          graph_.AddNode(std::string(kStorageCast), std::string(kIrDomain), {made}, {{name, std::move(raw)}}, &node);
      made = cast->output();
    }
    graph_.ReplaceAllUses(y, made);
    graph_.Erase(&node);
    graph_.Rename(made, name);
    made->extras = extras;
    return true;
  }

  // Bias codes of a layer: s32 at s_x * s_w.
  static Operand Bias(Value* bias, const Operand& x, const Operand& w) {
    Operand o;
    o.codes = bias;
    if (bias == nullptr || !x.type || !w.type) return o;
    std::vector<float> scales = w.type->affine.scale.ToFloats();
    for (float& s : scales) s *= x.type->affine.scale.ToFloats()[0];
    o.type.emplace();
    o.type->affine.storage = DType::kS32;
    if (scales.size() == 1) {
      o.type->affine.scale = TensorRef::Scalar(scales[0]);
    } else {
      o.type->affine.axis = 0;
      o.type->affine.scale = TensorRef::FromFloats({static_cast<std::int64_t>(scales.size())}, scales);
    }
    return o;
  }

  // Codes of a sum of integer products as a quantized value: `scales` are one or one an index of `axis`.
  static std::optional<QuantType> SumOperand(const Value* codes, const Value* zero, std::vector<float> scales,
                                             std::optional<std::int64_t> axis) {
    QuantType type;
    Affine& a = type.affine;
    a.storage = codes->type.dtype;
    if (a.storage != DType::kU8 && a.storage != DType::kS8) return std::nullopt;
    std::vector<std::int64_t> zeros{0};
    if (zero != nullptr) {
      if (Plain(zero) == nullptr || zero->data->dtype != a.storage || zero->data->elements() == 0) return std::nullopt;
      zeros = zero->data->ToInts();
    }
    if (zeros.size() > 1 && scales.size() == 1) scales.resize(zeros.size(), scales[0]);
    if (zeros.size() == 1) zeros.resize(scales.size(), zeros[0]);
    if (zeros.size() != scales.size()) return std::nullopt;
    Dims dims;
    if (scales.size() > 1) {
      const Value* known = Plain(codes);
      if (!axis || known == nullptr) return std::nullopt;
      const auto rank = static_cast<std::int64_t>(known->data->dims.size());
      a.axis = *axis < 0 ? rank + *axis : *axis;
      if (*a.axis < 0 || *a.axis >= rank ||
          known->data->dims[static_cast<std::size_t>(*a.axis)] != std::ssize(scales)) {
        return std::nullopt;
      }
      dims = {std::ssize(scales)};
    }
    a.scale = TensorRef::FromFloats(dims, scales);
    a.zero_point = TensorRef::FromInts(a.storage, dims, zeros);
    return type;
  }

  // The positive f32 numbers of a constant factor of the sums, or of a product of two such constants: one, or one a
  // channel; empty when it is none.
  static std::vector<float> Factor(const Value* v, bool conv) {
    const Node* mul = v->producer();
    if (mul != nullptr && mul->Is("Mul")) {
      const Value *a = Plain(mul->input(0)), *b = Plain(mul->input(1));
      if (a == nullptr || b == nullptr) return {};
      if (a->data->elements() != 1) std::swap(a, b);
      if (a->data->elements() != 1 || a->data->dtype != DType::kF32) return {};
      std::vector<float> factor = Factor(b, conv);
      for (float& f : factor) f *= a->data->ToFloats()[0];
      return factor;
    }
    if (Plain(v) == nullptr || v->data->dtype != DType::kF32 || v->data->elements() == 0) return {};
    std::vector<float> factor = v->data->ToFloats();
    for (const float f : factor) {
      if (!(f > 0) || f > 1e30f) return {};
    }
    const Dims& dims = v->data->dims;
    if (factor.size() > 1) {
      // [N] or [1, .., N] behind a product, [M, 1, ..] or [1, M, 1, ..] behind a convolution.
      const bool last = dims.back() == std::ssize(factor);
      const bool first = dims[dims.size() > 1 && dims[0] == 1 ? 1 : 0] == std::ssize(factor) && dims.back() == 1;
      if (conv ? !first : !last) return {};
    }
    return factor;
  }

  // Before:  %i = MatMulInteger %a, %b, z_a, z_b;  %f = Cast %i;  %y = Mul %f, m
  // After:   %y = MatMul (%a : u8(s, z_a)), (%b : u8(m / s, z_b))   s: of the quantized value that %a are the codes of
  // Only where all parameters are constant; ConvInteger likewise.
  bool FoldSums(Node& node, bool conv) {
    Value* sums = node.output();
    Value *x = node.input(0), *w = node.input(1);
    if (sums == nullptr || x == nullptr || w == nullptr || sums->is_graph_output() || sums->uses().size() != 1) {
      return false;
    }
    Node* cast = sums->uses()[0].node;
    if (!cast->Is("Cast") || cast->IntAttribute("to", 0) != 1 || cast->graph() != &graph_) return false;
    Node* end = cast;
    std::vector<float> factor;
    if (Value* f = cast->output(); !f->is_graph_output() && f->uses().size() == 1) {
      Node* mul = f->uses()[0].node;
      if (mul->Is("Mul") && mul->graph() == &graph_ && mul->input(0) != mul->input(1)) {
        factor = Factor(mul->input(mul->input(0) == f ? 1 : 0), conv);
        if (!factor.empty() && conv && factor.size() > 1) {
          // A convolution's factors must run along its channels: the rank of its result decides what [M, 1, ..] means.
          const Value* by = mul->input(mul->input(0) == f ? 1 : 0);
          const Value* known = by->producer() != nullptr ? nullptr : Plain(by);
          const Value* weight = Plain(w);
          if (known == nullptr || weight == nullptr ||
              known->data->dims.size() + (known->data->dims[0] == 1 ? 0 : 1) != weight->data->dims.size()) {
            factor.clear();
          }
        }
        if (!factor.empty()) end = mul;
      }
    }
    if (factor.empty()) factor = {1.0f};
    const Operand plain_x{x, SumOperand(x, node.input(2), {1.0f}, std::nullopt)};
    if (!plain_x.type) return false;
    Operand a = plain_x;
    const Node* from = x->producer();
    if (end != cast && from != nullptr && from->Is(kStorageCast, kIrDomain)) {
      const std::optional<QuantType>& q = from->input(0)->type.quant;
      if (q && q->kind == QuantType::Kind::kAffine && q->affine.per_tensor() && q->affine.storage == x->type.dtype &&
          q->affine.scale.dtype == DType::kF32) {
        const std::int64_t zero = q->affine.zero_point ? q->affine.zero_point->ToInts()[0] : 0;
        const float s = q->affine.scale.ToFloats()[0];
        std::vector<float> rest = factor;
        bool normal = zero == plain_x.type->affine.zero_point->ToInts()[0];
        for (float& f : rest) {
          f /= s;
          normal = normal && f > 1e-30f && f < 1e30f;
        }
        if (normal) {
          a.type = *q;
          factor = std::move(rest);
        }
      }
    }
    const Operand b{w, SumOperand(w, node.input(3), factor, conv ? 0 : -1)};
    if (!b.type || (conv && node.input(3) != nullptr && node.input(3)->data->elements() != 1)) return false;
    std::vector<Value*> inputs{Typed(a, &node), Typed(b, &node)};
    Value* y = end->output();
    Type type = y->type;
    type.dtype = DType::kF32;
    const std::string name = y->name();
    Node* fresh = graph_.AddNode(conv ? "Conv" : "MatMul", "", std::move(inputs), {{name + "_value", type}}, &node);
    fresh->name = node.name;
    fresh->extras = node.extras;
    fresh->form = QuantForm::kQLinear;
    for (Attribute& at : node.attributes()) fresh->SetAttribute(at.name, std::move(at.value));
    Value* made = fresh->output();
    made->extras = y->extras;
    graph_.ReplaceAllUses(y, made);
    Node* cast_node = cast;
    if (end != cast) graph_.Erase(end);
    graph_.Erase(cast_node);
    graph_.Erase(&node);
    graph_.Rename(made, name);
    return true;
  }

  bool Fold(Node& node) {
    const std::string op = node.op();
    const bool ms = node.domain() == kMs, standard = node.domain().empty();
    if (!ms && !standard) return false;
    const auto result = [&](std::size_t scale, std::size_t zero) {
      const Value* z = node.input(zero);
      return MakeType(node.input(scale), z, z != nullptr ? z->type.dtype : DType::kU8, std::nullopt);
    };
    const auto typed = [](const Operand& o) { return o.codes != nullptr && o.type.has_value(); };
    if (op == "QLinearConv" && (standard || node.IntAttribute("channels_last", 0) == 0)) {
      const Operand x = Quantized(node, 0, 1, 2), w = Quantized(node, 3, 4, 5, 0);
      const Operand b = Bias(node.input(8), x, w);
      if (!typed(x) || !typed(w) || (b.codes != nullptr && Plain(b.codes) == nullptr)) return false;
      return Become(node, "Conv", {x, w, b}, true, result(6, 7), {"channels_last"});
    }
    if (op == "QLinearMatMul" && standard) {
      const Operand a = Quantized(node, 0, 1, 2), b = Quantized(node, 3, 4, 5, -1);
      return typed(a) && typed(b) && Become(node, "MatMul", {a, b}, true, result(6, 7));
    }
    if (!ms) return false;
    if (op == "MatMulIntegerToFloat" && node.input(6) == nullptr) {
      const Operand a = Quantized(node, 0, 2, 4), b = Quantized(node, 1, 3, 5, -1);
      return typed(a) && typed(b) && Become(node, "MatMul", {a, b}, false, std::nullopt);
    }
    if (op == "QGemm") {
      const Operand a = Quantized(node, 0, 1, 2);
      const Operand b = Quantized(node, 3, 4, 5, node.IntAttribute("transB", 0) != 0 ? 0 : 1);
      const Operand c = Bias(node.input(6), a, b);
      if (!typed(a) || !typed(b) || (c.codes != nullptr && Plain(c.codes) == nullptr)) return false;
      if (c.codes != nullptr && c.type->affine.axis && c.codes->data->dims.size() != 1) return false;
      if (node.FloatAttribute("alpha", 1.0f) != 1.0f) return false;
      const bool quantized = node.input(7) != nullptr;
      return Become(node, "Gemm", {a, b, c}, quantized, quantized ? result(7, 8) : std::nullopt);
    }
    if (op == "QLinearAdd" || op == "QLinearMul") {
      const Operand a = Quantized(node, 0, 1, 2), b = Quantized(node, 3, 4, 5);
      return typed(a) && typed(b) && Become(node, op.substr(7), {a, b}, true, result(6, 7));
    }
    if (op == "QLinearSigmoid" || op == "QLinearLeakyRelu" || op == "QLinearSoftmax" || op == "QLinearAveragePool" ||
        op == "QLinearGlobalAveragePool") {
      if (node.IntAttribute("channels_last", 0) != 0) return false;
      const Operand x = Quantized(node, 0, 1, 2);
      return typed(x) && Become(node, op.substr(7), {x}, true, result(3, 4), {"channels_last", "opset"});
    }
    if (op == "QLinearWhere") {
      Operand condition;
      condition.codes = node.input(0);
      const Operand a = Quantized(node, 1, 2, 3), b = Quantized(node, 4, 5, 6);
      return typed(a) && typed(b) && Become(node, "Where", {condition, a, b}, true, result(7, 8));
    }
    if (op == "QLinearConcat") {
      std::vector<Operand> parts;
      for (std::size_t i = 2; i + 2 < node.inputs().size(); i += 3) {
        parts.push_back(Quantized(node, i, i + 1, i + 2));
        if (!typed(parts.back())) return false;
      }
      return !parts.empty() && Become(node, "Concat", parts, true, result(0, 1));
    }
    return false;
  }

  // Before:  %r = StorageCast %q;  %p : same parameters = StorageCast %r      After:  uses of %p use %q
  void Meet(Node& cast) {
    if (!cast.Is(kStorageCast, kIrDomain)) return;
    Value* out = cast.output();
    Value* raw = cast.input(0);
    if (!out->type.quant || raw->producer() == nullptr || !raw->producer()->Is(kStorageCast, kIrDomain)) return;
    Value* from = raw->producer()->input(0);
    if (!from->type.quant || !SameParams(*from->type.quant, *out->type.quant) || out->is_graph_output()) return;
    graph_.ReplaceAllUses(out, from);
    graph_.Erase(&cast);
  }

  Graph& graph_;
  std::unordered_map<const Value*, std::vector<Value*>> constants_;
};

}  // namespace

std::int64_t FoldQLinear(Model& model) {
  std::int64_t folded = FoldChoices(*model.graph);
  std::vector<Graph*> graphs{model.graph.get()};
  VisitNodes(*model.graph, [&](Node& node) {
    for (Graph* sub : node.subgraphs()) graphs.push_back(sub);
  });
  for (Graph* graph : graphs) folded += Folder(*graph).Run();
  if (folded > 0) model.graph->EraseDead();
  return folded;
}

}  // namespace octavo
