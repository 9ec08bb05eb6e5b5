#include <algorithm>
#include <array>

#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

// Operators, beside QLinear*, that compute on quantized tensors or make them.
constexpr std::array<std::string_view, 22> kQuantizedOps = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
    // com.microsoft
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "MatMulBnb4", "MatMulFpQ4",
    "QGemm", "QAttention", "QEmbedLayerNormalization", "QOrderedMatMul", "QOrderedAttention", "QOrderedGelu",
    "QOrderedLayerNormalization", "QuantizeWithOrder", "DequantizeWithOrder", "GatherBlockQuantized", "QMoE"};

bool Quantized(const Value* value) { return value != nullptr && value->type.quant.has_value(); }

}  // namespace

bool IsQuantized(const Model& model) {
  bool found = false;
  for (const Value* input : model.graph->inputs()) found = found || Quantized(input);
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& node) {
    if (found) return;
    found = node.op().starts_with("QLinear") || node.domain() == "octavo" ||
            std::find(kQuantizedOps.begin(), kQuantizedOps.end(), node.op()) != kQuantizedOps.end() ||
            std::any_of(node.inputs().begin(), node.inputs().end(), Quantized) ||
            std::any_of(node.outputs().begin(), node.outputs().end(), Quantized);
  });
  return found;
}

}  // namespace octavo
