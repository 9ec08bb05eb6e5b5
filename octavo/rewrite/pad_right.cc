#include "octavo/rewrite/pad_right.h"

#include <algorithm>
#include <string>
#include <utility>

#include "octavo/ir/make_type.h"
#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/plain_constant.h"

namespace octavo {
namespace {

constexpr std::size_t kMostDims = 4;

}  // namespace

MatchOr<RightPad> ReadRightPad(Node& node) {
  const Value *x = node.input(0), *pads = node.input(1);
  if (!node.Is("Pad") || x == nullptr || node.output() == nullptr || node.input(3) != nullptr) return Refusal{};
  if (!IsPlainConstant(pads)) return Refusal{"its pads are computed"};
  const std::optional<Dims> dims = StaticShape(x->type);
  if (!dims) return Refusal{"the shape of its input is not known"};
  const std::size_t rank = dims->size();
  RightPad match{&node, *dims, pads->data->ToInts()};
  if (rank < 2 || rank > kMostDims || match.pads.size() != 2 * rank) return Refusal{};
  if (match.pads[rank - 1] != 0 || match.pads.back() <= 0) return Refusal{};
  if (x->type.quant || node.output()->type.quant) return Refusal{"the value is quantized"};
  if (std::any_of(match.pads.begin(), match.pads.end(), [](std::int64_t p) { return p < 0; })) {
    return Refusal{"it takes off, too"};
  }
  const std::string mode = node.StringAttribute("mode", "constant");
  if (mode != "constant" && mode != "edge") return Refusal{};
  return match;
}

std::vector<std::int64_t> PadsWith(const RightPad& pad, const Node& conv) {
  const std::size_t rank = pad.dims.size();
  if (!conv.Is("Conv") || rank < 3 || pad.node->StringAttribute("mode", "constant") != "constant") return {};
  if (pad.pads[0] != 0 || pad.pads[1] != 0 || pad.pads[rank] != 0 || pad.pads[rank + 1] != 0) return {};
  const std::string by_itself = conv.StringAttribute("auto_pad", "NOTSET");
  if (by_itself != "NOTSET" && by_itself != "VALID") return {};
  const std::vector<std::int64_t>* own = conv.IntsAttribute("pads");
  std::vector<std::int64_t> pads(2 * (rank - 2), 0);
  if (own != nullptr && by_itself != "VALID") pads = *own;
  if (pads.size() != 2 * (rank - 2)) return {};
  for (std::size_t i = 2; i < rank; ++i) {
    pads[i - 2] += pad.pads[i];
    pads[rank - 4 + i] += pad.pads[rank + i];
  }
  return pads;
}

void GivePads(Node& conv, std::vector<std::int64_t> pads) {
  conv.SetAttribute("auto_pad", std::string("NOTSET"));
  conv.SetAttribute("pads", std::move(pads));
}

Node* AddPadAndGather(const RightPad& old) {
  Node& node = *old.node;
  Graph& graph = *node.graph();
  const std::size_t rank = old.dims.size(), last = rank - 1;
  const std::string base = node.output()->name();
  Dims pads = old.pads, out, taken;
  pads[last] = 1;
  for (std::size_t i = 0; i < rank; ++i) out.push_back(old.dims[i] + pads[i] + pads[rank + i]);
  for (std::int64_t i = 1; i < out[last]; ++i) taken.push_back(i);
  std::vector<Value*> inputs = {node.input(0), AddInts(graph, base + "_pads", pads)};
  if (node.input(2) != nullptr) inputs.push_back(node.input(2));
  Node* pad = graph.AddNode("Pad", "", inputs,
                            {{graph.UniqueName(base + "_padded"), TypeOf(node.input(0)->type.dtype, out)}}, &node);
  pad->SetAttribute("mode", node.StringAttribute("mode", "constant"));
  --out[last];
  Node* gather = graph.AddNode("Gather", "", {pad->output(), AddInts(graph, base + "_at", taken)},
                               {{graph.UniqueName(base + "_taken"), TypeOf(node.input(0)->type.dtype, out)}}, &node);
  gather->SetAttribute("axis", static_cast<std::int64_t>(last));
  return gather;
}

}  // namespace octavo
