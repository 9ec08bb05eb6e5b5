// The Circle reader on hostile bytes: it refuses with an Error, or gives a model that prints.
#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/error.h"
#include "octavo/emit/circle.h"
#include "octavo/import/circle.h"
#include "octavo/ir/text.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  octavo::VerifyCircle(bytes);
  try {
    octavo::Print(octavo::ReadCircle(bytes, "fuzz"));
  } catch (const octavo::Error& error) {
    if (error.code() == octavo::ExitCode::kInternal) throw;
  }
  return 0;
}
