// Operators of float tensors that a consumer has not, or has in too few bits, as those that it has.
#pragma once

#include <cstdint>
#include <functional>

#include "octavo/ir/graph.h"

namespace octavo {

// Every node of these operators that is `wanted` becomes Abs, Add, Exp, Log, Where, ReduceSum, Slice ...: the same
// function in real numbers, whose parts stay within the range of fp16 where the result does:
//   Softplus, Mish, Softsign, Celu, Sinh, Cosh, Tan, Asin, Acos, Asinh, Acosh, Atanh, Shrink, ThresholdedRelu, PRelu,
//   Pow of a constant base above 0 or to the exponent -0.5, Mod of floats (fmod), IsInf,
//   ReduceL1, ReduceSumSquare, ReduceLogSum, ReduceLogSumExp, ReduceProd, GlobalLpPool and LpPool with p of 1 and 2,
//   LpNormalization, MeanVarianceNormalization, Hardmax, OneHot, CumSum that is exclusive or reverse, ArgMax and ArgMin
//   with select_last_index, a Cast to integers (of numbers that are whole then, for one that does not cut off), and a
//   Div of integers (set right where it rounds to the nearest).
// Not the same: Erf (off by up to 4e-5), a MeanVarianceNormalization of numbers that differ by less than 1e-4, and what
// is no number: outside of their domain Asin and Acos give numbers, and an infinity among the inputs of a reduction or
// a Mish may give NaN.
// Values of quantized types are read as the numbers they are; between Q/DQ the parts are float too: nothing is rounded
// to codes on the way. A node stays whose parts the model's operator set has not, or whose axes are computed.
// Returns how many went.
std::int64_t SpellFloat(Model& model, const std::function<bool(const Node&)>& wanted);

}  // namespace octavo
