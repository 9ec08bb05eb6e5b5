#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

class BlockWeightsRule final : public PatternRule<Node*> {
 public:
  explicit BlockWeightsRule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "block-weights"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"MatMul", "Gather"}; }
  RuleDoc doc() const override {
    return {
        "Float activations times 4-bit weights in blocks: MatMulNBits (accuracy_level 0: nothing else is rounded); "
        "rows of a 4-bit table: GatherBlockQuantized.",
        "%y : f32 = MatMul (%a : f32), (%w : s4(axis=0, block=32))",
        "%y = MatMulNBits %a, %w_blocks, %scales {accuracy_level=0}",
        "the weights are the same numbers, code by code (Blocks.RepackingKeepsEveryCode); the float sum has another "
        "order and no further rounding",
        {"block-weights/blocks-along-the-sum", "block-weights/block-size"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty() || node.form == QuantForm::kQLinear || node.output() == nullptr) return Refusal{};
    const bool gather = node.Is("Gather");
    const Value* weight = node.input(gather ? 0 : 1);
    const Affine* w = AffineOf(weight);
    if (w == nullptr || w->block == 0 || !weight->is_constant() || !weight->data) return Refusal{};
    if (FindIntegerKernel(device_, node.op(), KernelKind::kBlocks) == nullptr) {
      return Refusal{"the device takes weights in blocks behind DequantizeLinear"};
    }
    if (IsQuantized(node.output()) || IsQuantized(node.input(gather ? 1 : 0))) {
      return Refusal{"its activations are quantized too: there is no kernel for both"};
    }
    const Value* a = node.input(0);
    if (!gather && a->type.dtype != DType::kF32) return Refusal{"its activations are not known to be f32"};
    if (weight->data->dims.size() != 2) {
      return Refusal{"its weight has " + std::to_string(weight->data->dims.size()) + " dimensions; the kernel takes 2"};
    }
    if (w->storage != DType::kS4 && w->storage != DType::kU4) {
      return Refusal{"its weight has codes of type " + std::string(Name(w->storage)) + "; the kernel takes 4 bits"};
    }
    for (const std::int64_t z : Zeros(*w)) {
      if (z != (w->storage == DType::kU4 ? 8 : 0))
        return Refusal{"a block has a zero point other than the middle code"};
    }
    const std::int64_t axis = gather ? 1 : 0;
    if (!Holds("block-weights/blocks-along-the-sum", *w->axis == axis)) {
      return Refusal{"its blocks run along axis " + std::to_string(*w->axis) + ", the kernel's along axis " +
                     std::to_string(axis)};
    }
    if (gather && node.IntAttribute("axis", 0) != 0) return Refusal{"it does not gather whole rows"};
    const std::int64_t length = weight->data->dims[static_cast<std::size_t>(axis)];
    if (!Holds("block-weights/block-size", w->block >= 16 && (w->block & (w->block - 1)) == 0)) {
      return Refusal{"blocks of " + std::to_string(w->block) + "; the kernel takes powers of two from 16 on"};
    }
    if (length % 2 != 0) return Refusal{"rows of " + std::to_string(length) + " 4-bit codes are no whole bytes"};
    return &node;
  }
  void Apply(Node* const& node, Rewriter&) const override { node->form = QuantForm::kQLinear; }

 private:
  const DeviceDescriptor& device_;
};

}  // namespace

std::unique_ptr<Rule> BlockWeights(const DeviceDescriptor& device) {
  return std::make_unique<BlockWeightsRule>(device);
}

}  // namespace octavo
