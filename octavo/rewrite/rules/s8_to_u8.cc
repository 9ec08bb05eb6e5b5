#include <algorithm>

#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

bool HasRawReader(const Value& v) {
  return std::any_of(v.uses().begin(), v.uses().end(),
                     [](const Use& use) { return use.node->Is(kStorageCast, kIrDomain); });
}

struct Values {
  std::vector<Value*> values;
};

class S8ToU8Rule final : public PatternRule<Values> {
 public:
  explicit S8ToU8Rule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "s8-to-u8"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"*"}; }
  RuleDoc doc() const override {
    return {"Signed 8-bit activations become unsigned where the device's kernels for them are wrong or slow.",
            "%y : s8(s, z) = Op ...",
            "%y : u8(s, z + 128) = Op ...   (the same numbers)",
            "all 256 codes and every zero point: rne(x/s)+z saturates at the same x (S8ToU8.EveryCodeAndZeroPoint)",
            {"s8-to-u8/no-raw-reader"}};
  }

  MatchOr<Values> Match(Node& node) const override {
    if (device_.activation8 != DType::kU8 || !SaturatesU8S8(device_)) return Refusal{};
    Values found;
    std::string why;
    for (Value* v : node.outputs()) {
      const std::optional<ScalarParams> p = Scalar8(v);
      if (!p || p->storage != DType::kS8) continue;
      if (!Holds("s8-to-u8/no-raw-reader", !HasRawReader(*v) && !node.Is(kStorageCast, kIrDomain))) {
        why = "the codes of '" + v->name() + "' are read as integers";
      } else if (node.form == QuantForm::kQLinear ||
                 std::any_of(v->uses().begin(), v->uses().end(),
                             [](const Use& use) { return use.node->form == QuantForm::kQLinear; })) {
        why = "'" + v->name() + "' belongs to an operator that is in its integer form already";
      } else {
        found.values.push_back(v);
      }
    }
    if (found.values.empty()) return Refusal{why};
    return found;
  }

  void Apply(const Values& match, Rewriter& rewriter) const override {
    for (Value* v : match.values) {
      ScalarParams p = *Scalar8(v);
      p.storage = DType::kU8;
      p.zero += 128;
      v->type.quant = ToQuantType(p);
      rewriter.Touch(v);
    }
  }

 private:
  const DeviceDescriptor& device_;
};

class S8WeightToU8Rule final : public PatternRule<Value*> {
 public:
  explicit S8WeightToU8Rule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "s8-weight-to-u8"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Conv", "MatMul", "Gemm"}; }
  RuleDoc doc() const override {
    return {"Signed weights become unsigned where u8 times s8 saturates (x86 without VNNI), in the QDQ form as well.",
            "%w : s8(s, z) = constant codes",
            "%w : u8(s, z + 128) = constant codes ^ 0x80   (the same numbers)",
            "all 256 codes: (q ^ 0x80) - (z + 128) == q - z (S8ToU8.EveryCodeAndZeroPoint)",
            {"s8-weight-to-u8/no-raw-reader"}};
  }

  MatchOr<Value*> Match(Node& node) const override {
    if (!SaturatesU8S8(device_) || !node.domain().empty()) return Refusal{};
    const std::optional<ScalarParams> x = Scalar8(node.input(0));
    Value* weight = node.input(1);
    const Affine* w = AffineOf(weight);
    if (!x || x->storage != DType::kU8 || w == nullptr || w->storage != DType::kS8 || w->block != 0) return Refusal{};
    if (!weight->is_constant() || !weight->data) return Refusal{};
    if (!Holds("s8-weight-to-u8/no-raw-reader", !HasRawReader(*weight))) {
      return Refusal{"the codes of '" + weight->name() + "' are read as integers"};
    }
    for (const Use& use : weight->uses()) {
      // An integer layer that reads u8 takes either type; anything else was chosen for s8.
      const Node& user = *use.node;
      const bool layer = user.Is("Conv") || user.Is("MatMul") || user.Is("Gemm");
      const std::optional<ScalarParams> beside = Scalar8(user.input(0));
      if (user.form == QuantForm::kQLinear && !(layer && use.index == 1 && beside && beside->storage == DType::kU8)) {
        return Refusal{"'" + weight->name() + "' belongs to an operator that is in its integer form already"};
      }
    }
    return weight;
  }

  void Apply(Value* const& weight, Rewriter& rewriter) const override {
    Affine& affine = weight->type.quant->affine;
    std::vector<std::int64_t> zeros = Zeros(affine);
    for (std::int64_t& z : zeros) z += 128;
    affine.storage = DType::kU8;
    affine.zero_point = TensorRef::FromInts(DType::kU8, affine.scale.dims, zeros);
    weight->data = InOtherSign(*weight->data);
    rewriter.Touch(weight);
  }

 private:
  const DeviceDescriptor& device_;
};

// Products of codes whose activations' parameters are computed, so that nothing is folded.
class S8SumsToU8Rule final : public PatternRule<Node*> {
 public:
  explicit S8SumsToU8Rule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "s8-sums-to-u8"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"ConvInteger", "MatMulInteger"}; }
  RuleDoc doc() const override {
    return {"Signed constant weights of integer products become unsigned where u8 times s8 saturates.",
            "%i = ConvInteger (%q : u8), %w : s8, %z, z_w",
            "%i = ConvInteger (%q : u8), %w ^ 0x80 : u8, %z, z_w + 128   (the same sums)",
            "all 256 codes: (q ^ 0x80) - (z + 128) == q - z, and sums of equal integers are equal "
            "(S8ToU8.EveryCodeAndZeroPoint, S8SumsToU8.SameSums)",
            {"s8-sums-to-u8/signed-weight"}};
  }

  MatchOr<Node*> Match(Node& node) const override {
    const Value *x = node.input(0), *w = node.input(1), *zero = node.input(3);
    if (!SaturatesU8S8(device_) || !node.domain().empty() || x == nullptr || w == nullptr) return Refusal{};
    if (w->type.quant || x->type.dtype != DType::kU8) return Refusal{};
    if (!Holds("s8-sums-to-u8/signed-weight", w->type.dtype == DType::kS8)) {
      return Refusal{"its weight is unsigned: there is nothing to turn"};
    }
    if (!w->is_constant() || !w->data) return Refusal{"its right operand is computed: u8 times s8 stays"};
    if (zero != nullptr && (!zero->is_constant() || !zero->data || zero->data->dtype != w->data->dtype)) {
      return Refusal{"the zero point of its weight is computed: u8 times s8 stays"};
    }
    return &node;
  }

  void Apply(Node* const& node, Rewriter& rewriter) const override {
    rewriter.ReplaceConstant(*node, 1, InOtherSign(*node->input(1)->data));
    const Value* zero = node->input(3);
    const std::int64_t middle = 128;
    TensorRef number = zero != nullptr ? InOtherSign(*zero->data) : TensorRef::FromInts(DType::kU8, {}, {&middle, 1});
    if (zero != nullptr) {
      rewriter.ReplaceConstant(*node, 3, std::move(number));
    } else {
      node->SetInput(3, node->graph()->AddConstant(node->input(1)->name() + "_zero_point", std::move(number)));
      rewriter.Touch(node);
    }
  }

 private:
  const DeviceDescriptor& device_;
};

}  // namespace

std::unique_ptr<Rule> S8SumsToU8(const DeviceDescriptor& device) { return std::make_unique<S8SumsToU8Rule>(device); }
std::unique_ptr<Rule> S8ToU8(const DeviceDescriptor& device) { return std::make_unique<S8ToU8Rule>(device); }
std::unique_ptr<Rule> S8WeightToU8(const DeviceDescriptor& device) {
  return std::make_unique<S8WeightToU8Rule>(device);
}

}  // namespace octavo
