#include "octavo/import/wire.h"

namespace octavo {

void WireReader::Fail(const char* what) const {
  ThrowBadInput(what, context_.name + ", byte " + std::to_string(at_ - context_.begin),
                "the file is truncated or is not an ONNX model");
}

std::uint64_t WireReader::Varint() {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    if (at_ == end_) Fail("truncated protobuf varint");
    const auto byte = static_cast<std::uint64_t>(*at_++);
    // The tenth byte holds one bit; what lies above 64 bits is dropped, as protobuf does.
    value |= (byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return value;
  }
  Fail("protobuf varint of more than ten bytes");
}

std::uint64_t WireReader::Fixed(std::size_t size) {
  if (static_cast<std::size_t>(end_ - at_) < size) Fail("truncated protobuf field");
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) value |= static_cast<std::uint64_t>(at_[i]) << (8 * i);
  at_ += size;
  return value;
}

bool WireReader::Next(WireField& field) {
  if (at_ == end_) return false;
  const std::byte* start = at_;
  const std::uint64_t tag = Varint();
  const std::uint64_t number = tag >> 3;
  if (number == 0 || number > 0x1fffffff) Fail("protobuf field number out of range");
  field = {};
  field.number = static_cast<std::uint32_t>(number);
  switch (tag & 7) {
    case 0:
      field.type = WireType::kVarint;
      field.scalar = Varint();
      break;
    case 1:
      field.type = WireType::kFixed64;
      field.scalar = Fixed(8);
      break;
    case 2: {
      field.type = WireType::kBytes;
      const std::uint64_t size = Varint();
      if (size > static_cast<std::uint64_t>(end_ - at_)) Fail("protobuf field longer than its message");
      field.bytes = {at_, static_cast<std::size_t>(size)};
      at_ += size;
      break;
    }
    case 5:
      field.type = WireType::kFixed32;
      field.scalar = Fixed(4);
      break;
    default:
      Fail("unknown protobuf wire type");
  }
  field.whole = {start, static_cast<std::size_t>(at_ - start)};
  return true;
}

void WireReader::Expect(const WireField& field, WireType type) const {
  if (field.type != type) {
    Fail(("protobuf field " + std::to_string(field.number) + " has the wrong wire type").c_str());
  }
}

}  // namespace octavo
