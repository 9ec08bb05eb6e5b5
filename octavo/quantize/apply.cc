#include "octavo/quantize/apply.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/thread_pool.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/reduce.h"
#include "octavo/ops/op_table.h"

namespace octavo {
QuantType TypeOf(const PlannedTensor& t) {
  QuantType q;
  q.affine.storage = t.storage;
  q.affine.scale = TensorRef::Scalar(t.params.scale);
  const std::int64_t zero = t.params.zero_point;
  q.affine.zero_point = TensorRef::FromInts(t.storage, {}, {&zero, 1});
  return q;
}

QuantType TypeOf(const QuantizedWeight& w) {
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

Type TypeOfCodes(const Value& source, QuantType quant) {
  Type type = source.type;
  type.dtype = DType::kF32;
  type.quant = std::move(quant);
  if (!type.shape) {
    type.shape.emplace();
    for (const std::int64_t d : source.data->dims) type.shape->push_back({d, {}});
  }
  return type;
}

Value* AddScaledCodes(Graph& graph, const std::string& name, TensorRef codes, TensorRef scales) {
  Type type;
  type.dtype = DType::kF32;
  type.shape.emplace();
  for (const std::int64_t d : codes.dims) type.shape->push_back({d, {}});
  Value* code = graph.AddConstant(name + "_codes", std::move(codes));
  Value* scale = graph.AddConstant(name + "_scale", std::move(scales));
  Node* cast = graph.AddNode("Cast", "", {code}, {{name + "_cast", type}}, graph.first());
  cast->SetAttribute("to", static_cast<std::int64_t>(DType::kF32));
  Node* mul = graph.AddNode("Mul", "", {cast->output(), scale}, {{name + "_scaled", type}}, cast->next());
  for (Node* node : {cast, mul}) node->name = node->output()->name();
  return mul->output();
}

namespace {

class Applier {
 public:
  explicit Applier(Model& model) : graph_(*model.graph) {}

  void Run(std::vector<PlannedNode>& plan, std::vector<StoredWeight>& stored) {
    for (PlannedNode& p : plan) Weights(p);
    for (StoredWeight& s : stored) Stored(s);
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

  // The quantized constant that takes the place of `old`. A weight that several nodes share is stored once for each set
  // of parameters.
  Value* Codes(Value* old, QuantizedWeight& weight) {
    const QuantType quant = TypeOf(weight);
    for (Value* known : weights_[old]) {
      if (SameParams(*known->type.quant, quant)) return known;
    }
    TensorRef codes =
        TensorRef::FromBuffer(weight.storage, old->data->dims, std::exchange(weight.codes, SpillBuffer()));
    Value* fresh = graph_.AddConstant(old->name(), std::move(codes), TypeOfCodes(*old, quant));
    weights_[old].push_back(fresh);
    return fresh;
  }

  // Before:  %y = Conv %x, %w
  // After:   %f = Cast %codes; %d = Mul %f, %scales; %y = Conv %x, %d
  // The runtime computes %d once, when it loads the model, and then packs the weight as it packs any other; behind a
  // DequantizeLinear it would leave the convolution in its slow form. A matrix product has a fast form with
  // DequantizeLinear.
  void Stored(StoredWeight& s) {
    Value* old = s.node->input(s.input);
    if (FindOp(*s.node).category == OpCategory::kMatMul || s.node->Is("Gemm")) {
      Replace(*s.node, s.input, Codes(old, s.weight));
      return;
    }
    Value*& fresh = foldable_[old];
    if (fresh == nullptr) {
      const Dims dims = old->data->dims;
      Dims scale_dims(dims.size(), 1);
      scale_dims[static_cast<std::size_t>(s.axis)] = dims[static_cast<std::size_t>(s.axis)];
      std::vector<float> scales;
      for (const AffineParams& p : s.weight.params) scales.push_back(p.scale);
      fresh =
          AddScaledCodes(graph_, old->name(),
                         TensorRef::FromBuffer(s.weight.storage, dims, std::exchange(s.weight.codes, SpillBuffer())),
                         TensorRef::FromFloats(scale_dims, scales));
    }
    s.node->SetInput(s.input, fresh);
  }

  void Weights(PlannedNode& p) {
    const PlacedNode& placed = *p.placed;
    Node& node = *placed.node;
    const OpInfo& info = FindOp(node);
    Replace(node, static_cast<std::size_t>(info.weight_input), Codes(placed.weight, p.weight));

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
    y->type.quant = TypeOf(p.y);
  }

  void Input(PlannedNode& p) {
    const PlacedNode& placed = *p.placed;
    if (p.root_is_integer) {
      const QuantType type = TypeOf(p.x);
      for (Node* carrier : placed.carriers) {
        carrier->output()->type.dtype = DType::kF32;
        carrier->output()->type.quant = type;
      }
      return;  // the node reads the quantized value already
    }
    Value* x = placed.node->input(0);
    Value*& quantized = quantized_[x];
    const QuantType type = TypeOf(p.x);
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
  std::unordered_map<const Value*, Value*> foldable_;
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

void ApplyPlan(Model& model, std::vector<PlannedNode>& plan, std::vector<StoredWeight>& stored) {
  Applier(model).Run(plan, stored);
}

}  // namespace octavo
