#include "octavo/quantize/whole_graph_search.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/thread_pool.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/probe.h"
#include "octavo/quantize/whole_graph_widths.h"

namespace octavo {
namespace {

// Errors of weights are the same at every position: they do not average out as the rounding of activations does, by
// which sensitivity is measured.
constexpr double kCoherent = 4;
// Weights get a scale a channel, where that is to be had, until they make at most this share of the target.
constexpr double kWeightShare = 0.25;
constexpr int kMostChecks = 4;
constexpr double kFewestRuns = 32, kProbeSeconds = 4;

DType Narrow(DType type) { return IsSignedInteger(type) ? DType::kS8 : DType::kU8; }

class WidthSearch {
 public:
  WidthSearch(const WholeGraphPlan& plan, WholeGraphTypes& types, const WidthSearchInputs& inputs,
              QuantizeResult& result)
      : plan_(plan), types_(types), in_(inputs), result_(result) {}

  // Predicted noise at the outputs against a target: what misses it goes to 16 bits, by what it costs.
  void Run() {
    const WidthOptions options;
    std::vector<WidthNode> nodes;
    std::vector<WidthSite> sites;
    std::vector<const Node*> node_of;
    std::vector<ProbeSite> probes;
    std::vector<std::size_t> tensor_of_site;
    std::vector<int> site_of(plan_.tensors.size(), -1);
    std::vector<double> step_noise(plan_.tensors.size());  // of 8 bits, per element
    for (std::size_t t = 0; t < plan_.tensors.size(); ++t) {
      const Value* observed = plan_.tensors[t].observed;
      if (observed == nullptr) continue;
      const PlannedTensor narrow = types_.ParamsOf(t, Narrow(in_.precision.activation));
      step_noise[t] = static_cast<double>(narrow.params.scale) * narrow.params.scale / 12;
      const auto spec = in_.spec_of.find(observed->name());
      if (spec == in_.spec_of.end()) ThrowInternal("a tensor was not calibrated", observed->name());
      const double power = PowerOf(*observed);
      site_of[t] = static_cast<int>(sites.size());
      tensor_of_site.push_back(t);
      probes.push_back({spec->second, {narrow.params, narrow.storage}, power > 0 ? step_noise[t] / power : 0});
      sites.push_back({probes.back().prior, {}});
    }
    std::vector<Weighed> weights;
    double macs = 0;
    for (const Node* node : plan_.taken) {
      if (plan_.Moves(*node) || plan_.absorbed.count(node) > 0) continue;
      const std::size_t n = nodes.size();
      node_of.push_back(node);
      WidthNode& entry = nodes.emplace_back();
      entry.fixed = in_.fixed.count(node) > 0;
      entry.wide = BitWidth(types_.type_of_node.at(node)) == 16;
      const auto add = [&](const Value* v) {
        const auto it = plan_.tensor_of.find(v);
        if (it == plan_.tensor_of.end() || site_of[it->second] < 0) return;
        sites[static_cast<std::size_t>(site_of[it->second])].nodes.push_back(n);
      };
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (RoleOf(*node, i) == Role::kData) add(node->input(i));
      }
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        if (CarriesData(*node, i)) add(node->output(i));
      }
      const std::size_t y = plan_.tensor_of.at(node->output());
      const double out = Elements(*plan_.tensors[y].observed), in = Elements(*node->input(0));
      const auto products = static_cast<double>(
          MultiplyAccumulates(*node, static_cast<std::uint64_t>(in), static_cast<std::uint64_t>(out)));
      macs += products;
      entry.cost = std::max(products, out);
      const int w = FindOp(*node).weight_input;
      if (w < 0 || NormalizesWithScale(*node) || RoleOf(*node, static_cast<std::size_t>(w)) != Role::kWeight) continue;
      weights.push_back({n, node, node->input(static_cast<std::size_t>(w)), y});
    }
    ParallelFor(weights.size(), in_.threads, [&](std::size_t i) {
      CheckInterrupt();
      Weigh(weights[i]);
    });

    // A run costs what its products take on a nominal core. Beside the device's compiler seconds are cheap.
    const double run_seconds = macs / 3e10 + static_cast<double>(plan_.nodes_total) * 5e-6;
    ProbeOptions probe_options;
    probe_options.max_runs = static_cast<int>(std::clamp(kProbeSeconds / run_seconds, kFewestRuns, 4000.0));
    probe_options.allowance = options.target / 16;
    probe_options.threads = in_.threads;
    Probe probe(in_.calibration, probes, in_.statistics.kept, probe_options);
    const ProbeResult measured = probe.Run();
    if (measured.groups > 0) {
      for (std::size_t s = 0; s < sites.size(); ++s) sites[s].noise = measured.noise[s];
    } else {
      LogWarning(
          "no calibration sample is small enough to be kept (16 MiB): what gets 16 bits was chosen from each tensor's "
          "own rounding noise, not from what it does to the outputs");
    }
    char text[200];
    std::snprintf(text, sizeof text, "widths: %zu tensors in %d groups, %d runs, %.2f dB with all of them in 8 bits",
                  sites.size(), measured.groups, measured.runs, -10 * std::log10(std::max(measured.all, 1e-30)));
    LogDebug(text);
    // Within a group the noise was shared out by guess: what a choice leaves is measured, and the guesses follow.
    Widths widths;
    for (int check = 0;; ++check) {
      types_.by_channel.clear();
      SetWeightNoise(weights, sites, site_of, step_noise, options.target, nodes);
      widths = octavo::ChooseWidths(nodes, sites, options);
      if (measured.groups == 0 || check == kMostChecks) break;
      std::vector<bool> left(sites.size());
      double predicted = 0, all = 0;
      for (std::size_t s = 0; s < sites.size(); ++s) {
        left[s] =
            std::any_of(sites[s].nodes.begin(), sites[s].nodes.end(), [&](std::size_t n) { return !widths.node[n]; });
        all += sites[s].noise;
        if (left[s]) predicted += sites[s].noise;
      }
      if (predicted <= 0) break;
      const double found = probe.Noise(left);
      std::snprintf(text, sizeof text, "widths: %.2f dB left of tensors in 8 bits, %.2f dB predicted",
                    -10 * std::log10(std::max(found, 1e-30)), -10 * std::log10(predicted));
      LogDebug(text);
      const std::optional<NoiseCorrection> correction = CorrectionOf(found, predicted, all, options.target);
      if (!correction) break;
      for (std::size_t s = 0; s < sites.size(); ++s) sites[s].noise *= left[s] ? correction->left : correction->others;
    }
    std::snprintf(text, sizeof text, "widths: predicted %.2f dB (%.2f dB in 8 bits), %.1f %% of the work in 16 bits",
                  -10 * std::log10(std::max(widths.noise_left, 1e-30)),
                  -10 * std::log10(std::max(widths.noise_all, 1e-30)), 100 * widths.cost_share);
    LogDebug(text);
    if (widths.noise_left > 0) result_.predicted_sqnr_db = -10 * std::log10(widths.noise_left);
    TakeOver(widths, nodes, node_of, tensor_of_site);
  }

 private:
  // An operator with a constant weight, while widths are looked for.
  struct Weighed {
    std::size_t index = 0;  // among the nodes that ChooseWidths sees
    const Node* node = nullptr;
    const Value* weight = nullptr;
    std::size_t tensor = 0;  // that it writes
    double noise = 0;        // at its output, of its weight as the precision says
    double by_channel = -1;  // the same of s8 with a scale a channel; negative: not to be had
  };

  // Mean square of a tensor; where that was not gathered, of a bell that reaches the range's ends at three sigma.
  double PowerOf(const Value& value) const {
    const TensorStatistics& stats = types_.StatsOf(value);
    if (stats.channels && stats.channels->finite && !stats.channels->squares.empty()) {
      double square = 0;
      for (std::size_t c = 0; c < stats.channels->squares.size(); ++c) square += stats.ChannelMeanSquare(c);
      return square / static_cast<double>(stats.channels->squares.size());
    }
    const double span = static_cast<double>(stats.range.max) - stats.range.min;
    return span * span / 36;
  }

  // Of one sample, as the calibration saw them.
  double Elements(const Value& value) const {
    const TensorStatistics* t = in_.statistics.Find(value.name());
    if (t == nullptr && plan_.tensor_of.count(&value) > 0) {
      const Value* observed = plan_.tensors[plan_.tensor_of.at(&value)].observed;
      if (observed != nullptr) t = in_.statistics.Find(observed->name());
    }
    if (t == nullptr) return 0;
    return static_cast<double>(t->range.elements) /
           std::max<double>(1, static_cast<double>(in_.statistics.samples.size()));
  }

  void Weigh(Weighed& w) const {
    if (BitWidth(in_.precision.weight) != 8 || OverrideOf(in_.config, w.weight->name()) != DType::kUndefined) return;
    const Node& node = *w.node;
    const OpSupport& row = *in_.device.Row(node.op(), node.domain());
    const std::size_t rank = w.weight->data->dims.size();
    const std::int64_t axis = ResolveAxis(FindOp(node).channel_axis, node, rank).value_or(0);
    WeightOptions options = types_.OptionsOf(node, row);
    w.noise = NoiseOf(node, *w.weight->data, QuantizeWeight(*w.weight->data, axis, options));
    if (!row.per_channel || options.per_channel || in_.config.per_channel || row.unsigned_weight) return;
    options = {.storage = DType::kS8, .per_channel = true, .symmetric = true};
    w.by_channel = NoiseOf(node, *w.weight->data, QuantizeWeight(*w.weight->data, axis, options));
  }

  // Power of what the rounding of a weight leaves at one element of the output.
  double NoiseOf(const Node& node, const TensorRef& weight, const QuantizedWeight& codes) const {
    ChannelMoments moments = types_.MomentsOf(node);
    if (moments.mean.empty()) {
      const auto it = plan_.tensor_of.find(node.input(0));
      if (it == plan_.tensor_of.end() || plan_.tensors[it->second].observed == nullptr) return 0;
      moments.mean = {0};
      moments.mean_square = {PowerOf(*plan_.tensors[it->second].observed)};
    }
    if (AnalyzesWeight(node, weight)) {
      return AnalyzeWeight(node, weight, codes, moments, FindOp(node).bias_input >= 0 && moments.mean.size() > 1).noise;
    }
    // Mean error of a weight, times the products of one output element.
    std::vector<float> storage;
    const std::span<const float> values = FloatView(weight, storage);
    double square = 0;
    for (const double m : moments.mean_square) square += m / static_cast<double>(moments.mean_square.size());
    double step = 0;
    for (const AffineParams& p : codes.params) {
      step += static_cast<double>(p.scale) * p.scale / static_cast<double>(codes.params.size());
    }
    const double outputs = node.Is("ConvTranspose") ? static_cast<double>(weight.dims[1])
                                                    : static_cast<double>(weight.dims[weight.dims.size() - 1]);
    return step / 12 * square * static_cast<double>(values.size()) / std::max(outputs, 1.0);
  }

  // What the rounding of weights does at the outputs: by the rounding of the tensor that each operator writes. Scales a
  // channel cost the device nothing: where the weights' noise counts they are taken first.
  void SetWeightNoise(std::span<const Weighed> weights, std::span<const WidthSite> sites, std::span<const int> site_of,
                      std::span<const double> step_noise, double target, std::vector<WidthNode>& nodes) {
    std::vector<double> sensitivity(weights.size());
    std::vector<std::size_t> order;
    double total = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Weighed& w = weights[i];
      const int site = site_of[w.tensor];
      if (site < 0 || step_noise[w.tensor] <= 0) continue;
      sensitivity[i] = kCoherent * sites[static_cast<std::size_t>(site)].noise / step_noise[w.tensor];
      nodes[w.index].weight_noise = w.noise * sensitivity[i];
      nodes[w.index].weight_widens = w.node->Is("MatMul") || w.node->Is("Gemm");
      total += nodes[w.index].weight_noise;
      if (w.by_channel >= 0 && w.by_channel < w.noise) order.push_back(i);
    }
    const auto gain = [&](std::size_t i) { return (weights[i].noise - weights[i].by_channel) * sensitivity[i]; };
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return gain(a) > gain(b); });
    for (const std::size_t i : order) {
      if (total <= kWeightShare * target) break;
      total -= gain(i);
      nodes[weights[i].index].weight_noise = weights[i].by_channel * sensitivity[i];
      types_.by_channel.insert(weights[i].node);
    }
  }

  void TakeOver(const Widths& widths, std::span<const WidthNode> nodes, std::span<const Node* const> node_of,
                std::span<const std::size_t> tensor_of_site) {
    std::size_t wide = 0, wide_weights = 0;
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      if (widths.weight[n]) {
        types_.wide_weights.insert(node_of[n]);
        ++wide_weights;
      }
      if (!widths.node[n] || nodes[n].wide) continue;
      DType& type = types_.type_of_node[node_of[n]];
      type = Wide(type);
      ++wide;
      result_.nodes_16bit.push_back(NodeName(*node_of[n]));
    }
    char text[160];
    for (std::size_t s = 0; s < tensor_of_site.size(); ++s) {
      if (widths.site_gone[s] <= 0) continue;
      std::snprintf(text, sizeof text, "in 8 bits it would make %.2g %% of the predicted noise at the outputs",
                    100 * widths.site_gone[s]);
      result_.tensors_16bit.push_back({plan_.tensors[tensor_of_site[s]].observed->name(), text});
    }
    if (!types_.by_channel.empty()) {
      result_.effective_weights +=
          ", s8 per channel at " + std::to_string(types_.by_channel.size()) + " operators that one scale serves badly";
    }
    if (wide_weights > 0) {
      result_.effective_weights += ", s16 at " + std::to_string(wide_weights) + " matrices";
    }
    if (wide > 0) {
      result_.effective_activations += ", " + std::string(Name(Wide(in_.precision.activation))) + " at " +
                                       std::to_string(wide) + " operators by what 8 bits cost at the outputs";
    }
  }

  const WholeGraphPlan& plan_;
  WholeGraphTypes& types_;
  const WidthSearchInputs& in_;
  QuantizeResult& result_;
};

}  // namespace

void SearchWidths(const WholeGraphPlan& plan, WholeGraphTypes& types, const WidthSearchInputs& inputs,
                  QuantizeResult& result) {
  WidthSearch(plan, types, inputs, result).Run();
}

}  // namespace octavo
