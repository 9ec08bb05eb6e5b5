// TensorProto -> TensorRef: raw, typed and external data.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "octavo/import/wire.h"
#include "octavo/ir/tensor.h"

namespace octavo {

inline constexpr std::size_t kMaxTensorRank = 64;

// Where a model's tensors lie.
struct TensorSource {
  WireContext context;
  std::shared_ptr<const void> owner;            // keeps the model's bytes alive
  std::shared_ptr<const MappedFile> file;       // the model's file, null for a model in memory
  std::optional<std::filesystem::path> folder;  // of the model; unset: external data are refused
  mutable std::map<std::filesystem::path, std::shared_ptr<const MappedFile>> external;  // mapped so far, by real path
};

struct OnnxTensor {
  std::string name;
  TensorRef data;
  std::string extras;  // serialized fields that TensorRef does not model (doc_string, metadata)
};

// raw_data and external data become views, typed data are decoded. `where` stands in messages beside the tensor's name.
// Errors: kBadInput on sizes that do not fit the dimensions, data of the wrong field, an external path that is
// absolute, contains "..", or leads out of the model's folder through a link; kUnsupported on a segment or an unknown
// element type.
OnnxTensor ReadOnnxTensor(std::span<const std::byte> bytes, const TensorSource& source, const std::string& where);

}  // namespace octavo
