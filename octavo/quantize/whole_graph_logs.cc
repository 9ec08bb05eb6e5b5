#include "octavo/quantize/whole_graph_logs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <unordered_set>

#include "octavo/ops/op_table.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/probe.h"
#include "octavo/quantize/whole_graph_widths.h"

namespace octavo {
namespace {

constexpr std::size_t kMostNodes = 256;
constexpr int kMostDepth = 16;

// Their results are as small as what they read.
bool KeepsSmall(const Node& node) {
  constexpr std::array<std::string_view, 15> kOps = {"Add",  "Sub", "Mul", "Div",       "Pow",
                                                     "Sqrt", "Abs", "Neg", "Relu",      "Clip",
                                                     "Max",  "Min", "Sum", "ReduceSum", "ReduceMean"};
  return std::find(kOps.begin(), kOps.end(), node.op()) != kOps.end() ||
         FindOp(node).category == OpCategory::kDataMovement;
}

bool HasWeights(const Node& node) {
  const int w = FindOp(node).weight_input;
  return w >= 0 && !NormalizesWithScale(node) && IsConstantData(node.input(static_cast<std::size_t>(w)));
}

// Whether a value is made of squares, magnitudes or roots, moved, scaled or added up.
bool IsPower(const Value* v, int depth = 0) {
  const Node* node = v == nullptr ? nullptr : v->producer();
  if (node == nullptr || depth > kMostDepth) return false;
  if (node->Is("Pow") || node->Is("Sqrt") || node->Is("Abs")) return true;
  if (node->Is("Mul") && node->input(0) == node->input(1)) return true;
  return KeepsSmall(*node) && std::any_of(node->inputs().begin(), node->inputs().end(),
                                          [&](const Value* x) { return IsPower(x, depth + 1); });
}

}  // namespace

std::vector<const Node*> LogInputs(const Model& model, const WholeGraphPlan& plan) {
  std::unordered_set<const Node*> found;
  std::vector<const Value*> left;
  for (const Node* node : plan.taken) {
    if (!node->Is("Log")) continue;
    found.insert(node);
    left.push_back(node->input(0));
  }
  while (!left.empty() && found.size() <= kMostNodes) {
    const Node* node = left.back()->producer();
    left.pop_back();
    if (node == nullptr || plan.is_taken.count(node) == 0 || found.count(node) > 0) continue;
    const bool layer = HasWeights(*node);
    if (!layer && !KeepsSmall(*node)) continue;
    found.insert(node);
    if (layer && !IsPower(node->input(0))) continue;
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      if (RoleOf(*node, i) == Role::kData && !node->input(i)->is_constant()) left.push_back(node->input(i));
    }
  }
  std::vector<const Node*> nodes;
  // A Log of what nothing here makes is as good as its input's codes.
  if (found.size() > kMostNodes) return nodes;
  for (const Node* node : model.graph->nodes()) {
    if (found.count(node) > 0) nodes.push_back(node);
  }
  return nodes;
}

KeptNodes KeptForLogs(const Model& model, const WholeGraphPlan& plan, WholeGraphTypes& types,
                      const WidthSearchInputs& inputs) {
  KeptNodes kept;
  const std::vector<const Node*> nodes = LogInputs(model, plan);
  const bool narrow = BitWidth(inputs.precision.weight) == 8 || BitWidth(inputs.precision.activation) == 8;
  const DType activation = inputs.precision.activation;
  const DType storage = !narrow ? activation : IsSignedInteger(activation) ? DType::kS8 : DType::kU8;
  std::vector<ProbeSite> sites;
  std::unordered_set<std::size_t> seen;
  for (const Node* node : nodes) {
    for (const Value* v : node->outputs()) {
      if (v != nullptr && OverrideOf(inputs.config, v->name()) != DType::kUndefined) return kept;
      const auto it = plan.tensor_of.find(v);
      // What a Log gives is as good in codes as anything.
      if (it == plan.tensor_of.end() || node->Is("Log") || !seen.insert(it->second).second) continue;
      const Value* observed = plan.tensors[it->second].observed;
      const auto spec = observed == nullptr ? inputs.spec_of.end() : inputs.spec_of.find(observed->name());
      if (spec == inputs.spec_of.end()) continue;
      sites.push_back({spec->second, {types.ParamsOf(it->second, storage).params, storage}, 1});
    }
  }
  if (sites.empty()) return kept;
  ProbeOptions options;
  options.max_runs = 8;
  options.allowance = HUGE_VAL;  // all of them together
  options.threads = inputs.threads;
  const ProbeResult measured = Probe(inputs.calibration, sites, inputs.statistics.kept, options).Run();
  if (measured.groups == 0 || measured.all <= WidthOptions{}.target) return kept;
  char text[160];
  std::snprintf(
      text, sizeof text,
      "it goes into a logarithm, which shows small numbers big: codes of %zu bits leave %.1f dB at the outputs",
      static_cast<std::size_t>(BitWidth(storage)), -10 * std::log10(measured.all));
  for (const Node* node : nodes) kept.emplace(node, text);
  return kept;
}

}  // namespace octavo
