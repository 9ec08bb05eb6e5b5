#include "octavo/compile/softmax_steps.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "octavo/compile/codes.h"

namespace octavo {
namespace {

// Above a whole number of units by so much of one, that a device that computes in f32 does not come out below it.
constexpr double kAbove = 1e-3;

std::optional<float> Fitted(float step, const SoftmaxSteps& steps) {
  const double units = static_cast<double>(step) / steps.unit;
  if (!(units > 0) || units > static_cast<double>(steps.most)) return std::nullopt;
  const double whole = std::floor(units);
  if (whole >= static_cast<double>(steps.least) && units - whole < 2 * kAbove) return std::nullopt;  // fits
  return static_cast<float>((std::max(std::ceil(units), static_cast<double>(steps.least)) + kAbove) * steps.unit);
}

// The QuantizeLinear of a DequantizeLinear with the same parameters.
Node* QuantizeOf(const Node* dequantize) {
  Node* quantize = dequantize->input(0) == nullptr ? nullptr : dequantize->input(0)->producer();
  if (quantize == nullptr || !quantize->Is("QuantizeLinear") || quantize->input(0) == nullptr) return nullptr;
  return quantize->input(1) == dequantize->input(1) && quantize->input(2) == dequantize->input(2) ? quantize : nullptr;
}

bool ReadOnce(const Value* v) { return !v->is_graph_output() && v->uses().size() == 1; }

bool Fit(Model& model, const DeviceDescriptor& device, Node* softmax, const SoftmaxSteps& steps) {
  const std::optional<Codes> x = Behind(softmax->input(0));
  if (!x || x->codes != nullptr || x->storage != DType::kU16 || x->scales.size() != 1) return false;
  const std::optional<float> fitted = Fitted(x->scales[0], steps);
  if (!fitted) return false;
  // From the Softmax up through what moves codes, to what makes them.
  std::vector<Node*> pairs;
  const Value* scale = x->dequantize->input(1);
  const Value* zero = x->dequantize->input(2);
  Node* dequantize = softmax->input(0)->producer();
  bool alone = true;  // nobody else reads these codes
  Node* quantize = nullptr;
  while (true) {
    quantize = QuantizeOf(dequantize);
    if (quantize == nullptr || dequantize->input(1)->data->ToFloats() != scale->data->ToFloats()) return false;
    alone = alone && ReadOnce(dequantize->output()) && ReadOnce(quantize->output());
    pairs.insert(pairs.end(), {dequantize, quantize});
    const Node* maker = quantize->input(0)->producer();
    if (maker == nullptr || device.Support(maker->op(), maker->domain()) != QuantSupport::kPassThrough) break;
    alone = alone && ReadOnce(maker->output());
    dequantize = maker->input(0) == nullptr ? nullptr : maker->input(0)->producer();
    if (!alone || dequantize == nullptr || !dequantize->Is("DequantizeLinear")) return false;
    const std::optional<Codes> before = Behind(maker->input(0));
    if (!before || before->storage != DType::kU16 || before->scales != x->scales || before->zeros != x->zeros)
      return false;
  }
  Graph& graph = *model.graph;
  const std::string base = softmax->input(0)->name() + "_fit";
  Value* step = graph.AddConstant(graph.UniqueName(base + "_scale"), TensorRef::Scalar(*fitted));
  if (alone) {
    for (Node* node : pairs) node->SetInput(1, step);
  } else if (pairs.size() == 2) {
    softmax->SetInput(
        0, Requantized(graph, quantize->input(0), step, const_cast<Value*>(zero), DType::kU16, base, softmax));
  } else {
    return false;
  }
  return true;
}

}  // namespace

std::int64_t FitSoftmaxSteps(Model& model, const DeviceDescriptor& device, const SoftmaxSteps& steps) {
  if (steps.unit <= 0) return 0;
  std::int64_t count = 0;
  for (Node* node : model.graph->nodes()) {
    if (node->Is("Softmax") && Fit(model, device, node, steps)) ++count;
  }
  return count;
}

}  // namespace octavo
