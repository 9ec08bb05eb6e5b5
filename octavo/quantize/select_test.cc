#include "octavo/quantize/select.h"

#include <gtest/gtest.h>

namespace octavo {
namespace {

TEST(Select, KeepsTheNoisyCheapNodeWithinTheBudget) {
  // Node 1 makes nearly all the noise and has a tenth of the work; node 2 would pay too, but is too big.
  const std::vector<SelectNode> nodes = {{.macs = 50, .weight_noise = 1e-5, .x_site = 0, .y_site = 1},
                                         {.macs = 10, .weight_noise = 1e-2, .x_site = 1, .y_site = 2},
                                         {.macs = 40, .weight_noise = 5e-3, .x_site = 2, .y_site = -1}};
  const std::vector<double> sites = {1e-5, 1e-5, 1e-5};
  const Selection s = SelectFloatNodes(nodes, sites);
  EXPECT_EQ(s.keep_float, (std::vector<bool>{false, true, false}));
  EXPECT_NEAR(s.noise_all, 1.504e-2, 1e-6);
  // Both of its tensors are still needed by its neighbours: only its weights' noise goes.
  EXPECT_NEAR(s.noise_left, 5.04e-3, 1e-6);
  EXPECT_GT(s.noise_share[1], 0.6);
}

TEST(Select, ATensorIsGivenUpWithItsLastUser) {
  const std::vector<SelectNode> nodes = {{.macs = 1, .weight_noise = 0, .x_site = 0, .y_site = -1},
                                         {.macs = 1, .weight_noise = 0, .x_site = 0, .y_site = -1},
                                         {.macs = 98, .weight_noise = 1e-6, .x_site = 1, .y_site = -1}};
  const std::vector<double> sites = {1e-1, 1e-6};
  const Selection s = SelectFloatNodes(nodes, sites);
  EXPECT_EQ(s.keep_float, (std::vector<bool>{true, true, false}));
  EXPECT_NEAR(s.noise_left, 2e-6, 1e-9);
}

TEST(Select, NothingIsKeptWhereAllIsGoodEnough) {
  const std::vector<SelectNode> nodes = {{.macs = 1, .weight_noise = 1e-5, .x_site = 0, .y_site = -1},
                                         {.macs = 9, .weight_noise = 1e-6, .x_site = 1, .y_site = -1}};
  const Selection s = SelectFloatNodes(nodes, std::vector<double>{1e-6, 1e-6});
  EXPECT_EQ(s.keep_float, (std::vector<bool>{false, false}));
}

TEST(Select, Empty) {
  const Selection s = SelectFloatNodes({}, {});
  EXPECT_TRUE(s.keep_float.empty());
  EXPECT_EQ(s.noise_left, 0);
}

}  // namespace
}  // namespace octavo
