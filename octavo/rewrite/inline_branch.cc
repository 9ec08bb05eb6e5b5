// Before:  %y = If %c {then_branch = graph () -> (%a) {%a = Neg %x}, else_branch = ...}, %c constant and true
// After:   %y = Neg %x
//
// And for a device that has no If, where %c is computed:
// After:   %a = Neg %x; %b = ...; %y = Where %c, %a, %b
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/log.h"
#include "octavo/ir/copy_nodes.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/rewrite/replace_node.h"

namespace octavo {
namespace {

// A model's branches within branches are inlined one by one: no real model has more.
constexpr int kMostBranches = 4096;
// Both branches are computed: an If of big ones is no bargain.
constexpr std::size_t kMostSelected = 16;

const Graph* Branch(const Node& node, std::string_view name) {
  const Attribute* attribute = node.FindAttribute(name);
  const auto* graph = attribute == nullptr ? nullptr : std::get_if<std::unique_ptr<Graph>>(&attribute->value);
  if (graph == nullptr || !(*graph)->inputs().empty() || (*graph)->outputs().size() != node.outputs().size()) {
    return nullptr;
  }
  return graph->get();
}

bool IsIf(const Node& node) {
  return node.Is("If") && node.inputs().size() == 1 && node.input(0) != nullptr &&
         Branch(node, "then_branch") != nullptr && Branch(node, "else_branch") != nullptr;
}

// The branch of an If whose condition is a constant; null: it is computed.
const Graph* Decided(const Node& node) {
  if (!IsIf(node)) return nullptr;
  const Value& condition = *node.input(0);
  if (!condition.is_constant() || !condition.data || condition.data->dtype != DType::kBool ||
      condition.data->elements() != 1) {
    return nullptr;
  }
  return Branch(node, condition.data->ToInts()[0] != 0 ? "then_branch" : "else_branch");
}

// Copies of branches in front of their If, and the names that they can have once it is gone.
class Unfolded {
 public:
  explicit Unfolded(Node& node) : node_(node), graph_(*node.graph()) {}

  std::vector<Value*> Copy(const Graph& branch) {
    std::unordered_map<const Value*, Value*> mapping;
    CopyNodes(branch, graph_, &node_, mapping);
    for (const auto& [from, to] : mapping) names_.emplace_back(to, from->name());
    std::vector<Value*> outputs;
    for (Value* v : branch.outputs()) {
      const auto it = mapping.find(v);
      outputs.push_back(it == mapping.end() ? v : it->second);
    }
    return outputs;
  }

  // The If goes; `made[i]` is what its output i was.
  void Replace(std::vector<Value*> made) {
    ReplaceNode(node_, std::move(made));
    std::sort(names_.begin(), names_.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    for (auto& [value, name] : names_) {
      if (!value->is_graph_output() && !graph_.NameTaken(name)) graph_.Rename(value, name);
    }
  }

 private:
  Node& node_;
  Graph& graph_;
  std::vector<std::pair<Value*, std::string>> names_;
};

// Operators that may not run where their branch is not taken, or do not give the same twice.
bool Pure(const Graph& graph) {
  constexpr std::array<std::string_view, 11> kNot = {"Loop",
                                                     "Scan",
                                                     "SequenceMap",
                                                     "RandomNormal",
                                                     "RandomNormalLike",
                                                     "RandomUniform",
                                                     "RandomUniformLike",
                                                     "Multinomial",
                                                     "Bernoulli",
                                                     "SequenceConstruct",
                                                     "SplitToSequence"};
  bool pure = true;
  VisitNodes(graph, [&](const Node& node) {
    pure = pure && node.domain().empty() && std::find(kNot.begin(), kNot.end(), node.op()) == kNot.end();
  });
  return pure;
}

std::int64_t Conditionals(const Model& model) {
  std::int64_t count = 0;
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& node) { count += node.Is("If") ? 1 : 0; });
  return count;
}

// The model with one branch of the If that is node `index` of the main graph in its place; nullopt: its shapes
// contradict each other.
std::optional<Model> Only(const Model& model, std::size_t index, std::string_view branch) {
  Model trial = Clone(model);
  Node* node = trial.graph->nodes()[index];
  Unfolded unfolded(*node);
  unfolded.Replace(unfolded.Copy(*Branch(*node, branch)));
  SimplifyFloat(trial, RuleClass::kImproves, true);
  if (!RuntimeAccepts(trial)) return std::nullopt;
  return trial;
}

// Where only one branch fits the shapes: the model with that one.
bool TryOnly(Model& model, std::size_t index) {
  std::optional<Model> yes = Only(model, index, "then_branch"), no = Only(model, index, "else_branch");
  if (yes.has_value() == no.has_value()) return false;
  const Node& node = *model.graph->nodes()[index];
  LogWarning("the fixed dimensions rule out the " + std::string(yes ? "else" : "then") + " branch of '" +
             (node.name.empty() && node.output() != nullptr ? node.output()->name() : node.name) +
             "' (If): the model holds the other branch only");
  model = std::move(yes ? *yes : *no);
  return true;
}

// Both branches of the If that is node `index` of the main graph, and a Where for each of its outputs. False: their
// shapes are not the same numbers, or something in them cannot be resolved.
bool TrySelect(Model& model, std::size_t index) {
  Model trial = Clone(model);
  Node* node = trial.graph->nodes()[index];
  // In one dimension, which joins any shape that has some.
  Value* one = trial.graph->AddConstant("one", TensorRef::FromInts(DType::kS64, {1}, std::vector<std::int64_t>{1}));
  Type flag;
  flag.dtype = DType::kBool;
  flag.shape.emplace(1, Dim{1, {}});
  Node* reshape = trial.graph->AddNode("Reshape", "", {node->input(0), one},
                                       {{node->input(0)->name() + "_chosen", std::move(flag)}}, node);
  reshape->name = reshape->output()->name();
  Value* condition = reshape->output();
  Unfolded unfolded(*node);
  const std::vector<Value*> yes = unfolded.Copy(*Branch(*node, "then_branch"));
  const std::vector<Value*> no = unfolded.Copy(*Branch(*node, "else_branch"));
  std::vector<Value*> made;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < yes.size(); ++i) {
    const Value* old = node->output(i);
    Type type = old != nullptr ? old->type : Type{};
    Node* where = trial.graph->AddNode(
        "Where", "", {condition, yes[i], no[i]},
        {{trial.graph->UniqueName((old != nullptr ? old->name() : "If") + "_chosen"), std::move(type)}}, node);
    where->name = where->output()->name();
    made.push_back(where->output());
    if (old != nullptr) names.push_back(old->is_graph_output() ? old->name() : where->output()->name());
  }
  unfolded.Replace(std::move(made));
  SimplifyFloat(trial, RuleClass::kImproves, true);
  InferTypes(trial, true);
  if (Conditionals(trial) >= Conditionals(model)) return false;  // those inside are computed too
  for (const std::string& name : names) {
    const Value* y = trial.graph->FindValue(name);
    const Node* where = y == nullptr ? nullptr : y->producer();
    if (where == nullptr || !where->Is("Where")) continue;  // nobody reads it
    const std::optional<Dims> a = StaticShape(where->input(1)->type), b = StaticShape(where->input(2)->type);
    if (!a || !b || *a != *b || a->empty()) return false;
  }
  model = std::move(trial);
  return true;
}

// Asks `change` for each If of the main graph, from the first one again after it changed the model. Returns how often.
template <class Change>
std::int64_t EachIf(Model& model, const Change& change) {
  std::int64_t changed = 0;
  std::size_t index = 0;
  for (std::size_t tries = 0; tries < kMostSelected; ++tries) {
    const std::vector<Node*> nodes = model.graph->nodes();
    while (index < nodes.size() && !IsIf(*nodes[index])) ++index;
    if (index >= nodes.size()) break;
    if (change(model, index)) {
      ++changed;
      index = 0;  // every node has moved
    } else {
      ++index;
    }
  }
  return changed;
}

}  // namespace

std::int64_t InlineBranches(Model& model) {
  Graph& graph = *model.graph;
  const std::vector<Node*> nodes = graph.nodes();
  if (std::none_of(nodes.begin(), nodes.end(), [](const Node* n) { return Decided(*n) != nullptr; })) return 0;
  FoldChoices(graph);  // whatever their condition is on this machine: both branches are the same
  std::int64_t inlined = 0;
  for (bool any = true; any && inlined < kMostBranches;) {
    any = false;
    for (Node* node : graph.nodes()) {
      const Graph* branch = Decided(*node);
      if (branch == nullptr) continue;
      Unfolded unfolded(*node);
      unfolded.Replace(unfolded.Copy(*branch));
      any = true;
      if (++inlined >= kMostBranches) break;
    }
  }
  return inlined;
}

std::int64_t SelectBranches(Model& model) {
  return EachIf(model, [](Model& m, std::size_t index) {
    const Node& node = *m.graph->nodes()[index];
    return Pure(*Branch(node, "then_branch")) && Pure(*Branch(node, "else_branch")) &&
           (TryOnly(m, index) || TrySelect(m, index));
  });
}

std::int64_t DropImpossibleBranches(Model& model) {
  const std::vector<Node*> nodes = model.graph->nodes();
  if (std::none_of(nodes.begin(), nodes.end(), [](const Node* n) { return IsIf(*n); }) ||
      RuntimeAccepts(model, GraphOptimization::kBasic)) {
    return 0;
  }
  return EachIf(model, TryOnly);
}

}  // namespace octavo
