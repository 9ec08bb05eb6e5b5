#include "octavo/quantize/half_rounding.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "octavo/base/interrupt.h"
#include "octavo/base/thread_pool.h"
#include "octavo/numerics/half.h"
#include "octavo/quantize/channel_axes.h"

namespace octavo {
namespace {

constexpr std::uint16_t kSign = 0x8000, kLargest = 0x7BFF;

// The neighbour on the other side of w, or h itself where w is exact or there is none.
std::uint16_t OtherNeighbour(std::uint16_t h, float w) {
  const float value = HalfToFloat(h);
  if (!std::isfinite(value) || value == w || !std::isfinite(w)) return h;
  const bool up = w > value;
  const auto size = static_cast<std::uint16_t>(h & ~kSign);
  if (size == 0) return up ? 0x0001 : static_cast<std::uint16_t>(kSign | 1);
  const bool away = up == ((h & kSign) == 0);
  if (away && size == kLargest) return h;
  return static_cast<std::uint16_t>(away ? h + 1 : h - 1);
}

struct LayerInput {
  const Value* weight = nullptr;
  const Value* x = nullptr;
  int axis = 0;  // of x: its channels
};

// The weight and the input of a layer that can be rounded; nullopt for another node.
std::optional<LayerInput> InputOf(const Node& node) {
  if (!node.domain().empty() || node.inputs().size() < 2) return std::nullopt;
  int axis = 1;
  if (node.op() == "MatMul") {
    axis = -1;
  } else if (node.op() == "Gemm") {
    if (node.IntAttribute("transA", 0) != 0) return std::nullopt;
  } else if (node.op() != "Conv") {
    return std::nullopt;
  }
  const Value* x = node.input(0);
  const Value* weight = node.input(1);
  if (x == nullptr || weight == nullptr || x->is_constant() || x->type.dtype != DType::kF32) return std::nullopt;
  if (!weight->is_constant() || !weight->data || weight->data->dtype != DType::kF32) return std::nullopt;
  if (weight->uses().size() != 1 || weight->is_graph_output()) return std::nullopt;
  const std::size_t rank = weight->data->dims.size();
  if (node.op() == "Conv" ? rank < 3 : rank != 2) return std::nullopt;
  return LayerInput{weight, x, axis};
}

}  // namespace

RoundingGain RoundTowardsMean(std::span<const float> w, std::span<const double> mean, std::span<const double> variance,
                              double shift, std::span<std::uint16_t> halves) {
  struct Move {
    std::size_t k;
    double gain, cost;  // what it adds to S and to N
  };
  RoundingGain result;
  double s = shift, n = 0;
  std::vector<Move> moves;
  for (std::size_t k = 0; k < w.size(); ++k) {
    const double now = static_cast<double>(HalfToFloat(halves[k])) - w[k];
    if (!std::isfinite(now)) continue;
    s += now * mean[k];
    n += now * now * variance[k];
    const std::uint16_t other = OtherNeighbour(halves[k], w[k]);
    if (other == halves[k] || mean[k] == 0) continue;
    const double then = static_cast<double>(HalfToFloat(other)) - w[k];
    moves.push_back({k, (then - now) * mean[k], (then * then - now * now) * variance[k]});
  }
  result.before = s * s + n;
  std::erase_if(moves, [&](const Move& m) { return !(m.gain * s < 0); });
  // The cheapest for what they give; a few times the square root of all suffice, as S is a sum of random signs.
  const auto cheaper = [](const Move& a, const Move& b) {
    const double left = a.cost * std::abs(b.gain), right = b.cost * std::abs(a.gain);
    return left != right ? left < right : a.k < b.k;
  };
  const auto most = static_cast<std::size_t>(8 * std::sqrt(static_cast<double>(w.size()))) + 32;
  if (moves.size() > most) {
    std::nth_element(moves.begin(), moves.begin() + static_cast<std::ptrdiff_t>(most), moves.end(), cheaper);
    moves.resize(most);
  }
  std::sort(moves.begin(), moves.end(), cheaper);
  for (const Move& m : moves) {
    const double next = s + m.gain;
    if (next * next + m.cost >= s * s) continue;
    s = next;
    n += m.cost;
    halves[m.k] = OtherNeighbour(halves[m.k], w[m.k]);
  }
  result.after = s * s + n;
  return result;
}

std::vector<ObserveSpec> HalfRounder::Specs(const Model& prepared) {
  ChannelAxes axes;
  for (const Node* node = prepared.graph->first(); node != nullptr; node = node->next()) {
    const std::optional<LayerInput> input = InputOf(*node);
    if (!input) continue;
    const int rank = input->x->type.shape ? static_cast<int>(input->x->type.shape->size()) : 0;
    axes.Add(input->x->name(), input->axis < 0 && rank > 0 ? rank - 1 : input->axis);
  }
  return axes.Specs();
}

HalfRounder::HalfRounder(const Model& prepared, const Statistics& statistics, int threads) : threads_(threads) {
  for (const Node* node = prepared.graph->first(); node != nullptr; node = node->next()) {
    const std::optional<LayerInput> input = InputOf(*node);
    if (!input) continue;
    const TensorStatistics* seen = statistics.Find(input->x->name());
    if (seen == nullptr || !seen->channels || !seen->channels->finite || seen->range.elements == 0) continue;
    const Dims& dims = input->weight->data->dims;
    Layer layer;
    if (node->op() == "Conv") {
      layer.groups = std::max<std::int64_t>(1, node->IntAttribute("group", 1));
      layer.outputs = dims[0];
      layer.inputs = dims[1];
      for (std::size_t i = 2; i < dims.size(); ++i) layer.kernel *= dims[i];
    } else {
      layer.outputs_last = node->op() == "MatMul" || node->IntAttribute("transB", 0) == 0;
      layer.outputs = dims[layer.outputs_last ? 1 : 0];
      layer.inputs = dims[layer.outputs_last ? 0 : 1];
    }
    if (layer.outputs % layer.groups != 0) continue;
    const std::size_t channels = seen->channels->sums.size();
    if (static_cast<std::int64_t>(channels) != layer.inputs * layer.groups) continue;
    for (std::size_t c = 0; c < channels; ++c) {
      const double mean = seen->ChannelMean(c);
      layer.mean.push_back(mean);
      layer.variance.push_back(std::max(seen->ChannelMeanSquare(c) - mean * mean, 0.0));
    }
    const Value* bias = node->inputs().size() > 2 ? node->input(2) : nullptr;
    if (bias != nullptr && bias->is_constant() && bias->data && bias->data->dtype == DType::kF32) {
      const std::vector<float> values = bias->data->ToFloats();
      const double scale = node->op() == "Gemm" ? static_cast<double>(node->FloatAttribute("beta", 1)) /
                                                      static_cast<double>(node->FloatAttribute("alpha", 1))
                                                : 1;
      if (static_cast<std::int64_t>(values.size()) == layer.outputs && std::isfinite(scale)) {
        for (const float b : values) {
          const double error = (static_cast<double>(HalfToFloat(FloatToHalf(b))) - b) * scale;
          layer.bias.push_back(std::isfinite(error) ? error : 0);
        }
      }
    }
    layers_.emplace(input->weight->name(), std::move(layer));
  }
}

void HalfRounder::Round(const Value& weight, std::span<const float> values, std::span<std::uint16_t> halves,
                        bool float_bias) const {
  const auto at = layers_.find(weight.name());
  if (at == layers_.end()) return;
  const Layer& layer = at->second;
  const auto count = static_cast<std::size_t>(layer.inputs * layer.kernel);
  if (static_cast<std::size_t>(layer.outputs) * count != values.size() || values.size() != halves.size()) return;
  ParallelFor(static_cast<std::size_t>(layer.outputs), threads_, [&](std::size_t o) {
    CheckInterrupt();
    const auto group = static_cast<std::int64_t>(o) / (layer.outputs / layer.groups);
    std::vector<float> w(count);
    std::vector<std::uint16_t> h(count);
    std::vector<double> mean(count), variance(count);
    const std::size_t stride = layer.outputs_last ? static_cast<std::size_t>(layer.outputs) : 1;
    const std::size_t first = layer.outputs_last ? o : o * count;
    for (std::size_t k = 0; k < count; ++k) {
      w[k] = values[first + k * stride];
      h[k] = halves[first + k * stride];
      const auto channel = static_cast<std::size_t>(group * layer.inputs + static_cast<std::int64_t>(k) / layer.kernel);
      mean[k] = layer.mean[channel];
      variance[k] = layer.variance[channel];
    }
    RoundTowardsMean(w, mean, variance, float_bias || layer.bias.empty() ? 0 : layer.bias[o], h);
    for (std::size_t k = 0; k < count; ++k) halves[first + k * stride] = h[k];
  });
}

}  // namespace octavo
