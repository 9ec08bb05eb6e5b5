#include <algorithm>
#include <cmath>

#include "octavo/numerics/affine.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

constexpr std::string_view kMoves[] = {"Reshape",   "Transpose", "Flatten",        "Squeeze",     "Unsqueeze",
                                       "Gather",    "GatherND",  "GatherElements", "Slice",       "Expand",
                                       "Tile",      "Identity",  "Split",          "MaxPool",     "ReduceMax",
                                       "ReduceMin", "Resize",    "DepthToSpace",   "SpaceToDepth"};

std::vector<std::string_view> Moves() { return {std::begin(kMoves), std::end(kMoves)}; }

// Whether the node only moves or selects elements of its first input; else why not.
std::string OnlyMoves(const Node& node) {
  if (node.Is("Resize") && node.StringAttribute("mode", "nearest") != "nearest") {
    return "it interpolates: its results lie between the codes";
  }
  if (node.Is("Resize") && node.StringAttribute("coordinate_transformation_mode", "") == "tf_crop_and_resize") {
    return "it may write extrapolation_value";
  }
  if (node.Is("MaxPool") && node.output(1) != nullptr) return "its indices are used";
  return {};
}

class QuantizeBeforeMoveRule final : public PatternRule<Node*> {
 public:
  std::string_view name() const override { return "quantize-before-move"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return Moves(); }
  RuleDoc doc() const override {
    return {"A layer in front of data movement writes the codes itself.",
            "%c : f32 = MatMul ...;  %y : u8(s, z) = Reshape %c",
            "%c : u8(s, z) = MatMul ...;  %y : u8(s, z) = Reshape %c",
            "element by element the same float is quantized with the same parameters; MaxPool, ReduceMax and ReduceMin "
            "commute with a monotone map (Move.CommutesWithQuantization)",
            {"quantize-before-move/one-use", "quantize-before-move/only-moves"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty()) return Refusal{};
    if (std::optional<Refusal> refusal = MatchQuantizeBefore(name(), node)) return *refusal;
    const std::string why = OnlyMoves(node);
    if (!Holds("quantize-before-move/only-moves", why.empty())) return Refusal{why};
    return &node;
  }
  void Apply(Node* const& node, Rewriter& rewriter) const override { QuantizeBefore(*node, rewriter); }
};

class MoveCodesRule final : public PatternRule<Node*> {
 public:
  MoveCodesRule(const DeviceDescriptor& device, std::int64_t opset) : device_(device), opset_(opset) {}
  std::string_view name() const override { return "move-codes"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return Moves(); }
  RuleDoc doc() const override {
    return {"Data movement, MaxPool, ReduceMax, ReduceMin and nearest Resize run on the codes.",
            "%y : u8(s, z) = Transpose (%x : u8(s, z))",
            "%y_codes = Transpose %x_codes",
            "equal parameters: quantizing (q - z) * s gives q for all codes, and the map is monotone for what selects "
            "(Requantize.EveryCodeComesBack, Move.CommutesWithQuantization)",
            {"move-codes/same-parameters", "move-codes/only-moves"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty() || node.form == QuantForm::kQLinear) return Refusal{};
    const Value* x = node.input(0);
    const bool any = IsQuantized(x) && std::any_of(node.outputs().begin(), node.outputs().end(), IsQuantized);
    if (!any || x->is_constant()) return Refusal{};
    const std::optional<ScalarParams> in = ScalarOf(x);
    if (!in) return Refusal{"its input has one scale an index: they would have to move with the codes"};
    const IntegerKernel* kernel = FindIntegerKernel(device_, node.op(), KernelKind::kOnCodes);
    if (kernel == nullptr || !TakesCodes(*kernel, in->storage)) {
      return Refusal{"the device has no " + node.op() + " for " + std::string(Name(in->storage))};
    }
    if (opset_ < kernel->opset) {
      return Refusal{node.op() + " takes integers from operator set " + std::to_string(kernel->opset) +
                     " on; the model has " + std::to_string(opset_)};
    }
    if (const std::string why = OnlyMoves(node); !Holds("move-codes/only-moves", why.empty())) return Refusal{why};
    for (const Value* y : node.outputs()) {
      if (y == nullptr) continue;
      const std::optional<ScalarParams> out = ScalarOf(y);
      if (!out) return Refusal{"its output '" + y->name() + "' is float"};
      if (!Holds("move-codes/same-parameters", SameScalar(*in, *out))) {
        return Refusal{"it reads " + Text(*in) + " and writes " + Text(*out) + ": the codes are not the same"};
      }
    }
    return &node;
  }
  void Apply(Node* const& node, Rewriter&) const override { node->form = QuantForm::kQLinear; }

 private:
  const DeviceDescriptor& device_;
  const std::int64_t opset_;
};

// Concat and Where of equal parameters.
class JoinCodesRule final : public PatternRule<Node*> {
 public:
  explicit JoinCodesRule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "join-codes"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Concat", "Where"}; }
  RuleDoc doc() const override {
    return {"Concat and Where run on the codes when all their inputs and the output share their parameters.",
            "%y : u8(s, z) = Concat (%a : u8(s, z)), (%b : u8(s, z))",
            "%y_codes = Concat %a_codes, %b_codes",
            "as move-codes: every code comes back (Requantize.EveryCodeComesBack)",
            {"join-codes/same-parameters"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty() || node.form == QuantForm::kQLinear) return Refusal{};
    const std::optional<ScalarParams> out = ScalarOf(node.output());
    if (!out) return Refusal{};
    const IntegerKernel* kernel = FindIntegerKernel(device_, node.op(), KernelKind::kOnCodes);
    if (kernel == nullptr || !TakesCodes(*kernel, out->storage)) {
      return Refusal{"the device has no " + node.op() + " for " + std::string(Name(out->storage))};
    }
    const OpInfo& info = FindOp(node);
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      if (!IsDataInput(info, i)) continue;
      const std::optional<ScalarParams> in = ScalarOf(node.input(i));
      if (!in) return Refusal{"input " + std::to_string(i) + " is not quantized per tensor"};
      if (!Holds("join-codes/same-parameters", SameScalar(*in, *out))) {
        return Refusal{"input " + std::to_string(i) + " is " + Text(*in) + ", the output " + Text(*out)};
      }
    }
    return &node;
  }
  void Apply(Node* const& node, Rewriter&) const override { node->form = QuantForm::kQLinear; }

 private:
  const DeviceDescriptor& device_;
};

class IntegerPadRule final : public PatternRule<Node*> {
 public:
  explicit IntegerPadRule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "integer-pad"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Pad"}; }
  RuleDoc doc() const override {
    return {"Pad runs on the codes; a constant pads with its code.",
            "%y : u8(s, z) = Pad (%x : u8(s, z)), %pads",
            "%y_codes = Pad %x_codes, %pads, z",
            "every code comes back, and the constant's code is what quantizing it gives (Pad.EveryConstant)",
            {"integer-pad/same-parameters"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    if (!node.domain().empty() || node.form == QuantForm::kQLinear) return Refusal{};
    const std::optional<ScalarParams> in = ScalarOf(node.input(0)), out = ScalarOf(node.output());
    if (!in || !out) return Refusal{};
    if (node.inputs().size() < 2) return Refusal{"its padding is an attribute (operator set 10 or older)"};
    const IntegerKernel* kernel = FindIntegerKernel(device_, node.op(), KernelKind::kOnCodes);
    if (kernel == nullptr || !TakesCodes(*kernel, in->storage)) {
      return Refusal{"the device has no Pad for " + std::string(Name(in->storage))};
    }
    if (!Holds("integer-pad/same-parameters", SameScalar(*in, *out))) {
      return Refusal{"it reads " + Text(*in) + " and writes " + Text(*out)};
    }
    const Value* v = node.input(2);
    if (v != nullptr && node.StringAttribute("mode", "constant") == "constant") {
      const bool plain =
          v->is_constant() && v->data && v->data->elements() == 1 &&
          (v->type.quant ? ScalarOf(v).has_value() && SameScalar(*ScalarOf(v), *in) : v->data->dtype == DType::kF32);
      if (!plain) return Refusal{"its constant is computed, or has parameters of its own"};
      if (!v->type.quant && std::isnan(v->data->ToFloats()[0])) return Refusal{"it pads with NaN, which has no code"};
    }
    return &node;
  }
  void Apply(Node* const& node, Rewriter&) const override { node->form = QuantForm::kQLinear; }

 private:
  const DeviceDescriptor& device_;
};

}  // namespace

std::unique_ptr<Rule> QuantizeBeforeMove() { return std::make_unique<QuantizeBeforeMoveRule>(); }
std::unique_ptr<Rule> MoveCodes(const DeviceDescriptor& device, std::int64_t opset) {
  return std::make_unique<MoveCodesRule>(device, opset);
}
std::unique_ptr<Rule> JoinCodes(const DeviceDescriptor& device) { return std::make_unique<JoinCodesRule>(device); }
std::unique_ptr<Rule> IntegerPad(const DeviceDescriptor& device) { return std::make_unique<IntegerPadRule>(device); }

}  // namespace octavo
