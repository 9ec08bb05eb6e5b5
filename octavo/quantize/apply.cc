#include "octavo/quantize/apply.h"

#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/ops/op_table.h"

namespace octavo {
namespace {

QuantType TensorType(const PlannedTensor& t) {
  QuantType q;
  q.affine.storage = t.storage;
  q.affine.scale = TensorRef::Scalar(t.params.scale);
  const std::int64_t zero = t.params.zero_point;
  q.affine.zero_point = TensorRef::FromInts(t.storage, {}, {&zero, 1});
  return q;
}

QuantType WeightType(const QuantizedWeight& w) {
  QuantType q;
  q.affine.storage = w.storage;
  q.affine.axis = w.axis;
  std::vector<float> scales;
  std::vector<std::int64_t> zeros;
  for (const AffineParams& p : w.params) {
    scales.push_back(p.scale);
    zeros.push_back(p.zero_point);
  }
  const Dims dims = w.axis ? Dims{static_cast<std::int64_t>(scales.size())} : Dims{};
  q.affine.scale = TensorRef::FromFloats(dims, scales);
  q.affine.zero_point = TensorRef::FromInts(w.storage, dims, zeros);
  return q;
}

class Applier {
 public:
  explicit Applier(Model& model) : graph_(*model.graph) {}

  void Run(std::vector<PlannedNode>& plan) {
    for (PlannedNode& p : plan) Weights(p);
    for (PlannedNode& p : plan) Output(p);
    for (PlannedNode& p : plan) Input(p);
    for (Node* q : quantizes_) Settle(*q);
    for (Node* node : graph_.nodes()) MarkForm(*node);
  }

 private:
  // Input `index` becomes the new constant, which takes the old one's name when nobody else reads that.
  void Replace(Node& node, std::size_t index, Value* fresh) {
    Value* old = node.input(index);
    node.SetInput(index, fresh);
    if (old != nullptr && old->is_constant() && old->graph() == &graph_ && old->dead()) {
      const std::string name = old->name();
      graph_.Erase(old);
      graph_.Rename(fresh, name);
    }
  }

  void Weights(PlannedNode& p) {
    const PlacedNode& placed = *p.placed;
    Node& node = *placed.node;
    const OpInfo& info = FindOp(node);
    Value* old = placed.weight;
    const auto weight_index = static_cast<std::size_t>(info.weight_input);
    Value* fresh = nullptr;
    // A weight that several nodes share is stored once for each set of codes.
    for (Value* known : weights_[old]) {
      const QuantType type = WeightType(p.weight);
      if (SameParams(*known->type.quant, type)) fresh = known;
    }
    if (fresh == nullptr) {
      Type type = old->type;
      type.dtype = DType::kF32;
      type.quant = WeightType(p.weight);
      const Dims dims = old->data->dims;
      if (!type.shape) {
        type.shape.emplace();
        for (const std::int64_t d : dims) type.shape->push_back({d, {}});
      }
      fresh = graph_.AddConstant(old->name(), TensorRef::FromBuffer(p.weight.storage, dims, std::move(p.weight.codes)),
                                 std::move(type));
      weights_[old].push_back(fresh);
    }
    p.weight.codes = SpillBuffer();
    Replace(node, weight_index, fresh);

    if (!p.bias.empty() && info.bias_input >= 0) Bias(p, node, static_cast<std::size_t>(info.bias_input));
    if (!p.add_shift.empty() && placed.bias_add != nullptr) {
      Node& add = *placed.bias_add;
      const Value* constant = add.input(placed.bias_add_index);
      std::vector<float> values = constant->data->ToFloats();
      for (std::size_t c = 0; c < values.size(); ++c) {
        values[c] = static_cast<float>(static_cast<double>(values[c]) - p.add_shift[c]);
      }
      Replace(add, placed.bias_add_index,
              graph_.AddConstant(constant->name(), TensorRef::FromFloats(constant->data->dims, values)));
    }
  }

  void Bias(PlannedNode& p, Node& node, std::size_t index) {
    const auto channels = static_cast<std::int64_t>(p.bias.size());
    const std::string name = p.placed->bias != nullptr ? p.placed->bias->name() : node.output()->name() + "_bias";
    Value* fresh = nullptr;
    if (p.integer_bias) {
      const QuantizedBias q = QuantizeBias(p.bias, p.x.params.scale, p.weight);
      Type type;
      type.dtype = DType::kF32;
      type.shape.emplace();
      type.shape->push_back({channels, {}});
      type.quant.emplace();
      type.quant->affine.storage = DType::kS32;
      if (q.scales.size() > 1 || p.weight.axis) {
        type.quant->affine.axis = 0;
        type.quant->affine.scale = TensorRef::FromFloats({channels}, q.scales);
      } else {
        type.quant->affine.scale = TensorRef::Scalar(q.scales[0]);
      }
      fresh = graph_.AddConstant(name, TensorRef::FromInts(DType::kS32, {channels}, q.codes), std::move(type));
    } else {
      const std::vector<float> values(p.bias.begin(), p.bias.end());
      fresh = graph_.AddConstant(name, TensorRef::FromFloats({channels}, values));
    }
    Replace(node, index, fresh);
  }

  // Before:  %c = Conv ...; %y = Relu %c        After:  %y : # u8 = Conv ...   where the codes' range does the Relu
  void Output(PlannedNode& p) {
    const PlacedNode& placed = *p.placed;
    if (placed.y == nullptr) return;
    Value* y = placed.y;
    if (placed.absorbed != nullptr && RangeDoesTheClip(*placed.absorbed, p.y)) {
      Value* direct = placed.node->output();
      const Type type = y->type;
      graph_.SwapNames(direct, y);
      std::swap(direct->extras, y->extras);
      graph_.ReplaceAllUses(y, direct, placed.absorbed);
      graph_.Erase(placed.absorbed);
      if (type.shape) direct->type.shape = type.shape;
      outputs_[y] = direct;
      y = direct;
    } else {
      outputs_[y] = y;
    }
    y->type.dtype = DType::kF32;
    y->type.quant = TensorType(p.y);
  }

  void Input(PlannedNode& p) {
    const PlacedNode& placed = *p.placed;
    if (p.root_is_integer) {
      const QuantType type = TensorType(p.x);
      for (Node* carrier : placed.carriers) {
        carrier->output()->type.dtype = DType::kF32;
        carrier->output()->type.quant = type;
      }
      return;  // the node reads the quantized value already
    }
    Value* x = placed.node->input(0);
    Value*& quantized = quantized_[x];
    const QuantType type = TensorType(p.x);
    if (quantized == nullptr || !SameParams(*quantized->type.quant, type)) {
      Type t = x->type;
      t.dtype = DType::kF32;
      t.quant = type;
      Node* before = x->producer() != nullptr ? x->producer()->next() : graph_.first();
      Node* node = graph_.AddNode(std::string(kQuantize), std::string(kIrDomain), {x}, {{x->name() + "_q", t}}, before);
      node->name = node->output()->name();
      quantized = node->output();
      quantizes_.push_back(node);
    }
    placed.node->SetInput(0, quantized);
  }

  // As FoldQdq: %x : f32 = Producer; %xq = Quantize %x, its only use   ->   %x : # u8 = Producer
  void Settle(Node& q) {
    Value* x = q.input(0);
    Node* producer = x->producer();
    if (producer == nullptr || producer->graph() != &graph_ || x->uses().size() != 1 || x->is_graph_output()) return;
    if (producer->domain() == kIrDomain || producer->op() == "QuantizeLinear" || producer->op() == "DequantizeLinear") {
      return;
    }
    if (!producer->subgraphs().empty() || x->type.quant) return;
    Type type = q.output()->type;
    graph_.ReplaceAllUses(q.output(), x);
    graph_.Erase(&q);
    x->type = std::move(type);
  }

  static void MarkForm(Node& node) {
    bool any = false;
    for (const Value* v : node.inputs()) any = any || (v != nullptr && v->type.quant);
    for (const Value* v : node.outputs()) any = any || (v != nullptr && v->type.quant);
    if (any && node.form == QuantForm::kNone) node.form = QuantForm::kQdq;
  }

  Graph& graph_;
  std::unordered_map<const Value*, std::vector<Value*>> weights_;
  std::unordered_map<const Value*, Value*> outputs_;
  std::unordered_map<const Value*, Value*> quantized_;
  std::vector<Node*> quantizes_;
};

}  // namespace

bool RangeDoesTheClip(const Node& clip, const PlannedTensor& y) {
  float low = 0, high = std::numeric_limits<float>::infinity();
  if (!clip.Is("Relu")) {
    low = clip.FloatAttribute("min", -std::numeric_limits<float>::infinity());
    high = clip.FloatAttribute("max", std::numeric_limits<float>::infinity());
    const auto bound = [&clip](std::size_t i, float fallback) {
      const Value* v = clip.input(i);
      return v != nullptr && v->data && v->data->elements() == 1 ? v->data->ToFloats()[0] : fallback;
    };
    low = bound(1, low);
    high = bound(2, high);
  }
  const auto reaches = [&](float value) {
    return std::nearbyint(static_cast<double>(value / y.params.scale)) + y.params.zero_point;
  };
  return reaches(low) <= static_cast<double>(IntegerMin(y.storage)) &&
         reaches(high) >= static_cast<double>(IntegerMax(y.storage));
}

void ApplyPlan(Model& model, std::vector<PlannedNode>& plan) { Applier(model).Run(plan); }

}  // namespace octavo
