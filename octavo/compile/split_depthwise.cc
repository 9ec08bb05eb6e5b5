#include "octavo/compile/split_depthwise.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/compile/codes.h"
#include "octavo/ir/make_type.h"

namespace octavo {
namespace {

bool AreAll(const Node& node, const char* attribute, std::int64_t value) {
  const std::vector<std::int64_t>* all = node.IntsAttribute(attribute);
  return all == nullptr || std::all_of(all->begin(), all->end(), [&](auto v) { return v == value; });
}

// Channels [from, to) of constant codes whose first dimension is the channels, behind a DequantizeLinear of their own.
Value* Part(Graph& graph, const Codes& all, std::int64_t from, std::int64_t to, const std::string& name, Node* at) {
  Dims dims = all.codes->data->dims;
  const std::int64_t channels = dims[0], each = static_cast<std::int64_t>(all.codes->data->elements()) / channels;
  dims[0] = to - from;
  const std::vector<std::int64_t> codes = all.codes->data->ToInts();
  const auto first = codes.begin() + from * each;
  const bool one = all.scales.size() == 1;
  const Dims sizes = one ? Dims{} : Dims{to - from};
  const auto lo = static_cast<std::size_t>(one ? 0 : from), count = static_cast<std::size_t>(one ? 1 : to - from);
  Value* scale = graph.AddConstant(graph.UniqueName(name + "_scale"),
                                   TensorRef::FromFloats(sizes, std::span(all.scales).subspan(lo, count)));
  Value* zero = graph.AddConstant(graph.UniqueName(name + "_zero_point"),
                                  TensorRef::FromInts(all.storage, sizes, std::span(all.zeros).subspan(lo, count)));
  const std::vector<std::int64_t> part(first, first + (to - from) * each);
  return Dequantized(graph, TensorRef::FromInts(all.storage, dims, part), scale, zero, 0, name, at);
}

// Codes of `channels` channels with one scale, or one a channel.
bool IsFor(const std::optional<Codes>& codes, std::int64_t channels) {
  if (!codes || codes->codes == nullptr || !codes->codes->data || codes->codes->data->dims.empty()) return false;
  const auto scales = static_cast<std::int64_t>(codes->scales.size());
  return codes->codes->data->dims[0] == channels && (scales == 1 || scales == channels);
}

bool SplitOne(Model& model, Node* node, std::int64_t most) {
  const std::int64_t channels = node->IntAttribute("group", 1);
  const std::optional<Codes> x = Behind(node->input(0)), w = Behind(node->input(1)), b = Behind(node->input(2));
  if (channels <= most || !x || x->storage != DType::kU16 || x->scales.size() != 1 || !IsFor(w, channels)) return false;
  if (BitWidth(w->storage) != 8 || w->codes->data->dims.size() < 3 ||
      static_cast<std::int64_t>(w->codes->data->elements()) != channels)
    return false;  // one tap a channel
  if (node->input(2) != nullptr && !IsFor(b, channels)) return false;
  if (!AreAll(*node, "strides", 1) || !AreAll(*node, "pads", 0)) return false;
  const Node* quantize = nullptr;
  for (const Use& use : node->output()->uses()) {
    const Value *scale = use.node->input(1), *zero = use.node->input(2);
    if (use.index == 0 && use.node->Is("QuantizeLinear") && scale->data && zero != nullptr && zero->data) {
      if (scale->data->elements() == 1 && zero->data->dtype == DType::kU16) quantize = use.node;
    }
  }
  if (quantize == nullptr) return false;
  Graph& graph = *model.graph;
  const std::string base = node->output()->name() + "_part";
  Dims sizes;
  std::vector<Graph::OutputSpec> specs;
  for (std::int64_t from = 0; from < channels; from += most) {
    sizes.push_back(std::min(most, channels - from));
    specs.push_back({graph.UniqueName(base + "_x"), TypeOf(DType::kF32)});
  }
  Value* lengths =
      graph.AddConstant(graph.UniqueName(base + "_sizes"),
                        TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(sizes.size())}, sizes));
  Node* split = graph.AddNode("Split", "", {node->input(0), lengths}, std::move(specs), node);
  split->SetAttribute("axis", std::int64_t{1});
  std::vector<Value*> parts;
  std::int64_t from = 0;
  for (std::size_t i = 0; i < sizes.size(); from += sizes[i++]) {
    const std::int64_t to = from + sizes[i];
    std::vector<Value*> inputs = {
        Requantized(graph, split->output(i), x->dequantize->input(1), x->dequantize->input(2), x->storage, base, node),
        Part(graph, *w, from, to, base + "_w", node)};
    if (b) inputs.push_back(Part(graph, *b, from, to, base + "_b", node));
    Node* part = graph.AddNode("Conv", "", inputs, {{graph.UniqueName(base), TypeOf(DType::kF32)}}, node);
    part->SetAttribute("kernel_shape", Dims(w->codes->data->dims.begin() + 2, w->codes->data->dims.end()));
    part->SetAttribute("group", sizes[i]);
    parts.push_back(
        Requantized(graph, part->output(), quantize->input(1), quantize->input(2), DType::kU16, base, node));
  }
  Node* concat =
      graph.AddNode("Concat", "", parts, {{graph.UniqueName(node->output()->name()), node->output()->type}}, node);
  concat->SetAttribute("axis", std::int64_t{1});
  graph.ReplaceAllUses(node->output(), concat->output());
  graph.SwapNames(node->output(), concat->output());
  graph.Erase(node);
  return true;
}

}  // namespace

std::int64_t SplitDepthwise(Model& model, std::int64_t most) {
  if (most < 1 || model.OpsetVersion() < 21) return 0;  // Q/DQ to 16 bits
  std::int64_t count = 0;
  for (Node* node : model.graph->nodes()) {
    if (node->Is("Conv") && SplitOne(model, node, most)) ++count;
  }
  return count;
}

}  // namespace octavo
