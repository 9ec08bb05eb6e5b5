// The version of this library.
#pragma once

namespace octavo {

const char* Version();  // "0.1.0"

}  // namespace octavo
