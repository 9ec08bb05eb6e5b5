// Reductions, Softmax and normalizations: statistics along axes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

struct Axes {
  Dims axes;
  bool keep = true;
  double count = 1;  // elements that are summed up
};

Axes ReductionAxes(Emitter& e, const Node& node, const Tensor& x) {
  Axes out;
  out.keep = node.IntAttribute("keepdims", 1) != 0;
  const Dims given = e.IntsAttributeOrIn(node, "axes", 1).value_or(Dims{});
  if (given.empty() && node.IntAttribute("noop_with_empty_axes", 0) == 0) {
    out.axes.resize(x.rank());
    std::iota(out.axes.begin(), out.axes.end(), 0);
  }
  for (const std::int64_t a : given) {
    const std::int64_t axis = e.Axis(node, a, x.rank());
    if (std::find(out.axes.begin(), out.axes.end(), axis) != out.axes.end()) e.Refuse(node, "an axis is given twice");
    out.axes.push_back(axis);
  }
  for (const std::int64_t a : out.axes) out.count *= static_cast<double>(x.dims[static_cast<std::size_t>(a)]);
  return out;
}

Tensor ReduceAs(Emitter& e, const Tensor& x, const Axes& axes, Reduction how) {
  return axes.keep ? e.b.ReduceKeep(x, axes.axes, how) : e.b.Reduce(x, axes.axes, how);
}

template <Reduction kHow>
void Reduce(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, ReduceAs(e, x, ReductionAxes(e, node, x), kHow));
}

void ReduceMean(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const Axes axes = ReductionAxes(e, node, x);
  e.Out(node, 0, e.b.Div(ReduceAs(e, x, axes, Reduction::kAdd), axes.count));
}

void ReduceL1(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, ReduceAs(e, e.b.Unary("abs", x), ReductionAxes(e, node, x), Reduction::kAdd));
}

template <bool kRoot>
void ReduceSquares(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const Tensor y = ReduceAs(e, e.b.Mul(x, x), ReductionAxes(e, node, x), Reduction::kAdd);
  e.Out(node, 0, kRoot ? e.b.Unary("sqrt", y) : y);
}

// log(sum(exp(x))), stable.
void ReduceLogSumExp(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const Axes axes = ReductionAxes(e, node, x);
  const Tensor top = e.b.ReduceKeep(x, axes.axes, Reduction::kMax);
  const Tensor sum = e.b.ReduceKeep(e.b.Unary("exponential", e.b.Sub(x, top)), axes.axes, Reduction::kAdd);
  Dims dims;
  for (std::size_t i = 0; i < x.rank(); ++i) {
    const bool gone = std::find(axes.axes.begin(), axes.axes.end(), static_cast<std::int64_t>(i)) != axes.axes.end();
    if (!gone) dims.push_back(x.dims[i]);
    if (gone && axes.keep) dims.push_back(1);
  }
  e.Out(node, 0, e.b.Reshape(e.b.Add(e.b.Unary("log", sum), top), std::move(dims)));
}

// exp(x - max) / sum along the axis; before operator set 13 along all dimensions from the axis on.
template <bool kLog>
void Softmax(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (x.rank() == 0) e.Refuse(node, "its input is a scalar");
  const bool flattens = e.opset(node) < 13;
  const std::int64_t axis = e.Axis(node, node.IntAttribute("axis", flattens ? 1 : -1), x.rank());
  Dims axes = {axis};
  if (flattens) {
    axes.resize(x.rank() - static_cast<std::size_t>(axis));
    std::iota(axes.begin(), axes.end(), axis);
  }
  const Tensor shifted = e.b.Sub(x, e.b.ReduceKeep(x, axes, Reduction::kMax));
  const Tensor powers = e.b.Unary("exponential", shifted);
  const Tensor sum = e.b.ReduceKeep(powers, axes, Reduction::kAdd);
  e.Out(node, 0, kLog ? e.b.Sub(shifted, e.b.Unary("log", sum)) : e.b.Div(powers, sum));
}

// (x - mean) / sqrt(variance + epsilon) over the axes.
Tensor Normalized(Emitter& e, const Tensor& x, std::span<const std::int64_t> axes, double epsilon) {
  double count = 1;
  for (const std::int64_t a : axes) count *= static_cast<double>(x.dims[static_cast<std::size_t>(a)]);
  const Tensor centred = e.b.Sub(x, e.b.Div(e.b.ReduceKeep(x, axes, Reduction::kAdd), count));
  const Tensor variance = e.b.Div(e.b.ReduceKeep(e.b.Mul(centred, centred), axes, Reduction::kAdd), count);
  return e.b.Div(centred, e.b.Unary("sqrt", e.b.Add(variance, epsilon)));
}

Tensor AlongChannels(Emitter& e, const Node& node, const Tensor& x, std::size_t input) {
  const Tensor t = e.In(node, input);
  if (x.rank() < 2 || t.rank() != 1 || t.dims[0] != x.dims[1]) e.Refuse(node, "a parameter does not fit the channels");
  const std::int64_t map[] = {1};
  return e.b.BroadcastInDim(e.b.Convert(t, x.dtype), x.dims, map);
}

// (x - mean) / sqrt(var + epsilon) * scale + bias with parameters of the channels.
void BatchNormalization(Emitter& e, const Node& node) {
  if (node.IntAttribute("training_mode", 0) != 0) e.Refuse(node, "training mode");
  for (std::size_t i = 1; i < node.outputs().size(); ++i) {
    if (e.Wanted(node, i)) e.Refuse(node, "its running statistics are used");
  }
  const Tensor x = e.In(node, 0);
  const Tensor deviation = e.b.Unary("sqrt", e.b.Add(e.In(node, 4), node.FloatAttribute("epsilon", 1e-5f)));
  const Tensor factor = e.b.Div(e.In(node, 1), deviation);
  if (x.rank() < 2 || factor.rank() != 1 || factor.dims[0] != x.dims[1] || factor.dtype != x.dtype) {
    e.Refuse(node, "a parameter does not fit the channels");
  }
  const std::int64_t map[] = {1};
  const Tensor centred = e.b.Sub(x, AlongChannels(e, node, x, 3));
  e.Out(node, 0, e.b.Add(e.b.Mul(centred, e.b.BroadcastInDim(factor, x.dims, map)), AlongChannels(e, node, x, 2)));
}

void InstanceNormalization(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (x.rank() < 3) e.Refuse(node, "it has no spatial dimensions");
  Dims axes(x.rank() - 2);
  std::iota(axes.begin(), axes.end(), 2);
  const Tensor y = Normalized(e, x, axes, node.FloatAttribute("epsilon", 1e-5f));
  e.Out(node, 0, e.b.Add(e.b.Mul(y, AlongChannels(e, node, x, 1)), AlongChannels(e, node, x, 2)));
}

void GroupNormalization(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::int64_t groups = node.IntAttribute("num_groups", 0);
  if (x.rank() < 3 || groups < 1 || x.dims[1] % groups != 0) e.Refuse(node, "the groups do not fit the channels");
  if (e.opset(node) < 21) e.Refuse(node, "parameters of the groups (operator set 18)");
  Dims split = {x.dims[0], groups, x.dims[1] / groups}, axes;
  split.insert(split.end(), x.dims.begin() + 2, x.dims.end());
  for (std::size_t i = 2; i < split.size(); ++i) axes.push_back(static_cast<std::int64_t>(i));
  const Tensor wide = Normalized(e, e.b.Reshape(x, std::move(split)), axes, node.FloatAttribute("epsilon", 1e-5f));
  const Tensor y = e.b.Reshape(wide, x.dims);
  e.Out(node, 0, e.b.Add(e.b.Mul(y, AlongChannels(e, node, x, 1)), AlongChannels(e, node, x, 2)));
}

// x normalized from the axis on, times input `scale`, plus the input behind it where there is one.
Tensor LayerNormalized(Emitter& e, const Node& node, const Tensor& x, std::int64_t axis, float epsilon,
                       std::size_t scale) {
  if (e.Wanted(node, 1) || e.Wanted(node, 2)) e.Refuse(node, "its mean or deviation is used");
  axis = e.Axis(node, axis, x.rank());
  Dims axes(x.rank() - static_cast<std::size_t>(axis));
  std::iota(axes.begin(), axes.end(), axis);
  const Tensor wide = e.b.Convert(x, DType::kF32);  // stash_type: statistics are f32
  Tensor y = e.b.Convert(Normalized(e, wide, axes, node.FloatAttribute("epsilon", epsilon)), x.dtype);
  for (const std::size_t i : {scale, scale + 1}) {
    if (!e.Has(node, i)) continue;
    const Tensor p = e.In(node, i);
    if (BroadcastShape(y.dims, p.dims) != y.dims || p.dtype != y.dtype) e.Refuse(node, "a parameter does not fit");
    y = i == scale ? e.b.Mul(y, p) : e.b.Add(y, p);
  }
  return y;
}

void LayerNormalization(Emitter& e, const Node& node) {
  e.Out(node, 0, LayerNormalized(e, node, e.In(node, 0), node.IntAttribute("axis", -1), 1e-5f, 1));
}

// LayerNormalization of input + skip + bias; the sum is the fourth output.
void SkipLayerNormalization(Emitter& e, const Node& node) {
  Tensor sum = e.b.Add(e.In(node, 0), e.In(node, 1));
  if (e.Has(node, 4)) sum = e.b.Add(sum, e.In(node, 4));
  e.Out(node, 0, LayerNormalized(e, node, sum, -1, 1e-12f, 2));
  if (e.Wanted(node, 3)) e.Out(node, 3, sum);
}

// Sums up to each element, or from it on; as a choice among all pairs of places, which suits short axes.
void CumSum(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::vector<std::int64_t> given = e.NeedInts(node, 1, "the axis");
  if (given.size() != 1 || x.rank() == 0) e.Refuse(node, "the axis is not one number");
  const auto axis = static_cast<std::size_t>(e.Axis(node, given[0], x.rank()));
  Dims pairs = x.dims, map;  // the new dimension, behind the axis, is the place of the sum
  pairs.insert(pairs.begin() + static_cast<std::ptrdiff_t>(axis) + 1, x.dims[axis]);
  for (std::size_t i = 0; i < x.rank(); ++i) map.push_back(static_cast<std::int64_t>(i + (i > axis ? 1 : 0)));
  const Tensor from = e.b.Iota(DType::kS64, pairs, axis), to = e.b.Iota(DType::kS64, pairs, axis + 1);
  const bool exclusive = node.IntAttribute("exclusive", 0) != 0, reverse = node.IntAttribute("reverse", 0) != 0;
  const Compare before = exclusive ? Compare::kLt : Compare::kLe, behind = exclusive ? Compare::kGt : Compare::kGe;
  const Tensor counts = e.b.CompareTo(reverse ? behind : before, from, to);
  const Tensor spread = e.b.BroadcastInDim(x, pairs, map);
  const std::int64_t axes[] = {static_cast<std::int64_t>(axis)};
  e.Out(node, 0, e.b.Reduce(e.b.Select(counts, spread, e.b.Splat(x.dtype, {}, 0)), axes, Reduction::kAdd));
}

// The first place (or the last) that holds the largest (smallest) element.
template <Reduction kBest>
void ArgBest(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (x.rank() == 0) e.Refuse(node, "its input is a scalar");
  const std::int64_t axes[] = {e.Axis(node, node.IntAttribute("axis", 0), x.rank())};
  const auto axis = static_cast<std::size_t>(axes[0]);
  const bool last = node.IntAttribute("select_last_index", 0) != 0;
  const Tensor hit = e.b.CompareTo(Compare::kEq, x, e.b.BroadcastTo(e.b.ReduceKeep(x, axes, kBest), x.dims));
  const Tensor place = e.b.Iota(DType::kS64, x.dims, axis);
  const Tensor none = e.b.Splat(DType::kS64, {}, last ? 0.0 : static_cast<double>(x.dims[axis] - 1));
  const Tensor places = e.b.Select(hit, place, none);
  const Reduction how = last ? Reduction::kMax : Reduction::kMin;
  const bool keep = node.IntAttribute("keepdims", 1) != 0;
  e.Out(node, 0, keep ? e.b.ReduceKeep(places, axes, how) : e.b.Reduce(places, axes, how));
}

// The first k along an axis, sorted; of equal elements the one that stands first.
void TopK(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (x.rank() == 0) e.Refuse(node, "its input is a scalar");
  const auto axis = static_cast<std::size_t>(e.Axis(node, node.IntAttribute("axis", -1), x.rank()));
  const std::vector<std::int64_t> k =
      e.opset(node) < 10 ? std::vector{node.IntAttribute("k", 0)} : e.NeedInts(node, 1, "k");
  if (k.size() != 1 || k[0] < 0 || k[0] > x.dims[axis]) e.Refuse(node, "k does not fit its axis");
  Dims swap(x.rank());  // the axis with the last one: IREE, which makes this a top-k, takes no other
  std::iota(swap.begin(), swap.end(), 0);
  std::swap(swap[axis], swap.back());
  const auto [values, places] = e.b.Sorted(e.b.Transpose(x, swap), node.IntAttribute("largest", 1) != 0);
  const auto first = [&](const Tensor& all) { return e.b.SliceAxis(all, x.rank() - 1, 0, k[0]); };
  e.Out(node, 0, e.b.Transpose(first(values), swap));
  e.Out(node, 1, e.b.Convert(e.b.Transpose(first(places), swap), DType::kS64));
}

// x / sqrt(mean(x^2) + epsilon) * scale
void RmsNormalization(Emitter& e, const Node& node) {
  if (e.Wanted(node, 1)) e.Refuse(node, "its deviation is used");
  const Tensor x = e.In(node, 0);
  const std::int64_t axis = e.Axis(node, node.IntAttribute("axis", -1), x.rank());
  Dims axes(x.rank() - static_cast<std::size_t>(axis));
  std::iota(axes.begin(), axes.end(), axis);
  double count = 1;
  for (const std::int64_t a : axes) count *= static_cast<double>(x.dims[static_cast<std::size_t>(a)]);
  const Tensor wide = e.b.Convert(x, DType::kF32);
  const Tensor power = e.b.Div(e.b.ReduceKeep(e.b.Mul(wide, wide), axes, Reduction::kAdd), count);
  const Tensor root = e.b.Unary("sqrt", e.b.Add(power, node.FloatAttribute("epsilon", 1e-5f)));
  const Tensor y = e.b.Convert(e.b.Div(wide, root), x.dtype);
  const Tensor scale = e.In(node, 1);
  if (BroadcastShape(y.dims, scale.dims) != y.dims || scale.dtype != y.dtype) e.Refuse(node, "the scale does not fit");
  e.Out(node, 0, e.b.Mul(y, scale));
}

// y = x / (bias + alpha / size * the sum of the squares of `size` channels around it) ^ beta
void Lrn(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::int64_t size = node.IntAttribute("size", 0);
  if (x.rank() < 3 || size < 1 || size > (std::int64_t{1} << 20)) e.Refuse(node, "its size or rank does not fit");
  std::vector<WindowDim> window(x.rank());
  window[1].size = size;
  window[1].pad_low = (size - 1) / 2;  // floor, as the operator says
  window[1].pad_high = size - 1 - window[1].pad_low;
  const Tensor sum = e.b.ReduceWindow(e.b.Mul(x, x), window, Reduction::kAdd);
  const double alpha = node.FloatAttribute("alpha", 1e-4f) / static_cast<float>(size);
  const Tensor base = e.b.Add(e.b.Mul(sum, alpha), node.FloatAttribute("bias", 1.0f));
  const Tensor power = e.b.Splat(x.dtype, {}, node.FloatAttribute("beta", 0.75f));
  e.Out(node, 0, e.b.Div(x, e.b.Binary("power", base, power)));
}

constexpr Lowering kTable[] = {
    {"ReduceSum", "", Reduce<Reduction::kAdd>, "computed axes"},
    {"ReduceMax", "", Reduce<Reduction::kMax>, "computed axes"},
    {"ReduceMin", "", Reduce<Reduction::kMin>, "computed axes"},
    {"ReduceProd", "", Reduce<Reduction::kMul>, "computed axes"},
    {"ReduceMean", "", ReduceMean, "computed axes"},
    {"ReduceL1", "", ReduceL1, "computed axes"},
    {"ReduceL2", "", ReduceSquares<true>, "computed axes"},
    {"ReduceSumSquare", "", ReduceSquares<false>, "computed axes"},
    {"ReduceLogSumExp", "", ReduceLogSumExp, "computed axes"},
    {"Softmax", "", Softmax<false>, ""},
    {"LogSoftmax", "", Softmax<true>, ""},
    {"BatchNormalization", "", BatchNormalization, "training mode"},
    {"InstanceNormalization", "", InstanceNormalization, ""},
    {"GroupNormalization", "", GroupNormalization, "operator sets before 21"},
    {"LayerNormalization", "", LayerNormalization, "the mean and deviation"},
    {"LRN", "", Lrn, ""},
    {"SkipLayerNormalization", "com.microsoft", SkipLayerNormalization, "the mean and deviation"},
    {"CumSum", "", CumSum, "a computed axis"},
    {"ArgMax", "", ArgBest<Reduction::kMax>, ""},
    {"ArgMin", "", ArgBest<Reduction::kMin>, ""},
    {"TopK", "", TopK, "a computed k"},
    {"RMSNormalization", "", RmsNormalization, ""},
    {"SimplifiedLayerNormalization", "", RmsNormalization, "the deviation"},
};

}  // namespace

std::span<const Lowering> NormLowerings() { return kTable; }

}  // namespace octavo::stablehlo
