// Rewrite rules and the driver that runs them to a fixed point.
//
// A rule is rooted at an operator type. `Match` looks and edits nothing: it returns the match, or a refusal with the
// sentence why not. `Apply` edits through the Rewriter, which tells the driver what to look at again.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// What a rule may do to the numbers. Ordered: the driver runs the rules of the permitted class and those before it.
enum class RuleClass : std::uint8_t {
  kExact,     // equal bits
  kOneLsb,    // quantized results differ by at most one step; float results only in the sign of a zero
  kImproves,  // differs by rounding, with less rounding than before
  kLossy,     // may lose accuracy
};
std::string_view Name(RuleClass rule_class);  // "exact", "onelsb", "improves", "lossy"

// Why a rule did not apply. An empty reason means that the node is none of the rule's business: nothing is traced.
struct Refusal {
  std::string reason;
};

template <class M>
using MatchOr = std::variant<M, Refusal>;

// The edits that a rule makes. Keeps the driver's worklist right: whatever is next to an edit is visited again, and
// what is erased is forgotten.
// A rule adds its new nodes before it erases old ones: nodes are known by their address.
class Rewriter {
 public:
  explicit Rewriter(Model& model) : model_(model) {}
  Model& model() const { return model_; }

  // Marks the producer and the users of a value (a null value is allowed), or a node, for another visit.
  void Touch(Value* value);
  void Touch(Node* node);

  // Whether Bypass(node, by) keeps every graph output's name: false when output 0 is a graph output and `by` cannot
  // take over its name (it is a constant, a graph input, a graph output itself, or of another graph).
  static bool CanBypass(const Node& node, const Value& by);
  // Every use of output 0 of `node` becomes a use of `by`, and the node goes, with what nobody uses any more. A graph
  // output keeps its name: `by` takes it over. Precondition: CanBypass.
  void Bypass(Node& node, Value* by);
  // Input `index` of `node` becomes a new constant in the node's graph; the old one goes when nobody else uses it, and
  // then the new one has its name. Other users of the old constant keep it.
  Value* ReplaceConstant(Node& node, std::size_t index, TensorRef data);
  // Erases the node if its outputs are dead, then what only it used.
  void EraseIfDead(Node& node);

 private:
  friend class Driver;
  Model& model_;
  std::vector<Node*> touched_;
  std::unordered_set<const Node*> erased_;
};

// What the catalogue says of a rule (`octavo rewrite --list`, docs/rewriting.md).
struct RuleDoc {
  std::string_view summary;        // one sentence
  std::string_view before, after;  // pictures, in the textual form
  std::string_view proof;          // how the class is shown, and by which test
  // Names of the conditions that its match checks with Holds, each of them with a counterexample in the tests.
  std::vector<std::string_view> conditions;
};

// A condition of a rule that its correctness rests on: `value`, unless a test has taken this condition away to show
// what then goes wrong. `name` is "rule/condition".
bool Holds(std::string_view name, bool value);
// For tests only: the condition counts as true from now on; an empty name takes that back.
void DropCondition(std::string name);

class Rule {
 public:
  Rule() = default;
  virtual ~Rule() = default;
  Rule(const Rule&) = delete;
  Rule& operator=(const Rule&) = delete;

  virtual std::string_view name() const = 0;
  virtual RuleClass rule_class() const = 0;
  virtual RuleDoc doc() const { return {}; }
  // Operator types that the rule is rooted at; "*" for all.
  virtual std::vector<std::string_view> roots() const = 0;
  // nullopt-like outcome: empty refusal = not concerned. `applied` is a Refusal-free result.
  struct Outcome {
    bool applied = false;
    std::string reason;
  };
  virtual Outcome TryApply(Node& node, Rewriter& rewriter) const = 0;
};

// A rule written as a match and its application.
template <class M>
class PatternRule : public Rule {
 public:
  virtual MatchOr<M> Match(Node& node) const = 0;
  virtual void Apply(const M& match, Rewriter& rewriter) const = 0;

  Outcome TryApply(Node& node, Rewriter& rewriter) const final {
    MatchOr<M> match = Match(node);
    if (auto* refusal = std::get_if<Refusal>(&match)) return {false, std::move(refusal->reason)};
    Apply(std::get<M>(match), rewriter);
    return {true, {}};
  }
};

struct RuleCount {
  std::string rule;
  RuleClass rule_class = RuleClass::kExact;
  std::int64_t applied = 0;
  std::int64_t refused = 0;  // nodes that it refused in the end, with a reason
};

struct TraceEntry {
  std::string rule;
  std::string node;  // its name, or operator and first output where it has none
  bool applied = false;
  std::string reason;  // of a refusal
};

struct RewriteResult {
  std::vector<RuleCount> rules;   // one for each rule that was given, in that order
  std::vector<TraceEntry> trace;  // what was applied in order of application, then what was refused in graph order
};

using RuleSet = std::vector<std::unique_ptr<Rule>>;

// Runs the rules of class <= `permitted` over all nodes, subgraphs included, until none applies. Every application
// re-queues only its neighbourhood, so the work is linear in the graph as long as each rule makes the graph smaller.
// Error(kInternal) naming the rule when rules undo each other.
// Stops after `limit` applications: the first n of a run are always the same, which is how a change is bisected.
RewriteResult RunRules(Model& model, const RuleSet& rules, RuleClass permitted = RuleClass::kImproves,
                       std::uint64_t limit = std::numeric_limits<std::uint64_t>::max());

// How a node is called in messages.
std::string Describe(const Node& node);

}  // namespace octavo
