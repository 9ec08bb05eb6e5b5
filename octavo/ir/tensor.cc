#include "octavo/ir/tensor.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are little-endian and read in place");

// A small float: sign, `exponent` bits, `mantissa` bits; `bias`. Specials are handled by the caller.
float DecodeMini(std::uint32_t bits, int exponent, int mantissa, int bias) {
  const std::uint32_t man = bits & ((1u << mantissa) - 1);
  const int exp = static_cast<int>((bits >> mantissa) & ((1u << exponent) - 1));
  const bool negative = ((bits >> (mantissa + exponent)) & 1) != 0;
  const float magnitude = exp == 0 ? std::ldexp(static_cast<float>(man), 1 - bias - mantissa)
                                   : std::ldexp(static_cast<float>(man | (1u << mantissa)), exp - bias - mantissa);
  return negative ? -magnitude : magnitude;
}

float DecodeHalf(std::uint32_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16;
  const std::uint32_t exp = (h >> 10) & 0x1Fu;
  const std::uint32_t man = h & 0x3FFu;
  if (exp == 0) {  // zero and subnormals: man * 2^-24 is exact
    const float magnitude = static_cast<float>(man) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exp == 31) return std::bit_cast<float>(sign | 0x7F800000u | (man << 13));
  return std::bit_cast<float>(sign | ((exp + 112) << 23) | (man << 13));
}

std::uint32_t EncodeHalf(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t mag = bits & 0x7FFFFFFFu;
  if (mag > 0x7F800000u) return sign | 0x7E00u | ((mag >> 13) & 0x3FFu);
  if (mag >= 0x477FF000u) return sign | 0x7C00u;  // rounds to 65536 or more
  if (mag < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    // Adding 1.5 * 2^-1 puts the unit of the last place at 2^-24, so the addition rounds half to even.
    const float shifted = std::bit_cast<float>(mag) + 0.5f;
    return sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u);
  }
  const std::uint32_t rounded = mag + 0xFFFu + ((mag >> 13) & 1u);
  return sign | ((rounded - 0x38000000u) >> 13);
}

std::uint32_t EncodeBf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

void CheckStored(const TensorRef& tensor, std::uint64_t elements) {
  const auto size = ByteSize(tensor.dtype, elements);
  if (!size || *size > tensor.bytes.size()) {
    ThrowInternal("tensor data are shorter than its dimensions say", std::string(Name(tensor.dtype)));
  }
}

template <typename Stored, typename Out>
void Widen(const TensorRef& tensor, std::vector<Out>& out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored v;
    std::memcpy(&v, tensor.bytes.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<Out>(v);  // NOLINT(bugprone-signed-char-misuse): int8_t is a number here, not a character
  }
}

}  // namespace

std::uint64_t ElementCount(std::span<const std::int64_t> dims, const std::string& where) {
  // A zero anywhere makes the product zero, but a nonsensical dimension beside it is still an error.
  std::uint64_t product = 1;
  bool zero = false;
  for (const std::int64_t d : dims) {
    if (d < 0) ThrowBadInput("negative dimension " + std::to_string(d), where);
    if (d == 0) {
      zero = true;
      continue;
    }
    if (product > (std::uint64_t{1} << 63) / static_cast<std::uint64_t>(d)) {
      ThrowBadInput("dimensions overflow", where);
    }
    product *= static_cast<std::uint64_t>(d);
  }
  if (product >= (std::uint64_t{1} << 63)) ThrowBadInput("dimensions overflow", where);
  return zero ? 0 : product;
}

namespace {

// Shared by the owners: any container with data() and size() of bytes.
template <typename Buffer>
TensorRef Owning(DType dtype, Dims dims, Buffer data) {
  const auto size = ByteSize(dtype, ElementCount(dims));
  if (!size || *size != data.size()) {
    ThrowInternal("tensor data of " + std::to_string(data.size()) + " bytes do not fit its dimensions",
                  std::string(Name(dtype)));
  }
  const auto owner = std::make_shared<const Buffer>(std::move(data));
  TensorRef out;
  out.dtype = dtype;
  out.dims = std::move(dims);
  out.bytes = {owner->data(), owner->size()};
  out.owner = owner;
  return out;
}

}  // namespace

TensorRef TensorRef::FromBytes(DType dtype, Dims dims, std::vector<std::byte> data) {
  return Owning(dtype, std::move(dims), std::move(data));
}

TensorRef TensorRef::FromBuffer(DType dtype, Dims dims, SpillBuffer data) {
  return Owning(dtype, std::move(dims), std::move(data));
}

TensorRef TensorRef::FromFloats(Dims dims, std::span<const float> values) {
  std::vector<std::byte> data(values.size() * sizeof(float));
  if (!data.empty()) std::memcpy(data.data(), values.data(), data.size());
  return FromBytes(DType::kF32, std::move(dims), std::move(data));
}

TensorRef TensorRef::FromInts(DType dtype, Dims dims, std::span<const std::int64_t> values) {
  if (!IsInteger(dtype) && dtype != DType::kBool) ThrowInternal("not an integer type", std::string(Name(dtype)));
  const auto bits = static_cast<std::size_t>(BitWidth(dtype));
  const auto size = ByteSize(dtype, values.size());
  if (!size) ThrowInternal("too many elements", std::string(Name(dtype)));
  std::vector<std::byte> data(*size);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t v = values[i];
    const bool fits = dtype == DType::kBool ? v == 0 || v == 1
                      : bits <= 32          ? v >= IntegerMin(dtype) && v <= IntegerMax(dtype)
                                            : v >= 0 || dtype == DType::kS64;
    if (!fits) ThrowInternal("value " + std::to_string(v) + " is out of range", std::string(Name(dtype)));
    if (bits < 8) {
      const std::size_t per_byte = 8 / bits;
      const std::uint64_t code = static_cast<std::uint64_t>(v) & ((1u << bits) - 1);
      data[i / per_byte] |= static_cast<std::byte>(code << (i % per_byte * bits));
    } else {
      std::memcpy(data.data() + i * (bits / 8), &v, bits / 8);
    }
  }
  return FromBytes(dtype, std::move(dims), std::move(data));
}

std::uint64_t ElementBits(const TensorRef& tensor, std::uint64_t i) {
  const auto bits = static_cast<std::uint64_t>(BitWidth(tensor.dtype));
  if (bits == 0 || bits > 64) ThrowInternal("elements have no fixed bits", std::string(Name(tensor.dtype)));
  if (bits < 8) {
    const std::uint64_t per_byte = 8 / bits;
    const auto byte = std::to_integer<std::uint64_t>(tensor.bytes[i / per_byte]);
    return (byte >> (i % per_byte * bits)) & ((1u << bits) - 1);
  }
  std::uint64_t out = 0;
  std::memcpy(&out, tensor.bytes.data() + i * (bits / 8), bits / 8);
  return out;
}

float BitsToFloat(DType dtype, std::uint32_t bits) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  switch (dtype) {
    case DType::kF32:
      return std::bit_cast<float>(bits);
    case DType::kF16:
      return DecodeHalf(bits);
    case DType::kBF16:
      return std::bit_cast<float>(bits << 16);
    case DType::kF8E4M3FN:  // OCP FP8: no Inf, NaN is S.1111.111
      return (bits & 0x7F) == 0x7F ? kNaN : DecodeMini(bits, 4, 3, 7);
    case DType::kF8E4M3FNUZ:  // no Inf, no negative zero: 0x80 is NaN
      return bits == 0x80 ? kNaN : DecodeMini(bits, 4, 3, 8);
    case DType::kF8E5M2:
      if ((bits & 0x7F) > 0x7C) return kNaN;
      if ((bits & 0x7F) == 0x7C) return (bits & 0x80) != 0 ? -kInf : kInf;
      return DecodeMini(bits, 5, 2, 15);
    case DType::kF8E5M2FNUZ:
      return bits == 0x80 ? kNaN : DecodeMini(bits, 5, 2, 16);
    case DType::kF4E2M1:
      return DecodeMini(bits, 2, 1, 1);
    case DType::kF8E8M0:  // OCP MX scale: a power of two
      return bits == 0xFF ? kNaN : std::ldexp(1.0f, static_cast<int>(bits) - 127);
    default:
      ThrowInternal("not a float type of at most 32 bits", std::string(Name(dtype)));
  }
}

std::uint32_t FloatToBits(DType dtype, float value) {
  switch (dtype) {
    case DType::kF32:
      return std::bit_cast<std::uint32_t>(value);
    case DType::kF16:
      return EncodeHalf(value);
    case DType::kBF16:
      return EncodeBf16(value);
    default:
      ThrowInternal("no encoding of a float as this type", std::string(Name(dtype)));
  }
}

std::span<const float> FloatView(const TensorRef& tensor, std::vector<float>& storage) {
  if (tensor.dtype == DType::kF32 && reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % alignof(float) == 0) {
    CheckStored(tensor, tensor.elements());
    return {reinterpret_cast<const float*>(tensor.bytes.data()), tensor.bytes.size() / sizeof(float)};
  }
  storage = tensor.ToFloats();
  return storage;
}

std::vector<float> TensorRef::ToFloats() const {
  const std::uint64_t n = elements();
  CheckStored(*this, n);
  std::vector<float> out(n);
  switch (dtype) {
    case DType::kF32:
      if (n > 0) std::memcpy(out.data(), bytes.data(), n * sizeof(float));
      return out;
    case DType::kF64:
      Widen<double>(*this, out);
      return out;
    case DType::kU64:
      Widen<std::uint64_t>(*this, out);
      return out;
    default:
      break;
  }
  if (IsFloat(dtype)) {
    for (std::uint64_t i = 0; i < n; ++i)
      out[i] = BitsToFloat(dtype, static_cast<std::uint32_t>(ElementBits(*this, i)));
    return out;
  }
  const std::vector<std::int64_t> ints = ToInts();
  for (std::uint64_t i = 0; i < n; ++i) out[i] = static_cast<float>(ints[i]);
  return out;
}

std::vector<std::int64_t> TensorRef::ToInts() const {
  if (!IsInteger(dtype) && dtype != DType::kBool) ThrowInternal("not an integer tensor", std::string(Name(dtype)));
  const std::uint64_t n = elements();
  CheckStored(*this, n);
  std::vector<std::int64_t> out(n);
  switch (dtype) {
    case DType::kU8:
      Widen<std::uint8_t>(*this, out);
      return out;
    case DType::kS8:
      Widen<std::int8_t>(*this, out);
      return out;
    case DType::kU16:
      Widen<std::uint16_t>(*this, out);
      return out;
    case DType::kS16:
      Widen<std::int16_t>(*this, out);
      return out;
    case DType::kU32:
      Widen<std::uint32_t>(*this, out);
      return out;
    case DType::kS32:
      Widen<std::int32_t>(*this, out);
      return out;
    case DType::kBool:
      for (std::uint64_t i = 0; i < n; ++i) out[i] = bytes[i] != std::byte{0} ? 1 : 0;
      return out;
    case DType::kS64:
    case DType::kU64:  // above 2^63 wraps, as the bits say
      Widen<std::int64_t>(*this, out);
      return out;
    default:
      break;
  }
  const int bits = BitWidth(dtype);  // 2 or 4
  const std::int64_t sign = std::int64_t{1} << (bits - 1);
  for (std::uint64_t i = 0; i < n; ++i) {
    const auto code = static_cast<std::int64_t>(ElementBits(*this, i));
    out[i] = IsSignedInteger(dtype) ? (code ^ sign) - sign : code;
  }
  return out;
}

bool SameContent(const TensorRef& a, const TensorRef& b) {
  if (a.dtype != b.dtype || a.dims != b.dims || a.bytes.size() != b.bytes.size()) return false;
  if (a.strings != b.strings) {
    static const std::vector<std::string> kNone;
    if ((a.strings ? *a.strings : kNone) != (b.strings ? *b.strings : kNone)) return false;
  }
  return a.bytes.empty() || a.bytes.data() == b.bytes.data() ||
         std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

}  // namespace octavo
