// Elements picked and put at computed places: all as rows of a matrix, at numbers that say the place.
#include <cstdint>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

std::int64_t Count(const Dims& dims, std::size_t from, std::size_t to) {
  return static_cast<std::int64_t>(ElementCount(std::span(dims).subspan(from, to - from)));
}

// Integers as s64, negative ones counted from the end of a dimension of `size`.
Tensor Places(Emitter& e, const Node& node, const Tensor& indices, std::int64_t size) {
  if (!IsInteger(indices.dtype)) e.Refuse(node, "its indices are not integers");
  const Tensor wide = e.b.Convert(indices, DType::kS64);
  const Tensor zero = e.b.Splat(DType::kS64, {}, 0);
  return e.b.Select(e.b.CompareTo(Compare::kLt, wide, zero), e.b.Add(wide, static_cast<double>(size)), wide);
}

// The data, and for each index the number of the element that it means among all of the data's.
struct Elements {
  Tensor data, places;
};

Elements ElementPlaces(Emitter& e, const Node& node, std::int64_t axis_attribute) {
  const Tensor data = e.In(node, 0), indices = e.In(node, 1);
  const auto axis = static_cast<std::size_t>(e.Axis(node, axis_attribute, data.rank()));
  if (indices.rank() != data.rank()) e.Refuse(node, "its indices have another rank than its data");
  Tensor places;
  for (std::size_t d = 0; d < data.rank(); ++d) {
    if (d != axis && indices.dims[d] > data.dims[d]) e.Refuse(node, "its indices are larger than its data");
    const Tensor at = d == axis ? Places(e, node, indices, data.dims[d]) : e.b.Iota(DType::kS64, indices.dims, d);
    const Tensor step = e.b.Mul(at, static_cast<double>(Count(data.dims, d + 1, data.rank())));
    places = d == 0 ? step : e.b.Add(places, step);
  }
  return {data, places};
}

// The data as rows [n, rest..] of what an index vector picks, and the number of the row for each vector.
struct Rows {
  Tensor data, places;
  Dims batch, rest;  // dimensions of the indices without the vector; of what one picks
};

Rows RowPlaces(Emitter& e, const Node& node, std::int64_t shared) {
  const Tensor data = e.In(node, 0), indices = e.In(node, 1);
  if (indices.rank() == 0 || shared < 0 || static_cast<std::size_t>(shared) >= indices.rank()) {
    e.Refuse(node, "its indices have too few dimensions");
  }
  const auto b = static_cast<std::size_t>(shared), vector = indices.rank() - 1;
  const std::int64_t depth = indices.dims[vector];
  if (depth < 1 || b + static_cast<std::size_t>(depth) > data.rank()) e.Refuse(node, "its indices do not fit its data");
  const std::size_t end = b + static_cast<std::size_t>(depth);
  Rows rows;
  rows.batch = Dims(indices.dims.begin(), indices.dims.end() - 1);
  rows.rest = Dims(data.dims.begin() + static_cast<std::ptrdiff_t>(end), data.dims.end());
  for (std::size_t d = 0; d < end; ++d) {
    if (d < b && indices.dims[d] != data.dims[d]) e.Refuse(node, "its batch dimensions differ");
    const auto k = static_cast<std::int64_t>(d) - shared;
    const Tensor at =
        d < b ? e.b.Iota(DType::kS64, rows.batch, d)
              : Places(e, node, e.b.Reshape(e.b.SliceAxis(indices, vector, k, k + 1), rows.batch), data.dims[d]);
    const Tensor step = e.b.Mul(at, static_cast<double>(Count(data.dims, d + 1, end)));
    rows.places = d == 0 ? step : e.b.Add(rows.places, step);
  }
  Dims flat = {Count(data.dims, 0, end)};
  flat.insert(flat.end(), rows.rest.begin(), rows.rest.end());
  rows.data = e.b.Reshape(data, std::move(flat));
  return rows;
}

// The updates [m, rest..] put into the data [n, rest..] at places [m], as dimensions `dims`.
Tensor Put(Emitter& e, const Node& node, const Tensor& data, const Tensor& places, const Tensor& updates, Dims dims,
           std::int64_t rest) {
  const std::string name = node.StringAttribute("reduction", "none");
  std::optional<Reduction> how;
  if (name == "add") how = Reduction::kAdd;
  if (name == "mul") how = Reduction::kMul;
  if (name == "max") how = Reduction::kMax;
  if (name == "min") how = Reduction::kMin;
  if (!how && name != "none") e.Refuse(node, "the reduction '" + name + "'");
  const std::int64_t n = data.dims[0], m = Count(places.dims, 0, places.rank());
  // IREE takes no 64-bit places here.
  const Tensor at = n <= INT32_MAX ? e.b.Convert(places, DType::kS32) : places;
  return e.b.Reshape(
      e.b.Scatter(e.b.Reshape(data, {n, rest}), e.b.Reshape(at, {m, 1}), e.b.Reshape(updates, {m, rest}), how),
      std::move(dims));
}

void GatherElements(Emitter& e, const Node& node) {
  const Elements x = ElementPlaces(e, node, node.IntAttribute("axis", 0));
  e.Out(node, 0, e.b.Gather(e.b.Reshape(x.data, {Count(x.data.dims, 0, x.data.rank())}), x.places, 0));
}

void ScatterElements(Emitter& e, const Node& node) {
  const Elements x = ElementPlaces(e, node, node.IntAttribute("axis", 0));
  const Tensor updates = e.In(node, 2);
  if (updates.dims != x.places.dims || updates.dtype != x.data.dtype) e.Refuse(node, "its updates do not fit");
  const Tensor flat = e.b.Reshape(x.data, {Count(x.data.dims, 0, x.data.rank())});
  e.Out(node, 0, Put(e, node, flat, x.places, updates, x.data.dims, 1));
}

void GatherNd(Emitter& e, const Node& node) {
  const Rows x = RowPlaces(e, node, node.IntAttribute("batch_dims", 0));
  e.Out(node, 0, e.b.Gather(x.data, x.places, 0));
}

void ScatterNd(Emitter& e, const Node& node) {
  const Rows x = RowPlaces(e, node, 0);
  const Dims dims = e.In(node, 0).dims;
  const Tensor updates = e.In(node, 2);
  Dims want = x.batch;
  want.insert(want.end(), x.rest.begin(), x.rest.end());
  if (updates.dims != want || updates.dtype != x.data.dtype) e.Refuse(node, "its updates do not fit");
  e.Out(node, 0, Put(e, node, x.data, x.places, updates, dims, Count(x.rest, 0, x.rest.size())));
}

// The first sequence_lens[b] elements along the time axis in reverse order, for each b of the batch axis.
void ReverseSequence(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0), lengths = e.In(node, 1);
  const auto batch = static_cast<std::size_t>(e.Axis(node, node.IntAttribute("batch_axis", 1), x.rank()));
  const auto time = static_cast<std::size_t>(e.Axis(node, node.IntAttribute("time_axis", 0), x.rank()));
  if (batch == time || lengths.dims != Dims{x.dims[batch]} || !IsInteger(lengths.dtype))
    e.Refuse(node, "its sequence_lens do not fit its batch");
  const Dims dims = {x.dims[batch], x.dims[time]};
  const Tensor at = e.b.Iota(DType::kS64, dims, 1);
  const Tensor end = e.b.Reshape(e.b.Convert(lengths, DType::kS64), {dims[0], 1});
  const Tensor reversed = e.b.Sub(e.b.Add(end, -1), at);
  const Tensor from = e.b.Select(e.b.CompareTo(Compare::kLt, at, end), reversed, at);
  const Tensor places = e.b.Add(e.b.Mul(e.b.Iota(DType::kS64, dims, 0), static_cast<double>(dims[1])), from);
  Dims order = {static_cast<std::int64_t>(batch), static_cast<std::int64_t>(time)}, rows = {dims[0] * dims[1]};
  for (std::size_t d = 0; d < x.rank(); ++d) {
    if (d == batch || d == time) continue;
    order.push_back(static_cast<std::int64_t>(d));
    rows.push_back(x.dims[d]);
  }
  Dims back(x.rank());
  for (std::size_t d = 0; d < x.rank(); ++d) back[static_cast<std::size_t>(order[d])] = static_cast<std::int64_t>(d);
  e.Out(node, 0, e.b.Transpose(e.b.Gather(e.b.Reshape(e.b.Transpose(x, order), rows), places, 0), back));
}

// indices, depth, [off, on]; an index outside is off everywhere.
void OneHot(Emitter& e, const Node& node) {
  const Tensor indices = e.In(node, 0);
  const TensorRef* depth_data = e.ConstantIn(node, 1);
  if (depth_data == nullptr || depth_data->elements() != 1) e.Refuse(node, "its depth is not one known number");
  const double given = IsInteger(depth_data->dtype) ? static_cast<double>(depth_data->ToInts()[0])
                                                    : static_cast<double>(depth_data->ToFloats()[0]);
  if (!(given >= 1 && given <= 2147483647.0)) e.Refuse(node, "its depth is not a positive number");
  const auto depth = static_cast<std::int64_t>(given);
  const Tensor values = e.In(node, 2);
  if (values.dims != Dims{2}) e.Refuse(node, "its values are not off and on");
  const auto axis = static_cast<std::size_t>(e.Axis(node, node.IntAttribute("axis", -1), indices.rank() + 1));
  Dims dims = indices.dims, wide = indices.dims;
  dims.insert(dims.begin() + static_cast<std::ptrdiff_t>(axis), depth);
  wide.insert(wide.begin() + static_cast<std::ptrdiff_t>(axis), 1);
  const Tensor places = e.b.Reshape(Places(e, node, e.b.Convert(indices, DType::kS64), depth), wide);
  const Tensor hit = e.b.CompareTo(Compare::kEq, e.b.Iota(DType::kS64, dims, axis), places);
  const auto value = [&](std::int64_t i) { return e.b.Reshape(e.b.SliceAxis(values, 0, i, i + 1), {}); };
  e.Out(node, 0, e.b.Select(hit, value(1), value(0)));
}

constexpr Lowering kTable[] = {
    {"GatherElements", "", GatherElements, ""},   {"GatherND", "", GatherNd, ""},
    {"ScatterElements", "", ScatterElements, ""}, {"ScatterND", "", ScatterNd, ""},
    {"ReverseSequence", "", ReverseSequence, ""}, {"OneHot", "", OneHot, "a computed depth"},
};

}  // namespace

std::span<const Lowering> ScatterLowerings() { return kTable; }

}  // namespace octavo::stablehlo
