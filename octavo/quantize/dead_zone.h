// The part of a value's range that its users can tell apart.
#pragma once

#include "octavo/ir/graph.h"

namespace octavo {

struct ValueRange {
  float min = 0, max = 0;
};

// Where every user of `value` is an elementwise chain of it and of scalar constants (x * clip(x + 3, 0, 6) / 6, x *
// sigmoid(x), ...), the chain is evaluated over the range; ends on which all its results are constant (to 1/1024 of
// what they span) are cut off: no user sees the difference, and the codes are spent on the rest. Returns `range`
// unchanged when some user is not such a chain.
ValueRange CutDeadZone(const Value& value, ValueRange range);

}  // namespace octavo
