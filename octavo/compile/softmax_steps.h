// Steps of a Softmax's logits for a device that multiplies codes by a fixed-point number.
#pragma once

#include <cstdint>

#include "octavo/device/arithmetic.h"
#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"

namespace octavo {

// The step of the logits that go into a Softmax as u16 becomes the next one that is a whole number of `unit`, and at
// least `least` of them: the device computes with floor(step / unit) units, and with nothing below `least`. Steps of
// more than `most` units stay: what is rounded down is little. The zero point stays, so the codes hold all that they
// held. The codes of operators that only move the logits (their Q/DQ have the same parameters) follow; where somebody
// else reads those too, the Softmax gets codes of its own, or stays as it is behind an operator that moves. Returns how
// many Softmaxes were changed.
std::int64_t FitSoftmaxSteps(Model& model, const DeviceDescriptor& device, const SoftmaxSteps& steps);

}  // namespace octavo
