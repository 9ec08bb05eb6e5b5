#include "octavo/rewrite/quantized.h"

#include <algorithm>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/ops/op_table.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {

QuantizedRewriteResult RewriteQuantized(Model& model, const DeviceDescriptor& device,
                                        const QuantizedRewriteOptions& options) {
  RuleSet all = QuantizedRules(device, model.OpsetVersion()), rules;
  std::vector<std::string> names;
  for (const auto& rule : all) names.emplace_back(rule->name());
  for (const std::string& wanted : options.rules) {
    if (std::find(names.begin(), names.end(), wanted) == names.end()) {
      ThrowUsage("no rule is called '" + wanted + "'", "--rules", DidYouMean(wanted, names));
    }
  }
  for (auto& rule : all) {
    const std::string name(rule->name());
    if (options.rules.empty() || std::find(options.rules.begin(), options.rules.end(), name) != options.rules.end()) {
      rules.push_back(std::move(rule));
    }
  }
  QuantizedRewriteResult result;
  result.rules = RunRules(model, rules, options.permitted, options.limit);
  model.graph->EraseDead();
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& node) {
    const OpCategory category = FindOp(node).category;
    if (category != OpCategory::kWeighted && category != OpCategory::kMatMul) return;
    const std::uint64_t macs = MultiplyAccumulates(node);
    const bool integer = node.form == QuantForm::kQLinear && Scalar8(node.input(0)).has_value();
    result.macs += macs;
    ++result.layers;
    if (!integer) return;
    result.integer_macs += macs;
    ++result.integer_layers;
  });
  return result;
}

void RewriteLowered(Model& model, const DeviceDescriptor& device, const QuantizedRewriteOptions& options,
                    QuantizedRewriteResult& result) {
  RuleSet rules;
  rules.push_back(ChooseAtLoad(device));
  const std::string name(rules[0]->name());
  std::vector<RuleCount>& counts = result.rules.rules;
  const auto row = std::find_if(counts.begin(), counts.end(), [&](const RuleCount& c) { return c.rule == name; });
  if (row == counts.end()) return;  // not asked for
  std::vector<TraceEntry>& trace = result.rules.trace;
  const auto refusals = std::find_if(trace.begin(), trace.end(), [](const TraceEntry& e) { return !e.applied; });
  RewriteResult more =
      RunRules(model, rules, options.permitted, options.limit - static_cast<std::uint64_t>(refusals - trace.begin()));
  model.graph->EraseDead();
  row->applied += more.rules[0].applied;
  row->refused += more.rules[0].refused;
  const auto split = std::find_if(more.trace.begin(), more.trace.end(), [](const TraceEntry& e) { return !e.applied; });
  trace.insert(refusals, more.trace.begin(), split);
  trace.insert(trace.end(), split, more.trace.end());
}

void UseQdqForm(Model& model) {
  VisitNodes(*model.graph, [](Node& node) {
    if (node.form == QuantForm::kQLinear) node.form = QuantForm::kQdq;
  });
  IntegerProductsToQdq(model);
}

void FoldQuantized(Model& model) {
  if (!FillTypes(model)) InferTypes(model);
  FoldQdq(model);
  FoldQLinear(model);
}

RuleClass ParseRuleClass(const std::string& name) {
  std::vector<std::string> names;
  for (const RuleClass c : {RuleClass::kExact, RuleClass::kOneLsb, RuleClass::kImproves, RuleClass::kLossy}) {
    if (name == Name(c)) return c;
    names.emplace_back(Name(c));
  }
  const std::string how = DidYouMean(name, names);
  ThrowUsage("unknown class '" + name + "'", "--class", how.empty() ? "use exact, onelsb, improves or lossy" : how);
}

std::string RuleCatalogue(const DeviceDescriptor& device) {
  std::string text;
  for (const auto& rule : QuantizedRules(device, std::numeric_limits<std::int64_t>::max())) {
    const RuleDoc doc = rule->doc();
    text += std::string(rule->name()) + " (" + std::string(Name(rule->rule_class())) + ")\n";
    text += "  " + std::string(doc.summary) + "\n";
    text += "  before  " + std::string(doc.before) + "\n";
    text += "  after   " + std::string(doc.after) + "\n";
    text += "  proof   " + std::string(doc.proof) + "\n";
    if (!doc.conditions.empty()) {
      text += "  needs   ";
      for (std::size_t i = 0; i < doc.conditions.size(); ++i) {
        const std::string_view c = doc.conditions[i];
        text += (i == 0 ? "" : ", ") + std::string(c.substr(c.find('/') + 1));
      }
      text += "\n";
    }
    text += "\n";
  }
  return text;
}

}  // namespace octavo
