#include "octavo/compile/center_attention.h"

#include <algorithm>
#include <optional>
#include <string>

namespace octavo {
namespace {

// What makes `v`, if it is an operator `op`.
const Node* MakerOf(const Value* v, std::string_view op) {
  const Node* maker = v == nullptr ? nullptr : v->producer();
  return maker != nullptr && maker->Is(op) ? maker : nullptr;
}

// A QuantizeLinear or DequantizeLinear of `dtype` with one constant scale and zero point.
bool IsOf(DType dtype, const Node* node) {
  const Value* scale = node == nullptr ? nullptr : node->input(1);
  const Value* zero = node == nullptr ? nullptr : node->input(2);
  return scale != nullptr && zero != nullptr && scale->data && zero->data && zero->data->dtype == dtype &&
         scale->data->elements() == 1 && scale->data->ToFloats()[0] > 0;
}

bool IsSoftmax(const Value* p) {
  const Node* dequantize = MakerOf(p, "DequantizeLinear");
  const Node* quantize = IsOf(DType::kU16, dequantize) ? MakerOf(dequantize->input(0), "QuantizeLinear") : nullptr;
  const Node* softmax = quantize == nullptr ? nullptr : MakerOf(quantize->input(0), "Softmax");
  if (softmax == nullptr || p->type.shape == std::nullopt) return false;
  const std::int64_t axis = softmax->IntAttribute("axis", -1);
  return axis == -1 || axis + 1 == static_cast<std::int64_t>(p->type.shape->size());
}

// The numbers that computed codes of 16 bits mean, from which `v` is made by writing them in other codes, or which it
// is.
Value* In16Bits(Value* v) {
  const Node* dequantize = MakerOf(v, "DequantizeLinear");
  const Node* quantize = dequantize == nullptr ? nullptr : MakerOf(dequantize->input(0), "QuantizeLinear");
  if (quantize != nullptr && MakerOf(quantize->input(0), "DequantizeLinear") != nullptr) {
    v = quantize->input(0);
    dequantize = v->producer();
  }
  if (!IsOf(DType::kU16, dequantize) && !IsOf(DType::kS16, dequantize)) return nullptr;
  return dequantize->input(0)->is_constant() ? nullptr : v;
}

// A layer of the model multiplies computed numbers of 8 bits.
bool HasLayersOf8Bits(const Graph& graph) {
  const std::vector<Node*> nodes = graph.nodes();
  return std::any_of(nodes.begin(), nodes.end(), [](const Node* node) {
    if (!node->Is("MatMul") && !node->Is("Gemm") && !node->Is("Conv") && !node->Is("ConvTranspose")) return false;
    const Node* dequantize = MakerOf(node->input(0), "DequantizeLinear");
    return (IsOf(DType::kU8, dequantize) || IsOf(DType::kS8, dequantize)) && !dequantize->input(0)->is_constant();
  });
}

class Centered {
 public:
  Centered(Graph& graph, Node* product, Value* v) : graph_(graph), product_(product), v_(v), base_(v->name() + "_") {}

  void Write() {
    const Node* codes = v_->producer();
    const Type type = product_->output()->type;
    const float step = codes->input(1)->data->ToFloats()[0];
    Params same = {codes->input(1), codes->input(2)};
    if (!IsOf(DType::kU16, codes)) {
      same.zero = Constant("zero", DType::kU16, codes->input(2)->data->ToInts()[0] + 32768);
      v_ = InCodes(v_, same);
    }
    const Params twice = {Scale("steps", 2 * step), Constant("middle", DType::kS16, 0)};
    const Params product = {twice.scale, Constant("product_middle", DType::kU16, 32768)};
    const std::int64_t rows = -2;
    Value* axes =
        graph_.AddConstant(graph_.UniqueName(base_ + "rows"), TensorRef::FromInts(DType::kS64, {1}, {&rows, 1}));
    Node* average = Add("ReduceMean", {v_, axes}, "mean");
    average->SetAttribute("keepdims", std::int64_t{1});
    Value* mean = InCodes(average->output(), same);
    Value* centered = InCodes(Add("Sub", {v_, mean}, "centered")->output(), twice);
    // One step of v, in its codes.
    Value* half =
        Add("DequantizeLinear", {Constant("half", DType::kU16, 1), same.scale, Constant("half_zero", DType::kU16, 0)},
            "half_step")
            ->output();
    Value* raised = InCodes(Add("Add", {mean, half}, "raised")->output(), same);
    Value* sum = InCodes(Add("MatMul", {product_->input(0), centered}, "product")->output(), product);
    Node* y = Add("Add", {sum, raised}, "sum");
    y->output()->type = type;
    graph_.ReplaceAllUses(product_->output(), y->output());
    graph_.SwapNames(product_->output(), y->output());
    graph_.Erase(product_);
  }

 private:
  struct Params {
    Value *scale, *zero;
  };

  Value* Scale(const char* what, float scale) {
    return graph_.AddConstant(graph_.UniqueName(base_ + what), TensorRef::Scalar(scale));
  }
  Value* Constant(const char* what, DType dtype, std::int64_t code) {
    return graph_.AddConstant(graph_.UniqueName(base_ + what), TensorRef::FromInts(dtype, {}, {&code, 1}));
  }
  Node* Add(const char* op, const std::vector<Value*>& inputs, const char* what, DType dtype = DType::kF32) {
    Type type;
    type.dtype = dtype;
    return graph_.AddNode(op, "", inputs, {{graph_.UniqueName(base_ + what), type}}, product_);
  }
  Value* InCodes(Value* x, const Params& params) {
    Value* codes = Add("QuantizeLinear", {x, params.scale, params.zero}, "codes", params.zero->data->dtype)->output();
    return Add("DequantizeLinear", {codes, params.scale, params.zero}, "numbers")->output();
  }

  Graph& graph_;
  Node* product_;
  Value* v_;
  std::string base_;
};

}  // namespace

std::int64_t CenterAttention(Model& model, std::int64_t least_rows) {
  constexpr std::int64_t kOpset = 21;  // of Q/DQ to 16 bits
  if (model.OpsetVersion() < kOpset || HasLayersOf8Bits(*model.graph)) return 0;
  std::int64_t count = 0;
  for (Node* node : model.graph->nodes()) {
    if (!node->Is("MatMul") || !IsSoftmax(node->input(0))) continue;
    Value* v = In16Bits(node->input(1));
    const std::optional<Dims> shape = v == nullptr ? std::nullopt : StaticShape(v->type);
    if (!shape || shape->size() < 2 || (*shape)[shape->size() - 2] < least_rows) continue;
    const Value* y = node->output();
    if (y->is_graph_output() || y->uses().empty() ||
        !std::all_of(y->uses().begin(), y->uses().end(),
                     [](const Use& use) { return use.node->Is("QuantizeLinear") && IsOf(DType::kU16, use.node); })) {
      continue;
    }
    Centered(*model.graph, node, v).Write();
    ++count;
  }
  return count;
}

}  // namespace octavo
