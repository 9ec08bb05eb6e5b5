// Arbitrary text as a configuration: refused as usage, or a configuration whose JSON form is a fixed point.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "octavo/base/error.h"
#include "octavo/build/config.h"

namespace {

void Require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzz_config: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  octavo::BuildConfig config;
  try {
    config = octavo::BuildConfigFromJson(text, "fuzz");
  } catch (const octavo::Error& e) {
    Require(e.code() == octavo::ExitCode::kUsage, "refused with another code than usage");
    return 0;
  }
  const std::string first = octavo::ToJson(config);
  const octavo::BuildConfig again = octavo::BuildConfigFromJson(first, "again");
  Require(octavo::ToJson(again) == first, "the JSON form is no fixed point");
  Require(octavo::EffectiveQuantization(again) == octavo::EffectiveQuantization(config), "the quantization changed");
  try {
    octavo::Validate(config);
  } catch (const octavo::Error& e) {
    Require(e.code() == octavo::ExitCode::kUsage, "validation gave another code than usage");
  }
  return 0;
}
