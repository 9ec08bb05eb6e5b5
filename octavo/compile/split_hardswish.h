// HardSwish as two operators.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  %y = Q_y (HardSwish %x)       %x = DQ (Q (Conv ...)), whose codes reach to -3; the codes of y, of the same
//                                        type, have a range below `range`
// After:   %y = Q_y (Mul %x, (DQ_1 (Q_1 (HardSigmoid %x))))       alpha = 1/6, beta = 1/2
// The same function with one more rounding. Only behind operators of the table's weighted ones (Conv, Gemm), with which
// devices fuse a HardSwish, and where nothing else reads x. Returns how many were changed.
std::int64_t SplitHardSwish(Model& model, double range);

}  // namespace octavo
