// Operators of float tensors that a device has not, or has in too few bits, as those that it has.
#pragma once

#include <cstdint>

#include "octavo/ir/graph.h"

namespace octavo {

// Softplus, Mish, Softsign, Celu, Sinh, Cosh, ReduceL1 and ReduceSumSquare become Relu, Exp, Log, Tanh, Elu, Add, Mul,
// Div, Abs and ReduceSum: the same functions in real numbers, whose parts stay within the range of fp16 where their
// results do. Between Q/DQ the parts are float: nothing is rounded to codes on the way.
// Softplus stays between bytes, where a table has it. For the device's compiler
// alone. Returns how many operators went.
std::int64_t SpellFloat(Model& model);

}  // namespace octavo
