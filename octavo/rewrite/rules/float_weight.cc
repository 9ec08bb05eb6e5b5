#include "octavo/numerics/affine.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

struct ReadApart {
  Node* node = nullptr;
  std::size_t input = 0;  // with scales that the runtime would misread
  bool constant = false;  // it becomes one of floats
};

// Before:  %y = Conv %x, (%w : u8(axis=1))     After:  %y = Conv %x, (%w : f32 constant)
class FloatWeightRule final : public PatternRule<ReadApart> {
 public:
  explicit FloatWeightRule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "float-weight"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override {
    return {"Conv", "MatMul", "Gemm", "Add", "Mul", "Concat", "Where"};
  }
  RuleDoc doc() const override {
    return {
        "A weight with scales along another axis than the output channels becomes float, where the runtime would "
        "fuse its DequantizeLinear without looking at the axis and compute nonsense (of a matrix product: is "
        "dequantized when it runs, as float sums of a packed constant have another order); so does a constant with "
        "scales along an axis of a sum, a product, Concat or Where, which the runtime would refuse to load.",
        "%y = Conv (%x : u8), (%w : u8(axis=1))",
        "%m = Max (%x : u8);  %y = Conv %m, (%w : f32)   (the numbers that DequantizeLinear gives; Max of one operand "
        "changes nothing, and keeps the runtime from quantizing the float weight by itself)",
        "all codes of the weight: DequantizeOne is the operator's arithmetic (FloatWeight.SameBitsAsTheRuntime, "
        "FloatWeight.RowsOfAProductAndScalesOfASum)",
        {"float-weight/one-axis"}};
  }

  MatchOr<ReadApart> Match(Node& node) const override {
    if (!IgnoresWeightAxis(device_) || !node.domain().empty() || node.form == QuantForm::kQLinear) return Refusal{};
    const bool conv = node.Is("Conv"), product = node.Is("MatMul") || node.Is("Gemm");
    if (!conv && !product) return MatchOperand(node);
    const Value* weight = node.input(1);
    const Affine* w = AffineOf(weight);
    if (w == nullptr || !w->axis) return Refusal{};
    const std::size_t rank = weight->type.shape ? weight->type.shape->size() : 0;
    const std::optional<std::int64_t> axis = ResolveAxis(FindOp(node).channel_axis, node, rank);
    if (axis && *axis == *w->axis) return Refusal{};
    if (!Holds("float-weight/one-axis", w->block == 0)) {
      return Refusal{"its weight has a scale for each block of " + std::to_string(w->block) +
                     ": the runtime does look where those lie"};
    }
    if (!weight->is_constant() || !weight->data || BitWidth(w->storage) > 16) {
      return Refusal{"its weight is computed and has scales along axis " + std::to_string(*w->axis) +
                     ": the runtime may fuse it wrongly"};
    }
    return ReadApart{&node, 1, conv};
  }

  void Apply(const ReadApart& match, Rewriter& rewriter) const override {
    Node* node = match.node;
    if (match.constant) {
      rewriter.ReplaceConstant(*node, match.input, Numbers(*node->input(match.input)));
    } else {
      Read(*node, match.input, rewriter);
    }
    // Between Q and DQ the runtime would round the float weight to one scale for all.
    const bool layer = node->Is("Conv") || node->Is("MatMul") || node->Is("Gemm");
    if (layer && IsQuantized(node->input(0))) Read(*node, 0, rewriter);
  }

 private:
  // Of what is computed element by element: a constant with scales along an axis.
  static MatchOr<ReadApart> MatchOperand(Node& node) {
    if (!IsQuantized(node.output())) return Refusal{};
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      const Value* v = node.input(i);
      const Affine* a = AffineOf(v);
      if (a == nullptr || !a->axis || a->block != 0 || BitWidth(a->storage) > 16) continue;
      if (!v->is_constant() || !v->data) {
        return Refusal{"its input " + std::to_string(i) + " is computed and has scales along axis " +
                       std::to_string(*a->axis) + ": the runtime may refuse to load it"};
      }
      return ReadApart{&node, i, true};
    }
    return Refusal{};
  }

  // What DequantizeLinear makes of a constant with scales along an axis.
  static TensorRef Numbers(const Value& constant) {
    const Affine& affine = constant.type.quant->affine;
    const TensorRef& data = *constant.data;
    const std::vector<float> scales = Scales(affine);
    const std::vector<std::int64_t> zeros = Zeros(affine);
    const std::vector<std::int64_t> codes = data.ToInts();
    std::size_t inner = 1;
    for (std::size_t i = static_cast<std::size_t>(*affine.axis) + 1; i < data.dims.size(); ++i) {
      inner *= static_cast<std::size_t>(data.dims[i]);
    }
    std::vector<float> values(codes.size());
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const std::size_t c = i / inner % scales.size();
      values[i] = DequantizeOne(static_cast<std::int32_t>(codes[i]), scales[c], static_cast<std::int32_t>(zeros[c]));
    }
    return TensorRef::FromFloats(data.dims, values);
  }

  // The node reads its input through a Max of one operand.
  static void Read(Node& node, std::size_t input, Rewriter& rewriter) {
    Value* x = node.input(input);
    Type type = x->type;
    type.quant.reset();
    node.SetInput(input, node.graph()->AddNode("Max", "", {x}, {{x->name() + "_read", type}}, &node)->output());
    rewriter.Touch(x);
  }

  const DeviceDescriptor& device_;
};

}  // namespace

std::unique_ptr<Rule> FloatWeight(const DeviceDescriptor& device) { return std::make_unique<FloatWeightRule>(device); }

}  // namespace octavo
