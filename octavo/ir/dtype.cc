#include "octavo/ir/dtype.h"

#include <array>
#include <limits>

#include "octavo/base/error.h"

namespace octavo {
namespace {

enum class Class : std::uint8_t { kOther, kFloat, kSigned, kUnsigned };

struct Row {
  std::string_view name;
  int bits;
  Class kind;
};

// Indexed by the enumerator.
constexpr std::array<Row, kDTypeCount> kRows = {{
    {"?", 0, Class::kOther},          {"f32", 32, Class::kFloat},    {"u8", 8, Class::kUnsigned},
    {"s8", 8, Class::kSigned},        {"u16", 16, Class::kUnsigned}, {"s16", 16, Class::kSigned},
    {"s32", 32, Class::kSigned},      {"s64", 64, Class::kSigned},   {"string", 0, Class::kOther},
    {"bool", 8, Class::kOther},       {"f16", 16, Class::kFloat},    {"f64", 64, Class::kFloat},
    {"u32", 32, Class::kUnsigned},    {"u64", 64, Class::kUnsigned}, {"c64", 64, Class::kOther},
    {"c128", 128, Class::kOther},     {"bf16", 16, Class::kFloat},   {"f8e4m3fn", 8, Class::kFloat},
    {"f8e4m3fnuz", 8, Class::kFloat}, {"f8e5m2", 8, Class::kFloat},  {"f8e5m2fnuz", 8, Class::kFloat},
    {"u4", 4, Class::kUnsigned},      {"s4", 4, Class::kSigned},     {"f4e2m1", 4, Class::kFloat},
    {"f8e8m0", 8, Class::kFloat},     {"u2", 2, Class::kUnsigned},   {"s2", 2, Class::kSigned},
}};

// A number outside the enumeration (a cast of untrusted data) reads as undefined.
const Row& RowOf(DType dtype) {
  const auto i = static_cast<std::size_t>(dtype);
  return i < kRows.size() ? kRows[i] : kRows[0];
}

}  // namespace

std::string_view Name(DType dtype) { return RowOf(dtype).name; }

std::optional<DType> ParseDType(std::string_view name) {
  for (std::size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

int BitWidth(DType dtype) { return RowOf(dtype).bits; }

std::optional<std::uint64_t> ByteSize(DType dtype, std::uint64_t elements) {
  const auto bits = static_cast<std::uint64_t>(BitWidth(dtype));
  if (bits == 0) return std::nullopt;
  constexpr std::uint64_t kLimit = std::uint64_t{1} << 63;
  if (bits < 8) {
    const std::uint64_t per_byte = 8 / bits;
    const std::uint64_t bytes = elements / per_byte + (elements % per_byte != 0 ? 1 : 0);
    return bytes < kLimit ? std::optional(bytes) : std::nullopt;
  }
  if (elements > (kLimit - 1) / (bits / 8)) return std::nullopt;
  return elements * (bits / 8);
}

bool IsFloat(DType dtype) { return RowOf(dtype).kind == Class::kFloat; }
bool IsInteger(DType dtype) {
  const Class kind = RowOf(dtype).kind;
  return kind == Class::kSigned || kind == Class::kUnsigned;
}
bool IsSignedInteger(DType dtype) { return RowOf(dtype).kind == Class::kSigned; }

std::int64_t IntegerMin(DType dtype) {
  if (!IsInteger(dtype) || BitWidth(dtype) > 32) ThrowInternal("no integer range", std::string(Name(dtype)));
  return IsSignedInteger(dtype) ? -(std::int64_t{1} << (BitWidth(dtype) - 1)) : 0;
}

std::int64_t IntegerMax(DType dtype) {
  if (!IsInteger(dtype) || BitWidth(dtype) > 32) ThrowInternal("no integer range", std::string(Name(dtype)));
  return (std::int64_t{1} << (BitWidth(dtype) - (IsSignedInteger(dtype) ? 1 : 0))) - 1;
}

}  // namespace octavo
