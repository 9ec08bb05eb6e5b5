// IR -> ModelProto. Field numbers are those of onnx.proto.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "octavo/emit/wire_rope.h"
#include "octavo/ir/graph.h"

namespace octavo {

// Tensors of this size and more are views in the rope, and may be external.
inline constexpr std::size_t kLargeTensorBytes = 1024;

struct ExternalSlot {
  std::string location;
  std::uint64_t offset = 0;
};

// Says where a large initializer of the top graph goes; nullopt embeds it. Called in the order of writing.
using Placement = std::function<std::optional<ExternalSlot>(const Value&, const TensorRef&)>;

// The model must hold plain ONNX operators only (kInternal otherwise). The rope borrows the model's tensors.
WireRope SerializeModel(const Model& model, const Placement& place);

// The lowest IR version that knows every element type in the model and lets initializers not be graph inputs.
std::int64_t MinIrVersion(const Model& model);

}  // namespace octavo
