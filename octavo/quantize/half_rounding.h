// Which of the two nearest 16-bit floats a weight becomes, from what the calibration saw of the layer's input.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "octavo/calibrate/calibrate.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/ir/graph.h"

namespace octavo {

// One output of a layer: y = sum of w[k] * x[k] + b, where x[k] has mean[k] and variance[k].
//
// Rounded to nearest, the errors e[k] = half[k] - w[k] shift y by S = sum of e[k] * mean[k] + shift, the same at every
// position, and add noise of the power N = sum of e[k]^2 * variance[k]. Layers whose inputs have large means that their
// biases cancel lose 20 dB to S. Weights move to their other neighbour, the cheapest first, while S^2 + N falls: what
// is left of S is about one step of one weight. `shift` is what else is wrong with y (a rounded bias). Returns S^2 + N
// before and after. No half becomes an infinity, an exact one stays.
struct RoundingGain {
  double before = 0, after = 0;
};
RoundingGain RoundTowardsMean(std::span<const float> w, std::span<const double> mean, std::span<const double> variance,
                              double shift, std::span<std::uint16_t> halves);

// The layers of a model whose weights can be rounded so: Conv, Gemm and MatMul with a constant f32 weight of their own
// (one use) behind a computed input. (A ConvTranspose adds other weights at each position.)
class HalfRounder {
 public:
  // What must be observed of `prepared`: the layers' inputs, along the axis of their channels. An input that is read
  // along two axes is left out.
  static std::vector<ObserveSpec> Specs(const Model& prepared);

  // Layers are known by the names of their weights: copies of `prepared` may be converted too.
  HalfRounder(const Model& prepared, const Statistics& statistics, int threads);

  // `halves` are `weight`'s values rounded to nearest (ConvertToHalf's RoundHalves). Nothing happens to a constant that
  // is no such weight, or of whose input too little is known. `float_bias`: the layer adds its bias in f32.
  void Round(const Value& weight, std::span<const float> values, std::span<std::uint16_t> halves,
             bool float_bias = false) const;

 private:
  struct Layer {
    std::int64_t outputs = 0, inputs = 0, kernel = 1;  // of one group
    std::int64_t groups = 1;
    bool outputs_last = false;           // [inputs, outputs] instead of [outputs, inputs, kernel]
    std::vector<double> bias;            // what rounding to f16 adds to each output, over `scale`
    std::vector<double> mean, variance;  // of the input's channels, all groups
  };
  std::unordered_map<std::string, Layer> layers_;  // by the weight's name
  int threads_;
};

}  // namespace octavo
