#include "octavo/emit/scales.h"

#include <vector>

#include "octavo/numerics/half.h"

namespace octavo {

Value* AddScales(Graph& graph, const std::string& name, const TensorRef& scales) {
  constexpr std::uint64_t kMany = 256;  // below, a Cast takes as many bytes as it saves
  if (scales.dtype != DType::kF32 || scales.elements() < kMany) return graph.AddConstant(name, scales);
  const std::vector<float> values = scales.ToFloats();
  std::vector<std::byte> halves(2 * values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t half = FloatToHalf(values[i]);
    if (HalfToFloat(half) != values[i]) return graph.AddConstant(name, scales);
    halves[2 * i] = static_cast<std::byte>(half & 0xFF);
    halves[2 * i + 1] = static_cast<std::byte>(half >> 8);
  }
  Value* stored = graph.AddConstant(name, TensorRef::FromBytes(DType::kF16, scales.dims, std::move(halves)));
  Type type = stored->type;
  type.dtype = DType::kF32;
  Node* cast = graph.AddNode("Cast", "", {stored}, {{stored->name() + "_f32", std::move(type)}}, graph.first());
  cast->SetAttribute("to", std::int64_t{1});
  return cast->output();
}

void EraseScales(Value* scales) {
  if (Node* cast = scales->producer()) {
    Value* stored = cast->input(0);
    cast->graph()->Erase(cast);
    scales = stored;
  }
  scales->graph()->Erase(scales);
}

}  // namespace octavo
