// Before:  %y = octavo.MXFakeQuantize(%x)        After:  %q = octavo.QuantizeMx(%x)
//                                                        %y = octavo.DequantizeMx(%q)
// Before:  %y = octavo.FakeQuantize(%x, s, z)    After:  %q = QuantizeLinear(%x, s, z)
//                                                        %y = DequantizeLinear(%q, s, z)
#include <algorithm>
#include <optional>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/rewrite/fake_quantize.h"
#include "octavo/rewrite/rule.h"

namespace octavo {
namespace {

void CopyAttributes(const Node& from, Node& to) {
  for (const char* name : {"elem_format", "rounding", "shared_exponent"}) {
    if (from.FindAttribute(name) != nullptr) to.SetAttribute(name, from.StringAttribute(name, ""));
  }
  for (const char* name : {"axis", "block_size"}) {
    if (from.FindAttribute(name) != nullptr) to.SetAttribute(name, from.IntAttribute(name, 0));
  }
}

void TakeOver(Graph& graph, Node& old, Value* result) {
  Value* y = old.output();
  const std::string name = y->name();
  result->extras = y->extras;
  graph.ReplaceAllUses(y, result);
  graph.Erase(&old);
  graph.Rename(result, name);
}

void DecomposeMx(Node& node) {
  Graph& graph = *node.graph();
  Value* x = node.input(0);
  const Type type = node.output()->type;
  Node* q =
      graph.AddNode("QuantizeMx", std::string(kOctavoDomain), {x}, {{node.output()->name() + "_mx", type}}, &node);
  Node* dq = graph.AddNode("DequantizeMx", std::string(kOctavoDomain), {q->output()},
                           {{node.output()->name() + "_d", type}}, &node);
  q->name = node.name;
  CopyAttributes(node, *q);
  CopyAttributes(node, *dq);
  TakeOver(graph, node, dq->output());
}

// The smallest integer type that holds [low, high].
std::optional<DType> StorageOf(std::int64_t low, std::int64_t high) {
  for (const DType t : {DType::kU8, DType::kS8, DType::kU16, DType::kS16}) {
    if (IntegerMin(t) <= low && high <= IntegerMax(t)) return t;
  }
  return std::nullopt;
}

// The number that `code` stands for.
float Bound(std::int64_t code, std::int64_t zero, float scale) { return static_cast<float>(code - zero) * scale; }

// Numbers within the codes `low` to `high`: one scale and zero point, or one for each index of the node's axis. nullopt
// where they do not fit.
std::optional<TensorRef> Clipped(const TensorRef& data, const Node& node, const std::vector<float>& scales,
                                 const std::vector<std::int64_t>& zeros, std::int64_t low, std::int64_t high) {
  std::vector<float> values = data.ToFloats();
  std::size_t inner = std::max<std::size_t>(values.size(), 1);
  if (scales.empty()) return std::nullopt;
  if (scales.size() != 1) {
    const auto rank = static_cast<std::int64_t>(data.dims.size());
    std::int64_t axis = node.IntAttribute("axis", 1);
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank) return std::nullopt;
    const auto at = data.dims.begin() + axis;
    if (*at != static_cast<std::int64_t>(scales.size())) return std::nullopt;
    inner = 1;
    for (auto d = at + 1; d != data.dims.end(); ++d) inner *= static_cast<std::size_t>(*d);
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t c = i / inner % scales.size();
    // Not std::clamp: a NaN stays one.
    const float bottom = Bound(low, zeros[c], scales[c]), top = Bound(high, zeros[c], scales[c]);
    if (values[i] < bottom) values[i] = bottom;
    if (values[i] > top) values[i] = top;
  }
  return TensorRef::FromFloats(data.dims, values);
}

MatchOr<bool> DecomposeAffine(Node& node) {
  Graph& graph = *node.graph();
  Value *x = node.input(0), *scale = node.input(1), *zero = node.input(2);
  if (x == nullptr || scale == nullptr || !scale->is_constant() || !scale->data)
    return Refusal{"its scale is not a constant"};
  if (zero != nullptr && (!zero->is_constant() || !zero->data)) return Refusal{"its zero point is not a constant"};
  if (scale->data->dtype != DType::kF32) return Refusal{"its scale is not f32"};
  const std::int64_t low = node.IntAttribute("quant_min", 0), high = node.IntAttribute("quant_max", 255);
  const std::optional<DType> storage = StorageOf(low, high);
  if (!storage || low >= high) return Refusal{"its range fits no integer type of 8 or 16 bits"};
  std::vector<std::int64_t> zeros(scale->data->elements(), 0);
  if (zero != nullptr) {
    if (zero->data->elements() != zeros.size()) return Refusal{"its zero point does not have the scale's shape"};
    if (IsInteger(zero->data->dtype)) {
      zeros = zero->data->ToInts();
    } else {
      const std::vector<float> floats = zero->data->ToFloats();
      for (std::size_t i = 0; i < floats.size(); ++i) {
        zeros[i] = static_cast<std::int64_t>(floats[i]);
        if (static_cast<float>(zeros[i]) != floats[i]) return Refusal{"a zero point is not a whole number"};
      }
    }
  }
  for (const std::int64_t z : zeros) {
    if (z < low || z > high) return Refusal{"a zero point lies outside of its range"};
  }
  const Type type = node.output()->type;
  if (low != IntegerMin(*storage) || high != IntegerMax(*storage)) {
    const std::vector<float> scales = scale->data->ToFloats();
    if (x->is_constant() && x->data && x->data->dtype == DType::kF32 && !x->type.quant) {
      const std::optional<TensorRef> clipped = Clipped(*x->data, node, scales, zeros, low, high);
      if (!clipped) return Refusal{"its scales do not fit its axis"};
      x = graph.AddConstant(node.output()->name() + "_clipped", *clipped);
    } else if (zeros.size() != 1) {
      return Refusal{"its range is narrower than the integer type's, for each channel"};
    } else {
      const auto bound = [&](const char* name, std::int64_t code) {
        return graph.AddConstant(node.output()->name() + name, TensorRef::Scalar(Bound(code, zeros[0], scales[0])));
      };
      x = graph
              .AddNode("Clip", "", {x, bound("_min", low), bound("_max", high)},
                       {{node.output()->name() + "_clipped", type}}, &node)
              ->output();
    }
  }
  Value* z =
      graph.AddConstant(node.output()->name() + "_zero_point", TensorRef::FromInts(*storage, scale->data->dims, zeros));
  Type codes = type;
  codes.dtype = *storage;
  Node* q = graph.AddNode("QuantizeLinear", "", {x, scale, z}, {{node.output()->name() + "_q", codes}}, &node);
  Node* dq =
      graph.AddNode("DequantizeLinear", "", {q->output(), scale, z}, {{node.output()->name() + "_d", type}}, &node);
  q->name = node.name;
  if (const Attribute* axis = node.FindAttribute("axis"); axis != nullptr && scale->data->elements() > 1) {
    q->SetAttribute("axis", node.IntAttribute("axis", 1));
    dq->SetAttribute("axis", node.IntAttribute("axis", 1));
  }
  Value* before = node.input(0);
  TakeOver(graph, node, dq->output());
  if (before != x && before->is_constant() && before->dead()) before->graph()->Erase(before);
  return true;
}

}  // namespace

std::int64_t DecomposeFakeQuantize(Model& model) {
  std::vector<Node*> found;
  VisitNodes(*model.graph, [&](Node& node) {
    if (node.Is("MXFakeQuantize", kOctavoDomain) || node.Is("FakeQuantize", kOctavoDomain)) found.push_back(&node);
  });
  std::int64_t taken = 0;
  for (Node* node : found) {
    if (node->input(0) == nullptr || node->output() == nullptr) continue;
    if (node->Is("MXFakeQuantize", kOctavoDomain)) {
      DecomposeMx(*node);
      ++taken;
      continue;
    }
    const std::string name = Describe(*node);
    const MatchOr<bool> done = DecomposeAffine(*node);
    if (const auto* refusal = std::get_if<Refusal>(&done)) {
      LogWarning("FakeQuantize stays as it is: " + name + ": " + refusal->reason);
    } else {
      ++taken;
    }
  }
  return taken;
}

}  // namespace octavo
