// How operators that pick elements by their numbers are said in Circle, and running sums.
#include <algorithm>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/emit/lower_circle.h"

namespace octavo::internal {

void CircleLowering::Gather(const Node& node) {
  const Value *x_old = node.input(0), *i_old = node.input(1);
  const std::size_t rank = DimsOf(x_old).size();
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (x_old->type.quant && !codes) KeptFloat(node, "its table has a scale for each row");
  Value* x = Get(x_old, Layout::kFirst, !codes);
  Value* indices = nullptr;
  if (const TensorRef* data = ConstantData(node, 1)) {
    std::vector<std::int64_t> list = data->ToInts();
    for (std::int64_t& i : list) {
      if (i < 0) i += DimsOf(x_old)[static_cast<std::size_t>(axis)];
    }
    indices = new_->AddConstant(i_old->name(), TensorRef::FromInts(DType::kS32, data->dims, list));
  } else {
    indices = Get(i_old, Layout::kFirst, true);
  }
  Type type = OutType(node, Layout::kFirst, false);
  type.quant = x->type.quant;
  type.dtype = x->type.dtype;
  Value* y =
      Emit("GATHER", {x, indices}, node.output()->name(), type, {{"axis", axis}, {"batch_dims", std::int64_t{0}}});
  MoveLike(node, x_old, Layout::kFirst, codes, y);
}

// Row-major distances between neighbours of each dimension.
static Dims StridesOf(const Dims& dims) {
  Dims strides(dims.size(), 1);
  for (std::size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

void CircleLowering::GatherRows(const Node& node, std::size_t first, Value* rows) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (x_old->type.quant && !codes) KeptFloat(node, "its input has a scale for each channel, or blocks");
  Dims table(dims.begin() + static_cast<std::ptrdiff_t>(first), dims.end());
  const std::int64_t one = 1;
  table.insert(table.begin(), std::accumulate(dims.begin(), dims.begin() + static_cast<std::ptrdiff_t>(first), one,
                                              std::multiplies<>()));
  Value* x = Reshape(Get(x_old, Layout::kFirst, !codes), table, node.output()->name() + "_rows");
  Type type = OutType(node, Layout::kFirst, false);
  type.quant = x->type.quant;
  type.dtype = x->type.dtype;
  Value* y = Emit("GATHER", {x, rows}, node.output()->name(), type,
                  {{"axis", std::int64_t{0}}, {"batch_dims", std::int64_t{0}}});
  MoveLike(node, x_old, Layout::kFirst, codes, y);
}

void CircleLowering::GatherNd(const Node& node) {
  const Dims dims = DimsOf(node.input(0)), at = DimsOf(node.input(1));
  const std::int64_t batch = node.IntAttribute("batch_dims", 0);
  if (at.empty() || at.back() < 1 || batch < 0 || batch >= static_cast<std::int64_t>(at.size()) ||
      batch + at.back() > static_cast<std::int64_t>(dims.size())) {
    Refuse(node, "its indices do not fit its input");
  }
  // The number of the row that an index names: constant indices only.
  const std::vector<std::int64_t> list = RequireInts(node, 1, "the tensor of indices");
  const auto depth = static_cast<std::size_t>(at.back()), skipped = static_cast<std::size_t>(batch);
  const std::size_t first = skipped + depth;
  const Dims strides = StridesOf({dims.begin(), dims.begin() + static_cast<std::ptrdiff_t>(first)});
  const Dims shape(at.begin(), at.end() - 1);
  const std::uint64_t inner = ElementCount(Dims(shape.begin() + batch, shape.end()));
  std::vector<std::int64_t> rows(list.size() / depth, 0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    // What stands in the same place of x's first `batch` dimensions; their numbers are those of the rows' own.
    if (skipped > 0) rows[i] = static_cast<std::int64_t>(i / inner) * strides[skipped - 1];
    for (std::size_t k = 0; k < depth; ++k) {
      const std::int64_t n = dims[skipped + k];
      std::int64_t index = list[i * depth + k];
      if (index < 0) index += n;
      if (index < 0 || index >= n) Refuse(node, "an index is outside of its input");
      rows[i] += index * strides[skipped + k];
    }
  }
  GatherRows(node, first, new_->AddConstant(node.input(1)->name(), TensorRef::FromInts(DType::kS32, shape, rows)));
}

void CircleLowering::GatherElements(const Node& node) {
  const Dims dims = DimsOf(node.input(0)), shape = DimsOf(node.input(1));
  const std::size_t rank = dims.size();
  if (rank == 0 || shape.size() != rank) Refuse(node, "its indices have another rank than its input");
  const auto axis = static_cast<std::size_t>(Axis(node, node.IntAttribute("axis", 0), rank));
  const Dims strides = StridesOf(dims);
  // An element's number: its own place in the other dimensions, and its index along the axis.
  const std::uint64_t count = ElementCount(shape);
  std::vector<std::int64_t> place(count, 0);
  const Dims steps = StridesOf(shape);
  for (std::uint64_t i = 0; i < count; ++i) {
    for (std::size_t d = 0; d < rank; ++d) {
      const std::int64_t at = static_cast<std::int64_t>(i) / steps[d] % shape[d];
      if (d == axis) continue;
      if (at >= dims[d]) Refuse(node, "its indices pass its input");
      place[i] += at * strides[d];
    }
  }
  const std::int64_t n = dims[axis], stride = strides[axis];
  const std::string name = node.output()->name();
  if (ConstantData(node, 1) != nullptr) {
    const std::vector<std::int64_t> list = RequireInts(node, 1, "the tensor of indices");
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::int64_t index = list[i] < 0 ? list[i] + n : list[i];
      if (index < 0 || index >= n) Refuse(node, "an index is outside of its input");
      place[i] += index * stride;
    }
    return GatherRows(node, rank, new_->AddConstant(name + "_at", TensorRef::FromInts(DType::kS32, shape, place)));
  }
  Value* index = Get(node.input(1), Layout::kFirst, true);
  const DType type = index->type.dtype;
  if (type != DType::kS32 && type != DType::kS64) Refuse(node, "its indices are not s32 or s64");
  const auto scalar = [&](std::int64_t v, const char* what) {
    return new_->AddConstant(name + what, TensorRef::FromInts(type, {}, {&v, 1}));
  };
  const auto typed = [&](Value* v, DType dtype) {
    v->type.dtype = dtype;
    return v;
  };
  // Negative ones count from the end.
  Value* negative = typed(Binary("LESS", index, scalar(0, "_zero"), name + "_negative"), DType::kBool);
  Value* wrapped = typed(Binary("ADD", index, scalar(n, "_length"), name + "_wrapped"), type);
  index = Emit("SELECT_V2", {negative, wrapped, index}, name + "_index", MakeType(type, shape));
  if (stride != 1) index = typed(Binary("MUL", index, scalar(stride, "_stride"), name + "_strided"), type);
  Value* base = new_->AddConstant(name + "_place", TensorRef::FromInts(type, shape, place));
  GatherRows(node, rank, typed(Binary("ADD", index, base, name + "_at"), type));
}

void CircleLowering::CumSum(const Node& node) {
  const Value* x_old = node.input(0);
  RequireArithmetic(node, {{x_old}});
  const std::size_t rank = DimsOf(x_old).size();
  const std::vector<std::int64_t> axis = RequireInts(node, 1, "its axis");
  if (axis.size() != 1) Refuse(node, "its axis is not one number");
  if (x_old->type.quant || node.output()->type.quant) KeptFloat(node, "no consumer has it in integers");
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, true);
  Value* at = Int32Scalar(MapAxis(Axis(node, axis[0], rank), layout, rank), node.output()->name() + "_axis");
  Value* y = Emit("CUMSUM", {x, at}, node.output()->name(), MakeType(x->type.dtype, ShapeOf(x)),
                  {{"exclusive", node.IntAttribute("exclusive", 0)}, {"reverse", node.IntAttribute("reverse", 0)}});
  Finish(node, layout, y, false);
}

}  // namespace octavo::internal
