// Operators whose kernels read parameters and compute element by element or over small windows.
#include <algorithm>

#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

class KernelRule : public PatternRule<Node*> {
 public:
  explicit KernelRule(const DeviceDescriptor& device) : device_(device) {}
  void Apply(Node* const& node, Rewriter&) const override { node->form = QuantForm::kQLinear; }

 protected:
  // Empty when all data inputs and the output are 8 bits per tensor of one type; a refusal else. `concerned` is false
  // where nothing is quantized.
  std::string OneType(std::string_view rule, const Node& node, bool& concerned) const {
    concerned = false;
    if (!node.domain().empty() || node.form == QuantForm::kQLinear || node.output() == nullptr) return {};
    const OpInfo& info = FindOp(node);
    std::vector<const Value*> values;
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      if (node.input(i) != nullptr && IsDataInput(info, i)) values.push_back(node.input(i));
    }
    concerned = std::any_of(values.begin(), values.end(), IsQuantized);
    if (!concerned) return {};
    if (FindIntegerKernel(device_, node.op(), KernelKind::kQLinear) == nullptr) {
      return "the device takes " + node.op() + " between Q and DQ";
    }
    const std::optional<ScalarParams> y = Scalar8(node.output());
    if (!y) return "its output is not quantized to 8 bits per tensor";
    for (const Value* v : values) {
      const std::optional<ScalarParams> x = Scalar8(v);
      if (!x) return "its input '" + v->name() + "' is not quantized to 8 bits per tensor";
      if (!Holds(std::string(rule) + "/one-type", x->storage == y->storage)) {
        return "its input '" + v->name() + "' has codes of type " + std::string(Name(x->storage)) +
               ", its output of type " + std::string(Name(y->storage)) + "; the kernel has one type for all";
      }
    }
    return {};
  }
  // Kernels that multiply by the scales' ratios in f32: steps of the inputs that are thousands of the output's would
  // cancel each other to less than they are rounded to, products of tiny scales would be zero, and results of 2^31
  // steps and more would get the other sign.
  static std::string Ratios(std::string_view rule, const Node& node) {
    constexpr double kLeast = 1.0 / 1024, kMost = 200;
    const double y = Scalar8(node.output())->scale;
    double product = 1;
    bool fits = true;
    std::string text;
    for (const Value* v : node.inputs()) {
      const std::optional<ScalarParams> x = Scalar8(v);
      if (!x) continue;
      product *= x->scale;
      if (node.Is("Mul")) continue;
      // Small addends are rounded alike; of a mean the runtime refuses ratios beyond its fixed point.
      fits = fits && x->scale <= kMost * y && (node.Is("Add") || x->scale >= kLeast * y);
      if (text.empty() && !fits) text = Text(x->scale) + " of its input '" + v->name() + "'";
    }
    if (node.Is("Mul")) {
      fits = product >= 1e-30 && product <= 1e30 && product / y >= 1e-30 && product / y <= 1e4;  // below 2^31 steps
      text = Text(product) + " of its products";
    }
    if (Holds(std::string(rule) + "/ratio", fits)) return {};
    return "the step " + text + " is too far from that of its output, " + Text(y) + ", for the kernel's arithmetic";
  }
  MatchOr<Node*> MatchOneType(std::string_view rule, Node& node) const {
    bool concerned = false;
    std::string why = OneType(rule, node, concerned);
    if (!concerned || !why.empty()) return Refusal{std::move(why)};
    return &node;
  }
  const DeviceDescriptor& device_;
};

class QLinearBinaryRule final : public KernelRule {
 public:
  using KernelRule::KernelRule;
  std::string_view name() const override { return "qlinear-binary"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"Add", "Mul"}; }
  RuleDoc doc() const override {
    return {"Addition and multiplication of codes.",
            "%y : u8 = Add (%a : u8), (%b : u8)",
            "%y_codes = QLinearAdd %a_codes, s_a, z_a, %b_codes, s_b, z_b, s_y, z_y",
            "all 65,536 pairs of codes for each of a set of parameters, against the QDQ form (Exhaustive.Binary)",
            {"qlinear-binary/one-type", "qlinear-binary/ratio"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    MatchOr<Node*> match = MatchOneType(name(), node);
    if (std::holds_alternative<Refusal>(match)) return match;
    if (std::string why = Ratios(name(), node); !why.empty()) return Refusal{std::move(why)};
    return match;
  }
};

class QLinearJoinRule final : public KernelRule {
 public:
  using KernelRule::KernelRule;
  std::string_view name() const override { return "qlinear-join"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"Concat", "Where"}; }
  RuleDoc doc() const override {
    return {"Concat and Where of different parameters: each input is requantized by a table.",
            "%y : u8(s, z) = Concat (%a : u8(s1, z1)), (%b : u8(s2, z2))",
            "%y_codes = QLinearConcat s, z, %a_codes, s1, z1, %b_codes, s2, z2",
            "all 256 codes of each input for each of a set of parameters (Exhaustive.Join)",
            {"qlinear-join/one-type"}};
  }
  MatchOr<Node*> Match(Node& node) const override { return MatchOneType(name(), node); }
};

class QLinearTableRule final : public KernelRule {
 public:
  using KernelRule::KernelRule;
  std::string_view name() const override { return "qlinear-table"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"LeakyRelu", "Sigmoid"}; }
  RuleDoc doc() const override {
    return {"LeakyRelu and Sigmoid of codes are tables of 256 entries.",
            "%y : u8 = Sigmoid (%x : u8)",
            "%y_codes = QLinearSigmoid %x_codes, s_x, z_x, s_y, z_y",
            "all 256 codes for each of a set of parameters, against the QDQ form (Exhaustive.Table)",
            {"qlinear-table/one-type"}};
  }
  MatchOr<Node*> Match(Node& node) const override { return MatchOneType(name(), node); }
};

class QLinearPoolRule final : public KernelRule {
 public:
  using KernelRule::KernelRule;
  std::string_view name() const override { return "qlinear-pool"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"AveragePool", "GlobalAveragePool"}; }
  RuleDoc doc() const override {
    return {"Average pooling of codes.",
            "%y : u8 = GlobalAveragePool (%x : u8)",
            "%y_codes = QLinearGlobalAveragePool %x_codes, s_x, z_x, s_y, z_y",
            "every sum that a window of 1 to 9 codes can have, for each of a set of parameters (Exhaustive.Pool)",
            {"qlinear-pool/one-type", "qlinear-pool/plain", "qlinear-pool/ratio"}};
  }
  MatchOr<Node*> Match(Node& node) const override {
    bool concerned = false;
    std::string why = OneType(name(), node, concerned);
    if (!concerned || !why.empty()) return Refusal{std::move(why)};
    const std::vector<std::int64_t>* dilations = node.IntsAttribute("dilations");
    const bool dilated = dilations != nullptr &&
                         std::any_of(dilations->begin(), dilations->end(), [](std::int64_t d) { return d != 1; });
    if (!Holds("qlinear-pool/plain", !dilated && node.IntAttribute("ceil_mode", 0) == 0)) {
      return Refusal{"its windows are dilated, or their number is rounded up: the integer kernel does neither"};
    }
    if (why = Ratios(name(), node); !why.empty()) return Refusal{std::move(why)};
    return &node;
  }
};

class QLinearSoftmaxRuleImpl final : public KernelRule {
 public:
  using KernelRule::KernelRule;
  std::string_view name() const override { return "qlinear-softmax"; }
  RuleClass rule_class() const override { return RuleClass::kLossy; }
  std::vector<std::string_view> roots() const override { return {"Softmax"}; }
  RuleDoc doc() const override {
    return {
        "Softmax of codes, by a table of exponentials.",
        "%y : u8 = Softmax (%x : u8)",
        "%y_codes = QLinearSoftmax %x_codes, s_x, z_x, s_y, z_y",
        "none: the kernel rounds its exponentials to integers, and no bound of it is known; so the class is lossy, and "
        "the rule runs only with --class lossy",
        {"qlinear-softmax/one-type"}};
  }
  MatchOr<Node*> Match(Node& node) const override { return MatchOneType(name(), node); }
};

}  // namespace

std::unique_ptr<Rule> QLinearBinary(const DeviceDescriptor& device) {
  return std::make_unique<QLinearBinaryRule>(device);
}
std::unique_ptr<Rule> QLinearJoin(const DeviceDescriptor& device) { return std::make_unique<QLinearJoinRule>(device); }
std::unique_ptr<Rule> QLinearTable(const DeviceDescriptor& device) {
  return std::make_unique<QLinearTableRule>(device);
}
std::unique_ptr<Rule> QLinearPool(const DeviceDescriptor& device) { return std::make_unique<QLinearPoolRule>(device); }
std::unique_ptr<Rule> QLinearSoftmaxRule(const DeviceDescriptor& device) {
  return std::make_unique<QLinearSoftmaxRuleImpl>(device);
}

}  // namespace octavo
