// The Q/DQ operators beside an operator, for passes that change them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// The codes behind a DequantizeLinear, with its constant parameters.
struct Codes {
  const Node* dequantize = nullptr;
  const Value* codes = nullptr;  // null: computed
  std::vector<float> scales;
  std::vector<std::int64_t> zeros;  // as many as scales
  DType storage = DType::kUndefined;
};

// nullopt where `v` is null, is not made by a DequantizeLinear, or its parameters are computed.
std::optional<Codes> Behind(const Value* v);

// The QuantizeLinear that alone reads `v`, in one constant scale and zero point; null: there is none.
Node* OnlyQuantize(const Value* v);

// DequantizeLinear of constant codes, in front of `at`; `axis` is that of the scales where there are several. `zero`
// may be null. Names are made from `name`.
Value* Dequantized(Graph& graph, TensorRef codes, Value* scale, Value* zero, std::int64_t axis, const std::string& name,
                   Node* at);

// DequantizeLinear(QuantizeLinear(x)) in the codes of `storage`, in front of `at`; names are made from `name`.
Value* Requantized(Graph& graph, Value* x, Value* scale, Value* zero, DType storage, const std::string& name, Node* at);

// The same in 16 bits that hold all of the u8 numbers of `scale` and `zero`.
Value* InWide(Graph& graph, Value* x, float scale, std::int64_t zero, Node* at);

}  // namespace octavo
