#include <map>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/emit/lower_ggml.h"
#include "octavo/emit/lower_mx.h"
#include "octavo/emit/onnx.h"
#include "octavo/emit/scales.h"

namespace octavo {
namespace {

constexpr std::string_view kCodesSuffix = "_quantized";

// A value that is named `x_quantized` already speaks of `x`: lowering what was folded before gives the names back.
std::string BaseName(const std::string& name) {
  if (name.size() > kCodesSuffix.size() && name.ends_with(kCodesSuffix)) {
    return name.substr(0, name.size() - kCodesSuffix.size());
  }
  return name;
}

TensorRef ZerosLike(DType dtype, const Dims& dims) {
  const std::optional<std::uint64_t> size = ByteSize(dtype, ElementCount(dims));
  if (!size) ThrowInternal("zero point too large");
  return TensorRef::FromBytes(dtype, dims, std::vector<std::byte>(*size));
}

class Lowering {
 public:
  explicit Lowering(Model& model) : model_(model) {}

  void Run() {
    std::vector<Value*> values;
    Collect(*model_.graph, values);
    for (Value* value : values) Lower(value);
    VisitNodes(*model_.graph, [](Node& node) { node.form = QuantForm::kNone; });
  }

 private:
  void Collect(Graph& graph, std::vector<Value*>& values) {
    const auto take = [&](Value* value) {
      if (!value || !value->type.quant) return;
      if (value->type.quant->kind != QuantType::Kind::kAffine) {
        ThrowUnsupported("block format in a QDQ model", "value '" + value->name() + "', " + ToString(value->type),
                         "QuantizeLinear and DequantizeLinear say affine types only");
      }
      if (value->kind() == ValueKind::kInput) {
        ThrowInternal("graph input with a quantized type; inputs are never retyped", value->name());
      }
      values.push_back(value);
    };
    for (Value* value : graph.inputs()) take(value);
    for (Value* value : graph.constants()) take(value);
    for (Node* node = graph.first(); node; node = node->next()) {
      for (Value* value : node->outputs()) take(value);
      for (Graph* sub : node->subgraphs()) {
        holders_[sub] = node;
        Collect(*sub, values);
      }
    }
  }

  // The node of `graph` that is `node`, or holds the subgraph with it.
  Node* Anchor(Node* node, const Graph* graph) const {
    while (node->graph() != graph) node = holders_.at(node->graph());
    return node;
  }

  void Lower(Value* value);
  void SetParams(Node& node, bool dequantize);
  Value* Dequantize(Graph& graph, const std::string& name, Node* before);
  void ReplaceByCodes(Node* cast);

  Model& model_;
  std::map<const Graph*, Node*> holders_;

  // Of the value being lowered.
  Affine affine_;
  Type type_;  // without quantization
  Value* codes_ = nullptr;
  Value* scale_ = nullptr;
  Value* zero_point_ = nullptr;
};

void Lowering::SetParams(Node& node, bool dequantize) {
  node.ResizeInputs(1);
  node.SetInput(1, scale_);
  if (zero_point_) node.SetInput(2, zero_point_);
  if (affine_.axis) node.SetAttribute("axis", *affine_.axis);
  if (affine_.block > 0) node.SetAttribute("block_size", affine_.block);
  if (type_.dtype != affine_.scale.dtype) {
    if (model_.OpsetVersion() < 23) {
      ThrowInternal("scale of another type than the value needs operator set 23; raise the model first", node.name);
    }
    if (dequantize) node.SetAttribute("output_dtype", static_cast<std::int64_t>(type_.dtype));
  }
}

Value* Lowering::Dequantize(Graph& graph, const std::string& name, Node* before) {
  Node* node = graph.AddNode("DequantizeLinear", "", {codes_}, {{graph.UniqueName(name), type_}}, before);
  node->name = node->output()->name();
  SetParams(*node, true);
  return node->output();
}

// StorageCast of the quantized value to its codes: the codes themselves.
void Lowering::ReplaceByCodes(Node* cast) {
  Value* raw = cast->output();
  Graph* graph = cast->graph();
  if (raw->is_graph_output()) {
    const bool can_take_name =
        codes_->graph() == graph && codes_->kind() == ValueKind::kResult && !codes_->is_graph_output();
    if (!can_take_name) {
      cast->SetOp("Identity");
      cast->SetInput(0, codes_);
      return;
    }
    const std::string name = raw->name();
    codes_->extras = raw->extras;
    graph->ReplaceAllUses(raw, codes_);
    graph->Erase(cast);
    graph->Rename(codes_, name);
    return;
  }
  graph->ReplaceAllUses(raw, codes_);
  graph->Erase(cast);
}

void Lowering::Lower(Value* value) {
  Graph& graph = *value->graph();
  affine_ = value->type.quant->affine;
  type_ = value->type;
  type_.quant.reset();
  const std::string name = value->name();
  const std::string base = BaseName(name);
  const Type raw_type{.dtype = affine_.storage, .shape = type_.shape, .quant = {}, .opaque = {}};
  Node* producer = value->producer();
  const bool is_cast = producer && producer->Is(kStorageCast, kIrDomain);
  const bool is_quantize = producer && (producer->Is(kQuantize, kIrDomain) || producer->Is(kRequantize, kIrDomain));
  const bool makes_codes = producer && !is_cast;  // a QuantizeLinear will stand for this value

  // Uses as they are now; QuantizeLinear itself is not one of them.
  const std::vector<Use> uses(value->uses().begin(), value->uses().end());
  const std::vector<OutputUse> output_uses(value->output_uses().begin(), value->output_uses().end());

  scale_ = affine_.block > 0 ? AddScales(graph, base + "_scale", affine_.scale, *affine_.axis)
                             : graph.AddConstant(base + "_scale", affine_.scale);
  zero_point_ = nullptr;
  std::optional<TensorRef> zero_point = affine_.zero_point;
  // Without a zero point QuantizeLinear makes u8.
  if (!zero_point && makes_codes && affine_.storage != DType::kU8) {
    zero_point = ZerosLike(affine_.storage, affine_.scale.dims);
  }
  if (zero_point) zero_point_ = graph.AddConstant(base + "_zero_point", *zero_point);

  if (producer && !is_quantize && !is_cast) {
    value->type.quant.reset();
    if (!output_uses.empty()) graph.Rename(value, graph.UniqueName(base + "_float"));
    Node* quantize = graph.AddNode("QuantizeLinear", "", {value},
                                   {{graph.UniqueName(base + std::string(kCodesSuffix)), raw_type}}, producer->next());
    quantize->name = quantize->output()->name();
    SetParams(*quantize, false);
    codes_ = quantize->output();
  } else {
    if (!output_uses.empty() || !name.ends_with(kCodesSuffix)) {
      graph.Rename(value, graph.UniqueName(base + std::string(kCodesSuffix)));
    }
    value->type = raw_type;
    value->extras.clear();  // they described the float value
    codes_ = is_cast ? producer->input(0) : value;
    if (is_quantize) {
      producer->SetOp("QuantizeLinear");
      SetParams(*producer, false);
    }
  }

  if (!output_uses.empty()) {
    std::map<const Graph*, Value*> outputs;  // one DequantizeLinear for each graph that returns the value
    for (const OutputUse& use : output_uses) {
      Value*& output = outputs[use.graph];
      if (!output) output = Dequantize(*use.graph, name, nullptr);
      use.graph->SetOutput(use.index, output);
    }
  }
  for (const Use& use : uses) {
    if (use.node->Is(kStorageCast, kIrDomain)) {
      ReplaceByCodes(use.node);
    } else if (use.node->Is(kDequantize, kIrDomain)) {
      use.node->SetOp("DequantizeLinear");
      use.node->SetInput(0, codes_);
      SetParams(*use.node, true);
    } else {
      use.node->SetInput(use.index, Dequantize(graph, base + "_dequantized", Anchor(use.node, &graph)));
    }
  }
  if (is_cast) graph.Erase(producer);
  // A value that is only passed on as raw codes has no use for its parameters.
  if (scale_->dead()) EraseScales(scale_);
  if (zero_point_ && zero_point_->dead()) graph.Erase(zero_point_);
}

}  // namespace

void LowerToQdq(Model& model) {
  LowerGgmlBlocks(model);
  LowerMx(model);
  Lowering(model).Run();
}

}  // namespace octavo
