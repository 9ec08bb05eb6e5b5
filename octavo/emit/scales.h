// Scales of weights in blocks, as a file holds them.
#pragma once

#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// `scales` (f32) as a value of `graph`: a constant, or less for many of them. Where the scales of each line along
// `axis` are products of one step and integers of at most 15, the largest of them 15: u4 integers times the steps, cast
// and multiplied at the front of the graph, which the runtime computes when it loads the model. Where each is an f16
// number: an f16 constant behind a Cast. Both give the same bits.
Value* AddScales(Graph& graph, const std::string& name, const TensorRef& scales, std::int64_t axis);

// Takes back what AddScales made, when nothing uses it.
void EraseScales(Value* scales);

}  // namespace octavo
