#include <cmath>

#include "octavo/rewrite/rules/linear.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

// y = a * x + b a channel (ONNX BatchNormalization, inference): a = scale / sqrt(var + epsilon), b = B - mean * a.
struct Affine1 {
  std::vector<double> a, b;
};

MatchOr<Affine1> ReadBatchNorm(const Node& node) {
  if (!node.domain().empty() || node.inputs().size() < 5 || node.input(0) == nullptr || node.output() == nullptr) {
    return Refusal{};
  }
  if (node.IntAttribute("training_mode", 0) != 0) return Refusal{"it is in training mode"};
  if (node.IntAttribute("spatial", 1) == 0) return Refusal{"spatial = 0: statistics are per position"};
  for (std::size_t i = 1; i < node.outputs().size(); ++i) {
    if (node.output(i) != nullptr && !node.output(i)->dead()) return Refusal{"its statistics outputs are used"};
  }
  std::vector<std::vector<double>> params;
  for (std::size_t i = 1; i < 5; ++i) {
    if (!IsFloatConstant(node.input(i))) return Refusal{"parameter " + std::to_string(i) + " is not an f32 constant"};
    params.push_back(ToDoubles(*node.input(i)->data));
    if (params.back().size() != params[0].size()) return Refusal{"its parameters differ in length"};
  }
  if (node.input(0)->type.quant.has_value() || node.output()->type.quant.has_value()) {
    return Refusal{"its input or output is quantized"};
  }
  const double epsilon = static_cast<double>(node.FloatAttribute("epsilon", 1e-5f));
  Affine1 affine;
  for (std::size_t c = 0; c < params[0].size(); ++c) {
    const double a = params[0][c] / std::sqrt(params[3][c] + epsilon);
    const double b = params[1][c] - params[2][c] * a;
    if (!std::isfinite(a) || !std::isfinite(b)) return Refusal{"channel " + std::to_string(c) + " has no finite scale"};
    affine.a.push_back(a);
    affine.b.push_back(b);
  }
  if (affine.a.empty()) return Refusal{"it has no channels"};
  return affine;
}

struct Fold {
  Node* node;
  LinearLayer layer;
  Affine1 affine;
};

// Before:  %c = Conv %x, %w, %b                        After:  %y = Conv %x, a * %w, a * %b + shift
//          %y = BatchNormalization %c, scale, B, mean, var     a = scale / sqrt(var + eps), shift = B - mean * a
// Improves: one rounding of each weight instead of one of each activation. Also ConvTranspose and Gemm.
class FoldBatchNormRule final : public PatternRule<Fold> {
 public:
  std::string_view name() const override { return "fold-batchnorm"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"BatchNormalization"}; }

  MatchOr<Fold> Match(Node& node) const override {
    MatchOr<Affine1> affine = ReadBatchNorm(node);
    if (auto* refusal = std::get_if<Refusal>(&affine)) return *refusal;
    MatchOr<LinearLayer> layer = MatchLinearLayer(node.input(0), true);
    if (auto* refusal = std::get_if<Refusal>(&layer)) return *refusal;
    Fold fold{&node, std::get<LinearLayer>(layer), std::move(std::get<Affine1>(affine))};
    if (fold.layer.channels != static_cast<std::int64_t>(fold.affine.a.size())) {
      return Refusal{"it has " + std::to_string(fold.affine.a.size()) + " channels, the layer before it " +
                     std::to_string(fold.layer.channels)};
    }
    if (!Rewriter::CanBypass(node, *node.input(0))) return Refusal{"it gives a graph output its name"};
    return fold;
  }

  void Apply(const Fold& match, Rewriter& rewriter) const override {
    ScaleAndShift(match.layer, match.affine.a, match.affine.b, rewriter);
    rewriter.Bypass(*match.node, match.node->input(0));
  }
};

struct Split {
  Node* node;
  Affine1 affine;
  Dims dims;
};

// Before:  %y = BatchNormalization %x, scale, B, mean, var     After:  %m = Mul %x, a[C,1,1]
//                                                                      %y = Add %m, b[C,1,1]
// Improves: three of its four operations are done once, in double. Where there is no layer to fold into.
class SplitBatchNormRule final : public PatternRule<Split> {
 public:
  std::string_view name() const override { return "split-batchnorm"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"BatchNormalization"}; }

  MatchOr<Split> Match(Node& node) const override {
    MatchOr<Affine1> affine = ReadBatchNorm(node);
    if (auto* refusal = std::get_if<Refusal>(&affine)) return *refusal;
    if (std::holds_alternative<LinearLayer>(MatchLinearLayer(node.input(0), true))) {
      return Refusal{};  // fold-batchnorm's
    }
    const auto& shape = node.input(0)->type.shape;
    if (!shape.has_value()) return Refusal{"the rank of its input is not known"};
    if (shape->size() < 2) return Refusal{"its input has rank " + std::to_string(shape->size())};
    Split split{&node, std::move(std::get<Affine1>(affine)), Dims(shape->size() - 1, 1)};
    split.dims[0] = static_cast<std::int64_t>(split.affine.a.size());
    return split;
  }

  void Apply(const Split& match, Rewriter& rewriter) const override {
    Node& node = *match.node;
    Graph& graph = *node.graph();
    Value* y = node.output();
    Value* scale = graph.AddConstant(y->name() + "_scale", FromDoubles(match.dims, match.affine.a));
    Value* shift = graph.AddConstant(y->name() + "_shift", FromDoubles(match.dims, match.affine.b));
    Type type = y->type;
    Node* mul = graph.AddNode("Mul", "", {node.input(0), scale}, {{y->name() + "_scaled", type}}, &node);
    Node* add = graph.AddNode("Add", "", {mul->output(), shift}, {{y->name() + "_shifted", type}}, &node);
    mul->name = node.name.empty() ? "" : node.name + "_scale";
    add->name = node.name;
    const std::string name = y->name();
    const bool output = y->is_graph_output();
    rewriter.Bypass(node, add->output());
    if (!output) graph.Rename(add->output(), name);  // the value is the same: so is its name
    rewriter.Touch(mul);
    rewriter.Touch(add);
  }
};

}  // namespace

std::unique_ptr<Rule> FoldBatchNorm() { return std::make_unique<FoldBatchNormRule>(); }
std::unique_ptr<Rule> SplitBatchNorm() { return std::make_unique<SplitBatchNormRule>(); }

}  // namespace octavo
