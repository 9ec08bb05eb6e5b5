// Arithmetic, comparisons and activations, element by element.
#include <array>
#include <cmath>
#include <limits>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

Tensor Checked(Emitter& e, const Node& node, const Tensor& a, const Tensor& b, std::string_view op) {
  if (!BroadcastShape(a.dims, b.dims)) e.Misfit(node, "its inputs do not broadcast to each other");
  if (a.dtype != b.dtype) e.Refuse(node, "its inputs differ in type");
  return e.b.Binary(op, a, b);
}

// One stablehlo operation of two operands.
template <const char* kOp>
void Binary(Emitter& e, const Node& node) {
  e.Out(node, 0, Checked(e, node, e.In(node, 0), e.In(node, 1), kOp));
}
template <const char* kOp>
void Unary(Emitter& e, const Node& node) {
  e.Out(node, 0, e.b.Unary(kOp, e.In(node, 0)));
}
// Any number of operands.
template <const char* kOp>
void Variadic(Emitter& e, const Node& node) {
  Tensor y = e.In(node, 0);
  for (std::size_t i = 1; i < node.inputs().size(); ++i) y = Checked(e, node, y, e.In(node, i), kOp);
  e.Out(node, 0, y);
}
template <Compare kHow>
void Comparison(Emitter& e, const Node& node) {
  const Tensor a = e.In(node, 0);
  const Tensor b = e.In(node, 1);
  if (!BroadcastShape(a.dims, b.dims) || a.dtype != b.dtype) e.Refuse(node, "its inputs do not go together");
  e.Out(node, 0, e.b.CompareTo(kHow, a, b));
}

constexpr char kAdd[] = "add", kSub[] = "subtract", kMul[] = "multiply", kDiv[] = "divide", kMax[] = "maximum",
               kMin[] = "minimum", kAnd[] = "and", kOr[] = "or", kXor[] = "xor", kNot[] = "not", kAbs[] = "abs",
               kNeg[] = "negate", kExp[] = "exponential", kLog[] = "log", kSqrt[] = "sqrt", kFloor[] = "floor",
               kCeil[] = "ceil", kRound[] = "round_nearest_even", kSign[] = "sign", kSin[] = "sine", kCos[] = "cosine",
               kTanh[] = "tanh", kLogistic[] = "logistic";

void Mean(Emitter& e, const Node& node) {
  Tensor y = e.In(node, 0);
  for (std::size_t i = 1; i < node.inputs().size(); ++i) y = Checked(e, node, y, e.In(node, i), "add");
  e.Out(node, 0, e.b.Div(y, static_cast<double>(node.inputs().size())));
}

void Pow(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const Value* power = node.input(1);
  if (IsFloat(x.dtype) && power != nullptr && power->is_constant() && !power->type.quant &&
      power->data->scalar_like() && power->data->dims.size() <= x.rank()) {
    // Powers that products say exactly.
    const float p = power->data->ToFloats()[0];
    if (p == 1.0f) return e.Out(node, 0, x);
    if (p == 2.0f) return e.Out(node, 0, e.b.Mul(x, x));
    if (p == 3.0f) return e.Out(node, 0, e.b.Mul(e.b.Mul(x, x), x));
    if (p == 0.5f) return e.Out(node, 0, e.b.Unary("sqrt", x));
  }
  e.Out(node, 0, Checked(e, node, x, e.b.Convert(e.In(node, 1), x.dtype), "power"));
}

// The sign of the divisor (Python), or with fmod = 1 that of the dividend (C).
void Mod(Emitter& e, const Node& node) {
  const Tensor a = e.In(node, 0);
  const Tensor b = e.In(node, 1);
  const Tensor r = Checked(e, node, a, b, "remainder");
  if (node.IntAttribute("fmod", 0) != 0) return e.Out(node, 0, r);
  if (IsFloat(a.dtype)) e.Refuse(node, "Mod of floats needs fmod = 1");
  const Tensor zero = e.b.Splat(r.dtype, {}, 0);
  const Tensor signs =
      e.b.CompareTo(Compare::kNe, e.b.CompareTo(Compare::kLt, r, zero), e.b.CompareTo(Compare::kLt, b, zero));
  const Tensor fix = e.b.Binary("and", e.b.CompareTo(Compare::kNe, r, zero), signs);
  e.Out(node, 0, e.b.Select(fix, e.b.Add(r, b), r));
}

void Where(Emitter& e, const Node& node) {
  const Tensor c = e.In(node, 0), a = e.In(node, 1), b = e.In(node, 2);
  const std::optional<Dims> dims = BroadcastShape(a.dims, b.dims);
  if (!dims || !BroadcastShape(*dims, c.dims) || a.dtype != b.dtype) {
    e.Refuse(node, "its inputs do not go together");
  }
  e.Out(node, 0, e.b.Select(c, a, b));
}

void Reciprocal(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, e.b.Div(e.b.Splat(x.dtype, {}, 1), x));
}

void IsNan(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, e.b.CompareTo(Compare::kNe, x, x));
}

void IsInf(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const double infinity = std::numeric_limits<double>::infinity();
  const auto is = [&](double value) { return e.b.CompareTo(Compare::kEq, x, e.b.Splat(x.dtype, {}, value)); };
  const bool up = node.IntAttribute("detect_positive", 1) != 0, down = node.IntAttribute("detect_negative", 1) != 0;
  if (!IsFloat(x.dtype) || (!up && !down))
    e.Refuse(node, "IsInf of " + std::string(Name(x.dtype)) + " or of neither sign");
  e.Out(node, 0, up && down ? e.b.Binary("or", is(infinity), is(-infinity)) : is(up ? infinity : -infinity));
}

// As products of what every consumer has; the hyperbolic ones by expm1, exact near 0.
void Atan(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, e.b.Binary("atan2", x, e.b.Splat(x.dtype, {}, 1)));
}
void Tan(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, e.b.Div(e.b.Unary("sine", x), e.b.Unary("cosine", x)));
}
void Cosh(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const Tensor up = e.b.Unary("exponential", x), down = e.b.Unary("exponential", e.b.Unary("negate", x));
  e.Out(node, 0, e.b.Add(e.b.Mul(up, 0.5), e.b.Mul(down, 0.5)));
}
void Sinh(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const Tensor up = e.b.Unary("exponential_minus_one", x);
  const Tensor down = e.b.Unary("exponential_minus_one", e.b.Unary("negate", x));
  e.Out(node, 0, e.b.Sub(e.b.Mul(up, 0.5), e.b.Mul(down, 0.5)));
}

void Cast(Emitter& e, const Node& node) {
  const auto to = static_cast<DType>(node.IntAttribute("to", 0));
  if (!IsFloat(to) && !IsInteger(to) && to != DType::kBool) e.Refuse(node, "a cast to " + std::string(Name(to)));
  if (BitWidth(to) < 16 && IsFloat(to)) e.Refuse(node, "a cast to " + std::string(Name(to)));
  e.Out(node, 0, e.b.Convert(e.In(node, 0), to));
}

void CastLike(Emitter& e, const Node& node) {
  const Value* like = node.input(1);
  if (like == nullptr || like->type.dtype == DType::kUndefined) e.Refuse(node, "the type to cast to is not known");
  e.Out(node, 0, e.b.Convert(e.In(node, 0), like->type.dtype));
}

// --- activations

void Relu(Emitter& e, const Node& node) { e.Out(node, 0, e.b.Max(e.In(node, 0), 0.0)); }

void Clip(Emitter& e, const Node& node) {
  Tensor x = e.In(node, 0);
  if (e.opset(node) < 11) {
    if (node.FindAttribute("min") != nullptr) x = e.b.Max(x, node.FloatAttribute("min", 0));
    if (node.FindAttribute("max") != nullptr) x = e.b.Min(x, node.FloatAttribute("max", 0));
  } else {
    if (e.Has(node, 1)) x = Checked(e, node, x, e.b.Reshape(e.In(node, 1), {}), "maximum");
    if (e.Has(node, 2)) x = Checked(e, node, x, e.b.Reshape(e.In(node, 2), {}), "minimum");
  }
  e.Out(node, 0, x);
}

// x where x >= 0, else the given value.
Tensor Positive(Emitter& e, const Tensor& x, const Tensor& otherwise) {
  return e.b.Select(e.b.CompareTo(Compare::kGe, x, e.b.Splat(x.dtype, {}, 0)), x, otherwise);
}

void LeakyRelu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, Positive(e, x, e.b.Mul(x, node.FloatAttribute("alpha", 0.01f))));
}

void PRelu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, Positive(e, x, Checked(e, node, x, e.In(node, 1), "multiply")));
}

Tensor ExpMinusOne(Emitter& e, const Tensor& x) { return e.b.Unary("exponential_minus_one", x); }

void Elu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, Positive(e, x, e.b.Mul(ExpMinusOne(e, x), node.FloatAttribute("alpha", 1))));
}

// max(x, 0) + min(0, alpha (exp(x / alpha) - 1))
void Celu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const float alpha = node.FloatAttribute("alpha", 1);
  e.Out(node, 0, Positive(e, x, e.b.Mul(ExpMinusOne(e, e.b.Div(x, alpha)), alpha)));
}

void ThresholdedRelu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0), zero = e.b.Splat(x.dtype, {}, 0);
  const Tensor alpha = e.b.Splat(x.dtype, {}, node.FloatAttribute("alpha", 1));
  e.Out(node, 0, e.b.Select(e.b.CompareTo(Compare::kGt, x, alpha), x, zero));
}

// x + bias below -lambd, x - bias above lambd, else 0.
void Shrink(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (!IsFloat(x.dtype)) e.Refuse(node, "Shrink of " + std::string(Name(x.dtype)));
  const auto number = [&](double v) { return e.b.Splat(x.dtype, {}, v); };
  const double border = node.FloatAttribute("lambd", 0.5f), bias = node.FloatAttribute("bias", 0);
  const Tensor low = e.b.CompareTo(Compare::kLt, x, number(-border));
  const Tensor high = e.b.CompareTo(Compare::kGt, x, number(border));
  e.Out(node, 0, e.b.Select(low, e.b.Add(x, bias), e.b.Select(high, e.b.Sub(x, number(bias)), number(0))));
}

void Selu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const float alpha = node.FloatAttribute("alpha", 1.67326319217681884765625f);
  const float gamma = node.FloatAttribute("gamma", 1.05070102214813232421875f);
  e.Out(node, 0, e.b.Mul(Positive(e, x, e.b.Mul(ExpMinusOne(e, x), alpha)), gamma));
}

Tensor HardSigmoidOf(Emitter& e, const Tensor& x, double alpha, double beta) {
  return e.b.Min(e.b.Max(e.b.Add(e.b.Mul(x, alpha), beta), 0.0), 1.0);
}

void HardSigmoid(Emitter& e, const Node& node) {
  e.Out(node, 0,
        HardSigmoidOf(e, e.In(node, 0), node.FloatAttribute("alpha", 0.2f), node.FloatAttribute("beta", 0.5f)));
}

void HardSwish(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, e.b.Mul(x, HardSigmoidOf(e, x, 1.0f / 6.0f, 0.5)));
}

// log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), which does not overflow.
Tensor SoftplusOf(Emitter& e, const Tensor& x) {
  const Tensor tail = e.b.Unary("exponential", e.b.Unary("negate", e.b.Unary("abs", x)));
  return e.b.Add(e.b.Max(x, 0.0), e.b.Unary("log_plus_one", tail));
}

void Softplus(Emitter& e, const Node& node) { e.Out(node, 0, SoftplusOf(e, e.In(node, 0))); }

void Softsign(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, e.b.Div(x, e.b.Add(e.b.Unary("abs", x), 1.0)));
}

void Mish(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, e.b.Mul(x, e.b.Unary("tanh", SoftplusOf(e, x))));
}

// erf(x) = x P(x^2) / Q(x^2) for |x| <= 3.92, where erf rounds to 1 in f32; relative error below 4e-7. The coefficients
// are a weighted least-squares fit in Chebyshev points, refined towards equal ripples (Lawson 1961).
Tensor ErfOf(Emitter& e, const Tensor& input) {
  constexpr std::array<double, 5> kP = {1.1283791065216064, 0.18970131874084473, 0.051496222615242004,
                                        0.003580396994948387, 0.0002303658693563193};
  constexpr std::array<double, 7> kQ = {1.0,
                                        0.5014508366584778,
                                        0.11279238015413284,
                                        0.014425117522478104,
                                        0.0010536417830735445,
                                        2.3159700504038483e-05,
                                        -1.1222189755244472e-07};
  const Tensor x = e.b.Min(e.b.Max(e.b.Convert(input, DType::kF32), -3.92), 3.92);
  const Tensor t = e.b.Mul(x, x);
  const auto horner = [&](const auto& c) {
    Tensor y = e.b.Splat(DType::kF32, t.dims, c.back());
    for (std::size_t i = c.size() - 1; i-- > 0;) y = e.b.Add(e.b.Mul(y, t), c[i]);
    return y;
  };
  const Tensor y = e.b.Div(e.b.Mul(x, horner(kP)), horner(kQ));
  return e.b.Convert(e.b.Min(e.b.Max(y, -1.0), 1.0), input.dtype);
}

void Erf(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (!IsFloat(x.dtype) || x.dtype == DType::kF64) e.Refuse(node, "Erf of " + std::string(Name(x.dtype)));
  e.Out(node, 0, ErfOf(e, x));
}

// x/2 (1 + erf(x / sqrt 2))
Tensor GeluOf(Emitter& e, const Tensor& x) {
  return e.b.Mul(e.b.Mul(x, 0.5), e.b.Add(ErfOf(e, e.b.Mul(x, std::sqrt(0.5))), 1.0));
}

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
Tensor GeluTanhOf(Emitter& e, const Tensor& x) {
  const Tensor cube = e.b.Mul(e.b.Mul(e.b.Mul(x, x), x), 0.044715);
  const Tensor inner = e.b.Mul(e.b.Add(x, cube), 0.7978845608028654);
  return e.b.Mul(e.b.Mul(x, 0.5), e.b.Add(e.b.Unary("tanh", inner), 1.0));
}

void Gelu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::string how = node.StringAttribute("approximate", "none");
  if (how != "none" && how != "tanh") e.Refuse(node, "unknown approximation '" + how + "'");
  e.Out(node, 0, how == "tanh" ? GeluTanhOf(e, x) : GeluOf(e, x));
}

void BiasGelu(Emitter& e, const Node& node) {
  e.Out(node, 0, GeluOf(e, Checked(e, node, e.In(node, 0), e.In(node, 1), "add")));
}

void FastGelu(Emitter& e, const Node& node) {
  Tensor x = e.In(node, 0);
  if (e.Has(node, 1)) x = Checked(e, node, x, e.In(node, 1), "add");
  e.Out(node, 0, GeluTanhOf(e, x));
}

// x sigmoid(alpha x)
void QuickGelu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const float alpha = node.FloatAttribute("alpha", node.op() == "Swish" ? 1.0f : 1.702f);
  e.Out(node, 0, e.b.Mul(x, e.b.Unary("logistic", e.b.Mul(x, alpha))));
}

constexpr std::string_view kMs = "com.microsoft";
constexpr Lowering kTable[] = {
    {"Add", "", Binary<kAdd>, ""},
    {"Sub", "", Binary<kSub>, ""},
    {"Mul", "", Binary<kMul>, ""},
    {"Div", "", Binary<kDiv>, ""},
    {"Pow", "", Pow, ""},
    {"Mod", "", Mod, "floats without fmod"},
    {"Min", "", Variadic<kMin>, ""},
    {"Max", "", Variadic<kMax>, ""},
    {"Sum", "", Variadic<kAdd>, ""},
    {"Mean", "", Mean, ""},
    {"And", "", Binary<kAnd>, ""},
    {"Or", "", Binary<kOr>, ""},
    {"Xor", "", Binary<kXor>, ""},
    {"Not", "", Unary<kNot>, ""},
    {"BitwiseAnd", "", Binary<kAnd>, ""},
    {"BitwiseOr", "", Binary<kOr>, ""},
    {"BitwiseXor", "", Binary<kXor>, ""},
    {"BitwiseNot", "", Unary<kNot>, ""},
    {"Equal", "", Comparison<Compare::kEq>, ""},
    {"Less", "", Comparison<Compare::kLt>, ""},
    {"LessOrEqual", "", Comparison<Compare::kLe>, ""},
    {"Greater", "", Comparison<Compare::kGt>, ""},
    {"GreaterOrEqual", "", Comparison<Compare::kGe>, ""},
    {"IsNaN", "", IsNan, ""},
    {"IsInf", "", IsInf, ""},
    {"Where", "", Where, ""},
    {"Cast", "", Cast, "strings, types below 8 bits, 8-bit floats"},
    {"CastLike", "", CastLike, ""},
    {"Abs", "", Unary<kAbs>, ""},
    {"Neg", "", Unary<kNeg>, ""},
    {"Exp", "", Unary<kExp>, ""},
    {"Log", "", Unary<kLog>, ""},
    {"Sqrt", "", Unary<kSqrt>, ""},
    {"Floor", "", Unary<kFloor>, ""},
    {"Ceil", "", Unary<kCeil>, ""},
    {"Round", "", Unary<kRound>, ""},
    {"Sign", "", Unary<kSign>, ""},
    {"Sin", "", Unary<kSin>, ""},
    {"Cos", "", Unary<kCos>, ""},
    {"Tan", "", Tan, ""},
    {"Atan", "", Atan, ""},
    {"Sinh", "", Sinh, ""},
    {"Cosh", "", Cosh, ""},
    {"Tanh", "", Unary<kTanh>, ""},
    {"Sigmoid", "", Unary<kLogistic>, ""},
    {"Reciprocal", "", Reciprocal, ""},
    {"Relu", "", Relu, ""},
    {"Clip", "", Clip, ""},
    {"LeakyRelu", "", LeakyRelu, ""},
    {"PRelu", "", PRelu, ""},
    {"Elu", "", Elu, ""},
    {"Celu", "", Celu, ""},
    {"ThresholdedRelu", "", ThresholdedRelu, ""},
    {"Shrink", "", Shrink, "integers"},
    {"Selu", "", Selu, ""},
    {"HardSigmoid", "", HardSigmoid, ""},
    {"HardSwish", "", HardSwish, ""},
    {"Softplus", "", Softplus, ""},
    {"Softsign", "", Softsign, ""},
    {"Mish", "", Mish, ""},
    {"Erf", "", Erf, "f64, integers"},
    {"Gelu", "", Gelu, ""},
    {"Gelu", kMs, Gelu, ""},
    {"BiasGelu", kMs, BiasGelu, ""},
    {"FastGelu", kMs, FastGelu, ""},
    {"QuickGelu", kMs, QuickGelu, ""},
    {"Swish", "", QuickGelu, ""},
};

}  // namespace

std::span<const Lowering> ElementwiseLowerings() { return kTable; }

}  // namespace octavo::stablehlo
