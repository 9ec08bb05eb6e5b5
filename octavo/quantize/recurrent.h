// Weights of recurrent operators, stored in 8 or 16 bits.
#pragma once

#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"

namespace octavo {

// Before:  %y = LSTM %x, %w, %r
// After:   %f = Cast %codes; %d = Mul %f, %scales; %y = LSTM %x, %d, %r        and so for %r
// W and R of LSTM, GRU and RNN (inputs 1 and 2, [directions, rows, columns]) as symmetric codes with a scale for each
// row of each direction, in the main graph and in subgraphs; also where operators that move numbers stand between (the
// exporters' order of gates: Slice, Concat, Unsqueeze). The runtime computes %d once, when it loads the model, and
// packs it as it packs any other; a DequantizeLinear would run at every call, which takes a call of one step twice the
// time. `storage`: s8 or s16; an override of a weight to s8 or s16 goes before it. Weights stay as they are that hold
// fewer than 4096 numbers, NaN or infinity, that something else reads too, that the configuration keeps in float, or
// whose rounding noise is more than `noise` of their power. Returns the nodes that read stored weights.
std::vector<const Node*> StoreRecurrentWeights(Model& model, const QuantizationConfig& config, DType storage,
                                               double noise, int threads);

}  // namespace octavo
