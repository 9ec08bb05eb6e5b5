// Equality of models, for tests and for the textual form's round trip.
#pragma once

#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// "" when the models are equal in everything that the IR holds (names, order of nodes and constants, types, data by
// content, attributes, extras; floats by their bits), else one sentence about the first difference. `Model::source`
// does not count.
std::string Difference(const Model& a, const Model& b);

}  // namespace octavo
