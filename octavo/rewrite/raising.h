// The class behind RaiseCircle: one method for each operator of the domain `circle`. Internal to this room.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

class Raising {
 public:
  explicit Raising(Graph& graph) : graph_(graph) {}
  void Run();  // subgraphs too

 private:
  using Perm = std::vector<std::int64_t>;
  using Method = void (Raising::*)(Node&);

  [[noreturn]] void Refuse(const Node& node, const std::string& why) const;
  void Raise(Node& node);
  void WideBias(Value& constant);
  void RawInput(Value& input);

  // What the operators are put together from (raise_circle.cc).
  Dims DimsOf(const Value* v) const { return *StaticShape(v->type); }
  Dims DimsOf(const Node& node, std::size_t input, std::size_t rank) const;  // refuses another rank, or no input
  std::vector<std::int64_t> IntsOf(const Node& node, std::size_t i) const;   // of a constant; refused otherwise
  std::int64_t IntOf(const Node& node, std::size_t i) const;                 // of a constant of one number
  std::int64_t AxisOf(const Node& node, std::int64_t axis, std::size_t rank) const;  // not negative, within the rank
  Value* Int64s(const std::vector<std::int64_t>& values, const std::string& name);
  Value* Scalar(float number, const std::string& name);
  Value* Move(Node& node, Value* v, const Perm& perm);
  void Replace(Node& node, Value* y);
  void ReplaceAll(Node& node, const std::vector<Value*>& ys);
  Value* Add(Node& before, const std::string& op, std::vector<Value*> inputs, const Type& type,
             const std::string& domain = {});
  Type Plain(const Node& node, std::size_t output = 0) const;
  Type Shaped(const Node& node, const Dims& dims) const;  // the node's float type in another shape
  Value* Reshaped(Node& node, Value* x, const Dims& dims);
  Value* Activate(Node& node, Value* y);
  void FinishSpatial(Node& node, Value* y);
  Type SpatialType(const Node& node) const;
  void CheckWindow(const Node& node, const Dims& in, const Dims& window, const Perm& dilation) const;
  void SetWindow(const Node& node, Node& to) const;

  // raise_circle.cc: products, windows, elementwise operators.
  void Conv(Node& node);
  void TransposeConv(Node& node);
  void Pool(Node& node);
  void Resize(Node& node);
  void DepthToSpace(Node& node);
  void LocalResponse(Node& node);
  void FullyConnected(Node& node);
  void BatchMatMul(Node& node);
  void Simple(Node& node);
  void Gelu(Node& node);
  bool SpatialMean(Node& node);
  void Reduce(Node& node);
  void QuantizeOrNot(Node& node);
  void Clip(Node& node);
  void Composed(Node& node);
  void Normalize(Node& node);
  void If(Node& node);

  // raise_circle_shapes.cc: operators that move numbers, and indices.
  void Pad(Node& node);
  void Slice(Node& node);
  void StridedSlice(Node& node);
  void ToShape(Node& node);
  void Transpose(Node& node);
  void Tile(Node& node);
  void Expand(Node& node);
  void Split(Node& node);
  void Pack(Node& node);
  void Unpack(Node& node);
  void TopK(Node& node);
  void ArgExtreme(Node& node);
  void Select(Node& node);
  void Gather(Node& node);
  Value* Wide(Node& node, Value* indices);  // as 64-bit integers
  void GatherNd(Node& node);
  void ScatterNd(Node& node);
  void OneHot(Node& node);
  void Reverse(Node& node);
  void CumSum(Node& node);
  void SpaceToBatch(Node& node);
  void BatchToSpace(Node& node);
  void ReduceBool(Node& node);

  // raise_circle_lstm.cc
  void Lstm(Node& node);

  Graph& graph_;
};

}  // namespace octavo
