// Uses the installed library as a program of somebody else would: makes a model, writes it as ONNX, quantizes the file.
// Prints the library's version. Argument: a folder for m.onnx and q.onnx.
#include <cstdio>
#include <filesystem>

#include "octavo/build/config.h"
#include "octavo/build/pipeline.h"
#include "octavo/build/version.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/ir/text.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::filesystem::path folder = argv[1];
  const octavo::Model model = octavo::Parse(R"(
    ir_version = 8
    opset "" = 13
    graph @product(%x: f32[4,16]) -> (%y) {
      %w = constant f32[16,8] splat(0.25)
      %p: f32[4,8] = MatMul(%x, %w)
      %y: f32[4,8] = Relu(%p)
    })");
  octavo::WriteOnnx(model, folder / "m.onnx");

  octavo::BuildConfig config;
  config.model = (folder / "m.onnx").string();
  octavo::QuantizationConfig& quantization = config.quantization.emplace();
  quantization.precision = "int8";
  quantization.keep_float_auto = false;
  if (octavo::BuildConfigFromJson(octavo::ToJson(config), "a test").quantization != config.quantization) return 1;

  const octavo::QuantizeFileResult result = octavo::QuantizeFile(config, folder / "q.onnx", 1, false);
  const octavo::Model quantized = octavo::ReadOnnx(folder / "q.onnx");
  int quantizers = 0;
  for (const octavo::Node* node : quantized.graph->nodes()) {
    quantizers += node->Is("QuantizeLinear") ? 1 : 0;
  }
  if (result.quantize.nodes_quantized < 1 || quantizers < 1) return 1;
  std::printf("%s\n", octavo::Version());
  return 0;
}
