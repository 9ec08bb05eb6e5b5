#include "octavo/import/npy.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// The header's text is a Python literal: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  NpyHeader Parse() {
    NpyHeader header;
    bool descr = false, order = false, shape = false;
    Take('{');
    while (!TryTake('}')) {
      const std::string_view key = String();
      Take(':');
      bool& seen = key == "descr" ? descr : key == "fortran_order" ? order : shape;
      if (key != "descr" && key != "fortran_order" && key != "shape") Bad("unknown key in .npy header");
      if (std::exchange(seen, true)) Bad("key twice in .npy header");
      if (key == "descr") {
        Descr(header);
      } else if (key == "fortran_order") {
        header.fortran_order = Boolean();
      } else {
        header.dims = Shape();
      }
      if (!TryTake(',')) {
        Take('}');
        break;
      }
    }
    Skip();
    if (at_ != text_.size()) Bad("text after the .npy header");
    if (!descr || !order || !shape) Bad("incomplete .npy header");
    return header;
  }

 private:
  [[noreturn]] void Bad(const char* what) const {
    ThrowBadInput(what, name_ + ", header character " + std::to_string(at_), "write the file again with numpy.save");
  }
  void Skip() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') ++at_;
  }
  bool TryTake(char c) {
    Skip();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void Take(char c) {
    if (!TryTake(c)) Bad("malformed .npy header");
  }
  std::string_view String() {
    Skip();
    const char quote = at_ < text_.size() ? text_[at_] : '\0';
    if (quote != '\'' && quote != '"') Bad("malformed .npy header");
    const std::size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) Bad("malformed .npy header");
    const std::string_view out = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return out;
  }
  bool Boolean() {
    Skip();
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}}) {
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return value;
    }
    Bad("malformed .npy header");
  }
  Dims Shape() {
    Dims dims;
    Take('(');
    while (!TryTake(')')) {
      Skip();
      const std::size_t start = at_;
      std::int64_t value = 0;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
        const int digit = text_[at_] - '0';
        if (value > (INT64_MAX - digit) / 10) Bad("dimension too large in .npy header");
        value = value * 10 + digit;
      }
      if (at_ == start) Bad("malformed .npy header");
      if (at_ < text_.size() && text_[at_] == 'L') ++at_;  // a Python 2 long
      if (dims.size() == 64) Bad("more than 64 dimensions in .npy header");
      dims.push_back(value);
      if (!TryTake(',')) {
        Take(')');
        break;
      }
    }
    return dims;
  }
  void Descr(NpyHeader& header) {
    Skip();
    if (at_ < text_.size() && text_[at_] == '[') Unsupported("a structured type");
    const std::string_view descr = String();
    // Byte order, kind, size in bytes.
    struct Row {
      std::string_view kind;
      DType dtype;
    };
    static constexpr Row kRows[] = {
        {"b1", DType::kBool}, {"u1", DType::kU8},  {"i1", DType::kS8},  {"u2", DType::kU16},  {"i2", DType::kS16},
        {"u4", DType::kU32},  {"i4", DType::kS32}, {"u8", DType::kU64}, {"i8", DType::kS64},  {"f2", DType::kF16},
        {"f4", DType::kF32},  {"f8", DType::kF64}, {"c8", DType::kC64}, {"c16", DType::kC128}};
    if (!descr.empty() && std::strchr("<>|=", descr[0]) != nullptr) {
      for (const Row& row : kRows) {
        if (descr.substr(1) != row.kind) continue;
        header.dtype = row.dtype;
        header.item_bytes = static_cast<std::size_t>(BitWidth(row.dtype)) / 8;
        header.big_endian = descr[0] == '>' && BitWidth(row.dtype) > 8;
        return;
      }
      if (descr.size() > 1 && (descr[1] == 'U' || descr[1] == 'S')) return Strings(descr, header);
    }
    Unsupported("type '" + std::string(descr.substr(0, 40)) + "'");
  }
  // "<U7", "|S7": strings of at most so many characters or bytes.
  void Strings(std::string_view descr, NpyHeader& header) {
    constexpr std::size_t kMaxLength = std::size_t{1} << 24;
    std::size_t length = 0;
    const auto [end, error] = std::from_chars(descr.data() + 2, descr.data() + descr.size(), length);
    if (error != std::errc() || end != descr.data() + descr.size()) Bad("malformed .npy header");
    if (length == 0 || length > kMaxLength) Unsupported("type '" + std::string(descr.substr(0, 40)) + "'");
    header.dtype = DType::kString;
    header.utf32 = descr[1] == 'U';
    header.big_endian = header.utf32 && descr[0] == '>';
    header.item_bytes = header.utf32 ? 4 * length : length;
  }
  [[noreturn]] void Unsupported(const std::string& what) const {
    ThrowUnsupported("array of " + what, name_, "convert it with numpy's astype to the model's input type");
  }

  std::string_view text_;
  std::size_t at_ = 0;
  const std::string& name_;
};

std::vector<std::byte> ToRowMajor(const std::vector<std::byte>& data, const Dims& dims, std::size_t item) {
  std::vector<std::byte> out(data.size());
  // Walks the output in row-major order and keeps the column-major offset of the element at hand.
  std::vector<std::size_t> stride(dims.size()), index(dims.size(), 0);
  std::size_t step = item;
  for (std::size_t d = 0; d < dims.size(); ++d) {
    stride[d] = step;
    step *= static_cast<std::size_t>(dims[d]);
  }
  std::size_t from = 0;
  for (std::size_t to = 0; to < out.size(); to += item) {
    std::memcpy(out.data() + to, data.data() + from, item);
    for (std::size_t d = dims.size(); d-- > 0;) {
      from += stride[d];
      if (++index[d] < static_cast<std::size_t>(dims[d])) break;
      from -= stride[d] * index[d];
      index[d] = 0;
    }
  }
  return out;
}

void AppendUtf8(char32_t c, std::string& out) {
  const auto rest = [&](int shift) { out.push_back(static_cast<char>(0x80 | (c >> shift & 0x3f))); };
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xc0 | c >> 6));
    rest(0);
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xe0 | c >> 12));
    rest(6);
    rest(0);
  } else {
    out.push_back(static_cast<char>(0xf0 | c >> 18));
    rest(12);
    rest(6);
    rest(0);
  }
}

// Row-major little-endian items; zeros fill a string up.
TensorRef StringTensor(const NpyHeader& header, std::span<const std::byte> data, const std::string& name) {
  auto strings = std::make_shared<std::vector<std::string>>();
  strings->reserve(data.size() / header.item_bytes);
  for (std::size_t at = 0; at < data.size(); at += header.item_bytes) {
    const auto item = data.subspan(at, header.item_bytes);
    const auto bad = [&](const char* what) {
      ThrowBadInput(what, name + ", string " + std::to_string(strings->size()), "repair this sample");
    };
    std::string text;
    std::size_t zeros = 0;
    for (std::size_t i = 0; i < item.size(); i += header.utf32 ? 4 : 1) {
      char32_t c = std::to_integer<unsigned char>(item[i]);
      if (header.utf32) {
        std::uint32_t value = 0;
        std::memcpy(&value, item.data() + i, sizeof value);
        c = value;
      }
      if (c == 0) {
        ++zeros;
        continue;
      }
      if (zeros > 0) bad("a zero character within a string");
      if (!header.utf32) {
        text.push_back(static_cast<char>(c));
        continue;
      }
      if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) bad("what is no Unicode character in a string");
      AppendUtf8(c, text);
    }
    strings->push_back(std::move(text));
  }
  TensorRef out;
  out.dtype = DType::kString;
  out.dims = header.dims;
  out.strings = std::move(strings);
  return out;
}

}  // namespace

NpyHeader ParseNpyHeader(std::span<const std::byte> bytes, const std::string& name) {
  const auto at = [&](std::size_t i) { return std::to_integer<std::size_t>(bytes[i]); };
  static constexpr unsigned char kMagic[] = {0x93, 'N', 'U', 'M', 'P', 'Y'};
  if (bytes.size() < 10 || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    ThrowBadInput("not a .npy array", name, "write it with numpy.save or numpy.savez");
  }
  const std::size_t version = at(6);
  if (version < 1 || version > 3) {
    ThrowUnsupported("array of .npy version " + std::to_string(version), name, "versions 1 to 3 are read");
  }
  const std::size_t prefix = version == 1 ? 10 : 12;
  if (bytes.size() < prefix) ThrowBadInput("truncated .npy header", name);
  std::size_t length = at(8) | at(9) << 8;
  if (version > 1) length |= at(10) << 16 | at(11) << 24;
  if (length > kMaxNpyHeader - prefix) ThrowBadInput(".npy header of " + std::to_string(length) + " bytes", name);
  if (length > bytes.size() - prefix) ThrowBadInput("truncated .npy header", name);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + prefix, length);
  NpyHeader header = HeaderParser(text, name).Parse();
  header.header_bytes = prefix + length;
  if (__builtin_mul_overflow(ElementCount(header.dims, name), std::uint64_t{header.item_bytes}, &header.data_bytes)) {
    ThrowBadInput("array too large", name);
  }
  return header;
}

TensorRef NpyTensor(const NpyHeader& header, std::vector<std::byte> data, const std::string& name) {
  if (data.size() != header.data_bytes) ThrowInternal("array data do not fit their header");
  const std::size_t item = header.item_bytes;
  if (header.big_endian) {
    const bool complex = header.dtype == DType::kC64 || header.dtype == DType::kC128;  // two numbers each
    const std::size_t number = header.utf32 ? 4 : complex ? item / 2 : item;
    for (std::size_t i = 0; i < data.size(); i += number) {
      std::reverse(data.begin() + static_cast<std::ptrdiff_t>(i),
                   data.begin() + static_cast<std::ptrdiff_t>(i + number));
    }
  }
  if (header.fortran_order && header.dims.size() > 1) data = ToRowMajor(data, header.dims, item);
  if (header.dtype == DType::kString) return StringTensor(header, data, name);
  return TensorRef::FromBytes(header.dtype, header.dims, std::move(data));
}

TensorRef ReadNpy(const ByteSource& source) {
  const NpyHeader header = ParseNpyHeader(source.bytes, source.name);
  const auto data = source.bytes.subspan(header.header_bytes);
  if (data.size() != header.data_bytes) {
    ThrowBadInput("array data of " + std::to_string(data.size()) + " bytes, where its header says " +
                      std::to_string(header.data_bytes),
                  source.name, "the file is damaged; write it again");
  }
  if (!header.plain()) return NpyTensor(header, {data.begin(), data.end()}, source.name);
  TensorRef out;
  out.dtype = header.dtype;
  out.dims = header.dims;
  out.bytes = data;
  out.owner = source.owner;
  out.file = source.file;
  return out;
}

}  // namespace octavo
