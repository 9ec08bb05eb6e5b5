#include <algorithm>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Norm {
  Node* last;
  Value *x, *scale, *bias;
  std::int64_t axis;  // of x, not negative
  float epsilon;
};

std::uint64_t Elements(const Value* value) {
  const std::optional<Dims> dims = StaticShape(value->type);
  return dims ? ElementCount(*dims) : 0;
}

// What `value` is before operators that give the same numbers in the same order another shape.
Value* Shaped(Value* value) {
  while (value != nullptr && value->producer() != nullptr) {
    const Node* node = value->producer();
    const bool shapes = node->Is("Reshape") || node->Is("Expand") || node->Is("Squeeze") || node->Is("Unsqueeze") ||
                        node->Is("Identity");
    if (!shapes || node->input(0) == nullptr || Elements(value) == 0 || Elements(node->input(0)) != Elements(value))
      break;
    value = node->input(0);
  }
  return value;
}

// The square root of what `value` is the square of; else null.
Value* SquareOf(Value* value) {
  const Node* node = value == nullptr ? nullptr : value->producer();
  if (node == nullptr || node->inputs().size() != 2) return nullptr;
  if (node->Is("Mul") && Shaped(node->input(0)) == Shaped(node->input(1))) return Shaped(node->input(0));
  return Shaped(OtherThan(node, "Pow", 2.0));
}

struct Mean {
  Value* of;
  std::int64_t axis;
};

// A ReduceMean of one axis, or a ReduceSum over the count.
std::optional<Mean> MeanOf(Value* value) {
  value = Shaped(value);
  const Node* node = value == nullptr ? nullptr : value->producer();
  if (node == nullptr) return std::nullopt;
  std::optional<float> divisor;
  if (node->Is("Mul") && node->inputs().size() == 2) {
    for (std::size_t i = 0; i < 2 && !divisor; ++i) {
      if (const auto factor = ScalarOf(node->input(i)); factor && *factor > 0) {
        divisor = 1 / *factor;
        node = node->input(1 - i)->producer();
      }
    }
    if (!divisor) return std::nullopt;
  } else if (node->Is("Div") && node->inputs().size() == 2) {
    divisor = ScalarOf(node->input(1));
    if (!divisor) return std::nullopt;
    node = node->input(0)->producer();
  }
  if (node == nullptr || !node->Is(divisor ? "ReduceSum" : "ReduceMean") || node->input(0) == nullptr)
    return std::nullopt;
  const std::optional<std::int64_t> given = OnlyAxis(*node);
  const std::optional<Dims> dims = StaticShape(node->input(0)->type);
  if (!dims || !given) return std::nullopt;
  const auto rank = static_cast<std::int64_t>(dims->size());
  const std::int64_t axis = *given < 0 ? *given + rank : *given;
  if (axis < 0 || axis >= rank) return std::nullopt;
  if (divisor && !Near(*divisor, static_cast<double>((*dims)[static_cast<std::size_t>(axis)]))) return std::nullopt;
  return Mean{node->input(0), axis};
}

// Whether `value` has the dimensions of `dims` with a 1 at `axis`.
bool IsReduced(const Value* value, Dims dims, std::int64_t axis) {
  dims[static_cast<std::size_t>(axis)] = 1;
  return StaticShape(value->type) == dims;
}

// Whether `value` is a constant along `axis` of a tensor of `dims`, and 1 elsewhere.
bool LiesAlong(const Value* value, const Dims& dims, std::int64_t axis) {
  if (!IsFloatConstant(value)) return false;
  const Dims& own = value->data->dims;
  const std::int64_t n = dims[static_cast<std::size_t>(axis)];
  if (value->data->elements() != static_cast<std::uint64_t>(n) || own.size() > dims.size()) return false;
  const auto at = static_cast<std::int64_t>(own.size()) - static_cast<std::int64_t>(dims.size()) + axis;
  return at >= 0 && own[static_cast<std::size_t>(at)] == n;
}

// Before: %m = ReduceMean %x; %v = Sub (ReduceMean (Mul %x, %x)), (Mul %m, %m)
//         %i = Div 1, (Sqrt (Add (Max %v, 0), epsilon)); %y = Add (Mul (Sub %x, %m), (Mul %i, scale)), bias
// After:  %y = LayerNormalization %x, scale, bias {axis=-1, epsilon}, between two Transposes where the axis is not last
// Improves: the same function; the variance is no difference of large numbers any more. Means may be sums over the
// count, and Reshapes may stand between (JAX and TensorFlow write it so).
class FuseFastLayerNormRule final : public PatternRule<Norm> {
 public:
  std::string_view name() const override { return "fuse-fast-layernorm"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Add"}; }

  MatchOr<Norm> Match(Node& node) const override {
    Norm norm{};
    norm.last = &node;
    for (std::size_t i = 0; i < 2; ++i) {
      if (!IsFloatConstant(node.input(1 - i)) || node.input(i) == nullptr) continue;
      norm.bias = node.input(1 - i);
      const Node* scaled = node.input(i)->producer();
      if (scaled == nullptr || !scaled->Is("Mul")) return Refusal{};
      for (std::size_t j = 0; j < 2; ++j) {
        if (MatchProduct(scaled->input(j), scaled->input(1 - j), norm)) return norm;
      }
    }
    return Refusal{};
  }

  void Apply(const Norm& match, Rewriter& rewriter) const override {
    Graph& graph = *match.last->graph();
    const Dims dims = *StaticShape(match.x->type);
    const std::int64_t last_axis = static_cast<std::int64_t>(dims.size()) - 1;
    const std::string base = match.last->output()->name();
    const std::int64_t n = dims[static_cast<std::size_t>(match.axis)];
    const auto vector = [&](const Value* from, const char* suffix) {
      TensorRef data = *from->data;
      data.dims = {n};
      return graph.AddConstant(base + suffix, std::move(data));
    };
    Value* scale = vector(match.scale, "_norm_scale");
    Value* bias = vector(match.bias, "_norm_bias");
    Dims swapped(dims.size());
    for (std::size_t i = 0; i < swapped.size(); ++i) swapped[i] = static_cast<std::int64_t>(i);
    std::swap(swapped[static_cast<std::size_t>(match.axis)], swapped.back());
    const auto transpose = [&](Value* v, const char* suffix) {
      Type type = v->type;
      if (type.shape) std::swap((*type.shape)[static_cast<std::size_t>(match.axis)], type.shape->back());
      Node* turned = graph.AddNode("Transpose", "", {v}, {{base + suffix, type}}, match.last);
      turned->SetAttribute("perm", swapped);
      rewriter.Touch(turned);
      return turned;
    };
    Value* x = match.axis == last_axis ? match.x : transpose(match.x, "_norm_in")->output();
    Node* norm = graph.AddNode("LayerNormalization", "", {x, scale, bias}, {{base + "_norm", x->type}}, match.last);
    norm->SetAttribute("axis", std::int64_t{-1});
    norm->SetAttribute("epsilon", match.epsilon);
    rewriter.Touch(norm);
    TakePlace(match.axis == last_axis ? *norm : *transpose(norm->output(), "_norm_out"), *match.last, rewriter);
  }

 private:
  // (x - mean) and what it is multiplied by.
  static bool MatchProduct(Value* centred, Value* factor, Norm& norm) {
    const Node* sub = centred == nullptr ? nullptr : centred->producer();
    if (sub == nullptr || !sub->Is("Sub") || factor == nullptr) return false;
    const std::optional<Mean> mean = MeanOf(sub->input(1));
    if (!mean || mean->of != sub->input(0)) return false;
    norm.x = mean->of;
    norm.axis = mean->axis;
    const Dims dims = *StaticShape(norm.x->type);
    if (!IsReduced(sub->input(1), dims, norm.axis)) return false;
    const Node* scaling = factor->producer();
    if (scaling == nullptr || !scaling->Is("Mul") || scaling->inputs().size() != 2) return false;
    for (std::size_t i = 0; i < 2; ++i) {
      Value* inverse = scaling->input(i);
      norm.scale = scaling->input(1 - i);
      if (inverse == nullptr || !LiesAlong(norm.scale, dims, norm.axis) || !LiesAlong(norm.bias, dims, norm.axis)) {
        continue;
      }
      if (IsReduced(inverse, dims, norm.axis) && MatchInverse(Shaped(inverse), norm)) return true;
    }
    return false;
  }

  // 1 / sqrt(variance + epsilon)
  static bool MatchInverse(const Value* inverse, Norm& norm) {
    const Node* node = inverse->producer();
    if (node == nullptr) return false;
    Value* root = nullptr;
    if (node->Is("Reciprocal")) root = node->input(0);
    if (node->Is("Div") && ScalarOf(node->input(0)) == 1.0f) root = node->input(1);
    root = Shaped(root);
    const Node* sqrt = root == nullptr ? nullptr : root->producer();
    if (sqrt == nullptr || !sqrt->Is("Sqrt")) return false;
    const Value* sum = Shaped(sqrt->input(0));
    const Node* add = sum == nullptr ? nullptr : sum->producer();
    if (add == nullptr || !add->Is("Add")) return false;
    Value* variance = nullptr;
    for (std::size_t i = 0; i < 2; ++i) {
      if (const auto epsilon = ScalarOf(add->input(i)); epsilon && *epsilon > 0) {
        norm.epsilon = *epsilon;
        variance = Shaped(add->input(1 - i));
      }
    }
    const Node* least = variance == nullptr ? nullptr : variance->producer();
    if (least == nullptr) return false;
    if (least->Is("Relu")) {
      variance = Shaped(least->input(0));
    } else if (least->Is("Max") && least->inputs().size() == 2) {
      const bool first = ScalarOf(least->input(0)) == 0.0f;
      if (!first && ScalarOf(least->input(1)) != 0.0f) return false;
      variance = Shaped(least->input(first ? 1 : 0));
    }
    const Node* difference = variance == nullptr ? nullptr : variance->producer();
    if (difference == nullptr || !difference->Is("Sub")) return false;
    const std::optional<Mean> squares = MeanOf(difference->input(0));
    const std::optional<Mean> mean = MeanOf(SquareOf(Shaped(difference->input(1))));
    return squares && mean && squares->axis == norm.axis && mean->axis == norm.axis && mean->of == norm.x &&
           SquareOf(squares->of) == Shaped(norm.x);
  }
};

}  // namespace

std::unique_ptr<Rule> FuseFastLayerNorm() { return std::make_unique<FuseFastLayerNormRule>(); }

}  // namespace octavo
