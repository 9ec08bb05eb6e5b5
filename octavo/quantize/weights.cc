#include "octavo/quantize/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "octavo/base/thread_pool.h"
#include "octavo/numerics/range_search.h"
#include "octavo/ops/op_table.h"

namespace octavo {
namespace {

struct View {
  std::int64_t outer = 1, channels = 1, inner = 1;
};

View ViewOf(const Dims& dims, std::optional<std::int64_t> axis) {
  View v;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    if (!axis || at > *axis) {
      v.inner *= dims[i];
    } else if (at < *axis) {
      v.outer *= dims[i];
    } else {
      v.channels = dims[i];
    }
  }
  return v;
}

// Below this many weights a clipped range cannot win in 8 bits: clipping the largest weight by a share d costs (d
// max)^2, and saves at most n * 2d * max^2 / (12 * 127^2) of rounding noise.
constexpr std::int64_t kFewWeights = 3072;
// And not without outliers: 8 bits resolve a bell of 8 sigma well enough.
constexpr double kFarOutlier = 8;

// A search over ranges needs no more weights than this: it looks at every k-th.
constexpr std::size_t kSearched = std::size_t{1} << 16;

// The clipped range of least squared error, or the full one where that is better on all of the weights.
AffineParams ClippedParams(std::span<const float> w, float min, float max, DType storage, bool symmetric) {
  if (w.size() <= 2 * kSearched) return MseWeightParams(w, storage, symmetric);
  const std::size_t stride = w.size() / kSearched | 1;  // odd: no column of a matrix with an even number is left out
  std::vector<float> some;
  some.reserve(kSearched + 2);
  for (std::size_t i = 0; i < w.size(); i += stride) some.push_back(w[i]);
  some.push_back(min);
  some.push_back(max);
  const AffineParams clipped = MseWeightParams(some, storage, symmetric);
  const AffineParams full = ChooseParams(min, max, storage, symmetric);
  const double error = QuantizationSquaredError(w, clipped, storage);
  return QuantizationSquaredError(w, full, storage, error) > error ? clipped : full;
}

AffineParams Params(std::span<const float> w, float min, float max, DType storage, bool symmetric) {
  if (BitWidth(storage) <= 8 && static_cast<std::int64_t>(w.size()) >= kFewWeights) {
    const double rms = std::sqrt(LaneSumSquares(w) / static_cast<double>(w.size()));
    if (std::max(-min, max) > kFarOutlier * rms) return ClippedParams(w, min, max, storage, symmetric);
  }
  return ChooseParams(min, max, storage, symmetric);
}

}  // namespace

namespace {

// Symmetric u8 is s8 moved by 128, code for code: the parameters are chosen as s8's.
struct CodeType {
  explicit CodeType(const WeightOptions& options) : type(options.storage) {
    if (!options.symmetric) return;
    if (options.storage == DType::kU8) type = DType::kS8, shift = 128;
    if (options.storage == DType::kU16) type = DType::kS16, shift = 32768;
  }
  DType type;
  std::int32_t shift = 0;
};

std::optional<std::int64_t> AxisOf(std::int64_t channel_axis, const WeightOptions& options) {
  return options.per_channel ? std::optional(channel_axis) : std::nullopt;
}

// fn(first, count) for runs of channels: on several threads where each channel's values lie together.
void ForChannels(const View& view, const WeightOptions& options, std::int64_t run,
                 const std::function<void(std::int64_t, std::int64_t)>& fn) {
  const bool parallel = options.threads > 1 && view.outer == 1 && view.channels > run;
  if (!parallel) run = view.channels;
  const std::int64_t runs = run > 0 ? (view.channels + run - 1) / run : 0;
  ParallelFor(static_cast<std::size_t>(runs), options.threads, [&](std::size_t i) {
    const std::int64_t first = static_cast<std::int64_t>(i) * run;
    fn(first, std::min(run, view.channels - first));
  });
}

constexpr std::int64_t kChannelRun = 1024;

}  // namespace

std::vector<AffineParams> ChooseWeightParams(const TensorRef& weight, std::int64_t channel_axis,
                                             const WeightOptions& options, std::span<const float> floor) {
  const std::optional<std::int64_t> axis = AxisOf(channel_axis, options);
  const View view = ViewOf(weight.dims, axis);
  std::vector<float> converted;
  const std::span<const float> w = FloatView(weight, converted);
  const CodeType code(options);
  const DType choose = code.type;
  std::vector<AffineParams> params(static_cast<std::size_t>(view.channels));
  const auto choose_one = [&](std::int64_t c, std::span<const float> values) {
    MinMax range;
    range.Add(values);
    AffineParams p =
        range.HasRange() ? Params(values, range.min, range.max, choose, options.symmetric) : AffineParams{};
    const float lowest = floor.empty() ? 0.0f
                         : axis        ? floor[static_cast<std::size_t>(c)]
                                       : *std::max_element(floor.begin(), floor.end());
    if (p.scale < lowest) {
      // The range grows with the scale; the zero point moves to where 0 then lies.
      const float grow = lowest / p.scale;
      p = ChooseParams(range.HasRange() ? std::min(range.min, 0.0f) * grow : 0.0f,
                       range.HasRange() ? std::max(range.max, 0.0f) * grow : 0.0f, choose, options.symmetric);
      p.scale = std::max(p.scale, lowest);
    }
    p.zero_point += code.shift;
    params[static_cast<std::size_t>(c)] = p;
  };
  const auto inner = static_cast<std::size_t>(view.inner), outer = static_cast<std::size_t>(view.outer);
  if (view.outer == 1) {
    ForChannels(view, options, kChannelRun, [&](std::int64_t first, std::int64_t count) {
      for (std::int64_t c = first; c < first + count; ++c) {
        choose_one(c, w.subspan(static_cast<std::size_t>(c) * inner, inner));
      }
    });
    return params;
  }
  // Channels that do not lie contiguously are gathered some at a time, so that the weight is read in its own order.
  constexpr std::int64_t kTile = 32;
  std::vector<float> tile;
  for (std::int64_t c = 0; c < view.channels; ++c) {
    const std::int64_t in_tile = c % kTile;
    if (in_tile == 0) {
      const std::int64_t count = std::min(kTile, view.channels - c);
      tile.resize(static_cast<std::size_t>(count) * outer * inner);
      for (std::size_t o = 0; o < outer; ++o) {
        const float* from =
            w.data() + (o * static_cast<std::size_t>(view.channels) + static_cast<std::size_t>(c)) * inner;
        for (std::size_t k = 0; k < static_cast<std::size_t>(count); ++k) {
          std::copy_n(from + k * inner, inner, tile.data() + (k * outer + o) * inner);
        }
      }
    }
    choose_one(c,
               std::span<const float>(tile).subspan(static_cast<std::size_t>(in_tile) * outer * inner, outer * inner));
  }
  return params;
}

QuantizedWeight QuantizeWeightWith(const TensorRef& weight, std::int64_t channel_axis, const WeightOptions& options,
                                   std::vector<AffineParams> params) {
  QuantizedWeight q;
  q.storage = options.storage;
  q.axis = AxisOf(channel_axis, options);
  q.params = std::move(params);
  const View view = ViewOf(weight.dims, q.axis);
  std::vector<float> converted;
  const std::span<const float> w = FloatView(weight, converted);
  const CodeType code(options);
  std::vector<AffineParams> unshifted = q.params;
  for (AffineParams& p : unshifted) p.zero_point -= code.shift;
  q.codes = SpillBuffer(w.size() * CodeBytes(q.storage));
  ForChannels(view, options, kChannelRun, [&](std::int64_t first, std::int64_t count) {
    const auto run = [&](std::int64_t channels) {
      return static_cast<std::size_t>(view.outer * channels) * static_cast<std::size_t>(view.inner);
    };
    const std::span<const AffineParams> own = std::span<const AffineParams>(unshifted).subspan(
        static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    QuantizeTensor(w.subspan(run(first), run(count)), view.outer, count, view.inner, own, code.type,
                   q.codes.data() + run(first) * CodeBytes(q.storage));
  });
  if (code.shift != 0) {
    const std::size_t bytes = CodeBytes(q.storage);
    for (std::size_t i = bytes - 1; i < q.codes.size(); i += bytes) q.codes.data()[i] ^= std::byte{0x80};
  }
  q.codes.Release();
  return q;
}

QuantizedWeight QuantizeWeight(const TensorRef& weight, std::int64_t channel_axis, const WeightOptions& options,
                               std::span<const float> floor) {
  return QuantizeWeightWith(weight, channel_axis, options, ChooseWeightParams(weight, channel_axis, options, floor));
}

std::vector<float> LargestOfChannels(const TensorRef& weight, std::int64_t axis) {
  std::vector<float> converted;
  const float* at = FloatView(weight, converted).data();
  const View view = ViewOf(weight.dims, axis);
  std::vector<float> largest(static_cast<std::size_t>(view.channels));
  for (std::int64_t o = 0; o < view.outer; ++o) {
    if (view.inner == 1) {  // a vector of channels at a time
      for (std::size_t c = 0; c < largest.size(); ++c) largest[c] = std::max(largest[c], std::fabs(at[c]));
      at += largest.size();
      continue;
    }
    for (float& most : largest) {
      for (std::int64_t k = 0; k < view.inner; ++k) most = std::max(most, std::fabs(at[k]));
      at += view.inner;
    }
  }
  return largest;
}

std::vector<float> BiasScaleFloor(std::span<const double> bias, float x_scale) {
  std::vector<float> floor(bias.size());
  for (std::size_t c = 0; c < bias.size(); ++c) {
    const double f = 1.0001 * 2 * std::fabs(bias[c]) / (4294967296.0 - 2) / x_scale;
    floor[c] = f < std::numeric_limits<float>::min() ? 0.0f : static_cast<float>(f);
  }
  return floor;
}

bool BiasFits(std::span<const double> bias, float x_scale, const QuantizedWeight& weight) {
  for (std::size_t c = 0; c < bias.size(); ++c) {
    const float scale = x_scale * weight.params[weight.params.size() == 1 ? 0 : c].scale;
    if (!(scale >= std::numeric_limits<float>::min())) {
      return false;  // a subnormal scale has lost its digits
    }
    if (std::fabs(std::nearbyint(bias[c] / scale)) > 2147483647.0) return false;
  }
  return true;
}

QuantizedBias QuantizeBias(std::span<const double> bias, float x_scale, const QuantizedWeight& weight) {
  QuantizedBias q;
  for (const AffineParams& p : weight.params) q.scales.push_back(x_scale * p.scale);
  for (std::size_t c = 0; c < bias.size(); ++c) {
    q.codes.push_back(static_cast<std::int64_t>(std::nearbyint(bias[c] / q.scales[q.scales.size() == 1 ? 0 : c])));
  }
  return q;
}

WeightNoise AnalyzeWeight(const Node& node, const TensorRef& weight, const QuantizedWeight& quantized,
                          const ChannelMoments& input, bool corrected) {
  std::vector<float> converted;
  const std::span<const float> w = FloatView(weight, converted);
  // dW of one index of the first dimension at a time.
  const auto slabs = static_cast<std::size_t>(weight.dims[0]);
  const std::size_t slab = slabs == 0 ? 0 : w.size() / slabs;
  const View by_params =
      ViewOf(Dims(weight.dims.begin() + 1, weight.dims.end()),
             quantized.axis && *quantized.axis > 0 ? std::optional(*quantized.axis - 1) : std::nullopt);
  std::vector<float> d(slab);
  const auto error_of = [&](std::size_t i) {
    const bool own = quantized.axis && *quantized.axis == 0;
    const std::span<const AffineParams> params =
        own ? std::span(quantized.params).subspan(i, 1) : std::span(quantized.params);
    DequantizeTensor(quantized.codes.data() + i * slab * CodeBytes(quantized.storage), by_params.outer,
                     by_params.channels, by_params.inner, params, quantized.storage, d);
    for (std::size_t k = 0; k < slab; ++k) d[k] -= w[i * slab + k];
  };

  // [outputs, inputs, kernel] with strides; a Conv's inputs count from the group's first channel.
  const Dims& dims = weight.dims;
  const bool conv = node.Is("Conv");
  const bool last = !conv && *ResolveAxis(FindOp(node).channel_axis, node, dims.size()) == 1;  // [K, N]
  const std::int64_t outputs = conv ? dims[0] : last ? dims[1] : dims[0];
  const std::int64_t inputs = conv ? dims[1] : last ? dims[0] : dims[1];
  const std::int64_t kernel = conv ? ViewOf(dims, 1).inner : 1;
  const std::int64_t group_outputs =
      conv ? std::max<std::int64_t>(1, outputs / node.IntAttribute("group", 1)) : outputs;
  const auto known = static_cast<std::int64_t>(input.mean.size());

  WeightNoise result;
  result.bias_shift.assign(static_cast<std::size_t>(outputs), 0.0);
  std::vector<double> noise(static_cast<std::size_t>(outputs)), squares(static_cast<std::size_t>(outputs));
  // Weight `at`, whose error is d[of].
  const auto add = [&](std::int64_t m, std::int64_t channel, std::size_t at, std::size_t of) {
    const auto c = static_cast<std::size_t>(channel < known ? channel : 0);
    const double mean = known == 0 ? 0 : input.mean[c];
    const double second = known == 0 ? 1 : input.mean_square[c] - (corrected ? mean * mean : 0);
    const auto out = static_cast<std::size_t>(m);
    noise[out] += static_cast<double>(d[of]) * d[of] * std::max(second, 0.0);
    squares[out] += static_cast<double>(w[at]) * w[at];
    result.bias_shift[out] += d[of] * mean;
  };
  if (last) {
    for (std::int64_t k = 0; k < inputs; ++k) {
      error_of(static_cast<std::size_t>(k));
      for (std::int64_t m = 0; m < outputs; ++m) {
        add(m, k, static_cast<std::size_t>(k * outputs + m), static_cast<std::size_t>(m));
      }
    }
  } else {
    for (std::int64_t m = 0; m < outputs; ++m) {
      error_of(static_cast<std::size_t>(m));
      const std::int64_t first = conv ? m / group_outputs * inputs : 0;
      for (std::int64_t k = 0; k < inputs; ++k) {
        for (std::int64_t s = 0; s < kernel; ++s) {
          const auto of = static_cast<std::size_t>(k * kernel + s);
          add(m, first + k, static_cast<std::size_t>(m) * slab + of, of);
        }
      }
    }
  }
  for (std::int64_t m = 0; m < outputs; ++m) {
    result.noise += noise[static_cast<std::size_t>(m)] / static_cast<double>(outputs);
    result.square_sum += squares[static_cast<std::size_t>(m)] / static_cast<double>(outputs);
  }
  return result;
}

}  // namespace octavo
