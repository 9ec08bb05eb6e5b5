// How the range of a quantized tensor is chosen from its statistics.
#pragma once

namespace octavo {

enum class CalibrationMethod { kMinMax, kPercentile, kEntropy, kMse };

}  // namespace octavo
