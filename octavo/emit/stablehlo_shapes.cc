// Operators that move, copy or drop elements, and those that make shapes and indices.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "octavo/emit/resize_taps.h"
#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

std::int64_t Product(std::span<const std::int64_t> dims) { return static_cast<std::int64_t>(ElementCount(dims)); }

void Same(Emitter& e, const Node& node) { e.Out(node, 0, e.In(node, 0)); }

void Dropout(Emitter& e, const Node& node) {
  if (e.Wanted(node, 1)) e.Refuse(node, "its mask is used");
  if (e.Has(node, 2)) {
    const TensorRef* training = e.ConstantIn(node, 2);
    if (training == nullptr || training->dtype != DType::kBool || training->ToInts() != std::vector<std::int64_t>{0}) {
      e.Refuse(node, "training mode");
    }
  }
  e.Out(node, 0, e.In(node, 0));
}

void Reshape(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  Dims dims = e.NeedInts(node, 1, "the shape");
  const bool zero_is_zero = node.IntAttribute("allowzero", 0) != 0;
  std::ptrdiff_t open = -1;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 0 && !zero_is_zero) {
      if (i >= x.rank()) e.Refuse(node, "the shape copies a dimension that its input does not have");
      dims[i] = x.dims[i];
    } else if (dims[i] == -1) {
      if (open >= 0) e.Refuse(node, "the shape has more than one -1");
      open = static_cast<std::ptrdiff_t>(i);
      dims[i] = 1;
    }
  }
  if (open >= 0) {
    const std::int64_t others = Product(dims), all = Product(x.dims);
    if (others == 0 || all % others != 0) e.Misfit(node, "the shape does not fit " + std::to_string(all) + " elements");
    dims[static_cast<std::size_t>(open)] = all / others;
  }
  if (Product(dims) != Product(x.dims)) e.Misfit(node, "the shape " + IntList(dims) + " does not fit " + x.type());
  e.Out(node, 0, e.b.Reshape(x, std::move(dims)));
}

void Flatten(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  std::int64_t axis = node.IntAttribute("axis", 1);
  if (axis < 0) axis += static_cast<std::int64_t>(x.rank());
  if (axis < 0 || axis > static_cast<std::int64_t>(x.rank())) e.Refuse(node, "the axis is outside its input");
  const std::span<const std::int64_t> dims(x.dims);
  const auto split = static_cast<std::size_t>(axis);
  e.Out(node, 0, e.b.Reshape(x, {Product(dims.first(split)), Product(dims.subspan(split))}));
}

void Squeeze(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const auto axes = e.IntsAttributeOrIn(node, "axes", 1);
  std::vector<bool> drop(x.rank(), false);
  for (std::size_t i = 0; i < x.rank(); ++i) drop[i] = !axes && x.dims[i] == 1;
  for (const std::int64_t axis : axes.value_or(Dims{})) {
    const auto a = static_cast<std::size_t>(e.Axis(node, axis, x.rank()));
    if (x.dims[a] != 1) e.Misfit(node, "dimension " + std::to_string(a) + " is not 1");
    drop[a] = true;
  }
  Dims dims;
  for (std::size_t i = 0; i < x.rank(); ++i) {
    if (!drop[i]) dims.push_back(x.dims[i]);
  }
  e.Out(node, 0, e.b.Reshape(x, std::move(dims)));
}

void Unsqueeze(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const auto axes = e.IntsAttributeOrIn(node, "axes", 1);
  if (!axes) e.Refuse(node, "axes are missing");
  const std::size_t rank = x.rank() + axes->size();
  std::vector<bool> added(rank, false);
  for (const std::int64_t axis : *axes) {
    const auto a = static_cast<std::size_t>(e.Axis(node, axis, rank));
    if (added[a]) e.Refuse(node, "an axis is given twice");
    added[a] = true;
  }
  Dims dims;
  std::size_t from = 0;
  for (std::size_t i = 0; i < rank; ++i) dims.push_back(added[i] ? 1 : x.dims[from++]);
  e.Out(node, 0, e.b.Reshape(x, std::move(dims)));
}

void Transpose(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  Dims permutation(x.rank());
  for (std::size_t i = 0; i < x.rank(); ++i) permutation[i] = static_cast<std::int64_t>(x.rank() - 1 - i);
  if (const auto* given = node.IntsAttribute("perm")) permutation = *given;
  Dims sorted = permutation;
  std::sort(sorted.begin(), sorted.end());
  Dims identity(x.rank());
  std::iota(identity.begin(), identity.end(), 0);
  if (sorted != identity) e.Refuse(node, "perm is not a permutation of its input's dimensions");
  e.Out(node, 0, e.b.Transpose(x, permutation));
}

void Concat(Emitter& e, const Node& node) {
  std::vector<Tensor> parts;
  for (std::size_t i = 0; i < node.inputs().size(); ++i) parts.push_back(e.In(node, i));
  if (parts.empty()) e.Refuse(node, "it has no inputs");
  const std::int64_t axis = e.Axis(node, node.IntAttribute("axis", 0), parts[0].rank());
  e.Out(node, 0, e.b.Concat(parts, static_cast<std::size_t>(axis)));
}

void Slice(Emitter& e, const Node& node) {
  Tensor x = e.In(node, 0);
  const auto starts = e.IntsAttributeOrIn(node, "starts", 1);
  const auto ends = e.IntsAttributeOrIn(node, "ends", 2);
  if (!starts || !ends || starts->size() != ends->size()) e.Refuse(node, "starts or ends are missing");
  Dims axes(starts->size()), steps(starts->size(), 1);
  std::iota(axes.begin(), axes.end(), 0);
  if (const auto given = e.IntsAttributeOrIn(node, "axes", 3)) axes = *given;
  if (const auto given = e.IntsIn(node, 4, "steps")) steps = *given;
  if (axes.size() != starts->size() || steps.size() != starts->size()) e.Refuse(node, "axes or steps do not fit");
  Dims low(x.rank(), 0), high = x.dims, stride(x.rank(), 1), reversed;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const auto a = static_cast<std::size_t>(e.Axis(node, axes[i], x.rank()));
    const std::int64_t n = x.dims[a], step = steps[i];
    if (step == 0 || step == INT64_MIN) e.Refuse(node, "a step of " + std::to_string(step));
    const auto at = [&](std::int64_t v) { return v < 0 ? v + n : v; };
    if (step > 0) {
      low[a] = std::clamp<std::int64_t>(at((*starts)[i]), 0, n);
      high[a] = std::max(low[a], std::clamp<std::int64_t>(at((*ends)[i]), 0, n));
      stride[a] = step;
    } else {  // the same elements of the reversed dimension
      const std::int64_t first = std::clamp<std::int64_t>(at((*starts)[i]), -1, n - 1);
      const std::int64_t end = std::clamp<std::int64_t>(at((*ends)[i]), -1, n - 1);
      reversed.push_back(static_cast<std::int64_t>(a));
      low[a] = n - 1 - first;
      high[a] = std::max(low[a], n - 1 - end);
      stride[a] = -step;
    }
  }
  if (!reversed.empty()) x = e.b.Reverse(x, reversed);
  e.Out(node, 0, e.b.Slice(x, low, high, stride));
}

void Split(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const auto axis = static_cast<std::size_t>(e.Axis(node, node.IntAttribute("axis", 0), x.rank()));
  auto sizes = e.IntsAttributeOrIn(node, "split", 1);
  const auto count = static_cast<std::int64_t>(node.outputs().size());
  if (!sizes) {
    const std::int64_t each = (x.dims[axis] + count - 1) / count;
    sizes.emplace(node.outputs().size(), each);
    sizes->back() = x.dims[axis] - each * (count - 1);
  }
  if (sizes->size() != node.outputs().size() ||
      std::accumulate(sizes->begin(), sizes->end(), std::int64_t{0}) != x.dims[axis]) {
    e.Refuse(node, "the parts do not add up to the dimension");
  }
  std::int64_t start = 0;
  for (std::size_t i = 0; i < sizes->size(); ++i) {
    if ((*sizes)[i] < 0) e.Refuse(node, "a part of negative size");
    if (e.Wanted(node, i)) e.Out(node, i, e.b.SliceAxis(x, axis, start, start + (*sizes)[i]));
    start += (*sizes)[i];
  }
}

void Expand(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::optional<Dims> dims = BroadcastShape(x.dims, e.NeedInts(node, 1, "the shape"));
  if (!dims) e.Refuse(node, "its input does not broadcast to the shape");
  e.Out(node, 0, e.b.BroadcastTo(x, *dims));
}

void Tile(Emitter& e, const Node& node) {
  Tensor x = e.In(node, 0);
  const Dims repeats = e.NeedInts(node, 1, "repeats");
  if (repeats.size() != x.rank()) e.Refuse(node, "repeats do not fit its input");
  for (std::size_t i = 0; i < x.rank(); ++i) {
    if (repeats[i] < 0 || repeats[i] > 65536) e.Refuse(node, std::to_string(repeats[i]) + " repeats");
    if (repeats[i] == 1) continue;
    // [.., n, ..] -> [.., r, n, ..] -> [.., r n, ..]
    Dims wide, map, result = x.dims;
    for (std::size_t d = 0; d < x.rank(); ++d) {
      if (d == i) wide.push_back(repeats[i]);
      map.push_back(static_cast<std::int64_t>(wide.size()));
      wide.push_back(x.dims[d]);
    }
    result[i] *= repeats[i];
    x = e.b.Reshape(e.b.BroadcastInDim(x, std::move(wide), map), std::move(result));
  }
  e.Out(node, 0, x);
}

void Pad(Emitter& e, const Node& node) {
  Tensor x = e.In(node, 0);
  const auto pads = e.IntsAttributeOrIn(node, "pads", 1);
  if (!pads) e.Refuse(node, "pads are missing");
  Dims axes(x.rank());
  std::iota(axes.begin(), axes.end(), 0);
  if (const auto given = e.IntsIn(node, 3, "axes")) axes = *given;
  if (pads->size() != 2 * axes.size()) e.Refuse(node, "pads do not fit its input");
  Dims low(x.rank(), 0), high(x.rank(), 0);
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const auto a = static_cast<std::size_t>(e.Axis(node, axes[i], x.rank()));
    low[a] = (*pads)[i];
    high[a] = (*pads)[i + axes.size()];
    if (std::max(std::abs(low[a]), std::abs(high[a])) > (std::int64_t{1} << 31) || x.dims[a] + low[a] + high[a] < 0) {
      e.Refuse(node, "pads leave nothing of dimension " + std::to_string(a));
    }
  }
  const std::string mode = node.StringAttribute("mode", "constant");
  if (mode == "constant") {
    Tensor value = e.b.Splat(x.dtype, {}, node.FloatAttribute("value", 0));
    if (e.Has(node, 2)) value = e.b.Reshape(e.In(node, 2), {});
    return e.Out(node, 0, e.b.Pad(x, value, low, high));
  }
  if (mode != "reflect" && mode != "edge" && mode != "wrap") e.Refuse(node, "unknown mode '" + mode + "'");
  for (std::size_t a = 0; a < x.rank(); ++a) {
    if (low[a] == 0 && high[a] == 0) continue;
    const std::int64_t n = x.dims[a];
    if (n == 0) e.Refuse(node, "padding of an empty dimension");
    if (mode == "reflect" && std::max(low[a], high[a]) >= n) e.Refuse(node, "reflection over more than its input");
    std::vector<std::int64_t> indices;
    for (std::int64_t i = -low[a]; i < n + high[a]; ++i) {
      std::int64_t at = i;
      if (mode == "edge") at = std::clamp<std::int64_t>(i, 0, n - 1);
      if (mode == "reflect") at = i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i;
      if (mode == "wrap") at = ((i % n) + n) % n;
      indices.push_back(at);
    }
    const auto count = static_cast<std::int64_t>(indices.size());
    x = e.b.Gather(x, e.b.Ints(DType::kS32, {count}, indices), a);
  }
  e.Out(node, 0, x);
}

void Gather(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const auto axis = static_cast<std::size_t>(e.Axis(node, node.IntAttribute("axis", 0), x.rank()));
  const std::int64_t n = x.dims[axis];
  if (const TensorRef* data = e.ConstantIn(node, 1); data != nullptr && IsInteger(data->dtype)) {
    std::vector<std::int64_t> indices = data->ToInts();
    for (std::int64_t& i : indices) {
      if (i < -n || i >= n)
        e.Refuse(node, "index " + std::to_string(i) + " is outside a dimension of " + std::to_string(n));
      if (i < 0) i += n;
    }
    Dims result(x.dims.begin(), x.dims.begin() + static_cast<std::ptrdiff_t>(axis));
    result.insert(result.end(), data->dims.begin(), data->dims.end());
    result.insert(result.end(), x.dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1, x.dims.end());
    bool run = !indices.empty();
    for (std::size_t i = 1; run && i < indices.size(); ++i) run = indices[i] == indices[i - 1] + 1;
    if (run) {  // neighbours: a slice
      const Tensor part = e.b.SliceAxis(x, axis, indices[0], indices.back() + 1);
      return e.Out(node, 0, e.b.Reshape(part, std::move(result)));
    }
    return e.Out(node, 0, e.b.Gather(x, e.b.Ints(DType::kS32, data->dims, indices), axis));
  }
  Tensor indices = e.In(node, 1);
  if (!IsSignedInteger(indices.dtype)) e.Refuse(node, "indices of type " + std::string(Name(indices.dtype)));
  const Tensor negative = e.b.CompareTo(Compare::kLt, indices, e.b.Splat(indices.dtype, {}, 0));
  indices = e.b.Select(negative, e.b.Add(indices, static_cast<double>(n)), indices);
  e.Out(node, 0, e.b.Gather(x, indices, axis));
}

void DepthToSpace(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::int64_t s = node.IntAttribute("blocksize", 0);
  if (x.rank() != 4 || s < 1 || s > 65536 || x.dims[1] % (s * s) != 0) e.Refuse(node, "the block size does not fit");
  const std::int64_t n = x.dims[0], c = x.dims[1] / (s * s), h = x.dims[2], w = x.dims[3];
  const bool crd = node.StringAttribute("mode", "DCR") == "CRD";
  const Tensor wide = e.b.Reshape(x, crd ? Dims{n, c, s, s, h, w} : Dims{n, s, s, c, h, w});
  const Dims permutation = crd ? Dims{0, 1, 4, 2, 5, 3} : Dims{0, 3, 4, 1, 5, 2};
  e.Out(node, 0, e.b.Reshape(e.b.Transpose(wide, permutation), {n, c, h * s, w * s}));
}

void SpaceToDepth(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::int64_t s = node.IntAttribute("blocksize", 0);
  if (x.rank() != 4 || s < 1 || x.dims[2] % s != 0 || x.dims[3] % s != 0) e.Refuse(node, "the block size does not fit");
  const std::int64_t n = x.dims[0], c = x.dims[1], h = x.dims[2] / s, w = x.dims[3] / s;
  const Tensor wide = e.b.Reshape(x, {n, c, h, s, w, s});
  const Dims permutation = {0, 3, 5, 1, 2, 4};
  e.Out(node, 0, e.b.Reshape(e.b.Transpose(wide, permutation), {n, c * s * s, h, w}));
}

void Size(Emitter& e, const Node& node) {
  const std::int64_t values[] = {Product(e.In(node, 0).dims)};
  e.Out(node, 0, e.b.Ints(DType::kS64, {}, values));
}

void ConstantOfShape(Emitter& e, const Node& node) {
  const Dims dims = e.NeedInts(node, 0, "the shape");
  ElementCount(dims, NodeText(node));
  const Attribute* value = node.FindAttribute("value");
  if (value == nullptr) return e.Out(node, 0, e.b.Splat(DType::kF32, dims, 0));
  const auto* data = std::get_if<TensorRef>(&value->value);
  if (data == nullptr || !data->scalar_like()) e.Refuse(node, "its value is not one number");
  e.Out(node, 0, e.b.SplatBits(data->dtype, dims, ElementBits(*data, 0)));
}

// Lower or upper triangle: the rest becomes 0.
void Trilu(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (x.rank() < 2) e.Refuse(node, "it needs two dimensions");
  const Dims k = e.IntsIn(node, 1, "k").value_or(Dims{0});
  if (k.size() != 1) e.Refuse(node, "k is not one number");
  const Tensor rows = e.b.Iota(DType::kS64, x.dims, x.rank() - 2);
  const Tensor columns = e.b.Iota(DType::kS64, x.dims, x.rank() - 1);
  const Tensor diagonal = e.b.Add(rows, e.b.Ints(DType::kS64, {}, k));
  const bool upper = node.IntAttribute("upper", 1) != 0;
  const Tensor keep = e.b.CompareTo(upper ? Compare::kGe : Compare::kLe, columns, diagonal);
  e.Out(node, 0, e.b.Select(keep, x, e.b.Splat(x.dtype, {}, 0)));
}

// --- Resize

// Sums of `taps` elements along axis `a`, each at its place (row of `at`) with its weight.
Tensor Interpolate(Builder& b, const Tensor& x, std::size_t a, const std::vector<std::vector<std::int64_t>>& at,
                   const std::vector<std::vector<float>>& weights) {
  const auto m = static_cast<std::int64_t>(at[0].size());
  Dims along(x.rank(), 1);
  along[a] = m;
  std::optional<Tensor> sum;
  for (std::size_t tap = 0; tap < at.size(); ++tap) {
    const Tensor w = b.Convert(b.Reshape(b.Floats({m}, weights[tap]), along), x.dtype);
    const Tensor part = b.Mul(b.Gather(x, b.Ints(DType::kS32, {m}, at[tap]), a), w);
    sum = sum ? b.Add(*sum, part) : part;
  }
  return *sum;
}

void Resize(Emitter& e, const Node& node) {
  Tensor x = e.In(node, 0);
  const bool old = node.op() == "Upsample" || e.opset(node) < 11;
  std::vector<float> scales;
  Dims sizes;
  const std::size_t scale_input = old ? 1 : 2;
  if (!old) sizes = e.IntsIn(node, 3, "sizes").value_or(Dims{});
  if (const auto* attribute = node.FindAttribute("scales"); attribute != nullptr) {
    if (const auto* floats = std::get_if<std::vector<float>>(&attribute->value)) scales = *floats;
  } else if (sizes.empty() && e.Has(node, scale_input)) {
    const TensorRef* data = e.ConstantIn(node, scale_input);
    if (data == nullptr) e.Refuse(node, "scales must be constant; fix symbolic dimensions with --dim");
    scales = data->ToFloats();
  }
  const ResizePlan plan = PlanResize(node, e.opset(node), x.dims, sizes, scales);
  if (!plan.refused.empty()) e.Refuse(node, plan.refused);
  for (const ResizeTaps& taps : plan.axes) {
    if (!taps.weights.empty()) {
      if (!IsFloat(x.dtype)) e.Refuse(node, "interpolation of " + std::string(Name(x.dtype)));
      x = Interpolate(e.b, x, taps.axis, taps.places, taps.weights);
      continue;
    }
    const std::vector<std::int64_t>& low = taps.places[0];
    const std::int64_t factor = taps.to / taps.from;
    bool repeats = taps.to % taps.from == 0;
    for (std::int64_t i = 0; repeats && i < taps.to; ++i) repeats = low[static_cast<std::size_t>(i)] == i / factor;
    if (repeats) {  // [.., n, ..] -> [.., n, factor, ..] -> [.., n factor, ..]
      Dims wide, spread, result = x.dims;
      for (std::size_t d = 0; d < x.rank(); ++d) {
        spread.push_back(static_cast<std::int64_t>(wide.size()));
        wide.push_back(x.dims[d]);
        if (d == taps.axis) wide.push_back(factor);
      }
      result[taps.axis] = taps.to;
      x = e.b.Reshape(e.b.BroadcastInDim(x, std::move(wide), spread), std::move(result));
    } else {
      x = e.b.Gather(x, e.b.Ints(DType::kS32, {taps.to}, low), taps.axis);
    }
  }
  e.Out(node, 0, x);
}

constexpr Lowering kTable[] = {
    {"Identity", "", Same, ""},
    {"Dropout", "", Dropout, "training mode, the mask"},
    {"Reshape", "", Reshape, "a computed shape"},
    {"Flatten", "", Flatten, ""},
    {"Squeeze", "", Squeeze, "computed axes"},
    {"Unsqueeze", "", Unsqueeze, "computed axes"},
    {"Transpose", "", Transpose, ""},
    {"Concat", "", Concat, ""},
    {"Slice", "", Slice, "computed ranges"},
    {"Split", "", Split, "computed sizes"},
    {"Expand", "", Expand, "a computed shape"},
    {"Tile", "", Tile, "computed repeats"},
    {"Pad", "", Pad, "computed pads"},
    {"Gather", "", Gather, ""},
    {"DepthToSpace", "", DepthToSpace, ""},
    {"SpaceToDepth", "", SpaceToDepth, ""},
    {"Size", "", Size, ""},
    {"ConstantOfShape", "", ConstantOfShape, "a computed shape"},
    {"Trilu", "", Trilu, "a computed diagonal"},
    {"Resize", "", Resize, "antialiasing, tf_crop_and_resize, computed sizes"},
    {"Upsample", "", Resize, "computed scales"},
};

}  // namespace

std::span<const Lowering> ShapeLowerings() { return kTable; }

}  // namespace octavo::stablehlo
