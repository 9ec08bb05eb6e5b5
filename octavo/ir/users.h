// Who reads a value.
#pragma once

#include "octavo/ir/graph.h"

namespace octavo {

// The node that alone reads `value`, of the same graph; null where there are more, or the value leaves the graph.
inline Node* SoleUser(const Value* value) {
  if (value == nullptr || value->is_graph_output() || value->uses().size() != 1) return nullptr;
  Node* node = value->uses()[0].node;
  return node->graph() == value->graph() ? node : nullptr;
}

}  // namespace octavo
