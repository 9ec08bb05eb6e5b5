// UNIDIRECTIONAL_SEQUENCE_LSTM -> LSTM.
#include <string>

#include "octavo/base/log.h"
#include "octavo/emit/lower_circle.h"
#include "octavo/rewrite/raising.h"

namespace octavo {
namespace {

// The inputs' places: each list is that of the input, forget, cell and output gate.
constexpr std::size_t kWeights = 1, kRecurrent = 5, kPeepholes = 9, kBiases = 12, kProjection = 16, kState = 18,
                      kNormalization = 20;
// ONNX has the gates in the order input, output, forget, cell.
constexpr std::size_t kGates[] = {0, 3, 1, 2};

}  // namespace

// Before:  [batch, time, in] or [time, batch, in], weights [units, in] and [units, units] for each gate
// After:   [time, batch, in], weights [1, 4 units, in] and [1, 4 units, units]; the result back in the input's order
// The states are zero when a run begins; the runtime keeps them from run to run until it is told to forget them.
void Raising::Lstm(Node& node) {
  Dims dims = DimsOf(node, 0, 3);
  const std::int64_t units = DimsOf(node, kWeights + 1, 2)[0], width = dims[2];
  if (node.input(0)->type.quant) Refuse(node, "integer arithmetic of its own");
  if (node.input(kWeights) == nullptr) Refuse(node, "an input gate that is coupled to the forget gate");
  for (const std::size_t i : {kProjection, kProjection + 1, kNormalization, kNormalization + 1, kNormalization + 2}) {
    if (node.input(i) != nullptr) Refuse(node, i < kState ? "a projection" : "a normalization of its gates");
  }
  if (node.StringAttribute("fused_activation_function", "NONE") != "TANH" ||
      node.IntAttribute("diagonal_recurrent_tensors", 0) != 0)
    Refuse(node, "an activation that is not TANH, or diagonal weights");
  for (const std::size_t i : {kState, kState + 1}) {
    if (node.input(i) != nullptr) Refuse(node, "a state that is computed");
  }
  const auto gates = [&](std::size_t first, const Dims& each) {
    std::vector<Value*> parts;
    for (const std::size_t gate : kGates) {
      Value* part = node.input(first + gate);
      if (part == nullptr || DimsOf(part) != each) Refuse(node, "weights or biases of another shape");
      parts.push_back(part);
    }
    Dims all = each;
    all[0] *= 4;
    Value* y = Add(node, "Concat", parts, Shaped(node, all));
    y->producer()->SetAttribute("axis", std::int64_t{0});
    return y;
  };
  const float clip = node.FloatAttribute("cell_clip", 0);
  const bool time_major = node.IntAttribute("time_major", 0) != 0;
  Value* x = node.input(0);
  if (!time_major) {
    x = Move(node, x, {1, 0, 2});
    std::swap(dims[0], dims[1]);
  }
  // The state grows by less than one a step.
  if (clip > 0 && static_cast<float>(dims[0]) > clip) {
    LogWarning("'" + node.output()->name() + "' clips its cell state at " + std::to_string(clip) +
               ", which an LSTM of ONNX does not: it agrees while the state stays within");
  }
  Value* w = Reshaped(node, gates(kWeights, {units, width}), {1, 4 * units, width});
  Value* r = Reshaped(node, gates(kRecurrent, {units, units}), {1, 4 * units, units});
  Value* zeros = graph_.AddConstant(
      "recurrent_biases", TensorRef::FromFloats({4 * units}, std::vector<float>(static_cast<std::size_t>(4 * units))));
  Value* b = Add(node, "Concat", {gates(kBiases, {units}), zeros}, Shaped(node, {8 * units}));
  b->producer()->SetAttribute("axis", std::int64_t{0});
  b = Reshaped(node, b, {1, 8 * units});
  std::vector<Value*> inputs{x, w, r, b};
  Value *pi = node.input(kPeepholes), *pf = node.input(kPeepholes + 1), *po = node.input(kPeepholes + 2);
  if (pi != nullptr || pf != nullptr || po != nullptr) {
    if (pi == nullptr || pf == nullptr || po == nullptr) Refuse(node, "some of the peepholes");
    Value* p = Add(node, "Concat", {pi, po, pf}, Shaped(node, {3 * units}));
    p->producer()->SetAttribute("axis", std::int64_t{0});
    inputs.insert(inputs.end(), {nullptr, nullptr, nullptr, Reshaped(node, p, {1, 3 * units})});
  }
  Value* y = Add(node, "LSTM", inputs, Shaped(node, {dims[0], 1, dims[1], units}));
  y->producer()->SetAttribute("hidden_size", units);
  y = Reshaped(node, y, {dims[0], dims[1], units});
  Replace(node, time_major ? y : Move(node, y, {1, 0, 2}));
}

}  // namespace octavo
