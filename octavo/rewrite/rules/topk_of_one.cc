#include <utility>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

constexpr std::int64_t kMostIndices = 65536;  // that become a constant

struct OnlyOne {
  Node* node;
  Dims dims;  // of both results
};

// Before:  %v, %i = TopK %x, [1]  (%x has one element along the axis)        After:  uses of %v use %x, %i is 0
// Exact: there is nothing to choose. A batch of one sequence, sorted by length as PyTorch packs it, is one.
class TopKOfOneRule final : public PatternRule<OnlyOne> {
 public:
  std::string_view name() const override { return "topk-of-one"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"TopK"}; }
  MatchOr<OnlyOne> Match(Node& node) const override {
    const Value *x = node.input(0), *k = node.input(1);
    if (!node.domain().empty() || x == nullptr || k == nullptr || node.output() == nullptr) return Refusal{};
    if (x->type.quant || x->type.dtype == DType::kUndefined) return Refusal{};
    if (!k->is_constant() || !k->data || k->data->elements() != 1) return Refusal{"how many it takes is computed"};
    const std::optional<Dims> dims = StaticShape(x->type);
    if (!dims || dims->empty()) return Refusal{"the shape of its input is not known"};
    const auto rank = static_cast<std::int64_t>(dims->size());
    std::int64_t axis = node.IntAttribute("axis", -1);
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank) return Refusal{};
    if ((*dims)[static_cast<std::size_t>(axis)] != 1 || k->data->ToInts()[0] != 1) return Refusal{"it chooses"};
    if (ElementCount(*dims) > static_cast<std::uint64_t>(kMostIndices)) return Refusal{"its indices are many"};
    const Value* indices = node.output(1);
    if (!Rewriter::CanBypass(node, *x) || (indices != nullptr && indices->is_graph_output())) {
      return Refusal{"it gives a graph output its name"};
    }
    return OnlyOne{&node, *dims};
  }
  void Apply(const OnlyOne& match, Rewriter& rewriter) const override {
    Graph& graph = *match.node->graph();
    if (Value* indices = match.node->output(1); indices != nullptr) {
      const std::vector<std::int64_t> zeros(static_cast<std::size_t>(ElementCount(match.dims)), 0);
      Value* constant = graph.AddConstant(graph.UniqueName(indices->name() + "_zero"),
                                          TensorRef::FromInts(DType::kS64, match.dims, zeros));
      graph.ReplaceAllUses(indices, constant);
      rewriter.Touch(constant);
    }
    rewriter.Bypass(*match.node, match.node->input(0));
  }
};

}  // namespace

std::unique_ptr<Rule> TopKOfOne() { return std::make_unique<TopKOfOneRule>(); }

}  // namespace octavo
