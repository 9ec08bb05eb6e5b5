// Puts a plugin provider into session options. Internal to this room.
#pragma once

#include "octavo/runtime/ort.h"
#include "octavo/runtime/plugin.h"

namespace octavo::internal {

// Registers the library if it is not yet, and appends the provider with all the devices it lists. Errors: kUnsupported:
// no such library, no device here, an option that the provider refuses.
void AppendEp(OrtSessionOptions* options, const EpSpec& ep);

}  // namespace octavo::internal
