// Attention as one operator and step by step: the runtime runs both and gives the same numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/rewrite/rules/apply_test_util.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::Ran;

std::string Numbers(int n, int seed) {
  std::string list;
  for (int i = 0; i < n; ++i) list += (i == 0 ? "" : ", ") + std::to_string(((i * 7 + seed) % 23 - 11) / 8.0);
  return "[" + list + "]";
}

// Two rows of three words of six features; `mask` is of 64 bits, where runs have 0 and 1.
std::string Text(const std::string& mask, const std::string& nodes) {
  return "ir_version = 9\nopset \"\" = 20\nopset \"com.microsoft\" = 1\n"
         "graph @g(%x: f32[2,3,6], %k: f32[2,4,6], %v: f32[2,4,8], %m: s64" +
         mask + ", %scores: f32[1,2,3,3]) -> (%y) {\n%mask: s32" + mask + " = Cast(%m) {to=6}\n" +
         "%w = constant f32[6,18] " + Numbers(108, 3) + "\n%b = constant f32[18] " + Numbers(18, 5) +
         "\n%narrow = constant f32[6,16] " + Numbers(96, 2) + "\n%c = constant f32[20] " + Numbers(20, 4) + "\n" +
         nodes + "\n}";
}

void ExpectSteps(const std::string& mask, const std::string& nodes) {
  const Ran ran = testing::ApplyRules(Text(mask, nodes), ContribRules(), RuleClass::kImproves, 5e-5F);
  EXPECT_THAT(ran.text, Not(HasSubstr("com.microsoft"))) << nodes << ran.refusal;
  EXPECT_THAT(ran.text, HasSubstr("Softmax("));
}

void ExpectRefused(const std::string& mask, const std::string& nodes, const std::string& why) {
  const Ran ran = testing::ApplyRules(Text(mask, nodes), ContribRules(), RuleClass::kImproves, -1);
  EXPECT_THAT(ran.refusal, HasSubstr(why)) << nodes;
  EXPECT_THAT(ran.text, HasSubstr("com.microsoft"));
}

const std::string kAttention = "%y: f32[2,3,6] = com.microsoft::Attention(%x, %w, ";

TEST(ContribAttention, WithoutMask) {
  ExpectSteps("[1]", kAttention + "%b) {num_heads=2}");
  ExpectSteps("[1]", kAttention + "%b) {num_heads=3}");
  ExpectSteps("[1]", kAttention + "%b) {num_heads=2, scale=0.125}");
}

// The runtime's own kernel (1.31.1) crashes without a bias: this one is not run.
TEST(ContribAttention, WithoutBias) {
  const Ran ran =
      testing::ApplyRules(Text("[1]", kAttention + "_) {num_heads=2}"), ContribRules(), RuleClass::kImproves, -1);
  EXPECT_THAT(ran.text, Not(HasSubstr("com.microsoft")));
  EXPECT_THAT(ran.text, Not(HasSubstr("Add(")));
}

TEST(ContribAttention, Masks) {
  ExpectSteps("[2,3]", kAttention + "%b, %mask) {num_heads=2}");
  ExpectSteps("[2,3]", kAttention + "%b, %mask) {num_heads=2, mask_filter_value=-3.0}");
  ExpectSteps("[2,3,3]", kAttention + "%b, %mask) {num_heads=2}");
  // A length a row: 1 or 2 of three.
  ExpectSteps("[2]", "%one = constant s32[] 1\n%n: s32[2] = Add(%mask, %one)\n" + kAttention + "%b, %n) {num_heads=2}");
  ExpectSteps("[2]", "%one = constant s32[] 1\n%n: s32[2] = Add(%mask, %one)\n" + kAttention +
                         "%b, %n) {num_heads=2, mask_filter_value=-1.5}");
}

// With a mask, the first query may have no key left that is not masked.
TEST(ContribAttention, KeysBehindAQueryAreNotSeen) {
  ExpectSteps("[1]", kAttention + "%b) {num_heads=2, unidirectional=1}");
  ExpectSteps("[2,3]", kAttention + "%b, %mask) {num_heads=2, unidirectional=1}");
  ExpectSteps("[1]",
              "%y: f32[2,3,6] = com.microsoft::MultiHeadAttention(%x, %x, %x, %b) {num_heads=2, unidirectional=1}");
}

TEST(ContribAttention, ScoresAreAdded) {
  ExpectSteps("[2,3]", kAttention + "%b, %mask, _, %scores) {num_heads=2}");
  ExpectSteps("[1]", kAttention + "%b, _, _, %scores) {num_heads=2}");
}

TEST(ContribAttention, ValuesOfAnotherWidth) {
  ExpectSteps(
      "[1]",
      "%few = constant f32[16] " + Numbers(16, 1) +
          "\n%y: f32[2,3,4] = com.microsoft::Attention(%x, %narrow, %few) {num_heads=2, qkv_hidden_sizes=[6, 6, 4]}");
}

TEST(ContribAttention, WhatStays) {
  ExpectRefused("[1]", kAttention + "%b) {num_heads=4}", "its heads are not of one size");
  ExpectRefused("[4]", kAttention + "%b, %mask) {num_heads=2}", "its mask is not one length a row");
  ExpectRefused("[2,1]", kAttention + "%b, %mask) {num_heads=2}", "its mask is not one length a row");
  ExpectRefused("[1]",
                "%past = constant f32[2,2,2,1,3] " + Numbers(24, 0) + "\n" + kAttention + "%b, _, %past) {num_heads=2}",
                "keys and values of the past");
  ExpectRefused("[1]", "%n: f32[2,3,6], %y: f32[2,2,2,3,3] = com.microsoft::Attention(%x, %w, %b) {num_heads=2}",
                "its keys and values, or its scores, are used");
  ExpectRefused("[1]", "%t: f32[6,18] = Neg(%w)\n%y: f32[2,3,6] = com.microsoft::Attention(%x, %t, %b) {num_heads=2}",
                "its matrix is computed");
  ExpectRefused("[1]", "%t: f32[18] = Neg(%b)\n" + kAttention + "%t) {num_heads=2}", "its bias is computed");
}

const std::string kMany = "%y: f32[2,3,8] = com.microsoft::MultiHeadAttention(%x, %k, %v, ";

TEST(ContribAttention, OfManyHeads) {
  ExpectSteps("[1]", kMany + "_) {num_heads=2}");
  ExpectSteps("[1]", kMany + "%c) {num_heads=2, scale=0.5}");
  ExpectSteps("[2,4]", kMany + "%c, %mask) {num_heads=2}");
  ExpectSteps("[2]", "%two = constant s32[] 2\n%n: s32[2] = Add(%mask, %two)\n" + kMany + "%c, %n) {num_heads=2}");
  ExpectRefused("[1]", kMany + "_) {num_heads=2, unidirectional=1}", "and are not as many");
  ExpectRefused(
      "[1]",
      "%p: f32[2,3,2,3,3] = Expand(%x, %c)\n%y: f32[2,3,6] = com.microsoft::MultiHeadAttention(%p) {num_heads=2}",
      "are not three tensors");
}

}  // namespace
}  // namespace octavo
