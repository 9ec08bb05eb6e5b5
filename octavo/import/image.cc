#include "octavo/import/image.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string_view>

#include "octavo/base/error.h"

// The one place that holds the decoder: three formats, memory only, its own symbols, and a limit on every side.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_FAILURE_USERMSG
#define STBI_MAX_DIMENSIONS (1 << 15)
#include <stb/stb_image.h>

namespace octavo {
namespace {

static_assert(STBI_MAX_DIMENSIONS == kMaxImageSide);

[[noreturn]] void Damaged(const char* what, const std::string& name) {
  ThrowBadInput(what, name, "replace or remove this image");
}

std::string_view Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The decoder takes what it can get; these checks find the files that it would fill up with gray.
void CheckPng(std::span<const std::byte> bytes, const std::string& name) {
  const auto word = [&](std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value = value << 8 | std::to_integer<std::uint32_t>(bytes[at + i]);
    return value;
  };
  for (std::size_t at = 8;;) {
    if (bytes.size() - at < 12) Damaged("truncated PNG", name);
    const std::size_t length = word(at);
    if (length > bytes.size() - at - 12) Damaged("truncated PNG", name);
    const auto* begin = reinterpret_cast<const Bytef*>(bytes.data() + at + 4);
    if (::crc32_z(0, begin, length + 4) != word(at + 8 + length)) Damaged("wrong checksum in PNG", name);
    if (Text(bytes.subspan(at + 4, 4)) == "IEND") return;
    at += 12 + length;
  }
}

// Walks the segments (ITU-T T.81, annex B): all of them whole, the end marker there, and no Huffman table of more than
// the 256 codes that the decoder has room for (it does not look).
void CheckJpeg(std::span<const std::byte> bytes, const std::string& name) {
  const auto at = [&](std::size_t i) { return std::to_integer<std::size_t>(bytes[i]); };
  bool in_scan = false, any_scan = false;
  for (std::size_t i = 2;;) {
    while (i < bytes.size() && at(i) != 0xff) ++i;
    while (i < bytes.size() && at(i) == 0xff) ++i;
    if (i == bytes.size()) Damaged("truncated JPEG", name);
    const std::size_t marker = at(i++);
    if (in_scan && (marker == 0 || (marker >= 0xd0 && marker <= 0xd7))) continue;  // a stuffed 0xff, a restart
    in_scan = marker == 0xda;
    any_scan = any_scan || in_scan;
    if (marker == 0xd9) {
      if (!any_scan) Damaged("JPEG without an image", name);
      return;
    }
    if (bytes.size() - i < 2) Damaged("truncated JPEG", name);
    const std::size_t length = at(i) << 8 | at(i + 1);
    if (length < 2) Damaged("damaged JPEG", name);
    if (length > bytes.size() - i) Damaged("truncated JPEG", name);
    const std::size_t end = i + length;
    if (marker == 0xc4) {
      for (std::size_t table = i + 2; table < end;) {
        if (end - table < 17) Damaged("damaged JPEG", name);
        std::size_t codes = 0;
        for (std::size_t k = 1; k <= 16; ++k) codes += at(table + k);
        if (codes > 256 || codes > end - table - 17) Damaged("damaged JPEG", name);
        table += 17 + codes;
      }
    }
    i = end;
  }
}

void CheckBmp(std::span<const std::byte> bytes, const std::string& name) {
  const auto field = [&](std::size_t at, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) value |= std::to_integer<std::uint64_t>(bytes[at + i]) << (8 * i);
    return value;
  };
  if (bytes.size() < 26) Damaged("truncated BMP", name);
  const std::uint64_t offset = field(10, 4);
  std::uint64_t width, height, depth;
  if (field(14, 4) == 12) {  // OS/2 header
    width = field(18, 2), height = field(20, 2), depth = field(24, 2);
  } else {
    if (bytes.size() < 34) Damaged("truncated BMP", name);
    const auto rows = static_cast<std::int32_t>(static_cast<std::uint32_t>(field(22, 4)));
    width = field(18, 4), depth = field(28, 2);
    height = static_cast<std::uint64_t>(std::abs(static_cast<std::int64_t>(rows)));
  }
  if (depth > 64) Damaged("damaged BMP", name);
  // At most 2^32 * 64 bits a row, times 2^31 rows: divide instead of multiplying.
  const std::uint64_t row = (width * depth + 31) / 32 * 4;
  if (offset > bytes.size() || (row > 0 && height > (bytes.size() - offset) / row)) Damaged("truncated BMP", name);
}

// The weights of one output coordinate: input coordinates from `first` on.
struct Taps {
  int first = 0;
  std::vector<std::int32_t> weights;
};

constexpr int kWeightBits = 32 - 8 - 2;

// Adding 0.5 and cutting off is how Pillow rounds, whose pixels these must be to the bit; std::lround differs just
// below a half. Bounds below zero end at zero either way, weights are never negative.
// NOLINTBEGIN(bugprone-incorrect-roundings)

std::vector<Taps> ComputeTaps(int in, int out) {
  const double scale = static_cast<double>(in) / out;
  const double widen = std::max(scale, 1.0);
  const double support = widen;  // the triangle's half width is 1
  std::vector<Taps> taps(static_cast<std::size_t>(out));
  std::vector<double> real;
  for (int x = 0; x < out; ++x) {
    const double center = (x + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(center - support + 0.5));
    const int high = std::min(in, static_cast<int>(center + support + 0.5));
    real.clear();
    double sum = 0;
    for (int i = low; i < high; ++i) {
      real.push_back(std::max(0.0, 1.0 - std::abs((i - center + 0.5) * (1.0 / widen))));
      sum += real.back();
    }
    Taps& tap = taps[static_cast<std::size_t>(x)];
    tap.first = low;
    for (double w : real) {
      if (sum != 0.0) w /= sum;
      tap.weights.push_back(static_cast<std::int32_t>(0.5 + w * (1 << kWeightBits)));
    }
  }
  return taps;
}
// NOLINTEND(bugprone-incorrect-roundings)

std::uint8_t Clip(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

}  // namespace

Image DecodeImage(std::span<const std::byte> bytes, const std::string& name) {
  const std::string_view text = Text(bytes);
  if (bytes.size() > (std::size_t{1} << 30)) ThrowUnsupported("image file over 1 GB", name);
  if (text.starts_with("\x89PNG\r\n\x1a\n")) {
    CheckPng(bytes, name);
  } else if (text.starts_with("\xff\xd8\xff")) {
    CheckJpeg(bytes, name);
  } else if (text.starts_with("BM")) {
    CheckBmp(bytes, name);
  } else {
    ThrowUnsupported("not a PNG, JPEG or BMP image", name, "convert it to one of these");
  }
  const auto* data = reinterpret_cast<const stbi_uc*>(bytes.data());
  const int size = static_cast<int>(bytes.size());
  int width = 0, height = 0, channels = 0;
  if (::stbi_info_from_memory(data, size, &width, &height, &channels) == 0) {
    // The decoder has a limit of its own, and says the same for both.
    Damaged("image that is damaged or has more than 64 megapixels", name);
  }
  if (width <= 0 || height <= 0 || width > kMaxImageSide || height > kMaxImageSide ||
      std::int64_t{width} * height > kMaxImagePixels) {
    ThrowUnsupported("image of " + std::to_string(width) + "x" + std::to_string(height) + " pixels", name,
                     "at most 64 megapixels and 32768 pixels a side are read; make it smaller");
  }
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      ::stbi_load_from_memory(data, size, &width, &height, &channels, 3), ::stbi_image_free);
  if (!pixels) Damaged(("damaged image (" + std::string(::stbi_failure_reason()) + ")").c_str(), name);
  Image out{width, height, {}};
  out.rgb.assign(pixels.get(), pixels.get() + static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
  return out;
}

Image ResizeBilinear(const Image& image, int width, int height) {
  if (width <= 0 || height <= 0 || image.width <= 0 || image.height <= 0) ThrowInternal("image resized to nothing");
  constexpr std::int32_t kHalf = 1 << (kWeightBits - 1);
  Image wide;
  const Image* source = &image;
  if (width != image.width) {
    wide = {width, image.height, {}};
    wide.rgb.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(image.height) * 3);
    const std::vector<Taps> taps = ComputeTaps(image.width, width);
    for (int y = 0; y < image.height; ++y) {
      const std::uint8_t* from =
          image.rgb.data() + static_cast<std::size_t>(y) * static_cast<std::size_t>(image.width) * 3;
      std::uint8_t* to = wide.rgb.data() + static_cast<std::size_t>(y) * static_cast<std::size_t>(width) * 3;
      for (const Taps& tap : taps) {
        std::int32_t sum[3] = {kHalf, kHalf, kHalf};
        const std::uint8_t* p = from + 3 * tap.first;
        for (const std::int32_t w : tap.weights) {
          for (int c = 0; c < 3; ++c) sum[c] += *p++ * w;
        }
        for (const std::int32_t s : sum) *to++ = Clip(s);
      }
    }
    source = &wide;
  }
  if (height == image.height) return *source;
  Image out{width, height, {}};
  out.rgb.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
  const std::size_t stride = static_cast<std::size_t>(width) * 3;
  const std::vector<Taps> taps = ComputeTaps(image.height, height);
  std::vector<std::int32_t> sum(stride);
  for (int y = 0; y < height; ++y) {
    const Taps& tap = taps[static_cast<std::size_t>(y)];
    std::fill(sum.begin(), sum.end(), kHalf);
    for (std::size_t i = 0; i < tap.weights.size(); ++i) {
      const std::uint8_t* from = source->rgb.data() + (static_cast<std::size_t>(tap.first) + i) * stride;
      for (std::size_t x = 0; x < stride; ++x) sum[x] += from[x] * tap.weights[i];
    }
    std::transform(sum.begin(), sum.end(),
                   out.rgb.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(y) * stride), Clip);
  }
  return out;
}

}  // namespace octavo
