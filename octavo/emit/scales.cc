#include "octavo/emit/scales.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "octavo/numerics/half.h"

namespace octavo {
namespace {

constexpr std::uint64_t kMany = 256;  // below, the nodes take as many bytes as they save

struct Steps {
  TensorRef steps;                  // the shape of the scales, 1 along the axis
  std::vector<std::int64_t> codes;  // of the scales
};

std::optional<Steps> StepsOf(const std::vector<float>& scales, const Dims& dims, std::int64_t axis) {
  if (axis < 0 || axis >= static_cast<std::int64_t>(dims.size())) return std::nullopt;
  const auto at = static_cast<std::size_t>(axis);
  const auto count = static_cast<std::size_t>(dims[at]);
  if (count < 2) return std::nullopt;
  std::size_t inner = 1;
  for (std::size_t i = at + 1; i < dims.size(); ++i) inner *= static_cast<std::size_t>(dims[i]);
  Steps found;
  found.codes.resize(scales.size());
  std::vector<float> steps(scales.size() / count);
  for (std::size_t line = 0; line < steps.size(); ++line) {
    const std::size_t first = line / inner * inner * count + line % inner;
    float most = 0;
    for (std::size_t k = 0; k < count; ++k) most = std::max(most, scales[first + k * inner]);
    const float step = most / 15;
    if (!std::isnormal(step)) return std::nullopt;
    for (std::size_t k = 0; k < count; ++k) {
      const float scale = scales[first + k * inner], code = std::nearbyint(scale / step);
      if (!(code >= 1 && code <= 15) || code * step != scale) return std::nullopt;
      found.codes[first + k * inner] = static_cast<std::int64_t>(code);
    }
    steps[line] = step;
  }
  Dims shape = dims;
  shape[at] = 1;
  found.steps = TensorRef::FromFloats(std::move(shape), steps);
  return found;
}

std::optional<TensorRef> Halves(const std::vector<float>& values, const Dims& dims) {
  std::vector<std::byte> halves(2 * values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t half = FloatToHalf(values[i]);
    if (HalfToFloat(half) != values[i]) return std::nullopt;
    halves[2 * i] = static_cast<std::byte>(half & 0xFF);
    halves[2 * i + 1] = static_cast<std::byte>(half >> 8);
  }
  return TensorRef::FromBytes(DType::kF16, dims, std::move(halves));
}

// `before`: the node that stood first.
Value* Widen(Graph& graph, Value* stored, Node* before) {
  Type type = stored->type;
  type.dtype = DType::kF32;
  Node* cast = graph.AddNode("Cast", "", {stored}, {{stored->name() + "_f32", std::move(type)}}, before);
  cast->SetAttribute("to", std::int64_t{1});
  return cast->output();
}

Value* AddHalves(Graph& graph, const std::string& name, const TensorRef& numbers, Node* before) {
  if (numbers.elements() < kMany) return graph.AddConstant(name, numbers);
  std::optional<TensorRef> halves = Halves(numbers.ToFloats(), numbers.dims);
  if (!halves) return graph.AddConstant(name, numbers);
  return Widen(graph, graph.AddConstant(name, std::move(*halves)), before);
}

}  // namespace

Value* AddScales(Graph& graph, const std::string& name, const TensorRef& scales, std::int64_t axis) {
  if (scales.dtype != DType::kF32 || scales.elements() < kMany) return graph.AddConstant(name, scales);
  Node* before = graph.first();
  std::optional<Steps> steps = StepsOf(scales.ToFloats(), scales.dims, axis);
  if (!steps) return AddHalves(graph, name, scales, before);
  Value* codes =
      Widen(graph, graph.AddConstant(name, TensorRef::FromInts(DType::kU4, scales.dims, steps->codes)), before);
  Value* unit = AddHalves(graph, name + "_step", steps->steps, before);
  Type type = codes->type;
  return graph.AddNode("Mul", "", {codes, unit}, {{name + "_product", std::move(type)}}, before)->output();
}

void EraseScales(Value* scales) {
  std::vector<Value*> dead{scales};
  while (!dead.empty()) {
    Value* value = dead.back();
    dead.pop_back();
    if (!value->dead()) continue;
    Node* node = value->producer();
    if (node == nullptr) {
      value->graph()->Erase(value);
      continue;
    }
    dead.insert(dead.end(), node->inputs().begin(), node->inputs().end());
    node->graph()->Erase(node);
  }
}

}  // namespace octavo
