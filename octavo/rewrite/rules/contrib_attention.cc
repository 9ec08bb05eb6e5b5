#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>

#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rules/contrib.h"
#include "octavo/rewrite/rules/pattern.h"

namespace octavo {
namespace {

// What Attention and MultiHeadAttention have in common: queries, keys and values of `heads` heads, [B, S, H], [B, L, H]
// and [B, L, V].
struct Heads {
  std::int64_t batch, queries, keys, heads;
  std::int64_t size, value_size;  // of a head
  Value *mask, *bias;             // of the scores; null: none
};

// A node of three inputs and more, of which these make an operator that goes step by step.
std::string NoHeads(const Node& node, const Heads& h) {
  if (node.IntAttribute("unidirectional", 0) != 0 && h.queries != h.keys) {
    return "its queries see the keys before them only, and are not as many";
  }
  if (node.IntAttribute("do_rotary", 0) != 0) return "it turns queries and keys by their places";
  for (std::size_t i = 1; i < node.outputs().size(); ++i) {
    if (IsUsed(node, i)) return "its keys and values, or its scores, are used";
  }
  if (h.mask != nullptr) {
    const std::optional<Dims> mask = StaticShape(h.mask->type);
    const bool plain = mask && h.mask->type.dtype == DType::kS32 && h.keys > 1;  // [B, 1] would be no mask
    if (!plain ||
        (*mask != Dims{h.batch} && *mask != Dims{h.batch, h.keys} && *mask != Dims{h.batch, h.queries, h.keys})) {
      return "its mask is not one length a row, [batch, keys], or [batch, queries, keys]";
    }
  }
  if (h.bias != nullptr) {
    const std::optional<Dims> bias = StaticShape(h.bias->type);
    if (!bias || bias->size() != 4 || !StretchesTo(*bias, {h.batch, h.heads, h.queries, h.keys})) {
      return "what is added to its scores has other dimensions";
    }
  }
  return {};
}

// What is added to the scores for the mask: 0, or `far` where a key is none. A mask of lengths counts the keys that
// are some; another one has 1 for them, and 0.
Value* MaskOf(Speller& s, const Heads& h, float far) {
  const Dims given = DimsOf(h.mask);
  const Dims dims = {h.batch, 1, given.size() == 3 ? h.queries : 1, h.keys};
  if (given.size() > 1) {
    Value* ones = s.Op("Cast", {given == dims ? h.mask : s.Reshape(h.mask, dims)}, TypeOf(DType::kF32, dims));
    ones->producer()->SetAttribute("to", std::int64_t{1});  // FLOAT
    return s.Op("Mul", {s.Op("Sub", {s.Number(1), ones}, ones->type), s.Number(far)}, ones->type);
  }
  Dims places(static_cast<std::size_t>(h.keys));
  std::iota(places.begin(), places.end(), 0);
  Graph& graph = *s.node().graph();
  Value* place = graph.AddConstant(graph.UniqueName(s.node().output()->name() + "_places"),
                                   TensorRef::FromInts(DType::kS32, {1, 1, 1, h.keys}, places));
  Value* some = s.Op("Less", {place, s.Reshape(h.mask, {h.batch, 1, 1, 1})}, TypeOf(DType::kBool, dims));
  return s.Op("Where", {some, s.Number(0), s.Number(far)}, TypeOf(DType::kF32, dims));
}

// What is added to the scores where a query sees no key behind it. Far below what other masks have: a query whose keys
// are all masked goes on seeing these.
Value* Causal(Speller& s, const Heads& h) {
  const auto n = static_cast<std::size_t>(h.keys);
  std::vector<float> mask(n * n, 0.0f);
  for (std::size_t row = 0; row < n; ++row) {
    for (std::size_t key = row + 1; key < n; ++key) mask[row * n + key] = std::numeric_limits<float>::lowest();
  }
  return AddFloatConstant(*s.node().graph(), s.node().output()->name() + "_causal", DType::kF32, {h.keys, h.keys},
                          mask);
}

Value* Turned(Speller& s, Value* v, const Dims& perm) {
  const Dims from = DimsOf(v);
  Dims to;
  for (const std::int64_t i : perm) to.push_back(from[static_cast<std::size_t>(i)]);
  Value* t = s.Op("Transpose", {v}, TypeOf(DType::kF32, to));
  t->producer()->SetAttribute("perm", perm);
  return t;
}

// softmax(scale q k + mask + bias) v, each head by itself.
Value* Attend(Speller& s, const Heads& h, const std::array<Value*, 3>& qkv, float scale) {
  Value* q = Turned(s, s.Reshape(qkv[0], {h.batch, h.queries, h.heads, h.size}), {0, 2, 1, 3});
  Value* k = Turned(s, s.Reshape(qkv[1], {h.batch, h.keys, h.heads, h.size}), {0, 2, 3, 1});
  Value* v = Turned(s, s.Reshape(qkv[2], {h.batch, h.keys, h.heads, h.value_size}), {0, 2, 1, 3});
  const Type scores = TypeOf(DType::kF32, {h.batch, h.heads, h.queries, h.keys});
  Value* p = s.Op("MatMul", {q, k}, scores);
  if (scale != 1) p = s.Op("Mul", {p, s.Number(scale)}, scores);
  if (h.mask != nullptr) {
    p = s.Op("Add", {p, MaskOf(s, h, s.node().FloatAttribute("mask_filter_value", -10000.0f))}, scores);
  }
  if (h.bias != nullptr) p = s.Op("Add", {p, h.bias}, scores);
  if (s.node().IntAttribute("unidirectional", 0) != 0) p = s.Op("Add", {p, Causal(s, h)}, scores);
  p = s.Op("Softmax", {p}, scores);
  p->producer()->SetAttribute("axis", std::int64_t{-1});
  p = s.Op("MatMul", {p, v}, TypeOf(DType::kF32, {h.batch, h.heads, h.queries, h.value_size}));
  return s.Reshape(Turned(s, p, {0, 2, 1, 3}), {h.batch, h.queries, h.heads * h.value_size});
}

float ScaleOf(const Node& node, const Heads& h) {
  const float scale = node.FloatAttribute("scale", 0);
  return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(h.size));
}

// Columns `from` to `from` + `width` of a constant of one or two dimensions.
Value* Columns(Speller& s, const Value* v, std::int64_t from, std::int64_t width) {
  const std::vector<float> all = v->data->ToFloats();
  Dims dims = v->data->dims;
  const auto step = static_cast<std::size_t>(dims.back());
  dims.back() = width;
  std::vector<float> part;
  for (std::size_t row = 0; row < all.size(); row += step) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(row) + from;
    part.insert(part.end(), first, first + width);
  }
  return AddFloatConstant(*s.node().graph(), v->name() + "_part", DType::kF32, dims, part);
}

// Widths of queries, keys and values of an Attention, whose matrix has them beside each other.
std::optional<std::array<std::int64_t, 3>> WidthsOf(const Node& node) {
  const Value* weights = node.input(1);
  if (!IsFloatConstant(weights) || weights->data->dims.size() != 2) return std::nullopt;
  const std::int64_t all = weights->data->dims[1];
  std::array<std::int64_t, 3> widths = {all / 3, all / 3, all / 3};
  if (const std::vector<std::int64_t>* given = node.IntsAttribute("qkv_hidden_sizes"); given != nullptr) {
    if (given->size() != 3) return std::nullopt;
    std::copy(given->begin(), given->end(), widths.begin());
  }
  if (widths[0] != widths[1] || widths[0] < 1 || widths[2] < 1 || 2 * widths[0] + widths[2] != all) return std::nullopt;
  return widths;
}

Heads HeadsOf(const Node& node, const std::array<std::int64_t, 3>& widths) {
  const Dims x = DimsOf(node.input(0));
  const std::int64_t heads = node.IntAttribute("num_heads", 1);
  return {x[0], x[1], x[1], heads, widths[0] / heads, widths[2] / heads, node.input(3), node.input(5)};
}

// Before:  %y = com.microsoft::Attention %x, w[H, 3H], b[3H], %mask {num_heads=n}
// After:   q, k, v = Add (MatMul %x, w's part), b's part; heads apart by Reshape and Transpose;
//          %y = MatMul (Softmax (Add (Mul (MatMul q, k), 1/sqrt(H/n)), (1 - %mask) * -10000)), v; heads together again
std::string NoAttention(const Node& node) {
  const Dims x = DimsOf(node.input(0));
  const std::optional<std::array<std::int64_t, 3>> widths = WidthsOf(node);
  const std::int64_t heads = node.IntAttribute("num_heads", 0);
  if (x.size() != 3 || !widths || node.input(1)->data->dims[0] != x[2]) {
    return "its matrix is computed, or not that of queries, keys and values of its input";
  }
  if (heads < 1 || (*widths)[0] % heads != 0 || (*widths)[2] % heads != 0) return "its heads are not of one size";
  if (const Value* bias = node.input(2); bias != nullptr) {
    if (!IsFloatConstant(bias) || bias->data->dims != Dims{node.input(1)->data->dims[1]}) {
      return "its bias is computed, or not one number a column";
    }
  }
  if (node.input(4) != nullptr || node.input(6) != nullptr) return "it goes on from keys and values of the past";
  return NoHeads(node, HeadsOf(node, *widths));
}

Value* WriteAttention(Speller& s, Node& node) {
  const std::array<std::int64_t, 3> widths = *WidthsOf(node);
  const Heads heads = HeadsOf(node, widths);
  std::array<Value*, 3> qkv{};
  for (std::size_t i = 0, from = 0; i < 3; from += static_cast<std::size_t>(widths[i++])) {
    const auto first = static_cast<std::int64_t>(from);
    const Type type = TypeOf(DType::kF32, {heads.batch, heads.queries, widths[i]});
    qkv[i] = s.Op("MatMul", {node.input(0), Columns(s, node.input(1), first, widths[i])}, type);
    if (node.input(2) != nullptr) qkv[i] = s.Op("Add", {qkv[i], Columns(s, node.input(2), first, widths[i])}, type);
  }
  return Attend(s, heads, qkv, ScaleOf(node, heads));
}

std::optional<Heads> HeadsOfMany(const Node& node) {
  std::array<Dims, 3> dims;
  for (std::size_t i = 0; i < 3; ++i) {
    const std::optional<Dims> d = node.input(i) == nullptr ? std::nullopt : StaticShape(node.input(i)->type);
    if (!d || d->size() != 3) return std::nullopt;
    dims[i] = *d;
  }
  const auto& [q, k, v] = dims;
  const std::int64_t heads = node.IntAttribute("num_heads", 0);
  if (q[0] != k[0] || k[0] != v[0] || k[1] != v[1] || q[2] != k[2]) return std::nullopt;
  if (heads < 1 || q[2] % heads != 0 || v[2] % heads != 0) return std::nullopt;
  return Heads{q[0], q[1], k[1], heads, q[2] / heads, v[2] / heads, node.input(4), node.input(5)};
}

// Before:  %y = com.microsoft::MultiHeadAttention %q, %k, %v, b[3H], %mask {num_heads=n}
// After:   as of Attention, without its products
std::string NoMultiHead(const Node& node) {
  const std::optional<Heads> heads = HeadsOfMany(node);
  if (!heads) return "its queries, keys and values are not three tensors of [batch, words, features]";
  if (const Value* bias = node.input(3); bias != nullptr) {
    if (!IsFloatConstant(bias) || bias->data->dims != Dims{heads->heads * (2 * heads->size + heads->value_size)}) {
      return "its bias is computed, or not one number a column";
    }
  }
  for (std::size_t i = 6; i < node.inputs().size(); ++i) {
    if (node.input(i) != nullptr) return "it goes on from keys and values of the past";
  }
  return NoHeads(node, *heads);
}

Value* WriteMultiHead(Speller& s, Node& node) {
  const Heads heads = *HeadsOfMany(node);
  std::array<Value*, 3> qkv = {node.input(0), node.input(1), node.input(2)};
  std::int64_t from = 0;
  for (Value*& part : qkv) {
    const std::int64_t width = DimsOf(part).back();
    if (node.input(3) != nullptr) part = s.Op("Add", {part, Columns(s, node.input(3), from, width)}, part->type);
    from += width;
  }
  return Attend(s, heads, qkv, ScaleOf(node, heads));
}

constexpr ContribForm kAttentions[] = {
    {"Attention", "spell-attention", NoAttention, WriteAttention},
    {"MultiHeadAttention", "spell-multi-head-attention", NoMultiHead, WriteMultiHead},
};

}  // namespace

std::span<const ContribForm> ContribAttentions() { return kAttentions; }

}  // namespace octavo
