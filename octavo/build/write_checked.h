// No ONNX file is handed out that the runtime refuses.
#pragma once

#include <filesystem>
#include <memory>

#include "octavo/emit/onnx.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"

namespace octavo {

// Writes the model, loads the file as its users will (default session), runs it on one sample of `data` if there are
// any, and only then replaces what `out` was. The model is gone while it runs. `threads`: of the session, 0 for all.
// Throws kBadInput with the runtime's message when it refuses the file; `out` is then as it was.
OnnxFiles WriteChecked(std::unique_ptr<Model> model, const std::filesystem::path& out, const DataSource* data,
                       int threads);

}  // namespace octavo
