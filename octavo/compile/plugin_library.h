// Where the plugin library of a device's execution provider lies on this machine.
#pragma once

#include <filesystem>
#include <string>

#include "octavo/device/descriptor.h"

namespace octavo {

struct FoundLibrary {
  std::filesystem::path path;  // empty: not found
  std::string reason;          // then: where it was looked for
};

// The file that the plugin's environment variable names (taken or refused, never replaced by another one); else, in
// order: beside the runtime's library (links followed), in the plugin's folder beside the runtime's folder (a
// dependency cache), in <prefix>/lib/octavo/<folder>.
FoundLibrary FindPluginLibrary(const PluginLibrary& plugin);

}  // namespace octavo
