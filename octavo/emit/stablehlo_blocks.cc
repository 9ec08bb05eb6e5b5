#include "octavo/emit/stablehlo_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "octavo/base/error.h"
#include "octavo/numerics/ggml.h"
#include "octavo/numerics/half.h"

namespace octavo::stablehlo {
namespace {

constexpr std::array<float, 16> kIq4 = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr std::array<float, 16> kE2m1 = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr std::array<float, 16> kNone = {};

// format, block, sub, codes, shift, table, d, scales, mins, adds_m, values
constexpr BlockForm kForms[] = {
    {"q4_0", 32, 32, DType::kS4, 0, false, DType::kF16, false, false, false, kNone},
    {"q4_1", 32, 32, DType::kS4, 8, false, DType::kF16, false, false, true, kNone},
    {"q5_0", 32, 32, DType::kS8, 0, false, DType::kF16, false, false, false, kNone},
    {"q5_1", 32, 32, DType::kS8, 0, false, DType::kF16, false, false, true, kNone},
    {"q8_0", 32, 32, DType::kS8, 0, false, DType::kF16, false, false, false, kNone},
    {"q2_k", 256, 16, DType::kS4, 0, false, DType::kF16, true, true, false, kNone},
    {"q3_k", 256, 16, DType::kS4, 0, false, DType::kF16, true, false, false, kNone},
    {"q4_k", 256, 32, DType::kS4, 8, false, DType::kF16, true, true, false, kNone},
    {"q5_k", 256, 32, DType::kS8, 0, false, DType::kF16, true, true, false, kNone},
    {"q6_k", 256, 16, DType::kS8, 0, false, DType::kF16, true, false, false, kNone},
    {"iq4_nl", 32, 32, DType::kS4, 8, true, DType::kF16, false, false, false, kIq4},
    {"iq4_xs", 256, 32, DType::kS4, 8, true, DType::kF16, true, false, false, kIq4},
    {"mxfp4_gg", 32, 32, DType::kS4, 8, true, DType::kBF16, false, false, false, kE2m1},
    {"nvfp4", 16, 16, DType::kS4, 8, true, DType::kF16, false, false, false, kE2m1},
    {"tq1_0", 256, 256, DType::kS4, 0, false, DType::kF16, false, false, false, kNone},
    {"tq2_0", 256, 256, DType::kS4, 0, false, DType::kF16, false, false, false, kNone},
};

using Byte = std::uint8_t;

// Where the parts of one block go.
struct Sink {
  std::int8_t* codes;
  std::int8_t* scales;
  std::int8_t* mins;
  Byte* d;       // 2 bytes
  Byte* second;  // 2 bytes
};

// The 6-bit scales and minima of Q4_K and Q5_K.
void SixBitPairs(const Byte* s, Sink& out) {
  for (int j = 0; j < 8; ++j) {
    if (j < 4) {
      out.scales[j] = static_cast<std::int8_t>(s[j] & 63);
      out.mins[j] = static_cast<std::int8_t>(s[j + 4] & 63);
    } else {
      out.scales[j] = static_cast<std::int8_t>((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4));
      out.mins[j] = static_cast<std::int8_t>((s[j + 4] >> 4) | ((s[j] >> 6) << 4));
    }
  }
}

// Nibbles of `half` bytes: low ones first, then high ones.
void Halves(const Byte* q, int half, int shift, std::int8_t* codes) {
  for (int j = 0; j < half; ++j) {
    codes[j] = static_cast<std::int8_t>((q[j] & 15) - shift);
    codes[j + half] = static_cast<std::int8_t>((q[j] >> 4) - shift);
  }
}

void Q5(const Byte* high, const Byte* q, int shift, std::int8_t* codes) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, high, 4);
  for (int j = 0; j < 16; ++j) {
    codes[j] = static_cast<std::int8_t>(((q[j] & 15) | (((bits >> j) & 1) << 4)) - static_cast<unsigned>(shift));
    codes[j + 16] =
        static_cast<std::int8_t>(((q[j] >> 4) | (((bits >> (j + 16)) & 1) << 4)) - static_cast<unsigned>(shift));
  }
}

void One(const BlockForm& form, const Byte* b, Sink out) {
  const std::string_view f = form.format;
  if (f == "q4_0" || f == "iq4_nl") {
    std::memcpy(out.d, b, 2);
    Halves(b + 2, 16, 8, out.codes);
  } else if (f == "q4_1") {
    std::memcpy(out.d, b, 2);
    std::memcpy(out.second, b + 2, 2);
    Halves(b + 4, 16, 8, out.codes);
  } else if (f == "q5_0") {
    std::memcpy(out.d, b, 2);
    Q5(b + 2, b + 6, 16, out.codes);
  } else if (f == "q5_1") {
    std::memcpy(out.d, b, 2);
    std::memcpy(out.second, b + 2, 2);
    Q5(b + 4, b + 8, 0, out.codes);
  } else if (f == "q8_0") {
    std::memcpy(out.d, b, 2);
    std::memcpy(out.codes, b + 2, 32);
  } else if (f == "q2_k") {
    for (int i = 0; i < 16; ++i) {
      out.scales[i] = static_cast<std::int8_t>(b[i] & 15);
      out.mins[i] = static_cast<std::int8_t>(b[i] >> 4);
    }
    for (int i = 0; i < 256; ++i) {
      const Byte q = b[16 + (i / 128) * 32 + i % 32];
      out.codes[i] = static_cast<std::int8_t>((q >> (2 * ((i % 128) / 32))) & 3);
    }
    std::memcpy(out.d, b + 80, 2);
    std::memcpy(out.second, b + 82, 2);
  } else if (f == "q3_k") {
    const Byte *mask = b, *q = b + 32, *s = b + 96;
    for (int i = 0; i < 16; ++i) {
      const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
      const int high = (s[8 + i % 4] >> (2 * (i / 4))) & 3;
      out.scales[i] = static_cast<std::int8_t>((low | (high << 4)) - 32);
    }
    for (int i = 0; i < 256; ++i) {
      const int group = (i % 128) / 32;
      const int two = (q[(i / 128) * 32 + i % 32] >> (2 * group)) & 3;
      const int bit = (mask[i % 32] >> ((i / 128) * 4 + group)) & 1;
      out.codes[i] = static_cast<std::int8_t>(two - (bit != 0 ? 0 : 4));
    }
    std::memcpy(out.d, b + 108, 2);
  } else if (f == "q4_k") {
    std::memcpy(out.d, b, 2);
    std::memcpy(out.second, b + 2, 2);
    SixBitPairs(b + 4, out);
    for (int j = 0; j < 4; ++j) Halves(b + 16 + 32 * j, 32, 8, out.codes + 64 * j);
  } else if (f == "q5_k") {
    std::memcpy(out.d, b, 2);
    std::memcpy(out.second, b + 2, 2);
    SixBitPairs(b + 4, out);
    for (int j = 0; j < 4; ++j) Halves(b + 48 + 32 * j, 32, 0, out.codes + 64 * j);
    for (int i = 0; i < 256; ++i) {
      const int bit = (b[16 + i % 32] >> (i / 32)) & 1;
      out.codes[i] = static_cast<std::int8_t>(out.codes[i] | (bit << 4));
    }
  } else if (f == "q6_k") {
    for (int i = 0; i < 256; ++i) {
      const int half = i / 128, group = (i % 128) / 32, l = i % 32;
      const Byte q = b[64 * half + l + (group % 2) * 32];
      const int low = group < 2 ? q & 15 : q >> 4;
      const int high = (b[128 + 32 * half + l] >> (2 * group)) & 3;
      out.codes[i] = static_cast<std::int8_t>((low | (high << 4)) - 32);
    }
    std::memcpy(out.scales, b + 192, 16);
    std::memcpy(out.d, b + 208, 2);
  } else if (f == "iq4_xs") {
    std::memcpy(out.d, b, 2);
    const int high = b[2] | (b[3] << 8);
    for (int i = 0; i < 8; ++i) {
      const int low = (b[4 + i / 2] >> (4 * (i % 2))) & 15;
      out.scales[i] = static_cast<std::int8_t>((low | (((high >> (2 * i)) & 3) << 4)) - 32);
      Halves(b + 8 + 16 * i, 16, 8, out.codes + 32 * i);
    }
  } else if (f == "mxfp4_gg") {
    // half of 2^(e - 127), for codes that are doubled; bf16 holds all of them
    const std::uint16_t d = FloatToBf16(std::ldexp(1.0f, static_cast<int>(b[0]) - 128));
    std::memcpy(out.d, &d, 2);
    Halves(b + 1, 16, 8, out.codes);
  } else if (f == "tq1_0") {
    constexpr int kPow3[] = {1, 3, 9, 27, 81};
    const auto trit = [&](int byte, int power) {
      const auto q = static_cast<Byte>(byte * kPow3[power]);
      return static_cast<std::int8_t>(((q * 3) >> 8) - 1);
    };
    std::int8_t* to = out.codes;
    for (int n = 0; n < 5; ++n) {
      for (int m = 0; m < 32; ++m) *to++ = trit(b[m], n);
    }
    for (int n = 0; n < 5; ++n) {
      for (int m = 32; m < 48; ++m) *to++ = trit(b[m], n);
    }
    for (int n = 0; n < 4; ++n) {
      for (int m = 48; m < 52; ++m) *to++ = trit(b[m], n);
    }
    std::memcpy(out.d, b + 52, 2);
  } else if (f == "tq2_0") {
    for (int i = 0; i < 256; ++i) {
      out.codes[i] = static_cast<std::int8_t>(((b[(i / 128) * 32 + i % 32] >> (2 * ((i % 128) / 32))) & 3) - 1);
    }
    std::memcpy(out.d, b + 64, 2);
  } else {
    ThrowInternal("no way to take the format apart", std::string(f));
  }
}

// Half of an unsigned E4M3 number; 0x7F is NaN.
std::uint16_t HalfOfUe4m3(Byte x) {
  const int exponent = x >> 3, mantissa = x & 7;
  if (x == 0 || x == 0x7F) return 0;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(1.0f + static_cast<float>(mantissa) / 8, exponent - 7);
  return FloatToHalf(value / 2);
}

float At(DType dtype, const std::vector<std::byte>& data, std::size_t i) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, data.data() + 2 * i, 2);
  return dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

}  // namespace

std::span<const BlockForm> BlockForms() { return kForms; }

const BlockForm* FindBlockForm(std::string_view format) {
  const GgmlFormat* known = FindGgmlFormat(format);
  for (const BlockForm& form : kForms) {
    if (known != nullptr && form.format == known->name) return &form;
  }
  return nullptr;
}

BlockParts TakeApart(const BlockForm& form, std::span<const std::byte> data) {
  const GgmlFormat* format = FindGgmlFormat(form.format);
  if (format == nullptr || data.size() % format->block_bytes != 0) {
    ThrowInternal("not whole blocks", std::string(form.format));
  }
  const std::size_t blocks = data.size() / format->block_bytes;
  const std::size_t n = format->block, subs = n / static_cast<std::size_t>(form.sub);
  const std::size_t ds = n / static_cast<std::size_t>(form.block);
  BlockParts parts;
  parts.codes.resize(blocks * n);
  parts.d.resize(2 * blocks * ds);
  if (form.mins || form.adds_m) parts.second.resize(2 * blocks);
  if (form.scales) parts.scales.resize(blocks * subs);
  if (form.mins) parts.mins.resize(blocks * subs);
  const auto signed_bytes = [](std::vector<std::byte>& v, std::size_t at) {
    return v.empty() ? nullptr : reinterpret_cast<std::int8_t*>(v.data() + at);
  };
  const auto bytes = [](std::vector<std::byte>& v, std::size_t at) {
    return v.empty() ? nullptr : reinterpret_cast<Byte*>(v.data() + at);
  };
  for (std::size_t i = 0; i < blocks; ++i) {
    const Byte* b = reinterpret_cast<const Byte*>(data.data()) + i * format->block_bytes;
    const Sink sink{signed_bytes(parts.codes, i * n), signed_bytes(parts.scales, i * subs),
                    signed_bytes(parts.mins, i * subs), bytes(parts.d, 2 * i * ds), bytes(parts.second, 2 * i)};
    if (form.format == "nvfp4") {  // four blocks of 16 in one of 64
      for (std::size_t s = 0; s < 4; ++s) {
        const std::uint16_t d = HalfOfUe4m3(b[s]);
        std::memcpy(sink.d + 2 * s, &d, 2);
        Halves(b + 4 + 8 * s, 8, 8, sink.codes + 16 * s);
      }
    } else {
      One(form, b, sink);
    }
  }
  return parts;
}

float BlockValue(const BlockForm& form, const BlockParts& parts, std::size_t element) {
  const std::size_t block = element / static_cast<std::size_t>(form.block);
  const std::size_t sub = element / static_cast<std::size_t>(form.sub);
  const int stored = static_cast<std::int8_t>(parts.codes[element]) + static_cast<int>(form.code_shift);
  const float code = form.table ? form.values[static_cast<std::size_t>(stored)] : static_cast<float>(stored);
  float factor = At(form.d, parts.d, block);
  if (form.scales) factor *= static_cast<float>(static_cast<std::int8_t>(parts.scales[sub]));
  const float product = factor * code;
  if (form.adds_m) return product + At(form.d, parts.second, block);
  if (form.mins) {
    const float offset =
        At(form.d, parts.second, block) * static_cast<float>(static_cast<std::int8_t>(parts.mins[sub]));
    return product - offset;
  }
  return product;
}

}  // namespace octavo::stablehlo
