#include "octavo/base/sha256.h"

#include <gtest/gtest.h>

#include <fstream>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// FIPS 180-4 examples (NIST CSRC "SHA256.pdf") and RFC 6234 section 8.5.
TEST(Sha256, KnownVectors) {
  EXPECT_EQ(Sha256::OfText(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256::OfText("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256::OfText("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256::OfText("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmno"
                           "ijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(Sha256::OfText(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesAddUpAtEveryBoundary) {
  std::string text;
  for (int i = 0; i < 300; ++i) text.push_back(static_cast<char>(i * 7));
  for (std::size_t length : {55, 56, 57, 63, 64, 65, 119, 120, 128, 300}) {
    const std::string_view whole = std::string_view(text).substr(0, length);
    const std::string expected = Sha256::OfText(whole);
    for (std::size_t piece = 1; piece <= 70; ++piece) {
      Sha256 hash;
      for (std::size_t at = 0; at < length; at += piece) hash.Update(whole.substr(at, piece));
      ASSERT_EQ(hash.HexDigest(), expected) << length << " in pieces of " << piece;
    }
  }
}

TEST(Sha256, File) {
  const auto path = std::filesystem::path(testing::TempDir()) / "sha256_file.txt";
  std::ofstream(path) << "abc";
  EXPECT_EQ(Sha256::OfFile(path), Sha256::OfText("abc"));
  std::filesystem::remove(path);
  EXPECT_THROW(Sha256::OfFile(path), Error);
}

}  // namespace
}  // namespace octavo
