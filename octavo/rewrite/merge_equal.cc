// Before:  %a = Not %m; %b = Not %m; %c = Cast %a; %d = Cast %b
// After:   %a = Not %m; %c = Cast %a                    and uses of %b and %d are of those
#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

constexpr std::size_t kMostBytes = 64u << 10;  // of constants that are compared

// Gives the same for the same inputs, in one tensor or several.
bool Mergeable(const Node& node) {
  if (!node.domain().empty() || !node.subgraphs().empty() || node.op().starts_with("Random") || node.Is("Bernoulli") ||
      node.Is("Multinomial") || node.Is("Dropout")) {
    return false;
  }
  return std::all_of(node.outputs().begin(), node.outputs().end(), [](const Value* v) {
    return v != nullptr && !v->is_graph_output() && v->type.opaque.empty() && !v->type.quant;
  });
}

std::size_t Mix(std::size_t seed, std::size_t more) { return (seed ^ more) * 0x9e3779b97f4a7c15ULL + (seed >> 29U); }

}  // namespace

std::int64_t MergeEqual(Graph& graph) {
  std::unordered_multimap<std::size_t, Value*> constants;
  for (Value* c : graph.constants()) {
    if (!IsPlainConstant(c) || c->data->bytes.size() > kMostBytes || c->is_graph_output()) continue;
    const std::size_t key = Mix(
        std::hash<std::string_view>{}({reinterpret_cast<const char*>(c->data->bytes.data()), c->data->bytes.size()}),
        static_cast<std::size_t>(c->data->dtype));
    const auto [begin, end] = constants.equal_range(key);
    const auto same = std::find_if(begin, end, [&](const auto& e) { return SameContent(*e.second->data, *c->data); });
    if (same == end) {
      constants.emplace(key, c);
    } else {
      graph.ReplaceAllUses(c, same->second);
      graph.Erase(c);
    }
  }
  std::unordered_multimap<std::size_t, Node*> known;
  std::int64_t merged = 0;
  for (Node* node : graph.nodes()) {
    if (!Mergeable(*node)) continue;
    std::size_t key = Mix(std::hash<std::string>{}(node->op()), node->outputs().size());
    for (const Value* v : node->inputs()) key = Mix(key, std::hash<const Value*>{}(v));
    const auto [begin, end] = known.equal_range(key);
    const auto same = std::find_if(begin, end, [&](const auto& e) {
      const Node& other = *e.second;
      return other.op() == node->op() &&
             std::equal(other.inputs().begin(), other.inputs().end(), node->inputs().begin(), node->inputs().end()) &&
             other.outputs().size() == node->outputs().size() && SameAttributes(other, *node);
    });
    if (same == end) {
      known.emplace(key, node);
      continue;
    }
    for (std::size_t i = 0; i < node->outputs().size(); ++i)
      graph.ReplaceAllUses(node->output(i), same->second->output(i));
    graph.Erase(node);
    ++merged;
  }
  return merged;
}

}  // namespace octavo
