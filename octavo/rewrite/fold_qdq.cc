// Before:  %q = QuantizeLinear %x, s, z             After:  %x : f32 # u8(s, z) = Producer ...
//          %d = DequantizeLinear %q, s, z                   %y = Consumer %x
//          %y = Consumer %d
// and for constants of codes, raw integer values and graph outputs the forms that are listed at the functions below.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/emit/onnx.h"
#include "octavo/numerics/affine.h"
#include "octavo/rewrite/fake_quantize.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/rule.h"

namespace octavo {
namespace {

constexpr std::string_view kContrib = "com.microsoft";

bool IsQ(const Node& node) {
  return node.op() == "QuantizeLinear" && (node.domain().empty() || node.domain() == kContrib);
}
bool IsDq(const Node& node) {
  return node.op() == "DequantizeLinear" && (node.domain().empty() || node.domain() == kContrib);
}

struct Params {
  QuantType type;
  DType expressed = DType::kF32;
};

// What a QuantizeLinear or DequantizeLinear node says, or why it cannot become a type.
MatchOr<Params> ReadParams(const Node& node) {
  const bool quantizes = IsQ(node);
  const Value* x = node.input(0);
  const Value* scale = node.input(1);
  const Value* zero = node.input(2);
  if (x == nullptr || node.output() == nullptr) return Refusal{"it has no input or no output"};
  if (!IsPlainConstant(scale)) return Refusal{"the scale is not a constant"};
  if (zero != nullptr && !IsPlainConstant(zero)) return Refusal{"the zero point is not a constant"};
  Params params;
  Affine& affine = params.type.affine;
  affine.scale = *scale->data;
  const DType float_type = affine.scale.dtype;
  if (float_type != DType::kF32 && float_type != DType::kF16 && float_type != DType::kBF16) {
    return Refusal{"the scale has type " + std::string(Name(float_type))};
  }
  params.expressed = float_type;
  if (node.IntAttribute("precision", 0) != 0 || node.IntAttribute("saturate", 1) != 1) {
    return Refusal{"precision or saturate is not the default"};
  }
  const auto output_dtype = static_cast<DType>(node.IntAttribute("output_dtype", 0));
  if (quantizes) {
    affine.storage = zero != nullptr                     ? zero->data->dtype
                     : output_dtype != DType::kUndefined ? output_dtype
                                                         : DType::kU8;
    if (x->type.dtype != DType::kUndefined && x->type.dtype != float_type) {
      return Refusal{"the input's type is not the scale's"};
    }
  } else {
    if (output_dtype != DType::kUndefined && output_dtype != float_type)
      return Refusal{"output_dtype is not the scale's type"};
    affine.storage = zero != nullptr ? zero->data->dtype : x->type.dtype;
    if (zero == nullptr && affine.storage == DType::kUndefined && x->producer() != nullptr && IsQ(*x->producer())) {
      // Without a zero point the codes' type is that of the QuantizeLinear in front.
      const MatchOr<Params> source = ReadParams(*x->producer());
      if (const auto* known = std::get_if<Params>(&source)) affine.storage = known->type.affine.storage;
    }
    if (x->type.dtype != DType::kUndefined && x->type.dtype != affine.storage) {
      return Refusal{"the zero point's type is not the codes' type"};
    }
  }
  if (!IsInteger(affine.storage) || BitWidth(affine.storage) > 32) {
    return Refusal{"codes of type " + std::string(Name(affine.storage)) + " are not integers of at most 32 bits"};
  }
  for (float s : affine.scale.ToFloats()) {
    if (!std::isfinite(s) || s <= 0.0f) return Refusal{"a scale is not positive and finite"};
  }
  if (zero != nullptr) affine.zero_point = *zero->data;

  const std::int64_t block = node.IntAttribute("block_size", 0);
  std::optional<std::int64_t> rank;
  if (IsPlainConstant(x)) {
    rank = static_cast<std::int64_t>(x->data->dims.size());
  } else if (x->type.shape.has_value()) {
    rank = static_cast<std::int64_t>(x->type.shape->size());
  }
  const std::uint64_t count = affine.scale.elements();
  if (count == 0) return Refusal{"the scale is empty"};
  if (block == 0 && affine.scale.dims.size() > 1)
    return Refusal{"the scale has more than one dimension and no block size"};
  if (block == 0 && count == 1) {  // per tensor, [] or [1]
    affine.scale.dims = {};
    if (affine.zero_point.has_value()) {
      if (affine.zero_point->elements() != 1) return Refusal{"the zero point does not have the scale's shape"};
      affine.zero_point->dims = {};
    }
    return params;
  }
  std::int64_t axis = node.IntAttribute("axis", 1);
  if (block > 0) rank = static_cast<std::int64_t>(affine.scale.dims.size());
  if (block < 0 || (axis < 0 && !rank.has_value()))
    return Refusal{"the axis counts from the end and the rank is not known"};
  if (axis < 0) axis += *rank;
  if (axis < 0 || (rank.has_value() && axis >= *rank)) return Refusal{"the axis is outside the tensor"};
  affine.axis = axis;
  affine.block = block;
  if (affine.zero_point.has_value() && affine.zero_point->dims != affine.scale.dims) {
    return Refusal{"the zero point does not have the scale's shape"};
  }
  // Sizes that do not fit make an invalid model: what the runtime says to it should not change.
  std::vector<Dim> dims;
  if (IsPlainConstant(x)) {
    for (std::int64_t d : x->data->dims) dims.push_back({d, {}});
  } else if (x->type.shape.has_value()) {
    dims = *x->type.shape;
  }
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (!dims[i].known()) continue;
    const bool along = static_cast<std::int64_t>(i) == axis;
    if (block == 0) {
      if (along && dims[i].value != affine.scale.dims[0]) return Refusal{"the scale does not fit the dimension"};
    } else if (i >= affine.scale.dims.size() ||
               affine.scale.dims[i] != (along ? (dims[i].value + block - 1) / block : dims[i].value)) {
      return Refusal{"the scale does not fit the blocks"};
    }
  }
  return params;
}

// One graph's worth of folding. The order of the steps matters: pairs first, then what is left of either kind.
class Folder {
 public:
  Folder(Graph& graph, bool contrib) : graph_(graph), contrib_(contrib) {}

  std::int64_t Run() {
    std::vector<Node*> quantizes;  // first: folding one erases DequantizeLinear nodes behind it
    for (Node* node : graph_.nodes()) {
      if (IsQ(*node) && Taken(*node)) quantizes.push_back(node);
    }
    for (Node* node : quantizes) FoldQuantize(*node);
    for (Node* node : graph_.nodes()) {
      if (IsDq(*node) && Taken(*node)) FoldDequantize(*node);
    }
    for (Node* node : graph_.nodes()) {
      // Ties of MX to even are the node's own: no type says so.
      if (!node->Is(kQuantize, kIrDomain)) continue;
      if (node->StringAttribute("rounding", "away") != "even") {
        Settle(*node);
      } else if (node->input(0)->type.quant.has_value()) {
        node->SetOp(std::string(kRequantize), std::string(kIrDomain));
      }
    }
    for (Node* node : graph_.nodes()) MarkForm(*node);
    return folded_;
  }

 private:
  bool Taken(const Node& node) const { return contrib_ || node.domain().empty(); }

  static Type QuantizedType(const Params& params, const Type& like) {
    Type type;
    type.dtype = params.expressed;
    type.shape = like.shape;
    type.quant = params.type;
    return type;
  }

  // A node of the operator on `input` with the same parameters that exists already.
  Node* FindTwin(const Value& input, std::string_view op, const QuantType& params) const {
    for (const Use& use : input.uses()) {
      if (use.node->graph() != &graph_ || !use.node->Is(op, kIrDomain)) continue;
      const Type& type = use.node->output()->type;
      if (type.quant.has_value() && SameParams(*type.quant, params)) return use.node;
    }
    return nullptr;
  }

  // Uses of a float value `d` (the output of a DequantizeLinear) become uses of the quantized value. Graph outputs and
  // uses in subgraphs need the float value itself: an explicit Dequantize makes it.
  void ReplaceDequantized(Node& dq, Value* quantized) {
    Value* d = dq.output();
    std::vector<Use> uses(d->uses().begin(), d->uses().end());
    for (const Use& use : uses) {
      if (use.node->graph() == &graph_) use.node->SetInput(use.index, quantized);
    }
    const std::string name = d->name();
    Value* explicit_value = nullptr;
    if (!d->dead()) {
      Node* node =
          graph_.AddNode(std::string(kDequantize), std::string(kIrDomain), {quantized}, {{name, d->type}}, &dq);
      node->name = dq.name;
      node->form = QuantForm::kQdq;
      explicit_value = node->output();
      if (explicit_value->type.dtype == DType::kUndefined) explicit_value->type.dtype = quantized->type.dtype;
      graph_.ReplaceAllUses(d, explicit_value);
    }
    graph_.Erase(&dq);
    if (explicit_value != nullptr) graph_.Rename(explicit_value, name);
    ++folded_;
  }

  // Before:  %q = QuantizeLinear %x         After:  %xq : f32 # u8 = Quantize %x        (one for equal parameters)
  //          %d = DequantizeLinear %q               uses of %d use %xq
  //          Other %q, or %q is an output           %q : u8 = StorageCast %xq
  void FoldQuantize(Node& q) {
    MatchOr<Params> match = ReadParams(q);
    if (std::holds_alternative<Refusal>(match)) return;
    const Params& params = std::get<Params>(match);
    Value* x = q.input(0);
    Value* codes = q.output();
    Value* quantized = nullptr;
    if (Node* twin = FindTwin(*x, kQuantize, params.type)) {
      quantized = twin->output();
    } else {
      Type type = QuantizedType(params, x->type);
      if (!type.shape.has_value()) type.shape = codes->type.shape;
      // In a chain of quantizations each takes its name from the file, or names would grow with the chain.
      const std::string& base = x->type.quant ? codes->name() : x->name();
      Node* node =
          graph_.AddNode(std::string(kQuantize), std::string(kIrDomain), {x}, {{base + "_q", std::move(type)}}, &q);
      node->name = q.name;
      node->form = QuantForm::kQdq;
      quantized = node->output();
    }
    std::vector<Use> uses(codes->uses().begin(), codes->uses().end());
    for (const Use& use : uses) {
      if (use.node->graph() != &graph_ || !IsDq(*use.node) || !Taken(*use.node) || use.index != 0) continue;
      MatchOr<Params> dq = ReadParams(*use.node);
      if (const auto* p = std::get_if<Params>(&dq); p != nullptr && SameParams(p->type, params.type)) {
        ReplaceDequantized(*use.node, quantized);
      }
    }
    const std::string name = codes->name();
    Value* raw = nullptr;
    if (!codes->dead()) {
      Type type = codes->type;
      type.dtype = params.type.affine.storage;
      Node* cast =
          graph_.AddNode(std::string(kStorageCast), std::string(kIrDomain), {quantized}, {{name, std::move(type)}}, &q);
      raw = cast->output();
      graph_.ReplaceAllUses(codes, raw);
    }
    graph_.Erase(&q);
    if (raw != nullptr) graph_.Rename(raw, name);
  }

  // Before:  %d = DequantizeLinear constant codes     After:  uses of %d use a quantized constant
  //          %d = DequantizeLinear %raw                       %dq : f32 # u8 = StorageCast %raw
  void FoldDequantize(Node& dq) {
    MatchOr<Params> match = ReadParams(dq);
    if (std::holds_alternative<Refusal>(match)) return;
    const Params& params = std::get<Params>(match);
    Value* codes = dq.input(0);
    if (IsPlainConstant(codes)) {
      Value* quantized = nullptr;
      for (Value* known : constants_[codes]) {
        if (SameParams(*known->type.quant, params.type)) quantized = known;
      }
      if (quantized == nullptr) {
        Type type = QuantizedType(params, codes->type);
        if (!type.shape.has_value()) {
          type.shape.emplace();
          for (std::int64_t d : codes->data->dims) type.shape->push_back({d, {}});
        }
        quantized = graph_.AddConstant(codes->name(), *codes->data, std::move(type));
        constants_[codes].push_back(quantized);
      }
      ReplaceDequantized(dq, quantized);
      if (codes->dead()) {
        const std::string name = codes->name();
        Graph* home = codes->graph();
        constants_.erase(codes);
        home->Erase(codes);
        if (home == &graph_) graph_.Rename(quantized, name);
      }
      return;
    }
    if (codes->type.quant.has_value()) return;
    Node* cast = FindTwin(*codes, kStorageCast, params.type);
    if (cast == nullptr) {
      cast = graph_.AddNode(std::string(kStorageCast), std::string(kIrDomain), {codes},
                            {{dq.output()->name() + "_q", QuantizedType(params, codes->type)}}, &dq);
      cast->form = QuantForm::kQdq;
      if (codes->type.dtype == DType::kUndefined) codes->type.dtype = params.type.affine.storage;
    }
    ReplaceDequantized(dq, cast->output());
  }

  // Before:  %yq = Quantize %x, %x quantized          After:  %yq = Requantize %x
  //          %yq = Quantize %x, its only use                  %x : f32 # u8 = Producer
  //          %yq = Quantize constant                          a constant of codes, computed by the same arithmetic
  void Settle(Node& q) {
    Value* x = q.input(0);
    Value* quantized = q.output();
    if (x->type.quant.has_value()) {
      q.SetOp(std::string(kRequantize), std::string(kIrDomain));
      return;
    }
    if (x->is_constant()) {
      QuantizeConstant(q);
      return;
    }
    Node* producer = x->producer();
    if (producer == nullptr || producer->graph() != &graph_ || x->uses().size() != 1 || x->is_graph_output()) return;
    if (producer->domain() == kIrDomain || IsQ(*producer) || IsDq(*producer)) return;
    for (const Attribute& attribute : producer->attributes()) {
      if (std::holds_alternative<std::unique_ptr<Graph>>(attribute.value)) return;  // the body's output stays float
    }
    Type type = quantized->type;
    if (x->type.shape.has_value()) type.shape = x->type.shape;
    graph_.ReplaceAllUses(quantized, x);
    graph_.Erase(&q);
    x->type = std::move(type);
  }

  void QuantizeConstant(Node& q) {
    Value* x = q.input(0);
    Value* quantized = q.output();
    const Affine& affine = quantized->type.quant->affine;
    // Blocks and 16-bit floats are left to the runtime; 32-bit codes are not exact in f32.
    if (!IsPlainConstant(x) || x->data->dtype != DType::kF32 || affine.block != 0 ||
        affine.scale.dtype != DType::kF32 || BitWidth(affine.storage) > 16 || BitWidth(affine.storage) < 8) {
      return;
    }
    const std::vector<float> values = x->data->ToFloats();
    const std::vector<float> scales = affine.scale.ToFloats();
    std::vector<std::int64_t> zeros(scales.size(), 0);
    if (affine.zero_point.has_value()) zeros = affine.zero_point->ToInts();
    std::uint64_t inner = values.size();
    if (affine.axis.has_value()) {
      inner = 1;
      for (std::size_t i = static_cast<std::size_t>(*affine.axis) + 1; i < x->data->dims.size(); ++i) {
        inner *= static_cast<std::uint64_t>(x->data->dims[i]);
      }
    }
    std::vector<std::int64_t> codes(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) return;  // what a NaN becomes is the runtime's choice
      const std::size_t c = scales.size() == 1 ? 0 : i / inner % scales.size();
      codes[i] = QuantizeOne(values[i], scales[c], static_cast<std::int32_t>(zeros[c]), affine.storage);
    }
    Value* constant = graph_.AddConstant(x->name() + "_codes",
                                         TensorRef::FromInts(affine.storage, x->data->dims, codes), quantized->type);
    graph_.ReplaceAllUses(quantized, constant);
    graph_.Erase(&q);
  }

  void MarkForm(Node& node) {
    const auto quantized = [](const Value* v) { return v != nullptr && v->type.quant.has_value(); };
    if (node.form == QuantForm::kNone && (std::any_of(node.inputs().begin(), node.inputs().end(), quantized) ||
                                          std::any_of(node.outputs().begin(), node.outputs().end(), quantized))) {
      node.form = QuantForm::kQdq;
    }
  }

  Graph& graph_;
  bool contrib_;
  std::int64_t folded_ = 0;
  std::unordered_map<const Value*, std::vector<Value*>> constants_;
};

std::int64_t Fold(Model& model, bool contrib) {
  std::vector<Graph*> graphs{model.graph.get()};
  VisitNodes(*model.graph, [&](Node& node) {
    for (Attribute& attribute : node.attributes()) {
      if (auto* body = std::get_if<std::unique_ptr<Graph>>(&attribute.value)) graphs.push_back(body->get());
    }
  });
  std::int64_t folded = 0;
  for (Graph* graph : graphs) folded += Folder(*graph, contrib).Run();
  model.graph->EraseDead();
  return folded;
}

// A constant, or one behind a Cast to f32, as f32 numbers.
std::optional<TensorRef> WideConstant(const Value* value) {
  if (value == nullptr) return std::nullopt;
  if (IsPlainConstant(value)) return value->data->dtype == DType::kF32 ? value->data : std::nullopt;
  const Node* cast = value->producer();
  if (cast == nullptr || !cast->Is("Cast") || cast->IntAttribute("to", 0) != 1 || !IsPlainConstant(cast->input(0))) {
    return std::nullopt;
  }
  const TensorRef& stored = *cast->input(0)->data;
  if (stored.dtype == DType::kF16) return TensorRef::FromFloats(stored.dims, stored.ToFloats());
  if (stored.dtype != DType::kU4) return std::nullopt;
  const std::vector<std::int64_t> codes = stored.ToInts();
  return TensorRef::FromFloats(stored.dims, std::vector<float>(codes.begin(), codes.end()));
}

// The product of numbers and of steps that are 1 wide where the numbers are not.
std::optional<TensorRef> Product(const TensorRef& codes, const TensorRef& steps) {
  const std::size_t rank = codes.dims.size();
  if (steps.dims.size() != rank || codes.elements() == 0) return std::nullopt;
  std::vector<std::size_t> stride(rank, 0);
  std::size_t step = 1;
  for (std::size_t i = rank; i-- > 0;) {
    if (steps.dims[i] != codes.dims[i] && steps.dims[i] != 1) return std::nullopt;
    if (steps.dims[i] != 1) stride[i] = step;
    step *= static_cast<std::size_t>(steps.dims[i]);
  }
  std::vector<float> out = codes.ToFloats();
  const std::vector<float> by = steps.ToFloats();
  for (std::size_t at = 0; at < out.size(); ++at) {
    std::size_t left = at, from = 0;
    for (std::size_t i = rank; i-- > 0;) {
      from += left % static_cast<std::size_t>(codes.dims[i]) * stride[i];
      left /= static_cast<std::size_t>(codes.dims[i]);
    }
    out[at] *= by[from];
  }
  return TensorRef::FromFloats(codes.dims, out);
}

// Before:  %s = Cast %k : f16 {to=f32};  %d = DequantizeLinear %q, %s        After:  %d = DequantizeLinear %q, %s : f32
// Before:  %s = Mul (Cast %k : u4), %steps                                   After:  the same
// What emit/scales.h writes.
void WidenScales(Model& model) {
  std::vector<std::pair<Value*, TensorRef>> found;
  VisitNodes(*model.graph, [&](Node& node) {
    const bool product = node.Is("Mul");
    if ((!product && !node.Is("Cast")) || node.output() == nullptr || node.output()->is_graph_output()) return;
    const auto& uses = node.output()->uses();
    if (uses.empty() || !std::all_of(uses.begin(), uses.end(), [](const Use& use) {
          return use.index == 1 && (IsQ(*use.node) || IsDq(*use.node));
        })) {
      return;
    }
    std::optional<TensorRef> scales = WideConstant(product ? node.input(0) : node.output());
    if (product && scales) {
      const std::optional<TensorRef> steps = WideConstant(node.input(1));
      scales = steps ? Product(*scales, *steps) : std::nullopt;
    }
    if (scales) found.emplace_back(node.output(), std::move(*scales));
  });
  for (auto& [value, scales] : found) {
    Node* node = value->producer();
    std::vector<Value*> from(node->inputs().begin(), node->inputs().end());
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (Node* cast = from[i]->producer()) from.push_back(cast->input(0));
    }
    node->graph()->ReplaceAllUses(value, node->graph()->AddConstant(value->name() + "_wide", std::move(scales)));
    node->graph()->Erase(node);
    for (Value* v : from) {  // the operator's inputs stand before what they are made of
      if (!v->dead()) continue;
      if (v->producer() != nullptr) {
        v->graph()->Erase(v->producer());
      } else if (v->is_constant()) {
        v->graph()->Erase(v);
      }
    }
  }
}

}  // namespace

std::int64_t FoldQdq(Model& model) {
  WidenScales(model);
  // Fake quantization takes the same road.
  DecomposeFakeQuantize(model);
  const std::int64_t mx = FoldQuantOps(model);
  bool contrib = false;
  VisitNodes(*model.graph,
             [&](Node& node) { contrib = contrib || (node.domain() == kContrib && (IsQ(node) || IsDq(node))); });
  if (contrib) {
    // They come out as standard operators, which may need a higher opset than the model can be raised to.
    Model trial = Clone(model);
    Fold(trial, true);
    try {
      RaiseOpsetForQuantization(trial);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kUnsupported) throw;
      LogWarning(std::string("com.microsoft Q/DQ nodes are kept as they are: ") + error.what());
      contrib = false;
    }
  }
  return mx + Fold(model, contrib);
}

}  // namespace octavo
