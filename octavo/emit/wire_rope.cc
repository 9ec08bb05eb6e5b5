#include "octavo/emit/wire_rope.h"

#include <bit>
#include <utility>

namespace octavo {

std::string& WireRope::Tail() {
  if (pieces_.empty() || !pieces_.back().view.empty()) pieces_.emplace_back();
  return pieces_.back().text;
}

void WireRope::AppendVarint(std::uint64_t value) {
  std::string& text = Tail();
  const std::size_t before = text.size();
  while (value >= 0x80) {
    text.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  text.push_back(static_cast<char>(value));
  size_ += text.size() - before;
}

void WireRope::Raw(std::string_view fields) {
  if (fields.empty()) return;
  Tail().append(fields);
  size_ += fields.size();
}

void WireRope::Varint(std::uint32_t field, std::uint64_t value) {
  AppendVarint(std::uint64_t{field} << 3);
  AppendVarint(value);
}

void WireRope::Float(std::uint32_t field, float value) {
  AppendVarint(std::uint64_t{field} << 3 | 5);
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const char bytes[4] = {static_cast<char>(bits), static_cast<char>(bits >> 8), static_cast<char>(bits >> 16),
                         static_cast<char>(bits >> 24)};
  Raw({bytes, 4});
}

void WireRope::Text(std::uint32_t field, std::string_view value) {
  AppendVarint(std::uint64_t{field} << 3 | 2);
  AppendVarint(value.size());
  Raw(value);
}

void WireRope::View(std::uint32_t field, std::span<const std::byte> value, const MappedFile* file) {
  AppendVarint(std::uint64_t{field} << 3 | 2);
  AppendVarint(value.size());
  if (value.empty()) return;
  pieces_.push_back({{}, value, file});
  size_ += value.size();
}

void WireRope::Message(std::uint32_t field, WireRope&& message) {
  AppendVarint(std::uint64_t{field} << 3 | 2);
  AppendVarint(message.size_);
  for (Piece& piece : message.pieces_) {
    if (piece.view.empty()) {
      Tail().append(piece.text);
    } else {
      pieces_.push_back(std::move(piece));
    }
  }
  size_ += message.size_;
}

std::string WireRope::Flatten() const {
  std::string out;
  out.reserve(size_);
  for (const Piece& piece : pieces_) {
    out.append(piece.text);
    out.append(reinterpret_cast<const char*>(piece.view.data()), piece.view.size());
  }
  return out;
}

}  // namespace octavo
