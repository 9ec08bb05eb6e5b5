#include "octavo/rewrite/rules/contrib.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

std::string Takes(const Node&) { return {}; }

// Before:  %y = com.microsoft::Gelu %x                  After:  %y = Gelu %x
//          %y = com.microsoft::BiasGelu %x, bias                %y = Gelu (Add %x, bias)
//          %y = com.microsoft::FastGelu %x, bias                %y = Gelu (Add %x, bias) {approximate="tanh"}
std::string NoBias(const Node& node) {
  const Value* bias = node.input(1);
  return bias == nullptr || HasDims(bias, {DimsOf(node.input(0)).back()}) ? "" : "its bias is not one number a column";
}

Value* WriteGelu(Speller& s, Node& node) {
  Value* x = node.input(0);
  if (node.input(1) != nullptr) x = s.Op("Add", {x, node.input(1)});
  Value* y = s.Op("Gelu", {x});
  if (node.Is("FastGelu", kContribDomain)) y->producer()->SetAttribute("approximate", std::string("tanh"));
  return y;
}

// Before:  %y = com.microsoft::QuickGelu %x {alpha=a}        After:  %y = Mul %x, (Sigmoid (Mul %x, a))
Value* WriteQuickGelu(Speller& s, Node& node) {
  const float alpha = node.FloatAttribute("alpha", 1.702f);
  Value* slope = alpha == 1 ? node.input(0) : s.Op("Mul", {node.input(0), s.Number(alpha)});
  return s.Op("Mul", {node.input(0), s.Op("Sigmoid", {slope})});
}

// Before:  %y = com.microsoft::FusedMatMul %a, %b {transB=1, alpha=c}
// After:   %y = Mul (MatMul %a, (Transpose %b)), c
std::string NoFusedMatMul(const Node& node) {
  if (node.IntAttribute("transBatchA", 0) != 0 || node.IntAttribute("transBatchB", 0) != 0) {
    return "it moves the first dimension of an operand behind the others";
  }
  if (node.IntAttribute("transA", 0) == 0 && node.IntAttribute("transB", 0) == 0) return {};
  for (const std::size_t i : {0, 1}) {  // beside a vector the runtime turns nothing around
    const std::optional<Dims> dims = StaticShape(node.input(i)->type);
    if (!dims || dims->size() < 2) return "it transposes an operand, and one of them is a vector";
  }
  return {};
}

// A matrix of the graph is turned around here, so that it stays a constant.
Value* Transposed(Speller& s, Node& node, Value* v) {
  const Dims dims = SwappedEnds(DimsOf(v));
  if (IsFloatConstant(v) && dims.size() == 2) {
    const std::vector<float> from = v->data->ToFloats();
    std::vector<float> to(from.size());
    const auto rows = static_cast<std::size_t>(dims[0]), columns = static_cast<std::size_t>(dims[1]);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < columns; ++c) to[r * columns + c] = from[c * rows + r];
    }
    return AddFloatConstant(*node.graph(), v->name() + "_transposed", v->data->dtype, dims, to);
  }
  Dims perm(dims.size());
  std::iota(perm.begin(), perm.end(), 0);
  Value* t = s.Op("Transpose", {v}, TypeOf(v->type.dtype, dims));
  t->producer()->SetAttribute("perm", SwappedEnds(perm));
  return t;
}

Value* WriteFusedMatMul(Speller& s, Node& node) {
  std::array<Value*, 2> operands = {node.input(0), node.input(1)};
  if (node.IntAttribute("transA", 0) != 0) operands[0] = Transposed(s, node, operands[0]);
  if (node.IntAttribute("transB", 0) != 0) operands[1] = Transposed(s, node, operands[1]);
  const Type type = node.output()->type;
  Value* product = s.Op("MatMul", {operands[0], operands[1]}, type);
  const float alpha = node.FloatAttribute("alpha", 1);
  return alpha == 1 ? product : s.Op("Mul", {product, s.Number(alpha)}, type);
}

// What the runtime's kernels of FusedConv and FusedGemm take as activation, and the parameters that each must have.
struct FusedActivation {
  std::string_view op;
  bool conv;  // FusedGemm has all but Clip
  std::array<std::string_view, 2> parameters;
  std::size_t count() const {
    return 2 - static_cast<std::size_t>(std::count(parameters.begin(), parameters.end(), ""));
  }
};
constexpr FusedActivation kFusedActivations[] = {
    {"Relu", true, {}},
    {"Tanh", true, {}},
    {"Sigmoid", true, {}},
    {"LeakyRelu", true, {"alpha", ""}},
    {"HardSigmoid", true, {"alpha", "beta"}},
    {"Clip", true, {"min", "max"}},
    {"Elu", false, {"alpha", ""}},
    {"Selu", false, {"alpha", "gamma"}},
    {"Softplus", false, {}},
    {"Softsign", false, {}},
    {"ThresholdedRelu", false, {"alpha", ""}},
};

const FusedActivation* ActivationOf(const Node& node) {
  const std::string op = node.StringAttribute("activation", "");
  for (const FusedActivation& a : kFusedActivations) {
    if (a.op == op && (node.op() == "FusedConv" ? a.conv : op != "Clip")) return &a;
  }
  return nullptr;
}

// FusedConv has its parameters in a list, FusedGemm each by name. Nothing where one is missing.
std::optional<std::vector<float>> ParametersOf(const Node& node, const FusedActivation& activation) {
  std::vector<float> parameters;
  if (node.op() == "FusedConv") {
    if (const Attribute* list = node.FindAttribute("activation_params")) {
      if (const auto* numbers = std::get_if<std::vector<float>>(&list->value)) parameters = *numbers;
    }
  } else {
    for (std::size_t i = 0; i < activation.count(); ++i) {
      const std::string name = "activation_" + std::string(activation.parameters[i]);
      if (node.FindAttribute(name) != nullptr) parameters.push_back(node.FloatAttribute(name, 0));
    }
  }
  if (parameters.size() != activation.count()) return std::nullopt;
  return parameters;
}

std::string NoFusedLayer(const Node& node) {
  if (node.FindAttribute("activation") != nullptr) {
    const FusedActivation* activation = ActivationOf(node);
    if (activation == nullptr) {
      return "its activation \"" + node.StringAttribute("activation", "") + "\" is none that the runtime has there";
    }
    if (!ParametersOf(node, *activation)) return "parameters of its activation are missing";
  }
  if (node.op() == "FusedConv" && node.input(3) != nullptr && !HasDims(node.input(3), DimsOf(node.output()))) {
    return "what is added to it has other dimensions than its result";
  }
  return {};
}

// Before:  %y = com.microsoft::FusedConv %x, w, b, %z {activation="LeakyRelu", activation_params=[a], pads=..}
// After:   %y = LeakyRelu (Add (Conv %x, w, b {pads=..}), %z) {alpha=a}
Value* WriteFusedLayer(Speller& s, Node& node) {
  const Type type = node.output()->type;
  std::vector<Value*> inputs(node.inputs().begin(), node.inputs().end());
  inputs.resize(std::min<std::size_t>(inputs.size(), 3));
  if (inputs.back() == nullptr) inputs.pop_back();
  const bool conv = node.op() == "FusedConv";
  Value* y = s.Op(conv ? "Conv" : "Gemm", inputs, type);
  for (const char* name :
       {"group", "alpha", "beta", "transA", "transB", "pads", "strides", "dilations", "kernel_shape", "auto_pad"}) {
    const Attribute* attribute = node.FindAttribute(name);
    if (attribute == nullptr) continue;
    if (const auto* i = std::get_if<std::int64_t>(&attribute->value)) y->producer()->SetAttribute(name, *i);
    if (const auto* f = std::get_if<float>(&attribute->value)) y->producer()->SetAttribute(name, *f);
    if (const auto* t = std::get_if<std::string>(&attribute->value)) y->producer()->SetAttribute(name, *t);
    if (const auto* l = node.IntsAttribute(name)) y->producer()->SetAttribute(name, *l);
  }
  if (conv && node.input(3) != nullptr) y = s.Op("Add", {y, node.input(3)}, type);
  if (node.FindAttribute("activation") == nullptr) return y;
  const FusedActivation& activation = *ActivationOf(node);
  const std::vector<float> parameters = *ParametersOf(node, activation);
  if (activation.op == "Clip") return s.Op("Clip", {y, s.Number(parameters[0]), s.Number(parameters[1])}, type);
  y = s.Op(activation.op, {y}, type);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    y->producer()->SetAttribute(std::string(activation.parameters[i]), parameters[i]);
  }
  return y;
}

constexpr ContribForm kFunctions[] = {
    {"Gelu", "spell-contrib-gelu", Takes, WriteGelu},
    {"BiasGelu", "spell-bias-gelu", NoBias, WriteGelu},
    {"FastGelu", "spell-fast-gelu", NoBias, WriteGelu},
    {"QuickGelu", "spell-quick-gelu", Takes, WriteQuickGelu},
    {"FusedMatMul", "spell-fused-matmul", NoFusedMatMul, WriteFusedMatMul},
    {"FusedGemm", "spell-fused-gemm", NoFusedLayer, WriteFusedLayer},
    {"FusedConv", "spell-fused-conv", NoFusedLayer, WriteFusedLayer},
};

// Improves: the same function; a factor that goes into a constant is rounded there.
class ContribRule final : public PatternRule<Node*> {
 public:
  explicit ContribRule(const ContribForm& form) : form_(form) {}
  std::string_view name() const override { return form_.rule; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {form_.op}; }

  MatchOr<Node*> Match(Node& node) const override {
    if (node.domain() != kContribDomain || node.input(0) == nullptr || node.output() == nullptr) return Refusal{};
    if (node.output()->type.dtype != DType::kF32) return Refusal{"its result is not f32"};
    for (const Value* v : {node.input(0), node.output()}) {
      const std::optional<Dims> dims = StaticShape(v->type);
      if (v->type.quant) return Refusal{"it is quantized"};
      if (!dims || dims->empty()) return Refusal{"its dimensions are not known"};
      if (ElementCount(*dims) == 0) return Refusal{"it has no elements"};
    }
    std::string refusal = form_.refusal(node);
    if (!refusal.empty()) return Refusal{std::move(refusal)};
    return &node;
  }

  void Apply(Node* const& match, Rewriter& rewriter) const override {
    Node& node = *match;
    Node* const before = node.prev();
    Speller speller(node, kOpset);
    Value* y = form_.write(speller, node);
    for (Node* n = before == nullptr ? node.graph()->first() : before->next(); n != &node; n = n->next()) {
      rewriter.Touch(n->output());
    }
    TakePlace(*y->producer(), node, rewriter);
  }

 private:
  static constexpr std::int64_t kOpset = 20;  // of Gelu
  const ContribForm& form_;
};

}  // namespace

std::span<const ContribForm> ContribFunctions() { return kFunctions; }

RuleSet ContribRules() {
  RuleSet rules;
  for (const std::span<const ContribForm> forms : {ContribFunctions(), ContribNorms(), ContribAttentions()}) {
    for (const ContribForm& form : forms) rules.push_back(std::make_unique<ContribRule>(form));
  }
  return rules;
}

}  // namespace octavo
