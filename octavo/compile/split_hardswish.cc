#include "octavo/compile/split_hardswish.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "octavo/compile/codes.h"
#include "octavo/ir/make_type.h"
#include "octavo/ir/users.h"
#include "octavo/ops/op_table.h"

namespace octavo {
namespace {

// Codes of x that end above do not reach to -3, where HardSwish begins to be 0: those of 8 bits may end a little above.
constexpr double kReaches = -2.5;

bool Split(Model& model, Node* node, double range) {
  if (!node->Is("HardSwish")) return false;
  const std::optional<Codes> x = Behind(node->input(0));
  if (!x || x->codes != nullptr || x->scales.size() != 1 || (x->storage != DType::kU8 && x->storage != DType::kU16))
    return false;
  const Node* out = SoleUser(node->output());
  if (out == nullptr || !out->Is("QuantizeLinear") || out->input(0) != node->output()) return false;
  const Value *step = out->input(1), *middle = out->input(2);
  if (!step->data || step->data->elements() != 1 || middle == nullptr || !middle->data) return false;
  const auto most = static_cast<double>(IntegerMax(x->storage));
  if (middle->data->dtype != x->storage || !(step->data->ToFloats()[0] * most < range)) return false;
  const double step_in = x->scales[0], zero_in = static_cast<double>(x->zeros[0]);
  if (-zero_in * step_in > kReaches) return false;
  const Node* quantize = x->dequantize->input(0)->producer();
  if (quantize == nullptr || !quantize->Is("QuantizeLinear") || SoleUser(quantize->output()) != x->dequantize ||
      SoleUser(node->input(0)) != node || quantize->input(0) == nullptr)
    return false;
  const Node* maker = quantize->input(0)->producer();
  if (maker == nullptr || FindOp(*maker).category != OpCategory::kWeighted) return false;
  Graph& graph = *model.graph;
  const std::string base = node->output()->name() + "_slope";
  Node* slope =
      graph.AddNode("HardSigmoid", "", {node->input(0)}, {{graph.UniqueName(base), node->input(0)->type}}, node);
  slope->SetAttribute("alpha", 1.0f / 6);
  slope->SetAttribute("beta", 0.5f);
  const double steepest = std::clamp((most - zero_in) * step_in / 6 + 0.5, 0.0, 1.0);
  Value* scale =
      graph.AddConstant(graph.UniqueName(base + "_scale"), TensorRef::Scalar(static_cast<float>(steepest / most)));
  Value* zero = graph.AddConstant(graph.UniqueName(base + "_zero_point"),
                                  TensorRef::FromInts(x->storage, {}, std::vector<std::int64_t>{0}));
  Value* factor = Requantized(graph, slope->output(), scale, zero, x->storage, base, node);
  Value* product = graph
                       .AddNode("Mul", "", {node->input(0), factor},
                                {{graph.UniqueName(node->output()->name() + "_product"), node->output()->type}}, node)
                       ->output();
  graph.ReplaceAllUses(node->output(), product);
  graph.SwapNames(node->output(), product);
  graph.Erase(node);
  return true;
}

}  // namespace

std::int64_t SplitHardSwish(Model& model, double range) {
  std::int64_t count = 0;
  for (Node* node : model.graph->nodes()) {
    if (Split(model, node, range)) ++count;
  }
  return count;
}

}  // namespace octavo
