// Operators of Circle that move numbers or say where they are.
#include <algorithm>
#include <limits>
#include <utility>

#include "octavo/emit/lower_circle.h"
#include "octavo/rewrite/raising.h"

namespace octavo {
namespace {

TensorRef ZeroOf(DType dtype) {
  const std::optional<std::uint64_t> bytes = ByteSize(dtype, 1);
  return TensorRef::FromBytes(dtype, {}, std::vector<std::byte>(bytes.value_or(0), std::byte{0}));
}

}  // namespace

void Raising::Pad(Node& node) {
  const std::vector<std::int64_t> table = IntsOf(node, 1);
  const std::size_t rank = DimsOf(node.input(0)).size();
  if (table.size() != 2 * rank) Refuse(node, "its list does not fit its input");
  std::vector<std::int64_t> pads(table.size());
  for (std::size_t i = 0; i < rank; ++i) {
    pads[i] = table[2 * i];
    pads[i + rank] = table[2 * i + 1];
  }
  std::vector<Value*> inputs{node.input(0), Int64s(pads, "pads")};
  if (node.op() != "MIRROR_PAD" && node.input(2) != nullptr) {
    Value* v = node.input(2);
    if (!v->is_constant() || !v->data || v->data->elements() != 1) Refuse(node, "the value it pads with is computed");
    TensorRef scalar = *v->data;
    scalar.dims = {};
    Type type = v->type;
    type.shape.emplace();
    inputs.push_back(graph_.AddConstant(v->name(), scalar, type));
  }
  Value* y = Add(node, "Pad", inputs, Plain(node));
  if (node.op() == "MIRROR_PAD") {
    if (node.StringAttribute("mode", "REFLECT") != "REFLECT")
      Refuse(node, "ONNX does not repeat the border (SYMMETRIC)");
    y->producer()->SetAttribute("mode", std::string("reflect"));
  }
  Replace(node, y);
}

void Raising::Slice(Node& node) {
  const Dims in = DimsOf(node.input(0));
  std::vector<std::int64_t> begin = IntsOf(node, 1), end = IntsOf(node, 2), axes(begin.size());
  if (begin.size() != in.size() || end.size() != in.size()) Refuse(node, "its lists do not fit its input");
  for (std::size_t i = 0; i < axes.size(); ++i) {
    axes[i] = static_cast<std::int64_t>(i);
    if (begin[i] < 0 || begin[i] > in[i] || end[i] > in[i] - begin[i]) Refuse(node, "it reaches over its input");
    end[i] = end[i] < 0 ? in[i] : begin[i] + end[i];
  }
  Replace(node, Add(node, "Slice", {node.input(0), Int64s(begin, "starts"), Int64s(end, "ends"), Int64s(axes, "axes")},
                    Plain(node)));
}

// The masks have a bit for each entry of the lists: an entry that is a new dimension takes none of the input's, an
// ellipsis as many as are left, one that shrinks is an index. What is left of the shape is the output's.
void Raising::StridedSlice(Node& node) {
  const Dims in = DimsOf(node.input(0));
  const std::vector<std::int64_t> begin = IntsOf(node, 1), end = IntsOf(node, 2), steps = IntsOf(node, 3);
  if (begin.size() != end.size() || begin.size() != steps.size() || begin.size() > 31)
    Refuse(node, "its lists do not fit each other");
  const auto mask = [&](const char* name, std::size_t i) { return (node.IntAttribute(name, 0) >> i & 1) != 0; };
  std::size_t taken = 0;
  for (std::size_t i = 0; i < begin.size(); ++i) taken += !mask("new_axis_mask", i) && !mask("ellipsis_mask", i);
  if (taken > in.size()) Refuse(node, "its lists do not fit its input");
  std::vector<std::int64_t> starts, ends, axes, strides;
  std::size_t axis = 0;
  bool same_rank = true;
  for (std::size_t i = 0; i < begin.size(); ++i) {
    if (mask("ellipsis_mask", i)) {
      axis += in.size() - taken;
      taken = in.size();  // a second one takes nothing
      continue;
    }
    if (mask("new_axis_mask", i)) {
      same_rank = false;
      continue;
    }
    if (axis >= in.size() || steps[i] == 0) Refuse(node, "its lists do not fit its input");
    constexpr std::int64_t kFar = std::numeric_limits<std::int32_t>::max();
    const bool back = steps[i] < 0, shrinks = mask("shrink_axis_mask", i);
    const std::int64_t first = mask("begin_mask", i) && !shrinks ? (back ? kFar : 0) : begin[i];
    std::int64_t last = end[i];
    if (node.IntAttribute("offset", 0) != 0) last += begin[i];
    if (mask("end_mask", i)) last = back ? -kFar - 1 : kFar;
    if (shrinks) last = begin[i] == -1 ? kFar : begin[i] + 1;
    same_rank = same_rank && !shrinks;
    axes.push_back(static_cast<std::int64_t>(axis++));
    starts.push_back(first);
    ends.push_back(last);
    strides.push_back(shrinks ? 1 : steps[i]);
  }
  const Dims out = DimsOf(node.output());
  const Type type = same_rank ? Plain(node) : Type{};
  Value* y = node.input(0);
  if (!axes.empty()) {
    Type sliced = type;
    sliced.dtype = node.output()->type.dtype;
    y = Add(node, "Slice",
            {y, Int64s(starts, "starts"), Int64s(ends, "ends"), Int64s(axes, "axes"), Int64s(strides, "steps")},
            sliced);
  }
  if (!same_rank || axes.empty()) y = Add(node, "Reshape", {y, Int64s(out, "shape")}, Plain(node));
  Replace(node, y);
}

void Raising::ToShape(Node& node) {
  if (node.op() == "SHAPE") {
    const Dims dims = DimsOf(node.input(0));
    const TensorRef shape =
        TensorRef::FromInts(node.output()->type.dtype, {static_cast<std::int64_t>(dims.size())}, dims);
    return Replace(node, Add(node, "Identity", {graph_.AddConstant("shape", shape)}, Plain(node)));
  }
  Replace(node, Add(node, "Reshape", {node.input(0), Int64s(DimsOf(node.output()), "shape")}, Plain(node)));
}

void Raising::Transpose(Node& node) {
  Value* y = Add(node, "Transpose", {node.input(0)}, Plain(node));
  const std::vector<std::int64_t> perm = IntsOf(node, 1);
  if (perm.size() != DimsOf(node.input(0)).size()) Refuse(node, "its list does not fit its input");
  y->producer()->SetAttribute("perm", perm);
  Replace(node, y);
}

void Raising::Tile(Node& node) {
  Replace(node, Add(node, "Tile", {node.input(0), Int64s(IntsOf(node, 1), "repeats")}, Plain(node)));
}

void Raising::Expand(Node& node) {
  Value* x = node.input(0);
  if (node.op() == "FILL") x = node.input(1);
  if (node.op() == "ZEROS_LIKE") {
    if (node.output()->type.quant) Refuse(node, "zeros of quantized codes");
    x = graph_.AddConstant("zero", ZeroOf(node.output()->type.dtype));
  }
  if (x == nullptr) Refuse(node, "it has no value");
  Replace(node, Add(node, "Expand", {x, Int64s(DimsOf(node.output()), "shape")}, Plain(node)));
}

void Raising::Split(Node& node) {
  const bool even = node.op() == "SPLIT";
  Value* x = node.input(even ? 1 : 0);
  if (x == nullptr) Refuse(node, "it has no input");
  const std::int64_t axis = AxisOf(node, IntOf(node, even ? 0 : 2), DimsOf(x).size());
  std::vector<std::int64_t> sizes;
  std::vector<Graph::OutputSpec> specs;
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < node.outputs().size(); ++i) {
    const Dims dims = DimsOf(node.output(i));
    if (dims.size() != DimsOf(x).size()) Refuse(node, "an output is of another rank");
    sizes.push_back(dims[static_cast<std::size_t>(axis)]);
    sum += sizes.back();
    specs.push_back({node.output(i)->name() + "_split", Plain(node, i)});
  }
  if (sum != DimsOf(x)[static_cast<std::size_t>(axis)]) Refuse(node, "its parts are not the whole");
  Node* split = graph_.AddNode("Split", "", {x, Int64s(sizes, "split")}, std::move(specs), &node);
  split->SetAttribute("axis", axis);
  ReplaceAll(node, {split->outputs().begin(), split->outputs().end()});
}

void Raising::Pack(Node& node) {
  const std::int64_t axis = AxisOf(node, node.IntAttribute("axis", 0), DimsOf(node.output()).size());
  std::vector<Value*> parts;
  for (Value* part : std::vector<Value*>(node.inputs().begin(), node.inputs().end())) {
    if (part == nullptr) Refuse(node, "it lacks an input");
    Dims dims = DimsOf(part);
    if (static_cast<std::size_t>(axis) > dims.size()) Refuse(node, "its axis is outside of its rank");
    dims.insert(dims.begin() + axis, 1);
    parts.push_back(Reshaped(node, part, dims));
  }
  Value* y = Add(node, "Concat", parts, Plain(node));
  y->producer()->SetAttribute("axis", axis);
  Replace(node, y);
}

void Raising::Unpack(Node& node) {
  Value* x = node.input(0);
  Dims dims = DimsOf(x);
  const std::int64_t axis = AxisOf(node, node.IntAttribute("axis", 0), dims.size());
  std::int64_t& along = dims[static_cast<std::size_t>(axis)];
  if (along != static_cast<std::int64_t>(node.outputs().size())) Refuse(node, "its outputs are not the whole");
  const std::vector<std::int64_t> ones(node.outputs().size(), 1);
  along = 1;
  std::vector<Graph::OutputSpec> specs;
  for (const Value* output : node.outputs())
    specs.push_back({output->name() + "_slice", internal::MakeType(x->type.dtype, dims)});
  Node* split = graph_.AddNode("Split", "", {x, Int64s(ones, "split")}, std::move(specs), &node);
  split->SetAttribute("axis", axis);
  std::vector<Value*> parts;
  for (std::size_t i = 0; i < ones.size(); ++i)
    parts.push_back(Reshaped(node, split->output(i), DimsOf(node.output(i))));
  ReplaceAll(node, parts);
}

void Raising::TopK(Node& node) {
  if (node.outputs().size() != 2) Refuse(node, "it has not two outputs");
  Type indices = Plain(node, 1);
  indices.dtype = DType::kS64;
  const std::string name = node.output()->name();
  Node* top = graph_.AddNode("TopK", "", {node.input(0), Int64s({IntOf(node, 1)}, "k")},
                             {{name + "_top", Plain(node)}, {name + "_where", indices}}, &node);
  Value* cast = Add(node, "Cast", {top->output(1)}, Plain(node, 1));
  cast->producer()->SetAttribute("to", static_cast<std::int64_t>(node.output(1)->type.dtype));
  ReplaceAll(node, {top->output(0), cast});
}

void Raising::ArgExtreme(Node& node) {
  const std::int64_t axis = AxisOf(node, IntOf(node, 1), DimsOf(node.input(0)).size());
  Type type = Plain(node);
  type.dtype = DType::kS64;
  Value* y = Add(node, node.op() == "ARG_MAX" ? "ArgMax" : "ArgMin", {node.input(0)}, type);
  y->producer()->SetAttribute("axis", axis);
  y->producer()->SetAttribute("keepdims", std::int64_t{0});
  if (node.output()->type.dtype != DType::kS64) {
    y = Add(node, "Cast", {y}, Plain(node));
    y->producer()->SetAttribute("to", static_cast<std::int64_t>(node.output()->type.dtype));
  }
  Replace(node, y);
}

// SELECT takes a list of conditions for whole rows too.
void Raising::Select(Node& node) {
  if (node.input(1) == nullptr || node.input(2) == nullptr) Refuse(node, "it has not three inputs");
  Value* condition = node.input(0);
  Dims rows = DimsOf(condition);
  if (node.op() == "SELECT" && rows.size() == 1 && DimsOf(node.input(1)).size() > 1) {
    rows.resize(DimsOf(node.input(1)).size(), 1);
    condition = Reshaped(node, condition, rows);
  }
  Replace(node, Add(node, "Where", {condition, node.input(1), node.input(2)}, Plain(node)));
}

void Raising::Gather(Node& node) {
  if (node.IntAttribute("batch_dims", 0) != 0) Refuse(node, "batch_dims");
  if (node.input(1) == nullptr) Refuse(node, "it has no indices");
  Value* y = Add(node, "Gather", {node.input(0), node.input(1)}, Plain(node));
  y->producer()->SetAttribute("axis", node.IntAttribute("axis", 0));
  Replace(node, y);
}

Value* Raising::Wide(Node& node, Value* indices) {
  if (indices->type.dtype == DType::kS64) return indices;
  Type type = indices->type;
  type.dtype = DType::kS64;
  Value* y = Add(node, "Cast", {indices}, type);
  y->producer()->SetAttribute("to", static_cast<std::int64_t>(DType::kS64));
  return y;
}

void Raising::GatherNd(Node& node) {
  if (node.input(1) == nullptr) Refuse(node, "it has no indices");
  Replace(node, Add(node, "GatherND", {node.input(0), Wide(node, node.input(1))}, Plain(node)));
}

void Raising::ScatterNd(Node& node) {
  if (node.input(1) == nullptr || node.output()->type.quant) Refuse(node, "it has no numbers, or codes");
  Value* zero = graph_.AddConstant("zero", ZeroOf(node.output()->type.dtype));
  Value* empty = Add(node, "Expand", {zero, Int64s(DimsOf(node.output()), "shape")}, Plain(node));
  Value* y = Add(node, "ScatterND", {empty, Wide(node, node.input(0)), node.input(1)}, Plain(node));
  y->producer()->SetAttribute("reduction", std::string("add"));
  Replace(node, y);
}

// An index outside of the depth has no place: ONNX's OneHot counts negative ones from the end.
void Raising::OneHot(Node& node) {
  if (node.input(2) == nullptr || node.input(3) == nullptr) Refuse(node, "it has not four inputs");
  Dims dims = DimsOf(node.input(0)), range(dims.size() + 1, 1);
  const std::int64_t axis = AxisOf(node, node.IntAttribute("axis", -1), range.size());
  const std::int64_t depth = IntOf(node, 1);
  if (depth < 0 || depth > 1 << 24) Refuse(node, "its depth");
  dims.insert(dims.begin() + axis, 1);
  range[static_cast<std::size_t>(axis)] = depth;
  std::vector<std::int64_t> places(static_cast<std::size_t>(depth));
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<std::int64_t>(i);
  Value* place = graph_.AddConstant("places", TensorRef::FromInts(DType::kS64, range, places));
  Type hits = Plain(node);
  hits.dtype = DType::kBool;
  Value* hit = Add(node, "Equal", {Reshaped(node, Wide(node, node.input(0)), dims), place}, hits);
  Replace(node, Add(node, "Where", {hit, node.input(2), node.input(3)}, Plain(node)));
}

void Raising::Reverse(Node& node) {
  const std::vector<std::int64_t> axes = IntsOf(node, 1);
  const std::size_t n = axes.size();
  Replace(node, Add(node, "Slice",
                    {node.input(0), Int64s(std::vector<std::int64_t>(n, -1), "starts"),
                     Int64s(std::vector<std::int64_t>(n, std::numeric_limits<std::int32_t>::min()), "ends"),
                     Int64s(axes, "axes"), Int64s(std::vector<std::int64_t>(n, -1), "steps")},
                    Plain(node)));
}

void Raising::CumSum(Node& node) {
  const std::int64_t axis = AxisOf(node, IntOf(node, 1), DimsOf(node.input(0)).size());
  Value* at = graph_.AddConstant("axis", TensorRef::FromInts(DType::kS64, {}, std::vector<std::int64_t>{axis}));
  Value* y = Add(node, "CumSum", {node.input(0), at}, Plain(node));
  y->producer()->SetAttribute("exclusive", node.IntAttribute("exclusive", 0));
  y->producer()->SetAttribute("reverse", node.IntAttribute("reverse", 0));
  Replace(node, y);
}

// Before:  [n, H, W, rest], blocks h and w
// After:   padded, [n, H/h, h, W/w, w, rest] -> [h, w, n, H/h, W/w, rest] -> [h w n, H/h, W/w, rest]
void Raising::SpaceToBatch(Node& node) {
  const std::vector<std::int64_t> block = IntsOf(node, 1), pads = IntsOf(node, 2);
  Dims dims = DimsOf(node.input(0));
  const std::size_t m = block.size(), rank = dims.size();
  if (rank < m + 1 || pads.size() != 2 * m) Refuse(node, "its lists do not fit its input");
  std::vector<std::int64_t> table(2 * rank, 0);
  Dims split{dims[0]};
  Perm perm, kept{0};
  for (std::size_t i = 0; i < m; ++i) {
    table[i + 1] = pads[2 * i];
    table[rank + i + 1] = pads[2 * i + 1];
    if (pads[2 * i] < 0 || pads[2 * i + 1] < 0 || block[i] <= 0) Refuse(node, "a negative number in its lists");
    std::int64_t& d = dims[i + 1];
    d += pads[2 * i] + pads[2 * i + 1];
    if (d % block[i] != 0) Refuse(node, "its blocks do not divide its input");
    kept.push_back(static_cast<std::int64_t>(split.size()));
    split.push_back(d / block[i]);
    perm.push_back(static_cast<std::int64_t>(split.size()));
    split.push_back(block[i]);
  }
  for (std::size_t i = m + 1; i < rank; ++i) {
    kept.push_back(static_cast<std::int64_t>(split.size()));
    split.push_back(dims[i]);
  }
  perm.insert(perm.end(), kept.begin(), kept.end());
  Value* x = Add(node, "Pad", {node.input(0), Int64s(table, "pads")}, Shaped(node, dims));
  x = Reshaped(node, x, split);
  x = Add(node, "Transpose", {x}, Shaped(node, internal::Permuted(split, perm)));
  x->producer()->SetAttribute("perm", perm);
  Replace(node, Reshaped(node, x, DimsOf(node.output())));
}

// Before:  [h w n, H, W, rest], blocks h and w
// After:   [h, w, n, H, W, rest] -> [n, H, h, W, w, rest] -> [n, H h, W w, rest], cropped
void Raising::BatchToSpace(Node& node) {
  const std::vector<std::int64_t> block = IntsOf(node, 1), crops = IntsOf(node, 2);
  const Dims dims = DimsOf(node.input(0));
  const std::size_t m = block.size(), rank = dims.size();
  if (rank < m + 1 || crops.size() != 2 * m) Refuse(node, "its lists do not fit its input");
  std::int64_t n = dims[0];
  Dims split = block, whole;
  for (const std::int64_t b : block) {
    if (b <= 0 || n % b != 0) Refuse(node, "its blocks do not divide its input");
    n /= b;
  }
  split.push_back(n);
  split.insert(split.end(), dims.begin() + 1, dims.end());
  whole.push_back(n);
  Perm perm{static_cast<std::int64_t>(m)};
  std::vector<std::int64_t> starts, ends, axes;
  for (std::size_t i = 1; i < rank; ++i) {
    perm.push_back(static_cast<std::int64_t>(m + i));
    whole.push_back(dims[i]);
    if (i > m) continue;
    perm.push_back(static_cast<std::int64_t>(i - 1));
    whole.back() *= block[i - 1];
    axes.push_back(static_cast<std::int64_t>(i));
    starts.push_back(crops[2 * i - 2]);
    ends.push_back(whole.back() - crops[2 * i - 1]);
    if (starts.back() < 0 || crops[2 * i - 1] < 0 || ends.back() < starts.back()) Refuse(node, "what it crops");
  }
  Value* x = Reshaped(node, node.input(0), split);
  x = Add(node, "Transpose", {x}, Shaped(node, internal::Permuted(split, perm)));
  x->producer()->SetAttribute("perm", perm);
  x = Reshaped(node, x, whole);
  Replace(node,
          Add(node, "Slice", {x, Int64s(starts, "starts"), Int64s(ends, "ends"), Int64s(axes, "axes")}, Plain(node)));
}

void Raising::ReduceBool(Node& node) {
  Type number = node.input(0)->type, result = Plain(node);
  number.dtype = result.dtype = DType::kS32;
  Value* x = Add(node, "Cast", {node.input(0)}, number);
  x->producer()->SetAttribute("to", static_cast<std::int64_t>(DType::kS32));
  x = Add(node, node.op() == "REDUCE_ANY" ? "ReduceMax" : "ReduceMin", {x, Int64s(IntsOf(node, 1), "axes")}, result);
  x->producer()->SetAttribute("keepdims", node.IntAttribute("keep_dims", 0));
  x = Add(node, "Cast", {x}, Plain(node));
  x->producer()->SetAttribute("to", static_cast<std::int64_t>(DType::kBool));
  Replace(node, x);
}

}  // namespace octavo
