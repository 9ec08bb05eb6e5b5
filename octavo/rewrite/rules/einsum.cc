// Einsum of one or two tensors, in operators that every device has.
#include <algorithm>
#include <string>

#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

using Order = std::vector<std::int64_t>;

bool Has(const std::string& letters, char c) { return letters.find(c) != std::string::npos; }

bool Twice(const std::string& letters) {
  for (std::size_t i = 0; i < letters.size(); ++i) {
    if (letters.find(letters[i], i + 1) != std::string::npos) return true;
  }
  return false;
}

// How `from`'s dimensions are put in the order of `to`.
Order OrderOf(const std::string& from, const std::string& to) {
  Order order;
  for (const char c : to) order.push_back(static_cast<std::int64_t>(from.find(c)));
  return order;
}

struct Product {
  Node* node = nullptr;
  std::string a, b, out;                  // letters of the dimensions; b: empty for one tensor
  std::string batch, rows, columns, sum;  // of both and the output, of a, of b, and of both alone
};

// The letters' sizes; empty where they are not known.
Dims SizesOf(const Product& p, const std::string& letters) {
  const std::optional<Dims> a = StaticShape(p.node->input(0)->type), b = StaticShape(p.node->input(1)->type);
  Dims out;
  for (const char c : letters) {
    const bool in_a = Has(p.a, c);
    const std::optional<Dims>& dims = in_a ? a : b;
    if (!dims) return {};
    out.push_back((*dims)[(in_a ? p.a : p.b).find(c)]);
  }
  return out;
}

Dims Grouped(const Dims& batch, const Dims& rows, const Dims& columns) {
  Dims out = batch;
  out.push_back(static_cast<std::int64_t>(ElementCount(rows)));
  out.push_back(static_cast<std::int64_t>(ElementCount(columns)));
  return out;
}

// A Transpose of `x` in front of `before`; x itself where nothing moves.
Value* Ordered(Value* x, const Order& order, const std::string& base, Node* before) {
  if (std::is_sorted(order.begin(), order.end())) return x;
  Graph& graph = *before->graph();
  Type type;
  type.dtype = x->type.dtype;
  if (x->type.shape) {
    type.shape.emplace();
    for (const std::int64_t i : order) type.shape->push_back((*x->type.shape)[static_cast<std::size_t>(i)]);
  }
  Node* node = graph.AddNode("Transpose", "", {x}, {{graph.UniqueName(base), type}}, before);
  node->SetAttribute("perm", order);
  return node->output();
}

// Before:  %y = Einsum %a, %b "bhid,bhjd->bhij"
// After:   %t = Transpose %b [0, 1, 3, 2];  %y = MatMul %a, %t
// with Reshapes where a group of letters is not one dimension, and so one tensor's: a Transpose. Improves: another
// order of the same sums; devices have a MatMul, in integers too.
class EinsumRule final : public PatternRule<Product> {
 public:
  std::string_view name() const override { return "einsum-to-matmul"; }
  RuleClass rule_class() const override { return RuleClass::kImproves; }
  std::vector<std::string_view> roots() const override { return {"Einsum"}; }

  MatchOr<Product> Match(Node& node) const override {
    if (!node.domain().empty() || node.output() == nullptr || node.inputs().empty()) return Refusal{};
    if (node.inputs().size() > 2) return Refusal{"it is of more than two tensors"};
    std::string equation = node.StringAttribute("equation", "");
    std::erase(equation, ' ');
    const std::size_t arrow = equation.find("->"), comma = equation.find(',');
    if (arrow == std::string::npos || Has(equation, '.')) return Refusal{"its equation has no arrow, or an ellipsis"};
    Product p;
    p.node = &node;
    p.out = equation.substr(arrow + 2);
    const bool two = node.inputs().size() == 2;
    if ((comma != std::string::npos) != two || (two && comma > arrow)) return Refusal{"its equation does not fit"};
    p.a = equation.substr(0, two ? comma : arrow);
    if (two) p.b = equation.substr(comma + 1, arrow - comma - 1);
    if (Twice(p.a) || Twice(p.b) || Twice(p.out) || Has(p.b, ',')) return Refusal{"a term has a letter twice"};
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      const Value* x = node.input(i);
      const std::string& letters = i == 0 ? p.a : p.b;
      if (x == nullptr || x->type.quant) return Refusal{};
      if (x->type.dtype != DType::kF32 && x->type.dtype != DType::kF16) return Refusal{"its inputs are no floats"};
      if (!x->type.shape || x->type.shape->size() != letters.size())
        return Refusal{"the rank of an input is not known"};
    }
    if (!two) {
      if (!std::is_permutation(p.a.begin(), p.a.end(), p.out.begin(), p.out.end())) return Refusal{"it sums up"};
      return p;
    }
    for (const char c : p.out) {
      const bool in_a = Has(p.a, c), in_b = Has(p.b, c);
      if (!in_a && !in_b) return Refusal{"its equation does not fit"};
      (in_a && in_b ? p.batch : in_a ? p.rows : p.columns) += c;
    }
    for (const char c : p.a) {
      if (Has(p.out, c)) continue;
      if (!Has(p.b, c)) return Refusal{"a dimension of one input is summed up"};
      p.sum += c;
    }
    for (const char c : p.b) {
      if (!Has(p.out, c) && !Has(p.a, c)) return Refusal{"a dimension of one input is summed up"};
    }
    if (p.sum.empty()) return Refusal{"nothing is summed up"};
    const std::string all = p.batch + p.rows + p.columns + p.sum;
    const Dims sizes = SizesOf(p, all);
    if (Reshapes(p) && sizes.size() != all.size()) return Refusal{"several dimensions are one, and not all are known"};
    // A size of 1 may stand for any other.
    for (const char c : p.batch + p.sum) {
      const Dim &x = (*node.input(0)->type.shape)[p.a.find(c)], &y = (*node.input(1)->type.shape)[p.b.find(c)];
      const bool same = x.known() && y.known() ? x.value == y.value : !x.symbol.empty() && x == y;
      if (!same) return Refusal{"a dimension may have two sizes"};
    }
    return p;
  }

  void Apply(const Product& p, Rewriter& rewriter) const override {
    Node& node = *p.node;
    Graph& graph = *node.graph();
    const std::string base = node.output()->name();
    if (p.b.empty()) {
      Node* last = graph.AddNode("Transpose", "", {node.input(0)}, {{graph.UniqueName(base + "_t"), {}}}, &node);
      last->SetAttribute("perm", OrderOf(p.a, p.out));
      return TakePlace(*last, node, rewriter);
    }
    Value* a = Ordered(node.input(0), OrderOf(p.a, p.batch + p.rows + p.sum), base + "_a", &node);
    Value* b = Ordered(node.input(1), OrderOf(p.b, p.batch + p.sum + p.columns), base + "_b", &node);
    const Dims batch = SizesOf(p, p.batch), rows = SizesOf(p, p.rows), columns = SizesOf(p, p.columns);
    const Dims sum = SizesOf(p, p.sum);
    if (p.rows.size() != 1 || p.sum.size() != 1)
      a = AddReshape(a, Grouped(batch, rows, sum), base + "_am", &node)->output();
    if (p.sum.size() != 1 || p.columns.size() != 1)
      b = AddReshape(b, Grouped(batch, sum, columns), base + "_bm", &node)->output();
    const std::string made = p.batch + p.rows + p.columns;
    Type type;
    type.dtype = a->type.dtype;
    if (Reshapes(p)) {
      type = TypeOf(type.dtype, Grouped(batch, rows, columns));
    } else {
      type.shape.emplace();
      for (const char c : made) {
        const bool in_a = Has(p.a, c);
        type.shape->push_back((*node.input(in_a ? 0 : 1)->type.shape)[(in_a ? p.a : p.b).find(c)]);
      }
    }
    Node* last = graph.AddNode("MatMul", "", {a, b}, {{graph.UniqueName(base + "_m"), type}}, &node);
    last->name = node.name;
    if (p.rows.size() != 1 || p.columns.size() != 1) {
      last = AddReshape(last->output(), SizesOf(p, made), base + "_r", &node);
    }
    const Order order = OrderOf(made, p.out);
    if (!std::is_sorted(order.begin(), order.end()))
      last = Ordered(last->output(), order, base + "_y", &node)->producer();
    TakePlace(*last, node, rewriter);
  }

 private:
  static bool Reshapes(const Product& p) { return p.rows.size() != 1 || p.columns.size() != 1 || p.sum.size() != 1; }
};

}  // namespace

std::unique_ptr<Rule> EinsumToMatMul() { return std::make_unique<EinsumRule>(); }

}  // namespace octavo
