#include "octavo/compile/concat_volumes.h"

#include <optional>
#include <vector>

#include "octavo/compile/codes.h"

namespace octavo {
namespace {

constexpr std::size_t kVolumeDims = 5;

// The QuantizeLinear to u8, in constant parameters for the whole tensor, that alone reads a Concat of volumes; else
// null.
const Node* ResultOf(const Node& concat) {
  const Node* quantize = concat.Is("Concat") ? OnlyQuantize(concat.output()) : nullptr;
  if (quantize == nullptr || quantize->input(2)->data->dtype != DType::kU8) return nullptr;
  const auto volume = [](const Value& v) { return v.type.shape && v.type.shape->size() == kVolumeDims; };
  return volume(*concat.output()) || volume(*quantize->output()) ? quantize : nullptr;
}

// The operands of `concat` that are u8 in other parameters than `quantize`'s.
std::vector<std::size_t> Others(const Node& concat, const Node& quantize) {
  const float scale = quantize.input(1)->data->ToFloats()[0];
  const std::int64_t zero = quantize.input(2)->data->ToInts()[0];
  std::vector<std::size_t> others;
  for (std::size_t i = 0; i < concat.inputs().size(); ++i) {
    const std::optional<Codes> x = Behind(concat.input(i));
    if (!x || x->codes != nullptr || x->storage != DType::kU8 || x->scales.size() != 1) continue;
    if (x->scales[0] != scale || x->zeros[0] != zero) others.push_back(i);
  }
  return others;
}

}  // namespace

bool JoinsVolumes(const Model& model) {
  for (const Node* node : model.graph->nodes()) {
    const Node* quantize = ResultOf(*node);
    if (quantize != nullptr && !Others(*node, *quantize).empty()) return true;
  }
  return false;
}

std::int64_t ConvertBeforeConcat(Model& model) {
  Graph& graph = *model.graph;
  std::int64_t count = 0;
  for (Node* node : graph.nodes()) {
    const Node* quantize = ResultOf(*node);
    if (quantize == nullptr) continue;
    for (const std::size_t i : Others(*node, *quantize)) {
      const std::optional<Codes> x = Behind(node->input(i));
      Value* wide = InWide(graph, node->input(i), x->scales[0], x->zeros[0], node);
      node->SetInput(i, Requantized(graph, wide, quantize->input(1), quantize->input(2), DType::kU8,
                                    node->input(i)->name() + "_joined", node));
      ++count;
    }
  }
  return count;
}

}  // namespace octavo
