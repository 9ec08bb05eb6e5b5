#pragma once

#include <string>

namespace octavo {

const char* Version();

// What changes with every change of the code: the linker's build id (the note NT_GNU_BUILD_ID) of the program or
// library that holds this function; without one, the SHA-256 of the running program. Empty only if neither is there.
const std::string& BuildId();

}  // namespace octavo
