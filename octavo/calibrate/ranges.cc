#include "octavo/calibrate/ranges.h"

#include <algorithm>

#include "octavo/base/error.h"

namespace octavo {

QuantRange ChooseRange(const TensorStatistics& statistics, CalibrationMethod method, double percentile, DType storage,
                       bool symmetric) {
  if (method == CalibrationMethod::kMinMax) {
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
    case CalibrationMethod::kPercentile:
      return PercentileRange(h, percentile, symmetric);
    case CalibrationMethod::kEntropy:
      return EntropyRange(h, storage, symmetric);
    case CalibrationMethod::kMse:
      return MseRange(h, storage, symmetric);
    case CalibrationMethod::kMinMax:
      break;
  }
  return MinMaxRange(h, symmetric);
}

}  // namespace octavo
