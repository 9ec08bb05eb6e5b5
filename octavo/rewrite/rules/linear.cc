#include "octavo/rewrite/rules/linear.h"

#include <string>

namespace octavo {
namespace {

// How channel indices run through a weight tensor: element e belongs to output channel Channel(e).
struct WeightLayout {
  std::int64_t outer = 1;     // product of the dimensions before the channel dimension
  std::int64_t channels = 1;  // that dimension
  std::int64_t inner = 1;     // product of those after it
  std::int64_t groups = 1;    // ConvTranspose: `outer` is split into that many runs, each with its own channels
  std::int64_t Channel(std::int64_t outer_index, std::int64_t channel) const {
    return outer_index / (outer / groups) * channels + channel;
  }
};

WeightLayout LayoutOf(const Node& node, const Dims& dims) {
  WeightLayout layout;
  const auto product = [&](std::size_t from, std::size_t to) {
    std::int64_t p = 1;
    for (std::size_t i = from; i < to; ++i) p *= dims[i];
    return p;
  };
  std::size_t axis = 0;
  if (node.Is("ConvTranspose")) {
    axis = 1;
    layout.groups = node.IntAttribute("group", 1);
  } else if (node.Is("Gemm")) {
    axis = node.IntAttribute("transB", 0) != 0 ? 0 : 1;
  } else if (node.Is("MatMul")) {
    axis = 1;
  }
  layout.outer = product(0, axis);
  layout.channels = dims[axis];
  layout.inner = product(axis + 1, dims.size());
  return layout;
}

}  // namespace

bool IsFloatConstant(const Value* value) {
  return value != nullptr && value->is_constant() && value->data.has_value() && !value->type.quant.has_value() &&
         value->data->dtype == DType::kF32;
}

std::vector<double> ToDoubles(const TensorRef& tensor) {
  const std::vector<float> values = tensor.ToFloats();
  return {values.begin(), values.end()};
}

TensorRef FromDoubles(Dims dims, std::span<const double> values) {
  std::vector<float> rounded(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) rounded[i] = static_cast<float>(values[i]);
  return TensorRef::FromFloats(std::move(dims), rounded);
}

MatchOr<LinearLayer> MatchLinearLayer(const Value* y, bool shift) {
  if (y == nullptr || y->producer() == nullptr) return Refusal{"the input is not the output of a layer"};
  Node* node = y->producer();
  const bool conv = node->Is("Conv"), transpose = node->Is("ConvTranspose"), gemm = node->Is("Gemm"),
             matmul = node->Is("MatMul");
  if (!conv && !transpose && !gemm && !matmul) {
    return Refusal{"the input comes from " + node->op() + ", which has no weights to fold into"};
  }
  if (y->uses().size() != 1 || y->is_graph_output()) {
    return Refusal{"the output of " + Describe(*node) + " has other uses"};
  }
  if (y->uses()[0].node->graph() != node->graph()) {
    return Refusal{"the output of " + Describe(*node) + " is used in a subgraph"};
  }
  if (y->type.quant.has_value()) return Refusal{"the output of " + Describe(*node) + " is quantized"};
  const Value* weight = node->input(1);
  if (!IsFloatConstant(weight)) return Refusal{"the weight of " + Describe(*node) + " is not an f32 constant"};
  const Dims& dims = weight->data->dims;
  LinearLayer layer;
  layer.node = node;
  if (conv || transpose) {
    if (dims.size() < 3)
      return Refusal{"the weight of " + Describe(*node) + " has rank " + std::to_string(dims.size())};
    const std::int64_t group = node->IntAttribute("group", 1);
    if (group < 1 || dims[0] % group != 0) {
      return Refusal{"the weight of " + Describe(*node) + " does not divide into its groups"};
    }
    layer.rank = static_cast<std::int64_t>(dims.size());
    layer.channels = conv ? dims[0] : dims[1] * group;
  } else {
    if (dims.size() != 2) return Refusal{"the weight of " + Describe(*node) + " is not a matrix"};
    layer.rank = gemm ? 2 : 0;
    layer.channels_last = true;
    layer.channels = gemm && node->IntAttribute("transB", 0) != 0 ? dims[0] : dims[1];
  }
  if (weight->data->elements() == 0) return Refusal{"the weight of " + Describe(*node) + " is empty"};
  if (matmul) {
    if (shift) return Refusal{"MatMul has no bias: an Add behind it is its bias already"};
    return layer;
  }
  if (const Value* bias = node->input(2)) {
    if (!IsFloatConstant(bias)) return Refusal{"the bias of " + Describe(*node) + " is not an f32 constant"};
    const Dims& shape = bias->data->dims;
    const auto count = static_cast<std::int64_t>(bias->data->elements());
    // Gemm broadcasts its C over rows and columns; only one number a column (or one in all) is a bias.
    const bool row = count == layer.channels && !shape.empty() && shape.back() == layer.channels && shape.size() <= 2;
    const bool fits = gemm ? row || count == 1 : count == layer.channels && shape.size() == 1;
    if (!fits) return Refusal{"the bias of " + Describe(*node) + " is not one number a channel"};
  }
  return layer;
}

MatchOr<std::vector<double>> PerChannel(const LinearLayer& layer, const TensorRef& constant) {
  const Dims& dims = constant.dims;
  const auto rank = static_cast<std::int64_t>(dims.size());
  const auto channels = static_cast<std::size_t>(layer.channels);
  // Right-aligned broadcasting: the constant's dimension i stands at output axis i + (rank of output - rank of
  // constant).
  const std::int64_t out_rank = layer.rank == 0 ? 1 : layer.rank;
  if (rank > out_rank) {
    return Refusal{"the constant has rank " + std::to_string(rank) + ", more than the layer's output is known to have"};
  }
  const std::int64_t axis = (layer.channels_last ? out_rank - 1 : 1) - (out_rank - rank);
  for (std::int64_t i = 0; i < rank; ++i) {
    if (i != axis && dims[static_cast<std::size_t>(i)] != 1) {
      return Refusal{"the constant varies along axis " + std::to_string(i + out_rank - rank) +
                     ", which is not the channel axis"};
    }
  }
  std::vector<double> values = ToDoubles(constant);
  if (values.size() == 1) return std::vector<double>(channels, values[0]);
  if (values.size() != channels) {
    return Refusal{"the constant has " + std::to_string(values.size()) + " numbers for " + std::to_string(channels) +
                   " channels"};
  }
  return values;
}

void ScaleAndShift(const LinearLayer& layer, std::span<const double> a, std::span<const double> shift,
                   Rewriter& rewriter) {
  Node& node = *layer.node;
  bool scales = false;
  for (double factor : a) scales = scales || factor != 1.0;
  if (scales) {
    const TensorRef weight = *node.input(1)->data;
    const WeightLayout layout = LayoutOf(node, weight.dims);
    std::vector<float> values = weight.ToFloats();
    std::size_t e = 0;
    for (std::int64_t o = 0; o < layout.outer; ++o) {
      for (std::int64_t c = 0; c < layout.channels; ++c) {
        const double factor = a[static_cast<std::size_t>(layout.Channel(o, c))];
        for (std::int64_t i = 0; i < layout.inner; ++i, ++e) values[e] = static_cast<float>(values[e] * factor);
      }
    }
    rewriter.ReplaceConstant(node, 1, TensorRef::FromFloats(weight.dims, values));
  }
  const Value* old = node.input(2);
  bool shifts = scales && old != nullptr;
  for (double b : shift) shifts = shifts || b != 0.0;
  if (!shifts) {
    rewriter.Touch(&node);
    return;
  }
  const auto channels = static_cast<std::size_t>(layer.channels);
  std::vector<double> bias(channels, 0.0);
  if (old != nullptr) {
    const std::vector<double> values = ToDoubles(*old->data);
    // Gemm adds beta * C; beta is folded into the new bias.
    const double beta = node.Is("Gemm") ? static_cast<double>(node.FloatAttribute("beta", 1.0f)) : 1.0;
    for (std::size_t c = 0; c < channels; ++c) bias[c] = beta * values[values.size() == 1 ? 0 : c];
  }
  for (std::size_t c = 0; c < channels; ++c) bias[c] = bias[c] * a[c] + (shift.empty() ? 0.0 : shift[c]);
  if (node.Is("Gemm")) node.RemoveAttribute("beta");
  TensorRef data = FromDoubles({layer.channels}, bias);
  if (old == nullptr) {
    node.SetInput(2, node.graph()->AddConstant(node.output()->name() + "_bias", std::move(data)));
    rewriter.Touch(&node);
  } else {
    rewriter.ReplaceConstant(node, 2, std::move(data));
  }
}

}  // namespace octavo
