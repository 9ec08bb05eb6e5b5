// Pads at the end of the last axis, which the HTP fills with what lies in memory: shared by the rule for float models
// and the pass for those that are quantized.
#pragma once

#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/rewrite/rule.h"

namespace octavo {

struct RightPad {
  Node* node;
  Dims dims, pads;  // of its input; in front of all axes, then behind them
};

// A Pad in up to four dimensions with elements at the end of the last axis and none at its beginning; a refusal for
// others. (With five dimensions it is right.)
MatchOr<RightPad> ReadRightPad(Node& node);

// The pads that `conv` has once it does what `pad` in front of it does with its own zeros; empty: it cannot. What `pad`
// fills with is for the caller to look at.
std::vector<std::int64_t> PadsWith(const RightPad& pad, const Node& conv);

// Has `conv` pad by itself, with what PadsWith gave.
void GivePads(Node& conv, std::vector<std::int64_t> pads);

// Before:  %p = Pad %x, [0, 0, 0, 0, 0, 0, 1, 1]
// After:   Gather (Pad %x, [0, 0, 0, 1, 0, 0, 1, 1]), [1, 2, ...] {axis=3}, which is returned and which nothing reads
// yet
Node* AddPadAndGather(const RightPad& pad);

}  // namespace octavo
