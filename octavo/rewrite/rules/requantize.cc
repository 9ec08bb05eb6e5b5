// The rules of facts about consecutive quantizations: which of them may go.
#include <cmath>

#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

struct Range {
  double low = 0, high = 0;
};

// The numbers of the first and the last code.
Range RangeOf(const ScalarParams& p) {
  const auto number = [&](std::int64_t code) { return static_cast<double>(code - p.zero) * p.scale; };
  return {number(IntegerMin(p.storage)), number(IntegerMax(p.storage))};
}

std::string RangeText(const Range& range) { return Text(range.low) + ".." + Text(range.high); }

struct Pair {
  Node* node;  // the Requantize
  Value* from;
};

bool IsRequantize(const Node& node) { return node.Is(kRequantize, kIrDomain) && node.output() != nullptr; }

bool HasRawReader(const Value& v) {
  for (const Use& use : v.uses()) {
    if (use.node->Is(kStorageCast, kIrDomain)) return true;
  }
  return false;
}

// a / b when that is an integer and b * it is a exactly.
std::optional<std::int64_t> IntegerRatio(float a, float b) {
  const double m = std::nearbyint(static_cast<double>(a) / b);
  if (m < 1 || m > 65536 || m * static_cast<double>(b) != static_cast<double>(a)) return std::nullopt;
  return static_cast<std::int64_t>(m);
}

class DropRequantizeRule final : public PatternRule<Pair> {
 public:
  std::string_view name() const override { return "drop-requantize"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {kRequantize}; }
  RuleDoc doc() const override {
    return {"A second Q/DQ pair with the parameters of the first does nothing.",
            "%b : u8(s, z) = Requantize (%a : u8(s, z))",
            "uses of %b use %a",
            "all codes: quantizing (q - z) * s gives q again (Requantize.EveryCodeComesBack)",
            {"drop-requantize/same-parameters"}};
  }
  MatchOr<Pair> Match(Node& node) const override {
    if (!IsRequantize(node) || !IsQuantized(node.input(0)) || !IsQuantized(node.output())) return Refusal{};
    const QuantType &a = *node.input(0)->type.quant, &b = *node.output()->type.quant;
    const bool wide = a.kind == QuantType::Kind::kAffine && BitWidth(a.affine.storage) > 16;
    if (!Holds("drop-requantize/same-parameters", SameParams(a, b) && !wide)) {
      return Refusal{"the two quantizations have different parameters"};
    }
    if (!Rewriter::CanBypass(node, *node.input(0))) return Refusal{"it gives a graph output its name"};
    return Pair{&node, node.input(0)};
  }
  void Apply(const Pair& match, Rewriter& rewriter) const override { rewriter.Bypass(*match.node, match.from); }
};

class SkipFinerRequantizeRule final : public PatternRule<Pair> {
 public:
  std::string_view name() const override { return "drop-finer-requantize"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {kRequantize}; }
  RuleDoc doc() const override {
    return {"A second, finer quantization that can say every value of the first changes none of them.",
            "%b : u16(s, z') = Requantize (%a : u8(m * s, z))",
            "uses of %b use %a",
            "all codes of %a for each pair of parameters (Requantize.FinerChangesNothing); ranges by Z3",
            {"drop-finer-requantize/integer-ratio", "drop-finer-requantize/no-saturation",
             "drop-finer-requantize/no-raw-reader"}};
  }
  MatchOr<Pair> Match(Node& node) const override {
    if (!IsRequantize(node)) return Refusal{};
    const std::optional<ScalarParams> a = ScalarOf(node.input(0)), b = ScalarOf(node.output());
    if (!a || !b || SameScalar(*a, *b)) return Refusal{};
    if (a->scale < b->scale) return Refusal{};  // the second is the coarser one
    const std::optional<std::int64_t> m = IntegerRatio(a->scale, b->scale);
    if (!Holds("drop-finer-requantize/integer-ratio", m.has_value())) {
      return Refusal{"the scales' ratio " + Text(static_cast<double>(a->scale) / b->scale) +
                     " is no integer: codes would move"};
    }
    const std::int64_t r = m.value_or(1);
    const std::int64_t low = (IntegerMin(a->storage) - a->zero) * r + b->zero;
    const std::int64_t high = (IntegerMax(a->storage) - a->zero) * r + b->zero;
    if (!Holds("drop-finer-requantize/no-saturation",
               low >= IntegerMin(b->storage) && high <= IntegerMax(b->storage))) {
      return Refusal{"the finer type ends at " + std::to_string(IntegerMin(b->storage)) + ".." +
                     std::to_string(IntegerMax(b->storage)) + ", the values reach " + std::to_string(low) + ".." +
                     std::to_string(high) + " there"};
    }
    if (!Holds("drop-finer-requantize/no-raw-reader", !HasRawReader(*node.output()))) {
      return Refusal{"the codes of '" + node.output()->name() + "' are read as integers"};
    }
    if (!Rewriter::CanBypass(node, *node.input(0))) return Refusal{"it gives a graph output its name"};
    return Pair{&node, node.input(0)};
  }
  void Apply(const Pair& match, Rewriter& rewriter) const override {
    const std::optional<QuantType> keep = match.from->type.quant;
    Value* from = match.from;
    rewriter.Bypass(*match.node, from);
    from->type.quant = keep;  // a graph output's type is taken over, its parameters are not
  }
};

class SkipFinerQuantizeRule final : public PatternRule<Pair> {
 public:
  std::string_view name() const override { return "quantize-once"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {kRequantize}; }
  RuleDoc doc() const override {
    return {"A fine quantization in front of a coarse one goes, if the ratio is odd and the ranges are nested.",
            "%a : u16(s, z) = Quantize %x;  %b : u8(m * s, z') = Requantize %a",
            "%b : u8(m * s, z') = Quantize %x",
            "thresholds: with m odd a fine code is never on a coarse tie, so the two differ only where x is on a tie "
            "(Requantize.OddRatioDiffersOnTiesOnly); ranges by Z3",
            {"quantize-once/odd-ratio", "quantize-once/nested-ranges"}};
  }
  MatchOr<Pair> Match(Node& node) const override {
    if (!IsRequantize(node)) return Refusal{};
    Value* first = node.input(0);
    const std::optional<ScalarParams> a = ScalarOf(first), b = ScalarOf(node.output());
    if (!a || !b || SameScalar(*a, *b) || first->producer() == nullptr ||
        !first->producer()->Is(kQuantize, kIrDomain)) {
      return Refusal{};
    }
    if (b->scale < a->scale) return Refusal{};
    const std::optional<std::int64_t> m = IntegerRatio(b->scale, a->scale);
    if (!Holds("quantize-once/odd-ratio", m && *m % 2 == 1)) {
      return Refusal{"the scales' ratio " + Text(static_cast<double>(b->scale) / a->scale) +
                     " is not an odd integer: 6 to 13 % of the codes would differ"};
    }
    // Half a coarse step beyond its last code everything saturates to that code in either way.
    const Range outer = RangeOf(*a), inner = RangeOf(*b);
    if (!Holds("quantize-once/nested-ranges", outer.low <= inner.low && outer.high >= inner.high)) {
      return Refusal{"the first range " + RangeText(outer) + " does not hold the second, " + RangeText(inner) +
                     ": up to 79 % of the codes would differ"};
    }
    return Pair{&node, first->producer()->input(0)};
  }
  void Apply(const Pair& match, Rewriter& rewriter) const override {
    Node* first = match.node->input(0)->producer();
    match.node->SetOp(std::string(kQuantize), std::string(kIrDomain));
    match.node->SetInput(0, match.from);
    rewriter.Touch(match.from);
    rewriter.Touch(match.node->output());
    rewriter.EraseIfDead(*first);
  }
};

class AbsorbRequantizeRule final : public PatternRule<Pair> {
 public:
  std::string_view name() const override { return "absorb-requantize"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {kRequantize}; }
  RuleDoc doc() const override {
    return {
        "An operator writes the parameters that its only reader wants, if the first range holds the second (its end "
        "may be a Relu): one rounding less.",
        "%a : u8(s, z) = Conv ...;  %b : u8(s', z') = Requantize %a",
        "%b : u8(s', z') = Conv ...",
        "one rounding of the same real number instead of two: |error| <= s'/2 instead of s/2 + s'/2 "
        "(Z3 over the integers, Requantize.AbsorbedErrorIsSmaller)",
        {"absorb-requantize/one-use", "absorb-requantize/nested-ranges"}};
  }
  MatchOr<Pair> Match(Node& node) const override {
    if (!IsRequantize(node)) return Refusal{};
    Value* first = node.input(0);
    if (!ScalarOf(first) || !ScalarOf(node.output()) || first->producer() == nullptr) return Refusal{};
    const Node& producer = *first->producer();
    if (producer.Is(kQuantize, kIrDomain)) {
      return Refusal{
          "the first quantization is of a float value and differs in range: intersecting the two changes "
          "16 to 79 % of the values"};
    }
    if (producer.domain() == kIrDomain) return Refusal{"it quantizes the output of " + producer.op() + " again"};
    const OpInfo& info = FindOp(producer);
    const bool computes = info.category == OpCategory::kWeighted || info.category == OpCategory::kMatMul ||
                          info.category == OpCategory::kElementwise || info.category == OpCategory::kActivation ||
                          info.category == OpCategory::kPool || info.category == OpCategory::kNormalization;
    if (!computes || info.value_preserving) {
      return Refusal{producer.op() + " moves codes: it cannot write other parameters than it reads"};
    }
    if (producer.form == QuantForm::kQLinear) return Refusal{Describe(producer) + " is in its integer form already"};
    if (!Holds("absorb-requantize/one-use", SoleUser(first) == &node)) {
      return Refusal{"the output of " + Describe(producer) + " has other uses"};
    }
    const ScalarParams a = *ScalarOf(first), b = *ScalarOf(node.output());
    const Range inner = RangeOf(b), outer = RangeOf(a);
    if (!Holds("absorb-requantize/nested-ranges", outer.low <= inner.low && outer.high >= inner.high)) {
      return Refusal{"the first range " + RangeText(outer) + " does not hold the second, " + RangeText(inner) +
                     ": what it cuts off, as a Relu does, would come back"};
    }
    return Pair{&node, first};
  }
  void Apply(const Pair& match, Rewriter& rewriter) const override {
    match.from->type.quant = match.node->output()->type.quant;
    rewriter.Touch(match.from);
    rewriter.Bypass(*match.node, match.from);
  }
};

}  // namespace

std::unique_ptr<Rule> DropRequantize() { return std::make_unique<DropRequantizeRule>(); }
std::unique_ptr<Rule> SkipFinerRequantize() { return std::make_unique<SkipFinerRequantizeRule>(); }
std::unique_ptr<Rule> SkipFinerQuantize() { return std::make_unique<SkipFinerQuantizeRule>(); }
std::unique_ptr<Rule> AbsorbRequantize() { return std::make_unique<AbsorbRequantizeRule>(); }

}  // namespace octavo
