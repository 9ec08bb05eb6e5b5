#include "octavo/compile/pad_codes.h"

#include <optional>
#include <variant>

#include "octavo/compile/codes.h"
#include "octavo/ir/users.h"
#include "octavo/rewrite/pad_right.h"

namespace octavo {
namespace {

// Whether a Pad fills with zeros: a constant, of codes too, or none given.
bool FillsWithZeros(const Node& pad) {
  const Value* value = pad.input(2);
  if (value == nullptr) return true;
  if (const std::optional<Codes> codes = Behind(value)) {
    return codes->codes != nullptr && codes->codes->data && codes->codes->data->elements() == 1 &&
           codes->codes->data->ToInts()[0] == codes->zeros[0];
  }
  return value->is_constant() && value->data && value->data->elements() == 1 && IsFloat(value->data->dtype) &&
         value->data->ToFloats()[0] == 0.0F;
}

// The convolution takes the place of the Pad in front of it.
bool GiveToConv(const RightPad& pad, const Node& quantize) {
  const std::optional<Codes> x = Behind(pad.node->input(0));
  Node* dequantize = SoleUser(quantize.output());
  if (!x || x->scales.size() != 1 || dequantize == nullptr || !FillsWithZeros(*pad.node)) return false;
  Node* conv = SoleUser(dequantize->output());
  const std::optional<Codes> read = Behind(dequantize->output());
  if (conv == nullptr || !read || conv->input(0) != dequantize->output()) return false;
  // The same numbers before and behind the Pad.
  for (const auto& [scale, zero] :
       {std::pair{quantize.input(1)->data->ToFloats()[0], quantize.input(2)->data->ToInts()[0]},
        std::pair{read->scales[0], read->zeros[0]}}) {
    if (scale != x->scales[0] || zero != x->zeros[0]) return false;
  }
  if (read->scales.size() != 1 || x->storage != quantize.input(2)->data->dtype) return false;
  std::vector<std::int64_t> pads = PadsWith(pad, *conv);
  if (pads.empty()) return false;
  GivePads(*conv, std::move(pads));
  conv->SetInput(0, pad.node->input(0));
  return true;
}

}  // namespace

std::int64_t PadCodes(Model& model) {
  Graph& graph = *model.graph;
  std::int64_t count = 0;
  for (Node* node : graph.nodes()) {
    const MatchOr<RightPad> read = ReadRightPad(*node);
    if (!std::holds_alternative<RightPad>(read)) continue;
    const auto& pad = std::get<RightPad>(read);
    ++count;
    const Node* quantize = OnlyQuantize(node->output());
    if (quantize != nullptr && GiveToConv(pad, *quantize)) continue;
    Node* gather = AddPadAndGather(pad);
    if (quantize != nullptr) {
      gather->SetInput(0, Requantized(graph, gather->input(0), quantize->input(1), quantize->input(2),
                                      quantize->input(2)->data->dtype, gather->input(0)->name(), gather));
    }
    graph.ReplaceAllUses(node->output(), gather->output());
    graph.SwapNames(node->output(), gather->output());
    graph.Erase(node);
  }
  return count;
}

}  // namespace octavo
