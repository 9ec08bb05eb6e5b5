// Operators of ONNX Runtime (domain com.microsoft) that its optimizer makes of standard ones. Internal to rules/.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/rewrite/speller.h"

namespace octavo {

inline constexpr std::string_view kContribDomain = "com.microsoft";

// How one of them is written in standard operators.
struct ContribForm {
  std::string_view op, rule;
  // Why this node stays; empty: it is written. Its input 0 and its output have known dimensions by then.
  std::string (*refusal)(const Node&);
  // Writes it: gives what takes the place of output 0, made by a new node; the other outputs go by Substitute.
  Value* (*write)(Speller&, Node&);
};
std::span<const ContribForm> ContribFunctions();   // contrib.cc: activations and products
std::span<const ContribForm> ContribNorms();       // contrib_norm.cc
std::span<const ContribForm> ContribAttentions();  // contrib_attention.cc

// The dimensions of a value, which are known.
inline Dims DimsOf(const Value* v) { return *StaticShape(v->type); }
inline bool HasDims(const Value* v, const Dims& dims) { return v != nullptr && StaticShape(v->type) == dims; }
inline Dims SwappedEnds(Dims dims) {
  std::swap(dims[dims.size() - 1], dims[dims.size() - 2]);
  return dims;
}
inline bool IsUsed(const Node& node, std::size_t output) {
  return node.output(output) != nullptr && !node.output(output)->dead();
}

// `by`, which a new node makes, for output `i` of `node`, where that is used; a graph output keeps its name and type.
inline void Substitute(Node& node, std::size_t i, Value* by) {
  Value* old = node.output(i);
  if (old == nullptr || old->dead()) return;
  if (old->is_graph_output()) {
    by->type = old->type;
    by->extras = old->extras;
    node.graph()->SwapNames(old, by);
  }
  node.graph()->ReplaceAllUses(old, by);
}

}  // namespace octavo
