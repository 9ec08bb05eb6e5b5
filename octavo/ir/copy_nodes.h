// A graph's nodes and constants, copied into another graph.
#pragma once

#include <unordered_map>

#include "octavo/ir/graph.h"

namespace octavo {

// Copies the constants and nodes of `from` into `into`, in front of `before` (null: at its end), in their order.
// `mapping` says what the inputs of `from` and the values that it captures become (those it lacks stay themselves), and
// receives the copy of every value. Names are kept where they are free. Constant data are shared views.
void CopyNodes(const Graph& from, Graph& into, Node* before, std::unordered_map<const Value*, Value*>& mapping);

}  // namespace octavo
