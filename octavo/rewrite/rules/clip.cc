#include "octavo/emit/clip_codes.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

bool IsClip(const Node& node) { return (node.Is("Relu") || node.Is("Clip")) && node.output() != nullptr; }

// Before:  %c : f32 = Conv ...                 After:  %c : u8(s, z) = Conv ...
//          %y : u8(s, z) = Relu %c                     %y : u8(s, z) = Relu %c
class QuantizeBeforeClipRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "quantize-before-clip"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Relu", "Clip"}; }
  RuleDoc doc() const override {
    return {
        "A layer in front of a Relu or Clip writes the codes itself, so that its integer kernel applies.",
        "%c : f32 = Conv ...;  %y : u8(s, z) = Relu %c",
        "%c : u8(s, z) = Conv ...;  %y : u8(s, z) = Relu %c",
        "quantization is monotone: q(clip(x)) == clip(q(x), q(low), q(high)); shown at every step threshold and its "
        "neighbours for all zero points (Clip.EveryThreshold)",
        {"quantize-before-clip/one-use"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!IsClip(node)) return Refusal{};
    if (std::optional<Refusal> refusal = MatchQuantizeBefore(name(), node)) return *refusal;
    return &node;
  }
  void Apply(Node* const& node, Rewriter& rewriter) const override { QuantizeBefore(*node, rewriter); }
};

class DropClipRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "drop-clip"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Relu", "Clip"}; }
  RuleDoc doc() const override {
    return {"A Relu or Clip goes where the range of the codes does the same.",
            "%c : u8(s, 0) = Conv ...;  %y : u8(s, 0) = Relu %c",
            "%y : u8(s, 0) = Conv ...",
            "all 256 codes for every zero point and bounds around both ends (Clip.DropIsExactOnEveryCode)",
            {"drop-clip/same-parameters", "drop-clip/bounds-outside-codes"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!IsClip(node) || node.form == QuantForm::kQLinear) return Refusal{};
    const std::optional<ScalarParams> in = ScalarOf(node.input(0)), out = ScalarOf(node.output());
    if (!in || !out) return Refusal{};
    if (!Holds("drop-clip/same-parameters", SameScalar(*in, *out))) {
      return Refusal{"it reads " + Text(*in) + " and writes " + Text(*out)};
    }
    const std::optional<ClipCodes> codes = ClipCodesOf(node, out->scale, out->zero, out->storage);
    if (!codes) return Refusal{"its bounds are computed, crossed or not numbers"};
    if (!Holds("drop-clip/bounds-outside-codes",
               codes->low <= IntegerMin(out->storage) && codes->high >= IntegerMax(out->storage))) {
      return Refusal{"its bounds are the codes " + std::to_string(codes->low) + ".." + std::to_string(codes->high) +
                     ": they clip something"};
    }
    if (!Rewriter::CanBypass(node, *node.input(0))) return Refusal{"it gives a graph output its name"};
    return &node;
  }
  void Apply(Node* const& node, Rewriter& rewriter) const override { rewriter.Bypass(*node, node->input(0)); }
};

class IntegerClipRule final : public PatternRule<Node*> {
 public:
  IntegerClipRule(const DeviceDescriptor& device, std::int64_t opset) : device_(device), opset_(opset) {}
  std::string_view name() const override { return "integer-clip"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Relu", "Clip"}; }
  RuleDoc doc() const override {
    return {"A Relu or Clip that clips something runs on the codes, with the codes of its bounds.",
            "%y : u8(s, z) = Relu (%x : u8(s, z))",
            "%y_codes = Clip %x_codes, z",
            "all 256 codes for every zero point and bounds on, between and beyond the codes "
            "(Clip.IntegerIsExactOnEveryCode)",
            {"integer-clip/same-parameters"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!IsClip(node) || node.form == QuantForm::kQLinear) return Refusal{};
    const std::optional<ScalarParams> in = ScalarOf(node.input(0)), out = ScalarOf(node.output());
    if (!in || !out) return Refusal{};
    const IntegerKernel* kernel = FindIntegerKernel(device_, node.op(), KernelKind::kOnCodes);
    if (kernel == nullptr || !TakesCodes(*kernel, in->storage)) {
      return Refusal{"the device has no integer Clip for " + std::string(Name(in->storage))};
    }
    if (opset_ < kernel->opset) {
      return Refusal{node.op() + " takes integers from operator set " + std::to_string(kernel->opset) +
                     " on; the model has " + std::to_string(opset_)};
    }
    if (!Holds("integer-clip/same-parameters", SameScalar(*in, *out))) {
      return Refusal{"it reads " + Text(*in) + " and writes " + Text(*out)};
    }
    if (!ClipCodesOf(node, out->scale, out->zero, out->storage))
      return Refusal{"its bounds are computed, crossed or not numbers"};
    return &node;
  }
  void Apply(Node* const& node, Rewriter&) const override { node->form = QuantForm::kQLinear; }

 private:
  const DeviceDescriptor& device_;
  const std::int64_t opset_;
};

}  // namespace

std::unique_ptr<Rule> QuantizeBeforeClip() { return std::make_unique<QuantizeBeforeClipRule>(); }
std::unique_ptr<Rule> DropClip() { return std::make_unique<DropClipRule>(); }
std::unique_ptr<Rule> IntegerClip(const DeviceDescriptor& device, std::int64_t opset) {
  return std::make_unique<IntegerClipRule>(device, opset);
}

}  // namespace octavo
