// Which quantized weight reaches which operator, through operators that move values and compute nothing.
#pragma once

#include <string>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo::stablehlo {

struct WeightLayout {
  const Value* weight;
  std::vector<std::string> reaches;  // "MatMul 'fc' through Transpose"
  std::vector<std::string> lost;     // "at Reshape 'r': it cuts blocks"
};

struct EncodingTrace {
  std::vector<WeightLayout> layouts;  // of every quantized constant, in the graph's order
  std::vector<std::string> lines;     // for people, one a weight and use
};
EncodingTrace TraceEncodings(const Graph& graph);

// " attributes {octavo.tensor_layouts = {...}, skainet.tensor_encodings = {...}}", or "" when nothing is quantized.
std::string ModuleAttributes(const EncodingTrace& trace);

}  // namespace octavo::stablehlo
