// What the tests of the quantized road's rules share.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/quantized.h"

namespace octavo::testing {

inline const DeviceDescriptor& Cpu() { return *FindDevice("cpu"); }

inline Model ParseIr(const std::string& text, int opset = 21) {
  Model model = Parse("opset \"\" = " + std::to_string(opset) + "\nopset \"com.microsoft\" = 1\n" + text);
  model.ir_version = 10;
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  return model;
}

// These rules, whatever they may do.
inline QuantizedRewriteOptions Only(std::vector<std::string> rules) {
  QuantizedRewriteOptions options;
  options.rules = std::move(rules);
  options.permitted = RuleClass::kLossy;
  return options;
}

}  // namespace octavo::testing
