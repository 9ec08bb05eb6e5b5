// A protobuf message being written: small fields as text, weights as views. Its size is known before a byte is written,
// which is what nested length prefixes need; the views are only read when the message is streamed out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/mapped_file.h"

namespace octavo {

class WireRope {
 public:
  struct Piece {
    std::string text;                  // used when `view` is empty
    std::span<const std::byte> view;   // borrowed: must outlive the rope
    const MappedFile* file = nullptr;  // that the view lies in, if any
  };

  void Varint(std::uint32_t field, std::uint64_t value);
  void Int(std::uint32_t field, std::int64_t value) { Varint(field, static_cast<std::uint64_t>(value)); }
  void Float(std::uint32_t field, float value);
  void Text(std::uint32_t field, std::string_view value);
  void View(std::uint32_t field, std::span<const std::byte> value, const MappedFile* file);
  void Message(std::uint32_t field, WireRope&& message);
  void Raw(std::string_view fields);  // serialized fields, passed through

  std::uint64_t size() const { return size_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  // The whole message; for messages known to be small.
  std::string Flatten() const;

 private:
  std::string& Tail();
  void AppendVarint(std::uint64_t value);
  std::vector<Piece> pieces_;
  std::uint64_t size_ = 0;
};

}  // namespace octavo
