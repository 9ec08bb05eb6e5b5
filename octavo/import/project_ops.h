// Operators that quantize, in a model that was just read: the project's own (domain `octavo`, INTERFACE.md) and Q/DQ.
#pragma once

#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// Checks every node of the domain `octavo`, in subgraphs too: a known operator of version 1, its inputs and output, the
// kind and the value of every attribute, and of inputs whose type or data are known (graph inputs, constants, and what
// comes out of the project's own operators) element type, axis, lengths, scales (finite, above 0) and zero points
// (within quant_min and quant_max). What a file declares of other values is not believed here; the kernels check it.
// `file` stands in messages. Local functions of the model may live in the domain as well.
// Of QuantizeLinear and DequantizeLinear (without blocks) constant scales, the number of zero points, and the axis and
// its length where the type is known: scales finite and above 0 (of a DequantizeLinear 0 as well).
// Errors: kBadInput for what no reader could take, kUnsupported for an unknown operator, another version of the domain
// and element types that the operators do not have.
void CheckProjectOps(const Model& model, const std::string& file);

}  // namespace octavo
