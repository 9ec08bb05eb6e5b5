// GatherND of whole planes as Gather.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  %y = GatherND %x, %i             %x : [4, 6, 8], %i : s64[32, 1]
// After:   %y = Gather %x, (Reshape %i)     s64[32]
// Exact: both count a negative index from the end. Of x in three dimensions and more; of fewer a device gathers numbers
// or rows. Returns how many were changed.
std::int64_t GatherPlanes(Model& model);

}  // namespace octavo
