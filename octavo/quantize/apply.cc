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
      Type type;
      type.dtype = DType::kF32;
      type.shape.emplace();
      for (const std::int64_t d : dims) type.shape->push_back({d, {}});
      Value* codes = graph_.AddConstant(
          old->name() + "_codes",
          TensorRef::FromBuffer(s.weight.storage, dims, std::exchange(s.weight.codes, SpillBuffer())));
      Value* scale = graph_.AddConstant(old->name() + "_scale", TensorRef::FromFloats(scale_dims, scales));
      Node* cast = graph_.AddNode("Cast", "", {codes}, {{old->name() + "_cast", type}}, graph_.first());
      cast->SetAttribute("to", static_cast<std::int64_t>(DType::kF32));
      Node* mul = graph_.AddNode("Mul", "", {cast->output(), scale}, {{old->name() + "_scaled", type}}, cast->next());
      for (Node* node : {cast, mul}) node->name = node->output()->name();
      fresh = mul->output();
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

namespace {

// Quantizes a table block by block, each read once: codes and scales of all rows. False where the noise is more than
// `noise` of the power, also where the table holds NaN or infinity.
bool QuantizeTable(const TensorRef& table, double noise, int threads, StoredTable& out) {
  const auto rows = static_cast<std::size_t>(table.dims[0]), width = static_cast<std::size_t>(table.dims[1]);
  const std::size_t run = std::max<std::size_t>(1, (std::size_t{64} << 10) / (width * sizeof(float)));
  out.codes = SpillBuffer(rows * width);
  out.scales.resize(rows);
  std::vector<std::pair<double, double>> sums(rows);  // error and power; added up in order, whatever the threads
  ParallelFor((rows + run - 1) / run, threads, [&](std::size_t r) {
    CheckInterrupt();
    const std::size_t first = r * run, count = std::min(run, rows - first);
    TensorRef block = table;
    block.dims[0] = static_cast<std::int64_t>(count);
    block.bytes = table.bytes.subspan(first * width * sizeof(float), count * width * sizeof(float));
    std::vector<float> converted;
    const std::span<const float> values = FloatView(block, converted);
    const QuantizedWeight q = QuantizeWeight(block, 0, {.storage = DType::kS8, .per_channel = true, .symmetric = true});
    std::copy_n(q.codes.data(), count * width, out.codes.data() + first * width);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<const float> row = values.subspan(i * width, width);
      out.scales[first + i] = q.params[i].scale;
      sums[first + i] = {QuantizationSquaredError(row, q.params[i], DType::kS8), LaneSumSquares(row)};
    }
    if (table.file != nullptr) table.file->DropPages(block.bytes);  // not needed again
  });
  out.codes.Release();
  double error = 0, power = 0;
  for (const auto& [row_error, row_power] : sums) {
    error += row_error;
    power += row_power;
  }
  return std::isfinite(power) && error <= noise * power;
}

}  // namespace

std::vector<StoredTable> FindTables(const Model& model, double noise, int threads,
                                    const std::function<bool(const Value&)>& wanted) {
  constexpr std::size_t kLeastBytes = std::size_t{64} << 10;
  const Graph& graph = *model.graph;
  std::vector<StoredTable> tables;
  for (Value* table : graph.constants()) {
    if (!table->data || table->data->dtype != DType::kF32 || table->type.quant || table->is_graph_output()) continue;
    const Dims& dims = table->data->dims;
    if (dims.size() != 2 || table->data->bytes.size() < kLeastBytes || table->uses().empty() || !wanted(*table))
      continue;
    const auto reads_rows = [&](const Use& use) {
      return use.node->Is("Gather") && use.index == 0 && use.node->graph() == &graph &&
             use.node->IntAttribute("axis", 0) == 0 && use.node->output() != nullptr;
    };
    if (!std::all_of(table->uses().begin(), table->uses().end(), reads_rows)) continue;
    StoredTable stored;
    stored.table = table;
    if (QuantizeTable(*table->data, noise, threads, stored)) tables.push_back(std::move(stored));
  }
  return tables;
}

std::vector<std::string> StoreTables(Model& model, std::vector<StoredTable>& tables) {
  Graph& graph = *model.graph;
  std::vector<std::string> names;
  for (StoredTable& t : tables) {
    Value* table = t.table;
    const Dims dims = table->data->dims;
    const std::string name = table->name();
    Value* codes = graph.AddConstant(name + "_codes", TensorRef::FromBuffer(DType::kS8, dims, std::move(t.codes)));
    Value* scale = graph.AddConstant(name + "_scale", TensorRef::FromFloats({dims[0], 1}, t.scales));
    const std::vector<Use> uses(table->uses().begin(), table->uses().end());
    for (const Use& use : uses) {
      Node* gather = use.node;
      names.push_back(NodeName(*gather));
      Value* y = gather->output();
      const std::string base = y->name();
      Type code_type = y->type, float_type = y->type, scale_type = y->type;
      // The rows may be quantized already, for a product that reads nothing else: only the last node writes that type.
      for (Type* type : {&code_type, &float_type, &scale_type}) type->quant.reset();
      code_type.dtype = DType::kS8;
      float_type.dtype = scale_type.dtype = DType::kF32;
      if (scale_type.shape && !scale_type.shape->empty()) scale_type.shape->back() = {1, {}};
      Node* g = graph.AddNode("Gather", "", {codes, gather->input(1)}, {{base + "_codes", code_type}}, gather);
      Node* f = graph.AddNode("Cast", "", {g->output()}, {{base + "_cast", float_type}}, gather);
      f->SetAttribute("to", static_cast<std::int64_t>(DType::kF32));
      Node* s = graph.AddNode("Gather", "", {scale, gather->input(1)}, {{base + "_scale", scale_type}}, gather);
      for (Node* node : {g, f, s}) node->name = node->output()->name();
      gather->SetOp("Mul");
      gather->RemoveAttribute("axis");
      gather->SetInput(0, f->output());
      gather->SetInput(1, s->output());
    }
    graph.Erase(table);
  }
  return names;
}

}  // namespace octavo
