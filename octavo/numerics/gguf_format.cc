#include "octavo/numerics/gguf_format.h"

#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/numerics/gguf_cursor.h"

namespace octavo {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are read in place");

constexpr std::array kTypes = {
    GgufType{0, "f32", 1, 4, 0},          GgufType{1, "f16", 1, 2, 1},          GgufType{2, "q4_0", 32, 18, 2},
    GgufType{3, "q4_1", 32, 20, 3},       GgufType{6, "q5_0", 32, 22, 8},       GgufType{7, "q5_1", 32, 24, 9},
    GgufType{8, "q8_0", 32, 34, 7},       GgufType{9, "q8_1", 32, 40, -1},      GgufType{10, "q2_k", 256, 84, 10},
    GgufType{11, "q3_k", 256, 110, 11},   GgufType{12, "q4_k", 256, 144, 14},   GgufType{13, "q5_k", 256, 176, 16},
    GgufType{14, "q6_k", 256, 210, 18},   GgufType{15, "q8_k", 256, 292, -1},   GgufType{16, "iq2_xxs", 256, 66, 19},
    GgufType{17, "iq2_xs", 256, 74, 20},  GgufType{18, "iq3_xxs", 256, 98, 23}, GgufType{19, "iq1_s", 256, 50, 24},
    GgufType{20, "iq4_nl", 32, 18, 25},   GgufType{21, "iq3_s", 256, 110, 26},  GgufType{22, "iq2_s", 256, 82, 28},
    GgufType{23, "iq4_xs", 256, 136, 30}, GgufType{24, "i8", 1, 1, -1},         GgufType{25, "i16", 1, 2, -1},
    GgufType{26, "i32", 1, 4, -1},        GgufType{27, "i64", 1, 8, -1},        GgufType{28, "f64", 1, 8, -1},
    GgufType{29, "iq1_m", 256, 56, 31},   GgufType{30, "bf16", 1, 2, 32},       GgufType{34, "tq1_0", 256, 54, 36},
    GgufType{35, "tq2_0", 256, 66, 37},   GgufType{39, "mxfp4", 32, 17, 38},    GgufType{40, "nvfp4", 64, 36, 39},
    GgufType{41, "q1_0", 128, 18, 40},
};

void CheckValue(GgufCursor& cursor, GgufValueType type, int depth);

void CheckArray(GgufCursor& cursor, int depth) {
  if (depth >= kGgufMaxArrayDepth) {
    ThrowBadInput("arrays are nested more than " + std::to_string(kGgufMaxArrayDepth) + " deep", cursor.Place());
  }
  const auto element = static_cast<GgufValueType>(cursor.Take<std::uint32_t>());
  const auto count = cursor.Take<std::uint64_t>();
  if (element == GgufValueType::kBool) {
    for (const std::byte b : cursor.Bytes(count)) {
      if (b > std::byte{1}) ThrowBadInput("a boolean is neither 0 nor 1", cursor.Place());
    }
    return;
  }
  if (const std::size_t size = GgufScalarBytes(element); size > 0) {
    if (count > cursor.left() / size) ThrowBadInput("an array goes beyond the end of the file", cursor.Place());
    cursor.Bytes(count * size);
    return;
  }
  // Every element takes bytes, so this ends with the file at the latest.
  for (std::uint64_t i = 0; i < count; ++i) CheckValue(cursor, element, depth + 1);
  if (count == 0 && element != GgufValueType::kString && element != GgufValueType::kArray) {
    ThrowBadInput("metadata type " + std::to_string(static_cast<std::uint32_t>(element)) + " does not exist",
                  cursor.Place());
  }
}

void CheckValue(GgufCursor& cursor, GgufValueType type, int depth) {
  if (type == GgufValueType::kArray) return CheckArray(cursor, depth);
  if (type == GgufValueType::kString) {
    cursor.Bytes(cursor.Take<std::uint64_t>());
    return;
  }
  const std::size_t size = GgufScalarBytes(type);
  if (size == 0) {
    ThrowBadInput("metadata type " + std::to_string(static_cast<std::uint32_t>(type)) + " does not exist",
                  cursor.Place());
  }
  const auto bytes = cursor.Bytes(size);
  if (type == GgufValueType::kBool && bytes[0] > std::byte{1}) {
    ThrowBadInput("a boolean is neither 0 nor 1", cursor.Place());
  }
}

void Visit(GgufCursor& cursor, GgufValueType type, GgufVisitor& visitor) {
  switch (type) {
    case GgufValueType::kU8:
      return visitor.Uint(cursor.Take<std::uint8_t>());
    case GgufValueType::kI8:
      return visitor.Int(cursor.Take<std::int8_t>());
    case GgufValueType::kU16:
      return visitor.Uint(cursor.Take<std::uint16_t>());
    case GgufValueType::kI16:
      return visitor.Int(cursor.Take<std::int16_t>());
    case GgufValueType::kU32:
      return visitor.Uint(cursor.Take<std::uint32_t>());
    case GgufValueType::kI32:
      return visitor.Int(cursor.Take<std::int32_t>());
    case GgufValueType::kU64:
      return visitor.Uint(cursor.Take<std::uint64_t>());
    case GgufValueType::kI64:
      return visitor.Int(cursor.Take<std::int64_t>());
    case GgufValueType::kF32:
      return visitor.Float(static_cast<double>(cursor.Take<float>()));
    case GgufValueType::kF64:
      return visitor.Float(cursor.Take<double>());
    case GgufValueType::kBool:
      return visitor.Bool(cursor.Take<std::uint8_t>() != 0);
    case GgufValueType::kString: {
      const auto text = cursor.Bytes(cursor.Take<std::uint64_t>());
      return visitor.String({reinterpret_cast<const char*>(text.data()), text.size()});
    }
    case GgufValueType::kArray: {
      const auto element = static_cast<GgufValueType>(cursor.Take<std::uint32_t>());
      const auto count = cursor.Take<std::uint64_t>();
      if (!visitor.BeginArray(element, count)) {
        if (const std::size_t size = GgufScalarBytes(element); size > 0) {
          cursor.Bytes(count * size);
        } else {
          for (std::uint64_t i = 0; i < count; ++i) CheckValue(cursor, element, 1);
        }
        return;
      }
      for (std::uint64_t i = 0; i < count; ++i) Visit(cursor, element, visitor);
      return visitor.EndArray();
    }
  }
}

GgufField Own(std::string key, GgufValueType type, std::vector<std::byte> bytes) {
  auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  GgufField field;
  field.key = std::move(key);
  field.type = type;
  field.bytes = *owner;
  field.owner = std::move(owner);
  return field;
}

// The elements of an array of strings; anything else ends the visit with ok = false.
class StringCollector : public GgufVisitor {
 public:
  std::vector<std::string> out;
  bool ok = true;
  void Int(std::int64_t) override { ok = false; }
  void Uint(std::uint64_t) override { ok = false; }
  void Float(double) override { ok = false; }
  void Bool(bool) override { ok = false; }
  void String(std::string_view value) override { out.emplace_back(value); }
  bool BeginArray(GgufValueType element, std::uint64_t) override {
    ok = ok && element == GgufValueType::kString;
    return ok;
  }
  void EndArray() override {}
};

class UintCollector : public GgufVisitor {
 public:
  std::optional<std::uint64_t> out;
  void Int(std::int64_t value) override {
    if (value >= 0) out = static_cast<std::uint64_t>(value);
  }
  void Uint(std::uint64_t value) override { out = value; }
  void Float(double) override {}
  void Bool(bool) override {}
  void String(std::string_view) override {}
  bool BeginArray(GgufValueType, std::uint64_t) override { return false; }
  void EndArray() override {}
};

}  // namespace

bool GgufType::is_float() const { return name == "f32" || name == "f16" || name == "bf16"; }

std::span<const GgufType> GgufTypes() { return kTypes; }

const GgufType* FindGgufType(std::uint32_t id) {
  for (const GgufType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const GgufType* FindGgufType(std::string_view name) {
  if (name == "mxfp4_gg") name = "mxfp4";
  for (const GgufType& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

std::optional<std::uint64_t> GgufElements(std::span<const std::uint64_t> ne) {
  constexpr std::uint64_t kMax = std::uint64_t{1} << 63;
  std::uint64_t n = 1;
  bool empty = false;
  for (const std::uint64_t d : ne) {  // a zero does not excuse dimensions that overflow
    if (d == 0) {
      empty = true;
      continue;
    }
    if (d >= kMax || n > (kMax - 1) / d) return std::nullopt;
    n *= d;
  }
  return empty ? 0 : n;
}

std::optional<std::uint64_t> GgufByteSize(const GgufType& type, std::span<const std::uint64_t> ne) {
  const std::optional<std::uint64_t> n = GgufElements(ne);
  if (!n || GgufRowElements(ne) % type.block != 0) return std::nullopt;
  const std::uint64_t blocks = *n / type.block;
  if (blocks > ((std::uint64_t{1} << 63) - 1) / type.bytes) return std::nullopt;
  return blocks * type.bytes;
}

std::uint64_t GgufRowElements(std::span<const std::uint64_t> ne) { return ne.empty() ? 1 : ne[0]; }

std::string GgufShapeText(std::span<const std::uint64_t> ne) {
  std::string out = "[";
  for (std::size_t i = 0; i < ne.size(); ++i) out += (i ? ", " : "") + std::to_string(ne[i]);
  return out + "]";
}

std::string_view Name(GgufValueType type) {
  constexpr std::array<std::string_view, 13> kNames = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                       "bool", "string", "array", "u64", "i64", "f64"};
  const auto i = static_cast<std::size_t>(type);
  return i < kNames.size() ? kNames[i] : "?";
}

std::size_t GgufScalarBytes(GgufValueType type) {
  constexpr std::array<std::size_t, 13> kSizes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  const auto i = static_cast<std::size_t>(type);
  return i < kSizes.size() ? kSizes[i] : 0;
}

GgufField GgufField::U32(std::string key, std::uint32_t value) {
  std::vector<std::byte> bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return Own(std::move(key), GgufValueType::kU32, std::move(bytes));
}

GgufField GgufField::String(std::string key, std::string_view value) {
  const std::uint64_t n = value.size();
  std::vector<std::byte> bytes(sizeof n + value.size());
  std::memcpy(bytes.data(), &n, sizeof n);
  if (!value.empty()) std::memcpy(bytes.data() + sizeof n, value.data(), value.size());
  return Own(std::move(key), GgufValueType::kString, std::move(bytes));
}

std::optional<std::uint64_t> GgufField::AsUint() const {
  UintCollector collector;
  VisitGgufValue(*this, collector);
  return collector.out;
}

std::optional<std::string_view> GgufField::AsString() const {
  if (type != GgufValueType::kString || bytes.size() < 8) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(bytes.data()) + 8, bytes.size() - 8);
}

std::optional<std::vector<std::string>> GgufField::AsStrings() const {
  if (type != GgufValueType::kArray) return std::nullopt;
  StringCollector collector;
  VisitGgufValue(*this, collector);
  if (!collector.ok) return std::nullopt;
  return std::move(collector.out);
}

void VisitGgufValue(const GgufField& field, GgufVisitor& visitor) {
  const std::string where = "field " + field.key;
  GgufCursor cursor(field.bytes, where, "the GGUF metadata");
  Visit(cursor, field.type, visitor);
}

std::size_t CheckGgufValue(std::span<const std::byte> bytes, GgufValueType type, const std::string& where) {
  GgufCursor cursor(bytes, where, "the GGUF metadata");
  CheckValue(cursor, type, 0);
  return cursor.at();
}

}  // namespace octavo
