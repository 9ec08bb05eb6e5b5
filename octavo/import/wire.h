// A bounded reader of the protobuf wire format (protobuf.dev/programming-guides/encoding). It never copies: a field's
// payload is a span into the message, so that a gigabyte of weights inside a mapped file is skipped, not read.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/error.h"

namespace octavo {

enum class WireType : std::uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// What an error names: the file, and the byte offset from its begin.
struct WireContext {
  const std::byte* begin = nullptr;
  std::string name;
};

struct WireField {
  std::uint32_t number = 0;
  WireType type = WireType::kVarint;
  std::uint64_t scalar = 0;          // of kVarint, kFixed64, kFixed32
  std::span<const std::byte> bytes;  // of kBytes
  std::span<const std::byte> whole;  // tag and payload, for passing it through

  std::int64_t Int() const { return static_cast<std::int64_t>(scalar); }
  float Float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(scalar)); }
  std::string_view Text() const { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
  std::string_view Whole() const { return {reinterpret_cast<const char*>(whole.data()), whole.size()}; }
};

// Iterates over the fields of one message. Errors: kBadInput naming file and byte offset on a truncated field, a varint
// of more than ten bytes, a wire type that does not exist (groups included) or field number 0.
class WireReader {
 public:
  WireReader(std::span<const std::byte> message, const WireContext& context)
      : at_(message.data()), end_(message.data() + message.size()), context_(context) {}

  // False at the end of the message.
  bool Next(WireField& field);

  // Throws unless the field just read has this wire type.
  void Expect(const WireField& field, WireType type) const;

  // Calls fn(value) for each element of a repeated scalar field, packed or not. `element` is kVarint, kFixed32 or
  // kFixed64.
  template <typename Fn>
  void ForEach(const WireField& field, WireType element, Fn&& fn) const {
    if (field.type == element) {
      fn(field.scalar);
      return;
    }
    Expect(field, WireType::kBytes);
    WireReader packed(field.bytes, context_);
    while (packed.at_ != packed.end_) {
      fn(element == WireType::kVarint ? packed.Varint() : packed.Fixed(element == WireType::kFixed32 ? 4 : 8));
    }
  }

 private:
  std::uint64_t Varint();
  std::uint64_t Fixed(std::size_t size);
  [[noreturn]] void Fail(const char* what) const;

  const std::byte* at_;
  const std::byte* end_;
  const WireContext& context_;
};

}  // namespace octavo
