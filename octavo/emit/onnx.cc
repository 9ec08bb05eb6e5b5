#include "octavo/emit/onnx.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/output.h"
#include "octavo/emit/onnx_serialize.h"

namespace octavo {
namespace {

// Protobuf parsers refuse messages of 2 GiB and more.
constexpr std::uint64_t kProtobufLimit = std::numeric_limits<std::int32_t>::max();
// Tensors of a page and more start on a page, so that a runtime can map them.
constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kSmallAlignment = 64;
constexpr std::size_t kChunk = std::size_t{16} << 20;

struct Placed {
  const TensorRef* tensor;
  std::uint64_t offset;
};

void WriteStreaming(OutputFile& file, std::span<const std::byte> bytes, const MappedFile* mapped) {
  while (!bytes.empty()) {
    const std::span<const std::byte> chunk = bytes.first(std::min(bytes.size(), kChunk));
    file.Write(chunk);
    // Pages read just to be copied out would otherwise pile up in resident memory.
    if (mapped && chunk.size() == kChunk) mapped->DropPages(chunk);
    bytes = bytes.subspan(chunk.size());
    CheckInterrupt();
  }
}

void WriteRope(OutputFile& file, const WireRope& rope) {
  for (const WireRope::Piece& piece : rope.pieces()) {
    if (piece.view.empty()) {
      file.Write(std::string_view(piece.text));
    } else {
      WriteStreaming(file, piece.view, piece.file);
    }
  }
}

std::uint64_t AlignUp(std::uint64_t offset, std::uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

}  // namespace

OnnxFiles WriteOnnx(const Model& model, const std::filesystem::path& path, const OnnxEmitOptions& options) {
  OnnxFiles files{path, {}};
  if (!options.force_external_data) {
    const WireRope rope = SerializeModel(model, [](const Value&, const TensorRef&) { return std::nullopt; });
    if (rope.size() <= kProtobufLimit) {
      OutputFile file(path);
      WriteRope(file, rope);
      file.Commit(options.durable);
      return files;
    }
  }
  std::filesystem::path data_path = path;
  data_path += ".data";
  std::vector<Placed> placed;
  std::uint64_t end = 0;
  const std::string location = data_path.filename().string();
  const WireRope rope =
      SerializeModel(model, [&](const Value&, const TensorRef& tensor) -> std::optional<ExternalSlot> {
        const std::uint64_t offset = AlignUp(end, tensor.bytes.size() >= kPage ? kPage : kSmallAlignment);
        placed.push_back({&tensor, offset});
        end = offset + tensor.bytes.size();
        return ExternalSlot{location, offset};
      });
  if (rope.size() > kProtobufLimit) {
    ThrowUnsupported("model passes 2 GB without the initializers of its main graph", path.string(),
                     "its subgraphs or attributes hold too much data");
  }
  OutputFile file(path);
  WriteRope(file, rope);
  if (!placed.empty()) {
    OutputFile data(data_path);
    for (const Placed& tensor : placed) {
      const std::string padding(tensor.offset - data.offset(), '\0');
      data.Write(std::string_view(padding));
      WriteStreaming(data, tensor.tensor->bytes, tensor.tensor->file.get());
    }
    data.Commit(options.durable);
    files.data.push_back(data_path);
  }
  file.Commit(options.durable);
  return files;
}

OnnxSkeleton SerializeSkeleton(const Model& model) {
  OnnxSkeleton skeleton;
  // The location is never opened: the runtime is given every one of these initializers by name.
  const WireRope rope =
      SerializeModel(model, [&](const Value& value, const TensorRef& tensor) -> std::optional<ExternalSlot> {
        skeleton.externals.emplace_back(value.name(), tensor);
        return ExternalSlot{"octavo.weights", 0};
      });
  if (rope.size() > kProtobufLimit) {
    ThrowUnsupported("model passes 2 GB without the initializers of its main graph", model.source,
                     "its subgraphs or attributes hold too much data");
  }
  skeleton.bytes = rope.Flatten();
  return skeleton;
}

}  // namespace octavo
