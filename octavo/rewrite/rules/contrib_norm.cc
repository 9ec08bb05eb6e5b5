#include <cstdint>

#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/contrib.h"
#include "octavo/rewrite/rules/pattern.h"

namespace octavo {
namespace {

constexpr float kEpsilon = 1e-12f;  // the runtime's default for both

Value* Normalized(Speller& s, const Node& node, Value* x, Value* gamma, Value* beta) {
  std::vector<Value*> inputs = {x, gamma};
  if (beta != nullptr) inputs.push_back(beta);
  Value* y = s.Op("LayerNormalization", inputs, x->type);
  y->producer()->SetAttribute("axis", std::int64_t{-1});
  y->producer()->SetAttribute("epsilon", node.FloatAttribute("epsilon", kEpsilon));
  return y;
}

// Before:  %y, _, _, %s = com.microsoft::SkipLayerNormalization %x, %skip, gamma, beta, bias
// After:   %s = Add (Add %x, bias), %skip;  %y = LayerNormalization %s, gamma, beta
// The bias goes to a product by a constant matrix, if one of the two is that, as it came from there.
std::string NoSkipNorm(const Node& node) {
  if (IsUsed(node, 1) || IsUsed(node, 2)) return "its mean or deviation is used";
  const Dims x = DimsOf(node.input(0));
  const std::optional<Dims> skip = StaticShape(node.input(1)->type);
  if (!skip || skip->size() > x.size() || skip->empty() || skip->back() != x.back() || !StretchesTo(*skip, x)) {
    return "what is added to its input has other dimensions";
  }
  for (const std::size_t i : {2, 3, 4}) {
    if (node.input(i) != nullptr && !HasDims(node.input(i), {x.back()})) {
      return "its scale or a bias is not one number a column";
    }
  }
  return {};
}

bool IsProductFor(const Value* v, const Node& node) {
  const Node* producer = v->producer();
  return producer != nullptr && producer->Is("MatMul") && SoleUser(v) == &node && IsFloatConstant(producer->input(1));
}

Value* WriteSkipNorm(Speller& s, Node& node) {
  Value *x = node.input(0), *skip = node.input(1);
  if (Value* bias = node.input(4); bias != nullptr) {
    Value*& product = !IsProductFor(x, node) && IsProductFor(skip, node) ? skip : x;
    product = s.Op("Add", {product, bias}, product->type);
  }
  Value* sum = s.Op("Add", {x, skip});
  Substitute(node, 3, sum);
  return Normalized(s, node, sum, node.input(2), node.input(3));
}

// Before:  %y, %m = com.microsoft::EmbedLayerNormalization %ids, %kinds, words, places, kind_rows, gamma, beta, %mask
// After:   %y = LayerNormalization (Add (Add (Gather words, %ids), places[0..S-1]), (Gather kind_rows, %kinds)), gamma,
//          beta;  %m = ReduceSum %mask, 1
std::string NoEmbedNorm(const Node& node) {
  const Dims ids = DimsOf(node.input(0)), y = DimsOf(node.output());
  if (ids.size() != 2 || y.size() != 3) return "its rows are not numbered in two dimensions";
  if ((node.input(1) == nullptr) != (node.input(4) == nullptr)) return "it has segments without rows, or rows without";
  for (const std::size_t i : {2, 3, 4}) {
    if (i == 4 && node.input(i) == nullptr) continue;
    const std::optional<Dims> table = StaticShape(node.input(i)->type);
    if (!table || table->size() != 2 || (*table)[1] != y[2]) return "a table has other rows than the result";
    if (i == 3 && node.input(8) == nullptr && (*table)[0] < ids[1]) return "it has more words than places";
  }
  for (const std::size_t i : {5, 6}) {
    if (!HasDims(node.input(i), {y[2]})) return "its scale or bias is not one number a column";
  }
  if (node.input(1) != nullptr && !HasDims(node.input(1), ids)) return "words and segments are not as many";
  if (node.input(8) != nullptr && !HasDims(node.input(8), ids) && !HasDims(node.input(8), {1, ids[1]})) {
    return "words and places are not as many";
  }
  if (IsUsed(node, 1) && !HasDims(node.input(7), ids)) return "its mask index is used, and it has no mask";
  return {};
}

Value* WriteEmbedNorm(Speller& s, Node& node) {
  const Type type = TypeOf(DType::kF32, DimsOf(node.output()));
  const std::int64_t words = DimsOf(node.input(0))[1];
  Value* places = node.input(3);
  if (node.input(8) != nullptr) {
    Dims rows = DimsOf(node.input(8));
    rows.push_back(type.shape->back().value);
    places = s.Op("Gather", {places, node.input(8)}, TypeOf(DType::kF32, rows));
  } else if (DimsOf(places)[0] != words) {
    if (IsFloatConstant(places)) {
      std::vector<float> rows = places->data->ToFloats();
      rows.resize(static_cast<std::size_t>(words * type.shape->back().value));
      places = node.graph()->AddConstant(node.graph()->UniqueName(places->name() + "_rows"),
                                         TensorRef::FromFloats({words, type.shape->back().value}, rows));
    } else {
      places = s.Slice(places, 0, 0, words);
    }
  }
  Value* sum = s.Op("Add", {s.Op("Gather", {node.input(2), node.input(0)}, type), places}, type);
  if (node.input(4) != nullptr) {
    sum = s.Op("Add", {sum, s.Op("Gather", {node.input(4), node.input(1)}, type)}, type);
  }
  if (IsUsed(node, 1)) {
    Value* count = s.Op("ReduceSum", {node.input(7), s.Ints({1})}, node.output(1)->type);
    count->producer()->SetAttribute("keepdims", std::int64_t{0});
    Substitute(node, 1, count);
  }
  Substitute(node, 2, sum);
  return Normalized(s, node, sum, node.input(5), node.input(6));
}

constexpr ContribForm kNorms[] = {
    {"SkipLayerNormalization", "spell-skip-layernorm", NoSkipNorm, WriteSkipNorm},
    {"EmbedLayerNormalization", "spell-embed-layernorm", NoEmbedNorm, WriteEmbedNorm},
};

}  // namespace

std::span<const ContribForm> ContribNorms() { return kNorms; }

}  // namespace octavo
