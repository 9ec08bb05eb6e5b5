// Shapes, indices and sizes that a model computes: with static shapes they are known numbers, and never get into the
// text. Only small tensors are looked at; what is not known here is lowered like anything else.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

constexpr std::uint64_t kMost = 4096;          // elements
constexpr double kExact = 9007199254740992.0;  // 2^53: integers beyond are not looked at

// A small tensor of numbers. Integers are exact in f64 up to 2^53.
struct Small {
  DType dtype = DType::kS64;
  Dims dims;
  std::vector<double> values;
};
using MaybeSmall = std::optional<Small>;

// `clamps`: integers beyond what is exact only bound something, and are cut.
MaybeSmall Read(const TensorRef& data, bool clamps = false) {
  if (data.dtype != DType::kF32 && data.dtype != DType::kBool && !IsInteger(data.dtype)) return {};
  if (data.elements() > kMost) return {};
  Small small{data.dtype, data.dims, {}};
  if (data.dtype == DType::kF32) {
    const std::vector<float> floats = data.ToFloats();
    small.values.assign(floats.begin(), floats.end());
  } else {
    for (const std::int64_t v : data.ToInts()) {
      const auto value = static_cast<double>(v);
      if (std::abs(value) >= kExact && !clamps) return {};
      small.values.push_back(std::clamp(value, -kExact, kExact));
    }
  }
  return small;
}

std::optional<TensorRef> Write(const Small& small) {
  if (small.values.size() > kMost || ElementCount(small.dims) != small.values.size()) return {};
  if (small.dtype == DType::kF32) {
    const std::vector<float> floats(small.values.begin(), small.values.end());
    return TensorRef::FromFloats(small.dims, floats);
  }
  std::vector<std::int64_t> ints;
  for (const double v : small.values) {
    if (!(std::abs(v) < kExact)) return {};
    ints.push_back(static_cast<std::int64_t>(v));
  }
  if (small.dtype == DType::kBool) {
    std::vector<std::byte> bytes;
    for (const std::int64_t v : ints) bytes.push_back(v != 0 ? std::byte{1} : std::byte{0});
    return TensorRef::FromBytes(DType::kBool, small.dims, std::move(bytes));
  }
  if (BitWidth(small.dtype) < 64) {  // what does not fit would wrap around
    if (BitWidth(small.dtype) > 32) return {};
    for (const std::int64_t v : ints) {
      if (v < IntegerMin(small.dtype) || v > IntegerMax(small.dtype)) return {};
    }
  }
  return TensorRef::FromInts(small.dtype, small.dims, ints);
}

// Element i of a tensor that is broadcast to `dims`.
double At(const Small& s, const Dims& dims, std::size_t i) {
  std::size_t index = 0, stride = 1;
  for (std::size_t d = 0; d < s.dims.size(); ++d) {
    const std::size_t from_end = d + 1;
    const auto n = static_cast<std::size_t>(dims[dims.size() - from_end]);
    const auto own = static_cast<std::size_t>(s.dims[s.dims.size() - from_end]);
    if (own != 1) index += (i % n) * stride;
    i /= n;
    stride *= own;
  }
  return s.values[index];
}

MaybeSmall Combine(const std::vector<Small>& in, DType dtype, const std::function<double(const double*)>& f) {
  Dims dims;
  for (const Small& s : in) {
    const std::optional<Dims> both = BroadcastShape(dims, s.dims);
    if (!both) return {};
    dims = *both;
  }
  const std::uint64_t n = ElementCount(dims);
  if (n > kMost) return {};
  Small out{dtype, dims, {}};
  std::vector<double> arguments(in.size());
  for (std::uint64_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < in.size(); ++k) arguments[k] = At(in[k], dims, i);
    double v = f(arguments.data());
    if (dtype == DType::kF32) v = static_cast<float>(v);
    out.values.push_back(v);
  }
  return out;
}

std::optional<std::vector<std::int64_t>> Ints(const Small& s) {
  if (!IsInteger(s.dtype)) return {};
  return std::vector<std::int64_t>(s.values.begin(), s.values.end());
}

MaybeSmall Arithmetic(const std::string& op, const std::vector<Small>& in) {
  const DType t = in[0].dtype;
  for (const Small& s : in) {
    if (s.dtype != t) return {};
  }
  const bool integer = t != DType::kF32;
  using F = std::function<double(const double*)>;
  F f;
  DType result = t;
  if (in.size() == 2) {
    if (op == "Add") f = [](const double* a) { return a[0] + a[1]; };
    if (op == "Sub") f = [](const double* a) { return a[0] - a[1]; };
    if (op == "Mul") f = [](const double* a) { return a[0] * a[1]; };
    if (op == "Min") f = [](const double* a) { return std::min(a[0], a[1]); };
    if (op == "Max") f = [](const double* a) { return std::max(a[0], a[1]); };
    if (op == "And") f = [](const double* a) { return a[0] != 0 && a[1] != 0 ? 1.0 : 0.0; };
    if (op == "Or") f = [](const double* a) { return a[0] != 0 || a[1] != 0 ? 1.0 : 0.0; };
    if (op == "Div" || op == "Mod") {
      if (std::find(in[1].values.begin(), in[1].values.end(), 0.0) != in[1].values.end()) return {};
      if (op == "Div" && integer) f = [](const double* a) { return std::trunc(a[0] / a[1]); };
      if (op == "Div" && !integer) f = [](const double* a) { return a[0] / a[1]; };
      if (op == "Mod" && integer) f = [](const double* a) { return a[0] - std::floor(a[0] / a[1]) * a[1]; };
    }
    const auto compare = [&](const char* name, F g) {
      if (op != name) return;
      f = std::move(g);
      result = DType::kBool;
    };
    compare("Equal", [](const double* a) { return a[0] == a[1] ? 1.0 : 0.0; });
    compare("Less", [](const double* a) { return a[0] < a[1] ? 1.0 : 0.0; });
    compare("Greater", [](const double* a) { return a[0] > a[1] ? 1.0 : 0.0; });
    compare("LessOrEqual", [](const double* a) { return a[0] <= a[1] ? 1.0 : 0.0; });
    compare("GreaterOrEqual", [](const double* a) { return a[0] >= a[1] ? 1.0 : 0.0; });
  } else if (in.size() == 1) {
    if (op == "Neg") f = [](const double* a) { return -a[0]; };
    if (op == "Abs") f = [](const double* a) { return std::abs(a[0]); };
    if (op == "Floor") f = [](const double* a) { return std::floor(a[0]); };
    if (op == "Ceil") f = [](const double* a) { return std::ceil(a[0]); };
    if (op == "Not") f = [](const double* a) { return a[0] == 0 ? 1.0 : 0.0; };
    if (op == "Identity") f = [](const double* a) { return a[0]; };
  }
  if (!f) return {};
  return Combine(in, result, f);
}

MaybeSmall Reshaped(const Node& node, const std::vector<Small>& in) {
  Small out = in[0];
  const std::string& op = node.op();
  const auto rank = static_cast<std::int64_t>(out.dims.size());
  std::optional<Dims> list;
  if (const auto* attribute = node.IntsAttribute("axes")) list = *attribute;
  if (in.size() == 2) list = Ints(in[1]);
  if (op == "Reshape") {
    if (!list) return {};
    std::uint64_t known = 1;
    for (std::size_t i = 0; i < list->size(); ++i) {
      if ((*list)[i] == 0) return {};
      if ((*list)[i] > 0) known *= static_cast<std::uint64_t>((*list)[i]);
      if (known > kMost) return {};
    }
    for (std::int64_t& d : *list) {
      if (d == -1) d = static_cast<std::int64_t>(out.values.size() / known);
    }
    out.dims = *list;
  } else if (op == "Unsqueeze") {
    if (!list) return {};
    const std::int64_t full = rank + static_cast<std::int64_t>(list->size());
    for (std::int64_t& a : *list) a = a < 0 ? a + full : a;
    std::sort(list->begin(), list->end());
    for (const std::int64_t a : *list) {
      if (a < 0 || a > static_cast<std::int64_t>(out.dims.size())) return {};
      out.dims.insert(out.dims.begin() + a, 1);
    }
  } else {  // Squeeze
    if (!list) {
      std::erase(out.dims, 1);
    } else {
      for (std::int64_t& a : *list) a = a < 0 ? a + rank : a;
      std::sort(list->rbegin(), list->rend());
      for (const std::int64_t a : *list) {
        if (a < 0 || a >= static_cast<std::int64_t>(out.dims.size()) || out.dims[static_cast<std::size_t>(a)] != 1) {
          return {};
        }
        out.dims.erase(out.dims.begin() + a);
      }
    }
  }
  for (const std::int64_t d : out.dims) {
    if (d < 0) return {};
  }
  if (ElementCount(out.dims) != out.values.size()) return {};
  return out;
}

// The elements of `x` that stand at start + i * step in each dimension, with dims[i] of them, and its dimensions in the
// order of `permutation`.
Small Picked(const Small& x, const Dims& permutation, const Dims& start, const Dims& step, const Dims& dims) {
  Small out{x.dtype, {}, {}};
  for (const std::int64_t d : permutation) out.dims.push_back(dims[static_cast<std::size_t>(d)]);
  Dims strides(x.dims.size(), 1);
  for (std::size_t i = x.dims.size(); i-- > 1;) strides[i - 1] = strides[i] * x.dims[i];
  const std::uint64_t n = ElementCount(out.dims);
  for (std::uint64_t i = 0; i < n; ++i) {
    std::uint64_t rest = i;
    std::int64_t at = 0;
    for (std::size_t k = out.dims.size(); k-- > 0;) {
      const auto d = static_cast<std::size_t>(permutation[k]), size = static_cast<std::size_t>(out.dims[k]);
      at += (start[d] + static_cast<std::int64_t>(rest % size) * step[d]) * strides[d];
      rest /= size;
    }
    out.values.push_back(x.values[static_cast<std::size_t>(at)]);
  }
  return out;
}

MaybeSmall Transposed(const Node& node, const Small& x) {
  Dims permutation(x.dims.size());
  std::iota(permutation.rbegin(), permutation.rend(), 0);
  if (const auto* given = node.IntsAttribute("perm")) permutation = *given;
  Dims sorted = permutation, every(x.dims.size());
  std::sort(sorted.begin(), sorted.end());
  std::iota(every.begin(), every.end(), 0);
  if (sorted != every) return {};
  return Picked(x, permutation, Dims(x.dims.size(), 0), Dims(x.dims.size(), 1), x.dims);
}

// data, starts, ends, [axes], [steps]; values beyond an end are cut to it, however large.
MaybeSmall Sliced(const std::vector<Small>& in) {
  const Small& x = in[0];
  const std::size_t rank = x.dims.size(), n = in[1].values.size();
  for (std::size_t i = 1; i < in.size(); ++i) {
    if (in[i].values.size() != n || !IsInteger(in[i].dtype)) return {};
  }
  Dims start(rank, 0), step(rank, 1), dims = x.dims, order(rank);
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = 0; i < n; ++i) {
    double axis = in.size() > 3 ? in[3].values[i] : static_cast<double>(i);
    if (axis < 0) axis += static_cast<double>(rank);
    if (!(axis >= 0 && axis < static_cast<double>(rank))) return {};
    const auto a = static_cast<std::size_t>(axis);
    const auto size = static_cast<double>(x.dims[a]), by = in.size() > 4 ? in[4].values[i] : 1.0;
    if (by == 0) return {};
    const auto at = [&](double v) {
      return std::clamp(v < 0 ? v + size : v, by < 0 ? -1.0 : 0.0, by < 0 ? size - 1 : size);
    };
    const double low = at(in[1].values[i]), count = std::ceil((at(in[2].values[i]) - low) / by);
    start[a] = static_cast<std::int64_t>(low);
    step[a] = static_cast<std::int64_t>(by);
    dims[a] = static_cast<std::int64_t>(std::max(0.0, count));
  }
  return Picked(x, order, start, step, dims);
}

// Operators on lists: one dimension, or a scalar.
MaybeSmall ListOperator(const Node& node, const std::vector<Small>& in) {
  const std::string& op = node.op();
  if (op == "Concat") {
    Small out{in[0].dtype, {0}, {}};
    for (const Small& s : in) {
      if (s.dims.size() != 1 || s.dtype != out.dtype) return {};
      out.values.insert(out.values.end(), s.values.begin(), s.values.end());
    }
    out.dims[0] = static_cast<std::int64_t>(out.values.size());
    return out;
  }
  if (op == "Slice" && in.size() >= 3) return Sliced(in);
  if (op == "Transpose" && in.size() == 1) return Transposed(node, in[0]);
  if (op == "Gather" && in.size() == 2 && in[0].dims.size() == 1) {
    const auto indices = Ints(in[1]);
    if (!indices) return {};
    Small out{in[0].dtype, in[1].dims, {}};
    const auto n = static_cast<std::int64_t>(in[0].values.size());
    for (std::int64_t i : *indices) {
      if (i < 0) i += n;
      if (i < 0 || i >= n) return {};
      out.values.push_back(in[0].values[static_cast<std::size_t>(i)]);
    }
    return out;
  }
  if (op == "Range" && in.size() == 3 && IsInteger(in[0].dtype)) {
    for (const Small& s : in) {
      if (s.values.size() != 1 || s.dtype != in[0].dtype) return {};
    }
    const double start = in[0].values[0], end = in[1].values[0], step = in[2].values[0];
    if (step == 0) return {};
    const double count = std::max(0.0, std::ceil((end - start) / step));
    if (count > static_cast<double>(kMost)) return {};
    Small out{in[0].dtype, {static_cast<std::int64_t>(count)}, {}};
    for (double i = 0; i < count; ++i) out.values.push_back(start + i * step);
    return out;
  }
  if (op == "ReduceProd" && in.size() == 1 && in[0].dims.size() == 1 && IsInteger(in[0].dtype)) {
    const double product = std::accumulate(in[0].values.begin(), in[0].values.end(), 1.0, std::multiplies<>());
    return Small{in[0].dtype, node.IntAttribute("keepdims", 1) != 0 ? Dims{1} : Dims{}, {product}};
  }
  return {};
}

MaybeSmall Evaluate(const Node& node, const std::vector<Small>& in) {
  const std::string& op = node.op();
  if (op == "Reshape" || op == "Unsqueeze" || op == "Squeeze") return Reshaped(node, in);
  if (op == "Cast") {
    Small out = in[0];
    out.dtype = static_cast<DType>(node.IntAttribute("to", 0));
    if (out.dtype != DType::kF32 && out.dtype != DType::kBool && !IsInteger(out.dtype)) return {};
    for (double& v : out.values) {
      v = out.dtype == DType::kF32    ? static_cast<float>(v)
          : out.dtype == DType::kBool ? (v != 0 ? 1 : 0)
                                      : std::trunc(v);
    }
    return out;
  }
  if (op == "Where" && in.size() == 3 && in[1].dtype == in[2].dtype) {
    return Combine(in, in[1].dtype, [](const double* a) { return a[0] != 0 ? a[1] : a[2]; });
  }
  if (op == "ConstantOfShape") {
    const auto dims = Ints(in[0]);
    if (!dims || std::any_of(dims->begin(), dims->end(), [](std::int64_t d) { return d < 0 || d > 4096; })) return {};
    Small out{DType::kF32, *dims, {}};
    double value = 0;
    if (const Attribute* attribute = node.FindAttribute("value")) {
      const auto* data = std::get_if<TensorRef>(&attribute->value);
      const MaybeSmall given = data != nullptr ? Read(*data) : std::nullopt;
      if (!given || given->values.size() != 1) return {};
      out.dtype = given->dtype;
      value = given->values[0];
    }
    double count = 1;
    for (const std::int64_t d : *dims) count *= static_cast<double>(d);
    if (count > static_cast<double>(kMost)) return {};
    out.values.assign(static_cast<std::size_t>(count), value);
    return out;
  }
  if (MaybeSmall list = ListOperator(node, in)) return list;
  return Arithmetic(op, in);
}

}  // namespace

bool Emitter::Fold(const Node& node) {
  if (!node.domain().empty() || node.outputs().size() != 1 || node.output() == nullptr || node.inputs().empty() ||
      node.output()->type.quant) {
    return false;
  }
  std::optional<TensorRef> result;
  if (node.op() == "Shape" && node.input(0) != nullptr) {
    const Dims dims = DimsOf(*node.input(0));
    const auto rank = static_cast<std::int64_t>(dims.size());
    const auto at = [&](std::int64_t i) { return std::clamp<std::int64_t>(i < 0 ? i + rank : i, 0, rank); };
    const std::int64_t start = at(node.IntAttribute("start", 0));
    const std::int64_t end = std::max(start, at(node.IntAttribute("end", rank)));
    result = TensorRef::FromInts(DType::kS64, {end - start}, Dims(dims.begin() + start, dims.begin() + end));
  } else if (node.op() == "Size" && node.input(0) != nullptr) {
    const std::int64_t count[] = {static_cast<std::int64_t>(ElementCount(DimsOf(*node.input(0))))};
    result = TensorRef::FromInts(DType::kS64, {}, count);
  } else {
    std::vector<Small> in;
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      const TensorRef* data = ConstantIn(node, i);
      const bool bounds = node.op() == "Slice" && (i == 1 || i == 2);
      MaybeSmall small = data != nullptr ? Read(*data, bounds) : std::nullopt;
      if (!small) return false;
      in.push_back(*std::move(small));
    }
    if (const MaybeSmall value = Evaluate(node, in)) result = Write(*value);
  }
  if (!result) return false;
  known_[node.output()] = *std::move(result);
  return true;
}

}  // namespace octavo::stablehlo
