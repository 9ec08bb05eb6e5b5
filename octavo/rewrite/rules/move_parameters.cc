// Data movement of values with one scale an index: the scales move with the codes.
#include <algorithm>
#include <numeric>

#include "octavo/rewrite/rules/parts.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

template <class T>
std::vector<T> Permute(const std::vector<T>& from, const Dims& dims, const std::vector<std::int64_t>& perm) {
  const std::size_t rank = dims.size();
  std::vector<std::size_t> stride(rank, 1), at(rank, 0);
  for (std::size_t i = rank; i-- > 1;) stride[i - 1] = stride[i] * static_cast<std::size_t>(dims[i]);
  std::vector<T> to(from.size());
  for (T& value : to) {
    std::size_t source = 0;
    for (std::size_t i = 0; i < rank; ++i) source += at[i] * stride[static_cast<std::size_t>(perm[i])];
    value = from[source];
    for (std::size_t i = rank; i-- > 0;) {
      if (++at[i] < static_cast<std::size_t>(dims[static_cast<std::size_t>(perm[i])])) break;
      at[i] = 0;
    }
  }
  return to;
}

Dims Permuted(const Dims& dims, const std::vector<std::int64_t>& perm) {
  Dims to;
  for (const std::int64_t p : perm) to.push_back(dims[static_cast<std::size_t>(p)]);
  return to;
}

std::optional<std::vector<std::int64_t>> Numbers(const Value* v) {
  if (v == nullptr || !v->is_constant() || !v->data || v->type.quant || !IsInteger(v->data->dtype)) return std::nullopt;
  return v->data->ToInts();
}

// The permutation of a Transpose; empty when it is none of this rank.
std::vector<std::int64_t> PermOf(const Node& node, std::size_t rank) {
  std::vector<std::int64_t> perm(rank);
  std::iota(perm.rbegin(), perm.rend(), 0);
  if (const std::vector<std::int64_t>* given = node.IntsAttribute("perm")) {
    if (!std::is_permutation(given->begin(), given->end(), perm.begin(), perm.end())) return {};
    perm = *given;
  }
  return perm;
}

MatchOr<Affine> AfterTranspose(const Node& node, const Affine& in, const Dims& from) {
  const std::vector<std::int64_t> perm = PermOf(node, from.size());
  if (perm.size() != from.size())
    return Refusal{"its perm does not permute the " + std::to_string(from.size()) + " dimensions"};
  Affine out = in;
  out.axis = std::find(perm.begin(), perm.end(), *in.axis) - perm.begin();
  if (in.block > 0) {
    if (in.scale.dims.size() != from.size())
      return Refusal{"the scales of its blocks have another rank than the tensor"};
    out.scale = TensorRef::FromFloats(Permuted(in.scale.dims, perm), Permute(in.scale.ToFloats(), in.scale.dims, perm));
    if (in.zero_point) {
      out.zero_point = TensorRef::FromInts(in.storage, Permuted(in.scale.dims, perm),
                                           Permute(in.zero_point->ToInts(), in.scale.dims, perm));
    }
  }
  return out;
}

// Blocks lie where they lay if the axis that they run along is followed by as many numbers as before, and borders of
// that axis are borders of blocks: then the scales are in the same order, in another shape.
MatchOr<Affine> BlocksAfterReshape(const Affine& in, const Dims& from, const Dims& to) {
  const auto axis = static_cast<std::size_t>(*in.axis);
  if (in.scale.dims.size() != from.size()) return Refusal{"the scales of its blocks have another rank than the tensor"};
  const auto count = [](const Dims& dims, std::size_t first) {
    return std::accumulate(dims.begin() + static_cast<std::ptrdiff_t>(first), dims.end(), std::int64_t{1},
                           std::multiplies<>());
  };
  const std::int64_t inner = count(from, axis + 1);
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (!Holds("move-parameters/block-strides", count(to, i + 1) == inner)) continue;
    const bool same = to[i] == from[axis], whole = to[i] % in.block == 0 && from[axis] % in.block == 0;
    if (!Holds("move-parameters/block-borders", same || whole)) continue;
    if (!found || same) found = i;
  }
  if (found && to[*found] > 0) {
    Dims dims = to;
    dims[*found] = (to[*found] - 1) / in.block + 1;
    if (count(dims, 0) == count(in.scale.dims, 0)) {
      Affine out = in;
      out.axis = static_cast<std::int64_t>(*found);
      out.scale.dims = dims;
      if (out.zero_point) out.zero_point->dims = dims;
      return out;
    }
  }
  return Refusal{"blocks of " + std::to_string(in.block) + " run along axis " + std::to_string(axis) + " of " +
                 Text(from) + ", " + std::to_string(inner) + " apart; no dimension of " + Text(to) +
                 " has their borders"};
}

MatchOr<Affine> AfterReshape(const Affine& in, const Dims& from, const std::optional<Dims>& to) {
  if (!to) return Refusal{"the shape of its result is not known, so the axis of the scales is not either"};
  if (in.block > 0) return BlocksAfterReshape(in, from, *to);
  const auto axis = static_cast<std::size_t>(*in.axis);
  const std::int64_t outer =
      std::accumulate(from.begin(), from.begin() + *in.axis, std::int64_t{1}, std::multiplies<>());
  std::int64_t before = 1;
  for (std::size_t i = 0; i < to->size(); ++i) {
    if ((*to)[i] == from[axis] && Holds("move-parameters/axis-survives", before == outer)) {
      Affine out = in;
      out.axis = static_cast<std::int64_t>(i);
      return out;
    }
    before *= (*to)[i];
  }
  return Refusal{"the " + std::to_string(from[axis]) + " scales run along axis " + std::to_string(*in.axis) + " of " +
                 Text(from) + ", behind " + std::to_string(outer) + " rows; no dimension of " + Text(*to) +
                 " is that one"};
}

// All of an axis of `n`.
std::vector<std::int64_t> Whole(std::int64_t n) {
  std::vector<std::int64_t> at(static_cast<std::size_t>(n));
  std::iota(at.begin(), at.end(), 0);
  return at;
}

// What a Slice keeps of each axis.
MatchOr<Indices> Kept(const Node& node, const Dims& from) {
  const auto starts = Numbers(node.input(1)), ends = Numbers(node.input(2));
  if (!starts || !ends || starts->size() != ends->size()) return Refusal{"its bounds are computed"};
  std::vector<std::int64_t> axes(starts->size()), steps(starts->size(), 1);
  std::iota(axes.begin(), axes.end(), 0);
  if (node.input(3) != nullptr) {
    const auto given = Numbers(node.input(3));
    if (!given || given->size() != axes.size()) return Refusal{"its axes are computed"};
    axes = *given;
  }
  if (node.input(4) != nullptr) {
    const auto given = Numbers(node.input(4));
    if (!given || given->size() != steps.size()) return Refusal{"its steps are computed"};
    steps = *given;
  }
  const auto rank = std::ssize(from);
  constexpr std::int64_t kMostIndices = std::int64_t{1} << 24;  // of an axis: each is written down
  if (std::any_of(from.begin(), from.end(), [](std::int64_t n) { return n > kMostIndices; })) {
    return Refusal{"it cuts a tensor of more than " + std::to_string(kMostIndices) + " indices along one axis"};
  }
  Indices kept(from.size());
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const std::int64_t axis = axes[i] < 0 ? axes[i] + rank : axes[i], step = steps[i];
    if (axis < 0 || axis >= rank || step == 0 || !kept[static_cast<std::size_t>(axis)].empty()) {
      return Refusal{"its axes or steps are not those of a Slice"};
    }
    const std::int64_t n = from[static_cast<std::size_t>(axis)];
    if (n < 1) return Refusal{"it leaves none of the 0 indices"};
    std::vector<std::int64_t>& at = kept[static_cast<std::size_t>(axis)];
    // The operator's: indices count from the end, then are cut to the dimension.
    const auto bound = [&](std::int64_t v, std::int64_t low, std::int64_t high) {
      return std::clamp(v < 0 && v >= -n ? v + n : v, low, std::max(low, high));
    };
    if (step > 0) {
      const std::int64_t end = bound((*ends)[i], 0, n);
      for (std::int64_t k = bound((*starts)[i], 0, n); k < end; k += std::min(step, n)) at.push_back(k);
    } else {
      const std::int64_t end = bound((*ends)[i], -1, n - 1);
      for (std::int64_t k = bound((*starts)[i], 0, n - 1); k > end; k += std::max(step, -n)) at.push_back(k);
    }
    if (at.empty()) return Refusal{"it leaves none of the " + std::to_string(n) + " indices"};
  }
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (kept[i].empty()) kept[i] = Whole(from[i]);
  }
  return kept;
}

MatchOr<Affine> AfterSlice(const Node& node, const Affine& in, const Dims& from) {
  const auto kept = Kept(node, from);
  if (const auto* refusal = std::get_if<Refusal>(&kept)) return *refusal;
  return CutParameters("move-parameters", in, from, std::get<Indices>(kept));
}

std::int64_t AxisOfGather(const Node& node, const Dims& from) {
  const std::int64_t axis = node.IntAttribute("axis", 0);
  return axis < 0 ? axis + std::ssize(from) : axis;
}

// The constant indices of a Gather in a dimension of `n` `things`, counted from its start.
MatchOr<std::vector<std::int64_t>> PickedBy(const Value* indices, std::int64_t n, const char* things) {
  std::vector<std::int64_t> at = *Numbers(indices);
  for (std::int64_t& i : at) {
    if (i < -n || i >= n) {
      return Refusal{"index " + std::to_string(i) + " is outside of " + std::to_string(n) + " " + things};
    }
    if (i < 0) i += n;
  }
  return at;
}

MatchOr<Affine> AfterGather(const Node& node, const Affine& in, const Dims& from) {
  const std::int64_t axis = AxisOfGather(node, from);
  const Value* indices = node.input(1);
  if (indices == nullptr || !indices->type.shape) return Refusal{"the rank of its indices is not known"};
  if (axis < 0 || axis >= std::ssize(from)) return Refusal{"its axis is none of " + Text(from)};
  const std::int64_t n = from[static_cast<std::size_t>(axis)];
  if (in.block > 0) {  // along any axis: a constant is cut at once
    if (!Numbers(indices) || indices->data->dims.size() != 1) return Refusal{};  // block-weights
    auto at = PickedBy(indices, n, "rows");
    if (const auto* refusal = std::get_if<Refusal>(&at)) return *refusal;
    Indices kept;
    for (const std::int64_t d : from) kept.push_back(Whole(d));
    std::vector<std::int64_t>& rows = kept[static_cast<std::size_t>(axis)];
    rows = std::get<std::vector<std::int64_t>>(std::move(at));
    if (rows.empty() || std::ssize(rows) > n)
      return Refusal{"it takes " + std::to_string(rows.size()) + " of " + std::to_string(n) + " rows"};
    return CutParameters("move-parameters", in, from, kept);
  }
  if (axis != *in.axis) {
    Affine out = in;
    if (axis < *in.axis) out.axis = *in.axis + std::ssize(*indices->type.shape) - 1;
    return out;
  }
  if (!Numbers(indices))
    return Refusal{"it picks along the axis of the " + std::to_string(Scales(in).size()) +
                   " scales, by computed indices"};
  if (indices->data->elements() == 0 || !Holds("move-parameters/one-axis", indices->data->dims.size() == 1))
    return Refusal{"its indices have shape " + Text(indices->data->dims)};
  const auto at = PickedBy(indices, n, "scales");
  if (const auto* refusal = std::get_if<Refusal>(&at)) return *refusal;
  return Picked(in, std::get<std::vector<std::int64_t>>(at));
}

struct Moved {
  Node* node = nullptr;
  Affine affine;
};

class MoveParametersRule final : public PatternRule<Moved> {
 public:
  MoveParametersRule(const DeviceDescriptor& device, std::int64_t opset) : device_(device), opset_(opset) {}
  std::string_view name() const override { return "move-parameters"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override {
    return {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather"};
  }
  RuleDoc doc() const override {
    return {
        "Scales that run along an axis or in blocks move with the codes: Transpose and Reshape take the axis along, "
        "Slice and Gather cut the scales, those of blocks along their borders; a constant is moved at once.",
        "%y : f32 = Transpose (%w : u8(axis=0)) {perm=[1, 0]}",
        "%y : u8(axis=1) = Transpose %w_codes",
        "each code keeps its scale and zero point: compared number by number with the float operator for every "
        "operator and axis, over all codes (MoveParameters.EveryCodeKeepsItsScale, "
        "test_parameters_move_with_the_codes)",
        {"move-parameters/axis-survives", "move-parameters/block-borders", "move-parameters/block-strides",
         "move-parameters/one-axis", "move-parameters/same-parameters"}};
  }
  MatchOr<Moved> Match(Node& node) const override {
    if (!node.domain().empty() || node.form == QuantForm::kQLinear || node.outputs().size() != 1) return Refusal{};
    Value *x = node.input(0), *y = node.output();
    const Affine* in = AffineOf(x);
    if (in == nullptr || y == nullptr) return Refusal{};
    const bool constant = x->is_constant() && x->data;
    if (in->per_tensor() && (!constant || node.op() == "Slice" || node.op() == "Gather" || IsQuantized(y)))
      return Refusal{};
    // Rows of a table that computed indices pick: block-weights.
    const bool rows = in->block > 0 && node.op() == "Gather";
    if (rows && (!constant || !Numbers(node.input(1)))) return Refusal{};
    if (y->type.dtype != DType::kF32 || y->is_graph_output()) return Refusal{};
    const std::optional<Dims> from = constant ? std::optional(x->data->dims) : StaticShape(x->type);
    if (!from) return Refusal{"the shape of its input is not known, so the axis of the scales is not either"};
    // A constant is moved here and now, which takes no kernel.
    const bool known = node.op() == "Transpose" || node.op() == "Slice" || rows || StaticShape(y->type).has_value();
    const bool at_once = constant && known && (node.op() != "Gather" || rows) && Rewriter::CanBypass(node, *x);
    const IntegerKernel* kernel = rows ? nullptr : FindIntegerKernel(device_, node.op(), KernelKind::kOnCodes);
    const bool runs = kernel != nullptr && TakesCodes(*kernel, in->storage) && opset_ >= kernel->opset;
    if (!at_once && !runs) {
      return Refusal{"the device has no " + node.op() + " for " + std::string(Name(in->storage))};
    }
    MatchOr<Affine> out = *in;
    if (!in->per_tensor()) {
      if (node.op() == "Transpose") out = AfterTranspose(node, *in, *from);
      if (node.op() == "Slice") out = AfterSlice(node, *in, *from);
      if (node.op() == "Gather") out = AfterGather(node, *in, *from);
      if (node.op() == "Reshape" || node.op() == "Flatten" || node.op() == "Squeeze" || node.op() == "Unsqueeze") {
        out = AfterReshape(*in, *from, StaticShape(y->type));
      }
      if (auto* refusal = std::get_if<Refusal>(&out)) return *refusal;
    } else if (node.op() == "Transpose" && PermOf(node, from->size()).size() != from->size()) {
      return Refusal{"its perm does not permute the " + std::to_string(from->size()) + " dimensions"};
    }
    if (IsQuantized(y)) {
      const Affine* have = AffineOf(y);
      if (!Holds("move-parameters/same-parameters", have != nullptr && SameParams(*have, std::get<Affine>(out)))) {
        return Refusal{"its result is quantized with other parameters than those that moving its input's gives"};
      }
    }
    return Moved{&node, std::get<Affine>(std::move(out))};
  }
  void Apply(const Moved& m, Rewriter& rewriter) const override {
    Node& node = *m.node;
    Value *x = node.input(0), *y = node.output();
    const std::optional<Dims> to = StaticShape(y->type);
    QuantType quant;
    quant.affine = m.affine;
    const bool transpose = node.op() == "Transpose", slice = node.op() == "Slice", gather = node.op() == "Gather";
    const bool rows = gather && m.affine.block > 0;
    if (x->is_constant() && x->data && (!gather || rows) && (transpose || slice || rows || to) &&
        Rewriter::CanBypass(node, *x)) {
      const TensorRef& data = *x->data;
      TensorRef moved;
      if (rows) {
        const auto axis = static_cast<std::size_t>(AxisOfGather(node, data.dims));
        const auto at = PickedBy(node.input(1), data.dims[axis], "rows");
        moved = Cut(data, axis, std::get<std::vector<std::int64_t>>(at));
      } else if (slice) {
        moved = data;
        const auto kept = Kept(node, data.dims);
        const auto& indices = std::get<Indices>(kept);
        for (std::size_t i = 0; i < indices.size(); ++i) {
          if (std::ssize(indices[i]) != moved.dims[i] || !std::is_sorted(indices[i].begin(), indices[i].end())) {
            moved = Cut(moved, i, indices[i]);
          }
        }
      } else if (transpose) {
        const std::vector<std::int64_t> perm = PermOf(node, data.dims.size());
        moved = TensorRef::FromInts(data.dtype, Permuted(data.dims, perm), Permute(data.ToInts(), data.dims, perm));
      } else {
        moved = data;
        moved.dims = *to;
      }
      Type type = TypeOf(moved);
      type.dtype = DType::kF32;
      type.quant = std::move(quant);
      rewriter.Bypass(node, node.graph()->AddConstant(y->name() + "_moved", std::move(moved), std::move(type)));
      return;
    }
    y->type.quant = std::move(quant);
    node.form = QuantForm::kQLinear;
    rewriter.Touch(y);
  }

 private:
  const DeviceDescriptor& device_;
  const std::int64_t opset_;
};

}  // namespace

std::unique_ptr<Rule> MoveParameters(const DeviceDescriptor& device, std::int64_t opset) {
  return std::make_unique<MoveParametersRule>(device, opset);
}

}  // namespace octavo
