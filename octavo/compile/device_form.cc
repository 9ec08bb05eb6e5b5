#include "octavo/compile/device_form.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/compile/bridge_widths.h"
#include "octavo/compile/center_attention.h"
#include "octavo/compile/codes.h"
#include "octavo/compile/concat_volumes.h"
#include "octavo/compile/gathers.h"
#include "octavo/compile/pad_codes.h"
#include "octavo/compile/recode_concats.h"
#include "octavo/compile/recode_constants.h"
#include "octavo/compile/softmax_steps.h"
#include "octavo/compile/split_depthwise.h"
#include "octavo/compile/split_hardswish.h"
#include "octavo/device/arithmetic.h"
#include "octavo/emit/onnx.h"
#include "octavo/ir/make_type.h"
#include "octavo/ir/users.h"
#include "octavo/rewrite/add_constant.h"
#include "octavo/rewrite/spell_float.h"
#include "octavo/rewrite/unroll_recurrent.h"

namespace octavo {
namespace {

bool AllAre(const std::vector<std::int64_t>* values, const auto& is) {
  return values != nullptr && !values->empty() && std::all_of(values->begin(), values->end(), is);
}

// A convolution of 16-bit codes with constant 8-bit weights.
struct Layer {
  Node* node;
  Codes x, w;
  std::int64_t channels;  // of the output
  bool transposed, depthwise;
};

std::optional<Layer> LayerOf(Node* node) {
  const bool transposed = node->Is("ConvTranspose");
  if (!node->Is("Conv") && !transposed) return std::nullopt;
  std::optional<Codes> x = Behind(node->input(0)), w = Behind(node->input(1));
  if (!x || !w || w->codes == nullptr || !w->codes->data) return std::nullopt;
  if (x->scales.size() != 1 || x->storage != DType::kU16 || BitWidth(w->storage) != 8) return std::nullopt;
  const Dims& dims = w->codes->data->dims;
  const std::int64_t group = node->IntAttribute("group", 1);
  if (dims.size() < 3 || group < 1) return std::nullopt;
  const std::int64_t channels = transposed ? dims[1] * group : dims[0];
  if (w->scales.size() != 1 && static_cast<std::int64_t>(w->scales.size()) != channels) return std::nullopt;
  const bool depthwise = !transposed && dims[1] == 1 && group == channels;
  return Layer{node, std::move(*x), std::move(*w), channels, transposed, depthwise};
}

// Depthwise convolutions that step over what lies between and have a middle, in both dimensions, keep all bits, and so
// do those of one factor a channel.
bool KeepsBits(const Layer& layer) {
  const Dims& dims = layer.w.codes->data->dims;
  if (!layer.depthwise || dims.size() != 4) return false;
  if (dims[2] == 1 && dims[3] == 1)
    return layer.node->IntsAttribute("strides") == nullptr ||
           AllAre(layer.node->IntsAttribute("strides"), [](auto s) { return s == 1; });
  return AllAre(layer.node->IntsAttribute("strides"), [](auto s) { return s % 2 == 0; }) && dims[2] % 2 == 1 &&
         dims[3] % 2 == 1 && dims[2] > 1 && dims[3] > 1;
}

std::int64_t ZeroOf(const Layer& layer, std::int64_t channel) {
  return layer.w.zeros[layer.w.zeros.size() == 1 ? 0 : static_cast<std::size_t>(channel)];
}

// What the weights of output channel `c` add up to, zero points taken off.
std::int64_t WeightSum(const Layer& layer, const std::vector<std::int64_t>& codes, std::int64_t c) {
  const std::int64_t each = static_cast<std::int64_t>(codes.size()) / layer.channels;
  const std::int64_t zero = ZeroOf(layer, c);
  std::int64_t sum = 0;
  for (std::int64_t i = c * each; i < (c + 1) * each; ++i) sum += codes[static_cast<std::size_t>(i)] - zero;
  return sum;
}

// Whether all weights of output channel `c` are zero: its products are, of whatever scale they are written in.
bool IsZero(const Layer& layer, const std::vector<std::int64_t>& codes, std::int64_t c) {
  const std::int64_t zero = ZeroOf(layer, c);
  if (layer.transposed) return std::all_of(codes.begin(), codes.end(), [&](auto w) { return w == zero; });
  const std::int64_t each = static_cast<std::int64_t>(codes.size()) / layer.channels;
  return std::all_of(codes.begin() + c * each, codes.begin() + (c + 1) * each, [&](auto w) { return w == zero; });
}

// Before: sum = floor(products / 2^n) + truncate(bias / 2^n), where the products of the input's zero point are rounded
// to 2^n on their own.
// After: the bias that makes the mean of that what it should be.
std::int64_t MovedBias(std::int64_t bias, std::int64_t zero_products, std::int64_t unit) {
  const std::int64_t half = unit / 2;
  const std::int64_t rest = ((zero_products + half) % unit + unit) % unit - half;
  const auto units = std::llround((static_cast<double>(bias) + static_cast<double>(half) - static_cast<double>(rest)) /
                                  static_cast<double>(unit));
  // Half a unit above what is truncated: the device's own conversion of the bias must not fall short of it.
  return units * unit + (units > 0 ? half : units < 0 ? -half : 0);
}

bool MoveBias(Model& model, const Layer& layer, std::int64_t unit) {
  Graph& graph = *model.graph;
  const auto channels = static_cast<std::size_t>(layer.channels);
  std::vector<std::int64_t> bias(channels, 0);
  std::optional<Codes> old;
  if (layer.node->input(2) != nullptr) {
    old = Behind(layer.node->input(2));
    if (!old || old->codes == nullptr || !old->codes->data || old->storage != DType::kS32) return false;
    bias = old->codes->data->ToInts();
    if (bias.size() != channels) return false;
  }
  const std::vector<std::int64_t> codes = layer.w.codes->data->ToInts();
  for (std::int64_t c = 0; c < layer.channels; ++c) {
    auto& b = bias[static_cast<std::size_t>(c)];
    if (IsZero(layer, codes, c)) continue;  // nothing is rounded
    // How many products a transposed convolution adds up differs from place to place.
    const std::int64_t products = layer.transposed ? 0 : WeightSum(layer, codes, c) * layer.x.zeros[0];
    b = std::clamp<std::int64_t>(MovedBias(b, products, unit), INT32_MIN, INT32_MAX);
  }
  const std::string base = layer.node->output()->name() + "_bias";
  Value *scale = nullptr, *zero = nullptr;
  if (old) {
    scale = old->dequantize->input(1);
    zero = old->dequantize->input(2);
  } else {
    std::vector<float> scales;
    for (const float s : layer.w.scales) scales.push_back(s * layer.x.scales[0]);
    const bool one = scales.size() == 1;
    const Dims dims = one ? Dims{} : Dims{layer.channels};
    scale = graph.AddConstant(graph.UniqueName(base + "_scale"), TensorRef::FromFloats(dims, scales));
    zero = graph.AddConstant(graph.UniqueName(base + "_zero_point"),
                             TensorRef::FromInts(DType::kS32, dims, std::vector<std::int64_t>(scales.size(), 0)));
  }
  layer.node->SetInput(2, Dequantized(graph, TensorRef::FromInts(DType::kS32, {layer.channels}, bias), scale, zero, 0,
                                      base, layer.node));
  return true;
}

// Before: Conv(x, w: 5x5) {depthwise, strides = 2, pads}
// After:  Conv(x, w: 6x6, whose first row and column are 0) {pads one more before}: the compiler takes a Pad in front
//         into the convolution, and where there is padding a 5x5 is wrong on the left and at the bottom
bool GrowKernel(Model& model, const Layer& layer) {
  constexpr std::int64_t kFrom = 5, kTo = 6;
  const Dims& dims = layer.w.codes->data->dims;
  const std::vector<std::int64_t>* pads = layer.node->IntsAttribute("pads");
  const std::string padding = layer.node->StringAttribute("auto_pad", "NOTSET");
  if (!layer.depthwise || dims.size() != 4 || dims[2] != kFrom || dims[3] != kFrom || padding != "NOTSET" ||
      !AllAre(layer.node->IntsAttribute("strides"), [](auto s) { return s == 2; }) ||
      (layer.node->IntsAttribute("dilations") != nullptr &&
       !AllAre(layer.node->IntsAttribute("dilations"), [](auto d) { return d == 1; })) ||
      (pads != nullptr && pads->size() != 4)) {
    return false;
  }
  const std::vector<std::int64_t> codes = layer.w.codes->data->ToInts();
  std::vector<std::int64_t> grown;
  for (std::int64_t c = 0; c < layer.channels; ++c) {
    const std::int64_t zero = ZeroOf(layer, c);
    for (std::int64_t y = 0; y < kTo; ++y) {
      for (std::int64_t x = 0; x < kTo; ++x) {
        const std::int64_t from = (c * kFrom + y - 1) * kFrom + x - 1;
        grown.push_back(y == 0 || x == 0 ? zero : codes[static_cast<std::size_t>(from)]);
      }
    }
  }
  Graph& graph = *model.graph;
  const std::string base = layer.w.codes->name() + "_grown";
  const Node& old = *layer.w.dequantize;
  layer.node->SetInput(1, Dequantized(graph, TensorRef::FromInts(layer.w.storage, {layer.channels, 1, kTo, kTo}, grown),
                                      old.input(1), old.input(2), old.IntAttribute("axis", 1), base, layer.node));
  if (layer.node->IntsAttribute("kernel_shape") != nullptr) layer.node->SetAttribute("kernel_shape", Dims{kTo, kTo});
  std::vector<std::int64_t> before = pads == nullptr ? std::vector<std::int64_t>(4, 0) : *pads;
  ++before[0];
  ++before[1];
  layer.node->SetAttribute("pads", before);
  return true;
}

// Before: Conv(x, w, b) of one tap a channel, where the scales of w differ by more than `most` times
// After:  the same in bigger scales for the channels of the smallest ones
bool NearScales(Model& model, const Layer& layer, double most) {
  const Dims& dims = layer.w.codes->data->dims;
  const auto channels = static_cast<std::size_t>(layer.channels);
  if (!layer.depthwise || std::any_of(dims.begin() + 2, dims.end(), [](auto d) { return d != 1; })) return false;
  const std::optional<Codes> b = Behind(layer.node->input(2));
  if (layer.w.scales.size() != channels) return false;
  if (layer.node->input(2) != nullptr && (!b || b->codes == nullptr || !b->codes->data || b->scales.size() != channels))
    return false;
  std::vector<std::int64_t> weights = layer.w.codes->data->ToInts(), biases(channels, 0);
  std::vector<float> w_scales = layer.w.scales, b_scales(channels, 1.0f);
  if (b) {
    biases = b->codes->data->ToInts();
    b_scales = b->scales;
    if (biases.size() != channels) return false;
  }
  const double least = *std::max_element(w_scales.begin(), w_scales.end()) / most;
  bool changed = false;
  for (std::size_t c = 0; c < channels; ++c) {
    if (!(w_scales[c] > 0) || w_scales[c] >= least || layer.w.zeros[c] != 0 || (b && b->zeros[c] != 0)) continue;
    const double times = least / w_scales[c];
    weights[c] = std::llround(static_cast<double>(weights[c]) / times);
    biases[c] = std::llround(static_cast<double>(biases[c]) / times);
    w_scales[c] = static_cast<float>(w_scales[c] * times);
    b_scales[c] = static_cast<float>(b_scales[c] * times);
    changed = true;
  }
  if (!changed) return false;
  Graph& graph = *model.graph;
  const auto replace = [&](std::size_t input, const Codes& old, const std::vector<std::int64_t>& codes,
                           const std::vector<float>& scales) {
    const std::string base = layer.node->input(input)->name() + "_near";
    Value* scale =
        graph.AddConstant(graph.UniqueName(base + "_scale"), TensorRef::FromFloats({layer.channels}, scales));
    layer.node->SetInput(input, Dequantized(graph, TensorRef::FromInts(old.storage, old.codes->data->dims, codes),
                                            scale, old.dequantize->input(2), 0, base, layer.node));
  };
  replace(1, layer.w, weights, w_scales);
  if (b) replace(2, *b, biases, b_scales);
  return true;
}

// Before: AveragePool(x) {kernel_shape = strides = even numbers, no pads}, which lie over x without a rest
// After:  AveragePool(x) {pads = [0, 0, 0, 1]}: no window reaches the pad
bool PadTiles(Node* node) {
  if (!node->Is("AveragePool")) return false;
  const std::vector<std::int64_t>* kernel = node->IntsAttribute("kernel_shape");
  const std::vector<std::int64_t>* strides = node->IntsAttribute("strides");
  const std::vector<std::int64_t>* pads = node->IntsAttribute("pads");
  const std::vector<std::int64_t>* dilations = node->IntsAttribute("dilations");
  const std::optional<Dims> shape = node->input(0) == nullptr ? std::nullopt : StaticShape(node->input(0)->type);
  if (!shape || shape->size() != 4 || strides == nullptr || kernel == nullptr || *strides != *kernel ||
      kernel->size() != 2 || !AllAre(kernel, [](auto k) { return k > 0 && k % 2 == 0; }) ||
      (*kernel)[0] + (*kernel)[1] <= 4 || (*shape)[2] % (*kernel)[0] != 0 || (*shape)[3] % (*kernel)[1] != 0 ||
      ((*shape)[2] == (*kernel)[0] && (*shape)[3] == (*kernel)[1]) || node->IntAttribute("ceil_mode", 0) != 0 ||
      node->StringAttribute("auto_pad", "NOTSET") == "SAME_UPPER" ||
      node->StringAttribute("auto_pad", "NOTSET") == "SAME_LOWER" ||
      (pads != nullptr && !AllAre(pads, [](auto p) { return p == 0; })) ||
      (dilations != nullptr && !AllAre(dilations, [](auto d) { return d == 1; }))) {
    return false;
  }
  node->SetAttribute("auto_pad", std::string("NOTSET"));
  node->SetAttribute("pads", std::vector<std::int64_t>{0, 0, 0, 1});
  return true;
}

// Before: Conv(x) {one tap, strides}, x: a sum that only it reads, with one dimension of more than one element
// After:  Conv(DequantizeLinear(QuantizeLinear(Slice(x)))) {strides = 1}, in the parameters of x
bool TakeStridesOut(Model& model, const Layer& layer) {
  const Dims& dims = layer.w.codes->data->dims;
  const std::vector<std::int64_t>* strides = layer.node->IntsAttribute("strides");
  const std::vector<std::int64_t>* pads = layer.node->IntsAttribute("pads");
  const std::optional<Dims> shape = StaticShape(layer.node->input(0)->type);
  const std::string padding = layer.node->StringAttribute("auto_pad", "NOTSET");
  if (layer.transposed || strides == nullptr || strides->size() + 2 != dims.size() || !shape ||
      shape->size() != dims.size() || (padding != "NOTSET" && padding != "VALID") ||
      std::any_of(dims.begin() + 2, dims.end(), [](auto d) { return d != 1; }) ||
      std::all_of(strides->begin(), strides->end(), [](auto s) { return s == 1; }) ||
      (pads != nullptr && std::any_of(pads->begin(), pads->end(), [](auto p) { return p != 0; })) ||
      std::count_if(shape->begin() + 2, shape->end(), [](auto d) { return d > 1; }) > 1) {
    return false;
  }
  const Node* quantize = layer.x.dequantize->input(0)->producer();
  if (quantize == nullptr || !quantize->Is("QuantizeLinear") || quantize->input(0) == nullptr) return false;
  const Node* sum = quantize->input(0)->producer();
  if (sum == nullptr || !sum->Is("Add") || SoleUser(sum->output()) != quantize ||
      SoleUser(quantize->output()) != layer.x.dequantize || SoleUser(layer.node->input(0)) != layer.node) {
    return false;
  }
  Graph& graph = *model.graph;
  const std::string base = layer.node->input(0)->name() + "_strided";
  Dims axes, starts, ends = {shape->begin() + 2, shape->end()};
  Type type = layer.node->input(0)->type;
  for (std::size_t i = 0; i < strides->size(); ++i) {
    if ((*strides)[i] < 1) return false;
    axes.push_back(static_cast<std::int64_t>(i) + 2);
    starts.push_back(0);
    (*type.shape)[i + 2] = Dim{(ends[i] + (*strides)[i] - 1) / (*strides)[i], {}};
  }
  Value* sliced = graph
                      .AddNode("Slice", "",
                               {layer.node->input(0), AddInts(graph, base + "_starts", starts),
                                AddInts(graph, base + "_ends", ends), AddInts(graph, base + "_axes", axes),
                                AddInts(graph, base + "_steps", *strides)},
                               {{graph.UniqueName(base), std::move(type)}}, layer.node)
                      ->output();
  layer.node->SetInput(0, Requantized(graph, sliced, layer.x.dequantize->input(1), layer.x.dequantize->input(2),
                                      layer.x.storage, base, layer.node));
  layer.node->SetAttribute("strides", std::vector<std::int64_t>(strides->size(), 1));
  return true;
}

// The codes of the input that is to be widened, where it has 8 bits.
std::optional<Codes> Narrow(const Node& node, const WidenedInput& wide) {
  std::optional<Codes> x = node.Is(wide.op) ? Behind(node.input(wide.input)) : std::nullopt;
  if (x && (x->codes != nullptr || x->storage != DType::kU8 || x->scales.size() != 1)) x.reset();
  return x;
}

// Before: QuantizeLinear(op(x)), x: DequantizeLinear of computed u8
// After:  QuantizeLinear(w(op(w(x)))), w: InWide; what comes out goes through 16 bits where it becomes u8, because the
//         device takes no u16 in beside u8 out
bool Widen(Model& model, Node* node, const WidenedInput& wide) {
  const std::size_t input = wide.input;
  const std::optional<Codes> x = Narrow(*node, wide);
  if (!x) return false;
  Graph& graph = *model.graph;
  node->SetInput(input, InWide(graph, node->input(input), x->scales[0], x->zeros[0], node));
  const std::vector<Use> uses(node->output()->uses().begin(), node->output()->uses().end());
  for (const Use& use : uses) {
    const Value *scale = use.node->input(1), *zero = use.node->input(2);
    if (!use.node->Is("QuantizeLinear") || use.index != 0 || scale == nullptr || !scale->data || zero == nullptr)
      continue;
    if (!zero->data || zero->data->dtype != DType::kU8 || scale->data->elements() != 1) continue;
    use.node->SetInput(0, InWide(graph, node->output(), scale->data->ToFloats()[0], zero->data->ToInts()[0], use.node));
  }
  return true;
}

// The operator set from which on Q/DQ are to 16 bits too.
constexpr std::int64_t kSixteenBits = 21;

// Whether an input is to be widened that has 8 bits.
bool WantsWide(const Model& model, const DeviceArithmetic& arithmetic) {
  for (const Node* node : model.graph->nodes()) {
    for (const WidenedInput& wide : arithmetic.widened) {
      if (Narrow(*node, wide)) return true;
    }
  }
  return false;
}

// Raises the operator set to that; a model that cannot be raised stays as it is, with what it loses.
void HaveSixteenBits(Model& model) {
  if (model.OpsetVersion() >= kSixteenBits) return;
  Model raised = Clone(model);
  try {
    RaiseOpset(raised, kSixteenBits, "codes of 16 bits");
    model = std::move(raised);
  } catch (const Error& error) {
    LogDebug(std::string("inputs of 8 bits are not widened: ") + error.what());
  }
}

// Before: Cast(b), b: bool
// After:  Where(b, 1, 0), of codes where the Cast's result is quantized
bool Select(Model& model, Node* node) {
  const Value* from = node->input(0);
  Value* to = node->output();
  if (!node->Is("Cast") || from == nullptr || to == nullptr || from->type.dtype != DType::kBool) return false;
  const auto dtype = static_cast<DType>(node->IntAttribute("to", 0));
  if (dtype != DType::kF32 && dtype != DType::kF16) return false;
  const Node* quantize = nullptr;
  for (const Use& use : to->uses()) {
    if (use.index == 0 && use.node->Is("QuantizeLinear")) quantize = use.node;
  }
  Value* scale = quantize == nullptr ? nullptr : quantize->input(1);
  Value* zero = quantize == nullptr ? nullptr : quantize->input(2);
  if (scale != nullptr && (zero == nullptr || !scale->data || !zero->data || scale->data->elements() != 1))
    return false;
  Graph& graph = *model.graph;
  std::vector<Value*> inputs = {node->input(0)};
  for (const float number : {1.0f, 0.0f}) {
    const std::string base = to->name() + (number == 0 ? "_zero" : "_one");
    if (scale == nullptr) {
      inputs.push_back(AddFloatConstant(graph, base, dtype, {}, std::span(&number, 1)));
      continue;
    }
    const auto steps = static_cast<std::int64_t>(std::nearbyint(number / scale->data->ToFloats()[0]));
    const DType storage = zero->data->dtype;
    const std::int64_t code = std::clamp(zero->data->ToInts()[0] + steps, IntegerMin(storage), IntegerMax(storage));
    Value* codes = graph.AddConstant(graph.UniqueName(base), TensorRef::FromInts(storage, {}, {&code, 1}));
    inputs.push_back(graph
                         .AddNode("DequantizeLinear", "", {codes, scale, zero},
                                  {{graph.UniqueName(base + "_dq"), TypeOf(dtype)}}, node)
                         ->output());
  }
  Value* selected =
      graph.AddNode("Where", "", inputs, {{graph.UniqueName(to->name() + "_selected"), to->type}}, node)->output();
  graph.ReplaceAllUses(to, selected);
  graph.SwapNames(to, selected);
  graph.Erase(node);
  return true;
}

// A Clip before a float operator's first input.
void InsertClip(Model& model, Node* node, float low, float high) {
  Value* x = node->input(0);
  Graph& graph = *model.graph;
  const std::string base = x->name() + "_within";
  Value* least = AddFloatConstant(graph, base + "_low", x->type.dtype, {}, std::span(&low, 1));
  Value* most = AddFloatConstant(graph, base + "_high", x->type.dtype, {}, std::span(&high, 1));
  node->SetInput(0, graph.AddNode("Clip", "", {x, least, most}, {{graph.UniqueName(base), x->type}}, node)->output());
}

// Before: QuantizeLinear(Tanh(x)), from u16 to u16
// After:  QuantizeLinear(Clip(Tanh(x), -1, 1)), whose Tanh is float then
bool KeepTanhFloat(Model& model, const Node* node) {
  if (!node->Is("Tanh")) return false;
  const std::optional<Codes> x = Behind(node->input(0));
  if (!x || x->storage != DType::kU16) return false;
  std::vector<Node*> quantizes;
  for (const Use& use : node->output()->uses()) {
    const Value* zero = use.node->input(2);
    if (use.index != 0 || !use.node->Is("QuantizeLinear") || zero == nullptr || !zero->data) continue;
    if (zero->data->dtype == DType::kU16) quantizes.push_back(use.node);
  }
  for (Node* quantize : quantizes) InsertClip(model, quantize, -1.0f, 1.0f);
  return !quantizes.empty();
}

// Before: Mul(x, s), s: DequantizeLinear(QuantizeLinear(Sigmoid(x))), all in u16
// After:  Mul(x, DequantizeLinear(QuantizeLinear(s))), in steps a little longer than those of s: the compiler does not
//         take the two for one operator then
bool KeepSiluApart(Model& model, Node* node) {
  constexpr float kLonger = 1.0F + 1.0F / 512;
  if (!node->Is("Mul")) return false;
  for (const std::size_t i : {0, 1}) {
    const std::optional<Codes> s = Behind(node->input(i)), x = Behind(node->input(1 - i));
    if (!s || !x || s->storage != DType::kU16 || x->storage != DType::kU16 || s->scales.size() != 1) continue;
    const Node* quantize = s->dequantize->input(0)->producer();
    const Value* from = quantize == nullptr || !quantize->Is("QuantizeLinear") ? nullptr : quantize->input(0);
    const Node* sigmoid = from == nullptr ? nullptr : from->producer();
    if (sigmoid == nullptr || !sigmoid->Is("Sigmoid") || sigmoid->input(0) == nullptr) continue;
    const std::optional<Codes> read = Behind(sigmoid->input(0));
    if (!read || read->dequantize->input(0) != x->dequantize->input(0)) continue;
    Graph& graph = *model.graph;
    const std::string base = node->input(i)->name() + "_apart";
    Value* scale = graph.AddConstant(graph.UniqueName(base + "_scale"), TensorRef::Scalar(s->scales[0] * kLonger));
    node->SetInput(i, Requantized(graph, node->input(i), scale, s->dequantize->input(2), DType::kU16, base, node));
    return true;
  }
  return false;
}

// Before: Tanh(Add(a, b)), in float
// After:  Tanh(Clip(Add(a, b), -bound, bound))
bool Bound(Model& model, Node* node, float bound) {
  const Value* x = node->input(0);
  const Node* maker = x == nullptr ? nullptr : x->producer();
  if (maker == nullptr || (x->type.dtype != DType::kF32 && x->type.dtype != DType::kF16)) return false;
  if (!maker->Is("Add") && !maker->Is("MatMul") && !maker->Is("Gemm") && !maker->Is("Conv")) return false;
  InsertClip(model, node, -bound, bound);
  return true;
}

// Before: LRN(DequantizeLinear(codes))
// After:  LRN(Clip(DequantizeLinear(codes), -bound, bound))
bool KeepFromCodes(Model& model, Node* node, const BoundedInput& apart) {
  const Value* x = node->input(0);
  if (x == nullptr || x->producer() == nullptr || !x->producer()->Is("DequantizeLinear")) return false;
  if (apart.bits != 0 && BitWidth(x->producer()->input(0)->type.dtype) != apart.bits) return false;
  if (x->type.dtype != DType::kF32 && x->type.dtype != DType::kF16) return false;
  InsertClip(model, node, -apart.bound, apart.bound);
  return true;
}

// Before: Mul(Add(x, c), s), in float, c constant, s one number
// After:  Mul(Add(c, x), s)
bool PutConstantFirst(const Node* node) {
  if (!node->Is("Mul") || node->inputs().size() != 2) return false;
  for (std::size_t i = 0; i < 2; ++i) {
    const Value* s = node->input(1 - i);
    Node* add = node->input(i) == nullptr ? nullptr : node->input(i)->producer();
    if (s == nullptr || !s->is_constant() || !s->data || s->data->elements() != 1 || add == nullptr) continue;
    Value *x = add->input(0), *c = add->input(1);
    if (!add->Is("Add") || x->is_constant() || !c->is_constant() || !c->data || c->data->elements() < 2) continue;
    add->SetInput(0, c);
    add->SetInput(1, x);
    return true;
  }
  return false;
}

// Before: QuantizeLinear(Concat(a, b)), in float, to 8 bits
// After:  QuantizeLinear(Clip(Concat(a, b))), to what the codes hold
// The values of a TopK are float for the device, of codes too.
bool HoldMoved(Model& model, Node* node, const DeviceDescriptor& device) {
  Value* x = node->input(0);
  const Node* mover = x == nullptr ? nullptr : x->producer();
  const Value *scale = node->input(1), *zero = node->input(2);
  if (!node->Is("QuantizeLinear") || mover == nullptr || scale == nullptr || !scale->data || zero == nullptr)
    return false;
  if (!zero->data || BitWidth(zero->data->dtype) != 8 || scale->data->elements() != 1) return false;
  if (x->type.dtype != DType::kF32 && x->type.dtype != DType::kF16) return false;
  if (!mover->Is("Concat") && device.Support(mover->op(), mover->domain()) != QuantSupport::kPassThrough) return false;
  for (const Value* from : mover->inputs()) {
    if (from == nullptr || from->is_constant()) continue;
    if (mover->Is("TopK")) break;
    if (from->producer() == nullptr || from->producer()->Is("DequantizeLinear")) return false;
  }
  const DType storage = zero->data->dtype;
  const std::int64_t middle = zero->data->ToInts()[0];
  const float step = scale->data->ToFloats()[0];
  InsertClip(model, node, static_cast<float>(IntegerMin(storage) - middle) * step,
             static_cast<float>(IntegerMax(storage) - middle) * step);
  return true;
}

}  // namespace

DeviceForm ToDeviceForm(Model& model, const DeviceDescriptor& device) {
  const DeviceArithmetic& arithmetic = ArithmeticOf(device);
  DeviceForm form;
  const bool joins = arithmetic.concat_copies_volumes && JoinsVolumes(model);
  if (joins || WantsWide(model, arithmetic)) HaveSixteenBits(model);
  const bool has_16_bits = model.OpsetVersion() >= kSixteenBits;
  const bool clips_to_inputs = model.OpsetVersion() >= 11;  // bounds of a Clip are inputs
  if (!arithmetic.lacked.empty()) {
    form.spelled = SpellFloat(model, [&](const Node& node) { return Lacks(arithmetic, node); });
  }
  if (arithmetic.unrolled_steps > 0) form.unrolled = UnrollRecurrent(model, arithmetic.unrolled_steps);
  if (arithmetic.centered_rows > 0) form.centered = CenterAttention(model, arithmetic.centered_rows);
  form.refit = FitSoftmaxSteps(model, device, arithmetic.softmax16);
  if (arithmetic.hardswish_range > 0) form.unfused = SplitHardSwish(model, arithmetic.hardswish_range);
  if (arithmetic.gathers_planes_wrongly) form.gathers = GatherPlanes(model);
  if (arithmetic.gathers_rows_wrongly) form.gathers += GatherColumns(model);
  for (Node* node : model.graph->nodes()) {
    const std::optional<Layer> layer = arithmetic.depthwise16_ratio > 0 ? LayerOf(node) : std::nullopt;
    if (layer && NearScales(model, *layer, arithmetic.depthwise16_ratio)) ++form.rescaled;
  }
  if (arithmetic.pads_right_wrongly) form.padded = PadCodes(model);
  form.split = SplitDepthwise(model, arithmetic.depthwise16_channels);
  if (arithmetic.overflows_constants16) form.recoded = RecodeConstants(model);
  if (arithmetic.converts_concats_once) form.concats = RecodeConcats(model);
  if (joins && has_16_bits) form.joined = ConvertBeforeConcat(model);
  if (arithmetic.converts_coarse16_wrongly) form.bridged = BridgeWidths(model);
  for (Node* node : model.graph->nodes()) {
    if (arithmetic.averages_tiles_wrongly && PadTiles(node)) ++form.pads;
    if (arithmetic.multiplies_tanh16_wrongly && clips_to_inputs && KeepTanhFloat(model, node)) ++form.bounded;
    if (arithmetic.fuses_silu16_wrongly && KeepSiluApart(model, node)) ++form.unfused;
    for (const WidenedInput& wide : arithmetic.widened) {
      if (has_16_bits && Widen(model, node, wide)) ++form.widened;
    }
    for (const BoundedInput& bounded : arithmetic.coarse_after_sums) {
      if (clips_to_inputs && node->Is(bounded.op) && Bound(model, node, bounded.bound)) ++form.bounded;
    }
    for (const BoundedInput& apart : arithmetic.taken_for_codes) {
      if (clips_to_inputs && node->Is(apart.op) && KeepFromCodes(model, node, apart)) ++form.bounded;
    }
    if (arithmetic.scales_sums_wrongly && PutConstantFirst(node)) ++form.ordered;
    if (clips_to_inputs && arithmetic.floors_moved_floats && HoldMoved(model, node, device)) ++form.bounded;
    if (arithmetic.casts_bool_wrongly && Select(model, node)) {
      ++form.selected;
      continue;
    }
    if (arithmetic.conv16_lost_bits == 0) continue;
    std::optional<Layer> layer = LayerOf(node);
    if (!layer) continue;
    if (arithmetic.conv16_strides_twice && TakeStridesOut(model, *layer)) ++form.strides;
    if (arithmetic.conv16_pads_5x5_wrongly && GrowKernel(model, *layer)) ++form.kernels;
    // As it was before: a kernel that grew keeps its bits too.
    if (!KeepsBits(*layer) && MoveBias(model, *layer, std::int64_t{1} << arithmetic.conv16_lost_bits)) ++form.biases;
  }
  if (form.changed())
    model.graph->EraseDead();  // a bias that nothing reads would stand alone, and the compiler refuses
  return form;
}

}  // namespace octavo
