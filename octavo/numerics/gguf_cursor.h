// Reads the numbers of a GGUF header one after the other; never beyond its end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "octavo/base/error.h"

namespace octavo {

class GgufCursor {
 public:
  // `where` and `what` ("the GGUF header") are for messages and outlive the cursor.
  GgufCursor(std::span<const std::byte> bytes, const std::string& where, const char* what)
      : bytes_(bytes), where_(where), what_(what) {}

  template <typename T>
  T Take() {
    T value;
    std::memcpy(&value, Bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }
  // Errors: kBadInput where fewer are left.
  std::span<const std::byte> Bytes(std::uint64_t n) {
    if (n > left()) ThrowBadInput(std::string(what_) + " goes beyond the end of the file", Place());
    const auto out = bytes_.subspan(at_, static_cast<std::size_t>(n));
    at_ += static_cast<std::size_t>(n);
    return out;
  }
  std::span<const std::byte> rest() const { return bytes_.subspan(at_); }
  std::size_t left() const { return bytes_.size() - at_; }
  std::size_t at() const { return at_; }
  std::string Place() const { return where_ + ", byte " + std::to_string(at_); }

 private:
  std::span<const std::byte> bytes_;
  const std::string& where_;
  const char* what_;
  std::size_t at_ = 0;
};

}  // namespace octavo
