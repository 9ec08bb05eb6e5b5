#include <algorithm>
#include <cmath>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/pattern.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

// Rows of `count` numbers: a one at an index each, or no one where the index is none of `least` .. count - 1.
// An index below 0 counts from the end.
struct OneHotRows {
  Value* index;  // 32 or 64 bits
  Dims dims;     // of the index, one for each row
  std::int64_t least, count;
};

bool AreIndices(const Value* value) {
  return value != nullptr && !value->is_constant() && !value->type.quant &&
         (value->type.dtype == DType::kS32 || value->type.dtype == DType::kS64);
}

// 0, 1, 2, ... along the last axis alone.
bool CountsUp(const Value* value) {
  if (!IsPlainConstant(value) || !IsInteger(value->data->dtype) || value->data->dims.empty()) return false;
  if (value->data->elements() != static_cast<std::uint64_t>(value->data->dims.back())) return false;
  const std::vector<std::int64_t> places = value->data->ToInts();
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (places[i] != static_cast<std::int64_t>(i)) return false;
  }
  return !places.empty();
}

// [.., n] == [0, 1, .. n - 1], the left side all the same along the last axis.
std::optional<OneHotRows> OfEqual(const Node& equal) {
  for (const std::size_t side : {0, 1}) {
    Value* index = equal.input(side);
    const Value* places = equal.input(1 - side);
    const std::optional<Dims> rows = StaticShape(equal.output()->type);
    if (!rows || rows->empty() || !CountsUp(places) || places->data->dims.size() > rows->size()) continue;
    const Node* expand = index == nullptr ? nullptr : index->producer();
    if (expand != nullptr && expand->Is("Expand")) index = expand->input(0);
    if (!AreIndices(index)) continue;
    const std::optional<Dims> dims = StaticShape(index->type);
    Dims column = *rows;
    column.back() = 1;
    if (!dims || *dims != column || rows->back() != places->data->dims.back()) continue;
    return OneHotRows{index, Dims(column.begin(), column.end() - 1), 0, rows->back()};
  }
  return std::nullopt;
}

std::optional<OneHotRows> OfOneHot(const Node& node) {
  const Value *depth = node.input(1), *values = node.input(2);
  if (!AreIndices(node.input(0)) || !IsPlainConstant(depth) || depth->data->elements() != 1) return std::nullopt;
  if (!IsPlainConstant(values) || values->data->elements() != 2) return std::nullopt;
  const std::vector<float> pair = values->data->ToFloats();
  const std::optional<Dims> dims = StaticShape(node.input(0)->type);
  const float count = depth->data->ToFloats()[0];
  if (!dims || pair[0] != 0 || pair[1] != 1 || !(count >= 1) || count > 1 << 24) return std::nullopt;
  const std::int64_t axis = node.IntAttribute("axis", -1), n = static_cast<std::int64_t>(count);
  if (axis != -1 && axis != static_cast<std::int64_t>(dims->size())) return std::nullopt;
  return OneHotRows{node.input(0), *dims, -n, n};
}

// Whether `value` is a constant of this number alone.
bool IsAll(const Value* value, float number) {
  return IsPlainConstant(value) && value->data->elements() == 1 && value->data->ToFloats()[0] == number;
}

std::optional<OneHotRows> RowsOf(const Value* value) {
  const Node* node = value->producer();
  while (node != nullptr && node->input(0) != nullptr &&
         (node->Is("Cast") || (node->Is("Where") && IsAll(node->input(1), 1) && IsAll(node->input(2), 0)))) {
    node = node->input(0)->producer();
  }
  if (node == nullptr || node->output() == nullptr) return std::nullopt;
  if (node->Is("Equal")) return OfEqual(*node);
  return node->Is("OneHot") ? OfOneHot(*node) : std::nullopt;
}

struct Lookup {
  Node *product, *last;
  OneHotRows rows;
  bool transposed;    // the matrix is [N, K]
  const Value* bias;  // of N numbers; null: none
};

// Before:  %y = MatMul (Cast (Equal %i : s32[b,t,1], [0, 1 .. K-1])), w[K,N] (Add bias[N], if there); a Gemm; OneHot
// After:   %y = Gather [bias; w + bias; bias], (Max(Min(%i, K), -1) + 1)
// OneLsb: a row of the matrix times 1, and zeros added to it; only the sign of a zero may change. An index out of range
// takes a row of zeros.
class OneHotProductRule final : public PatternRule<Lookup> {
 public:
  std::string_view name() const override { return "one-hot-product"; }
  RuleClass rule_class() const override { return RuleClass::kOneLsb; }
  std::vector<std::string_view> roots() const override { return {"MatMul", "Gemm"}; }

  MatchOr<Lookup> Match(Node& node) const override {
    const Value *x = node.input(0), *w = node.input(1);
    if (x == nullptr || node.output() == nullptr || !IsFloatConstant(w) || w->data->dims.size() != 2) return Refusal{};
    const std::optional<OneHotRows> rows = RowsOf(x);
    if (!rows) return Refusal{};
    const bool gemm = node.Is("Gemm");
    Lookup match{&node, &node, *rows, gemm && node.IntAttribute("transB", 0) != 0, nullptr};
    const Dims& dims = w->data->dims;
    const std::int64_t n = dims[match.transposed ? 0 : 1];
    if (dims[match.transposed ? 1 : 0] != rows->count || n < 1) return Refusal{};
    const std::vector<float> numbers = w->data->ToFloats();
    if (!std::all_of(numbers.begin(), numbers.end(), [](float v) { return std::isfinite(v); })) {
      return Refusal{"the matrix holds numbers that are not finite"};
    }
    if (gemm) {
      if (node.IntAttribute("transA", 0) != 0 || node.FloatAttribute("alpha", 1) != 1 ||
          node.FloatAttribute("beta", 1) != 1) {
        return Refusal{"the Gemm has factors, or reads the rows as columns"};
      }
      match.bias = node.input(2);
      if (match.bias != nullptr && !PerLastAxis(match.bias, n)) return Refusal{"the bias is not one number a column"};
    } else if (Node* add = SoleUser(node.output()); add != nullptr && add->Is("Add")) {
      const Value* bias = add->input(add->input(0) == node.output() ? 1 : 0);
      if (PerLastAxis(bias, n) && bias->data->dims.size() <= rows->dims.size() + 1) {
        match.bias = bias;
        match.last = add;
      }
    }
    return match;
  }

  void Apply(const Lookup& match, Rewriter& rewriter) const override {
    Node& last = *match.last;
    Graph& graph = *last.graph();
    const std::string base = last.output()->name();
    const OneHotRows& rows = match.rows;
    const Value* w = match.product->input(1);
    const std::vector<float> numbers = w->data->ToFloats();
    const auto n = static_cast<std::size_t>(w->data->dims[match.transposed ? 0 : 1]);
    const auto count = static_cast<std::size_t>(rows.count);
    const std::vector<float> bias = match.bias == nullptr ? std::vector<float>(n, 0.0F) : match.bias->data->ToFloats();
    std::vector<float> table = bias;
    for (std::int64_t from = rows.least; from < rows.count; from += rows.count) {
      for (std::size_t r = 0; r < count; ++r) {
        for (std::size_t c = 0; c < n; ++c) {
          table.push_back(numbers[match.transposed ? c * count + r : r * n + c] + bias[c]);
        }
      }
    }
    table.insert(table.end(), bias.begin(), bias.end());
    const Dims table_dims = {static_cast<std::int64_t>(table.size() / n), static_cast<std::int64_t>(n)};
    Value* matrix = AddFloatConstant(graph, base + "_table", w->data->dtype, table_dims, table);
    const DType dtype = rows.index->type.dtype;
    const auto with = [&](const char* op, Value* x, std::int64_t number) {
      Value* constant =
          graph.AddConstant(graph.UniqueName(base + "_bound"), TensorRef::FromInts(dtype, {}, {&number, 1}));
      return graph.AddNode(op, "", {x, constant}, {{graph.UniqueName(base + "_row"), TypeOf(dtype, rows.dims)}}, &last)
          ->output();
    };
    Value* index = rows.index;
    if (StaticShape(index->type) != rows.dims) index = AddReshape(index, rows.dims, base + "_index", &last)->output();
    index = with("Max", with("Min", index, rows.count), rows.least - 1);
    index = with("Add", index, 1 - rows.least);
    Node* gather = graph.AddNode("Gather", "", {matrix, index}, {{graph.UniqueName(base + "_looked_up"), {}}}, &last);
    TakePlace(*gather, last, rewriter);
  }
};

}  // namespace

std::unique_ptr<Rule> OneHotProduct() { return std::make_unique<OneHotProductRule>(); }

}  // namespace octavo
