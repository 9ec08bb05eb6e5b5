#include <algorithm>
#include <map>

#include "octavo/base/log.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {

RuleSet FloatRules() {
  RuleSet rules;
  rules.push_back(RemoveIdentity());
  rules.push_back(FoldShape());
  rules.push_back(FillToNumber());
  rules.push_back(RemoveNeutral());
  rules.push_back(RemoveAddZero());
  rules.push_back(TopKOfOne());
  rules.push_back(ReverseToGather());
  rules.push_back(CeilToPads());
  rules.push_back(FoldBatchNorm());
  rules.push_back(FoldScale());
  rules.push_back(SplitBatchNorm());
  rules.push_back(EinsumToMatMul());
  return rules;
}

std::vector<PassCount> SimplifyFloat(Model& model, RuleClass most, bool quiet) {
  std::map<std::string, std::int64_t> counts;
  const RuleSet rules = FloatRules();
  counts["remove-dead"] += static_cast<std::int64_t>(model.graph->EraseDead());
  // A folded shape makes constants, constants make shapes known, and those fold: a few rounds settle real models, the
  // bound settles the others.
  constexpr int kMaxRounds = 64;
  InferTypes(model, quiet);
  for (int round = 0; round < kMaxRounds; ++round) {
    std::int64_t changes = 0;
    // What follows from definitions alone needs no runtime.
    do {
      std::int64_t now = 0;
      for (const RuleCount& count : RunRules(model, rules, most).rules) {
        counts[count.rule] += count.applied;
        now += count.applied;
      }
      const std::int64_t folded = FoldConstants(model), inlined = InlineBranches(model);
      counts["fold-constants"] += folded;
      counts["inline-branch"] += inlined;
      counts["remove-dead"] += static_cast<std::int64_t>(model.graph->EraseDead());
      changes += now + folded + inlined;
      if (now + folded + inlined == 0) break;
    } while (DeriveTypes(model) > 0);
    if (changes == 0) break;
    InferMissingTypes(model, quiet);
  }
  std::vector<PassCount> result;
  for (auto& [rule, applied] : counts) {
    if (applied > 0) result.push_back({rule, applied});
  }
  return result;
}

}  // namespace octavo
