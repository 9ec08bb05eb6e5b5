#include <algorithm>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

struct Padded {
  Node* node;
  std::vector<std::int64_t> pads;
};

// Before:  %y = AveragePool %x {ceil_mode=1}         After:  %y = AveragePool %x {pads: what the last windows miss}
// OneLsb: the same sums of the same numbers. What lies beyond the padding never counts; with ceil_mode it does on the
// HTP.
class CeilToPadsRule final : public PatternRule<Padded> {
 public:
  std::string_view name() const override { return "ceil-to-pads"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"AveragePool"}; }
  MatchOr<Padded> Match(Node& node) const override {
    if (!node.domain().empty() || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    if (node.IntAttribute("ceil_mode", 0) == 0) return Refusal{};
    const std::optional<Dims> in = StaticShape(node.input(0)->type), out = StaticShape(node.output()->type);
    const std::vector<std::int64_t>* kernel = node.IntsAttribute("kernel_shape");
    const std::vector<std::int64_t>* strides = node.IntsAttribute("strides");
    const std::vector<std::int64_t>* pads = node.IntsAttribute("pads");
    if (kernel == nullptr || !in || !out || in->size() != kernel->size() + 2 || out->size() != in->size()) {
      return Refusal{"its shapes are not known"};
    }
    const std::size_t n = kernel->size();
    const std::vector<std::int64_t>* dilations = node.IntsAttribute("dilations");
    const bool gaps =
        dilations != nullptr && std::any_of(dilations->begin(), dilations->end(), [](auto d) { return d != 1; });
    if (node.StringAttribute("auto_pad", "NOTSET") != "NOTSET" || gaps ||
        (strides != nullptr && strides->size() != n) || (pads != nullptr && pads->size() != 2 * n)) {
      return Refusal{"it pads by itself, or has gaps"};
    }
    Padded match{&node, pads == nullptr ? std::vector<std::int64_t>(2 * n, 0) : *pads};
    if (node.IntAttribute("count_include_pad", 0) != 0 &&
        std::any_of(match.pads.begin(), match.pads.end(), [](auto p) { return p != 0; })) {
      return Refusal{"it counts its padding, and not what its last windows miss"};
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t stride = strides == nullptr ? 1 : (*strides)[i];
      const std::int64_t reach = ((*out)[i + 2] - 1) * stride + (*kernel)[i];
      match.pads[n + i] += std::max<std::int64_t>(0, reach - ((*in)[i + 2] + match.pads[i] + match.pads[n + i]));
      if (match.pads[n + i] >= (*kernel)[i]) return Refusal{"a window of it lies outside"};
    }
    return match;
  }
  void Apply(const Padded& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    node.SetAttribute("pads", match.pads);
    node.SetAttribute("ceil_mode", std::int64_t{0});
    node.SetAttribute("count_include_pad", std::int64_t{0});
    rewriter.Touch(node.output());
  }
};

}  // namespace

std::unique_ptr<Rule> CeilToPads() { return std::make_unique<CeilToPadsRule>(); }

}  // namespace octavo
