#include "octavo/calibrate/ranges.h"

#include <algorithm>

#include "octavo/base/error.h"

namespace octavo {

QuantRange ChooseRange(const TensorStatistics& statistics, RangeMethod method, double percentile, DType storage,
                       bool symmetric) {
  if (method == RangeMethod::kMinMax) {
    const MinMax& range = statistics.range;
    if (!range.HasRange()) return {};
    const float low = std::min(range.min, 0.0f), high = std::max(range.max, 0.0f);
    if (!symmetric) return {low, high};
    const float bound = std::max(-low, high);
    return {-bound, bound};
  }
  if (!statistics.histogram) ThrowInternal("a range was asked for that needs a histogram", "");
  const RangeHistogram& h = *statistics.histogram;
  switch (method) {
    case RangeMethod::kPercentile:
      return PercentileRange(h, percentile, symmetric);
    case RangeMethod::kEntropy:
      return EntropyRange(h, storage, symmetric);
    case RangeMethod::kMse:
      return MseRange(h, storage, symmetric);
    case RangeMethod::kMinMax:
      break;
  }
  return MinMaxRange(h, symmetric);
}

}  // namespace octavo
