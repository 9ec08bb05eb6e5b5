// Scales of weights in blocks, as a file holds them.
#pragma once

#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// `scales` (f32) as a value of `graph`: a constant; or, where they are many and each is an f16 number, an f16 constant
// of half the size behind a Cast to f32 at the front of the graph, which the runtime computes when it loads the model.
Value* AddScales(Graph& graph, const std::string& name, const TensorRef& scales);

// Takes back what AddScales made, when nothing uses it.
void EraseScales(Value* scales);

}  // namespace octavo
