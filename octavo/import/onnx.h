// ONNX -> IR. The file is mapped; weights of 1 KB and more are views into it, whatever the file's size.
#pragma once

#include <filesystem>

#include "octavo/ir/graph.h"

namespace octavo {

// Reads opset 7 and newer; embedded raw and typed data, external data (inside the model's folder only), weights in
// initializers and in Constant nodes (both become constants). Q/DQ stay nodes here: rewrite/fold_qdq.h makes types of
// them. Names, metadata, functions, subgraphs, unknown operators, attributes and domains are kept. Errors: kBadInput
// for a missing, corrupt, truncated or hostile file (cycle, sizes that do not fit, external path that leaves the
// folder, absurd dimensions, nesting too deep, bad attributes of the project's own operators); kUnsupported for opset < 7
// and for operators of the domain `octavo` that do not exist.
Model ReadOnnx(const std::filesystem::path& path);

// True when the model holds an EPContext node (compiled for a device already).
bool HasEpContext(const Model& model);

// Replaces symbolic dimensions by values. `dims` maps a symbol ("batch") or INPUT:AXIS ("x:2", for unnamed dimensions)
// to a positive value; applies to graph inputs, value infos and outputs. kUsage for a name that matches nothing.
void FixDims(Model& model, const std::vector<std::pair<std::string, std::int64_t>>& dims);

}  // namespace octavo
