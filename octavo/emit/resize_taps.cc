#include "octavo/emit/resize_taps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>

namespace octavo {

namespace {

struct AxisMap {
  std::int64_t n, m;  // from, to
  double scale;       // m / n, or the scale that was given
  std::string coordinates;
  double Source(std::int64_t i) const {
    const auto x = static_cast<double>(i);
    if (coordinates == "asymmetric") return x / scale;
    if (coordinates == "align_corners") {
      return m == 1 ? 0 : x * static_cast<double>(n - 1) / static_cast<double>(m - 1);
    }
    if (coordinates == "pytorch_half_pixel" && m == 1) return 0;
    return (x + 0.5) / scale - 0.5;
  }
};

// The weights of the four neighbours at floor(x) - 1 .. floor(x) + 2, `t` behind the second (Keys 1981).
std::array<double, 4> CubicWeights(double t, double a) {
  return {((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a, ((a + 2) * t - (a + 3)) * t * t + 1,
          ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
          ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a};
}

// The taps of `map`'s axis.
ResizeTaps TapsOf(const Node& node, const AxisMap& map, const std::string& mode, const std::string& nearest) {
  ResizeTaps taps;
  taps.from = map.n;
  taps.to = map.m;
  const bool cubic = mode == "cubic", whole = mode == "nearest";
  taps.places.resize(whole ? 1 : cubic ? 4 : 2);
  if (!whole) taps.weights.resize(taps.places.size());
  for (std::int64_t i = 0; i < map.m; ++i) {
    const double at = map.Source(i);
    if (whole) {
      double r = std::floor(at);
      if (nearest == "ceil") r = std::ceil(at);
      if (nearest == "round_prefer_floor") r = std::ceil(at - 0.5);
      if (nearest == "round_prefer_ceil") r = std::floor(at + 0.5);
      taps.places[0].push_back(std::clamp<std::int64_t>(static_cast<std::int64_t>(r), 0, map.n - 1));
    } else if (cubic) {
      const double floor = std::floor(at);
      std::array<double, 4> w = CubicWeights(at - floor, node.FloatAttribute("cubic_coeff_a", -0.75f));
      const bool inside_only = node.IntAttribute("exclude_outside", 0) != 0;
      double sum = 0;
      for (std::size_t tap = 0; tap < 4; ++tap) {
        const std::int64_t place = static_cast<std::int64_t>(floor) + static_cast<std::int64_t>(tap) - 1;
        if (inside_only && (place < 0 || place >= map.n)) w[tap] = 0;
        taps.places[tap].push_back(std::clamp<std::int64_t>(place, 0, map.n - 1));
        sum += w[tap];
      }
      if (!inside_only) sum = 1;
      for (std::size_t tap = 0; tap < 4; ++tap) taps.weights[tap].push_back(static_cast<float>(w[tap] / sum));
    } else {
      const double inside = std::clamp(at, 0.0, static_cast<double>(map.n - 1)), floor = std::floor(inside);
      taps.places[0].push_back(static_cast<std::int64_t>(floor));
      taps.places[1].push_back(std::min(taps.places[0].back() + 1, map.n - 1));
      taps.weights[1].push_back(static_cast<float>(inside - floor));
      taps.weights[0].push_back(1.0f - taps.weights[1].back());
    }
  }
  return taps;
}

}  // namespace

ResizePlan PlanResize(const Node& node, std::int64_t opset, const Dims& in, std::span<const std::int64_t> sizes,
                      std::span<const float> scales) {
  const auto refuse = [](const std::string& why) { return ResizePlan{{}, why}; };
  const bool old = node.op() == "Upsample" || opset < 11;
  const std::string mode = node.StringAttribute("mode", "nearest");
  const std::string coordinates =
      old ? "asymmetric" : node.StringAttribute("coordinate_transformation_mode", "half_pixel");
  const std::string nearest = old ? "floor" : node.StringAttribute("nearest_mode", "round_prefer_floor");
  if (mode != "nearest" && mode != "linear" && mode != "bilinear" && (mode != "cubic" || old)) {
    return refuse("mode '" + mode + "'");
  }
  if (coordinates != "half_pixel" && coordinates != "asymmetric" && coordinates != "align_corners" &&
      coordinates != "pytorch_half_pixel") {
    return refuse("coordinate transformation '" + coordinates + "'");
  }
  if (node.IntAttribute("antialias", 0) != 0) return refuse("antialiasing");
  if (node.StringAttribute("keep_aspect_ratio_policy", "stretch") != "stretch") return refuse("kept aspect ratios");
  const auto rank = static_cast<std::int64_t>(in.size());
  Dims axes(in.size());
  std::iota(axes.begin(), axes.end(), 0);
  if (const auto* given = node.IntsAttribute("axes")) axes = *given;
  if ((sizes.empty() ? scales.size() : sizes.size()) != axes.size()) return refuse("scales or sizes do not fit");
  ResizePlan plan;
  for (std::size_t k = 0; k < axes.size(); ++k) {
    const std::int64_t axis = axes[k] < 0 ? axes[k] + rank : axes[k];
    if (axis < 0 || axis >= rank) return refuse("its axis is outside of its input");
    const std::int64_t n = in[static_cast<std::size_t>(axis)];
    AxisMap map{n, 0, 1, coordinates};
    if (!sizes.empty()) {
      map.m = sizes[k];
      map.scale = n == 0 ? 1 : static_cast<double>(map.m) / static_cast<double>(n);
    } else {
      map.scale = scales[k];
      if (!(map.scale > 0) || map.scale * static_cast<double>(n) > 1e9) return refuse("a scale of that size");
      // In f32, as the runtime: 10 elements by 0.7 are 7.
      map.m = static_cast<std::int64_t>(std::floor(static_cast<float>(n) * static_cast<float>(map.scale)));
    }
    if (n < 1 || map.m < 1 || map.m > (std::int64_t{1} << 30)) return refuse("an empty dimension");
    if (map.m == n && map.scale == 1) continue;
    plan.axes.push_back(TapsOf(node, map, mode, nearest));
    plan.axes.back().axis = static_cast<std::size_t>(axis);
  }
  return plan;
}

}  // namespace octavo
