// Rules applied in a test: the text that they leave, what they said, and the same numbers before and after.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/rule.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo::testing {

struct Ran {
  Model model;
  std::string text;
  std::string refusal;  // the first one
};

// `text` is a model with its operator set. Both models are run where `tolerance` is not negative (0: equal numbers).
inline Ran ApplyRules(const std::string& text, const RuleSet& rules, RuleClass most, float tolerance) {
  Model model = Parse(text);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  const Model before = Clone(model);
  const RewriteResult result = RunRules(model, rules, most);
  model.graph->EraseDead();
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  Ran ran{std::move(model), {}, {}};
  ran.text = Print(*ran.model.graph);
  for (const TraceEntry& entry : result.trace) {
    if (!entry.applied && ran.refusal.empty()) ran.refusal = entry.reason;
  }
  if (tolerance >= 0) ExpectSameNumbers(before, ran.model, tolerance, text);
  return ran;
}

}  // namespace octavo::testing
