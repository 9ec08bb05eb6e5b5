// How operators that move data, normalizations and the IR's own are said in Circle, and the table of all handlers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/emit/lower_circle.h"

namespace octavo::internal {

// --------------------------------------------------------------------------------------------------------- data moving

// `result` holds x's elements in another order: x's parameters are its own.
void CircleLowering::MoveLike(const Node& node, const Value* x, Layout layout, bool integer, Value* result) {
  (void)x;
  Finish(node, layout, result, integer);
}

void CircleLowering::ReshapeNode(const Node& node) {
  const Value *x_old = node.input(0), *y_old = node.output();
  const Dims from = DimsOf(x_old), to = DimsOf(y_old);
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (x_old->type.quant && !codes) KeptFloat(node, "its input has a scale for each channel, or blocks");
  const bool as_float = x_old->type.quant && !codes;
  // Channels stay in front of everything they were in front of: the channels-last forms are reshapes of each other.
  const bool keeps_channels = from.size() >= 3 && to.size() >= 3 && from[0] == to[0] && from[1] == to[1];
  if (keeps_channels && Has(x_old, Layout::kLast) && !Has(x_old, Layout::kFirst)) {
    Value* y = Reshape(Get(x_old, Layout::kLast, as_float), Permuted(to, ToLast(to.size())), y_old->name());
    return MoveLike(node, x_old, Layout::kLast, !as_float && x_old->type.quant, y);
  }
  Value* y = Reshape(Get(x_old, Layout::kFirst, as_float), to, y_old->name());
  MoveLike(node, x_old, Layout::kFirst, !as_float && x_old->type.quant, y);
}

void CircleLowering::TransposeNode(const Node& node) {
  const Value *x_old = node.input(0), *y_old = node.output();
  const std::size_t rank = DimsOf(x_old).size();
  std::vector<std::int64_t> perm(rank);
  for (std::size_t i = 0; i < rank; ++i) perm[i] = static_cast<std::int64_t>(rank - 1 - i);
  if (const auto* list = node.IntsAttribute("perm")) perm = *list;
  if (perm.size() != rank) Refuse(node, "its permutation does not fit its input");
  const bool integer = x_old->type.quant.has_value();
  // The four ways between the two layouts on either side; the first that moves nothing wins.
  std::optional<std::pair<Layout, std::vector<std::int64_t>>> best;
  for (const Layout from : {Layout::kFirst, Layout::kLast}) {
    if (from == Layout::kLast && (rank < 3 || !Has(x_old, Layout::kLast))) continue;
    if (from == Layout::kFirst && !Has(x_old, Layout::kFirst) && !x_old->is_constant()) continue;
    const std::vector<std::int64_t> source = from == Layout::kLast ? ToLast(rank) : std::vector<std::int64_t>{};
    for (const Layout to : {Layout::kFirst, Layout::kLast}) {
      if (to == Layout::kLast && rank < 3) continue;
      std::vector<std::int64_t> direct = to == Layout::kLast ? Permuted(perm, ToLast(rank)) : perm;
      if (from == Layout::kLast) {
        for (std::int64_t& p : direct) p = std::find(source.begin(), source.end(), p) - source.begin();
      }
      const Dims have = ShapeOf(Get(x_old, from, false));
      std::int64_t last = -1;
      bool trivial = true;
      for (const std::int64_t p : direct) {
        if (have[static_cast<std::size_t>(p)] == 1) continue;
        trivial = trivial && p > last;
        last = p;
      }
      if (trivial) {
        Value* y = Transpose(Get(x_old, from, false), direct, y_old->name());
        return MoveLike(node, x_old, to, integer, y);
      }
      if (to == Layout::kFirst && !best) best = std::make_pair(from, direct);
    }
  }
  if (!best) best = std::make_pair(Layout::kFirst, perm);
  MoveLike(node, x_old, Layout::kFirst, integer,
           Transpose(Get(x_old, best->first, false), best->second, y_old->name()));
}

void CircleLowering::Identity(const Node& node) {
  const Value* x = node.input(0);
  if (node.output(1) != nullptr && !node.output(1)->dead()) Refuse(node, "its mask is used");
  for (const Layout layout : {Layout::kFirst, Layout::kLast}) {
    if (!x->is_constant() && !Has(x, layout)) continue;
    Value* v = Get(x, layout, false);
    Finish(node, layout, v, x->type.quant.has_value());
    return;
  }
}

void CircleLowering::Concat(const Node& node) {
  std::vector<const Value*> operands(node.inputs().begin(), node.inputs().end());
  const std::size_t rank = DimsOf(node.output()).size();
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  const bool integer = IsFloat(node.output()->type.dtype) && Integer(node, "CONCATENATION", operands);
  const Layout layout = rank >= 3 ? ElementwiseLayout(node, operands) : Layout::kFirst;
  const Type type = OutType(node, layout, integer);
  std::vector<Value*> inputs;
  for (const Value* v : operands) {
    Value* x = Get(v, layout, !integer);
    // Consumers take equal parameters for granted.
    if (integer && !SameQuant(x->type, type)) x = Quantize(x, *type.quant, v->name());
    inputs.push_back(x);
  }
  if (inputs.size() == 1) return Finish(node, layout, inputs[0], integer);
  Value* y = Emit("CONCATENATION", inputs, node.output()->name(), type,
                  {{"axis", MapAxis(axis, layout, rank)}, {"fused_activation_function", std::string("NONE")}});
  Finish(node, layout, y, integer);
}

void CircleLowering::Split(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, !codes);
  const std::int64_t at = MapAxis(axis, layout, rank);
  std::int64_t begin = 0;
  for (const Value* y : node.outputs()) {
    if (y == nullptr) Refuse(node, "an output is absent");
    const Dims out = DimsOf(y);
    const std::int64_t length = out[static_cast<std::size_t>(axis)];
    Dims from(rank, 0), to = ShapeOf(x), ones(rank, 1), shape = ShapeOf(x);
    from[static_cast<std::size_t>(at)] = begin;
    to[static_cast<std::size_t>(at)] = begin + length;
    shape[static_cast<std::size_t>(at)] = length;
    begin += length;
    Value* part = Emit(
        "STRIDED_SLICE",
        {x, Int32s(from, y->name() + "_begin"), Int32s(to, y->name() + "_end"), Int32s(ones, y->name() + "_strides")},
        y->name(), MakeType(x->type.dtype, shape, x->type.quant));
    if (y->type.quant) {
      Type wanted = part->type;
      wanted.quant = y->type.quant;
      if (!SameQuant(part->type, wanted)) part = Quantize(part, *y->type.quant, y->name());
    } else if (part->type.quant) {
      Type type = part->type;
      type.quant.reset();
      part = Emit("DEQUANTIZE", {part}, y->name(), type);
    }
    Set(y, layout, false, part);
    codes ? ++report_.integer_operators : ++report_.float_operators;
  }
}

void CircleLowering::Slice(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  std::vector<std::int64_t> starts, ends, axes, steps;
  if (node.input(1) != nullptr) {
    starts = RequireInts(node, 1, "starts");
    ends = RequireInts(node, 2, "ends");
    if (node.input(3) != nullptr) axes = RequireInts(node, 3, "axes");
    if (node.input(4) != nullptr) steps = RequireInts(node, 4, "steps");
  } else {
    if (const auto* l = node.IntsAttribute("starts")) starts = *l;
    if (const auto* l = node.IntsAttribute("ends")) ends = *l;
    if (const auto* l = node.IntsAttribute("axes")) axes = *l;
  }
  if (axes.empty()) {
    for (std::size_t i = 0; i < starts.size(); ++i) axes.push_back(static_cast<std::int64_t>(i));
  }
  steps.resize(starts.size(), 1);
  if (ends.size() != starts.size() || axes.size() != starts.size()) Refuse(node, "its lists differ in length");
  const bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, !codes);
  Dims from(rank, 0), to = ShapeOf(x), step(rank, 1), shape = ShapeOf(x);
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const std::int64_t axis = Axis(node, axes[i], rank), n = dims[static_cast<std::size_t>(axis)];
    if (steps[i] == 0) Refuse(node, "its step is 0");
    if (steps[i] < 0) {
      // Backwards: the same elements of the reversed tensor, forwards.
      const std::int64_t mapped = MapAxis(axis, layout, rank);
      x = Emit("REVERSE_V2", {x, Int32s({&mapped, 1}, x->name() + "_axis")}, x->name() + "_reversed",
               MakeType(x->type.dtype, ShapeOf(x), x->type.quant));
      const std::int64_t first = std::clamp<std::int64_t>(starts[i] < 0 ? starts[i] + n : starts[i], -1, n - 1);
      const std::int64_t end =
          std::clamp<std::int64_t>(ends[i] < 0 && ends[i] >= -n ? ends[i] + n : ends[i], -1, n - 1);
      starts[i] = n - 1 - first;
      ends[i] = n - 1 - end;
      steps[i] =
          steps[i] == std::numeric_limits<std::int64_t>::min() ? std::numeric_limits<std::int64_t>::max() : -steps[i];
    }
    const auto clamp = [n](std::int64_t v) { return std::clamp<std::int64_t>(v < 0 ? v + n : v, 0, n); };
    const auto at = static_cast<std::size_t>(MapAxis(axis, layout, rank));
    from[at] = clamp(starts[i]);
    to[at] = std::max(clamp(ends[i]), from[at]);
    step[at] = steps[i];
    shape[at] = to[at] == from[at] ? 0 : (to[at] - from[at] - 1) / steps[i] + 1;
  }
  const std::string name = node.output()->name();
  const Type type = MakeType(x->type.dtype, shape, x->type.quant);
  Value* y = nullptr;
  if (std::all_of(step.begin(), step.end(), [](std::int64_t s) { return s == 1; })) {
    // Without steps: onert has STRIDED_SLICE in float only.
    y = Emit("SLICE", {x, Int32s(from, name + "_begin"), Int32s(shape, name + "_size")}, name, type);
  } else {
    y = Emit("STRIDED_SLICE",
             {x, Int32s(from, name + "_begin"), Int32s(to, name + "_end"), Int32s(step, name + "_strides")}, name,
             type);
  }
  MoveLike(node, x_old, layout, codes, y);
}

void CircleLowering::Expand(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims to = DimsOf(node.output());
  if (x_old->type.quant) KeptFloat(node, "it is lowered in float");
  Dims from = DimsOf(x_old);
  while (from.size() < to.size()) from.insert(from.begin(), 1);
  Value* x = Reshape(Get(x_old, Layout::kFirst, true), from, node.output()->name());
  // Every consumer has TILE; BROADCAST_TO has no version 1 in LiteRT.
  Dims repeats;
  for (std::size_t i = 0; i < to.size(); ++i) repeats.push_back(from[i] == to[i] ? 1 : to[i]);
  if (from != to)
    x = Emit("TILE", {x, Int32s(repeats, node.output()->name() + "_repeats")}, node.output()->name(),
             MakeType(x->type.dtype, to));
  Finish(node, Layout::kFirst, x, false);
}

void CircleLowering::Tile(const Node& node) {
  const Value* x_old = node.input(0);
  const std::vector<std::int64_t> repeats = RequireInts(node, 1, "repeats");
  if (x_old->type.quant) KeptFloat(node, "it is lowered in float");
  Value* x = Get(x_old, Layout::kFirst, true);
  Value* y = Emit("TILE", {x, Int32s(repeats, node.output()->name() + "_repeats")}, node.output()->name(),
                  MakeType(x->type.dtype, DimsOf(node.output())));
  Finish(node, Layout::kFirst, y, false);
}

void CircleLowering::Pad(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims dims = DimsOf(x_old);
  const std::size_t rank = dims.size();
  if (node.StringAttribute("mode", "constant") != "constant") Refuse(node, "mode " + node.StringAttribute("mode", ""));
  std::vector<std::int64_t> pads, axes;
  if (node.input(1) != nullptr)
    pads = RequireInts(node, 1, "the padding");
  else if (const auto* list = node.IntsAttribute("pads"))
    pads = *list;
  if (node.input(3) != nullptr) axes = RequireInts(node, 3, "axes");
  if (axes.empty()) {
    for (std::size_t i = 0; i < rank; ++i) axes.push_back(static_cast<std::int64_t>(i));
  }
  if (pads.size() != 2 * axes.size()) Refuse(node, "its padding does not fit its axes");
  float value = node.FloatAttribute("value", 0);
  if (node.input(2) != nullptr) {
    if (!node.input(2)->is_constant()) Refuse(node, "the value it pads with is computed");
    Value* c = GetConstant(node.input(2), Layout::kFirst, true);
    value = IsFloat(c->type.dtype) ? c->data->ToFloats()[0] : static_cast<float>(c->data->ToInts()[0]);
    new_->Erase(c);
  }
  const Layout layout = Prefer(x_old);
  bool codes = x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (codes && value != 0) {
    KeptFloat(node, "it pads with another number than zero");
    codes = false;
  }
  Value* x = Get(x_old, layout, !codes);
  std::vector<std::int64_t> table(2 * rank, 0);
  Dims shape = ShapeOf(x);
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const auto at = static_cast<std::size_t>(MapAxis(Axis(node, axes[i], rank), layout, rank));
    if (pads[i] < 0 || pads[i + axes.size()] < 0) Refuse(node, "negative padding");
    table[2 * at] = pads[i];
    table[2 * at + 1] = pads[i + axes.size()];
    shape[at] += pads[i] + pads[i + axes.size()];
  }
  const std::string name = node.output()->name();
  Value* p =
      new_->AddConstant(name + "_pads", TensorRef::FromInts(DType::kS32, {static_cast<std::int64_t>(rank), 2}, table));
  const Type type = MakeType(x->type.dtype, shape, x->type.quant);
  Value* y = value == 0 ? Emit("PAD", {x, p}, name, type)
                        : Emit("PADV2", {x, p, Floats({1}, {&value, 1}, name + "_value")}, name, type);
  MoveLike(node, x_old, layout, codes, y);
}

void CircleLowering::Cast(const Node& node) {
  const Value* x_old = node.input(0);
  const auto to = static_cast<DType>(node.IntAttribute("to", 1));
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, true);
  DType target = IsFloat(to) && to != DType::kF64 ? DType::kF32 : to;
  if (x->type.dtype == target) return Finish(node, layout, x, false);
  const Dims dims = ShapeOf(x);
  const auto name = [](DType dtype) -> std::string {
    switch (dtype) {
      case DType::kF32:
        return "FLOAT32";
      case DType::kS32:
        return "INT32";
      case DType::kS64:
        return "INT64";
      case DType::kBool:
        return "BOOL";
      case DType::kU8:
        return "UINT8";
      case DType::kS8:
        return "INT8";
      case DType::kS16:
        return "INT16";
      default:
        return "";
    }
  };
  if (name(target).empty() || name(x->type.dtype).empty()) Refuse(node, "a type that Circle cannot cast");
  Value* y = Emit("CAST", {x}, node.output()->name(), MakeType(target, dims),
                  {{"in_data_type", name(x->type.dtype)}, {"out_data_type", name(target)}});
  Finish(node, layout, y, false);
}

// MEAN SUB MUL MEAN ADD RSQRT MUL MUL ADD.
void CircleLowering::LayerNorm(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  std::vector<std::int64_t> axes;
  for (std::int64_t a = Axis(node, node.IntAttribute("axis", -1), rank); a < static_cast<std::int64_t>(rank); ++a)
    axes.push_back(a);
  for (std::size_t i = 1; i < 3; ++i) {
    if (node.output(i) != nullptr && !node.output(i)->dead()) Refuse(node, "its statistics are used");
  }
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  const std::string name = OutputOf(node)->name();
  Value* x = Get(x_old, Layout::kFirst, true);
  Value* centered = Binary("SUB", x, Mean(x, axes, true, name), name);
  Value* variance = Mean(Binary("MUL", centered, centered, name), axes, true, name);
  Value* r = Unary(
      "RSQRT", Binary("ADD", variance, Scalar(node.FloatAttribute("epsilon", 1e-5f), name + "_epsilon"), name), name);
  Value* y = Binary("MUL", centered, r, name);
  if (node.input(1) != nullptr) y = Binary("MUL", y, Get(node.input(1), Layout::kFirst, true), name);
  if (node.input(2) != nullptr) y = Binary("ADD", y, Get(node.input(2), Layout::kFirst, true), name);
  Finish(node, Layout::kFirst, y, false);
}

void CircleLowering::InstanceNorm(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  if (rank < 3) Refuse(node, "its input has no spatial dimensions");
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  std::vector<std::int64_t> axes;
  for (std::size_t i = 1; i + 1 < rank; ++i) axes.push_back(static_cast<std::int64_t>(i));
  const std::string name = OutputOf(node)->name();
  Value* x = Get(x_old, Layout::kLast, true);  // channels last: scale and bias broadcast as they are
  Value* centered = Binary("SUB", x, Mean(x, axes, true, name), name);
  Value* variance = Mean(Binary("MUL", centered, centered, name), axes, true, name);
  Value* r = Unary(
      "RSQRT", Binary("ADD", variance, Scalar(node.FloatAttribute("epsilon", 1e-5f), name + "_epsilon"), name), name);
  Value* y = Binary("MUL", Binary("MUL", centered, r, name), Get(node.input(1), Layout::kFirst, true), name);
  Finish(node, Layout::kLast, Binary("ADD", y, Get(node.input(2), Layout::kFirst, true), name), false);
}

// ONNX means the squares, Circle sums them up.
void CircleLowering::LocalResponse(const Node& node) {
  const Value* x_old = node.input(0);
  const std::int64_t size = node.IntAttribute("size", 0);
  if (DimsOf(x_old).size() != 4) Refuse(node, "only two spatial dimensions are lowered");
  if (size < 1 || size % 2 == 0 || size > (1 << 20)) Refuse(node, "its size is not odd");
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "no consumer has it in integers");
  Value* x = Get(x_old, Layout::kLast, true);
  const float alpha = node.FloatAttribute("alpha", 1e-4f) / static_cast<float>(size);
  Value* y = Emit("LOCAL_RESPONSE_NORMALIZATION", {x}, OutputOf(node)->name(), OutType(node, Layout::kLast, false),
                  {{"radius", size / 2},
                   {"bias", node.FloatAttribute("bias", 1.0f)},
                   {"alpha", alpha},
                   {"beta", node.FloatAttribute("beta", 0.75f)}});
  Finish(node, Layout::kLast, y, false);
}

// What stands between quantized tensors, where it could not be folded into the weights in front: a factor and an
// addend.
void CircleLowering::BatchNorm(const Node& node) {
  const Value* x_old = node.input(0);
  for (std::size_t i = 1; i < 5; ++i) {
    if (node.input(i) == nullptr || !node.input(i)->is_constant()) Refuse(node, "its parameters are computed");
  }
  if (x_old->type.quant || OutputOf(node)->type.quant) KeptFloat(node, "it is several operators in Circle");
  const auto numbers = [&](std::size_t i) {
    Value* c = GetConstant(node.input(i), Layout::kFirst, true);
    std::vector<float> v = c->data->ToFloats();
    new_->Erase(c);
    return v;
  };
  const std::vector<float> scale = numbers(1), bias = numbers(2), mean = numbers(3), variance = numbers(4);
  const float epsilon = node.FloatAttribute("epsilon", 1e-5f);
  std::vector<float> factor(scale.size()), addend(scale.size());
  if (bias.size() != scale.size() || mean.size() != scale.size() || variance.size() != scale.size())
    Refuse(node, "its parameters differ in length");
  for (std::size_t i = 0; i < scale.size(); ++i) {
    // In f32 and in ONNX Runtime's order.
    factor[i] = scale[i] * (1.0f / std::sqrt(variance[i] + epsilon));
    addend[i] = bias[i] - mean[i] * factor[i];
  }
  const std::string name = OutputOf(node)->name();
  const Dims dims{static_cast<std::int64_t>(scale.size())};
  // Channels last: they broadcast as they are. A matrix has its channels last already.
  const Layout layout = DimsOf(x_old).size() >= 3 ? Layout::kLast : Layout::kFirst;
  Value* y = Binary("MUL", Get(x_old, layout, true), Floats(dims, factor, name + "_factor"), name);
  Finish(node, layout, Binary("ADD", y, Floats(dims, addend, name + "_addend"), name), false);
}

void CircleLowering::ArgMax(const Node& node) {
  const Value* x_old = node.input(0);
  const std::size_t rank = DimsOf(x_old).size();
  if (node.IntAttribute("select_last_index", 0) != 0) Refuse(node, "select_last_index");
  const std::int64_t axis = Axis(node, node.IntAttribute("axis", 0), rank);
  Value* x = Get(x_old, Layout::kFirst, true);
  Dims dims = ShapeOf(x);
  dims.erase(dims.begin() + axis);
  const std::string name = node.output()->name();
  Value* y = Emit(node.Is("ArgMax") ? "ARG_MAX" : "ARG_MIN", {x, Int32Scalar(axis, name + "_axis")}, name,
                  MakeType(DType::kS64, dims), {{"output_type", std::string("INT64")}});
  Finish(node, Layout::kFirst, Reshape(y, DimsOf(node.output()), name), false);
}

void CircleLowering::DepthToSpace(const Node& node) {
  const Value* x_old = node.input(0);
  const bool forward = node.Is("DepthToSpace");
  const std::int64_t block = node.IntAttribute("blocksize", 1);
  const Dims in = DimsOf(x_old), out = DimsOf(node.output());
  if (x_old->type.quant) KeptFloat(node, "it is lowered in float");
  Value* x = Get(x_old, Layout::kLast, true);
  // DCR, and SpaceToDepth, are Circle's own order in NHWC. CRD has a channel's block in neighbouring channels.
  const std::int64_t channels = out[1], area = block * block;
  if (forward && node.StringAttribute("mode", "DCR") != "DCR" && channels > 1) {
    const std::string name = node.output()->name() + "_blocks";
    const Dims dims = ShapeOf(x);
    const std::int64_t swap[] = {0, 2, 1};
    x = Reshape(x, {in[0] * in[2] * in[3], channels, area}, name);
    x = Reshape(Transpose(x, swap, name), dims, name);
  }
  Value* y = Emit(forward ? "DEPTH_TO_SPACE" : "SPACE_TO_DEPTH", {x}, node.output()->name(),
                  MakeType(x->type.dtype, Permuted(out, ToLast(4))), {{"block_size", block}});
  Finish(node, Layout::kLast, y, false);
}

// ----------------------------------------------------------------------------------------------------- the IR's own

void CircleLowering::QuantizeNode(const Node& node) {
  const Value *x = node.input(0), *y = node.output();
  const Layout layout = Prefer(x);
  const std::size_t rank = DimsOf(x).size();
  const bool last = layout == Layout::kLast && rank >= 3;
  const QuantType quant = last ? PermutedQuant(*y->type.quant, ToLast(rank)) : *y->type.quant;
  if (quant.kind == QuantType::Kind::kAffine && StorageOf(y->type) == Storage::kOther) {
    Refuse(node, "Circle's consumers have no activations of type " + std::string(Name(quant.affine.storage)));
  }
  Value* v = Get(x, layout, false);
  Type wanted = v->type;
  wanted.quant = quant;
  Set(y, layout, false, SameQuant(v->type, wanted) ? v : Quantize(v, quant, y->name()));
}

void CircleLowering::DequantizeNode(const Node& node) {
  const Value *x = node.input(0), *y = node.output();
  const Layout layout = Prefer(x);
  Set(y, layout, false, Get(x, layout, true));
}

const std::unordered_map<std::string_view, CircleLowering::Handler>& CircleLowering::Handlers() {
  using L = CircleLowering;
  static const auto* const table = new std::unordered_map<std::string_view, Handler>{
      {"Conv", &L::Conv},
      {"ConvTranspose", &L::ConvTranspose},
      {"Gemm", &L::Gemm},
      {"MatMul", &L::MatMul},
      {"Add", &L::Elementwise},
      {"Sub", &L::Elementwise},
      {"Mul", &L::Elementwise},
      {"Div", &L::DivNode},
      {"Min", &L::Variadic},
      {"Max", &L::Variadic},
      {"Sum", &L::Variadic},
      {"Mean", &L::Variadic},
      {"Pow", &L::PowNode},
      {"Equal", &L::Compare},
      {"Less", &L::Compare},
      {"LessOrEqual", &L::Compare},
      {"Greater", &L::Compare},
      {"GreaterOrEqual", &L::Compare},
      {"And", &L::Compare},
      {"Or", &L::Compare},
      {"Not", &L::Compare},
      {"Xor", &L::Compare},
      {"IsNaN", &L::Compare},
      {"Where", &L::Where},
      {"Relu", &L::Activation},
      {"Sigmoid", &L::Activation},
      {"Tanh", &L::Activation},
      {"Exp", &L::Activation},
      {"Log", &L::Activation},
      {"Sqrt", &L::Activation},
      {"Abs", &L::Activation},
      {"Neg", &L::Activation},
      {"Floor", &L::Activation},
      {"Ceil", &L::Activation},
      {"Round", &L::Activation},
      {"Sin", &L::Activation},
      {"Cos", &L::Activation},
      {"Sign", &L::Activation},
      {"Elu", &L::Activation},
      {"Clip", &L::Clip},
      {"HardSigmoid", &L::HardSigmoid},
      {"HardSwish", &L::HardSwish},
      {"LeakyRelu", &L::LeakyRelu},
      {"PRelu", &L::PRelu},
      {"Gelu", &L::Gelu},
      {"FastGelu", &L::Gelu},
      {"Swish", &L::Silu},
      {"QuickGelu", &L::Silu},
      {"Erf", &L::Erf},
      {"Reciprocal", &L::Reciprocal},
      {"Selu", &L::EluOf},
      {"Softmax", &L::Softmax},
      {"LogSoftmax", &L::Softmax},
      {"MaxPool", &L::Pool},
      {"AveragePool", &L::Pool},
      {"GlobalAveragePool", &L::GlobalPool},
      {"LRN", &L::LocalResponse},
      {"GlobalMaxPool", &L::GlobalPool},
      {"ReduceMean", &L::Reduce},
      {"ReduceSum", &L::Reduce},
      {"ReduceMax", &L::Reduce},
      {"ReduceMin", &L::Reduce},
      {"ReduceProd", &L::Reduce},
      {"ReduceL1", &L::Reduce},
      {"ReduceL2", &L::Reduce},
      {"ReduceSumSquare", &L::Reduce},
      {"ReduceLogSum", &L::Reduce},
      {"Reshape", &L::ReshapeNode},
      {"Flatten", &L::ReshapeNode},
      {"Squeeze", &L::ReshapeNode},
      {"Unsqueeze", &L::ReshapeNode},
      {"Transpose", &L::TransposeNode},
      {"Identity", &L::Identity},
      {"Dropout", &L::Identity},
      {"Concat", &L::Concat},
      {"Split", &L::Split},
      {"Slice", &L::Slice},
      {"Gather", &L::Gather},
      {"GatherND", &L::GatherNd},
      {"GatherElements", &L::GatherElements},
      {"CumSum", &L::CumSum},
      {"Expand", &L::Expand},
      {"Tile", &L::Tile},
      {"Pad", &L::Pad},
      {"Resize", &L::Resize},
      {"Upsample", &L::Resize},
      {"Cast", &L::Cast},
      {"LayerNormalization", &L::LayerNorm},
      {"InstanceNormalization", &L::InstanceNorm},
      {"BatchNormalization", &L::BatchNorm},
      {"ArgMax", &L::ArgMax},
      {"ArgMin", &L::ArgMax},
      {"DepthToSpace", &L::DepthToSpace},
      {"SpaceToDepth", &L::DepthToSpace},
      {"Quantize", &L::QuantizeNode},
      {"Requantize", &L::QuantizeNode},
      {"Dequantize", &L::DequantizeNode},
  };
  return *table;
}

}  // namespace octavo::internal
