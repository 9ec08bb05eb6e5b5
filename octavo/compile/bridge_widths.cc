#include "octavo/compile/bridge_widths.h"

#include <optional>
#include <string>

#include "octavo/compile/codes.h"

namespace octavo {
namespace {

constexpr std::int64_t kFiner = 256;

bool Bridge(Graph& graph, Node* quantize) {
  const Value *scale = quantize->input(1), *zero = quantize->input(2);
  const std::optional<Codes> from = Behind(quantize->input(0));
  if (!from || from->codes != nullptr || from->scales.size() != 1) return false;
  if (scale == nullptr || !scale->data || scale->data->elements() != 1) return false;
  if (zero == nullptr || !zero->data || zero->data->elements() != 1) return false;
  const DType to = zero->data->dtype;
  const int bits = BitWidth(from->storage);
  if (bits + BitWidth(to) != 24 || (bits != 8 && bits != 16)) return false;
  const float step = scale->data->ToFloats()[0];
  const bool up = bits == 8;
  const float narrow = up ? from->scales[0] : step, wide = up ? step : from->scales[0];
  if (wide < narrow) return false;
  const std::int64_t middle = (up ? from->zeros[0] : zero->data->ToInts()[0]) * kFiner;
  const DType narrow_type = up ? from->storage : to, wide_type = up ? to : from->storage;
  if (IsSignedInteger(narrow_type) != IsSignedInteger(wide_type)) return false;
  const std::string base = quantize->input(0)->name() + "_bridge";
  Value* finer =
      graph.AddConstant(graph.UniqueName(base + "_scale"), TensorRef::Scalar(narrow / static_cast<float>(kFiner)));
  Value* centre =
      graph.AddConstant(graph.UniqueName(base + "_zero_point"), TensorRef::FromInts(wide_type, {}, {&middle, 1}));
  quantize->SetInput(0, Requantized(graph, quantize->input(0), finer, centre, wide_type, base, quantize));
  return true;
}

}  // namespace

std::int64_t BridgeWidths(Model& model) {
  std::int64_t count = 0;
  for (Node* node : model.graph->nodes()) {
    if (node->Is("QuantizeLinear") && Bridge(*model.graph, node)) ++count;
  }
  return count;
}

}  // namespace octavo
