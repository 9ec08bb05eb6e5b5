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

std::string FromHex(std::string_view hex) {
  std::string out;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    out.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return out;
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

// The decoder has room for 256 codes in a Huffman table and trusts the file: this one says 272.
TEST(Image, RefusesHuffmanTablesThatAreTooLarge) {
  const auto file = [](int codes_a_length) {
    std::string table = std::string(1, '\0') + std::string(16, static_cast<char>(codes_a_length));
    table += std::string(static_cast<std::size_t>(16 * codes_a_length), 'x');
    const std::size_t length = table.size() + 2;
    return "\xff\xd8\xff\xc4" + std::string(1, static_cast<char>(length >> 8)) +
           std::string(1, static_cast<char>(length & 0xff)) + table + "\xff\xda" + std::string("\0\x02", 2) +
           "\xff\xd9";
  };
  EXPECT_EQ(CodeOf(file(17)), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf(file(1)), ExitCode::kBadInput);  // not too large, but no image either
}

// A 2x2 gray JPEG by Pillow 11; decoding it exactly is the decoder's business, refusing every cut is ours.
TEST(Image, JpegIsWholeOrRefused) {
  const std::string jpeg = FromHex(
      "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706"
      "080c0a0c0c0b0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc0000b08000200020101"
      "1100ffc40014000100000000000000000000000000000007ffc40014100100000000000000000000000000000000ffda0008"
      "010100003f00347fffd9");
  const Image image = DecodeImage(Bytes(jpeg), "f");
  EXPECT_EQ(image.width, 2);
  EXPECT_EQ(image.height, 2);
  for (const std::uint8_t v : image.rgb) EXPECT_NEAR(v, 100, 2);
  for (std::size_t n = 0; n < jpeg.size(); ++n) EXPECT_NE(CodeOf(jpeg.substr(0, n)), ExitCode::kOk) << n;
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
