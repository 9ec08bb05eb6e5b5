// Whether the runtime takes a rewritten graph, in time that is linear in its nodes.
#pragma once

#include <cstddef>

#include "octavo/ir/graph.h"
#include "octavo/runtime/session.h"

namespace octavo {

// The model in the runtime, with its weights where they are mapped.
Session OpenModel(const Model& model, GraphOptimization optimization, int threads);

// Loads a plain ONNX model as its users will, with all optimizations. One of more than 5,000 nodes, which takes the
// runtime more than linear time, is cut down to a node of each kind first: operator, attributes, types of inputs and
// outputs, shapes of constants; if that is refused, all of the model is loaded, without optimizations. Returns how many
// nodes the runtime has loaded. Error(kBadInput, kUnsupported) from the runtime when it refuses the model.
std::size_t CheckLoads(const Model& model);

}  // namespace octavo
