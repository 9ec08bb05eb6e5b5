#include "octavo/ir/text_literals.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/ir/text_syntax.h"

namespace octavo::text {
namespace {

void Store(std::vector<std::byte>& data, DType dtype, std::uint64_t i, std::uint64_t bits) {
  const auto width = static_cast<std::uint64_t>(BitWidth(dtype));
  if (width < 8) {
    const std::uint64_t per_byte = 8 / width;
    data[i / per_byte] |= static_cast<std::byte>(bits << (i % per_byte * width));
  } else {
    std::memcpy(data.data() + i * (width / 8), &bits, width / 8);
  }
}

TensorRef Strings(Dims dims, std::vector<std::string> list) {
  TensorRef t;
  t.dtype = DType::kString;
  t.dims = std::move(dims);
  t.strings = std::make_shared<const std::vector<std::string>>(std::move(list));
  return t;
}

}  // namespace

DType LiteralReader::TakeDType() {
  const auto dtype = Word() || Punct("?") ? ParseDType(cur_.text) : std::nullopt;
  if (!dtype) Fail("expected an element type");
  Next();
  return *dtype;
}

std::uint64_t LiteralReader::ParseElement(DType dtype) {
  const std::size_t offset = cur_.offset;
  const int width = BitWidth(dtype);
  if (width == 0 || width > 64 || dtype == DType::kC64) Fail("this element type has no literals; use hex");
  const std::uint64_t mask = width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
  if (dtype == DType::kBool && (Word("true") || Word("false"))) {
    const bool v = cur_.text == "true";
    Next();
    return v ? 1 : 0;
  }
  if (Word("nan")) {
    Next();
    if (!Accept("(")) return Encode(dtype, std::numeric_limits<double>::quiet_NaN(), offset);
    const std::uint64_t bits = TakeBits(mask);
    Expect(")");
    return bits;
  }
  if (Word("inf")) {
    Next();
    return Encode(dtype, std::numeric_limits<double>::infinity(), offset);
  }
  if (cur_.kind != Tok::kNumber) Fail("expected a number");
  if (cur_.text.starts_with("0x")) return TakeBits(mask);
  if (IsFloat(dtype)) {
    if (cur_.text == "-inf") {
      Next();
      return Encode(dtype, -std::numeric_limits<double>::infinity(), offset);
    }
    return TakeFloat(dtype);
  }
  return TakeInteger(dtype, mask);
}

std::uint64_t LiteralReader::TakeBits(std::uint64_t mask) {
  std::uint64_t bits = 0;
  const std::string& s = cur_.text;
  bool ok = cur_.kind == Tok::kNumber && s.size() > 2 && s.starts_with("0x");
  if (ok) {
    const auto [end, error] = std::from_chars(s.data() + 2, s.data() + s.size(), bits, 16);
    ok = error == std::errc() && end == s.data() + s.size() && (bits & ~mask) == 0;
  }
  if (!ok) Fail("expected hexadecimal bits that fit the element type");
  Next();
  return bits;
}

std::uint64_t LiteralReader::Encode(DType dtype, double v, std::size_t offset) const {
  switch (dtype) {
    case DType::kF64:
      return std::bit_cast<std::uint64_t>(v);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return FloatToBits(dtype, static_cast<float>(v));
    default:
      FailAt(offset, std::string("a literal of ") + std::string(Name(dtype)) + " is its bits, as 0x3c");
  }
}

std::uint64_t LiteralReader::TakeFloat(DType dtype) {
  const std::size_t offset = cur_.offset;
  const char* begin = cur_.text.data();
  const char* stop = begin + cur_.text.size();
  std::uint64_t bits = 0;
  bool ok = false;
  if (dtype == DType::kF64) {
    double v = 0;
    const auto [end, error] = std::from_chars(begin, stop, v);
    ok = error == std::errc() && end == stop;
    if (ok) bits = Encode(dtype, v, offset);
  } else {
    float v = 0;
    const auto [end, error] = std::from_chars(begin, stop, v);
    ok = error == std::errc() && end == stop;
    if (ok) bits = Encode(dtype, static_cast<double>(v), offset);
  }
  if (!ok) Fail("expected a number within the range of " + std::string(Name(dtype)));
  Next();
  return bits;
}

std::uint64_t LiteralReader::TakeInteger(DType dtype, std::uint64_t mask) {
  const char* begin = cur_.text.data();
  const char* stop = begin + cur_.text.size();
  std::uint64_t bits = 0;
  bool ok = false;
  if (IsSignedInteger(dtype)) {
    std::int64_t v = 0;
    const auto [end, error] = std::from_chars(begin, stop, v);
    ok = error == std::errc() && end == stop;
    if (BitWidth(dtype) <= 32) ok = ok && v >= IntegerMin(dtype) && v <= IntegerMax(dtype);
    bits = static_cast<std::uint64_t>(v) & mask;
  } else {
    const auto [end, error] = std::from_chars(begin, stop, bits);
    ok = error == std::errc() && end == stop && bits <= mask;
  }
  if (!ok) Fail("expected an integer within the range of " + std::string(Name(dtype)));
  Next();
  return bits;
}

TensorRef LiteralReader::Filled(DType dtype, Dims dims, std::uint64_t bits, std::uint64_t n) {
  std::vector<std::byte> data(*ByteSize(dtype, n));
  if (bits != 0) {
    for (std::uint64_t i = 0; i < n; ++i) Store(data, dtype, i, bits);
  }
  return TensorRef::FromBytes(dtype, std::move(dims), std::move(data));
}

void LiteralReader::Charge(std::uint64_t bytes, std::size_t offset) {
  if (bytes > fill_left_) FailAt(offset, "blob and splat literals are too large together");
  fill_left_ -= bytes;
}

TensorRef LiteralReader::ParseTensor() {
  const std::size_t offset = cur_.offset;
  const DType dtype = TakeDType();
  Dims dims;
  Expect("[");
  while (!Accept("]")) {
    dims.push_back(TakeInt());
    if (!Punct("]")) Expect(",");
  }
  std::uint64_t n = 0;
  try {
    n = ElementCount(dims);
  } catch (const Error& e) {
    FailAt(offset, e.reason());
  }
  const bool strings = dtype == DType::kString;
  const auto size = strings ? std::optional<std::uint64_t>(0) : ByteSize(dtype, n);
  if (!size) FailAt(offset, "a tensor needs an element type and a size in bytes");
  if (Word("hex") && !strings) {
    const std::string bytes = TakeHex();
    if (bytes.size() != *size) {
      FailAt(offset, std::to_string(bytes.size()) + " bytes for a tensor of " + std::to_string(*size));
    }
    std::vector<std::byte> data(bytes.size());
    if (!data.empty()) std::memcpy(data.data(), bytes.data(), bytes.size());
    return TensorRef::FromBytes(dtype, std::move(dims), std::move(data));
  }
  if (Word("blob")) {
    Next();
    Expect("<");
    const bool word = cur_.kind == Tok::kWord || cur_.kind == Tok::kNumber;
    if (!word || cur_.text.size() != kBlobDigits ||
        !std::all_of(cur_.text.begin(), cur_.text.end(), [](char c) { return HexDigit(c) >= 0; })) {
      Fail("expected 16 hexadecimal digits");
    }
    Next();
    Expect(">");
    if (strings) {
      if (n > fill_left_ / sizeof(std::string)) FailAt(offset, "blob and splat literals are too large together");
      Charge(n * sizeof(std::string), offset);
      return Strings(std::move(dims), std::vector<std::string>(n));
    }
    Charge(*size, offset);
    return Filled(dtype, std::move(dims), 0, n);
  }
  if (Word("splat") && !strings) {
    Next();
    Expect("(");
    const std::uint64_t bits = ParseElement(dtype);
    Expect(")");
    Charge(*size, offset);
    return Filled(dtype, std::move(dims), bits, n);
  }
  return ParseElements(dtype, std::move(dims), n, offset);
}

TensorRef LiteralReader::ParseElements(DType dtype, Dims dims, std::uint64_t n, std::size_t offset) {
  // An element takes at least one character and a comma, so the text bounds what is allocated.
  if (n > size()) FailAt(offset, "fewer elements than the dimensions say");
  const bool strings = dtype == DType::kString;
  std::vector<std::string> list;
  std::vector<std::byte> data(strings ? 0 : *ByteSize(dtype, n));
  const bool bracket = !dims.empty();
  if (bracket) Expect("[");
  std::uint64_t i = 0;
  while (bracket ? !Accept("]") : i == 0) {
    if (i == n) Fail("more elements than the dimensions say");
    if (strings) {
      list.push_back(TakeString("an element"));
    } else {
      Store(data, dtype, i, ParseElement(dtype));
    }
    ++i;
    if (bracket && !Punct("]")) Expect(",");
  }
  if (i != n) FailAt(offset, "fewer elements than the dimensions say");
  if (strings) return Strings(std::move(dims), std::move(list));
  return TensorRef::FromBytes(dtype, std::move(dims), std::move(data));
}

}  // namespace octavo::text
