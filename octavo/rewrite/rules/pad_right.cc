#include <algorithm>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

constexpr std::size_t kMostDims = 4;  // with five it is right

struct AtTheRight {
  Node* node;
  Node* conv;  // that can pad by itself; or null
  Dims dims, pads;
};

// Before:  %p = Pad %x, [0, 0, 0, 0, 0, 0, 1, 1]
// After:   %y = Conv %x {pads=[0, 0, 1, 1]}, where %y = Conv %p alone reads the zeros; else
//          %p = Gather (Pad %x, [0, 0, 0, 1, 0, 0, 1, 1]), [1, 2, ...] {axis=3}
// Exact. The HTP fills a Pad with what lies in memory that has elements at the end of the last axis and of another one,
// and none at the beginning of the last; it makes the same of two Pads, of a Slice behind one, and of a Concat.
class PadRightRule final : public PatternRule<AtTheRight> {
 public:
  std::string_view name() const override { return "pad-right"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Pad"}; }
  MatchOr<AtTheRight> Match(Node& node) const override {
    const Value *x = node.input(0), *pads = node.input(1);
    if (!node.domain().empty() || x == nullptr || node.output() == nullptr || node.input(3) != nullptr)
      return Refusal{};
    if (!IsPlainConstant(pads)) return Refusal{"its pads are computed"};
    const std::optional<Dims> dims = StaticShape(x->type);
    if (!dims) return Refusal{"the shape of its input is not known"};
    const std::size_t rank = dims->size();
    AtTheRight match{&node, nullptr, *dims, pads->data->ToInts()};
    if (rank < 2 || rank > kMostDims || match.pads.size() != 2 * rank) return Refusal{};
    if (match.pads[rank - 1] != 0 || match.pads.back() <= 0) return Refusal{};
    if (std::all_of(match.pads.begin() + static_cast<std::ptrdiff_t>(rank), match.pads.end() - 1,
                    [](std::int64_t p) { return p <= 0; })) {
      return Refusal{};
    }
    if (x->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
    if (std::any_of(match.pads.begin(), match.pads.end(), [](std::int64_t p) { return p < 0; })) {
      return Refusal{"it takes off, too"};
    }
    const std::string mode = node.StringAttribute("mode", "constant");
    if (mode != "constant" && mode != "edge") return Refusal{};
    match.conv = mode == "constant" ? Taker(node, rank) : nullptr;
    return match;
  }
  void Apply(const AtTheRight& m, Rewriter& rewriter) const override {
    Node& node = *m.node;
    Graph& graph = *node.graph();
    const std::size_t rank = m.dims.size(), last = rank - 1;
    if (m.conv != nullptr) {
      std::vector<std::int64_t> pads = PadsOf(*m.conv, rank);
      for (std::size_t i = 2; i < rank; ++i) {
        pads[i - 2] += m.pads[i];
        pads[rank - 4 + i] += m.pads[rank + i];
      }
      m.conv->SetAttribute("auto_pad", std::string("NOTSET"));
      m.conv->SetAttribute("pads", pads);
      m.conv->SetInput(0, node.input(0));
      rewriter.Touch(m.conv);
      rewriter.EraseIfDead(node);
      return;
    }
    const std::string base = node.output()->name();
    Dims pads = m.pads, out, taken;
    pads[last] = 1;
    for (std::size_t i = 0; i < rank; ++i) out.push_back(m.dims[i] + pads[i] + pads[rank + i]);
    for (std::int64_t i = 1; i < out[last]; ++i) taken.push_back(i);
    std::vector<Value*> inputs = {node.input(0), AddInts(graph, base + "_pads", pads)};
    if (node.input(2) != nullptr) inputs.push_back(node.input(2));
    Node* pad = graph.AddNode("Pad", "", inputs,
                              {{graph.UniqueName(base + "_padded"), TypeOf(node.input(0)->type.dtype, out)}}, &node);
    pad->SetAttribute("mode", node.StringAttribute("mode", "constant"));
    Node* gather = graph.AddNode("Gather", "", {pad->output(), AddInts(graph, base + "_at", taken)},
                                 {{graph.UniqueName(base + "_taken"), {}}}, &node);
    gather->SetAttribute("axis", static_cast<std::int64_t>(last));
    rewriter.Touch(pad);
    TakePlace(*gather, node, rewriter);
  }

 private:
  // The convolution that alone reads the Pad and can do what it does; null: there is none.
  static Node* Taker(const Node& pad, std::size_t rank) {
    const std::vector<std::int64_t> pads = pad.input(1)->data->ToInts();
    Node* conv = SoleUser(pad.output());
    if (conv == nullptr || !conv->Is("Conv") || conv->input(0) != pad.output() || rank < 3) return nullptr;
    if (pads[0] != 0 || pads[1] != 0 || pads[rank] != 0 || pads[rank + 1] != 0) return nullptr;
    const Value* value = pad.input(2);
    if (value != nullptr && ScalarOf(value) != 0.0f) return nullptr;
    const std::string by_itself = conv->StringAttribute("auto_pad", "NOTSET");
    if (by_itself != "NOTSET" && by_itself != "VALID") return nullptr;
    return PadsOf(*conv, rank).size() == 2 * (rank - 2) ? conv : nullptr;
  }
  static std::vector<std::int64_t> PadsOf(const Node& conv, std::size_t rank) {
    const std::vector<std::int64_t>* pads = conv.IntsAttribute("pads");
    const bool none = pads == nullptr || conv.StringAttribute("auto_pad", "NOTSET") == "VALID";
    return none ? std::vector<std::int64_t>(2 * (rank - 2), 0) : *pads;
  }
};

}  // namespace

std::unique_ptr<Rule> PadRight() { return std::make_unique<PadRightRule>(); }

}  // namespace octavo
