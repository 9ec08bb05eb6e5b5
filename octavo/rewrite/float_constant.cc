#include "octavo/rewrite/float_constant.h"

#include <cstring>
#include <utility>
#include <vector>

namespace octavo {

Value* AddFloatConstant(Graph& graph, const std::string& base, DType dtype, Dims dims, std::span<const float> values) {
  if (dtype == DType::kF32) {
    return graph.AddConstant(graph.UniqueName(base), TensorRef::FromFloats(std::move(dims), values));
  }
  std::vector<std::byte> bytes(values.size() * sizeof(std::uint16_t));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto half = static_cast<std::uint16_t>(FloatToBits(dtype, values[i]));
    std::memcpy(&bytes[i * sizeof half], &half, sizeof half);
  }
  return graph.AddConstant(graph.UniqueName(base), TensorRef::FromBytes(dtype, std::move(dims), std::move(bytes)));
}

}  // namespace octavo
