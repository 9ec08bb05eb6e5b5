#include "octavo/rewrite/add_constant.h"

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

Value* AddInts(Graph& graph, const std::string& base, const Dims& values) {
  return graph.AddConstant(graph.UniqueName(base),
                           TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(values.size())}, values));
}

}  // namespace octavo
