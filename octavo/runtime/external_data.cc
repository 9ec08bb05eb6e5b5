#include "octavo/runtime/external_data.h"

#include <functional>

#include "octavo/base/error.h"

namespace octavo::internal {
namespace {

// onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.{name, external_data}, StringStringEntryProto.
constexpr std::uint64_t kGraph = 7, kInitializer = 5, kTensorName = 8, kExternalData = 13, kKey = 1, kValue = 2;
constexpr unsigned kVarint = 0, kFixed64 = 1, kDelimited = 2, kFixed32 = 5;

void PutVarint(std::string& out, std::uint64_t v) {
  for (; v >= 0x80; v >>= 7) out.push_back(static_cast<char>(v | 0x80));
  out.push_back(static_cast<char>(v));
}

void PutBytes(std::string& out, std::uint64_t field, std::string_view bytes) {
  PutVarint(out, field << 3 | kDelimited);
  PutVarint(out, bytes.size());
  out += bytes;
}

struct Field {
  std::uint64_t number;
  std::string_view whole;    // tag and payload
  std::string_view payload;  // of a delimited field, else empty
};

// Calls fn for every field of a message, in order.
void ForEachField(std::string_view message, const std::function<void(const Field&)>& fn) {
  std::size_t at = 0;
  const auto varint = [&] {
    std::uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (at >= message.size()) break;
      const auto byte = static_cast<unsigned char>(message[at++]);
      v |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return v;
    }
    ThrowInternal("the serialized model is not a protobuf message");
  };
  while (at < message.size()) {
    const std::size_t begin = at;
    const std::uint64_t tag = varint();
    Field field{tag >> 3, {}, {}};
    std::uint64_t skip = 0;
    switch (tag & 7) {
      case kVarint:
        varint();
        break;
      case kFixed64:
        skip = 8;
        break;
      case kFixed32:
        skip = 4;
        break;
      case kDelimited:
        skip = varint();
        break;
      default:
        ThrowInternal("the serialized model is not a protobuf message");
    }
    if (skip > message.size() - at) ThrowInternal("the serialized model is truncated");
    if ((tag & 7) == kDelimited) field.payload = message.substr(at, skip);
    at += skip;
    field.whole = message.substr(begin, at - begin);
    fn(field);
  }
}

std::string Tensor(std::string_view tensor, const FileRange& range) {
  std::string out;
  ForEachField(tensor, [&](const Field& field) {
    if (field.number != kExternalData) out += field.whole;
  });
  const auto entry = [&](std::string_view key, std::string_view value) {
    std::string message;
    PutBytes(message, kKey, key);
    PutBytes(message, kValue, value);
    PutBytes(out, kExternalData, message);
  };
  entry("location", range.location);
  entry("offset", std::to_string(range.offset));
  entry("length", std::to_string(range.length));
  return out;
}

}  // namespace

std::string PointAtFiles(std::string_view model, const std::unordered_map<std::string, FileRange>& ranges) {
  std::string out;
  out.reserve(model.size() + ranges.size() * 128);
  ForEachField(model, [&](const Field& top) {
    if (top.number != kGraph) {
      out += top.whole;
      return;
    }
    std::string graph;
    graph.reserve(top.payload.size() + ranges.size() * 128);
    ForEachField(top.payload, [&](const Field& field) {
      const FileRange* range = nullptr;
      if (field.number == kInitializer) {
        std::string name;
        ForEachField(field.payload, [&](const Field& part) {
          if (part.number == kTensorName) name = part.payload;
        });
        if (const auto it = ranges.find(name); it != ranges.end()) range = &it->second;
      }
      if (range != nullptr) {
        PutBytes(graph, kInitializer, Tensor(field.payload, *range));
      } else {
        graph += field.whole;
      }
    });
    PutBytes(out, kGraph, graph);
  });
  return out;
}

}  // namespace octavo::internal
