// A session for what passes ask of the runtime.
#pragma once

#include "octavo/ir/graph.h"
#include "octavo/runtime/session.h"

namespace octavo {

// Of plain ONNX, as it is: nothing is folded (unless `optimization` says so) or packed while it loads, weights stay where
// they are mapped, one thread. Errors: kBadInput and kUnsupported where the runtime refuses the model.
Session PlainSession(const Model& model, GraphOptimization optimization = GraphOptimization::kNone);

}  // namespace octavo
