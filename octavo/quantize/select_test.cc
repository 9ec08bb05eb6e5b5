#include "octavo/quantize/select.h"

#include <gtest/gtest.h>

namespace octavo {
namespace {

using Choice = Selection::Choice;

std::vector<SelectSite> Sites(std::vector<double> noise) {
  std::vector<SelectSite> sites;
  for (const double n : noise) sites.push_back({.noise = n, .elements = 0, .float_users = false});
  return sites;
}

const SelectOptions kNoCost = {.quantize_cost = 0, .dequantize_cost = 0, .node_cost = 0};

TEST(Select, KeepsTheNoisyCheapNodeWithinTheBudget) {
  // Node 1 makes nearly all the noise and has a tenth of the work; node 2 would pay too, but is too big.
  const std::vector<SelectNode> nodes = {{.macs = 50, .weight_noise = 1e-5, .x_site = 0, .y_site = 1},
                                         {.macs = 10, .weight_noise = 1e-2, .x_site = 1, .y_site = 2},
                                         {.macs = 45, .weight_noise = 5e-3, .x_site = 2, .y_site = -1}};
  const Selection s = SelectFloatNodes(nodes, Sites({1e-5, 1e-5, 1e-5}), kNoCost);
  EXPECT_EQ(s.choice, (std::vector<Choice>{Choice::kInteger, Choice::kNoisy, Choice::kInteger}));
  EXPECT_NEAR(s.noise_all, 1.504e-2, 1e-6);
  // Both of its tensors are still needed by its neighbours: only its weights' noise goes.
  EXPECT_NEAR(s.noise_left, 5.04e-3, 1e-6);
  EXPECT_GT(s.noise_share[1], 0.6);
}

TEST(Select, ATensorIsGivenUpWithItsLastUser) {
  const std::vector<SelectNode> nodes = {
      {.macs = 1, .x_site = 0}, {.macs = 1, .x_site = 0}, {.macs = 98, .weight_noise = 1e-6, .x_site = 1}};
  const Selection s = SelectFloatNodes(nodes, Sites({1e-1, 1e-6}), kNoCost);
  EXPECT_EQ(s.choice, (std::vector<Choice>{Choice::kNoisy, Choice::kNoisy, Choice::kInteger}));
  EXPECT_NEAR(s.noise_left, 2e-6, 1e-9);
}

TEST(Select, NothingIsKeptWhereTheTargetIsReached) {
  const std::vector<SelectNode> nodes = {{.macs = 1, .weight_noise = 1e-5, .x_site = 0},
                                         {.macs = 9, .weight_noise = 1e-6, .x_site = 1}};
  const Selection s = SelectFloatNodes(nodes, Sites({1e-6, 1e-6}), kNoCost);
  EXPECT_EQ(s.choice, (std::vector<Choice>{Choice::kInteger, Choice::kInteger}));
}

TEST(Select, WhatTheTargetDoesNotNeedComesBack) {
  // The greedy order takes node 0 (most noise for its work), then node 1, which alone would have been enough.
  const std::vector<SelectNode> nodes = {{.macs = 10, .weight_noise = 2e-3, .x_site = 0},
                                         {.macs = 30, .weight_noise = 4e-3, .x_site = 1},
                                         {.macs = 60, .weight_noise = 1e-6, .x_site = 2}};
  const Selection s = SelectFloatNodes(nodes, Sites({0, 0, 0}), kNoCost);
  EXPECT_EQ(s.choice, (std::vector<Choice>{Choice::kInteger, Choice::kNoisy, Choice::kInteger}));
  EXPECT_LE(s.noise_left, SelectOptions{}.target);
}

TEST(Select, IslandsOfIntegersStayInFloat) {
  // 0 -> 1 -> 2 in a row. Node 1 has much work for its tensors; node 3 stands alone with little.
  const auto site = [](bool float_users) {
    return SelectSite{.noise = 0, .elements = 100, .float_users = float_users};
  };
  const std::vector<SelectSite> sites = {site(true), site(false), site(false), site(true), site(true), site(true)};
  const std::vector<SelectNode> nodes = {{.macs = 500, .x_site = 0, .y_site = 1},
                                         {.macs = 90000, .x_site = 1, .y_site = 2},
                                         {.macs = 500, .x_site = 2, .y_site = 3},
                                         {.macs = 500, .x_site = 4, .y_site = 5}};
  const Selection s = SelectFloatNodes(nodes, sites, {.node_cost = 100});
  // Nodes 0 and 2 save little, but their neighbour's boundary would only move to the other side of them.
  EXPECT_EQ(s.choice, (std::vector<Choice>{Choice::kInteger, Choice::kInteger, Choice::kInteger, Choice::kSlow}));
}

TEST(Select, ARowOfSmallNodesIsWeighedAsAWhole) {
  const auto site = [](bool float_users) { return SelectSite{.noise = 0, .elements = 10, .float_users = float_users}; };
  const std::vector<SelectSite> sites = {site(true), site(false), site(true), site(true)};
  std::vector<SelectNode> nodes = {
      {.macs = 100, .x_site = 0, .y_site = 1}, {.macs = 100, .x_site = 1, .y_site = 2}, {.macs = 1e6, .x_site = 3}};
  EXPECT_EQ(SelectFloatNodes(nodes, sites, {.node_cost = 100}).choice,
            (std::vector<Choice>{Choice::kSlow, Choice::kSlow, Choice::kInteger}));
  nodes[0].macs = 400;
  EXPECT_EQ(SelectFloatNodes(nodes, sites, {.node_cost = 100}).choice,
            (std::vector<Choice>{Choice::kInteger, Choice::kInteger, Choice::kInteger}));
}

TEST(Select, AModelThatGainsNothingIsQuantizedAllTheSame) {
  const std::vector<SelectSite> sites = {{.noise = 0, .elements = 100, .float_users = true}};
  const std::vector<SelectNode> nodes = {{.macs = 10, .x_site = 0}};
  EXPECT_EQ(SelectFloatNodes(nodes, sites).choice, (std::vector<Choice>{Choice::kInteger}));
}

TEST(Select, FloatNodesStoreTheirWeightsWhileTheNoiseIsSmall) {
  const std::vector<SelectSite> sites(3, {.noise = 0, .elements = 100, .float_users = true});
  const std::vector<SelectNode> nodes = {{.macs = 10, .stored_noise = 1e-5, .x_site = 0},
                                         {.macs = 10, .stored_noise = 1e-3, .x_site = 1},
                                         {.macs = 1e6, .x_site = 2}};
  const Selection s = SelectFloatNodes(nodes, sites);
  EXPECT_EQ(s.choice, (std::vector<Choice>{Choice::kSlow, Choice::kSlow, Choice::kInteger}));
  EXPECT_EQ(s.stored, (std::vector<bool>{true, false, false}));
  EXPECT_NEAR(s.noise_left, 1e-5, 1e-12);
}

TEST(Select, Empty) {
  const Selection s = SelectFloatNodes({}, {});
  EXPECT_TRUE(s.choice.empty());
  EXPECT_EQ(s.noise_left, 0);
}

}  // namespace
}  // namespace octavo
