#include <algorithm>

#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Known {
  Node* node;
  Dims dims;  // of the new constant
  std::vector<std::int64_t> values;
};

// Before:  %s = Shape %x : f32[1,3,48,192]      After:  %s = constant [1,3,48,192]
//          %n = Size %x                                 %n = constant 27648
// Exact. Only the dimensions that are asked for (start, end) need to be known.
class FoldShapeRule final : public PatternRule<Known> {
 public:
  std::string_view name() const override { return "fold-shape"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Shape", "Size"}; }

  MatchOr<Known> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    if (node.output()->is_graph_output()) return Refusal{"its result is a graph output"};
    const Type& type = node.input(0)->type;
    if (node.input(0)->is_graph_output() && node.input(0)->kind() == ValueKind::kResult) {
      return Refusal{"its input is a graph output, whose shape is declared, not inferred"};
    }
    if (!type.shape.has_value() || !type.opaque.empty()) return Refusal{"the rank of its input is not known"};
    const auto rank = static_cast<std::int64_t>(type.shape->size());
    std::int64_t start = 0, end = rank;
    if (node.op() == "Shape") {
      const auto clamp = [&](std::int64_t i) { return std::clamp<std::int64_t>(i < 0 ? i + rank : i, 0, rank); };
      start = clamp(node.IntAttribute("start", 0));
      end = clamp(node.IntAttribute("end", rank));
    }
    Known known{&node, {}, {}};
    for (std::int64_t i = start; i < end; ++i) {
      const Dim& dim = (*type.shape)[static_cast<std::size_t>(i)];
      if (!dim.known()) return Refusal{"dimension " + std::to_string(i) + " of its input is not known"};
      known.values.push_back(dim.value);
    }
    if (node.op() == "Shape") {
      known.dims = {static_cast<std::int64_t>(known.values.size())};
    } else {
      known.values = {static_cast<std::int64_t>(ElementCount(known.values, node.input(0)->name()))};
    }
    return known;
  }

  void Apply(const Known& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Value* constant =
        node.graph()->AddConstant(node.output()->name(), TensorRef::FromInts(DType::kS64, match.dims, match.values));
    rewriter.Bypass(node, constant);
  }
};

}  // namespace

std::unique_ptr<Rule> FoldShape() { return std::make_unique<FoldShapeRule>(); }

}  // namespace octavo
