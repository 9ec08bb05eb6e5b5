// GGUF (versions 2 and 3, little-endian), what its reader and its writer share: the element types with their sizes,
// the metadata value types, and metadata fields as they lie in a file. Source: the GGUF specification, docs/gguf.md of
// the ggml project.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

inline constexpr std::uint32_t kGgufVersion = 3;            // what is written
inline constexpr std::uint64_t kGgufDefaultAlignment = 32;  // of tensor data, unless general.alignment says otherwise
inline constexpr std::uint64_t kGgufMaxAlignment = std::uint64_t{1} << 20;
inline constexpr std::size_t kGgufMaxDims = 4;
inline constexpr int kGgufMaxArrayDepth = 8;  // arrays within arrays

// One element type. Blocks of `block` elements take `bytes` bytes; a row is a whole number of blocks.
struct GgufType {
  std::uint32_t id;       // ggml_type
  std::string_view name;  // "q4_k", "f16": lower case
  std::uint32_t block, bytes;
  std::int32_t file_type;  // general.file_type of a file that is mostly this; -1: there is none

  bool quantized() const { return block > 1; }
  bool is_float() const;  // f32, f16, bf16
};
std::span<const GgufType> GgufTypes();
const GgufType* FindGgufType(std::uint32_t id);       // null: no such type, or one that was removed
const GgufType* FindGgufType(std::string_view name);  // "mxfp4_gg", the precision's name, is mxfp4

// Elements of all dimensions, nullopt when they overflow 2^63. No dimensions: one element.
std::optional<std::uint64_t> GgufElements(std::span<const std::uint64_t> ne);
// Bytes of a tensor of dimensions `ne` (GGML order: ne[0] is the length of a row), nullopt for a row that is not a
// whole number of blocks, or on overflow of 2^63.
std::optional<std::uint64_t> GgufByteSize(const GgufType& type, std::span<const std::uint64_t> ne);
std::uint64_t GgufRowElements(std::span<const std::uint64_t> ne);  // ne[0], or 1
std::string GgufShapeText(std::span<const std::uint64_t> ne);      // "[4096, 32]", GGML order

enum class GgufValueType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
std::string_view Name(GgufValueType type);        // "u8", "string", "array"; "?" for a number that is no type
std::size_t GgufScalarBytes(GgufValueType type);  // 0 for string, array and unknown types

// A metadata field as it lies in the file: the encoded value, checked. Unknown keys pass through unchanged.
struct GgufField {
  std::string key;
  GgufValueType type = GgufValueType::kU32;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  // keeps bytes alive

  static GgufField U32(std::string key, std::uint32_t value);
  static GgufField String(std::string key, std::string_view value);

  std::optional<std::uint64_t> AsUint() const;  // an integer type whose value is not negative
  std::optional<std::string_view> AsString() const;
  std::optional<std::vector<std::string>> AsStrings() const;  // an array of strings
};

// Calls of VisitGgufValue, in order: a scalar or string once; an array as Begin, its elements, End.
class GgufVisitor {
 public:
  virtual ~GgufVisitor() = default;
  virtual void Int(std::int64_t value) = 0;
  virtual void Uint(std::uint64_t value) = 0;
  virtual void Float(double value) = 0;
  virtual void Bool(bool value) = 0;
  virtual void String(std::string_view value) = 0;
  // False: the elements are not wanted; no End follows.
  virtual bool BeginArray(GgufValueType element, std::uint64_t count) = 0;
  virtual void EndArray() = 0;
};
void VisitGgufValue(const GgufField& field, GgufVisitor& visitor);

// Checks the encoded value at the start of `bytes` and returns its size. Errors: kBadInput naming `where` for an
// unknown type, a value that goes beyond the end, arrays nested too deep, a boolean that is neither 0 nor 1.
std::size_t CheckGgufValue(std::span<const std::byte> bytes, GgufValueType type, const std::string& where);

}  // namespace octavo
