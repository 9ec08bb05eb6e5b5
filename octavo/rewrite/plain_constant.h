// What several passes ask of a value.
#pragma once

#include "octavo/ir/graph.h"

namespace octavo {

// Numbers that are at hand and stand for themselves: a constant without a QuantType.
inline bool IsPlainConstant(const Value* value) {
  return value != nullptr && value->is_constant() && value->data.has_value() && !value->type.quant.has_value();
}

// Whether a tensor of `small` dimensions, no more than `dims`, broadcasts to these and leaves them as they are.
inline bool StretchesTo(const Dims& small, const Dims& dims) {
  for (std::size_t i = 0; i < small.size(); ++i) {
    if (small[i] != 1 && small[i] != dims[dims.size() - small.size() + i]) return false;
  }
  return true;
}

}  // namespace octavo
