#include "octavo/compile/recode_constants.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "octavo/compile/codes.h"

namespace octavo {
namespace {

// The one scale and zero point that all that read `v` quantize it to, in 16 bits; null where there are others.
const Node* OnlyQuantize(const Value& v) {
  const Node* found = nullptr;
  for (const Use& use : v.uses()) {
    const Node* node = use.node;
    const Value *scale = node->input(1), *zero = node->input(2);
    if (!node->Is("QuantizeLinear") || use.index != 0 || zero == nullptr || !scale->data || !zero->data) return nullptr;
    if (BitWidth(zero->data->dtype) != 16 || scale->data->elements() != 1 || !(scale->data->ToFloats()[0] > 0))
      return nullptr;
    if (found != nullptr && (found->input(1) != scale || found->input(2) != zero)) return nullptr;
    found = node;
  }
  return v.is_graph_output() ? nullptr : found;
}

bool Recode(Graph& graph, Node* node, std::size_t input, const Node& quantize) {
  const std::optional<Codes> from = Behind(node->input(input));
  if (!from || from->codes == nullptr || !from->codes->data || from->scales.size() != 1) return false;
  Value *scale = quantize.input(1), *zero = quantize.input(2);
  if (from->dequantize->input(1) == scale && from->dequantize->input(2) == zero) return false;
  const float step = scale->data->ToFloats()[0];
  const DType storage = zero->data->dtype;
  const std::int64_t middle = zero->data->ToInts()[0];
  std::vector<std::int64_t> codes = from->codes->data->ToInts();
  for (std::int64_t& code : codes) {
    const float number = static_cast<float>(code - from->zeros[0]) * from->scales[0];
    // Bounded before it is an integer: 2^17 codes are more than there are.
    const float steps = std::clamp(std::nearbyint(number / step), -131072.0f, 131072.0f);
    code = std::clamp(static_cast<std::int64_t>(steps) + middle, IntegerMin(storage), IntegerMax(storage));
  }
  const std::string base = node->input(input)->name() + "_recoded";
  Value* recoded =
      Dequantized(graph, TensorRef::FromInts(storage, from->codes->data->dims, codes), scale, zero, 0, base, node);
  recoded->type = node->input(input)->type;
  node->SetInput(input, recoded);
  return true;
}

}  // namespace

std::int64_t RecodeConstants(Model& model) {
  std::int64_t count = 0;
  for (Node* node : model.graph->nodes()) {
    const bool choice = node->Is("Where");
    if ((!choice && !node->Is("Concat")) || node->output() == nullptr) continue;
    const Node* quantize = OnlyQuantize(*node->output());
    if (quantize == nullptr) continue;
    for (std::size_t i = choice ? 1 : 0; i < node->inputs().size(); ++i) {
      if (Recode(*model.graph, node, i, *quantize)) ++count;
    }
  }
  return count;
}

}  // namespace octavo
