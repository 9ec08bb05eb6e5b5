#include "octavo/numerics/mx.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace octavo {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint32_t Bits(float x) { return std::bit_cast<std::uint32_t>(x); }

// The tables of OCP MX v1.0 (section 5.3): every format's extremes.
TEST(Mx, FormatsAreThoseOfTheStandard) {
  struct Row {
    const char* name;
    double smallest, largest;
  };
  for (const Row& row :
       {Row{"mxfp8_e5m2", 0x1p-16, 57344}, Row{"mxfp8_e4m3", 0x1p-9, 448}, Row{"mxfp6_e3m2", 0x1p-4, 28},
        Row{"mxfp6_e2m3", 0x1p-3, 7.5}, Row{"mxfp4", 0.5, 6}, Row{"mxint8", 0x1p-6, 127.0 / 64}}) {
    const MxFormat* f = FindMxFormat(row.name);
    ASSERT_NE(f, nullptr) << row.name;
    EXPECT_EQ(f->largest, row.largest) << row.name;
    EXPECT_EQ(MxDecodeOne(1, 127, *f), row.smallest) << row.name;
    EXPECT_EQ(f->emax, std::ilogb(row.largest)) << row.name;
    EXPECT_EQ(MxDecodeOne(MxEncodeOne(1e9f, 127, *f, MxRounding::kEven), 127, *f), row.largest) << row.name;
    EXPECT_EQ(MxDecodeOne(MxEncodeOne(-1e9f, 127, *f, MxRounding::kAway), 127, *f), -row.largest) << row.name;
  }
  EXPECT_EQ(FindMxFormat("mxfp5"), nullptr);
}

TEST(Mx, TiesGoAwayOrToEven) {
  const MxFormat& f = *FindMxFormat("mxfp4");
  const auto at = [&](float x, MxRounding rounding) { return MxDecodeOne(MxEncodeOne(x, 127, f, rounding), 127, f); };
  EXPECT_EQ(at(0.25f, MxRounding::kAway), 0.5f);
  EXPECT_EQ(at(2.5f, MxRounding::kAway), 3.0f);
  EXPECT_EQ(at(5.0f, MxRounding::kAway), 6.0f);
  EXPECT_EQ(at(-5.0f, MxRounding::kAway), -6.0f);
  EXPECT_EQ(at(0.25f, MxRounding::kEven), 0.0f);
  EXPECT_EQ(at(2.5f, MxRounding::kEven), 2.0f);
  EXPECT_EQ(at(5.0f, MxRounding::kEven), 4.0f);
  EXPECT_TRUE(std::signbit(at(-0.25f, MxRounding::kEven)));
  const MxFormat& i = *FindMxFormat("mxint8");
  EXPECT_EQ(MxEncodeOne(2.5f / 64, 127, i, MxRounding::kEven), 2);
  EXPECT_EQ(MxEncodeOne(2.5f / 64, 127, i, MxRounding::kAway), 3);
  EXPECT_EQ(static_cast<std::int8_t>(MxEncodeOne(-2.0f, 127, i, MxRounding::kAway)), -127);
}

TEST(Mx, ScalesOfBlocks) {
  const MxFormat& i = *FindMxFormat("mxint8");
  const MxFormat& f = *FindMxFormat("mxfp4");
  const auto scale = [](std::vector<float> x, const MxFormat& format) { return MxBlockScale(x, format); };
  EXPECT_EQ(scale({0, -0.0f}, i), 1);  // 2^-126
  EXPECT_EQ(scale({0}, f), 0);
  EXPECT_EQ(scale({1.0f, -1.5f}, i), 127);
  EXPECT_EQ(scale({1.0f, -1.5f}, f), 125);
  EXPECT_EQ(scale({1e-45f}, i), 0);
  EXPECT_EQ(scale({std::numeric_limits<float>::max()}, i), 254);
  EXPECT_EQ(scale({1, kNan}, i), kMxNanScale);
  EXPECT_EQ(scale({1, -kInf}, f), kMxNanScale);
  EXPECT_TRUE(std::isnan(MxScaleValue(kMxNanScale)));
  EXPECT_EQ(MxScaleValue(0), 0x1p-127f);
  EXPECT_EQ(MxScaleValue(254), 0x1p127f);
}

// Every code of every format decodes and, where it is a value that encoding makes, encodes to itself.
TEST(Mx, CodesRoundTrip) {
  for (const MxFormat& f : MxFormats()) {
    for (unsigned code = 0; code < (1u << f.bits); ++code) {
      for (const std::uint8_t scale : {std::uint8_t{0}, std::uint8_t{126}, std::uint8_t{200}}) {
        if (f.e4m3_scale && scale != 126) continue;  // the scale 0 keeps nothing; 200 is a negative number
        const float v = MxDecodeOne(static_cast<std::uint8_t>(code), scale, f);
        if (!std::isfinite(v) || (f.integer && code == 0x80)) continue;
        for (const MxRounding r : {MxRounding::kAway, MxRounding::kEven}) {
          EXPECT_EQ(MxEncodeOne(v, scale, f, r), code) << f.name << " " << code << " " << int{scale};
        }
      }
    }
  }
}

struct Case {
  MxShape shape;
  std::vector<float> x;
};

std::vector<Case> Cases() {
  std::mt19937 gen(7);
  std::vector<Case> cases;
  std::normal_distribution<float> normal;
  const auto add = [&](MxShape shape, auto make) {
    std::vector<float> x(shape.elements());
    for (float& v : x) v = make();
    cases.push_back({shape, std::move(x)});
  };
  const auto any_bits = [&] { return std::bit_cast<float>(static_cast<std::uint32_t>(gen())); };
  const auto ties = [&] {  // many halves, in a few binades
    return std::ldexp(static_cast<float>(static_cast<int>(gen() % 513) - 256), static_cast<int>(gen() % 8) - 6);
  };
  const auto tiny = [&] { return std::bit_cast<float>(static_cast<std::uint32_t>(gen() & 0x81ffffffu)); };
  for (const MxShape& shape :
       {MxShape{1, 1 << 16, 1, 32}, MxShape{64, 100, 1, 32}, MxShape{3, 70, 37, 32}, MxShape{1, 33, 64, 32},
        MxShape{500, 7, 1, 16}, MxShape{3, 50, 19, 16}, MxShape{5, 9, 3, 1}, MxShape{2, 64, 5, 64}}) {
    add(shape, [&] { return normal(gen); });
    add(shape, ties);
    add(shape, tiny);
    add(shape, any_bits);
    add(shape, [&] {
      return gen() % 40 == 0 ? any_bits() : gen() % 3 ? std::ldexp(normal(gen), static_cast<int>(gen() % 80)) : 0.0f;
    });
  }
  add({0, 5, 1, 32}, [] { return 0.0f; });
  add({1, 0, 1, 32}, [] { return 0.0f; });
  return cases;
}

TEST(Mx, KernelsAreTheLaw) {
  for (const Case& c : Cases()) {
    const MxShape& s = c.shape;
    for (const MxFormat& f : MxFormats()) {
      const float tensor = MxTensorScale(c.x, f);
      for (const MxRounding rounding : {MxRounding::kEven, MxRounding::kAway}) {
        std::vector<std::uint8_t> codes(s.elements(), 0xaa), scales(s.scales(), 0xaa), want(s.elements());
        std::vector<float> fake(s.elements()), decoded(s.elements()), want_values(s.elements());
        std::vector<std::uint8_t> want_scales(s.scales());
        for (std::size_t o = 0; o < s.outer; ++o) {
          for (std::size_t b = 0; b < s.blocks(); ++b) {
            for (std::size_t j = 0; j < s.inner; ++j) {
              std::vector<float> block;
              std::vector<std::size_t> at;
              for (std::size_t i = b * s.block; i < std::min(s.n, (b + 1) * s.block); ++i) {
                at.push_back((o * s.n + i) * s.inner + j);
                block.push_back(c.x[at.back()]);
              }
              const std::uint8_t scale = MxBlockScale(block, f, tensor);
              want_scales[(o * s.blocks() + b) * s.inner + j] = scale;
              for (std::size_t i = 0; i < at.size(); ++i) {
                want[at[i]] = MxEncodeOne(block[i], scale, f, rounding, tensor);
                want_values[at[i]] = MxDecodeOne(want[at[i]], scale, f, tensor);
              }
            }
          }
        }
        MxEncode(c.x.data(), s, f, rounding, codes.data(), scales.data(), tensor);
        ASSERT_EQ(scales, want_scales) << f.name;
        MxDecode(codes.data(), scales.data(), s, f, decoded.data(), tensor);
        MxFakeQuantize(c.x.data(), s, f, rounding, fake.data());
        for (std::size_t i = 0; i < c.x.size(); ++i) {
          ASSERT_EQ(int{codes[i]}, int{want[i]}) << f.name << " " << i << " x " << c.x[i];
          ASSERT_EQ(Bits(decoded[i]), Bits(want_values[i])) << f.name << " " << i << " x " << c.x[i];
          ASSERT_EQ(Bits(fake[i]), Bits(want_values[i])) << f.name << " " << i << " x " << c.x[i];
        }
      }
    }
  }
}

TEST(Mx, EveryCodeDecodesAsTheLaw) {
  for (const MxFormat& f : MxFormats()) {
    std::vector<std::uint8_t> codes(256 * 256), scales(256);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
    for (std::size_t i = 0; i < 256; ++i) scales[i] = static_cast<std::uint8_t>(i);
    std::vector<float> y(codes.size());
    for (const float tensor : {1.0f, 0.3f}) {
      MxDecode(codes.data(), scales.data(), {256, 256, 1, 256}, f, y.data(), tensor);
      for (std::size_t i = 0; i < y.size(); ++i) {
        ASSERT_EQ(Bits(y[i]), Bits(MxDecodeOne(codes[i], scales[i / 256], f, tensor))) << f.name << " " << i;
      }
    }
  }
}

TEST(Mx, Nvfp4HasAScaleOfTheTensor) {
  const MxFormat& f = *FindMxFormat("nvfp4");
  const std::vector<float> x = {2688.0f, -3.0f, kInf, kNan};
  EXPECT_EQ(MxTensorScale(x, f), 1.0f);  // of finite numbers alone
  EXPECT_EQ(MxTensorScale(x, *FindMxFormat("mxfp4")), 1.0f);
  EXPECT_EQ(MxTensorScale({}, f), 1.0f);
  EXPECT_EQ(MxTensorScale(std::vector<float>{0x1p-140f}, f), 1.0f);
  const auto scale = [&](std::vector<float> block, float tensor) { return MxBlockScale(block, f, tensor); };
  EXPECT_EQ(scale({2688.0f}, 1), 0x7e);        // 448
  EXPECT_EQ(scale({1e30f}, 1), 0x7e);          // saturates
  EXPECT_EQ(scale({6.0f, -1.0f}, 1), 7 << 3);  // 1
  EXPECT_EQ(scale({6.375f}, 1), 7 << 3);       // 1.0625, a tie: to even
  EXPECT_EQ(scale({0x1p-12f}, 1), 0);          // small beside the tensor
  EXPECT_EQ(scale({1.0f, kNan}, 1), 0x7f);
  EXPECT_EQ(MxDecodeOne(MxEncodeOne(-5.0f, 7 << 3, f, MxRounding::kAway), 7 << 3, f), -6.0f);
  EXPECT_EQ(MxDecodeOne(MxEncodeOne(-5.0f, 7 << 3, f, MxRounding::kEven), 7 << 3, f), -4.0f);
  EXPECT_EQ(MxDecodeOne(MxEncodeOne(1e9f, 0, f, MxRounding::kEven), 0, f), 0.0f);
  EXPECT_EQ(MxDecodeOne(7, 0x7e, f, 2.0f), 6.0f * 448 * 2);
}

}  // namespace
}  // namespace octavo
