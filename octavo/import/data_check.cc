#include "octavo/import/data_check.h"

#include <cstring>
#include <optional>

#include "octavo/base/error.h"

namespace octavo {
namespace {

bool Digit(char c) { return c >= '0' && c <= '9'; }

template <typename Bits>
std::optional<std::size_t> FirstNotFinite(std::span<const std::byte> bytes, Bits exponent) {
  for (std::size_t i = 0; i < bytes.size(); i += sizeof(Bits)) {
    Bits value;
    std::memcpy(&value, bytes.data() + i, sizeof value);
    if ((value & exponent) == exponent) return i / sizeof(Bits);
  }
  return std::nullopt;
}

std::string NumpyName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF64:
      return "float64";
    case DType::kF16:
      return "float16";
    case DType::kBool:
      return "bool";
    case DType::kString:
      return "str_";
    case DType::kU8:
    case DType::kU16:
    case DType::kU32:
    case DType::kU64:
      return "uint" + std::to_string(BitWidth(dtype));
    case DType::kS8:
    case DType::kS16:
    case DType::kS32:
    case DType::kS64:
      return "int" + std::to_string(BitWidth(dtype));
    default:
      return {};
  }
}

}  // namespace

bool NaturalLess(std::string_view a, std::string_view b) {
  std::size_t i = 0, j = 0;
  int zeros = 0;  // decides between equal names only
  while (i < a.size() && j < b.size()) {
    if (Digit(a[i]) && Digit(b[j])) {
      const std::size_t a_start = i, b_start = j;
      while (i < a.size() && a[i] == '0') ++i;
      while (j < b.size() && b[j] == '0') ++j;
      const std::size_t a_number = i, b_number = j;
      while (i < a.size() && Digit(a[i])) ++i;
      while (j < b.size() && Digit(b[j])) ++j;
      if (i - a_number != j - b_number) return i - a_number < j - b_number;
      const int order = a.substr(a_number, i - a_number).compare(b.substr(b_number, j - b_number));
      if (order != 0) return order < 0;
      if (zeros == 0 && i - a_start != j - b_start) zeros = i - a_start < j - b_start ? -1 : 1;
      continue;
    }
    if (a[i] != b[j]) return static_cast<unsigned char>(a[i]) < static_cast<unsigned char>(b[j]);
    ++i;
    ++j;
  }
  if (a.size() - i != b.size() - j) return a.size() - i < b.size() - j;
  return zeros < 0;
}

std::string ToString(const InputSpec& input) {
  std::string out(Name(input.dtype));
  if (input.any_rank) return out + "[...]";
  out += "[";
  for (std::size_t d = 0; d < input.dims.size(); ++d) {
    const Dim& dim = input.dims[d];
    out += d > 0 ? "," : "";
    out += dim.known() ? std::to_string(dim.value) : dim.symbol.empty() ? "?" : dim.symbol;
  }
  return out + "]";
}

std::string ToString(DType dtype, std::span<const std::int64_t> dims) {
  std::string out = std::string(Name(dtype)) + "[";
  for (std::size_t d = 0; d < dims.size(); ++d) out.append(d > 0 ? "," : "").append(std::to_string(dims[d]));
  return out + "]";
}

void SampleChecker::Check(const InputSpec& input, DType dtype, std::span<const std::int64_t> dims,
                          const std::string& where) {
  const auto fail = [&](const std::string& what, const std::string& how) {
    ThrowBadInput(
        what + " for input '" + input.name + "': expected " + ToString(input) + ", found " + ToString(dtype, dims),
        where, how);
  };
  if (dtype != input.dtype) {
    const std::string numpy = NumpyName(input.dtype);
    fail("wrong element type",
         numpy.empty() ? "save the data with this type" : "convert it with .astype(numpy." + numpy + ")");
  }
  if (input.any_rank) return;
  if (dims.size() != input.dims.size()) fail("wrong number of dimensions", "save the data with the model's shape");
  for (std::size_t d = 0; d < dims.size(); ++d) {
    const Dim& dim = input.dims[d];
    if (dim.known()) {
      if (dims[d] != dim.value) fail("wrong shape", "save the data with the model's shape");
    } else if (!dim.symbol.empty()) {
      const auto [it, inserted] = symbols_.try_emplace(dim.symbol, Seen{dims[d], input.name});
      if (!inserted && it->second.size != dims[d]) {
        fail("dimension '" + dim.symbol + "' is " + std::to_string(it->second.size) + " in input '" + it->second.input +
                 "' and " + std::to_string(dims[d]) + " here, wrong shape",
             "a named dimension has one size within a sample");
      }
    }
  }
}

void CheckFinite(const TensorRef& tensor, const InputSpec& input, const std::string& where) {
  std::optional<std::size_t> at;
  if (tensor.dtype == DType::kF32) at = FirstNotFinite<std::uint32_t>(tensor.bytes, 0x7f800000u);
  if (tensor.dtype == DType::kF64) at = FirstNotFinite<std::uint64_t>(tensor.bytes, 0x7ff0000000000000u);
  if (tensor.dtype == DType::kF16) at = FirstNotFinite<std::uint16_t>(tensor.bytes, 0x7c00u);
  if (tensor.dtype == DType::kBF16) at = FirstNotFinite<std::uint16_t>(tensor.bytes, 0x7f80u);
  if (!at) return;
  ThrowBadInput("NaN or infinity in the data for input '" + input.name + "', element " + std::to_string(*at), where,
                "remove this sample or repair it");
}

}  // namespace octavo
