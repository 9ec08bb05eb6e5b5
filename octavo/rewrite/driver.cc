#include <bit>
#include <deque>
#include <unordered_map>

#include "octavo/base/error.h"
#include "octavo/rewrite/rule.h"

namespace octavo {

std::string_view Name(RuleClass rule_class) {
  switch (rule_class) {
    case RuleClass::kExact:
      return "exact";
    case RuleClass::kOneLsb:
      return "onelsb";
    case RuleClass::kImproves:
      return "improves";
    case RuleClass::kLossy:
      return "lossy";
  }
  return "?";
}

namespace {

std::string& DroppedCondition() {
  static std::string name;
  return name;
}

}  // namespace

bool Holds(std::string_view name, bool value) { return value || name == DroppedCondition(); }
void DropCondition(std::string name) { DroppedCondition() = std::move(name); }

std::string Describe(const Node& node) {
  if (!node.name.empty()) return node.name;
  for (const Value* output : node.outputs()) {
    if (output != nullptr) return node.op() + "(" + output->name() + ")";
  }
  return node.op();
}

void Rewriter::Touch(Node* node) {
  if (node != nullptr) touched_.push_back(node);
}

void Rewriter::Touch(Value* value) {
  if (value == nullptr) return;
  Touch(value->producer());
  for (const Use& use : value->uses()) Touch(use.node);
}

bool Rewriter::CanBypass(const Node& node, const Value& by) {
  const Value* output = node.output();
  if (output == nullptr) return false;
  if (!output->is_graph_output()) return true;
  return by.kind() == ValueKind::kResult && !by.is_graph_output() && by.graph() == node.graph();
}

void Rewriter::Bypass(Node& node, Value* by) {
  Value* output = node.output();
  Graph& graph = *node.graph();
  const std::string name = output->is_graph_output() ? output->name() : std::string();
  const Type type = output->type;
  graph.ReplaceAllUses(output, by);
  // The users see `by` from now on; its producer may match with them.
  Touch(by);
  EraseIfDead(node);
  if (!name.empty()) {
    by->graph()->Rename(by, name);
    by->type = type;  // the declared type of a graph output is part of the interface
  }
}

Value* Rewriter::ReplaceConstant(Node& node, std::size_t index, TensorRef data) {
  Value* old = node.input(index);
  Value* fresh = node.graph()->AddConstant(old == nullptr ? std::string() : old->name(), std::move(data));
  node.SetInput(index, fresh);
  if (old != nullptr && old->is_constant() && old->dead()) {
    const std::string name = old->name();
    const bool same_graph = old->graph() == node.graph();
    old->graph()->Erase(old);
    if (same_graph) node.graph()->Rename(fresh, name);
  }
  Touch(&node);
  return fresh;
}

void Rewriter::EraseIfDead(Node& node) {
  std::vector<Node*> stack{&node};
  while (!stack.empty()) {
    Node* next = stack.back();
    stack.pop_back();
    if (erased_.contains(next)) continue;
    bool dead = true;
    for (const Value* output : next->outputs()) dead = dead && (output == nullptr || output->dead());
    if (!dead) continue;
    std::vector<Value*> inputs(next->inputs().begin(), next->inputs().end());
    // A subgraph's nodes go with the node that holds it.
    for (const Attribute& attribute : next->attributes()) {
      if (const auto* body = std::get_if<std::unique_ptr<Graph>>(&attribute.value)) {
        VisitNodes(**body, [&](Node& inner) {
          erased_.insert(&inner);
          for (Value* input : inner.inputs()) {
            // Captured values may die with the body; those of the body itself die in any case.
            if (input != nullptr && input->graph() == next->graph()) inputs.push_back(input);
          }
        });
      }
    }
    erased_.insert(next);
    next->graph()->Erase(next);
    std::unordered_set<Value*> seen;
    for (Value* input : inputs) {
      if (input == nullptr || !seen.insert(input).second) continue;
      if (!input->dead()) {
        // One use less: a rule that wants a single use, or one kind of users, may match now. Of a value with many users
        // these are visited when their number has halved, or erasing them one by one would take quadratic time.
        const std::size_t left = input->uses().size();
        if (left <= 16 || std::has_single_bit(left)) Touch(input);
      } else if (input->is_constant()) {
        input->graph()->Erase(input);
      } else if (input->producer() != nullptr) {
        stack.push_back(input->producer());
      }
    }
  }
}

class Driver {
 public:
  Driver(Model& model, const RuleSet& rules, RuleClass permitted, std::uint64_t limit)
      : rewriter_(model), rules_(rules), left_(limit) {
    for (std::size_t i = 0; i < rules.size(); ++i) {
      result_.rules.push_back({std::string(rules[i]->name()), rules[i]->rule_class(), 0, 0});
      if (rules[i]->rule_class() > permitted) continue;
      for (std::string_view root : rules[i]->roots()) {
        if (root == "*") {
          everywhere_.push_back(i);
          for (auto& [op, list] : by_root_) list.push_back(i);
        } else {
          by_root_.try_emplace(std::string(root), everywhere_).first->second.push_back(i);
        }
      }
    }
  }

  RewriteResult Run() {
    Graph& graph = *rewriter_.model().graph;
    VisitNodes(graph, [&](Node& node) { Push(&node); });
    // A generous multiple of what terminating rules need; only rules that undo each other get there.
    std::uint64_t budget = 64 * static_cast<std::uint64_t>(queue_.size()) + 4096;
    while (!queue_.empty()) {
      Node* node = queue_.front();
      queue_.pop_front();
      if (queued_.erase(node) == 0) continue;  // erased since it was queued
      if (budget-- == 0) ThrowInternal("rewrite rules do not come to an end", "rule " + last_applied_);
      Visit(node);
    }
    // Refusals that still stand, in graph order.
    VisitNodes(graph, [&](Node& node) {
      auto it = refused_.find(&node);
      if (it == refused_.end()) return;
      for (auto& [rule, reason] : it->second) {
        ++result_.rules[rule].refused;
        result_.trace.push_back({result_.rules[rule].rule, Describe(node), false, reason});
      }
    });
    return std::move(result_);
  }

 private:
  void Push(Node* node) {
    if (queued_.insert(node).second) queue_.push_back(node);
  }

  void Visit(Node* node) {
    refused_.erase(node);
    if (left_ == 0) return;
    auto it = by_root_.find(node->op());
    for (std::size_t rule : it == by_root_.end() ? everywhere_ : it->second) {
      const std::string description = Describe(*node);
      Rule::Outcome outcome = rules_[rule]->TryApply(*node, rewriter_);
      if (!outcome.applied) {
        if (!outcome.reason.empty()) refused_[node].emplace_back(rule, std::move(outcome.reason));
        continue;
      }
      --left_;
      last_applied_ = result_.rules[rule].rule;
      ++result_.rules[rule].applied;
      result_.trace.push_back({result_.rules[rule].rule, description, true, {}});
      const bool gone = rewriter_.erased_.contains(node);
      for (const Node* erased : rewriter_.erased_) {
        queued_.erase(const_cast<Node*>(erased));
        refused_.erase(erased);
      }
      for (Node* touched : rewriter_.touched_) {
        if (!rewriter_.erased_.contains(touched)) Push(touched);
      }
      rewriter_.erased_.clear();
      rewriter_.touched_.clear();
      if (!gone) Push(node);
      return;  // the node has changed: it is visited anew
    }
  }

  Rewriter rewriter_;
  const RuleSet& rules_;
  std::uint64_t left_;  // applications
  RewriteResult result_;
  std::unordered_map<std::string, std::vector<std::size_t>> by_root_;
  std::vector<std::size_t> everywhere_;  // rules of every root
  std::deque<Node*> queue_;
  std::unordered_set<Node*> queued_;
  std::unordered_map<const Node*, std::vector<std::pair<std::size_t, std::string>>> refused_;
  std::string last_applied_;
};

RewriteResult RunRules(Model& model, const RuleSet& rules, RuleClass permitted, std::uint64_t limit) {
  return Driver(model, rules, permitted, limit).Run();
}

}  // namespace octavo
