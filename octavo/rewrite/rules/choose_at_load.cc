// Products of unsigned activations and constant weights: the machine that loads the model says which kernel is right.
//
// On x86 the kernels for u8 times s8 are the fast ones; without VNNI they add pairs of products in 16 bits and
// saturate. A product of full-range constants that saturates there tells which machine it is. Its inputs are constant,
// so the runtime computes it when it loads the model, and puts the chosen branch in the place of the If.
#include <algorithm>
#include <unordered_set>

#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

constexpr std::string_view kMs = "com.microsoft";
// Weights from which on the choice pays: below, the product takes no time worth a branch.
constexpr std::uint64_t kLeastWeights = 16384;
constexpr std::int64_t kProbeRows = 16, kProbeSums = 64;

// Of a convolution, which multiplies each weight at many places.
constexpr std::uint64_t kLeastWindowWeights = 64;

struct Choice {
  Node* node = nullptr;
  std::size_t weight = 0, zero = 0;  // inputs
};

TensorRef Filled(DType type, Dims dims, std::int64_t value) {
  const std::vector<std::int64_t> all(ElementCount(dims), value);
  return TensorRef::FromInts(type, std::move(dims), all);
}

bool IsFilled(const Value* v, DType type, std::int64_t value) {
  if (v == nullptr || !v->is_constant() || !v->data || v->data->dtype != type) return false;
  if (v->data->elements() != static_cast<std::uint64_t>(kProbeRows * kProbeSums)) return false;
  const std::vector<std::int64_t> codes = v->data->ToInts();
  return std::all_of(codes.begin(), codes.end(), [&](std::int64_t c) { return c == value; });
}

// The probe in front of the main graph: a bool, whether u8 times s8 is exact. Made once, known by what it computes.
Value* Probe(Graph& graph, Rewriter& rewriter) {
  Node* first = graph.first();
  if (first != nullptr && first->Is("MatMulInteger") && IsFilled(first->input(0), DType::kU8, 255) &&
      IsFilled(first->input(1), DType::kS8, 127)) {
    Node* last = first;
    for (const std::string_view op : {"Equal", "Cast", "ReduceMin", "Cast"}) {
      last = SoleUser(last->output());
      if (last == nullptr || !last->Is(op)) break;
    }
    if (last != nullptr && last->output()->type.dtype == DType::kBool) return last->output();
  }
  const auto type = [](DType dtype, bool scalar) {
    Type t;
    t.dtype = dtype;
    t.shape.emplace();
    if (!scalar) t.shape->assign(2, Dim{kProbeRows, {}});
    return t;
  };
  Value* a = graph.AddConstant("u8_s8_probe_a", Filled(DType::kU8, {kProbeRows, kProbeSums}, 255));
  Value* b = graph.AddConstant("u8_s8_probe_b", Filled(DType::kS8, {kProbeSums, kProbeRows}, 127));
  Value* want =
      graph.AddConstant("u8_s8_probe_sum", Filled(DType::kS32, {kProbeRows, kProbeRows}, 255 * 127 * kProbeSums));
  Node* sums = graph.AddNode("MatMulInteger", "", {a, b}, {{"u8_s8_sums", type(DType::kS32, false)}}, first);
  Node* equal = graph.AddNode("Equal", "", {sums->output(), want}, {{"u8_s8_equal", type(DType::kBool, false)}}, first);
  Node* numbers = graph.AddNode("Cast", "", {equal->output()}, {{"u8_s8_equal_s32", type(DType::kS32, false)}}, first);
  numbers->SetAttribute("to", std::int64_t{6});
  Node* all =
      graph.AddNode("ReduceMin", "", {numbers->output()}, {{"u8_s8_all_equal", type(DType::kS32, true)}}, first);
  all->SetAttribute("keepdims", std::int64_t{0});
  Node* exact = graph.AddNode("Cast", "", {all->output()}, {{"u8_s8_exact", type(DType::kBool, true)}}, first);
  exact->SetAttribute("to", std::int64_t{9});
  for (Node* node : {sums, equal, numbers, all, exact}) rewriter.Touch(node);
  return exact->output();
}

class ChooseAtLoadRule final : public PatternRule<Choice> {
 public:
  explicit ChooseAtLoadRule(const DeviceDescriptor& device) : device_(device) {}
  std::string_view name() const override { return "choose-at-load"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override {
    return {"QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "QLinearConv"};
  }
  RuleDoc doc() const override {
    return {
        "A large product or convolution of u8 activations takes s8 weights where the machine that loads the model "
        "multiplies them "
        "exactly (VNNI: faster), and u8 weights where u8 times s8 saturates; a constant product in front of the graph "
        "tells which, and the runtime keeps one branch.",
        "%y_codes = QLinearMatMul %x_codes, s_x, z_x, %w : u8, s_w, z_w, s_y, z_y",
        "%y_codes = If %u8_s8_exact {QLinearMatMul %x_codes, s_x, z_x, %w_s8, s_w, z_w - 128, s_y, z_y}"
        " {%w = Cast (Cast %w_s8 + 128);  QLinearMatMul %x_codes, s_x, z_x, %w, s_w, z_w, s_y, z_y}",
        "all 256 codes: (q ^ 0x80) - (z - 128) == q - z, so both branches have the same int32 sums; both are run and "
        "compared, bit by bit (S8ToU8.EveryCodeAndZeroPoint, ChooseAtLoad.BothBranchesAreEqual)",
        {"choose-at-load/unsigned-weight"}};
  }

  MatchOr<Choice> Match(Node& node) const override {
    if (!SaturatesU8S8(device_)) return Refusal{};
    Choice c{&node, 3, 5};
    if (node.Is("MatMulIntegerToFloat", kMs)) {
      c.weight = 1;
    } else if (!node.Is("QLinearMatMul") && !node.Is("QLinearConv") && !node.Is("QGemm", kMs)) {
      return Refusal{};
    }
    const Value *x = node.input(0), *w = node.input(c.weight), *zero = node.input(c.zero);
    if (x == nullptr || w == nullptr || node.outputs().size() != 1 || node.output() == nullptr) return Refusal{};
    const Graph& graph = *node.graph();
    if (graph.parent() != nullptr && w->type.dtype == DType::kS8 && graph.first() == &node && graph.last() == &node) {
      return Refusal{};  // the branch of a choice
    }
    if (!Holds("choose-at-load/unsigned-weight", w->type.dtype == DType::kU8)) {
      return Refusal{"its weight is " + std::string(Name(w->type.dtype)) + ", which 8 bits without sign do not hold"};
    }
    if (x->type.dtype != DType::kU8) return Refusal{"its activations are not u8: no kernel saturates there"};
    if (!w->is_constant() || !w->data || zero == nullptr || !zero->is_constant() || !zero->data) return Refusal{};
    const bool conv = node.Is("QLinearConv");
    const std::uint64_t least = conv ? kLeastWindowWeights : kLeastWeights;
    if (w->data->elements() < least) {
      return Refusal{"its " + std::to_string(w->data->elements()) + " weights are fewer than the " +
                     std::to_string(least) + " from which on choosing pays"};
    }
    return c;
  }

  void Apply(const Choice& c, Rewriter& rewriter) const override {
    Value *weight = c.node->input(c.weight), *zero = c.node->input(c.zero);
    // All products of this weight at once: its signed codes exist once.
    std::vector<Node*> nodes{c.node};
    std::unordered_set<const Node*> seen{c.node};
    for (const Use& use : weight->uses()) {
      if (seen.contains(use.node)) continue;
      const MatchOr<Choice> other = Match(*use.node);
      const Choice* found = std::get_if<Choice>(&other);
      if (found != nullptr && found->weight == c.weight && found->zero == c.zero && use.index == c.weight &&
          use.node->input(c.zero) == zero) {
        nodes.push_back(use.node);
        seen.insert(use.node);
      }
    }
    Value* exact = Probe(*rewriter.model().graph, rewriter);
    const std::string name = weight->name();
    Value* codes = weight->graph()->AddConstant(name + "_s8", InOtherSign(*weight->data));
    Value* signed_zero = zero->graph()->AddConstant(zero->name() + "_s8", InOtherSign(*zero->data));
    for (Node* node : nodes) Choose(*node, c, exact, codes, signed_zero, rewriter);
  }

 private:
  static void Choose(Node& node, const Choice& c, Value* exact, Value* codes, Value* zero, Rewriter& rewriter) {
    Graph& graph = *node.graph();
    Value* old = node.output();
    Node* fresh = graph.AddNode("If", "", {exact}, {{old->name() + "_chosen", old->type}}, &node);
    fresh->name = node.name;
    for (const bool fast : {true, false}) {
      auto branch = std::make_unique<Graph>(&graph);
      branch->name = fast ? "u8_s8" : "u8_u8";
      Value* w = codes;
      if (!fast) {
        Type type = codes->type;
        const auto convert = [&](Value* from, DType to, std::int64_t number, const char* suffix) {
          type.dtype = to;
          Node* cast = branch->AddNode("Cast", "", {from}, {{codes->name() + suffix, type}});
          cast->SetAttribute("to", number);
          return cast->output();
        };
        Value* wide = convert(codes, DType::kS32, 6, "_wide");
        Value* shift = branch->AddConstant(codes->name() + "_shift", Filled(DType::kS32, {}, 128));
        Node* add = branch->AddNode("Add", "", {wide, shift}, {{codes->name() + "_shifted", type}});
        w = convert(add->output(), DType::kU8, 2, "_u8");
      }
      std::vector<Value*> inputs(node.inputs().begin(), node.inputs().end());
      inputs[c.weight] = w;
      if (fast) inputs[c.zero] = zero;
      Node* product = branch->AddNode(node.op(), node.domain(), std::move(inputs),
                                      {{old->name() + (fast ? "_u8_s8" : "_u8_u8"), old->type}});
      CopyAttributes(node, *product);
      branch->AddOutput(product->output());
      fresh->SetAttribute(fast ? "then_branch" : "else_branch", std::move(branch));
    }
    if (!old->is_graph_output()) graph.SwapNames(old, fresh->output());
    rewriter.Bypass(node, fresh->output());
  }

  const DeviceDescriptor& device_;
};

}  // namespace

void CopyAttributes(const Node& from, Node& to) {
  for (const Attribute& a : from.attributes()) {
    if (const auto* i = std::get_if<std::int64_t>(&a.value)) to.SetAttribute(a.name, *i);
    if (const auto* f = std::get_if<float>(&a.value)) to.SetAttribute(a.name, *f);
    if (const auto* s = std::get_if<std::string>(&a.value)) to.SetAttribute(a.name, *s);
    if (const auto* v = std::get_if<std::vector<std::int64_t>>(&a.value)) to.SetAttribute(a.name, *v);
  }
}

bool SameAttributes(const Node& a, const Node& b) {
  if (a.attributes().size() != b.attributes().size()) return false;
  return std::all_of(a.attributes().begin(), a.attributes().end(), [&](const Attribute& one) {
    const Attribute* other = b.FindAttribute(one.name);
    if (other == nullptr || other->value.index() != one.value.index()) return false;
    const auto same = [&]<class T>(const T*) {
      const T* x = std::get_if<T>(&one.value);
      return x != nullptr && *x == std::get<T>(other->value);
    };
    return same(static_cast<const std::int64_t*>(nullptr)) || same(static_cast<const float*>(nullptr)) ||
           same(static_cast<const std::string*>(nullptr)) ||
           same(static_cast<const std::vector<std::int64_t>*>(nullptr));
  });
}

std::unique_ptr<Rule> ChooseAtLoad(const DeviceDescriptor& device) {
  return std::make_unique<ChooseAtLoadRule>(device);
}

}  // namespace octavo
