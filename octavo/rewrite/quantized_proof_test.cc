// Why the classes that the rules declare hold: every code, every step threshold, and the integer parts by Z3.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "octavo/numerics/affine.h"
#include "octavo/rewrite/rules/quantized.h"

#ifdef OCTAVO_TEST_Z3
#include <z3++.h>
#endif

namespace octavo {
namespace {

// Scales of any size: random digits, powers of two and the ends.
std::vector<float> SomeScales(int n) {
  std::mt19937_64 rng(5);
  std::vector<float> scales = {1.0f, 0.5f, 1.0f / 255, 1e-30f, 1e30f, 0.0078125f, 0.1f, 3.0f};
  while (static_cast<int>(scales.size()) < n) {
    scales.push_back(
        std::ldexp(std::uniform_real_distribution<float>(1.0f, 2.0f)(rng), static_cast<int>(rng() % 40) - 30));
  }
  return scales;
}

std::int32_t Clamp(std::int64_t q, DType storage) {
  return static_cast<std::int32_t>(std::clamp(q, IntegerMin(storage), IntegerMax(storage)));
}

// x on both sides of every step of a u8 or s8 quantization: f32 neighbours of (k + 1/2) * s, for all k.
std::vector<float> Thresholds(float scale, std::int32_t zero, DType storage) {
  std::vector<float> xs;
  for (std::int64_t q = IntegerMin(storage) - 1; q <= IntegerMax(storage) + 1; ++q) {
    const auto at = static_cast<float>((static_cast<double>(q - zero) + 0.5) * scale);
    xs.push_back(at);
    xs.push_back(std::nextafter(at, -std::numeric_limits<float>::infinity()));
    xs.push_back(std::nextafter(at, std::numeric_limits<float>::infinity()));
  }
  return xs;
}

TEST(Requantize, EveryCodeComesBack) {
  for (const DType storage : {DType::kU8, DType::kS8, DType::kU16, DType::kS16}) {
    const std::int64_t low = IntegerMin(storage), high = IntegerMax(storage);
    for (const float scale : SomeScales(BitWidth(storage) == 8 ? 64 : 12)) {
      for (const std::int64_t zero : {low, low + 1, (low + high) / 2, high - 1, high}) {
        for (std::int64_t q = low; q <= high; ++q) {
          const auto z = static_cast<std::int32_t>(zero);
          const float x = DequantizeOne(static_cast<std::int32_t>(q), scale, z);
          if (!std::isfinite(x)) continue;
          ASSERT_EQ(QuantizeOne(x, scale, z, storage), q) << scale << " " << zero;
        }
      }
    }
  }
}

TEST(Requantize, FinerChangesNothing) {
  for (const float fine : SomeScales(24)) {
    for (int m : {1, 2, 3, 7, 64, 255, 256}) {
      const float coarse = fine * static_cast<float>(m);
      if (static_cast<double>(coarse) != static_cast<double>(fine) * m || !std::isfinite(coarse)) continue;
      for (const std::int32_t za : {0, 100, 128, 255}) {
        for (const std::int32_t zb : {30000, 32768, 40000}) {
          const std::int64_t low = -static_cast<std::int64_t>(za) * m + zb,
                             high = (255 - static_cast<std::int64_t>(za)) * m + zb;
          if (low < 0 || high > 65535) continue;
          for (std::int32_t q = 0; q < 256; ++q) {
            const float x = DequantizeOne(q, coarse, za);
            if (!std::isfinite(x) || !std::isfinite(DequantizeOne(65535, fine, 0))) continue;
            const float back = DequantizeOne(QuantizeOne(x, fine, zb, DType::kU16), fine, zb);
            ASSERT_EQ(x, back) << fine << " " << m << " " << q;
          }
        }
      }
    }
  }
}

TEST(Requantize, OddRatioDiffersOnTiesOnly) {
  for (const int m : {3, 5, 255}) {
    const float fine = 1.0f / 1024, coarse = fine * static_cast<float>(m);
    int differ = 0, total = 0;
    for (std::int32_t steps = -400000; steps <= 400000; ++steps) {  // in quarters of a fine step
      const float x = static_cast<float>(steps) * (fine / 4);
      const std::int32_t once = QuantizeOne(x, coarse, 7, DType::kS8);
      const std::int32_t twice =
          QuantizeOne(DequantizeOne(QuantizeOne(x, fine, 0, DType::kS32), fine, 0), coarse, 7, DType::kS8);
      ++total;
      if (once == twice) continue;
      ++differ;
      ASSERT_LE(std::abs(once - twice), 1);
      // x is half-way between two fine codes, and the rounded one is no coarse tie: x itself is next to one.
      const double in_fine = static_cast<double>(x) / fine;
      ASSERT_EQ(in_fine - std::floor(in_fine), 0.5) << steps;
    }
    EXPECT_LT(differ, total / 100);
  }
}

TEST(Requantize, AbsorbedErrorIsSmaller) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 200000; ++i) {
    const float x = std::uniform_real_distribution<float>(-1.0f, 1.0f)(rng);
    const float s = std::uniform_real_distribution<float>(0.01f, 0.02f)(rng),
                t = std::uniform_real_distribution<float>(0.01f, 0.02f)(rng);
    const float once = DequantizeOne(QuantizeOne(x, t, 0, DType::kS8), t, 0);
    const float first = DequantizeOne(QuantizeOne(x, s, 0, DType::kS8), s, 0);
    const float twice = DequantizeOne(QuantizeOne(first, t, 0, DType::kS8), t, 0);
    ASSERT_LE(std::fabs(once - x), t / 2 * 1.00001f);
    ASSERT_LE(std::fabs(once - x), std::fabs(twice - x) + 1e-6f);
  }
}

TEST(S8ToU8, EveryCodeAndZeroPoint) {
  for (std::int32_t zero = -128; zero < 128; ++zero) {
    for (std::int32_t q = -128; q < 128; ++q) {
      ASSERT_EQ(static_cast<std::uint8_t>(q) ^ 0x80, q + 128);
      ASSERT_EQ((q + 128) - (zero + 128), q - zero);
    }
    for (const float scale : {0.1f, 1.0f, 0.0078125f}) {
      for (const float x : Thresholds(scale, zero, DType::kS8)) {
        ASSERT_EQ(QuantizeOne(x, scale, zero, DType::kS8) + 128, QuantizeOne(x, scale, zero + 128, DType::kU8)) << x;
      }
    }
  }
}

TEST(Clip, EveryThreshold) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (std::int32_t zero = 0; zero < 256; zero += 15) {
    for (const float scale : {0.1f, 0.0235f, 1.0f}) {
      std::vector<std::pair<float, float>> bounds = {{0.0f, infinity}, {0.0f, 6.0f}, {-1.0f, 1.0f}, {-infinity, 0.5f}};
      for (const std::int32_t k : {-3, 4, 40}) {  // on a code, and half-way between two
        bounds.emplace_back(static_cast<float>(k) * scale, static_cast<float>(k + 9) * scale);
        bounds.emplace_back((static_cast<float>(k) + 0.5f) * scale, (static_cast<float>(k) + 9.5f) * scale);
      }
      for (const auto& [low, high] : bounds) {
        const std::int32_t ql = QuantizeOne(low, scale, zero, DType::kU8),
                           qh = QuantizeOne(high, scale, zero, DType::kU8);
        for (const float x : Thresholds(scale, zero, DType::kU8)) {
          const std::int32_t before = QuantizeOne(std::min(std::max(x, low), high), scale, zero, DType::kU8);
          const std::int32_t after = std::clamp(QuantizeOne(x, scale, zero, DType::kU8), ql, qh);
          ASSERT_EQ(before, after) << x << " in " << low << ".." << high << " at " << scale << ", " << zero;
        }
      }
    }
  }
}

TEST(Clip, IntegerIsExactOnEveryCode) {
  for (std::int32_t zero = -128; zero < 128; ++zero) {
    for (const float scale : {0.1f, 0.5f}) {
      for (const auto& [low, high] :
           std::vector<std::pair<float, float>>{{0, 1e30f}, {0, 6}, {-0.05f, 0.25f}, {-1e30f, 3.14f}}) {
        const std::int32_t ql = QuantizeOne(low, scale, zero, DType::kS8),
                           qh = QuantizeOne(high, scale, zero, DType::kS8);
        for (std::int32_t q = -128; q < 128; ++q) {
          const float x = std::min(std::max(DequantizeOne(q, scale, zero), low), high);
          ASSERT_EQ(QuantizeOne(x, scale, zero, DType::kS8), std::clamp(q, ql, qh));
        }
      }
    }
  }
}

TEST(Clip, DropIsExactOnEveryCode) {
  for (std::int32_t zero = 0; zero < 256; ++zero) {
    const float scale = 0.03f;
    for (const auto& [low, high] :
         std::vector<std::pair<float, float>>{{0, 1e30f}, {-9, 9}, {-3.84f, 3.81f}, {-3.82f, 3.79f}}) {
      const bool drops =
          QuantizeOne(low, scale, zero, DType::kU8) == 0 && QuantizeOne(high, scale, zero, DType::kU8) == 255;
      bool same = true;
      for (std::int32_t q = 0; q < 256; ++q) {
        const float x = std::min(std::max(DequantizeOne(q, scale, zero), low), high);
        same = same && QuantizeOne(x, scale, zero, DType::kU8) == q;
      }
      ASSERT_EQ(drops, same) << zero << " " << low << " " << high;
    }
  }
}

TEST(Move, CommutesWithQuantization) {
  for (const std::int32_t zero : {0, 100, 255}) {
    const std::vector<float> xs = Thresholds(0.02f, zero, DType::kU8);
    for (std::size_t i = 1; i < xs.size(); ++i) {
      const float a = xs[i - 1], b = xs[i];
      const std::int32_t qa = QuantizeOne(a, 0.02f, zero, DType::kU8), qb = QuantizeOne(b, 0.02f, zero, DType::kU8);
      ASSERT_EQ(QuantizeOne(std::max(a, b), 0.02f, zero, DType::kU8), std::max(qa, qb));
      ASSERT_EQ(QuantizeOne(std::min(a, b), 0.02f, zero, DType::kU8), std::min(qa, qb));
    }
  }
}

TEST(Pad, EveryConstant) {
  // What Pad writes is quantized behind it: its code is that of the constant, whatever it is.
  for (std::int32_t zero = 0; zero < 256; zero += 5) {
    for (const float x : Thresholds(0.02f, zero, DType::kU8)) {
      const std::int32_t q = QuantizeOne(x, 0.02f, zero, DType::kU8);
      ASSERT_EQ(QuantizeOne(DequantizeOne(q, 0.02f, zero), 0.02f, zero, DType::kU8), q);
    }
  }
}

TEST(Bias, ErrorIsBelowHalfAStep) {
  std::mt19937_64 rng(2);
  for (int i = 0; i < 100000; ++i) {
    const float product = std::ldexp(std::uniform_real_distribution<float>(1.0f, 2.0f)(rng), -18);
    const double b = std::uniform_real_distribution<double>(-20, 20)(rng);
    ASSERT_LE(std::fabs(std::nearbyint(b / product) * product - b), product / 2 * (1 + 1e-9));
  }
}

TEST(Bias, RaisedScaleFits) {
  std::mt19937_64 rng(3);
  for (int i = 0; i < 100000; ++i) {
    const float x =
        std::ldexp(std::uniform_real_distribution<float>(1.0f, 2.0f)(rng), static_cast<int>(rng() % 30) - 20);
    const double b =
        std::ldexp(std::uniform_real_distribution<double>(1.0, 2.0)(rng), static_cast<int>(rng() % 30) - 5);
    const auto w = static_cast<float>(1.0001 * 2 * b / (4294967296.0 - 2) / x);
    if (!(w >= std::numeric_limits<float>::min())) continue;
    ASSERT_LE(std::nearbyint(b / (x * w)), 2147483647.0);
  }
}

TEST(SumFits, AgreesWithTheWorstSum) {
  const ScalarParams x{DType::kU8, 1.0f, 0};
  EXPECT_TRUE(SumFits(33025, x, DType::kU8, 0, 0));
  EXPECT_FALSE(SumFits(33026, x, DType::kU8, 0, 0));
  EXPECT_FALSE(SumFits(33025, x, DType::kU8, 0, 2147483647));
  EXPECT_TRUE(SumFits(65000, x, DType::kS8, 0, 0));
  EXPECT_FALSE(SumFits(1, x, DType::kU8, 0, 2147483647LL + 1));
}

// The largest and smallest sums that each channel can have, against the bound; the bias of a channel of zeros may be
// any.
TEST(SumFits, OfAConstantWeightIsTheWorstSumOfItsCodes) {
  Graph graph;
  const auto fits = [&](const std::vector<std::int64_t>& w, Dims dims, std::int64_t axis, std::int64_t zero,
                        std::int32_t x_zero, const std::vector<std::int64_t>& bias, float y_scale = 0) {
    const Value* weight = graph.AddConstant("", TensorRef::FromInts(DType::kU8, std::move(dims), w));
    const Value* b = graph.AddConstant("", TensorRef::FromInts(DType::kS32, {std::ssize(bias)}, bias));
    return ConstantSumsFit(*weight, axis, zero, {DType::kU8, 1, x_zero}, b, std::vector<float>{1}, y_scale);
  };
  constexpr std::int64_t kMost = 2147483647;
  EXPECT_TRUE(fits({5, 5, 6, 9}, {2, 2}, 0, 5, 0, {kMost, kMost - 5 * 255}));
  EXPECT_FALSE(fits({5, 5, 6, 9}, {2, 2}, 0, 5, 0, {kMost, kMost - 5 * 255 + 1}));
  EXPECT_TRUE(fits({5, 6, 5, 9}, {2, 2}, 1, 5, 0, {kMost, kMost - 5 * 255}));
  EXPECT_FALSE(fits({5, 6, 5, 9}, {2, 2}, 1, 5, 0, {kMost, kMost - 5 * 255 + 1}));
  EXPECT_TRUE(fits({0, 0, 6, 9}, {2, 2}, 0, 5, 100, {-kMost + 10 * 155, 0}));  // -5 * 155, twice
  EXPECT_FALSE(fits({0, 0, 6, 9}, {2, 2}, 0, 5, 100, {-kMost + 10 * 155 - 1, 0}));
  EXPECT_FALSE(fits({5, 5, 5, 5}, {2, 2}, 0, 5, 0, {1, 2, 3}));
  // Once around is 2^32 units: less than half of a step of 1.1e10, but not of 8.5e9; never of a float.
  EXPECT_TRUE(fits({5, 5, 6, 9}, {2, 2}, 0, 5, 0, {kMost, kMost}, 1.1e10f));
  EXPECT_FALSE(fits({5, 5, 6, 9}, {2, 2}, 0, 5, 0, {kMost, kMost}, 8.5e9f));
  EXPECT_FALSE(fits({5, 5, 6, 9}, {2, 2}, 0, 5, 0, {kMost, kMost}));
}

#ifdef OCTAVO_TEST_Z3

// Proves that no assignment of the constraints exists.
void ExpectImpossible(z3::solver& solver) {
  solver.set("timeout", 10000u);
  const z3::check_result result = solver.check();
  EXPECT_EQ(result, z3::unsat) << (result == z3::sat ? solver.get_model().to_string() : std::string("not decided"));
}

// Products of two unknowns are beyond a decision procedure: one of the factors is taken through its values.
TEST(Z3, SumFitsMeansNoOverflow) {
  // length * reach_x * reach_w + bias <= 2^31 - 1 whenever length <= (2^31 - 1 - bias) / (reach_x * reach_w).
  for (int product = 1; product <= 65025; product += 813) {
    z3::context c;
    z3::solver s(c);
    const z3::expr length = c.int_const("length"), bias = c.int_const("bias"), room = c.int_const("room");
    const z3::expr most = c.int_val(2147483647);
    s.add(bias >= 0 && bias <= most && length >= 0);
    // room = floor((most - bias) / product), and the rule's test
    s.add(room * product <= most - bias && (room + 1) * product > most - bias && length <= room);
    s.add(length * product + bias > most);
    ExpectImpossible(s);
  }
}

TEST(Z3, FinerRangesHoldEveryCode) {
  // The rule's test of both ends decides for every code between them: (q - za) * m + zb is monotone in q.
  for (const int m : {1, 2, 3, 7, 255, 256, 65536}) {
    z3::context c;
    z3::solver s(c);
    const z3::expr q = c.int_const("q"), za = c.int_const("za"), zb = c.int_const("zb");
    const z3::expr low = c.int_const("low"), high = c.int_const("high");
    s.add(za >= 0 && za <= 255 && q >= 0 && q <= 255);
    s.add((0 - za) * m + zb >= low && (255 - za) * m + zb <= high);
    s.add((q - za) * m + zb < low || (q - za) * m + zb > high);
    ExpectImpossible(s);
  }
}

TEST(Z3, OddRatioHasNoFineCodeOnACoarseTie) {
  // A coarse tie lies at (k + 1/2) * m fine steps: an integer number of them only if m is even.
  for (int m = 1; m < 512; m += 2) {
    z3::context c;
    z3::solver s(c);
    const z3::expr k = c.int_const("k"), j = c.int_const("j");
    s.add(2 * j == (2 * k + 1) * m);  // fine code j is the tie
    ExpectImpossible(s);
  }
}

TEST(Z3, SignedAndUnsignedSaturateAlike) {
  z3::context c;
  z3::solver s(c);
  const z3::expr r = c.int_const("r"), z = c.int_const("z");  // r = rne(x / s), any integer
  const auto clamp = [&](const z3::expr& v, int low, int high) {
    return z3::ite(v < low, c.int_val(low), z3::ite(v > high, c.int_val(high), v));
  };
  s.add(z >= -128 && z <= 127);
  s.add(clamp(r + z, -128, 127) + 128 != clamp(r + z + 128, 0, 255));
  ExpectImpossible(s);
}

TEST(Z3, ClampCommutesWithShiftAndClip) {
  // Any monotone step function: codes of the bounds bound the codes.
  z3::context c;
  z3::solver s(c);
  const z3::expr x = c.int_const("x"), low = c.int_const("low"), high = c.int_const("high");
  z3::func_decl q = z3::function("q", c.int_sort(), c.int_sort());
  for (const z3::expr& a : {x, low, high}) {
    for (const z3::expr& b : {x, low, high}) s.add(z3::implies(a <= b, q(a) <= q(b)));
  }
  s.add(low <= high);
  const z3::expr clipped = z3::ite(x < low, low, z3::ite(x > high, high, x));
  const z3::expr codes = z3::ite(q(x) < q(low), q(low), z3::ite(q(x) > q(high), q(high), q(x)));
  s.add(q(clipped) != codes);
  ExpectImpossible(s);
}

TEST(Z3, ScalesMultiplyThrough) {
  z3::context c;
  z3::solver s(c);
  const z3::expr k = c.real_const("k"), q = c.real_const("q"), z = c.real_const("z"), scale = c.real_const("s");
  s.add(k * ((q - z) * scale) != (q - z) * (k * scale));
  ExpectImpossible(s);
}

#endif  // OCTAVO_TEST_Z3

TEST(Clamp, IsTheOneOfQuantizeOne) {
  for (std::int64_t q = -1000; q <= 1000; ++q) {
    EXPECT_EQ(QuantizeOne(static_cast<float>(q), 1.0f, 0, DType::kS8), Clamp(q, DType::kS8));
  }
}

}  // namespace
}  // namespace octavo
