// Points external initializers of a serialized model at the files their bytes lie in. Internal to this room.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace octavo::internal {

struct FileRange {
  std::string location;  // relative to the session's folder for external data
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

// `model` is a ModelProto whose top graph marks the initializers named in `ranges` as external; their external_data is
// replaced. Everything else is copied byte for byte. Works on the wire format (field numbers: onnx.proto), so that no
// model is parsed into objects. Errors: kInternal for bytes that are not a protobuf message.
std::string PointAtFiles(std::string_view model, const std::unordered_map<std::string, FileRange>& ranges);

}  // namespace octavo::internal
