#include "octavo/quantize/weight_mx.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "octavo/numerics/mx.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/placement.h"

namespace octavo {

std::optional<WeightOnlyFormat> MxWeights(const QuantizationConfig& config) {
  const MxFormat* format = FindMxFormat(config.precision);
  if (format == nullptr || format->e4m3_scale) return std::nullopt;
  WeightOnlyFormat out;
  out.name = config.precision;
  out.weight_text = config.precision + ", blocks of " + std::to_string(config.block);
  out.short_blocks = true;
  out.bits_per_weight = format->bits + 8.0 / static_cast<double>(config.block);
  out.encode = [format, block = config.block](const TensorRef& weight, std::int64_t axis,
                                              std::span<const float>) -> std::variant<EncodedWeight, std::string> {
    EncodedWeight encoded;
    encoded.type.kind = QuantType::Kind::kMx;
    encoded.type.mx = {std::string(format->name), axis, block};
    MxShape shape;
    shape.block = static_cast<std::size_t>(block);
    for (std::size_t i = 0; i < weight.dims.size(); ++i) {
      const auto d = static_cast<std::size_t>(weight.dims[i]);
      if (static_cast<std::int64_t>(i) < axis)
        shape.outer *= d;
      else if (static_cast<std::int64_t>(i) > axis)
        shape.inner *= d;
      else
        shape.n = d;
    }
    std::vector<float> storage;
    const std::span<const float> x = FloatView(weight, storage);
    std::vector<float> values(x.size());
    MxFakeQuantize(x.data(), shape, *format, MxRounding::kEven, values.data());
    encoded.data = TensorRef::FromFloats(weight.dims, values);
    return encoded;
  };
  return out;
}

namespace {

bool IsMxConstant(const Value* v) {
  for (int i = 0; i < 8 && v != nullptr && v->producer() != nullptr && v->producer()->Is("Transpose"); ++i) {
    v = v->producer()->input(0);
  }
  return v != nullptr && v->is_constant() && v->type.quant && v->type.quant->kind == QuantType::Kind::kMx;
}

// The inputs of a product that are computed, each with the axis that is summed over; or why they have no blocks.
struct Operand {
  std::size_t input = 0;
  std::int64_t axis = 0;
};
std::variant<std::vector<Operand>, std::string> Operands(const Node& node, std::int64_t block) {
  const bool matmul = FindOp(node).category == OpCategory::kMatMul;
  std::vector<Operand> operands;
  for (std::size_t i = 0; i < (matmul ? 2 : 1); ++i) {
    const Value* x = node.input(i);
    if (x == nullptr || x->is_constant() || IsMxConstant(x)) continue;
    if (x->type.dtype != DType::kF32) return "its input '" + x->name() + "' is not f32";
    if (!x->type.shape) return "the rank of its input '" + x->name() + "' is not known";
    const auto rank = static_cast<std::int64_t>(x->type.shape->size());
    std::int64_t axis = matmul && i == 1 ? std::max<std::int64_t>(rank - 2, 0) : rank - 1;
    if (node.Is("Gemm")) axis = node.IntAttribute("transA", 0) != 0 ? 0 : 1;
    if (node.Is("Conv") || node.Is("ConvTranspose")) axis = 1;
    if (axis < 0 || axis >= rank) return "its input '" + x->name() + "' has no axis " + std::to_string(axis);
    const Dim& length = (*x->type.shape)[static_cast<std::size_t>(axis)];
    const std::int64_t groups = node.IntAttribute("group", 1);
    if (groups > 1 && (!length.known() || length.value % groups != 0 || length.value / groups % block != 0)) {
      return "blocks of " + std::to_string(block) + " channels would reach over the borders of its " +
             std::to_string(groups) + " groups";
    }
    operands.push_back({i, axis});
  }
  return operands;
}

}  // namespace

void QuantizeActivationsMx(Model& model, const QuantizationConfig& config, QuantizeResult& result) {
  Graph& graph = *model.graph;
  std::map<std::pair<const Value*, std::int64_t>, Value*> made;
  std::map<std::string, std::string> skipped;  // node -> why
  std::set<std::string> taken;
  for (Node* node : graph.nodes()) {
    const OpInfo& info = FindOp(*node);
    const bool matmul = info.category == OpCategory::kMatMul;
    if (!matmul && info.category != OpCategory::kWeighted) continue;
    if (node->input(0) == nullptr || node->input(1) == nullptr) continue;
    const bool weight = IsMxConstant(node->input(1)) || (matmul && IsMxConstant(node->input(0)));
    const bool product = matmul && !node->input(0)->is_constant() && !node->input(1)->is_constant();
    if (!weight && !(product && node->Is("MatMul"))) continue;
    if (product && !weight && !KeptByUser(*node, config).empty()) continue;
    const auto found = Operands(*node, config.block);
    if (const auto* reason = std::get_if<std::string>(&found)) {
      skipped[NodeName(*node)] = *reason;
      result.nodes_skipped.push_back(
          {NodeName(*node), node->op(), (weight ? "its activations stay float, its weight does not: " : "") + *reason});
      continue;
    }
    for (const Operand& operand : std::get<std::vector<Operand>>(found)) {
      Value* x = node->input(operand.input);
      Value*& known = made[{x, operand.axis}];
      if (known == nullptr) {
        Type type = x->type;
        type.quant.emplace();
        type.quant->kind = QuantType::Kind::kMx;
        type.quant->mx = {config.activation_mx, operand.axis, config.block};
        Node* quantize = graph.AddNode(std::string(kQuantize), std::string(kIrDomain), {x},
                                       {{x->name() + "_mx", std::move(type)}}, node);
        quantize->form = QuantForm::kQdq;
        quantize->SetAttribute("rounding", std::string("even"));
        known = quantize->output();
      }
      node->SetInput(operand.input, known);
    }
    if (node->form == QuantForm::kNone) node->form = QuantForm::kQdq;
    if (!weight) {
      ++result.nodes_quantized;
      taken.insert(NodeName(*node));
    }
  }
  // Products of two activations had no weight to store.
  std::erase_if(result.nodes_skipped, [&](const SkippedNode& s) {
    return taken.contains(s.node) ||
           (skipped.contains(s.node) && s.op == "MatMul" && s.reason == "both operands are computed");
  });
}

}  // namespace octavo
