// Element types. Numbered as ONNX TensorProto.DataType (onnx.proto3), so that conversion is a cast.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace octavo {

enum class DType : std::uint8_t {
  kUndefined = 0,
  kF32 = 1,
  kU8 = 2,
  kS8 = 3,
  kU16 = 4,
  kS16 = 5,
  kS32 = 6,
  kS64 = 7,
  kString = 8,
  kBool = 9,
  kF16 = 10,
  kF64 = 11,
  kU32 = 12,
  kU64 = 13,
  kC64 = 14,
  kC128 = 15,
  kBF16 = 16,
  kF8E4M3FN = 17,
  kF8E4M3FNUZ = 18,
  kF8E5M2 = 19,
  kF8E5M2FNUZ = 20,
  kU4 = 21,
  kS4 = 22,
  kF4E2M1 = 23,
  kF8E8M0 = 24,
  kU2 = 25,
  kS2 = 26,
};
inline constexpr int kDTypeCount = 27;

// Short name as printed in the IR and in the manifest: "f32", "u8", "s4", "f8e4m3fn", "bool", "string", "?".
std::string_view Name(DType dtype);
std::optional<DType> ParseDType(std::string_view name);

// Bits an element takes (4 for u4/s4/f4e2m1, 2 for u2/s2, 0 for string/undefined).
int BitWidth(DType dtype);
// Bytes `elements` elements take, sub-byte types packed; nullopt when that overflows 2^63 or dtype has no fixed size.
std::optional<std::uint64_t> ByteSize(DType dtype, std::uint64_t elements);

bool IsFloat(DType dtype);    // any floating-point type, 8 bit and below included
bool IsInteger(DType dtype);  // signed or unsigned integer of 2..64 bits, not bool
bool IsSignedInteger(DType dtype);
// Range of an integer type of at most 32 bits (u8: 0..255). Precondition: IsInteger, BitWidth <= 32.
std::int64_t IntegerMin(DType dtype);
std::int64_t IntegerMax(DType dtype);

}  // namespace octavo
