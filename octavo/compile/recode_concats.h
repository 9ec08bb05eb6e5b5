// A Concat of Concats, in 8 bits, for a device whose compiler loses the conversion between the two.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  y = Concat(a, move(x)), x = Concat(b, c), all in u8, y in other codes than x; an activation or an
//          elementwise operator computes c
// After:   y = Concat(a, move(x')), x' = Concat(b, c'), x' in the codes of y, c' in those that x had
// `move`: any number of operators that only move elements. The same numbers come out: c is still rounded to the codes
// of x first. What else reads x keeps it. Returns how many inputs of Concats were changed,
// 1000 at most.
std::int64_t RecodeConcats(Model& model);

}  // namespace octavo
