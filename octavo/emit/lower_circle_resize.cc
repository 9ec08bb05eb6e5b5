// How Resize and Upsample are said in Circle.
#include <algorithm>
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/emit/lower_circle.h"
#include "octavo/emit/resize_taps.h"

namespace octavo::internal {

// What RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR says; nullopt where neither computes this one.
struct CircleLowering::NativeResize {
  bool nearest = false, repeats = false, align_corners = false, half_pixel_centers = false;
};

std::optional<CircleLowering::NativeResize> CircleLowering::ReadNativeResize(const Node& node) {
  const Dims in = DimsOf(node.input(0)), out = DimsOf(node.output());
  if (in.size() != 4 || in[0] != out[0] || in[1] != out[1]) return std::nullopt;
  if (node.IntAttribute("antialias", 0) != 0) return std::nullopt;
  if (node.StringAttribute("keep_aspect_ratio_policy", "stretch") != "stretch") return std::nullopt;
  const std::string mode = node.StringAttribute("mode", "nearest");
  const std::string how =
      node.StringAttribute("coordinate_transformation_mode", node.Is("Upsample") ? "asymmetric" : "half_pixel");
  // Consumers step by the sizes; an ONNX scale that the output's size was rounded from steps otherwise.
  const std::size_t at = node.Is("Upsample") || node.inputs().size() == 2 ? 1 : 2;
  if (const Value* scales = node.input(at); scales != nullptr && DimsOf(scales) != Dims{0}) {
    const TensorRef* data = ConstantData(node, at);
    if (data == nullptr) return std::nullopt;
    const std::vector<float> factors = data->ToFloats();
    for (std::size_t d = 2; d < 4 && factors.size() == 4; ++d) {
      const auto size = static_cast<double>(out[d]);
      if (how != "align_corners" &&
          std::fabs(static_cast<double>(factors[d]) * static_cast<double>(in[d]) - size) > 1e-5 * size) {
        return std::nullopt;
      }
    }
  }
  const bool whole = out[2] % in[2] == 0 && out[3] % in[3] == 0;
  const bool centers = how == "half_pixel" || (how == "pytorch_half_pixel" && out[2] > 1 && out[3] > 1);
  NativeResize native;
  if (mode == "nearest") {
    native.nearest = true;
    const std::string round =
        node.StringAttribute("nearest_mode", node.Is("Upsample") ? "floor" : "round_prefer_floor");
    const bool floors = how == "asymmetric" && round == "floor";
    // By whole factors these all repeat each element.
    native.repeats =
        whole && (floors || ((how == "half_pixel" || how == "pytorch_half_pixel") && round.starts_with("round_")));
    if (!native.repeats && !floors) return std::nullopt;
  } else if (mode == "linear") {
    native.half_pixel_centers = centers;
    native.align_corners = how == "align_corners";
    if (!centers && !native.align_corners && how != "asymmetric") return std::nullopt;
  } else {
    return std::nullopt;
  }
  return native;
}

void CircleLowering::Resize(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims in = DimsOf(x_old), out = DimsOf(node.output());
  const std::optional<NativeResize> native = ReadNativeResize(node);
  if (!native) return ResizeByTaps(node);
  const std::string op = native->nearest ? "RESIZE_NEAREST_NEIGHBOR" : "RESIZE_BILINEAR";
  const Value* data[] = {x_old};
  const bool integer = Integer(node, op, data);
  Value* x = Get(x_old, Layout::kLast, !integer);
  const std::int64_t factor = out[2] / std::max<std::int64_t>(in[2], 1);
  if (native->repeats && factor > 1 && factor <= 16 && out[3] == factor * in[3] &&
      StorageOf(x->type) != Storage::kS16 && StorageOf(x->type) != Storage::kMx) {
    return Finish(node, Layout::kLast, RepeatPixels(x, factor, node.output()->name()), integer);
  }
  const std::int64_t size[] = {out[2], out[3]};
  Type type = OutType(node, Layout::kLast, integer);
  type.quant = x->type.quant;
  Value* y = Emit(op, {x, Int32s(size, node.output()->name() + "_size")}, node.output()->name(), type,
                  {{"align_corners", std::int64_t{native->align_corners}},
                   {"half_pixel_centers", std::int64_t{native->half_pixel_centers}}});
  Finish(node, Layout::kLast, y, integer);
}

// Axis by axis: GATHER the elements of each tap, times their weights, and their sum.
void CircleLowering::ResizeByTaps(const Node& node) {
  const Value* x_old = node.input(0);
  const Dims in = DimsOf(x_old);
  const std::size_t rank = in.size();
  const bool old = node.Is("Upsample") || model_.OpsetVersion() < 11;
  std::vector<std::int64_t> sizes;
  std::vector<float> scales;
  if (!old && node.input(3) != nullptr && DimsOf(node.input(3)) != Dims{0}) {
    sizes = RequireInts(node, 3, "the list of sizes");
  } else if (const TensorRef* data = ConstantData(node, old ? 1 : 2)) {
    scales = data->ToFloats();
  } else {
    Refuse(node, "its scales are computed");
  }
  const ResizePlan plan = PlanResize(node, model_.OpsetVersion(), in, sizes, scales);
  if (!plan.refused.empty()) Refuse(node, plan.refused);
  const bool nearest =
      std::all_of(plan.axes.begin(), plan.axes.end(), [](const ResizeTaps& t) { return t.weights.empty(); });
  if (!nearest && !IsFloat(node.output()->type.dtype)) Refuse(node, "interpolation of integers");
  const bool codes = nearest && x_old->type.quant.has_value() && PerTensorType(x_old->type);
  if (x_old->type.quant && !codes) KeptFloat(node, "it is several operators in Circle");
  const Layout layout = Prefer(x_old);
  Value* x = Get(x_old, layout, !codes);
  const std::string name = node.output()->name();
  for (const ResizeTaps& taps : plan.axes) {
    const std::int64_t at = MapAxis(static_cast<std::int64_t>(taps.axis), layout, rank);
    Dims shape = ShapeOf(x), along(rank, 1);
    shape[static_cast<std::size_t>(at)] = along[static_cast<std::size_t>(at)] = taps.to;
    Value* sum = nullptr;
    for (std::size_t t = 0; t < taps.places.size(); ++t) {
      Value* part =
          Emit("GATHER", {x, Int32s(taps.places[t], name + "_places")}, name + "_taps",
               MakeType(x->type.dtype, shape, x->type.quant), {{"axis", at}, {"batch_dims", std::int64_t{0}}});
      if (!taps.weights.empty()) part = Binary("MUL", part, Floats(along, taps.weights[t], name + "_weights"), name);
      sum = sum == nullptr ? part : Binary("ADD", sum, part, name);
    }
    x = sum;
  }
  if (ShapeOf(x) != *StaticShape(OutType(node, layout, false))) Refuse(node, "its sizes do not make its output's");
  MoveLike(node, x_old, layout, codes, x);
}

}  // namespace octavo::internal
