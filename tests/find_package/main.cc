// Prints the version of the installed library, after a build configuration went through it and came back.
#include <cstdio>

#include "octavo/build/config.h"
#include "octavo/build/version.h"

int main() {
  octavo::BuildConfig config;
  config.model = "model.onnx";
  config.quantization.emplace().precision = "int8";
  const octavo::BuildConfig again = octavo::BuildConfigFromJson(octavo::ToJson(config), "a test");
  if (octavo::EffectiveQuantization(again).precision != "int8") return 1;
  std::printf("%s\n", octavo::Version());
  return 0;
}
