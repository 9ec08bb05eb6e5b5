#include "octavo/emit/stablehlo_text.h"

#include <array>
#include <cstdio>
#include <cstring>

#include "octavo/base/error.h"

namespace octavo::stablehlo {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 18;

constexpr std::array<char, 512> kHexPairs = [] {
  std::array<char, 512> pairs{};
  for (std::size_t i = 0; i < 256; ++i) {
    pairs[2 * i] = "0123456789ABCDEF"[i >> 4];
    pairs[2 * i + 1] = "0123456789ABCDEF"[i & 15];
  }
  return pairs;
}();

}  // namespace

std::string ElementType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kF64:
      return "f64";
    case DType::kBool:
      return "i1";
    case DType::kS4:
      return "i4";
    case DType::kS8:
      return "i8";
    case DType::kS16:
      return "i16";
    case DType::kS32:
      return "i32";
    case DType::kS64:
      return "i64";
    case DType::kU4:
      return "ui4";
    case DType::kU8:
      return "ui8";
    case DType::kU16:
      return "ui16";
    case DType::kU32:
      return "ui32";
    case DType::kU64:
      return "ui64";
    default:
      ThrowUnsupported("values of type " + std::string(Name(dtype)), "export to StableHLO", "cast them before");
  }
}

std::string TensorType(DType dtype, std::span<const std::int64_t> dims) {
  std::string text = "tensor<";
  for (const std::int64_t d : dims) text += std::to_string(d) + "x";
  return text + ElementType(dtype) + ">";
}

std::string IntList(std::span<const std::int64_t> values) {
  std::string text = "[";
  for (std::size_t i = 0; i < values.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + "]";
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\' || byte < 0x20 || byte >= 0x7f) {
      out += '\\';
      out.append(&kHexPairs[2 * static_cast<std::size_t>(byte)], 2);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string ScalarLiteral(DType dtype, std::uint64_t bits) {
  if (dtype == DType::kBool) return bits != 0 ? "true" : "false";
  const int width = BitWidth(dtype);
  if (IsFloat(dtype)) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%0*llX", width / 4, static_cast<unsigned long long>(bits));
    return text;
  }
  if (IsSignedInteger(dtype) && width < 64 && (bits >> (width - 1)) != 0) {
    return std::to_string(static_cast<std::int64_t>(bits) - (std::int64_t{1} << width));
  }
  return IsSignedInteger(dtype) ? std::to_string(static_cast<std::int64_t>(bits)) : std::to_string(bits);
}

TextWriter::TextWriter(const std::filesystem::path& path) {
  file_.emplace(path);
  buffer_.reserve(kBuffer + 4096);
}

void TextWriter::Put(std::string_view text) {
  if (!keeps_) return;
  buffer_ += text;
  if (buffer_.size() >= kBuffer) Flush();
}

void TextWriter::Hex(std::span<const std::byte> data) {
  if (!keeps_) return;
  constexpr std::size_t kChunk = kBuffer / 4;
  while (!data.empty()) {
    const std::size_t n = std::min(data.size(), kChunk);
    const std::size_t at = buffer_.size();
    buffer_.resize(at + 2 * n);
    char* out = buffer_.data() + at;
    for (std::size_t i = 0; i < n; ++i) std::memcpy(out + 2 * i, &kHexPairs[2 * static_cast<std::size_t>(data[i])], 2);
    data = data.subspan(n);
    if (buffer_.size() >= kBuffer) Flush();
  }
}

void TextWriter::HexNibbles(std::span<const std::byte> codes) {
  std::array<std::byte, 4096> masked;
  while (!codes.empty()) {
    const std::size_t n = std::min(codes.size(), masked.size());
    for (std::size_t i = 0; i < n; ++i) masked[i] = codes[i] & std::byte{15};
    Hex({masked.data(), n});
    codes = codes.subspan(n);
  }
}

void TextWriter::Flush() {
  if (!file_) return;
  file_->Write(buffer_);
  written_ += buffer_.size();
  buffer_.clear();
}

void TextWriter::Commit() {
  Flush();
  file_->Commit();
}

}  // namespace octavo::stablehlo
