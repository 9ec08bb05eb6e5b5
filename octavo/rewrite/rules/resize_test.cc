// Resizes, before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kImage = "[1,2,4,6]";
constexpr const char* kVolume = "[2,3,4,5,6]";
constexpr float kRounding = 1e-6f;
constexpr const char* kKinds[] = {"half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"};

testing::Ran Apply(const std::string& node, const std::string& out, const std::string& constants,
                   const std::string& in = kImage, float tolerance = 0) {
  RuleSet rules;
  rules.push_back(NearestToGather(20));
  rules.push_back(LinearResizeOfVolume(20));
  rules.push_back(ResizeByFraction(20));
  return testing::ApplyRules(
      "opset \"\" = 20\ngraph @g(%x: f32" + in + ") -> (%y) {\n" + constants + "%y: f32" + out + " = " + node + "\n}",
      rules, RuleClass::kImproves, tolerance);
}

std::string Linear(const std::string& kind, bool by_scales, const std::string& more = "") {
  return std::string(by_scales ? "Resize(%x, _, %s)" : "Resize(%x, _, _, %s)") +
         " {mode=\"linear\", coordinate_transformation_mode=\"" + kind + "\"" + more + "}";
}

std::string Sizes(const std::string& numbers, int n) {
  return "%s = constant s64[" + std::to_string(n) + "] [" + numbers + "]\n";
}
std::string Scales(const std::string& numbers, int n) {
  return "%s = constant f32[" + std::to_string(n) + "] [" + numbers + "]\n";
}

TEST(Resizes, NearestOfAnySizeIsGathered) {
  const std::string sizes = "%s = constant s64[4] [1, 2, 5, 4]\n", up = "%s = constant s64[4] [1, 2, 8, 12]\n";
  for (const char* nearest : {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"}) {
    for (const char* at : {"half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"}) {
      const std::string resize = "Resize(%x, _, _, %s) {mode=\"nearest\", nearest_mode=\"" + std::string(nearest) +
                                 "\", coordinate_transformation_mode=\"" + at + "\"}";
      EXPECT_THAT(Apply(resize, "[1,2,5,4]", sizes).text, Not(HasSubstr("Resize"))) << resize;
      Apply(resize, "[1,2,8,12]", up);  // the same numbers, whatever it becomes
    }
  }
  EXPECT_THAT(Apply("Resize(%x, _, %s) {mode=\"nearest\"}", "[1,2,8,12]", "%s = constant f32[4] [1, 1, 2, 2]\n").text,
              HasSubstr("Resize"));  // each twice: the device has it
  EXPECT_THAT(Apply("Resize(%x, _, _, %s) {mode=\"linear\"}", "[1,2,5,4]", sizes, kImage, 1e-6f).text,
              HasSubstr("Resize"));
}

TEST(Resizes, NearestOfAVolumeThatRepeatsRoundsDown) {
  const testing::Ran ran =
      Apply("Resize(%x, _, %s) {mode=\"nearest\"}", "[2,3,8,5,18]", Scales("1, 1, 2, 1, 3", 5), kVolume);
  EXPECT_THAT(ran.text, AllOf(HasSubstr("nearest_mode=\"floor\""), HasSubstr("\"asymmetric\"")));
  EXPECT_THAT(ran.text, Not(HasSubstr("Gather")));
  const std::string floors =
      "Resize(%x, _, %s) {coordinate_transformation_mode=\"asymmetric\", mode=\"nearest\", nearest_mode=\"floor\"}";
  EXPECT_THAT(Apply(floors, "[2,3,8,5,18]", Scales("1, 1, 2, 1, 3", 5), kVolume).text,
              HasSubstr("%y: f32[2,3,8,5,18] = Resize(%x, _, %s)"));
}

TEST(Resizes, LinearOfAVolumeIsOfItsPlanesThenOfItsLines) {
  for (const char* kind : kKinds) {
    const testing::Ran ran = Apply(Linear(kind, true), "[2,3,8,10,12]", Scales("1, 1, 2, 2, 2", 5), kVolume, kRounding);
    EXPECT_THAT(ran.text, HasSubstr("f32[2,12,10,12] = Resize")) << kind;
    EXPECT_THAT(ran.text, HasSubstr("f32[6,1,8,120] = Resize")) << kind;
    EXPECT_THAT(ran.text, HasSubstr("%y: f32[2,3,8,10,12] = Reshape")) << kind;
  }
  const testing::Ran planes =
      Apply(Linear("half_pixel", false), "[2,3,4,7,6]", Sizes("2, 3, 4, 7, 6", 5), kVolume, kRounding);
  EXPECT_THAT(planes.text, AllOf(HasSubstr("f32[2,12,7,6] = Resize"), Not(HasSubstr("lines"))));
  const testing::Ran lines =
      Apply(Linear("half_pixel", false), "[2,3,9,5,6]", Sizes("2, 3, 9, 5, 6", 5), kVolume, kRounding);
  EXPECT_THAT(lines.text, AllOf(HasSubstr("f32[6,1,9,30] = Resize"), Not(HasSubstr("planes"))));
  EXPECT_THAT(
      Apply(Linear("half_pixel", true, ", axes=[-1, 2]"), "[2,3,8,5,18]", Scales("3, 2", 2), kVolume, kRounding).text,
      HasSubstr("f32[2,12,5,18] = Resize"));
}

// 10 * 0.7 is below 7 in double, and 7 in the runtime's f32.
TEST(Resizes, LengthsAreTheRuntimes) {
  const testing::Ran ran =
      Apply(Linear("half_pixel", true), "[1,1,7,7,7]", Scales("1, 1, 0.7, 0.7, 0.7", 5), "[1,1,10,10,10]", kRounding);
  EXPECT_THAT(ran.text, Not(HasSubstr("%y: f32[1,1,7,7,7] = Resize(")));
}

TEST(Resizes, OfVolumesThatStay) {
  const auto refusal = [](const std::string& node, const std::string& out, const std::string& constants) {
    const testing::Ran ran = Apply(node, out, constants, kVolume, -1);
    EXPECT_THAT(ran.text, AllOf(HasSubstr("= Resize(%x"), Not(HasSubstr("Reshape")))) << node;
    return ran.refusal;
  };
  const std::string twice = Sizes("2, 3, 8, 10, 12", 5), out = "[2,3,8,10,12]";
  EXPECT_THAT(refusal(Linear("half_pixel", false, ", antialias=1"), out, twice), HasSubstr("antialiasing"));
  EXPECT_THAT(refusal(Linear("half_pixel", false, ", exclude_outside=1"), out, twice), HasSubstr("excluded"));
  EXPECT_THAT(refusal(Linear("half_pixel", false, ", keep_aspect_ratio_policy=\"not_larger\""), out, twice),
              HasSubstr("aspect"));
  EXPECT_THAT(refusal(Linear("half_pixel_symmetric", false), out, twice), HasSubstr("half_pixel_symmetric"));
  EXPECT_THAT(refusal("Resize(%x, %r, _, %s) {mode=\"linear\", coordinate_transformation_mode=\"tf_crop_and_resize\"}",
                      out, "%r = constant f32[10] [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]\n" + twice),
              HasSubstr("tf_crop_and_resize"));
  EXPECT_THAT(refusal(Linear("half_pixel", false), "[2,6,8,10,12]", Sizes("2, 6, 8, 10, 12", 5)),
              HasSubstr("channels"));
  EXPECT_THAT(refusal("Resize(%x, _, _, %s) {mode=\"cubic\"}", out, twice), Not(HasSubstr("Reshape")));
  EXPECT_THAT(Apply("Resize(%x, _, _, %x_sizes) {mode=\"linear\"}", "[2,3,?,?,?]", "%x_sizes: s64[5] = Shape(%x)\n",
                    kVolume, -1)
                  .refusal,
              HasSubstr("not known"));
  EXPECT_THAT(Apply("Resize(%x, _, _, %x_sizes) {mode=\"linear\"}", "[2,3,4,5,6]", "%x_sizes: s64[5] = Shape(%x)\n",
                    kVolume, -1)
                  .refusal,
              HasSubstr("computed"));
}

TEST(Resizes, OfIntegersStay) {
  RuleSet rules;
  rules.push_back(LinearResizeOfVolume(20));
  const testing::Ran ran =
      testing::ApplyRules("opset \"\" = 20\ngraph @g(%x: u8[1,2,3,4,5]) -> (%y) {\n" + Scales("1, 1, 2, 2, 2", 5) +
                              "%y: u8[1,2,6,8,10] = " + Linear("half_pixel", true) + "\n}",
                          rules, RuleClass::kImproves, -1);
  EXPECT_THAT(ran.text, Not(HasSubstr("Reshape")));
  EXPECT_THAT(ran.refusal, HasSubstr("rounded once"));
}

TEST(Resizes, ByAScaleThatMakesNoWholeLength) {
  for (const char* kind : kKinds) {
    const testing::Ran ran =
        Apply(Linear(kind, true), "[1,2,2,9]", Scales("1, 1, 0.6, 1.5", 4), "[1,2,4,6]", kRounding);
    const bool stays = std::string(kind) == "align_corners";
    EXPECT_THAT(ran.text, stays ? HasSubstr("%y: f32[1,2,2,9] = Resize(%x, _, %s)") : HasSubstr("Slice")) << kind;
    if (!stays) {
      EXPECT_THAT(ran.text, AllOf(HasSubstr("f32[1,2,5,6] = Gather"), HasSubstr("f32[1,2,3,9] = Resize"))) << kind;
    }
  }
  EXPECT_THAT(Apply(Linear("half_pixel", true), "[1,2,8,12]", Scales("1, 1, 2, 2", 4), kImage, kRounding).text,
              Not(HasSubstr("Gather")));
  EXPECT_THAT(
      Apply(Linear("pytorch_half_pixel", true), "[1,2,1,6]", Scales("1, 1, 0.4, 1", 4), kImage, kRounding).refusal,
      HasSubstr("the first of an axis"));
  EXPECT_THAT(Apply(Linear("half_pixel", true), "[1,2,5,6]", Scales("1, 1, 1.31415, 1", 4), kImage, kRounding).refusal,
              HasSubstr("no fraction"));
  EXPECT_THAT(Apply(Linear("half_pixel", true), "[2,3,6,5,7]", Scales("1, 1, 1.6, 1, 1.2", 5), kVolume, kRounding).text,
              AllOf(HasSubstr("Slice"), HasSubstr("Gather"), HasSubstr("lines")));
}

// Of any shape, by scales or to sizes: the same numbers.
TEST(Resizes, LinearOfAnyVolume) {
  std::mt19937_64 rng(11);
  const auto between = [&](std::uint64_t low, std::uint64_t high) { return low + rng() % (high - low + 1); };
  int taken = 0;
  for (int round = 0; round < 80; ++round) {
    const bool by_scales = rng() % 2 == 0, image = rng() % 4 == 0;
    const int rank = image ? 4 : 5;
    std::string in, out, numbers;
    for (int i = 0; i < rank; ++i) {
      const std::uint64_t n = i < 2 ? between(1, 3) : between(1, 9);
      std::uint64_t to = i < 2 ? n : between(1, 14);
      const std::uint64_t q = between(1, 6);
      const float scale =
          i < 2 || rng() % 4 == 0 ? 1.0f : static_cast<float>(between(q, 3 * q)) / static_cast<float>(q);
      if (by_scales) to = static_cast<std::uint64_t>(std::floor(static_cast<float>(n) * scale));
      const std::string comma = i == 0 ? "" : ", ";
      in += comma + std::to_string(n);
      out += comma + std::to_string(to);
      char text[32];
      std::snprintf(text, sizeof text, "%.9g", static_cast<double>(scale));
      numbers += comma + (by_scales ? std::string(text) : std::to_string(to));
    }
    const std::string kind = kKinds[rng() % 4];
    const testing::Ran ran =
        Apply(Linear(kind, by_scales), "[" + out + "]", by_scales ? Scales(numbers, rank) : Sizes(numbers, rank),
              "[" + in + "]", 2 * kRounding);
    taken += ran.text.find("Reshape") != std::string::npos || ran.text.find("Slice") != std::string::npos;
  }
  EXPECT_GT(taken, 40);
}

}  // namespace
}  // namespace octavo
