// Arbitrary text where a build left its manifest: an earlier build, or not one; never an error.
#include <cstddef>
#include <cstdint>
#include <string>

#include "octavo/build/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  octavo::EarlierBuildFromJson(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
