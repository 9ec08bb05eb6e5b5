// Before:  %a = SequenceInsert (SequenceInsert SequenceEmpty, %x), %y; %z = ConcatFromSequence %a
//          %w = SequenceAt %a, 0
// After:   %z = Concat %x, %y; %w = %x
#include <algorithm>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/ir/make_type.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/replace_node.h"

namespace octavo {
namespace {

constexpr std::size_t kMostElements = 4096;  // of a sequence

using Elements = std::vector<Value*>;

class Resolver {
 public:
  explicit Resolver(Model& model) : graph_(*model.graph), opset_(model.OpsetVersion()) {}

  std::int64_t Run() {
    std::int64_t resolved = 0;
    for (Node* node : graph_.nodes()) {
      if (!node->domain().empty() || node->output() == nullptr) continue;
      if (std::optional<Elements> elements = Made(*node)) {
        if (elements->size() <= kMostElements) held_.emplace(node->output(), std::move(*elements));
      } else if (Value* read = Read(*node)) {
        ReplaceNode(*node, {read});
        ++resolved;
      }
    }
    if (resolved > 0) graph_.EraseDead();
    return resolved;
  }

 private:
  const Elements* Held(const Value* v) const {
    const auto it = held_.find(v);
    return it == held_.end() ? nullptr : &it->second;
  }
  // A constant place among `count`, counted from the front; nullopt: it is computed, or there is none.
  static std::optional<std::size_t> Place(const Value* v, std::size_t count) {
    if (!IsPlainConstant(v) || v->data->elements() != 1 || !IsInteger(v->data->dtype)) return std::nullopt;
    const auto n = static_cast<std::int64_t>(count);
    std::int64_t at = v->data->ToInts()[0];
    if (at < 0) at += n;
    if (at < 0 || at >= n) return std::nullopt;
    return static_cast<std::size_t>(at);
  }

  // What a sequence holds; nullopt: it is none, or not known.
  std::optional<Elements> Made(const Node& node) const {
    if (node.Is("SequenceEmpty")) return Elements{};
    if (node.Is("SequenceConstruct")) return Elements(node.inputs().begin(), node.inputs().end());
    const Elements* before = Held(node.input(0));
    if (before == nullptr) return std::nullopt;
    if (node.Is("Identity")) return *before;
    Elements after = *before;
    if (node.Is("SequenceInsert") && node.input(1) != nullptr) {
      // One place more than there are elements: behind them.
      const std::optional<std::size_t> at =
          node.input(2) == nullptr ? after.size() : Place(node.input(2), after.size() + 1);
      // Counted from the back it is before the element that is there.
      if (!at || (node.input(2) != nullptr && node.input(2)->data->ToInts()[0] < 0)) return std::nullopt;
      after.insert(after.begin() + static_cast<std::ptrdiff_t>(*at), node.input(1));
      return after;
    }
    if (node.Is("SequenceErase") && !after.empty()) {
      const std::optional<std::size_t> at =
          node.input(1) == nullptr ? after.size() - 1 : Place(node.input(1), after.size());
      if (!at) return std::nullopt;
      after.erase(after.begin() + static_cast<std::ptrdiff_t>(*at));
      return after;
    }
    return std::nullopt;
  }

  // The tensor that a node makes of a sequence; null: it makes none, or which is not known.
  Value* Read(Node& node) {
    const Elements* held = Held(node.input(0));
    if (held == nullptr) return nullptr;
    if (node.Is("SequenceAt")) {
      const std::optional<std::size_t> at = Place(node.input(1), held->size());
      return at ? (*held)[*at] : nullptr;
    }
    if (node.Is("SequenceLength")) {
      const auto n = static_cast<std::int64_t>(held->size());
      return graph_.AddConstant(graph_.UniqueName(node.output()->name() + "_count"),
                                TensorRef::FromInts(DType::kS64, {}, {&n, 1}));
    }
    if (!node.Is("ConcatFromSequence") || held->empty()) return nullptr;
    const std::int64_t axis = node.IntAttribute("axis", 0);
    const bool fresh = node.IntAttribute("new_axis", 0) != 0;
    Elements parts;
    for (Value* v : *held) parts.push_back(fresh ? Unsqueezed(v, axis, node) : v);
    if (parts.size() == 1) return parts[0];
    Node* all =
        graph_.AddNode("Concat", "", std::move(parts), {{node.output()->name() + "_all", node.output()->type}}, &node);
    all->name = node.name;
    all->SetAttribute("axis", axis);
    return all->output();
  }
  Value* Unsqueezed(Value* v, std::int64_t axis, Node& before) {
    const std::string name = graph_.UniqueName(before.output()->name() + "_part");
    Type type = TypeOf(v->type.dtype);
    if (opset_ >= 13) {
      Value*& axes = axes_[axis];
      if (axes == nullptr) {
        axes = graph_.AddConstant(graph_.UniqueName(before.output()->name() + "_axis"),
                                  TensorRef::FromInts(DType::kS64, {1}, {&axis, 1}));
      }
      return graph_.AddNode("Unsqueeze", "", {v, axes}, {{name, std::move(type)}}, &before)->output();
    }
    Node* node = graph_.AddNode("Unsqueeze", "", {v}, {{name, std::move(type)}}, &before);
    node->SetAttribute("axes", Dims{axis});
    return node->output();
  }

  Graph& graph_;
  std::int64_t opset_;
  std::unordered_map<const Value*, Elements> held_;
  std::unordered_map<std::int64_t, Value*> axes_;
};

}  // namespace

std::int64_t ResolveSequences(Model& model) { return Resolver(model).Run(); }

}  // namespace octavo
