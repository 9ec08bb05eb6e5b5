// What several passes ask of a value.
#pragma once

#include "octavo/ir/graph.h"

namespace octavo {

// Numbers that are at hand and stand for themselves: a constant without a QuantType.
inline bool IsPlainConstant(const Value* value) {
  return value != nullptr && value->is_constant() && value->data.has_value() && !value->type.quant.has_value();
}

}  // namespace octavo
