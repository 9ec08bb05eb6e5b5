// LSTM, GRU and RNN as operators of their own, for a device whose recurrent operators are coarse or missing.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  %y, %h, %c = LSTM %x, %w, %r, %b          x: [steps, batch, inputs]
// After:   %p = Add (MatMul %x, %w'), %b'             of all steps at once, then split
//          and for each step:  MatMul, Add, Sigmoid, Tanh, Mul ... of [batch, hidden]
// and so for GRU (both forms of its reset) and RNN. The two directions of a bidirectional one go through the steps
// together: their weights stand on the diagonal of one matrix. Where lengths of sequences are computed, no step asks
// for them: all sequences go through all steps, a matrix of ones and zeros takes the state at each one's end, and
// another turns what runs backwards, before and behind the steps. The same numbers but for the order of sums. Nodes
// stay as they are that have more than `most_steps` steps, weights that are computed, other activations than Sigmoid
// and Tanh, peepholes, a clip, coupled gates, batches first, or shapes that are not known; and all where the operator
// set is below 13. Returns how many became operators.
std::int64_t UnrollRecurrent(Model& model, std::int64_t most_steps);

}  // namespace octavo
