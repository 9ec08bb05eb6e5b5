// From statistics to the range that a quantized tensor covers.
#pragma once

#include "octavo/calibrate/method.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/ir/dtype.h"
#include "octavo/numerics/range_search.h"

namespace octavo {

// True when the method reads ObserveSpec::histogram.
inline bool NeedsHistogram(CalibrationMethod method) { return method != CalibrationMethod::kMinMax; }

// The range for codes of type `storage`; always holds 0; symmetric: min == -max; {0, 0} when nothing finite was seen.
// `percentile` is read by kPercentile only. Errors: kInternal when the method needs a histogram that was not gathered;
// kUsage for a percentile outside (50, 100].
QuantRange ChooseRange(const TensorStatistics& statistics, CalibrationMethod method, double percentile, DType storage,
                       bool symmetric);

}  // namespace octavo
