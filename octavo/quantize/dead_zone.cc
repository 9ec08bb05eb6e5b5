#include "octavo/quantize/dead_zone.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <unordered_map>
#include <vector>

namespace octavo {
namespace {

constexpr std::size_t kMaxNodes = 32;
constexpr int kPoints = 1024;

std::optional<double> ScalarConstant(const Value* value) {
  if (value == nullptr || !value->is_constant() || !value->data || !IsFloat(value->data->dtype)) return std::nullopt;
  if (value->type.quant || value->data->elements() != 1) return std::nullopt;
  return value->data->ToFloats()[0];
}

bool IsChainOp(const Node& node) {
  if (!node.domain().empty() || node.outputs().size() != 1) return false;
  for (const char* op :
       {"Add",         "Sub",       "Mul",  "Div", "Min",      "Max",  "Clip", "Relu", "LeakyRelu", "Sigmoid",
        "HardSigmoid", "HardSwish", "Tanh", "Erf", "Softplus", "Gelu", "Neg",  "Abs",  "Identity",  "Exp"}) {
    if (node.op() == op) return true;
  }
  return false;
}

double Apply(const Node& node, const std::vector<double>& in) {
  const std::string& op = node.op();
  const double x = in[0];
  if (op == "Add") return x + in[1];
  if (op == "Sub") return x - in[1];
  if (op == "Mul") return x * in[1];
  if (op == "Div") return x / in[1];
  if (op == "Min") return *std::min_element(in.begin(), in.end());
  if (op == "Max") return *std::max_element(in.begin(), in.end());
  if (op == "Clip") {
    const double lo = in.size() > 1 ? in[1] : node.FloatAttribute("min", -std::numeric_limits<float>::infinity());
    const double hi = in.size() > 2 ? in[2] : node.FloatAttribute("max", std::numeric_limits<float>::infinity());
    return std::min(std::max(x, std::isnan(lo) ? -std::numeric_limits<double>::infinity() : lo),
                    std::isnan(hi) ? std::numeric_limits<double>::infinity() : hi);
  }
  if (op == "Relu") return std::max(x, 0.0);
  if (op == "LeakyRelu") return x >= 0 ? x : x * node.FloatAttribute("alpha", 0.01f);
  if (op == "Sigmoid") return 1 / (1 + std::exp(-x));
  if (op == "HardSigmoid") {
    return std::clamp(node.FloatAttribute("alpha", 0.2f) * x + node.FloatAttribute("beta", 0.5f), 0.0, 1.0);
  }
  if (op == "HardSwish") return x * std::clamp(x / 6 + 0.5, 0.0, 1.0);
  if (op == "Tanh") return std::tanh(x);
  if (op == "Erf") return std::erf(x);
  if (op == "Softplus") return std::log1p(std::exp(-std::fabs(x))) + std::max(x, 0.0);
  if (op == "Gelu" && node.StringAttribute("approximate", "none") == "tanh")
    return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
  if (op == "Gelu") return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  if (op == "Neg") return -x;
  if (op == "Abs") return std::fabs(x);
  if (op == "Exp") return std::exp(x);
  return x;  // Identity
}

struct Chain {
  std::vector<const Node*> nodes;  // in execution order
  std::unordered_map<const Value*, std::size_t> slot;
  std::vector<std::size_t> results;  // slots of the values that something outside the chain reads
};

std::optional<Chain> FindChain(const Value& value) {
  Chain chain;
  chain.slot[&value] = 0;
  if (value.is_graph_output() || value.producer() == nullptr) return std::nullopt;
  // Execution order visits a node after its inputs: one pass over what lies behind the producer.
  std::vector<const Node*> pending;
  for (const Use& use : value.uses()) pending.push_back(use.node);
  std::size_t budget = 256;
  for (const Node* node = value.producer()->next(); node != nullptr && budget > 0; node = node->next(), --budget) {
    if (std::find(pending.begin(), pending.end(), node) == pending.end()) continue;
    bool inside = IsChainOp(*node) && node->output() != nullptr && chain.nodes.size() < kMaxNodes;
    for (const Value* in : node->inputs()) {
      inside = inside && (in == nullptr || chain.slot.count(in) > 0 || ScalarConstant(in).has_value());
    }
    if (inside && node->input(0) == nullptr) inside = false;
    if (!inside) continue;
    chain.nodes.push_back(node);
    const std::size_t slot = chain.nodes.size();
    chain.slot[node->output()] = slot;
    for (const Use& use : node->output()->uses()) pending.push_back(use.node);
  }
  for (const auto& [v, slot] : chain.slot) {
    bool outside = v->is_graph_output();
    for (const Use& use : v->uses()) {
      outside = outside || std::find(chain.nodes.begin(), chain.nodes.end(), use.node) == chain.nodes.end();
    }
    if (!outside) continue;
    if (slot == 0) return std::nullopt;
    chain.results.push_back(slot);
  }
  if (chain.results.empty()) return std::nullopt;
  std::sort(chain.results.begin(), chain.results.end());
  return chain;
}

}  // namespace

ValueRange CutDeadZone(const Value& value, ValueRange range) {
  if (!(range.max > range.min)) return range;
  const std::optional<Chain> chain = FindChain(value);
  if (!chain) return range;
  std::vector<std::vector<double>> curves(chain->results.size(), std::vector<double>(kPoints + 1));
  std::vector<double> values(chain->nodes.size() + 1);
  std::vector<double> in;
  const auto point = [&](int i) { return range.min + (static_cast<double>(range.max) - range.min) * i / kPoints; };
  for (int i = 0; i <= kPoints; ++i) {
    values[0] = point(i);
    for (std::size_t n = 0; n < chain->nodes.size(); ++n) {
      in.clear();
      for (const Value* v : chain->nodes[n]->inputs()) {
        if (v == nullptr) {
          in.push_back(std::numeric_limits<double>::quiet_NaN());  // an absent bound of Clip
        } else if (const auto it = chain->slot.find(v); it != chain->slot.end()) {
          in.push_back(values[it->second]);
        } else {
          in.push_back(*ScalarConstant(v));
        }
      }
      if (in.size() < 2 && chain->nodes[n]->inputs().size() < 2 &&
          (chain->nodes[n]->Is("Add") || chain->nodes[n]->Is("Sub") || chain->nodes[n]->Is("Mul") ||
           chain->nodes[n]->Is("Div"))) {
        return range;
      }
      values[n + 1] = Apply(*chain->nodes[n], in);
      if (!std::isfinite(values[n + 1])) return range;
    }
    for (std::size_t r = 0; r < chain->results.size(); ++r)
      curves[r][static_cast<std::size_t>(i)] = values[chain->results[r]];
  }
  int low = kPoints, high = 0;
  for (const std::vector<double>& curve : curves) {
    const auto [lo, hi] = std::minmax_element(curve.begin(), curve.end());
    const double tolerance = (*hi - *lo) / 1024;
    int a = 0, b = kPoints;
    while (a < kPoints && std::fabs(curve[static_cast<std::size_t>(a) + 1] - curve[0]) <= tolerance) ++a;
    while (b > 0 && std::fabs(curve[static_cast<std::size_t>(b) - 1] - curve[kPoints]) <= tolerance) --b;
    low = std::min(low, a);
    high = std::max(high, b);
  }
  if (low >= high) return range;  // all constant: nothing to spend codes on
  return {static_cast<float>(point(low)), static_cast<float>(point(high))};
}

}  // namespace octavo
