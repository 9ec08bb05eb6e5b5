// Constants that passes add.
#pragma once

#include <span>
#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// Adds `values` in `dtype` (f32, or f16 or bf16 rounded to even) under a name made unique from `base`. Precondition:
// as many values as `dims` hold.
Value* AddFloatConstant(Graph& graph, const std::string& base, DType dtype, Dims dims, std::span<const float> values);

// Adds a vector of 64-bit integers, as axes and sizes are given, under a name made unique from `base`.
Value* AddInts(Graph& graph, const std::string& base, const Dims& values);

}  // namespace octavo
