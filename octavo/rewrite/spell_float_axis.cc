// Reductions and other operators along axes, spelled out.
#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/speller.h"

namespace octavo {

std::optional<Dims> AxesOf(const Node& node, std::int64_t rank) {
  Dims axes;
  if (const Value* input = node.input(1)) {
    if (!IsPlainConstant(input)) return std::nullopt;
    axes = input->data->ToInts();
  } else if (const std::vector<std::int64_t>* attribute = node.IntsAttribute("axes")) {
    axes = *attribute;
  }
  if (axes.empty()) {
    axes.resize(static_cast<std::size_t>(rank));
    std::iota(axes.begin(), axes.end(), 0);
  }
  for (std::int64_t& axis : axes) {
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank) return std::nullopt;
  }
  std::sort(axes.begin(), axes.end());
  axes.erase(std::unique(axes.begin(), axes.end()), axes.end());
  return axes;
}

Type Reduced(const Type& x, const Dims& axes, bool keep) {
  Type type;
  type.dtype = x.dtype;
  if (!x.shape) return type;
  type.shape.emplace();
  for (std::size_t i = 0; i < x.shape->size(); ++i) {
    if (!std::binary_search(axes.begin(), axes.end(), static_cast<std::int64_t>(i))) {
      type.shape->push_back((*x.shape)[i]);
    } else if (keep) {
      type.shape->push_back(Dim{1, {}});
    }
  }
  return type;
}

namespace {

constexpr std::uint64_t kMostFactors = 16;  // of a product

// The axis that `node` works along, from 0 on; nothing where the rank of its input is not known.
std::optional<std::int64_t> AxisOf(const Node& node, std::int64_t otherwise) {
  const Value* x = node.input(0);
  if (!x->type.shape) return std::nullopt;
  const auto rank = std::ssize(*x->type.shape);
  std::int64_t axis = node.IntAttribute("axis", otherwise);
  if (axis < 0) axis += rank;
  return axis >= 0 && axis < rank ? std::optional(axis) : std::nullopt;
}

// How many elements `v` has along `axis`.
std::optional<std::int64_t> Along(const Value* v, std::int64_t axis) {
  const Dim& dim = (*v->type.shape)[static_cast<std::size_t>(axis)];
  return dim.known() && dim.value > 0 ? std::optional(dim.value) : std::nullopt;
}

// A reduction of `terms` as `node` reduces its input. Axes are an input of ReduceSum since operator set 13, of the
// others since 18.
Value* Reduce(Speller& spell, std::string_view op, Value* terms, bool keep) {
  Node& node = spell.node();
  std::vector<Value*> inputs = {terms};
  if (node.input(1) != nullptr) {
    inputs.push_back(node.input(1));
  } else if (const std::vector<std::int64_t>* axes = node.IntsAttribute("axes")) {
    inputs.push_back(spell.Ints(*axes));
  }
  Type type;
  type.dtype = spell.like().dtype;
  if (spell.like().shape) {
    const std::optional<Dims> axes = AxesOf(node, std::ssize(*spell.like().shape));
    if (axes) type = Reduced(spell.like(), *axes, keep);
  }
  Value* reduced = spell.Op(op, inputs, std::move(type));
  reduced->producer()->SetAttribute("keepdims", std::int64_t{keep});
  return reduced;
}

bool Keeps(const Node& node) { return node.IntAttribute("keepdims", 1) != 0; }
// Without axes it reduces nothing.
bool ReducesNothing(const Node& node) { return node.IntAttribute("noop_with_empty_axes", 0) != 0; }

Value* SumOfAbs(Speller& spell, Node& node) {
  if (ReducesNothing(node)) return nullptr;
  return Reduce(spell, "ReduceSum", spell.Op("Abs", {spell.x()}), Keeps(node));
}
Value* SumOfSquares(Speller& spell, Node& node) {
  if (ReducesNothing(node)) return nullptr;
  return Reduce(spell, "ReduceSum", spell.Op("Mul", {spell.x(), spell.x()}), Keeps(node));
}
Value* LogOfSum(Speller& spell, Node& node) {
  if (ReducesNothing(node)) return nullptr;
  Value* sum = Reduce(spell, "ReduceSum", spell.x(), Keeps(node));
  return spell.Op("Log", {sum}, sum->type);
}

// log(sum(exp(x))) = m + log(sum(exp(x - m))), m = max(x)
Value* LogOfSumOfExp(Speller& spell, Node& node) {
  if (ReducesNothing(node)) return nullptr;
  Value* most = Reduce(spell, "ReduceMax", spell.x(), true);
  Value* sum = Reduce(spell, "ReduceSum", spell.Op("Exp", {spell.Op("Sub", {spell.x(), most})}), Keeps(node));
  Value* back = Keeps(node) ? most : Reduce(spell, "ReduceMax", spell.x(), false);
  return spell.Op("Add", {spell.Op("Log", {sum}, sum->type), back}, sum->type);
}

// Halves are multiplied until one is left. Of more than 16 factors the product is seldom within the range of fp16, and
// partial products may not be where it is.
Value* Product(Speller& spell, Node& node) {
  const std::optional<Dims> dims = StaticShape(spell.like());
  if (ReducesNothing(node) || !dims || dims->empty()) return nullptr;
  const std::optional<Dims> axes = AxesOf(node, std::ssize(*dims));
  if (!axes || std::find(dims->begin(), dims->end(), 0) != dims->end()) return nullptr;
  Dims factors;
  for (const std::int64_t axis : *axes) factors.push_back((*dims)[static_cast<std::size_t>(axis)]);
  if (ElementCount(factors) > kMostFactors) return nullptr;
  Value* product = spell.x();
  for (const std::int64_t axis : *axes) {
    for (std::int64_t n = (*dims)[static_cast<std::size_t>(axis)]; n > 1; n = n / 2 + n % 2) {
      const std::int64_t half = n / 2;
      Value* first = spell.Slice(product, axis, 0, half);
      Value* pairs = spell.Op("Mul", {first, spell.Slice(product, axis, half, 2 * half)}, first->type);
      if (n % 2 == 0) {
        product = pairs;
        continue;
      }
      Type joined = pairs->type;
      (*joined.shape)[static_cast<std::size_t>(axis)] = Dim{half + 1, {}};
      product = spell.Op("Concat", {pairs, spell.Slice(product, axis, 2 * half, n)}, std::move(joined));
      product->producer()->SetAttribute("axis", axis);
    }
  }
  if (Keeps(node) && product != spell.x()) return product;
  return spell.Reshape(product, *StaticShape(Reduced(spell.like(), *axes, Keeps(node))));
}

// Over all axes but the first two.
Value* GlobalNorm(Speller& spell, Node& node) {
  const std::int64_t p = node.IntAttribute("p", 2);
  if ((p != 1 && p != 2) || !spell.like().shape || spell.like().shape->size() < 3) return nullptr;
  Dims axes(spell.like().shape->size() - 2);
  std::iota(axes.begin(), axes.end(), 2);
  Value* terms = p == 1 ? spell.Op("Abs", {spell.x()}) : spell.x();
  return spell.Op(p == 1 ? "ReduceSum" : "ReduceL2", {terms, spell.Ints(axes)}, Reduced(spell.like(), axes, true));
}

// (n mean(|x|^p))^(1/p) of windows of n numbers; what is padded is 0 and counts.
Value* NormOfWindows(Speller& spell, Node& node) {
  const std::int64_t p = node.IntAttribute("p", 2);
  const std::vector<std::int64_t>* kernel = node.IntsAttribute("kernel_shape");
  if ((p != 1 && p != 2) || kernel == nullptr || node.IntAttribute("ceil_mode", 0) != 0) return nullptr;
  const std::vector<std::int64_t>* dilations = node.IntsAttribute("dilations");
  if (dilations != nullptr && std::any_of(dilations->begin(), dilations->end(), [](auto d) { return d != 1; })) {
    return nullptr;
  }
  float count = 1;
  for (const std::int64_t n : *kernel) count *= static_cast<float>(n);
  Type type = node.output()->type;
  type.quant.reset();
  Value* terms = p == 1 ? spell.Op("Abs", {spell.x()}) : spell.Op("Mul", {spell.x(), spell.x()});
  Value* mean = spell.Op("AveragePool", {terms}, type);
  for (const char* list : {"kernel_shape", "strides", "pads"}) {
    if (const std::vector<std::int64_t>* values = node.IntsAttribute(list))
      mean->producer()->SetAttribute(list, *values);
  }
  mean->producer()->SetAttribute("auto_pad", node.StringAttribute("auto_pad", "NOTSET"));
  mean->producer()->SetAttribute("count_include_pad", std::int64_t{1});
  Value* sum = spell.Op("Mul", {mean, spell.Number(count)}, type);
  return p == 1 ? sum : spell.Op("Sqrt", {sum}, type);
}

Value* LpNormalization(Speller& spell, Node& node) {
  const std::int64_t p = node.IntAttribute("p", 2);
  const std::optional<std::int64_t> axis = AxisOf(node, -1);
  if ((p != 1 && p != 2) || !axis) return nullptr;
  Value* terms = p == 1 ? spell.Op("Abs", {spell.x()}) : spell.x();
  Value* norm =
      spell.Op(p == 1 ? "ReduceSum" : "ReduceL2", {terms, spell.Ints({*axis})}, Reduced(spell.like(), {*axis}, true));
  return spell.Op("Div", {spell.x(), norm});
}

// d / max(sqrt(mean(d^2)), 1e-4), d = x - mean(x). What ONNX adds to the deviation instead, 1e-9, is no number of fp16.
Value* MeanVariance(Speller& spell, Node& node) {
  if (!spell.like().shape) return nullptr;
  const std::vector<std::int64_t>* given = node.IntsAttribute("axes");
  Dims axes = given == nullptr ? Dims{0, 2, 3} : *given;
  const auto rank = std::ssize(*spell.like().shape);
  for (std::int64_t& axis : axes) {
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank) return nullptr;
  }
  std::sort(axes.begin(), axes.end());
  const Type reduced = Reduced(spell.like(), axes, true);
  const auto mean = [&](Value* v) { return spell.Op("ReduceMean", {v, spell.Ints(axes)}, reduced); };
  Value* away = spell.Op("Sub", {spell.x(), mean(spell.x())});
  Value* deviation = spell.Op("Sqrt", {mean(spell.Op("Mul", {away, away}))}, reduced);
  return spell.Op("Div", {away, spell.Op("Clip", {deviation, spell.Number(1e-4f)}, reduced)});
}

// first, first + 1 ... first + n - 1 along `axis` of `rank`.
Value* Counted(Speller& spell, std::int64_t n, std::int64_t first, std::int64_t axis, std::int64_t rank) {
  Dims shape(static_cast<std::size_t>(rank), 1), values(static_cast<std::size_t>(n));
  shape[static_cast<std::size_t>(axis)] = n;
  std::iota(values.begin(), values.end(), first);
  return spell.Ints(values, std::move(shape));
}

Type BoolLike(Type type) { return WithType(std::move(type), DType::kBool); }

// Where its index is that of the first greatest, 1.
Value* Hardmax(Speller& spell, Node& node) {
  const std::optional<std::int64_t> axis = AxisOf(node, -1);
  if (!axis) return nullptr;
  const std::optional<std::int64_t> n = Along(spell.x(), *axis);
  if (!n) return nullptr;
  Value* most = spell.Op("ArgMax", {spell.x()}, WithType(Reduced(spell.like(), {*axis}, true), DType::kS64));
  most->producer()->SetAttribute("axis", *axis);
  Value* places = Counted(spell, *n, 0, *axis, std::ssize(*spell.like().shape));
  Value* is = spell.Op("Equal", {most, places}, BoolLike(spell.like()));
  return spell.Op("Where", {is, spell.Number(1), spell.Number(0)});
}

// Indices count from the end where they are negative; others out of range give a row of the off value, as here.
Value* OneHot(Speller& spell, Node& node) {
  const Value *depth = node.input(1), *values = node.input(2);
  const DType from = spell.like().dtype;
  if (!IsPlainConstant(depth) || depth->data->elements() != 1 || !spell.like().shape) return nullptr;
  if (from != DType::kS64) return nullptr;
  const std::optional<std::vector<float>> pair = KnownNumbers(values);
  const float rows = depth->data->ToFloats()[0];
  const DType to = node.output()->type.dtype;
  if (!pair || pair->size() != 2 || !(rows >= 1) || rows > (1 << 20)) return nullptr;
  if (to != DType::kF32 && to != DType::kF16) return nullptr;
  const auto n = static_cast<std::int64_t>(rows);
  const auto rank = std::ssize(*spell.like().shape) + 1;
  std::int64_t axis = node.IntAttribute("axis", -1);
  if (axis < 0) axis += rank;
  if (axis < 0 || axis >= rank) return nullptr;
  Type column = spell.like();
  column.shape->insert(column.shape->begin() + axis, Dim{1, {}});
  Type all = column;
  (*all.shape)[static_cast<std::size_t>(axis)] = Dim{n, {}};
  Value* index = spell.Op("Unsqueeze", {spell.x(), spell.Ints({axis})}, column);
  Value* up = spell.Op("Equal", {index, Counted(spell, n, 0, axis, rank)}, BoolLike(all));
  Value* down = spell.Op("Equal", {index, Counted(spell, n, -n, axis, rank)}, BoolLike(all));
  Value* is = spell.Op("Or", {up, down}, BoolLike(all));
  const auto number = [&](float v) {
    return AddFloatConstant(*node.graph(), node.output()->name() + "_value", to, {}, std::span(&v, 1));
  };
  return spell.Op("Where", {is, number((*pair)[1]), number((*pair)[0])}, WithType(all, to));
}

// Exclusive: less x. Reverse: of the numbers turned round, and turned round again.
Value* CumSum(Speller& spell, Node& node) {
  const bool exclusive = node.IntAttribute("exclusive", 0) != 0, reverse = node.IntAttribute("reverse", 0) != 0;
  const Value* at = node.input(1);
  if ((!exclusive && !reverse) || !IsPlainConstant(at) || at->data->elements() != 1 || !spell.like().shape)
    return nullptr;
  const auto rank = std::ssize(*spell.like().shape);
  std::int64_t axis = at->data->ToInts()[0];
  if (axis < 0) axis += rank;
  if (axis < 0 || axis >= rank) return nullptr;
  const std::optional<std::int64_t> n = Along(spell.x(), axis);
  if (!n) return nullptr;
  const auto turned = [&](Value* v) { return spell.Slice(v, axis, *n - 1, -*n - 1, -1); };
  Value* x = reverse ? turned(spell.x()) : spell.x();
  Value* sum = spell.Op("CumSum", {x, node.input(1)});
  if (exclusive) sum = spell.Op("Sub", {sum, x});
  return reverse ? turned(sum) : sum;
}

// The last of equals is the first of the numbers turned round.
Value* LastIndex(Speller& spell, Node& node) {
  const std::optional<std::int64_t> axis = AxisOf(node, 0);
  if (node.IntAttribute("select_last_index", 0) == 0 || !axis) return nullptr;
  const std::optional<std::int64_t> n = Along(spell.x(), *axis);
  if (!n) return nullptr;
  Value* turned = spell.Slice(spell.x(), *axis, *n - 1, -*n - 1, -1);
  Value* index = spell.Op(node.op(), {turned}, WithType(Reduced(spell.like(), {*axis}, Keeps(node)), DType::kS64));
  index->producer()->SetAttribute("axis", *axis);
  index->producer()->SetAttribute("keepdims", std::int64_t{Keeps(node)});
  return spell.Op("Sub", {spell.Ints({*n - 1}, {}), index}, index->type);
}

constexpr Spelling kAlongAxes[] = {
    {"ReduceL1", SumOfAbs, 13},
    {"ReduceSumSquare", SumOfSquares, 13},
    {"ReduceLogSum", LogOfSum, 13},
    {"ReduceLogSumExp", LogOfSumOfExp, 18},
    {"ReduceProd", Product, 13},
    {"GlobalLpPool", GlobalNorm, 18},
    {"LpPool", NormOfWindows},
    {"LpNormalization", LpNormalization, 18},
    {"MeanVarianceNormalization", MeanVariance, 18},
    {"Hardmax", Hardmax, 13},
    {"OneHot", OneHot, 13, true},
    {"CumSum", CumSum, 11},
    {"ArgMax", LastIndex, 12},
    {"ArgMin", LastIndex, 12},
};

}  // namespace

std::span<const Spelling> AxisSpellings() { return kAlongAxes; }

}  // namespace octavo
