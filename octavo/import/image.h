// Pictures as model inputs: decoding (png, jpeg, bmp) and resampling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace octavo {

// 8-bit RGB, row by row. An alpha channel is dropped, gray becomes three equal channels, 16-bit samples keep their
// high byte; an EXIF orientation is not applied.
struct Image {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgb;  // height * width * 3
};

inline constexpr int kMaxImageSide = 1 << 15;
inline constexpr std::int64_t kMaxImagePixels = std::int64_t{1} << 26;

// `name` stands in messages. Errors: kBadInput on damaged or truncated files (PNG checksums are verified), kUnsupported
// on other formats and on images beyond the limits above.
Image DecodeImage(std::span<const std::byte> bytes, const std::string& name);

// Bilinear with half-pixel centers, the triangle widened to the input's pixel grid when shrinking (antialiasing). The
// same integers as Pillow's Image.resize((width, height), Image.BILINEAR): 22-bit fixed-point weights, horizontal pass
// first, each pass rounded to 8 bits (Pillow, src/libImaging/Resample.c).
Image ResizeBilinear(const Image& image, int width, int height);

}  // namespace octavo
