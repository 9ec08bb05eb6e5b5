// Gathers that a device moves wrongly, as others.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  %y = GatherND %x, %i             %x : [4, 6, 8], %i : s64[32, 1]
// After:   %y = Gather %x, (Reshape %i)     s64[32]
// Exact: both count a negative index from the end. Of x in three dimensions and more; of fewer a device gathers numbers
// or rows. Returns how many were changed.
std::int64_t GatherPlanes(Model& model);

// Before:  %y = Gather %x, %i {axis=1}             %x : codes of u8 in [4, 100, 16], %i : s64[64]
// After:   %y = Transpose (Q/DQ (Gather (Q/DQ (Transpose %x)), %i {axis=2}))       each Q/DQ in the codes of x
// Exact. Of rows (what lies behind the axis) of 8, 16 and 32 bytes of codes, by 32 indices and more, where not all is
// constant in 8 bits. Returns how many were changed.
std::int64_t GatherColumns(Model& model);

}  // namespace octavo
