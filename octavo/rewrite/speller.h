// What writes operators in the place of one node. Internal to spell_float*.cc and rules/contrib*.cc.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// Writes operators in front of one node, in the type of its input where nothing else is said.
class Speller {
 public:
  Speller(Node& node, std::int64_t opset);

  // The result has the shape of the node's input.
  Value* Op(std::string_view op, const std::vector<Value*>& inputs) { return Op(op, inputs, like_); }
  Value* Op(std::string_view op, const std::vector<Value*>& inputs, Type type);
  Value* Number(float value);
  Value* Ints(const Dims& values) { return Ints(values, {static_cast<std::int64_t>(values.size())}); }
  Value* Ints(const Dims& values, Dims shape);
  Value* Slice(Value* v, std::int64_t axis, std::int64_t start, std::int64_t end, std::int64_t step = 1);
  Value* Reshape(Value* v, const Dims& to);

  Node& node() const { return node_; }
  Value* x() const { return node_.input(0); }
  const Type& like() const { return like_; }  // of the input, without its codes
  std::int64_t opset() const { return opset_; }

 private:
  Node& node_;
  Graph& graph_;
  Type like_;
  std::int64_t opset_;
};

Type WithType(Type type, DType dtype);
// The numbers of a constant, behind a DequantizeLinear of one scale too; nothing where it is computed or long.
std::optional<std::vector<float>> KnownNumbers(const Value* v);
// Axes from 0 on, in order; all of them where none is named. Nothing where they are computed or out of range.
std::optional<Dims> AxesOf(const Node& node, std::int64_t rank);
Type Reduced(const Type& x, const Dims& axes, bool keep);

struct Spelling {
  std::string_view op;
  Value* (*spell)(Speller&, Node&);  // gives null: not in this form
  std::int64_t opset = 7;            // the first that has all the parts
  bool any_type = false;             // input 0 need not be float
};
std::span<const Spelling> ElementwiseSpellings();  // spell_float.cc
std::span<const Spelling> AxisSpellings();         // spell_float_axis.cc

}  // namespace octavo
