// Constants of a float type, for passes that write operators of a model's own type.
#pragma once

#include <span>
#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// Adds `values` in `dtype` (f32, or f16 or bf16 rounded to even) under a name made unique from `base`. Precondition:
// as many values as `dims` hold.
Value* AddFloatConstant(Graph& graph, const std::string& base, DType dtype, Dims dims, std::span<const float> values);

}  // namespace octavo
