// IR -> ONNX. A quantized value becomes QuantizeLinear after its producer and one DequantizeLinear at each use;
// quantized constants become an initializer of codes and a DequantizeLinear at each use (int32 bias included).
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

struct OnnxEmitOptions {
  // Weights go to `<file name>.data` beside the model when the protobuf would pass 2 GB (or always, if set).
  bool force_external_data = false;
  bool durable = true;  // as of OutputFile::Commit
};

// Raises the default opset where the quantized types need it (16-bit and 4-bit Q/DQ and block_size: 21; per-axis: 13)
// by rules known to be safe for the operators present. kUnsupported, naming operator and reason, when a node would
// change its meaning. Also sets ir_version high enough for the opset. Does nothing when nothing needs it. On an error
// some nodes may be adapted already: drop the model. Run it after type inference: a Softmax of unknown rank is
// otherwise wrapped in Flatten and Reshape.
void RaiseOpsetForQuantization(Model& model);
// The same to a version of one's own; `goal` says in messages what for. Nothing happens to a newer model.
void RaiseOpset(Model& model, std::int64_t target, const std::string& goal);

// Lowers quantized types to Q/DQ nodes in place: afterwards the model is plain ONNX operators and raw tensors.
// Parameter initializers are shared between equal uses of one value. A node's float output keeps its name; codes are
// named
// `<value>_quantized`, dequantized uses `<value>_dequantized[_k]`; graph inputs and outputs keep name and type.
void LowerToQdq(Model& model);

// Nodes whose form is QLinear become the integer operator that computes them on codes (QLinearConv, QGemm, Clip of
// codes, MatMulNBits, ...); all else is lowered as LowerToQdq does. What rewrite/ decided is written, nothing is
// decided here: kInternal for a node that has no integer operator.
void LowerToQLinear(Model& model);

struct OnnxFiles {
  std::filesystem::path model;
  std::vector<std::filesystem::path> data;  // external data, if any
};

// Writes a model that LowerToQdq has been applied to (or that never was quantized). Streams weights: memory does not
// grow with them. Each file is written atomically (base/output.h). Deterministic: equal models give equal bytes.
OnnxFiles WriteOnnx(const Model& model, const std::filesystem::path& path, const OnnxEmitOptions& options = {});

// The model as bytes for a runtime session, with the data of big constants left out: those initializers are marked
// external and returned in `externals`, to be handed to the runtime as views (no copy of any weight is made).
struct OnnxSkeleton {
  std::string bytes;
  std::vector<std::pair<std::string, TensorRef>> externals;  // by name
};
OnnxSkeleton SerializeSkeleton(const Model& model);

}  // namespace octavo
