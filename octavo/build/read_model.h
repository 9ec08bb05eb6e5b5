// A model file of any format that is read as a model: ONNX, Circle, TFLite.
#pragma once

#include <filesystem>

#include "octavo/ir/graph.h"

namespace octavo {

// Tells the format from the file's content. A Circle or TFLite file comes as ONNX operators with quantized types
// (rewrite/raise_circle.h). Errors: those of the reader.
Model ReadModelFile(const std::filesystem::path& path);

}  // namespace octavo
