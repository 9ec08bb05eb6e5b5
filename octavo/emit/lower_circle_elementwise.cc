// How elementwise operators and activations are said in Circle: one handler an operator.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/emit/lower_circle.h"

namespace octavo::internal {

// -------------------------------------------------------------------------------------------------------- elementwise

Layout CircleLowering::ElementwiseLayout(const Node& node, std::span<const Value* const> operands) const {
  for (const Value* v : operands) {
    if (v == nullptr) Refuse(node, "it lacks an input");
    if (!v->is_constant() && Has(v, Layout::kLast) && !Has(v, Layout::kFirst)) return Layout::kLast;
  }
  for (const Value* v : operands) {
    if (!v->is_constant() && Has(v, Layout::kLast)) return Layout::kLast;
  }
  return Layout::kFirst;
}

void CircleLowering::RequireArithmetic(const Node& node, std::span<const Value* const> operands) const {
  for (const Value* v : operands) {
    if (v == nullptr || v->type.quant) continue;
    const DType t = v->type.dtype;
    if (t == DType::kF64 || (!IsFloat(t) && t != DType::kS32 && t != DType::kS64 && t != DType::kBool)) {
      Refuse(node, "no consumer calculates with plain " + std::string(Name(t)) + " numbers");
    }
  }
}

Value* CircleLowering::ElementwiseOperand(const Value* old, Layout layout, std::size_t rank, bool as_float) {
  const Dims dims = DimsOf(old);
  if (layout == Layout::kFirst || dims.size() == rank) return Get(old, layout, as_float);
  const bool one = std::all_of(dims.begin(), dims.end(), [](std::int64_t d) { return d == 1; });
  if (one) return Get(old, Layout::kFirst, as_float);
  // Aligned to the full rank before the channels move.
  Dims full = dims;
  while (full.size() < rank) full.insert(full.begin(), 1);
  if (old->is_constant()) {
    Value* c = GetConstant(old, Layout::kFirst, as_float);
    if (c->is_constant()) {
      TensorRef data = *c->data;
      data.dims = full;
      std::optional<QuantType> quant = c->type.quant;
      const auto shift = static_cast<std::int64_t>(rank - dims.size());
      if (quant && quant->kind == QuantType::Kind::kAffine && quant->affine.axis) *quant->affine.axis += shift;
      const std::vector<std::int64_t> perm = ToLast(rank);
      data = PermutedData(data, perm);
      if (quant) quant = PermutedQuant(*quant, perm);
      const Dims out = data.dims;
      return new_->AddConstant(old->name(), std::move(data), MakeType(c->type.dtype, out, quant));
    }
    return Transpose(Reshape(c, full, old->name()), ToLast(rank), old->name());
  }
  return Transpose(Reshape(Get(old, Layout::kFirst, as_float), full, old->name()), ToLast(rank), old->name());
}

void CircleLowering::Elementwise(const Node& node) {
  const Value *a = node.input(0), *b = node.input(1);
  const std::string op = node.Is("Add")   ? "ADD"
                         : node.Is("Sub") ? "SUB"
                         : node.Is("Mul") ? "MUL"
                         : node.Is("Div") ? "DIV"
                                          : node.op();
  const Value* operands[] = {a, b};
  RequireArithmetic(node, operands);
  bool integer = IsFloat(OutputOf(node)->type.dtype) && Integer(node, op, operands);
  if (integer && StorageOf(a->type) != Storage::kMx && (!PerTensorType(a->type) || !PerTensorType(b->type))) {
    KeptFloat(node, "an operand has a scale for each channel");
    integer = false;
  }
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(OutputOf(node)).size();
  Attributes attributes{{"fused_activation_function", std::string(ActivationOf(node))}};
  if (op == "ADD" || op == "SUB") attributes.emplace_back("pot_scale_int16", std::int64_t{0});
  Value* y = Emit(op, {ElementwiseOperand(a, layout, rank, !integer), ElementwiseOperand(b, layout, rank, !integer)},
                  OutputOf(node)->name(), OutType(node, layout, integer), std::move(attributes));
  Finish(node, layout, y, integer);
}

void CircleLowering::DivNode(const Node& node) {
  const Value *a = node.input(0), *b = node.input(1);
  // Consumers have no right integer DIV. By one constant it is a multiplication, whose factor is one code.
  if (a->type.quant && b->is_constant() && b->data && DimsOf(b).size() <= DimsOf(a).size() &&
      b->data->elements() == 1 && IsFloat(node.output()->type.dtype)) {
    const Value* operands[] = {a};
    if (StorageOf(a->type) != Storage::kMx && Integer(node, "MUL", operands)) {
      Value* divisor = GetConstant(b, Layout::kFirst, true);
      const float r = 1.0f / divisor->data->ToFloats()[0];
      new_->Erase(divisor);
      if (std::isfinite(r) && r != 0) {
        const DType storage = a->type.quant->affine.storage;
        const std::int64_t code = storage == DType::kU8 ? (r > 0 ? 1 : 0) : (r > 0 ? 1 : -1);
        const std::int64_t zero = storage == DType::kU8 ? (r > 0 ? 0 : 1) : 0;
        const Dims one{1};
        Value* factor =
            new_->AddConstant(node.output()->name() + "_reciprocal", TensorRef::FromInts(storage, one, {&code, 1}),
                              MakeType(DType::kF32, one, PerTensor(storage, std::fabs(r), zero)));
        const Layout layout = Prefer(a);
        Value* y = Emit("MUL", {Get(a, layout, false), factor}, OutputOf(node)->name(), OutType(node, layout, true),
                        {{"fused_activation_function", std::string(ActivationOf(node))}});
        Finish(node, layout, y, true);
        return;
      }
    }
  }
  Elementwise(node);
}

void CircleLowering::Variadic(const Node& node) {
  const std::string op = node.Is("Min") ? "MINIMUM" : node.Is("Max") ? "MAXIMUM" : "ADD";
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  RequireArithmetic(node, operands);
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(OutputOf(node)).size();
  if (OutputOf(node)->type.quant) KeptFloat(node, "no consumer has it in integers");
  Value* y = ElementwiseOperand(operands[0], layout, rank, true);
  for (std::size_t i = 1; i < operands.size(); ++i) {
    y = Binary(op, y, ElementwiseOperand(operands[i], layout, rank, true), OutputOf(node)->name());
    y->type.dtype = OutType(node, layout, false).dtype;
  }
  if (node.Is("Mean"))
    y = Binary("MUL", y, Scalar(1.0f / static_cast<float>(operands.size()), "mean"), OutputOf(node)->name());
  Finish(node, layout, y, false);
}

void CircleLowering::PowNode(const Node& node) {
  const Value* a = node.input(0);
  RequireArithmetic(node, {{a}});
  if (!IsFloat(a->type.dtype)) Refuse(node, "no consumer has powers of integers");
  const TensorRef* exponent = ConstantData(node, 1);
  const Layout layout = Prefer(a);
  if (OutputOf(node)->type.quant || a->type.quant) KeptFloat(node, "no consumer has it in integers");
  const std::string name = OutputOf(node)->name();
  if (exponent != nullptr && exponent->elements() == 1 && DimsOf(a).size() >= exponent->dims.size()) {
    const float e = exponent->ToFloats()[0];
    Value* x = Get(a, layout, true);
    if (e == 2.0f) return Finish(node, layout, Binary("MUL", x, x, name), false);
    if (e == 1.0f) return Finish(node, layout, x, false);
    if (e == 0.5f && !exact_) return Finish(node, layout, Unary("SQRT", x, name), false);
    if (e == 3.0f) return Finish(node, layout, Binary("MUL", Binary("MUL", x, x, name), x, name), false);
    return Finish(node, layout, Binary("POW", x, Scalar(e, name + "_exponent"), name), false);
  }
  const Value* operands[] = {a, node.input(1)};
  if (node.input(1)->type.dtype != a->type.dtype) Refuse(node, "the exponent has another type than the base");
  const Layout both = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(OutputOf(node)).size();
  Finish(
      node, both,
      Binary("POW", ElementwiseOperand(a, both, rank, true), ElementwiseOperand(node.input(1), both, rank, true), name),
      false);
}

void CircleLowering::Compare(const Node& node) {
  static const std::unordered_map<std::string_view, std::string_view> kNames{{"Equal", "EQUAL"},
                                                                             {"Less", "LESS"},
                                                                             {"LessOrEqual", "LESS_EQUAL"},
                                                                             {"Greater", "GREATER"},
                                                                             {"GreaterOrEqual", "GREATER_EQUAL"},
                                                                             {"And", "LOGICAL_AND"},
                                                                             {"Or", "LOGICAL_OR"},
                                                                             {"Not", "LOGICAL_NOT"},
                                                                             {"Xor", "NOT_EQUAL"},
                                                                             {"IsNaN", "NOT_EQUAL"}};
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  RequireArithmetic(node, operands);
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(node.output()).size();
  std::vector<Value*> inputs;
  for (const Value* v : operands) inputs.push_back(ElementwiseOperand(v, layout, rank, true));
  if (node.Is("IsNaN")) inputs.push_back(inputs[0]);  // what is not itself
  Finish(node, layout, Emit(kNames.at(node.op()), inputs, node.output()->name(), OutType(node, layout, false)), false);
}

void CircleLowering::Where(const Node& node) {
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  const Layout layout = ElementwiseLayout(node, operands);
  const std::size_t rank = DimsOf(node.output()).size();
  if (node.output()->type.quant) KeptFloat(node, "no consumer has it in integers");
  std::vector<Value*> inputs;
  for (const Value* v : operands) inputs.push_back(ElementwiseOperand(v, layout, rank, true));
  Finish(node, layout, Emit("SELECT_V2", inputs, node.output()->name(), OutType(node, layout, false)), false);
}

// -------------------------------------------------------------------------------------------------------- activations

void CircleLowering::Activation(const Node& node) {
  static const std::unordered_map<std::string_view, std::string_view> kNames{
      {"Relu", "RELU"},   {"Sigmoid", "LOGISTIC"}, {"Tanh", "TANH"}, {"Exp", "EXP"},     {"Log", "LOG"},
      {"Sqrt", "SQRT"},   {"Abs", "ABS"},          {"Neg", "NEG"},   {"Floor", "FLOOR"}, {"Ceil", "CEIL"},
      {"Round", "ROUND"}, {"Sin", "SIN"},          {"Cos", "COS"},   {"Sign", "SIGN"},   {"Elu", "ELU"}};
  const Value* x = node.input(0);
  const std::string op(kNames.at(node.op()));
  if (node.Is("Elu") && node.FloatAttribute("alpha", 1) != 1) return EluOf(node);
  const Value* data[] = {x};
  RequireArithmetic(node, data);
  bool integer = IsFloat(node.output()->type.dtype) && Integer(node, op, data);
  if (integer && StorageOf(x->type) != Storage::kMx && !PerTensorType(x->type)) {
    KeptFloat(node, "its input has a scale for each channel");
    integer = false;
  }
  const Layout layout = Prefer(x);
  Type type = OutType(node, layout, integer);
  if (integer && type.quant->kind == QuantType::Kind::kAffine) {
    // The kernels of these have one fixed output scale; another one is a QUANTIZE behind it.
    const DType s = type.quant->affine.storage;
    if (op == "LOGISTIC") {
      type.quant =
          s == DType::kS16 ? PerTensor(s, 1.0f / 32768, 0) : PerTensor(s, 1.0f / 256, s == DType::kU8 ? 0 : -128);
    } else if (op == "TANH") {
      type.quant = PerTensor(s, 1.0f / 128, s == DType::kU8 ? 128 : 0);
    }
  }
  Finish(node, layout, Emit(op, {Get(x, layout, !integer)}, node.output()->name(), type), integer);
}

void CircleLowering::Clip(const Node& node) {
  const Value* x = node.input(0);
  RequireArithmetic(node, {{x}});
  const auto bound = [&](std::size_t i, const char* attribute, float fallback) {
    if (node.input(i) != nullptr) {
      if (!node.input(i)->is_constant()) Refuse(node, "a bound is computed");
      Value* c = GetConstant(node.input(i), Layout::kFirst, true);
      const float v = c->data->ToFloats()[0];
      new_->Erase(c);
      return v;
    }
    return node.FloatAttribute(attribute, fallback);
  };
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float low = bound(1, "min", -kInf), high = bound(2, "max", kInf);
  const Layout layout = Prefer(x);
  const std::string name = OutputOf(node)->name();
  if (low == 0 && (high == 6 || high >= std::numeric_limits<float>::max())) {
    const char* op = high == 6 ? "RELU6" : "RELU";
    const Value* data[] = {x};
    const bool integer = IsFloat(node.output()->type.dtype) && Integer(node, op, data);
    return Finish(node, layout, Emit(op, {Get(x, layout, !integer)}, name, OutType(node, layout, integer)), integer);
  }
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no consumer clips to these bounds in integers");
  Value* y = Get(x, layout, true);
  const DType dtype = y->type.dtype;
  const auto constant = [&](float v, const char* what) {
    if (dtype == DType::kF32) return Scalar(v, name + what);
    const auto n = static_cast<std::int64_t>(v);
    return new_->AddConstant(name + what, TensorRef::FromInts(dtype, {}, {&n, 1}));
  };
  if (low > -std::numeric_limits<float>::max()) {
    y = Binary("MAXIMUM", y, constant(low, "_min"), name);
    y->type.dtype = dtype;
  }
  if (high < std::numeric_limits<float>::max()) {
    y = Binary("MINIMUM", y, constant(high, "_max"), name);
    y->type.dtype = dtype;
  }
  Finish(node, layout, y, false);
}

void CircleLowering::HardSigmoid(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  const std::string name = OutputOf(node)->name();
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  Value* y = Binary("MUL", Get(x, layout, true), Scalar(node.FloatAttribute("alpha", 0.2f), name + "_alpha"), name);
  y = Binary("ADD", y, Scalar(node.FloatAttribute("beta", 0.5f), name + "_beta"), name, "RELU");
  Finish(node, layout, Binary("MINIMUM", y, Scalar(1, name + "_one"), name), false);
}

void CircleLowering::HardSwish(const Node& node) {
  const Value* x_old = node.input(0);
  const Layout layout = Prefer(x_old);
  const std::string name = OutputOf(node)->name();
  // LiteRT's int8 HARD_SWISH rounds several times: within a step alone, but a CNN of them drifts apart
  // (docs/circle.md).
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "the integer kernel rounds more than once");
  Value* x = Get(x_old, layout, true);
  Value* y = Binary("ADD", x, Scalar(3, name + "_three"), name, "RELU6");
  y = Binary("MUL", x, y, name);
  Finish(node, layout, Binary("DIV", y, Scalar(6, name + "_six"), name), false);
}

void CircleLowering::LeakyRelu(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  const Value* data[] = {x};
  const bool integer = Integer(node, "LEAKY_RELU", data);
  Finish(node, layout,
         Emit("LEAKY_RELU", {Get(x, layout, !integer)}, OutputOf(node)->name(), OutType(node, layout, integer),
              {{"alpha", node.FloatAttribute("alpha", 0.01f)}}),
         integer);
}

void CircleLowering::PRelu(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no consumer has it in integers");
  Finish(node, layout,
         Emit("PRELU", {Get(x, layout, true), ElementwiseOperand(node.input(1), layout, DimsOf(x).size(), true)},
              OutputOf(node)->name(), OutType(node, layout, false)),
         false);
}

void CircleLowering::Gelu(const Node& node) {
  const auto match = gelu_.find(&node);
  const Value* x = match != gelu_.end() ? match->second.x : node.input(0);
  const Layout layout = Prefer(x);
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no two consumers agree on it in integers");
  const bool approximate = match == gelu_.end() && (node.StringAttribute("approximate", "none") == "tanh" ||
                                                    node.Is("FastGelu", "com.microsoft"));
  Finish(node, layout,
         Emit("GELU", {Get(x, layout, true)}, OutputOf(node)->name(), OutType(node, layout, false),
              {{"approximate", std::int64_t{approximate}}}),
         false);
}

void CircleLowering::Silu(const Node& node) {
  const Value* x_old = node.input(0);
  const Layout layout = Prefer(x_old);
  const float alpha = node.FloatAttribute("alpha", node.Is("QuickGelu", "com.microsoft") ? 1.702f : 1.0f);
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  const std::string name = OutputOf(node)->name();
  Value* x = Get(x_old, layout, true);
  Value* s = alpha == 1 ? x : Binary("MUL", x, Scalar(alpha, name + "_alpha"), name);
  Finish(node, layout, Binary("MUL", x, Unary("LOGISTIC", s, name), name), false);
}

// Circle has no ERF. Abramowitz and Stegun 7.1.26, error at most 1.5e-7:
//   erf(x) = sign(x) (1 - (a1 t + .. + a5 t^5) e^(-x^2)),  t = 1 / (1 + p |x|).
void CircleLowering::Erf(const Node& node) {
  const Value* x_old = node.input(0);
  const Layout layout = Prefer(x_old);
  const std::string name = OutputOf(node)->name();
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  Value* x = Get(x_old, layout, true);
  const auto c = [&](float v) { return Scalar(v, name + "_c"); };
  Value* a = Unary("ABS", x, name);
  Value* t = Binary("DIV", c(1), Binary("ADD", Binary("MUL", a, c(0.3275911f), name), c(1), name), name);
  Value* p = c(1.061405429f);
  for (const float k : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    p = Binary("ADD", Binary("MUL", p, t, name), c(k), name);
  }
  p = Binary("MUL", p, t, name);
  Value* e = Unary("EXP", Binary("MUL", Binary("MUL", x, x, name), c(-1), name), name);
  Value* magnitude = Binary("SUB", c(1), Binary("MUL", p, e, name), name);
  Value* sign = Binary("DIV", x, Binary("ADD", a, c(1e-30f), name), name);
  Finish(node, layout, Binary("MUL", sign, magnitude, name), false);
}

void CircleLowering::Reciprocal(const Node& node) {
  const Value* x = node.input(0);
  const Layout layout = Prefer(x);
  if (x->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no consumer divides right in integers");
  const std::string name = OutputOf(node)->name();
  Finish(node, layout, Binary("DIV", Scalar(1, name + "_one"), Get(x, layout, true), name), false);
}

// Elu and Selu of any factor, in float: gamma (max(x, 0) + alpha (e^(min(x, 0)) - 1)).
void CircleLowering::EluOf(const Node& node) {
  const Value* x_old = node.input(0);
  RequireArithmetic(node, {{x_old}});
  const Layout layout = Prefer(x_old);
  const std::string name = OutputOf(node)->name();
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  Value* x = Get(x_old, layout, true);
  const auto c = [&](float v) { return Scalar(v, name + "_c"); };
  const bool scaled = node.Is("Selu");
  const float alpha = node.FloatAttribute("alpha", scaled ? 1.67326319217681884765625f : 1.0f);
  Value* low = Unary("EXP", Binary("MINIMUM", x, c(0), name), name);
  low = Binary("MUL", Binary("SUB", low, c(1), name), c(alpha), name);
  Value* y = Binary("ADD", Unary("RELU", x, name), low, name);
  if (scaled) y = Binary("MUL", y, c(node.FloatAttribute("gamma", 1.05070102214813232421875f)), name);
  Finish(node, layout, y, false);
}

void CircleLowering::Softmax(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  const bool flat = model_.OpsetVersion() < 13;  // the dimensions from axis on are one
  std::int64_t axis = Axis(node, node.IntAttribute("axis", flat ? 1 : -1), rank);
  if (flat && axis != static_cast<std::int64_t>(rank) - 1) {
    const bool one = std::all_of(dims.begin() + axis + 1, dims.end(), [](std::int64_t d) { return d == 1; });
    if (!one) Refuse(node, "it spans several axes");
  }
  const Value* data[] = {x_old};
  const bool log = node.Is("LogSoftmax");
  const std::string op = log ? "LOG_SOFTMAX" : "SOFTMAX";
  const bool integer = Integer(node, op, data);
  Layout layout = Prefer(x_old);
  const std::int64_t last = static_cast<std::int64_t>(rank) - 1;
  if (rank >= 3) {
    if (axis == 1)
      layout = Layout::kLast;
    else if (axis == last)
      layout = Layout::kFirst;
  }
  Value* x = Get(x_old, layout, !integer);
  const std::int64_t at = MapAxis(axis, layout, rank);
  std::vector<std::int64_t> perm(rank);
  std::iota(perm.begin(), perm.end(), 0);
  if (at != last) std::swap(perm[static_cast<std::size_t>(at)], perm[static_cast<std::size_t>(last)]);
  x = Transpose(x, perm, x_old->name());
  Type type = OutType(node, layout, integer);
  type.shape = x->type.shape;
  if (integer && type.quant->kind == QuantType::Kind::kAffine) {
    const DType s = type.quant->affine.storage;
    type.quant =
        s == DType::kS16 ? PerTensor(s, 1.0f / 32768, 0) : PerTensor(s, 1.0f / 256, s == DType::kU8 ? 0 : -128);
  }
  Attributes attributes;
  if (!log) attributes.emplace_back("beta", 1.0f);
  Value* y = Emit(op, {x}, OutputOf(node)->name(), type, std::move(attributes));
  Finish(node, layout, Transpose(y, perm, OutputOf(node)->name()), integer);
}

}  // namespace octavo::internal
