#include "octavo/rewrite/spell_float.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/ir/make_type.h"
#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/speller.h"

namespace octavo {

Type WithType(Type type, DType dtype) {
  type.dtype = dtype;
  return type;
}

Speller::Speller(Node& node, std::int64_t opset) : node_(node), graph_(*node.graph()), opset_(opset) {
  like_.dtype = node.input(0)->type.dtype;
  like_.shape = node.input(0)->type.shape;
}

Value* Speller::Op(std::string_view op, const std::vector<Value*>& inputs, Type type) {
  const std::string name = graph_.UniqueName(node_.output()->name() + "_" + std::string(op));
  return graph_.AddNode(std::string(op), "", inputs, {{name, std::move(type)}}, &node_)->output();
}

Value* Speller::Number(float value) {
  return AddFloatConstant(graph_, node_.output()->name() + "_number", like_.dtype, {}, std::span(&value, 1));
}

Value* Speller::Ints(const Dims& values, Dims shape) {
  return graph_.AddConstant(graph_.UniqueName(node_.output()->name() + "_ints"),
                            TensorRef::FromInts(DType::kS64, std::move(shape), values));
}

Value* Speller::Slice(Value* v, std::int64_t axis, std::int64_t start, std::int64_t end, std::int64_t step) {
  Type type = v->type;
  type.quant.reset();
  if (type.shape) {
    const std::int64_t length =
        step > 0 ? (end - start + step - 1) / step : (start - std::max<std::int64_t>(end, -1) - step - 1) / -step;
    (*type.shape)[static_cast<std::size_t>(axis)] = Dim{length, {}};
  }
  return Op("Slice", {v, Ints({start}), Ints({end}), Ints({axis}), Ints({step})}, std::move(type));
}

Value* Speller::Reshape(Value* v, const Dims& to) { return Op("Reshape", {v, Ints(to)}, TypeOf(v->type.dtype, to)); }

std::optional<std::vector<float>> KnownNumbers(const Value* v) {
  constexpr std::uint64_t kMost = 1 << 16;
  const Node* dequantize = v == nullptr ? nullptr : v->producer();
  if (dequantize != nullptr && dequantize->Is("DequantizeLinear")) {
    const Value *codes = dequantize->input(0), *scale = dequantize->input(1), *zero = dequantize->input(2);
    if (!IsPlainConstant(codes) || !IsPlainConstant(scale) || (zero != nullptr && !IsPlainConstant(zero))) return {};
    if (codes->data->elements() > kMost || scale->data->elements() != 1 || (zero && zero->data->elements() != 1))
      return {};
    std::vector<float> numbers;
    const std::int64_t middle = zero == nullptr ? 0 : zero->data->ToInts()[0];
    for (const std::int64_t code : codes->data->ToInts()) {
      numbers.push_back(static_cast<float>(code - middle) * scale->data->ToFloats()[0]);
    }
    return numbers;
  }
  if (!IsPlainConstant(v) || v->data->elements() > kMost) return {};
  if (v->data->dtype != DType::kF32 && v->data->dtype != DType::kF16) return {};
  return v->data->ToFloats();
}

namespace {

std::optional<float> KnownNumber(const Value* v) {
  const std::optional<std::vector<float>> numbers = KnownNumbers(v);
  return numbers && numbers->size() == 1 ? std::optional((*numbers)[0]) : std::nullopt;
}

Value* Test(Speller& spell, std::string_view op, Value* a, Value* b) {
  return spell.Op(op, {a, b}, WithType(spell.like(), DType::kBool));
}

// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)): no exponential of a large number.
Value* Softplus(Speller& spell, Node&) {
  Value* decay = spell.Op("Exp", {spell.Op("Neg", {spell.Op("Abs", {spell.x()})})});
  Value* log = spell.Op("Log", {spell.Op("Add", {decay, spell.Number(1)})});
  return spell.Op("Add", {spell.Op("Relu", {spell.x()}), log});
}

// x tanh(softplus(x))
Value* Mish(Speller& spell, Node& node) {
  return spell.Op("Mul", {spell.x(), spell.Op("Tanh", {Softplus(spell, node)})});
}

// x / (1 + |x|)
Value* Softsign(Speller& spell, Node&) {
  return spell.Op("Div", {spell.x(), spell.Op("Add", {spell.Op("Abs", {spell.x()}), spell.Number(1)})});
}

// max(x, 0) + min(0, a (exp(x / a) - 1)) = a elu(x / a)
Value* Celu(Speller& spell, Node& node) {
  const float a = node.FloatAttribute("alpha", 1.0f);
  if (!(a > 0)) return nullptr;
  if (a == 1) return spell.Op("Elu", {spell.x()});
  return spell.Op("Mul", {spell.Op("Elu", {spell.Op("Div", {spell.x(), spell.Number(a)})}), spell.Number(a)});
}

// (exp(x) -+ exp(-x)) / 2
Value* Hyperbolic(Speller& spell, std::string_view join) {
  Value* up = spell.Op("Exp", {spell.x()});
  Value* down = spell.Op("Exp", {spell.Op("Neg", {spell.x()})});
  return spell.Op("Mul", {spell.Op(join, {up, down}), spell.Number(0.5f)});
}
Value* Sinh(Speller& spell, Node&) { return Hyperbolic(spell, "Sub"); }
Value* Cosh(Speller& spell, Node&) { return Hyperbolic(spell, "Add"); }

Value* Tan(Speller& spell, Node&) {
  return spell.Op("Div", {spell.Op("Sin", {spell.x()}), spell.Op("Cos", {spell.x()})});
}

// tanh(x (a + b x^2 + c x^4)) for |x| up to 3, where it is 1 to 2e-5; fitted to the least greatest error, 3.7e-5.
Value* Erf(Speller& spell, Node&) {
  const float bound = 3.0f;
  Value* x = spell.Op("Clip", {spell.x(), spell.Number(-bound), spell.Number(bound)});
  Value* square = spell.Op("Mul", {x, x});
  Value* p = spell.Op("Mul", {square, spell.Number(-0.0017864796f)});
  p = spell.Op("Mul", {spell.Op("Add", {p, spell.Number(0.104081198f)}), square});
  return spell.Op("Tanh", {spell.Op("Mul", {spell.Op("Add", {p, spell.Number(1.1281434f)}), x})});
}

// asin(x) = 2 atan(x / (1 + sqrt((1 - x) (1 + x))))
Value* Asin(Speller& spell, Node&) {
  Value* x = spell.x();
  Value* rest = spell.Op("Mul", {spell.Op("Sub", {spell.Number(1), x}), spell.Op("Add", {x, spell.Number(1)})});
  Value* root = spell.Op("Sqrt", {spell.Op("Relu", {rest})});
  Value* half = spell.Op("Atan", {spell.Op("Div", {x, spell.Op("Add", {root, spell.Number(1)})})});
  return spell.Op("Mul", {half, spell.Number(2)});
}
Value* Acos(Speller& spell, Node& node) {
  return spell.Op("Sub", {spell.Number(std::numbers::pi_v<float> / 2), Asin(spell, node)});
}

// sign(x) log(|x| + m sqrt((x / m)^2 + (1 / m)^2)), m = max(|x|, 1): no square of a large number.
Value* Asinh(Speller& spell, Node&) {
  Value* size = spell.Op("Abs", {spell.x()});
  Value* m = spell.Op("Clip", {size, spell.Number(1)});
  Value *a = spell.Op("Div", {size, m}), *b = spell.Op("Div", {spell.Number(1), m});
  Value* root = spell.Op("Sqrt", {spell.Op("Add", {spell.Op("Mul", {a, a}), spell.Op("Mul", {b, b})})});
  Value* log = spell.Op("Log", {spell.Op("Add", {size, spell.Op("Mul", {m, root})})});
  return spell.Op("Mul", {spell.Op("Sign", {spell.x()}), log});
}
// log(x + sqrt(x - 1) sqrt(x + 1))
Value* Acosh(Speller& spell, Node&) {
  Value* below = spell.Op("Sqrt", {spell.Op("Sub", {spell.x(), spell.Number(1)})});
  Value* above = spell.Op("Sqrt", {spell.Op("Add", {spell.x(), spell.Number(1)})});
  return spell.Op("Log", {spell.Op("Add", {spell.x(), spell.Op("Mul", {below, above})})});
}
// log((1 + x) / (1 - x)) / 2
Value* Atanh(Speller& spell, Node&) {
  Value* above = spell.Op("Add", {spell.x(), spell.Number(1)});
  Value* below = spell.Op("Sub", {spell.Number(1), spell.x()});
  return spell.Op("Mul", {spell.Op("Log", {spell.Op("Div", {above, below})}), spell.Number(0.5f)});
}

// x - b above l, x + b below -l, 0 between
Value* Shrink(Speller& spell, Node& node) {
  const float l = node.FloatAttribute("lambd", 0.5f), b = node.FloatAttribute("bias", 0.0f);
  Value* x = spell.x();
  Value* down = b == 0 ? x : spell.Op("Sub", {x, spell.Number(b)});
  Value* up = b == 0 ? x : spell.Op("Add", {x, spell.Number(b)});
  Value* low = spell.Op("Where", {Test(spell, "Less", x, spell.Number(-l)), up, spell.Number(0)});
  return spell.Op("Where", {Test(spell, "Greater", x, spell.Number(l)), down, low});
}

Value* ThresholdedRelu(Speller& spell, Node& node) {
  Value* passes = Test(spell, "Greater", spell.x(), spell.Number(node.FloatAttribute("alpha", 1.0f)));
  return spell.Op("Where", {passes, spell.x(), spell.Number(0)});
}

// max(x, 0) - s max(-x, 0), but for one slope, which is a LeakyRelu
Value* PRelu(Speller& spell, Node& node) {
  const std::optional<Dims> slopes = node.input(1) == nullptr ? std::nullopt : StaticShape(node.input(1)->type);
  if (!slopes || ElementCount(*slopes) < 2) return nullptr;
  Value* below = spell.Op("Mul", {spell.Op("Relu", {spell.Op("Neg", {spell.x()})}), node.input(1)});
  return spell.Op("Sub", {spell.Op("Relu", {spell.x()}), below});
}

// x^-0.5 = 1 / sqrt(x); c^x = exp(x log(c))
Value* Pow(Speller& spell, Node& node) {
  const std::optional<float> base = KnownNumber(node.input(0)), exponent = KnownNumber(node.input(1));
  if (exponent && std::abs(*exponent + 0.5f) < 1e-5f) {
    return spell.Op("Div", {spell.Number(1), spell.Op("Sqrt", {spell.x()})});
  }
  if (!base || !(*base > 0) || node.input(1) == nullptr || node.input(1)->type.dtype != spell.like().dtype)
    return nullptr;
  Type type = node.output()->type;
  type.quant.reset();
  Value* power = *base == std::numbers::e_v<float>
                     ? node.input(1)
                     : spell.Op("Mul", {node.input(1), spell.Number(std::log(*base))}, type);
  return spell.Op("Exp", {power}, type);
}

// Towards zero.
Value* WholePart(Speller& spell, Value* x, const Type& type) {
  return spell.Op("Mul", {spell.Op("Sign", {x}, type), spell.Op("Floor", {spell.Op("Abs", {x}, type)}, type)}, type);
}

// x - c trunc(x / c), with the sign of x
Value* Mod(Speller& spell, Node& node) {
  if (node.IntAttribute("fmod", 0) == 0 || node.input(1) == nullptr) return nullptr;
  Type type = node.output()->type;
  type.quant.reset();
  Value* whole = WholePart(spell, spell.Op("Div", {spell.x(), node.input(1)}, type), type);
  return spell.Op("Sub", {spell.x(), spell.Op("Mul", {whole, node.input(1)}, type)}, type);
}

Value* IsInf(Speller& spell, Node& node) {
  const bool above = node.IntAttribute("detect_positive", 1) != 0, below = node.IntAttribute("detect_negative", 1) != 0;
  if (!above && !below) return nullptr;
  const float infinity = std::numeric_limits<float>::infinity();
  Value* x = above && below ? spell.Op("Abs", {spell.x()}) : spell.x();
  return Test(spell, "Equal", x, spell.Number(above ? infinity : -infinity));
}

// Numbers without a fraction, as the operators that made them say.
bool IsWhole(const Value* v, int steps = 6) {
  const Node* node = v == nullptr ? nullptr : v->producer();
  if (node == nullptr || steps == 0) return false;
  for (const std::string_view op : {"Floor", "Ceil", "Round", "Sign"}) {
    if (node->Is(op)) return true;
  }
  if (node->Is("Cast")) return node->input(0) != nullptr && !IsFloat(node->input(0)->type.dtype);
  for (const std::string_view op : {"Abs", "Neg", "Relu", "Mul", "Add", "Sub", "Reshape", "Transpose"}) {
    if (!node->Is(op)) continue;
    const std::size_t operands = op == "Reshape" ? 1 : node->inputs().size();
    for (std::size_t i = 0; i < operands; ++i) {
      if (!IsWhole(node->input(i), steps - 1)) return false;
    }
    return true;
  }
  return false;
}

Value* CastWhole(Speller& spell, Node& node) {
  const auto to = static_cast<DType>(node.IntAttribute("to", 0));
  if (!IsInteger(to) || IsWhole(spell.x())) return nullptr;
  Value* y = spell.Op("Cast", {WholePart(spell, spell.x(), spell.like())}, WithType(spell.like(), to));
  y->producer()->SetAttribute("to", node.IntAttribute("to", 0));
  return y;
}

// Integers a / b towards zero, of what a device gives that rounds the quotient q to the nearest: where |q b| > |a|, it
// is one too far from zero.
Value* DivIntegers(Speller& spell, Node& node) {
  const DType dtype = spell.like().dtype;
  if ((dtype != DType::kS32 && dtype != DType::kS64) || node.input(1) == nullptr) return nullptr;
  Value *a = spell.x(), *b = node.input(1);
  const Type type = node.output()->type, test = WithType(type, DType::kBool);
  Value* q = spell.Op("Div", {a, b}, type);
  Value* back = spell.Op("Abs", {spell.Op("Mul", {q, b}, type)}, type);
  Value* over = spell.Op("Greater", {back, spell.Op("Abs", {a})}, test);
  const auto number = [&](std::int64_t n) {
    Graph& graph = *node.graph();
    return graph.AddConstant(graph.UniqueName(node.output()->name() + "_number"),
                             TensorRef::FromInts(dtype, {}, {&n, 1}));
  };
  Value *up = spell.Op("Add", {q, number(1)}, type), *down = spell.Op("Sub", {q, number(1)}, type);
  Value* nearer = spell.Op("Where", {spell.Op("Greater", {q, number(0)}, test), down, up}, type);
  return spell.Op("Where", {over, nearer, q}, type);
}

constexpr Spelling kElementwise[] = {
    {"Softplus", Softplus}, {"Mish", Mish},         {"Softsign", Softsign},
    {"Celu", Celu},         {"Sinh", Sinh},         {"Cosh", Cosh},
    {"Tan", Tan},           {"Erf", Erf, 11},       {"Asin", Asin},
    {"Acos", Acos},         {"Asinh", Asinh, 11},   {"Acosh", Acosh},
    {"Atanh", Atanh},       {"Shrink", Shrink, 9},  {"ThresholdedRelu", ThresholdedRelu, 9},
    {"PRelu", PRelu},       {"Pow", Pow},           {"Mod", Mod, 10},
    {"IsInf", IsInf, 11},   {"Cast", CastWhole, 9}, {"Div", DivIntegers, 9, true},
};

}  // namespace

std::span<const Spelling> ElementwiseSpellings() { return kElementwise; }

std::int64_t SpellFloat(Model& model, const std::function<bool(const Node&)>& wanted) {
  Graph& graph = *model.graph;
  const std::int64_t opset = model.OpsetVersion();
  std::int64_t count = 0;
  for (Node* node : graph.nodes()) {
    if (!node->domain().empty() || node->input(0) == nullptr || node->output() == nullptr) continue;
    for (const std::span<const Spelling> spellings : {ElementwiseSpellings(), AxisSpellings()}) {
      const auto spelling =
          std::find_if(spellings.begin(), spellings.end(), [&](const Spelling& s) { return node->Is(s.op); });
      if (spelling == spellings.end()) continue;
      const DType dtype = node->input(0)->type.dtype;
      if (!spelling->any_type && dtype != DType::kF32 && dtype != DType::kF16) break;
      if (opset < spelling->opset || !wanted(*node)) break;
      Speller speller(*node, opset);
      Value* spelled = spelling->spell(speller, *node);
      if (spelled == nullptr) break;
      spelled->type = node->output()->type;
      graph.ReplaceAllUses(node->output(), spelled);
      graph.SwapNames(node->output(), spelled);
      graph.Erase(node);
      ++count;
      break;
    }
  }
  return count;
}

}  // namespace octavo
