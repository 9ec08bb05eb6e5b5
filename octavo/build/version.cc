#include "octavo/build/version.h"

namespace octavo {

const char* Version() { return OCTAVO_VERSION; }

}  // namespace octavo
