// Products of attention for a device that rounds the codes of a Softmax down.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Before:  %y = MatMul %p, %v                              p: u16 codes of a Softmax over its last axis, v: of 16 bits
// After:   %m = ReduceMean %v over its rows
//          %c = Sub %v, %m                                 s16, in steps of 2 of v's: no difference is out of range
//          %y = Add (MatMul %p, %c), %m + a step of v      the product in u16, in the same steps as c
// each but the last in codes of its own, m in those of v (which are u16 then). A row of p adds up to 1, so this is the
// same in real numbers; but where the device rounds p down (up to 257 numbers a row each half a step too low: the whole
// row 0.2 % too low), what is lost is lost of v - m, whose rows add up to 0. The step of v is half a step of the
// product, which is rounded down too. Products stay as they are over fewer rows than `least_rows` (a finer step of v
// would be given up for nothing), or whose number of rows is not known; and all where the operator set is below 21, or
// where a layer of the model reads computed numbers of 8 bits: what those lose is more, and a ViT of both widths came
// out 0.2 and 1.6 dB worse on four samples each. Returns how many were changed.
std::int64_t CenterAttention(Model& model, std::int64_t least_rows);

}  // namespace octavo
