// Choosing a quantization range from a histogram, and weight parameters from the weights themselves.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/ir/dtype.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/reduce.h"

namespace octavo {

// Feed it to ChooseParams. Always holds 0 and never reaches beyond the exact range of the data extended to 0;
// symmetric: min == -max. {0, 0} for a histogram without finite values. A histogram bin is taken as uniformly filled,
// the outermost bins only up to the exact minimum and maximum.
struct QuantRange {
  float min = 0, max = 0;
  bool operator==(const QuantRange&) const = default;
};

QuantRange MinMaxRange(const RangeHistogram& h, bool symmetric);

// Keeps the central `percentile` percent of the values: cuts (100 - percentile) / 2 percent at either end (asymmetric)
// or (100 - percentile) percent of the largest |x| (symmetric); linear interpolation inside a bin. 100 is MinMaxRange.
// Throws Error(kUsage) unless 50 < percentile <= 100.
QuantRange PercentileRange(const RangeHistogram& h, double percentile, bool symmetric);

// Least Kullback-Leibler divergence between the clipped distribution and its quantized form; after S. Migacz, "8-bit
// Inference with TensorRT" (GTC 2017):
//  - P: the bins inside the candidate range, the mass clipped at an end added to the outermost occupied bin of that
//  end;
//  - Q: the same bins before clipped mass is added, divided into 2^bits groups (2^(bits-1) for |x|, symmetric), the
//  mass of a group spread evenly
//    over its occupied bins; both normalized; KL = sum P log(P / Q).
// Differences, for asymmetric ranges and outputs of ReLU: zeros take no part (0 is a code of its own, its error is 0,
// and its spike would swamp the rest); the two ends are searched in turn, four scans, starting from the full range.
// Where the full range has no more bins than codes (16-bit types) the divergence says nothing: MinMaxRange.
QuantRange EntropyRange(const RangeHistogram& h, DType storage, bool symmetric);

// Least expected squared error E[(x - dequantize(quantize(x)))^2] with the parameters that ChooseParams gives for the
// range: the exact integral over every bin, of the rounding error inside the representable range and of the clipping
// error outside. Never worse than MinMaxRange by that measure. Both ends are searched in turn on a grid of 1/64 of the
// range, then of 1/512 around the best (the "MSE" observer of the field; error model: Banner et al., "Post training
// 4-bit quantization", NeurIPS 2019, equation 3, with the data's histogram instead of a Laplace density).
QuantRange MseRange(const RangeHistogram& h, DType storage, bool symmetric);
// The objective of MseRange: expected squared error for one value.
double ExpectedSquaredError(const RangeHistogram& h, AffineParams params, DType storage);

// Parameters for one channel of weights with the least squared error on the weights themselves among those of clipped
// ranges: 1/64 grid from the full range down to a quarter of it, refined to 1/512; both ends in turn when asymmetric.
// Never worse than ChooseParams(min, max) in QuantizationSquaredError. Precondition: w finite. Empty: {1, 0}.
AffineParams MseWeightParams(std::span<const float> w, DType storage, bool symmetric);
// One entry for each channel of w viewed as [outer, channels, inner].
std::vector<AffineParams> MseWeightParams(std::span<const float> w, std::int64_t outer, std::int64_t channels,
                                          std::int64_t inner, DType storage, bool symmetric);

}  // namespace octavo
