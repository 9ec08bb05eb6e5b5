// Hostile ONNX files: reading them must end in a model that the verifier accepts and that can be written, or in one of
// Octavo's errors.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/import/onnx_bytes.h"
#include "octavo/ir/verify.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto owner = std::make_shared<std::vector<std::uint8_t>>(data, data + size);
  try {
    const octavo::Model model = octavo::ReadOnnxBytes(std::as_bytes(std::span(*owner)), owner, "fuzz.onnx");
    if (!octavo::Verify(model).empty()) std::abort();
  } catch (const octavo::Error& error) {
    if (error.code() != octavo::ExitCode::kBadInput && error.code() != octavo::ExitCode::kUnsupported) std::abort();
  }
  return 0;
}
