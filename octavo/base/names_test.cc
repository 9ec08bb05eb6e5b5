#include "octavo/base/names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(Names, GlobTakes) {
  EXPECT_TRUE(GlobMatch("", ""));
  EXPECT_TRUE(GlobMatch("*", ""));
  EXPECT_TRUE(GlobMatch("*", "/a/b"));
  EXPECT_TRUE(GlobMatch("/layers.*/attn/?_proj*", "/layers.11/attn/q_proj/MatMul"));
  EXPECT_TRUE(GlobMatch("a*b*c", "axxbyybzzc"));
  EXPECT_TRUE(GlobMatch("conv[0-3]", "conv2"));
  EXPECT_TRUE(GlobMatch("conv[!0-3]", "conv7"));
  EXPECT_TRUE(GlobMatch("x[]]", "x]"));
  EXPECT_TRUE(GlobMatch("x[a", "x[a"));
  EXPECT_TRUE(GlobMatch("x\\*y", "x*y"));
  EXPECT_TRUE(GlobMatch("[a\\-z]", "-"));
}

TEST(Names, GlobRefuses) {
  EXPECT_FALSE(GlobMatch("", "a"));
  EXPECT_FALSE(GlobMatch("a", ""));
  EXPECT_FALSE(GlobMatch("?", ""));
  EXPECT_FALSE(GlobMatch("conv", "conv2"));
  EXPECT_FALSE(GlobMatch("conv[0-3]", "conv7"));
  EXPECT_FALSE(GlobMatch("conv[!0-3]", "conv2"));
  EXPECT_FALSE(GlobMatch("x\\*y", "xxy"));
  EXPECT_FALSE(GlobMatch("a*b*c", "axxbyybzz"));
}

TEST(Names, HostileGlobIsNotExponential) {
  std::string pattern;
  for (int i = 0; i < 200; ++i) pattern += "*a";
  EXPECT_FALSE(GlobMatch(pattern + "b", std::string(2000, 'a')));
}

TEST(Names, NearestFirst) {
  const std::vector<std::string> names = {"Relu_0", "conv1.weight", "conv2.weight", "fc", "Conv1.bias"};
  EXPECT_THAT(NearestNames("conv1.wieght", names, 2), ElementsAre("conv1.weight", "conv2.weight"));
  EXPECT_THAT(NearestNames("conv1", names, 2), ElementsAre("Conv1.bias", "conv1.weight"));
  EXPECT_THAT(NearestNames("*bias*", names, 1), ElementsAre("Conv1.bias"));
  EXPECT_THAT(NearestNames("FC", names, 1), ElementsAre("fc"));
  EXPECT_THAT(NearestNames("x", {}, 3), IsEmpty());
}

TEST(Names, DidYouMean) {
  const std::vector<std::string> names = {"uint8", "int8"};
  EXPECT_EQ(DidYouMean("unt8", names), "did you mean 'uint8', 'int8'?");
  EXPECT_EQ(DidYouMean("unt8", {}), "");
}

}  // namespace
}  // namespace octavo
