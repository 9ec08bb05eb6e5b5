#include "octavo/compile/codes.h"

#include <utility>

#include "octavo/ir/make_type.h"
#include "octavo/ir/users.h"

namespace octavo {

std::optional<Codes> Behind(const Value* v) {
  const Node* dequantize = v == nullptr ? nullptr : v->producer();
  if (dequantize == nullptr || !dequantize->Is("DequantizeLinear")) return std::nullopt;
  const Value* scale = dequantize->input(1);
  const Value* zero = dequantize->input(2);  // absent: 0
  if (scale == nullptr || !scale->data || (zero != nullptr && !zero->data)) return std::nullopt;
  Codes out;
  out.dequantize = dequantize;
  if (dequantize->input(0)->is_constant()) out.codes = dequantize->input(0);
  out.scales = scale->data->ToFloats();
  out.zeros = zero == nullptr ? std::vector<std::int64_t>(out.scales.size(), 0) : zero->data->ToInts();
  out.storage = zero == nullptr ? dequantize->input(0)->type.dtype : zero->data->dtype;
  if (out.scales.empty() || out.zeros.size() != out.scales.size()) return std::nullopt;
  return out;
}

Node* OnlyQuantize(const Value* v) {
  Node* quantize = SoleUser(v);
  if (quantize == nullptr || !quantize->Is("QuantizeLinear") || quantize->input(0) != v) return nullptr;
  const Value *scale = quantize->input(1), *zero = quantize->input(2);
  if (scale == nullptr || !scale->data || scale->data->elements() != 1) return nullptr;
  return zero != nullptr && zero->data && zero->data->elements() == 1 ? quantize : nullptr;
}

Value* Dequantized(Graph& graph, TensorRef codes, Value* scale, Value* zero, std::int64_t axis, const std::string& name,
                   Node* at) {
  std::vector<Value*> inputs = {graph.AddConstant(graph.UniqueName(name), std::move(codes)), scale};
  if (zero != nullptr) inputs.push_back(zero);
  Node* dequantize = graph.AddNode("DequantizeLinear", "", std::move(inputs),
                                   {{graph.UniqueName(name + "_dq"), TypeOf(DType::kF32)}}, at);
  if (scale->data->elements() > 1) dequantize->SetAttribute("axis", axis);
  return dequantize->output();
}

Value* Requantized(Graph& graph, Value* x, Value* scale, Value* zero, DType storage, const std::string& name,
                   Node* at) {
  Value* codes =
      graph.AddNode("QuantizeLinear", "", {x, scale, zero}, {{graph.UniqueName(name + "_q"), TypeOf(storage)}}, at)
          ->output();
  return graph
      .AddNode("DequantizeLinear", "", {codes, scale, zero}, {{graph.UniqueName(name + "_dq"), TypeOf(DType::kF32)}},
               at)
      ->output();
}

Value* InWide(Graph& graph, Value* x, float scale, std::int64_t zero, Node* at) {
  constexpr std::int64_t kTimes = 257;  // 257 * 255 = 65535
  const std::string base = x->name() + "_wide";
  Value* wide_scale =
      graph.AddConstant(graph.UniqueName(base + "_scale"), TensorRef::Scalar(scale / static_cast<float>(kTimes)));
  Value* wide_zero = graph.AddConstant(graph.UniqueName(base + "_zero_point"),
                                       TensorRef::FromInts(DType::kU16, {}, std::vector<std::int64_t>{zero * kTimes}));
  return Requantized(graph, x, wide_scale, wide_zero, DType::kU16, base, at);
}

}  // namespace octavo
