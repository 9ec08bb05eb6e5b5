// Quantizing for an NPU: what goes into a logarithm. Codes have one step for big and small numbers; a logarithm shows
// the small ones as big as the others.
#pragma once

#include <vector>

#include "octavo/quantize/whole_graph_plan.h"
#include "octavo/quantize/whole_graph_search.h"

namespace octavo {

// The taken nodes whose results go into a Log and may become small there: sums, products, powers and movement of what
// is computed, back to the layer with constant weights that makes it, that layer included; through it where it reads
// powers itself (a spectrum through a filter bank). In execution order. Empty where they are more than 256.
std::vector<const Node*> LogInputs(const Model& model, const WholeGraphPlan& plan);

// Which of these stay in float, with the reason: all of them where rounding what they make to the bits of weights or
// activations, whichever are fewer, costs more than the target of whole_graph_widths.h at the outputs (measured), none
// where it costs less, where the types of some are the user's, or where no sample is kept.
KeptNodes KeptForLogs(const Model& model, const WholeGraphPlan& plan, WholeGraphTypes& types,
                      const WidthSearchInputs& inputs);

}  // namespace octavo
