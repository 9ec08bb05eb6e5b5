// Codes of weights and biases, and the noise that they make.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/spill.h"
#include "octavo/ir/graph.h"
#include "octavo/ir/type.h"
#include "octavo/numerics/affine.h"

namespace octavo {

struct QuantizedWeight {
  DType storage = DType::kU8;
  std::optional<std::int64_t> axis;  // one entry of `params` for each index; unset: one for all
  std::vector<AffineParams> params;
  SpillBuffer codes;  // a big model's codes together need not fit in memory
};

struct WeightOptions {
  DType storage = DType::kU8;
  bool per_channel = false;
  bool symmetric = false;  // u8: the codes of s8 plus 128, zero point 128
  int threads = 1;         // for one weight whose channels lie contiguously; decides speed only
};

// Quantizes a finite f32 weight. The scales cover the range of each channel (or of all), or a clipped range where that
// has a lower squared error, which needs thousands of weights with far outliers. `floor` (empty, or one a channel) are
// scales that a channel must not go below, so that its bias fits (BiasScaleFloor).
QuantizedWeight QuantizeWeight(const TensorRef& weight, std::int64_t channel_axis, const WeightOptions& options,
                               std::span<const float> floor = {});

// The parameters that QuantizeWeight chooses, which is most of its work; and the codes for parameters so chosen, with
// the same `options`.
std::vector<AffineParams> ChooseWeightParams(const TensorRef& weight, std::int64_t channel_axis,
                                             const WeightOptions& options, std::span<const float> floor = {});
QuantizedWeight QuantizeWeightWith(const TensorRef& weight, std::int64_t channel_axis, const WeightOptions& options,
                                   std::vector<AffineParams> params);

// The largest |w| of each index along the axis.
std::vector<float> LargestOfChannels(const TensorRef& weight, std::int64_t axis);

// The scale that channel c of the weight must have at least, so that |bias[c]| fits in int32 at the scale
// x_scale * w_scale: 1.0001 * 2 * |b| / (2^32 - 2) / x_scale; 0 for every channel whose bias fits any normal scale.
std::vector<float> BiasScaleFloor(std::span<const double> bias, float x_scale);

// True if bias[c] / (x_scale * scale of c) rounds to an int32 for every c.
bool BiasFits(std::span<const double> bias, float x_scale, const QuantizedWeight& weight);

struct QuantizedBias {
  std::vector<float> scales;        // x_scale * w_scale[c], computed in f32; one, or one a channel
  std::vector<std::int64_t> codes;  // round_half_even(b / scale), int32; zero point 0
};
// Precondition: BiasFits.
QuantizedBias QuantizeBias(std::span<const double> bias, float x_scale, const QuantizedWeight& weight);

// How input channels meet weights: element (m, k) of the [outputs, products] matrix that a node multiplies with.
struct ChannelMoments {
  std::vector<double> mean, mean_square;  // of the input, one a channel; one entry: the same for all
};

// Power of what leaves one output element, averaged over output channels (Nagel et al. 2019, section 4.2, with second
// moments): dW = dequantized - weight.
struct WeightNoise {
  double noise = 0;                // sum over products of dW^2 * E[x^2], less the part a bias correction takes away
  double square_sum = 0;           // sum over products of W^2: input noise of variance v gives v * square_sum
  std::vector<double> bias_shift;  // sum over products of dW * E[x], one an output channel
};
// `corrected`: bias_shift will be subtracted from the bias, so E[x]^2 does not count.
WeightNoise AnalyzeWeight(const Node& node, const TensorRef& weight, const QuantizedWeight& quantized,
                          const ChannelMoments& input, bool corrected);

}  // namespace octavo
