// Which tensors of a model that was quantized as a whole are worth their 8 bits, measured at its outputs.
#pragma once

#include <functional>
#include <unordered_set>

#include "octavo/import/data.h"
#include "octavo/ir/graph.h"

namespace octavo {

struct CircleSelection {
  // Computed values that should be float: none, or whole groups of values that share their codes.
  std::unordered_set<const Value*> floats;
  std::size_t tensors = 0;        // groups of values with 8 bits that were looked at
  std::size_t float_tensors = 0;  // of them, those that should be float
  double before_db = 0;           // measured SQNR at the float outputs, everything in integers
  double after_db = 0;            // with `floats` in float
};

// `model` has QuantTypes on its values (Quantize); `reference` is the float model that it was made from, with the same
// inputs and outputs. `to_float` does to a clone what the caller will do to the model: it makes the values float for
// which its argument says so. Values are measured in groups of neighbours, the noisiest of which are split, within
// 32 measurements on the four samples (of 16) that make most noise; those with most noise become float until what is
// left is at most `target` (noise over signal, averaged over the outputs), or nothing helps. Deterministic. Errors:
// what the runtime refuses (kBadInput), what the data refuse.
CircleSelection SelectCircleFloats(
    const Model& model, const Model& reference, const DataSource& data, std::size_t samples, double target, int threads,
    const std::function<void(Model&, const std::unordered_set<const Value*>&)>& to_float);

}  // namespace octavo
