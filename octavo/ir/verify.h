// The verifier: every invariant of graph.h, checked after import, in tests, and between passes in debug builds.
#pragma once

#include <string>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// Empty when the model is well-formed; else one sentence a violation, naming node and value. Checks: use lists match
// inputs; producers match outputs; execution order (no use before definition, no cycle); names unique and resolvable;
// constants have data whose byte size fits dtype and dims; QuantTypes are well-formed (scale and zero-point shapes fit
// the axis and block, scales positive and finite, zero points in the storage range); IR operators have the right types.
std::vector<std::string> Verify(const Model& model);
// Throws Error(kInternal) with the first violation; `when` names the pass.
void VerifyOrThrow(const Model& model, const std::string& when);

}  // namespace octavo
