#include "octavo/import/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "octavo/base/error.h"
#include "octavo/import/npz_test_util.h"

namespace octavo {
namespace {

using npz_test::Little;
using testing::ElementsAre;

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

std::string Bmp(int width, int height, const std::vector<std::uint8_t>& rgb) {
  std::string rows;
  for (int y = height - 1; y >= 0; --y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 2; c >= 0; --c)
        rows.push_back(static_cast<char>(rgb[static_cast<std::size_t>((y * width + x) * 3 + c)]));
    }
    while (rows.size() % 4 != 0) rows.push_back('\0');
  }
  return "BM" + Little(54 + rows.size(), 4) + Little(0, 4) + Little(54, 4) + Little(40, 4) +
         Little(static_cast<std::uint64_t>(width), 4) + Little(static_cast<std::uint64_t>(height), 4) + Little(1, 2) +
         Little(24, 2) + Little(0, 4) + Little(rows.size(), 4) + Little(0, 16) + rows;
}

std::string Big(std::uint32_t v) {
  std::string out = Little(v, 4);
  return {out.rbegin(), out.rend()};
}

std::string Chunk(const std::string& type, const std::string& data) {
  const std::string body = type + data;
  return Big(static_cast<std::uint32_t>(data.size())) + body +
         Big(static_cast<std::uint32_t>(
             ::crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()))));
}

std::string Png(std::uint32_t width, std::uint32_t height, const std::string& rows) {
  std::string packed(rows.size() + 100, '\0');
  uLongf size = packed.size();
  ::compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()), rows.size());
  packed.resize(size);
  return "\x89PNG\r\n\x1a\n" + Chunk("IHDR", Big(width) + Big(height) + std::string("\x08\x02\0\0\0", 5)) +
         Chunk("IDAT", packed) + Chunk("IEND", "");
}

ExitCode CodeOf(const std::string& file) {
  try {
    DecodeImage(Bytes(file), "f");
  } catch (const Error& e) {
    return e.code();
  }
  return ExitCode::kOk;
}

TEST(Image, DecodesBmpAndPng) {
  const std::string png = Png(2, 1, std::string("\0\x01\x02\x03\x04\x05\x06", 7));
  for (const std::string& file : {Bmp(2, 1, {1, 2, 3, 4, 5, 6}), png}) {
    const Image image = DecodeImage(Bytes(file), "f");
    EXPECT_EQ(image.width, 2);
    EXPECT_EQ(image.height, 1);
    EXPECT_THAT(image.rgb, ElementsAre(1, 2, 3, 4, 5, 6));
    for (std::size_t n = 0; n < file.size(); ++n) EXPECT_NE(CodeOf(file.substr(0, n)), ExitCode::kOk) << n;
  }
  for (std::size_t n = 8; n < png.size(); ++n) {
    std::string bad = png;
    bad[n] = static_cast<char>(bad[n] ^ 1);
    EXPECT_EQ(CodeOf(bad), ExitCode::kBadInput) << n;
  }
}

TEST(Image, RefusesHugeAndForeign) {
  EXPECT_EQ(CodeOf(Png(10000, 10000, "x")), ExitCode::kUnsupported);
  EXPECT_EQ(CodeOf(Png(20000, 20000, "x")), ExitCode::kBadInput);
  EXPECT_NE(CodeOf(Png(0xffffffff, 0xffffffff, "x")), ExitCode::kOk);
  EXPECT_EQ(CodeOf("GIF89a......"), ExitCode::kUnsupported);
  EXPECT_EQ(CodeOf(""), ExitCode::kUnsupported);
  EXPECT_EQ(CodeOf("\xff\xd8\xff\xe0 no end"), ExitCode::kBadInput);
}

// Expected values: Pillow 11, Image.fromarray(gray).resize((w, h), Image.BILINEAR).
TEST(Image, ResizesLikePillow) {
  Image image{5, 1, {}};
  for (const int v : {10, 200, 30, 255, 0}) image.rgb.insert(image.rgb.end(), 3, static_cast<std::uint8_t>(v));
  const auto row = [](const Image& i) {
    std::vector<int> out;
    for (std::size_t p = 0; p < i.rgb.size(); p += 3) out.push_back(i.rgb[p]);
    return out;
  };
  EXPECT_THAT(row(ResizeBilinear(image, 3, 1)), ElementsAre(91, 118, 109));
  EXPECT_THAT(row(ResizeBilinear(image, 8, 1)), ElementsAre(10, 93, 189, 83, 100, 241, 112, 0));
  EXPECT_THAT(row(ResizeBilinear(image, 5, 1)), ElementsAre(10, 200, 30, 255, 0));
  std::swap(image.width, image.height);
  EXPECT_THAT(row(ResizeBilinear(image, 1, 3)), ElementsAre(91, 118, 109));
}

}  // namespace
}  // namespace octavo
