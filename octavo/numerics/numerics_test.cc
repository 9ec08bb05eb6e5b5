// Every vector kernel against its scalar law, bit for bit, on every SIMD target of this machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "hwy/highway.h"
#include "octavo/base/error.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/numerics/exact_sum.h"
#include "octavo/numerics/half.h"
#include "octavo/numerics/reduce.h"

namespace octavo {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();

void OnEveryTarget(const std::function<void()>& body) {
  hwy::SetSupportedTargetsForTest(0);
  const std::vector<std::int64_t> targets = hwy::SupportedAndGeneratedTargets();
  ASSERT_FALSE(targets.empty());
  for (const std::int64_t target : targets) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

std::vector<float> RandomValues(std::size_t n, unsigned seed, float deviation) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> v(n);
  for (float& x : v) x = normal(gen);
  return v;
}

std::vector<float> RandomBits(std::size_t n, unsigned seed) {
  std::mt19937 gen(seed);
  std::vector<float> v(n);
  for (float& x : v) x = std::bit_cast<float>(static_cast<std::uint32_t>(gen()));
  return v;
}

std::vector<float> EdgeValues() {
  std::vector<float> v = {0.0f, -0.0f, kNan, -kNan, kInf, -kInf, kMax, -kMax, kDenormal, -kDenormal, 1e-40f, -1e-40f};
  for (int k = -300; k <= 300; ++k) v.push_back(static_cast<float>(k) * 0.5f);  // ties at scale 1
  for (const float x : {254.5f, 255.5f, 127.5f, -128.5f, 32767.5f, 65535.5f, -32768.5f, 2147483520.0f, 2147483648.0f,
                        -2147483648.0f, -2147483904.0f, 4294967296.0f, 1e10f, -1e10f, 8388607.5f}) {
    v.push_back(x);
  }
  return v;
}

constexpr DType kTypes[] = {DType::kU8, DType::kS8,  DType::kU16, DType::kS16, DType::kU4,
                            DType::kS4, DType::kS32, DType::kU2,  DType::kS2};

std::int32_t CodeAt(const std::vector<std::byte>& q, std::size_t i, DType t) {
  const std::byte* p = q.data() + i * CodeBytes(t);
  switch (CodeBytes(t)) {
    case 1:
      return IsSignedInteger(t) ? static_cast<std::int8_t>(*p) : static_cast<std::uint8_t>(*p);
    case 2: {
      std::uint16_t u;
      std::memcpy(&u, p, 2);
      return IsSignedInteger(t) ? static_cast<std::int16_t>(u) : u;
    }
    default: {
      std::int32_t s;
      std::memcpy(&s, p, 4);
      return s;
    }
  }
}

std::uint32_t Bits(float x) { return std::bit_cast<std::uint32_t>(x); }

TEST(QuantizeOne, IsOnnxQuantizeLinear) {
  EXPECT_EQ(QuantizeOne(0.5f, 1, 0, DType::kU8), 0);  // ties to even
  EXPECT_EQ(QuantizeOne(1.5f, 1, 0, DType::kU8), 2);
  EXPECT_EQ(QuantizeOne(2.5f, 1, 3, DType::kU8), 5);  // the zero point comes after rounding
  EXPECT_EQ(QuantizeOne(-1.5f, 1, 128, DType::kU8), 126);
  EXPECT_EQ(QuantizeOne(300, 1, 0, DType::kU8), 255);
  EXPECT_EQ(QuantizeOne(-300, 1, 0, DType::kS8), -128);
  EXPECT_EQ(QuantizeOne(7.6f, 1, 0, DType::kS4), 7);
  EXPECT_EQ(QuantizeOne(-9, 1, 0, DType::kS4), -8);
  EXPECT_EQ(QuantizeOne(99, 1, 1, DType::kU4), 15);
  EXPECT_EQ(QuantizeOne(kNan, 1, 77, DType::kU8), 77);
  EXPECT_EQ(QuantizeOne(kInf, 1, 77, DType::kU8), 255);
  EXPECT_EQ(QuantizeOne(-kInf, 1, 77, DType::kU16), 0);
  EXPECT_EQ(QuantizeOne(kInf, 1, -5, DType::kS32), 2147483647);
  EXPECT_EQ(QuantizeOne(2147483648.0f, 1, -1, DType::kS32), 2147483647);
  EXPECT_EQ(QuantizeOne(-kMax, 1e-30f, 0, DType::kS32), std::numeric_limits<std::int32_t>::min());
  EXPECT_THROW(QuantizeOne(1, 1, 0, DType::kF32), Error);
}

TEST(QuantizeOne, DividesByTheScale) {
  // x / s is a tie that rounds to 2 where x * (1 / s) is above or below it.
  int differing = 0;
  for (const float s : {0.1f, 0.3f, 0.0235f, 0.7f}) {
    for (int k = 1; k < 200; ++k) {
      const float x = (static_cast<float>(k) + 0.5f) * s;
      EXPECT_EQ(QuantizeOne(x, s, 0, DType::kS16), static_cast<int>(std::nearbyint(x / s)));
      differing += std::nearbyint(x / s) != std::nearbyint(x * (1.0f / s));
    }
  }
  EXPECT_GT(differing, 0);
}

TEST(QuantizeRun, EqualsTheScalarLaw) {
  OnEveryTarget([] {
    for (const DType t : kTypes) {
      SCOPED_TRACE(Name(t));
      const std::int32_t lo = static_cast<std::int32_t>(IntegerMin(t)), hi = static_cast<std::int32_t>(IntegerMax(t));
      for (const float scale : {1.0f, 0.0235f, 1e-38f, 3e30f, 0.3f, 2.0f}) {
        for (const std::int32_t z : {lo, hi, static_cast<std::int32_t>((std::int64_t{lo} + hi + 1) / 2), 0}) {
          for (std::vector<float> x : {EdgeValues(), RandomBits(1031, 7), RandomValues(517, 8, 100 * scale)}) {
            std::vector<std::byte> q(x.size() * CodeBytes(t) + 1, std::byte{0x5a});
            QuantizeRun(x, {scale, z}, t, q.data());
            for (std::size_t i = 0; i < x.size(); ++i) {
              ASSERT_EQ(CodeAt(q, i, t), QuantizeOne(x[i], scale, z, t)) << x[i] << " / " << scale << " zero " << z;
            }
            EXPECT_EQ(q.back(), std::byte{0x5a});
            std::vector<float> back(x.size());
            DequantizeRun(q.data(), x.size(), {scale, z}, t, back.data());
            for (std::size_t i = 0; i < x.size(); ++i) {
              ASSERT_EQ(Bits(back[i]), Bits(DequantizeOne(CodeAt(q, i, t), scale, z)));
            }
          }
        }
      }
    }
  });
}

TEST(QuantizeRun, ShortRuns) {
  OnEveryTarget([] {
    const std::vector<float> x = RandomValues(70, 3, 50);
    for (std::size_t n = 0; n <= x.size(); ++n) {
      std::vector<std::byte> q(n + 1, std::byte{0x5a});
      QuantizeRun(std::span(x).first(n), {0.5f, 10}, DType::kU8, q.data());
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(CodeAt(q, i, DType::kU8), QuantizeOne(x[i], 0.5f, 10, DType::kU8));
      ASSERT_EQ(q[n], std::byte{0x5a});
    }
  });
}

TEST(QuantizeTensor, EveryViewEqualsTheScalarLaw) {
  OnEveryTarget([] {
    for (const DType t : {DType::kU8, DType::kS8, DType::kU16, DType::kS16, DType::kS4, DType::kS32}) {
      for (const auto& [outer, channels, inner] :
           {std::tuple{7, 19, 1}, {5, 3, 9}, {1, 6, 40}, {4, 5, 33}, {0, 3, 2}, {3, 1, 1}}) {
        const std::size_t n = static_cast<std::size_t>(outer * channels * inner);
        std::vector<float> x = RandomValues(n, 5, 60);
        if (n > 3) x[1] = kNan, x[2] = kInf, x[3] = -kInf;
        std::vector<AffineParams> params;
        for (int c = 0; c < channels; ++c) params.push_back({0.1f * static_cast<float>(c + 1), c % 8});
        std::vector<std::byte> q(n * CodeBytes(t));
        QuantizeTensor(x, outer, channels, inner, params, t, q.data());
        std::vector<float> back(n);
        DequantizeTensor(q.data(), outer, channels, inner, params, t, back);
        for (std::size_t i = 0; i < n; ++i) {
          const AffineParams p = params[i / static_cast<std::size_t>(inner) % params.size()];
          ASSERT_EQ(CodeAt(q, i, t), QuantizeOne(x[i], p.scale, p.zero_point, t));
          ASSERT_EQ(Bits(back[i]), Bits(DequantizeOne(CodeAt(q, i, t), p.scale, p.zero_point)));
        }
      }
    }
    std::vector<std::byte> q(4);
    const std::vector<float> x(4);
    const std::vector<AffineParams> two(2);
    EXPECT_THROW(QuantizeTensor(x, 1, 3, 1, two, DType::kU8, q.data()), Error);
    EXPECT_THROW(QuantizeTensor(x, 1, 4, 1, two, DType::kU8, q.data()), Error);
  });
}

TEST(QuantizationSquaredError, EqualsTheScalarLaw) {
  OnEveryTarget([] {
    for (const DType t : kTypes) {
      for (const std::size_t n : {0u, 5u, 16u, 4113u}) {
        const std::vector<float> x = RandomValues(n, 11, 3);
        const AffineParams p = ChooseParams(-4, 5, t, false);
        double partial[16] = {};
        for (std::size_t i = 0; i < n; ++i) {
          const float back = DequantizeOne(QuantizeOne(x[i], p.scale, p.zero_point, t), p.scale, p.zero_point);
          const double e = static_cast<double>(x[i]) - back;
          partial[i % 16] += e * e;
        }
        for (const int h : {8, 4, 2, 1}) {
          for (int j = 0; j < h; ++j) partial[j] += partial[j + h];
        }
        ASSERT_EQ(QuantizationSquaredError(x, p, t), partial[0]) << Name(t) << n;
        ASSERT_EQ(QuantizationSquaredError(x, p, t, partial[0]), partial[0]) << Name(t) << n;
        if (partial[0] == 0) continue;
        const double some = QuantizationSquaredError(x, p, t, 0.4 * partial[0]);
        ASSERT_GT(some, 0.4 * partial[0]) << Name(t) << n;
        ASSERT_LE(some, partial[0]) << Name(t) << n;
      }
    }
  });
}

TEST(ChooseParams, Examples) {
  AffineParams p = ChooseParams(-1, 1, DType::kS8, true);
  EXPECT_FLOAT_EQ(p.scale, 1.0f / 127);
  EXPECT_EQ(p.zero_point, 0);
  p = ChooseParams(0, 2.55f, DType::kU8, false);
  EXPECT_FLOAT_EQ(p.scale, 0.01f);
  EXPECT_EQ(p.zero_point, 0);
  p = ChooseParams(1, 2.55f, DType::kU8, false);  // extended to hold 0
  EXPECT_FLOAT_EQ(p.scale, 0.01f);
  EXPECT_EQ(p.zero_point, 0);
  p = ChooseParams(-2.55f, -1, DType::kU8, false);
  EXPECT_EQ(p.zero_point, 255);
  p = ChooseParams(-3, 1, DType::kU8, true);
  EXPECT_EQ(p.zero_point, 128);
  EXPECT_FLOAT_EQ(p.scale, 6.0f / 255);
  EXPECT_EQ(ChooseParams(0, 0, DType::kU8, false).scale, 1.0f);
  EXPECT_EQ(ChooseParams(0, 0, DType::kS8, false).zero_point, -128);
  EXPECT_EQ(ChooseParams(0, 0, DType::kU8, true).zero_point, 128);
  for (const DType t : kTypes) {
    for (const bool symmetric : {false, true}) {
      for (const auto& [lo, hi] : {std::pair{-kMax, kMax}, {-kDenormal, kDenormal}, {-1e-38f, 0.0f}, {-0.3f, 7.0f}}) {
        const AffineParams q = ChooseParams(lo, hi, t, symmetric);
        EXPECT_TRUE(std::isnormal(q.scale)) << Name(t);
        EXPECT_GE(q.zero_point, IntegerMin(t));
        EXPECT_LE(q.zero_point, IntegerMax(t));
        EXPECT_EQ(DequantizeOne(QuantizeOne(0, q.scale, q.zero_point, t), q.scale, q.zero_point), 0.0f);
      }
    }
  }
}

TEST(Nibbles, LowFirst) {
  const std::vector<std::byte> codes = {std::byte{1}, std::byte{0xf8}, std::byte{0xff}};
  const std::vector<std::byte> packed = PackNibbles(codes);
  EXPECT_THAT(packed, testing::ElementsAre(std::byte{0x81}, std::byte{0x0f}));
  EXPECT_EQ(UnpackNibbles(packed, 3, true), codes);
  EXPECT_THAT(UnpackNibbles(packed, 3, false), testing::ElementsAre(std::byte{1}, std::byte{8}, std::byte{15}));
  EXPECT_THROW(UnpackNibbles(packed, 5, true), Error);
}

TEST(Half, Examples) {
  EXPECT_EQ(FloatToHalf(1.0f), 0x3c00);
  EXPECT_EQ(FloatToHalf(-2.0f), 0xc000);
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(0x1p-24f), 0x0001);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0x0000);  // tie to even
  EXPECT_EQ(FloatToHalf(0x1.8p-24f), 0x0002);
  EXPECT_EQ(FloatToHalf(-0.0f), 0x8000);
  EXPECT_EQ(FloatToHalf(2049.0f), 0x6800);  // tie: 2048
  EXPECT_EQ(FloatToHalf(2051.0f), 0x6802);  // tie: 2052
  EXPECT_EQ(FloatToHalf(kInf), 0x7c00);
  EXPECT_EQ(FloatToHalf(std::bit_cast<float>(0x7f800001u)), 0x7e00);  // signalling NaN, payload cut off
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // ties
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBf16(kMax), 0x7f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0xff800001u)), 0xffc0);
}

TEST(Half, NearestOfAllHalves) {
  // Every finite half comes back, and the midpoint between neighbours goes to the even one.
  for (std::uint32_t h = 0; h < 0x7c00; ++h) {
    const float x = HalfToFloat(static_cast<std::uint16_t>(h));
    ASSERT_EQ(FloatToHalf(x), h);
    const float above = h + 1 == 0x7c00 ? 65536.0f : HalfToFloat(static_cast<std::uint16_t>(h + 1));
    const float middle = (x + above) / 2;  // exact in f32
    ASSERT_EQ(FloatToHalf(middle), h % 2 == 0 ? h : h + 1);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), h);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, kInf)), h + 1);
  }
}

TEST(Half, RunsEqualTheScalarLaw) {
  OnEveryTarget([] {
    std::vector<float> x = RandomBits(100003, 1);
    for (const float v : EdgeValues()) x.push_back(v);
    for (std::uint32_t h = 0; h < 0x10000; ++h) {  // around every half and every bf16
      const std::uint32_t b = h << 16;
      x.push_back(HalfToFloat(static_cast<std::uint16_t>(h)));
      x.push_back(std::bit_cast<float>(b + 0x1000));
      x.push_back(std::bit_cast<float>(b + 0x8000));
      x.push_back(std::bit_cast<float>(b + 0x7fff));
      x.push_back(std::bit_cast<float>(b + 0xffff));
    }
    std::vector<std::uint16_t> out(x.size());
    std::uint64_t overflowed = 0;
    EXPECT_GT(FloatToHalf(x, out.data()), 0u);
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(out[i], FloatToHalf(x[i])) << x[i];
      overflowed += std::isfinite(x[i]) && std::isinf(HalfToFloat(out[i]));
    }
    EXPECT_EQ(FloatToHalf(x, out.data()), overflowed);
    overflowed = 0;
    const std::uint64_t counted = FloatToBf16(x, out.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(out[i], FloatToBf16(x[i])) << x[i];
      overflowed += std::isfinite(x[i]) && std::isinf(Bf16ToFloat(out[i]));
    }
    EXPECT_EQ(counted, overflowed);
    EXPECT_GT(counted, 0u);
    std::vector<std::uint16_t> all(0x10000);
    for (std::uint32_t h = 0; h < 0x10000; ++h) all[h] = static_cast<std::uint16_t>(h);
    std::vector<float> back(all.size());
    HalfToFloat(all, back.data());
    for (std::uint32_t h = 0; h < 0x10000; ++h) ASSERT_EQ(Bits(back[h]), Bits(HalfToFloat(all[h]))) << h;
    Bf16ToFloat(all, back.data());
    for (std::uint32_t h = 0; h < 0x10000; ++h) ASSERT_EQ(Bits(back[h]), Bits(Bf16ToFloat(all[h]))) << h;
  });
}

TEST(ErrorStats, EqualsTheScalarLaw) {
  std::vector<float> ref = RandomValues(5013, 1, 2), got = RandomValues(5013, 2, 2);
  ref[3] = kNan;
  got[7] = kInf;
  ref[9] = got[9] = -kInf;
  got[5012] = kNan;
  ref[5011] = kInf;
  double sums[4][16] = {};
  double largest = 0;
  for (std::size_t i = 0; i < ref.size(); ++i) {
    if (!std::isfinite(ref[i]) || !std::isfinite(got[i])) continue;
    const double a = ref[i], b = got[i];
    sums[0][i % 16] += a * a;
    sums[1][i % 16] += (a - b) * (a - b);
    sums[2][i % 16] += a * b;
    sums[3][i % 16] += b * b;
    largest = std::max(largest, std::abs(a - b));
  }
  for (auto& s : sums) {
    for (const int h : {8, 4, 2, 1}) {
      for (int j = 0; j < h; ++j) s[j] += s[j + h];
    }
  }
  OnEveryTarget([&] {
    ErrorStats e;
    e.Add(ref, got);
    EXPECT_EQ(e.signal, sums[0][0]);
    EXPECT_EQ(e.noise, sums[1][0]);
    EXPECT_EQ(e.dot, sums[2][0]);
    EXPECT_EQ(e.got_energy, sums[3][0]);
    EXPECT_EQ(e.max_abs, largest);
    EXPECT_EQ(e.elements, 5013u);
    EXPECT_EQ(e.non_finite, 2u);
    EXPECT_EQ(e.SqnrDb(), -std::numeric_limits<double>::infinity());
  });
}

TEST(ErrorStats, Figures) {
  const std::vector<float> ref = {3, 4}, got = {3, 3}, zero = {0, 0};
  ErrorStats e;
  EXPECT_EQ(e.Cosine(), 1);
  EXPECT_EQ(e.Mse(), 0);
  e.Add(ref, got);
  EXPECT_DOUBLE_EQ(e.SqnrDb(), 10 * std::log10(25.0));
  EXPECT_DOUBLE_EQ(e.Mse(), 0.5);
  EXPECT_DOUBLE_EQ(e.Cosine(), 21 / (5 * std::sqrt(18.0)));
  ErrorStats same;
  same.Add(ref, ref);
  EXPECT_EQ(same.SqnrDb(), std::numeric_limits<double>::infinity());
  EXPECT_DOUBLE_EQ(same.Cosine(), 1);
  same.Merge(e);
  EXPECT_EQ(same.elements, 4u);
  EXPECT_DOUBLE_EQ(same.SqnrDb(), 10 * std::log10(50.0));
  ErrorStats lost;
  lost.Add(ref, zero);
  EXPECT_EQ(lost.Cosine(), 0);
  EXPECT_EQ(lost.SqnrDb(), 0);
  EXPECT_THROW(lost.Add(ref, std::span(got).first(1)), Error);
}

TEST(MinMax, EqualsTheScalarLaw) {
  OnEveryTarget([] {
    for (const std::size_t n : {0u, 1u, 3u, 17u, 64u, 4095u, 4096u, 4097u, 20011u}) {
      for (const int special : {0, 1, 2}) {
        std::vector<float> x = RandomValues(n, static_cast<unsigned>(n), 3);
        if (special == 1 && n > 2) x[n / 2] = kNan, x[n - 1] = -kInf, x[0] = kInf;
        if (special == 2) std::fill(x.begin(), x.end(), -0.0f);
        MinMax law;
        law.elements = n;
        for (const float v : x) {
          if (std::isnan(v)) {
            ++law.nans;
          } else if (std::isinf(v)) {
            ++law.infs;
          } else {
            law.min = std::min(law.min, v + 0.0f);
            law.max = std::max(law.max, v + 0.0f);
          }
        }
        MinMax m;
        m.Add(x);
        EXPECT_EQ(m, law) << n;
        EXPECT_FALSE(m.HasRange() && std::signbit(m.min) && m.min == 0);
        EXPECT_EQ(m.AllFinite(), special != 1 || n <= 2);
        MinMax halves, rest;
        halves.Add(std::span(x).first(n / 3));
        rest.Add(std::span(x).subspan(n / 3));
        halves.Merge(rest);
        EXPECT_EQ(halves, law);
      }
    }
  });
}

RangeHistogram HistogramByLaw(std::span<const float> x) {
  RangeHistogram h;
  for (const float v : x) {
    ++h.range.elements;
    if (std::isnan(v)) {
      ++h.range.nans;
    } else if (std::isinf(v)) {
      ++h.range.infs;
    } else {
      h.range.min = std::min(h.range.min, v + 0.0f);
      h.range.max = std::max(h.range.max, v + 0.0f);
      while (std::ldexp(1.0, h.exponent) <= std::fabs(v)) ++h.exponent;
    }
  }
  for (const float v : x) {
    if (!std::isfinite(v)) continue;
    if (v == 0) {
      ++h.zeros;
      continue;
    }
    if (h.counts.empty()) h.counts.resize(RangeHistogram::kBins);
    // In f64 and by division: the definition, not the kernel's arithmetic.
    const int away = static_cast<int>(std::floor(std::fabs(static_cast<double>(v)) / std::ldexp(1.0, h.exponent - 11)));
    ++h.counts[static_cast<std::size_t>(v < 0 ? 2047 - away : 2048 + away)];
  }
  return h;
}

std::vector<std::vector<float>> HistogramCases() {
  std::vector<std::vector<float>> cases = {{},
                                           {0.0f, -0.0f},
                                           {kNan, kInf},
                                           {1.0f},
                                           {-1.0f},
                                           {kMax, -kMax, kDenormal},
                                           {kDenormal, -kDenormal, 0.0f},
                                           {1e-30f, -1e-30f, 1e30f}};
  cases.push_back(RandomBits(30011, 1));
  cases.push_back(RandomValues(200003, 2, 1));
  std::vector<float> relu = RandomValues(150001, 3, 0.2f);
  for (float& v : relu) v = std::max(v, 0.0f);
  cases.push_back(relu);
  std::vector<float> growing;
  for (int i = 0; i < 50000; ++i) growing.push_back(std::ldexp(i % 2 == 0 ? 1.0f : -1.5f, i / 500 - 60));
  cases.push_back(growing);
  std::vector<float> edges;  // on the bin edges of either sign
  for (int i = -2047; i <= 2047; ++i) edges.push_back(static_cast<float>(i) / 1024);
  cases.push_back(edges);
  cases.emplace_back(300000, 0.75f);  // one bin: more than 16 bits hold
  cases.emplace_back(300000, 0.0f);
  return cases;
}

TEST(RangeHistogram, EqualsTheLawInAnyOrderAndSharding) {
  OnEveryTarget([] {
    for (std::vector<float> x : HistogramCases()) {
      const RangeHistogram law = HistogramByLaw(x);
      law.Check();
      RangeHistogram whole;
      whole.Add(x);
      ASSERT_EQ(whole, law) << x.size();
      std::reverse(x.begin(), x.end());
      RangeHistogram backward;
      backward.Add(x);
      ASSERT_EQ(backward, law) << x.size();
      std::mt19937 gen(9);
      RangeHistogram merged, fed;
      for (std::size_t i = 0; i < x.size();) {
        const std::size_t n = std::min<std::size_t>(x.size() - i, 1 + gen() % (x.size() / 7 + 2));
        RangeHistogram part;
        part.Add(std::span(x).subspan(i, n));
        part.Merge(merged);
        merged = part;
        fed.Add(std::span(x).subspan(i, n));
        i += n;
      }
      ASSERT_EQ(merged, law) << x.size();
      ASSERT_EQ(fed, law) << x.size();
    }
  });
}

TEST(RangeHistogram, MergingNeighboursIsBinningCoarser) {
  for (const float x : RandomBits(20000, 4)) {
    if (!std::isfinite(x) || x == 0) continue;
    const int e = std::max(RangeHistogram::kMinExponent, std::ilogb(x) + 1);
    const int fine = RangeHistogramBin(x, e);
    ASSERT_GE(fine, 0);
    ASSERT_LT(fine, RangeHistogram::kBins);
    if (e == RangeHistogram::kMaxExponent) continue;
    const int coarse = RangeHistogramBin(x, e + 1);
    if (x > 0) {
      ASSERT_EQ(coarse, 2048 + (fine - 2048) / 2);
    } else {
      ASSERT_EQ(coarse, 2047 - (2047 - fine) / 2);
    }
  }
}

TEST(RangeHistogram, EdgesHoldTheirValues) {
  RangeHistogram h;
  h.Add(std::vector<float>{-1.0f, 1.0f, 0.25f, -0.25f});
  EXPECT_EQ(h.exponent, 1);  // |x| < 2^e
  EXPECT_EQ(h.BinWidth(), 1.0 / 1024);
  for (const float x : {1.0f, 0.25f}) {
    const int i = RangeHistogramBin(x, h.exponent);
    EXPECT_EQ(h.BinLow(i), x);
    EXPECT_EQ(h.BinHigh(RangeHistogramBin(-x, h.exponent)), -x);
    EXPECT_EQ(h.counts[static_cast<std::size_t>(i)], 1u);
  }
}

TEST(RangeHistogram, RefusesForgedOnes) {
  RangeHistogram good, h;
  good.Add(std::vector<float>{1.0f, -3.0f, 0.0f, kNan});
  good.Check();
  const auto refused = [&] { EXPECT_THROW(RangeHistogram().Merge(h), Error); };
  h = good, h.counts.pop_back(), refused();
  h = good, h.counts[0] = 5, refused();
  h = good, h.counts[0] = ~std::uint64_t{0}, refused();
  h = good, h.exponent = 3, refused();
  h = good, h.exponent = 10000, refused();
  h = good, h.range.max = kNan, refused();
  h = good, h.range.max = kInf, refused();
  h = good, h.zeros = 9, refused();
  h = good, h.range = MinMax(), refused();
}

TEST(LaneSum, EqualsTheScalarLaw) {
  OnEveryTarget([] {
    for (const std::size_t n : {0u, 1u, 15u, 16u, 17u, 4096u, 9999u}) {
      const std::vector<float> x = RandomValues(n, 21, 1000);
      double s[16] = {}, q[16] = {};
      for (std::size_t i = 0; i < n; ++i) {
        s[i % 16] += x[i];
        q[i % 16] += static_cast<double>(x[i]) * x[i];
      }
      for (const int h : {8, 4, 2, 1}) {
        for (int j = 0; j < h; ++j) s[j] += s[j + h], q[j] += q[j + h];
      }
      EXPECT_EQ(LaneSum(x), s[0]);
      EXPECT_EQ(LaneSumSquares(x), q[0]);
    }
  });
}

TEST(ExactSum, AnyOrderAndShardingGivesTheSameBits) {
  std::vector<float> x;
  for (const float v : RandomBits(20000, 6)) {
    if (std::isfinite(v)) x.push_back(v);
  }
  ExactSum forward, backward, merged, cancelled;
  for (const float v : x) forward.Add(v);
  for (std::size_t i = x.size(); i-- > 0;) backward.Add(x[i]);
  for (std::size_t i = 0; i < x.size(); i += 1000) {
    ExactSum part;
    for (std::size_t j = i; j < std::min(x.size(), i + 1000); ++j) part.Add(x[j]);
    part.Merge(merged);
    merged = part;
  }
  EXPECT_EQ(forward, backward);
  EXPECT_EQ(forward, merged);
  for (const float v : x) cancelled.Add(v);
  for (const float v : x) cancelled.Add(-v);
  EXPECT_TRUE(cancelled.IsZero());
  EXPECT_EQ(ExactSum::FromText(forward.ToText()), forward);
}

TEST(ExactSum, SmallNextToHuge) {
  ExactSum s;
  s.Add(kMax);
  s.Add(kDenormal);
  s.Add(-kMax);
  EXPECT_EQ(s.ToDouble(), static_cast<double>(kDenormal));
  EXPECT_EQ(s.ToText(), "0x1p-149");
  s.Add(-2 * static_cast<double>(kDenormal));
  EXPECT_EQ(s.ToText(), "-0x1p-149");
  const double square = static_cast<double>(kMax) * kMax, small = static_cast<double>(kDenormal) * kDenormal;
  ExactSum t;
  t.Add(square);
  t.Add(small);
  t.Add(-square);
  EXPECT_EQ(t.ToDouble(), small);
}

TEST(ExactSum, RoundsToNearestEven) {
  const auto sum = [](std::vector<double> v) {
    ExactSum s;
    for (const double x : v) s.Add(x);
    return s.ToDouble();
  };
  EXPECT_EQ(sum({1, 0x1p-53}), 1);
  EXPECT_EQ(sum({1, 0x1p-53, 0x1p-100}), 1 + 0x1p-52);
  EXPECT_EQ(sum({1, 0x3p-53}), 1 + 0x1p-51);
  EXPECT_EQ(sum({-1, -0x3p-53}), -1 - 0x1p-51);
  EXPECT_EQ(sum({0x1.fffffffffffffp0, 0x1p-53}), 2);
  EXPECT_EQ(sum({}), 0);
  EXPECT_EQ(sum({0x1p-400}), 0);  // below the least bit
  EXPECT_EQ(sum({0x1p319, -0x1p319, 5}), 5);
}

TEST(ExactSum, RandomDoublesAgainstLongIntegers) {
  // Multiples of 2^-20 below 2^40: their sum in 64-bit integers is the truth.
  std::mt19937_64 gen(3);
  for (int trial = 0; trial < 200; ++trial) {
    ExactSum s;
    std::int64_t truth = 0;
    for (int i = 0; i < 100; ++i) {
      const std::int64_t v = static_cast<std::int64_t>(gen() >> 11) - (std::int64_t{1} << 52);
      truth += v;
      s.Add(std::ldexp(static_cast<double>(v), -20));
    }
    EXPECT_EQ(s.ToDouble(), std::ldexp(static_cast<double>(truth), -20));
    EXPECT_EQ(ExactSum::FromText(s.ToText()), s);
  }
}

TEST(ExactSum, Texts) {
  EXPECT_EQ(ExactSum().ToText(), "0x0p0");
  EXPECT_EQ(ExactSum::FromText("0x0p0"), ExactSum());
  ExactSum s;
  s.Add(-10.5);
  EXPECT_EQ(s.ToText(), "-0x15p-1");
  EXPECT_EQ(ExactSum::FromText("-0x2ap-2"), s);
  for (const char* bad : {"", "-", "0x", "0x1", "0xp1", "0x1p", "1p3", "0x1gp3", "0x1p3 ", "0x1p-321", "0x1p383",
                          "+0x1p1", "0x1p99999999999", "0X1p1"}) {
    EXPECT_THROW(ExactSum::FromText(bad), Error) << bad;
  }
  EXPECT_THROW(ExactSum::FromText("0x" + std::string(1000, '1') + "p0"), Error);
  ExactSum big = ExactSum::FromText("0x1p382");
  EXPECT_THROW(big.Merge(big), Error);
  for (const double v : {0x1p320, std::numeric_limits<double>::infinity(), std::nan("")}) {
    ExactSum t;
    EXPECT_THROW(t.Add(v), Error);
  }
}

TEST(AddChannelSums, FollowsItsDefinition) {
  OnEveryTarget([] {
    for (const auto& [outer, channels, inner] :
         {std::tuple{3, 5, 40}, {600, 13, 1}, {300, 3, 15}, {2, 4, 16}, {1, 7, 1}, {0, 2, 3}}) {
      const std::size_t n = static_cast<std::size_t>(outer * channels * inner);
      const std::size_t width = static_cast<std::size_t>(channels), run = static_cast<std::size_t>(inner);
      const std::vector<float> x = RandomValues(n, 31, 10);
      std::vector<ExactSum> law(width), law2(width), sums(width), squares(width), only(width);
      if (run >= 16) {
        for (std::size_t r = 0; r * run < n; ++r) {
          law[r % width].Add(LaneSum(std::span(x).subspan(r * run, run)));
          law2[r % width].Add(LaneSumSquares(std::span(x).subspan(r * run, run)));
        }
      } else {
        for (std::size_t first = 0; first < static_cast<std::size_t>(outer); first += 256) {
          for (std::size_t c = 0; c < width; ++c) {
            double total = 0, total2 = 0;
            for (std::size_t j = 0; j < run; ++j) {
              double a = 0, b = 0;
              for (std::size_t o = first; o < std::min<std::size_t>(static_cast<std::size_t>(outer), first + 256);
                   ++o) {
                const double v = x[(o * width + c) * run + j];
                a += v;
                b += v * v;
              }
              total = j == 0 ? a : total + a;
              total2 = j == 0 ? b : total2 + b;
            }
            law[c].Add(total);
            law2[c].Add(total2);
          }
        }
      }
      AddChannelSums(x, outer, channels, inner, sums, squares);
      AddChannelSums(x, outer, channels, inner, only);
      EXPECT_EQ(sums, law);
      EXPECT_EQ(squares, law2);
      EXPECT_EQ(only, law);
    }
    std::vector<ExactSum> sums(2);
    EXPECT_THROW(AddChannelSums(std::vector<float>(5), 1, 2, 2, sums), Error);
    EXPECT_THROW(AddChannelSums(std::vector<float>{1, kNan}, 1, 2, 1, sums), Error);
  });
}

}  // namespace
}  // namespace octavo
