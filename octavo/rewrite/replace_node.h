// A node goes, and values that are there already take its place.
#pragma once

#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// Everything that reads output i of `node` reads made[i] from now on, and the node is erased. Graph outputs keep their
// name and their type; where made[i] cannot be one (an input, a constant, a value of an enclosing graph, or one that is
// a graph output already), an Identity stands between. Precondition: as many values as outputs; null only for those
// that nothing reads.
void ReplaceNode(Node& node, std::vector<Value*> made);

}  // namespace octavo
