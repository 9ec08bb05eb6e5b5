// What is decided before the lowering: one sign of codes, activations and biases that fuse, the patterns of GELU.
#include <algorithm>
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/emit/lower_circle.h"
#include "octavo/ir/users.h"

namespace octavo::internal {

// No consumer mixes uint8 and int8, or has uint16: where int8 weights meet uint8 activations everything becomes int8,
// and uint16 codes become int16. Codes and zero points move by half the range; every number stays what it was.
void CircleLowering::UnifySigns() {
  const auto is = [](const Value* v, DType storage) {
    return v != nullptr && v->type.quant && v->type.quant->kind == QuantType::Kind::kAffine &&
           v->type.quant->affine.storage == storage;
  };
  // Weights that are s8 moved by 128 (for processors whose u8.s8 products saturate). LiteRT has no uint8 kernel for a
  // scale a channel.
  const auto moved = [&](const Node& node) -> std::optional<bool> {
    const Value* w = node.input(1);
    if (!is(node.input(0), DType::kU8) || !is(w, DType::kU8) || !w->is_constant()) return std::nullopt;
    if (!w->type.quant->affine.axis || w->type.quant->affine.scale.elements() < 2) return std::nullopt;
    if (!w->type.quant->affine.zero_point) return false;
    const std::vector<std::int64_t> zeros = w->type.quant->affine.zero_point->ToInts();
    return std::all_of(zeros.begin(), zeros.end(), [](std::int64_t z) { return z == 128; });
  };
  bool mixed = false, wide = false, casts = false, all_moved = true, any_moved = false;
  for (const Node* node = old_.first(); node != nullptr; node = node->next()) {
    casts = casts || node->Is(kStorageCast, kIrDomain);
    mixed = mixed || (is(node->input(0), DType::kU8) && is(node->input(1), DType::kS8));
    mixed = mixed || (is(node->input(0), DType::kS8) && is(node->input(1), DType::kU8));
    for (const Value* v : node->outputs()) wide = wide || is(v, DType::kU16);
    if (const std::optional<bool> is_moved = moved(*node)) {
      any_moved = true;
      all_moved = all_moved && *is_moved;
    }
  }
  mixed = mixed || (any_moved && all_moved);
  if ((!mixed && !wide) || casts) return;
  const auto convert = [&](Value* v, DType from, DType to) {
    if (!is(v, from)) return;
    const std::int64_t half = std::int64_t{1} << (BitWidth(from) - 1);
    Affine& affine = v->type.quant->affine;
    std::vector<std::int64_t> zeros(affine.scale.elements(), 0);
    if (affine.zero_point) zeros = affine.zero_point->ToInts();
    for (std::int64_t& z : zeros) z -= half;
    if (to == DType::kS16 && std::any_of(zeros.begin(), zeros.end(), [](std::int64_t z) { return z != 0; })) {
      ThrowUnsupported("Circle's 16-bit activations have no zero point", "value '" + v->name() + "'",
                       "quantize with symmetric 16-bit activations (--symmetric), or use --profile i16");
    }
    affine.zero_point = TensorRef::FromInts(to, affine.scale.dims, zeros);
    affine.storage = to;
    if (v->is_constant()) {
      std::vector<std::int64_t> codes = v->data->ToInts();
      for (std::int64_t& q : codes) q -= half;
      v->data = TensorRef::FromInts(to, v->data->dims, codes);
    }
  };
  const auto both = [&](Value* v) {
    if (v == nullptr) return;
    if (mixed) convert(v, DType::kU8, DType::kS8);
    convert(v, DType::kU16, DType::kS16);
  };
  for (Value* v : old_.constants()) both(v);
  for (Node* node = old_.first(); node != nullptr; node = node->next()) {
    for (Value* v : node->outputs()) both(v);
  }
}

// Before:  %e = Expand(%x : s64, shape);  %c = Cast(%e) to f32
// After:   %n = Cast(%x) to f32;          %c = Expand(%n, shape)
// The same numbers, fewer of them converted; and onert has TILE in float only.
void CircleLowering::CastBeforeExpand() {
  for (Node* cast : old_.nodes()) {
    if (!cast->Is("Cast") || cast->output()->type.quant || !IsFloat(cast->output()->type.dtype)) continue;
    Value* expanded = cast->input(0);
    Node* expand = expanded == nullptr ? nullptr : expanded->producer();
    if (expand == nullptr || !expand->Is("Expand") || expanded->uses().size() != 1 || expanded->is_graph_output() ||
        expanded->type.quant || !expand->input(0)->type.shape) {
      continue;
    }
    Type narrow = cast->output()->type;
    narrow.shape = expand->input(0)->type.shape;
    Node* first =
        old_.AddNode("Cast", "", {expand->input(0)}, {{cast->output()->name() + "_cast", std::move(narrow)}}, expand);
    first->SetAttribute("to", cast->IntAttribute("to", 1));
    first->name = cast->name;
    Node* last = old_.AddNode("Expand", "", {first->output(), expand->input(1)},
                              {{cast->output()->name() + "_expanded", cast->output()->type}}, cast->next());
    last->name = expand->name;
    Value* gone = cast->output();
    if (gone->is_graph_output()) old_.SwapNames(gone, last->output());
    old_.ReplaceAllUses(gone, last->output());
  }
  old_.EraseDead();
}

namespace {

std::optional<float> ScalarConstant(const Value* v) {
  if (v == nullptr || !v->is_constant() || !v->data || v->type.quant || v->data->dtype != DType::kF32 ||
      v->data->elements() != 1) {
    return std::nullopt;
  }
  return v->data->ToFloats()[0];
}

bool IsAbout(std::optional<float> x, double want) { return x && std::fabs(*x - want) <= 2e-5 * std::fabs(want); }

const Value* OtherInput(const Node& node, const Value* one) {
  return node.input(0) == one ? node.input(1) : node.input(0);
}

bool ScalarOperand(const Node& node, const Value* x, double want) {
  return IsAbout(ScalarConstant(OtherInput(node, x)), want);
}

// Relu and Relu6 as an activation of the operator in front.
std::string_view FusedName(const Node& node) {
  if (node.Is("Relu")) return "RELU";
  if (!node.Is("Clip")) return {};
  std::optional<float> low, high;
  if (const Attribute* a = node.FindAttribute("min"); a != nullptr) low = node.FloatAttribute("min", 0);
  if (const Attribute* a = node.FindAttribute("max"); a != nullptr) high = node.FloatAttribute("max", 0);
  if (node.input(1) != nullptr) low = ScalarConstant(node.input(1));
  if (node.input(2) != nullptr) high = ScalarConstant(node.input(2));
  return low == 0.0f && high == 6.0f ? "RELU6" : std::string_view{};
}

}  // namespace

void CircleLowering::FindGelu(const Node& erf) {
  // x * (1 + erf(x / sqrt 2)) * 0.5, the factors in any order.
  const Value* scaled = erf.input(0);
  const Node* scale = scaled == nullptr ? nullptr : scaled->producer();
  if (scale == nullptr || scaled->type.quant || scaled->uses().size() != 1 || scaled->is_graph_output()) return;
  const Value* x = nullptr;
  if (scale->Is("Div") && IsAbout(ScalarConstant(scale->input(1)), std::sqrt(2.0))) x = scale->input(0);
  if (scale->Is("Mul")) {
    for (int i = 0; i < 2; ++i) {
      if (IsAbout(ScalarConstant(scale->input(static_cast<std::size_t>(i))), std::sqrt(0.5)))
        x = scale->input(static_cast<std::size_t>(1 - i));
    }
  }
  const Node* add = SoleUser(erf.output());
  if (x == nullptr || erf.output()->type.quant || add == nullptr || !add->Is("Add") ||
      !ScalarOperand(*add, erf.output(), 1) || add->output()->type.quant) {
    return;
  }
  std::vector<const Node*> gone{scale, &erf, add};
  const Node* first = SoleUser(add->output());
  if (first == nullptr || !first->Is("Mul")) return;
  const Value* other = OtherInput(*first, add->output());
  const Node* last = nullptr;
  if (other == x) {
    const Node* half = SoleUser(first->output());
    if (first->output()->type.quant || half == nullptr || !half->Is("Mul") ||
        !ScalarOperand(*half, first->output(), 0.5))
      return;
    gone.push_back(first);
    last = half;
  } else if (IsAbout(ScalarConstant(other), 0.5)) {
    const Node* times = SoleUser(first->output());
    if (first->output()->type.quant || times == nullptr || !times->Is("Mul") ||
        OtherInput(*times, first->output()) != x)
      return;
    gone.push_back(first);
    last = times;
  } else {
    const Node* half = other == nullptr ? nullptr : other->producer();
    if (half == nullptr || !half->Is("Mul") || other->type.quant || SoleUser(other) == nullptr ||
        (half->input(0) != x && half->input(1) != x) || !ScalarOperand(*half, x, 0.5)) {
      return;
    }
    gone.push_back(half);
    last = first;
  }
  absorbed_.insert(gone.begin(), gone.end());
  gelu_[last] = {x};
}

void CircleLowering::FindFusions() {
  for (const Node* node = old_.first(); node != nullptr; node = node->next()) {
    if (node->Is("Erf")) FindGelu(*node);
  }
  for (const Node* node = old_.first(); node != nullptr; node = node->next()) {
    // The bias of a MatMul with constant weights.
    if (node->Is("MatMul") && node->input(1) != nullptr && node->input(1)->is_constant() &&
        DimsOf(node->input(1)).size() == 2 && !node->output()->type.quant) {
      const Node* add = SoleUser(node->output());
      if (add == nullptr || !add->Is("Add") || gelu_.contains(add) || absorbed_.contains(add)) continue;
      const Value* bias = OtherInput(*add, node->output());
      const std::int64_t n = DimsOf(node->input(1))[1];
      if (bias == nullptr || !bias->is_constant() || !bias->data || DimsOf(bias).empty() || DimsOf(bias).back() != n ||
          bias->data->elements() != static_cast<std::uint64_t>(n) ||
          DimsOf(bias).size() > DimsOf(node->output()).size()) {
        continue;
      }
      if (bias->type.quant && (bias->type.quant->kind != QuantType::Kind::kAffine)) continue;
      bias_add_[node] = add;
      absorbed_.insert(add);
    }
  }
  for (const Node* node = old_.first(); node != nullptr; node = node->next()) {
    const std::string_view name = FusedName(*node);
    if (name.empty()) continue;
    const Value* x = node->input(0);
    const Node* producer = x == nullptr ? nullptr : x->producer();
    if (producer == nullptr || x->type.quant || SoleUser(x) != node || !producer->domain().empty()) continue;
    const bool takes = producer->Is("Conv") || producer->Is("Gemm") || producer->Is("MatMul") || producer->Is("Add") ||
                       producer->Is("Sub") || producer->Is("Mul") || producer->Is("Div");
    if (!takes || gelu_.contains(producer)) continue;
    // Two activations never: an Add that stands for a MatMul's bias is the MatMul's end.
    fused_[producer] = node;
    activation_[node] = name;
    absorbed_.insert(node);
  }
}

}  // namespace octavo::internal
