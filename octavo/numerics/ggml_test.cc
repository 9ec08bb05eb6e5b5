#include "octavo/numerics/ggml.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hwy/highway.h"
#include "octavo/base/error.h"
#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_reference.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

void OnEveryTarget(const std::function<void()>& body) {
  hwy::SetSupportedTargetsForTest(0);
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

constexpr std::size_t kRow = 768;  // three super-blocks: batches of two leave one over

// One row of each kind, twice: what weights look like, and the edges of the finite floats.
std::vector<float> Rows() {
  std::mt19937_64 gen(5);
  std::normal_distribution<float> normal;
  std::vector<float> x;
  for (int kind = 0; kind < 40; ++kind) {
    for (std::size_t i = 0; i < kRow; ++i) {
      const float v = normal(gen);
      const auto bits = static_cast<std::uint32_t>(gen());
      float y = v;
      switch (kind % 20) {
        case 0:
          y = v;
          break;
        case 1:
          y = v * 0.02f;
          break;
        case 2:
          y = std::pow(v, 7.0f);
          break;
        case 3:
          y = bits & 1 ? 0.0f : -0.0f;
          break;
        case 4:
          y = 0.37f;
          break;
        case 5:
          y = -1e4f;
          break;
        case 6:
          y = bits % 50 ? 0.0f : v;
          break;
        case 7:
          y = std::bit_cast<float>(bits & 0x807fffffu);
          break;  // subnormal
        case 8:
          y = v * 1e-30f;
          break;
        case 9:
          y = v * 1e-14f;
          break;
        case 10:
          y = v * 1e30f;
          break;
        case 11:
          y = bits & 1 ? std::numeric_limits<float>::max() : -std::numeric_limits<float>::max();
          break;
        case 12:
          y = std::fabs(v);
          break;
        case 13:
          y = -std::fabs(v);
          break;
        case 14:
          y = static_cast<float>(static_cast<int>(bits % 17) - 8) / 8;
          break;  // ties
        case 15:
          y = i / 32 % 2 ? 0.0f : v;
          break;
        case 16:
          y = v * std::exp2(static_cast<float>(i / 16 % 40) - 30);
          break;
        case 17:
          y = (bits & 1 ? 1.0f : -1.0f) * (i % 3 == 0 ? 1.0f : 0.5f);
          break;  // equal extremes
        case 18:
          y = v * 1e4f;
          break;
        default:
          y = std::bit_cast<float>(bits);
          if (!std::isfinite(y)) y = 1;
      }
      x.push_back(y);
    }
  }
  return x;
}

std::vector<float> Importance(bool with_zeros) {
  std::mt19937 gen(6);
  std::normal_distribution<float> normal;
  std::vector<float> w(kRow);
  for (std::size_t i = 0; i < kRow; ++i) {
    const float v = normal(gen);
    w[i] = with_zeros && i / 16 % 3 == 0 ? 0.0f : v * v;
  }
  return w;
}

std::string Hex(const std::vector<std::byte>& bytes, std::size_t from, std::size_t n) {
  std::string out;
  for (std::size_t i = from; i < from + n; ++i) {
    char text[4];
    std::snprintf(text, sizeof text, "%02x ", static_cast<unsigned>(bytes[i]));
    out += text;
  }
  return out;
}

void ExpectSameBlocks(const GgmlFormat& format, const std::vector<std::byte>& got, const std::vector<std::byte>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); i += format.block_bytes) {
    if (std::memcmp(got.data() + i, want.data() + i, format.block_bytes) != 0) {
      FAIL() << format.name << ", block " << i / format.block_bytes << "\n  " << Hex(got, i, format.block_bytes)
             << "\nexpected\n  " << Hex(want, i, format.block_bytes);
    }
  }
}

TEST(GgmlTable, EveryFormatOnce) {
  std::set<std::string_view> names;
  std::set<std::uint32_t> ids;
  std::uint32_t last = 0;
  for (const GgmlFormat& format : GgmlFormats()) {
    EXPECT_TRUE(names.insert(format.name).second);
    EXPECT_TRUE(ids.insert(format.type_id).second);
    EXPECT_GE(format.type_id, last);
    last = format.type_id;
    EXPECT_EQ(FindGgmlFormat(format.name), &format);
    EXPECT_EQ(FindGgmlFormat(format.ggml_name), &format);
    EXPECT_EQ(FindGgmlFormat(format.type_id), &format);
  }
  EXPECT_EQ(GgmlFormats().size(), 19u);
  EXPECT_EQ(FindGgmlFormat("q9_k"), nullptr);
  EXPECT_EQ(FindGgmlFormat(4), nullptr);
}

TEST(GgmlEncode, VectorKernelsGiveTheReferencesBytes) {
  const std::vector<float> x = Rows();
  OnEveryTarget([&] {
    for (const GgmlFormat& format : GgmlFormats()) {
      std::vector<std::byte> got(x.size() / format.block * format.block_bytes), want(got.size());
      format.encode(x.data(), x.size(), nullptr, got.data());
      format.encode_reference(x.data(), x.size(), nullptr, want.data());
      ExpectSameBlocks(format, got, want);
    }
  });
}

TEST(GgmlEncode, VectorKernelsGiveTheReferencesBytesWithImportance) {
  const std::vector<float> x = Rows();
  OnEveryTarget([&] {
    for (const bool zeros : {false, true}) {
      const std::vector<float> w = Importance(zeros);
      for (const GgmlFormat& format : GgmlFormats()) {
        const std::size_t row_bytes = kRow / format.block * format.block_bytes;
        std::vector<std::byte> got(x.size() / kRow * row_bytes), want(got.size());
        for (std::size_t r = 0; r < x.size() / kRow; ++r) {
          format.encode(x.data() + r * kRow, kRow, w.data(), got.data() + r * row_bytes);
          format.encode_reference(x.data() + r * kRow, kRow, w.data(), want.data() + r * row_bytes);
        }
        ExpectSameBlocks(format, got, want);
      }
    }
  });
}

TEST(GgmlEncode, ImportanceChangesTheFormatsThatSaySo) {
  std::vector<float> x = Rows();
  x.resize(kRow);
  const std::vector<float> w = Importance(false);
  for (const GgmlFormat& format : GgmlFormats()) {
    std::vector<std::byte> with(kRow / format.block * format.block_bytes), without(with.size());
    EncodeGgml(format, x, kRow, w, with, 1, "x");
    EncodeGgml(format, x, kRow, {}, without, 1, "x");
    EXPECT_EQ(with != without, format.takes_importance) << format.name;
  }
}

TEST(GgmlDecode, VectorKernelsGiveTheReferencesBits) {
  std::mt19937 gen(9);
  constexpr std::size_t kElements = 40 * 256;
  OnEveryTarget([&] {
    for (const GgmlFormat& format : GgmlFormats()) {
      // One byte in front: blocks lie anywhere. Random bytes are blocks, too; infinite and NaN scales among them.
      std::vector<std::byte> bytes(1 + kElements / format.block * format.block_bytes);
      for (std::byte& b : bytes) b = static_cast<std::byte>(gen());
      std::vector<float> got(kElements), want(kElements);
      format.decode(bytes.data() + 1, kElements, got.data());
      format.decode_reference(bytes.data() + 1, kElements, want.data());
      for (std::size_t i = 0; i < kElements; ++i) {
        if (std::isnan(want[i]) && std::isnan(got[i])) continue;
        ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want[i]))
            << format.name << " element " << i;
      }
    }
  });
}

TEST(GgmlEncode, ThreadsAndPiecesLeaveNoTrace) {
  std::mt19937 gen(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(kRow * 200);
  for (float& v : x) v = normal(gen);
  const std::vector<float> w = Importance(false);
  for (const GgmlFormat& format : GgmlFormats()) {
    std::vector<std::byte> whole(x.size() / format.block * format.block_bytes), one(whole.size()), three(whole.size());
    format.encode(x.data(), x.size(), nullptr, whole.data());
    EncodeGgml(format, x, kRow, {}, one, 1, "x");
    EncodeGgml(format, x, kRow, {}, three, 3, "x");
    EXPECT_EQ(whole, one) << format.name;
    EXPECT_EQ(whole, three) << format.name;
    EncodeGgml(format, x, kRow, w, one, 1, "x");
    EncodeGgml(format, x, kRow, w, three, 3, "x");
    EXPECT_EQ(one, three) << format.name;
    std::vector<float> y(x.size()), z(x.size());
    DecodeGgml(format, one, y, 1, "x");
    DecodeGgml(format, one, z, 3, "x");
    EXPECT_EQ(y, z) << format.name;
  }
}

// Results that no cache holds go another way; where they lie does not matter.
TEST(GgmlCodec, BigResultsAtAnyAddress) {
  std::mt19937 gen(5);
  std::vector<float> x(8'500'000 / 256 * 256);
  for (float& v : x) v = std::bit_cast<float>((static_cast<std::uint32_t>(gen()) & 0x807fffffu) | 0x3f000000u);
  for (const char* name : {"f16", "bf16", "q8_0"}) {
    const GgmlFormat& format = GetGgmlFormat(name, "x");
    const std::size_t bytes = x.size() / format.block * format.block_bytes;
    std::vector<std::byte> want(bytes), got(bytes + 3);
    format.encode_reference(x.data(), x.size(), nullptr, want.data());
    const std::span<std::byte> odd = std::span(got).subspan(3);
    EncodeGgml(format, x, x.size(), {}, odd, 2, "x");
    EXPECT_TRUE(std::equal(want.begin(), want.end(), odd.begin())) << name;
    std::vector<float> y(x.size()), z(x.size() + 1);
    format.decode_reference(want.data(), y.size(), y.data());
    const std::span<float> behind = std::span(z).subspan(1);
    DecodeGgml(format, odd, behind, 2, "x");
    EXPECT_EQ(std::memcmp(y.data(), behind.data(), y.size() * sizeof(float)), 0) << name;
  }
}

// Blocks worked out by hand from the facts of the formats.
TEST(GgmlEncode, KnownBlocks) {
  std::vector<float> x(32, 0.0f);
  x[0] = 127.0f;
  x[1] = -1.5f;  // halves go away from zero
  x[16] = 64.0f;
  std::vector<std::byte> q8(34);
  EncodeGgml(*FindGgmlFormat("q8_0"), x, 32, {}, q8, 1, "x");
  EXPECT_EQ(Hex(q8, 0, 5), "00 3c 7f fe 00 ");
  EXPECT_EQ(Hex(q8, 18, 1), "40 ");

  x.assign(32, 0.0f);
  x[0] = -8.0f;  // d = 1: codes are x + 8
  x[1] = 7.0f;
  x[17] = 3.0f;
  std::vector<std::byte> q4(18);
  EncodeGgml(*FindGgmlFormat("q4_0"), x, 32, {}, q4, 1, "x");
  EXPECT_EQ(Hex(q4, 0, 5), "00 3c 80 bf 88 ");
  EncodeGgml(*FindGgmlFormat("q4_0"), std::vector<float>(32, 0.0f), 32, {}, q4, 1, "x");
  EXPECT_EQ(Hex(q4, 0, 3), "00 80 88 ");  // zeros have the scale 0 / -8

  x.assign(32, 0.0f);
  x[0] = 6.0f;
  x[1] = -0.25f;  // a tie between 0 and -0.5: the smaller
  x[2] = -0.26f;
  std::vector<std::byte> mx(17);
  EncodeGgml(*FindGgmlFormat("mxfp4_gg"), x, 32, {}, mx, 1, "x");
  EXPECT_EQ(Hex(mx, 0, 4), "7f 07 00 09 ");
}

TEST(GgmlEncode, Mxfp4ExponentFollowsRoundedLogarithm) {
  EXPECT_EQ(ggml::Mxfp4Exponent(1.0f), 125);
  EXPECT_EQ(ggml::Mxfp4Exponent(0.0f), 0);
  EXPECT_EQ(ggml::Mxfp4Exponent(std::nextafter(1.0f, 0.0f)), 124);
  // log2f(2^20 - 2^-4) rounds to 20.
  EXPECT_EQ(ggml::Mxfp4Exponent(std::nextafter(1048576.0f, 0.0f)), 145);
}

TEST(GgmlCodec, TooLargeForTheScales) {
  std::vector<float> x(256, 1.0f);
  for (const auto& [name, largest, held] :
       {std::tuple("f16", 65519.0f, true), std::tuple("f16", 65520.0f, false), std::tuple("bf16", 3e38f, true),
        std::tuple("q8_0", 65519.0f * 127, true), std::tuple("q8_0", 65520.0f * 127, false),
        std::tuple("q4_k", 1e9f, false), std::tuple("mxfp4_gg", 1e30f, true), std::tuple("nvfp4", 1e30f, true)}) {
    const GgmlFormat& format = GetGgmlFormat(name, "x");
    std::vector<std::byte> out(GgmlBytes(format, 1, 256, "x"));
    x[37] = largest;
    EXPECT_EQ(EncodeGgml(format, x, 256, {}, out, 1, "x"), largest);
    if (held) {
      EXPECT_NO_THROW(EncodeGgmlFinite(format, x, 256, {}, out, 1, "x")) << name;
    } else {
      EXPECT_THROW(EncodeGgmlFinite(format, x, 256, {}, out, 1, "x"), Error) << name << " " << largest;
    }
  }
}

TEST(GgmlCodec, Refusals) {
  const GgmlFormat& q8 = *FindGgmlFormat("q8_0");
  const auto message = [](const std::function<void()>& body, ExitCode code) -> std::string {
    try {
      body();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), code);
      return e.what();
    }
    return "no error";
  };
  std::vector<float> x(64, 1.0f);
  std::vector<std::byte> out(68);
  x[37] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(message([&] { EncodeGgml(q8, x, 32, {}, out, 1, "w"); }, ExitCode::kBadInput),
              ::testing::AllOf(HasSubstr("not a number"), HasSubstr("w, element 37")));
  x[37] = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(message([&] { EncodeGgml(q8, x, 32, {}, out, 2, "w"); }, ExitCode::kBadInput), HasSubstr("infinite"));
  x[37] = 0;
  EXPECT_THAT(message([&] { GgmlBytes(q8, 3, 33, "w"); }, ExitCode::kUnsupported),
              ::testing::AllOf(HasSubstr("rows of 33 elements"), HasSubstr("Q8_0")));
  EXPECT_THAT(message([&] { GgmlBytes(q8, std::uint64_t{1} << 60, 1024, "w"); }, ExitCode::kBadInput),
              HasSubstr("too large"));
  const GgmlFormat& q4 = *FindGgmlFormat("q4_0");
  std::vector<std::byte> out4(36);
  std::vector<float> w(32, 1.0f);
  w[5] = -1;
  EXPECT_THAT(message([&] { EncodeGgml(q4, x, 32, w, out4, 1, "w"); }, ExitCode::kBadInput), HasSubstr("column 5"));
  w.resize(31);
  EXPECT_THAT(message([&] { EncodeGgml(q4, x, 32, w, out4, 1, "w"); }, ExitCode::kBadInput), HasSubstr("31 columns"));
  EXPECT_THAT(message([&] { GetGgmlFormat("q4k", "--precision"); }, ExitCode::kUsage), HasSubstr("q4_k"));
}

}  // namespace
}  // namespace octavo
