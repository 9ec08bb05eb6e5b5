#include "octavo/quantize/whole_graph.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/thread_pool.h"
#include "octavo/calibrate/ranges.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/dead_zone.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/probe.h"
#include "octavo/quantize/weights.h"
#include "octavo/quantize/whole_graph_plan.h"
#include "octavo/quantize/whole_graph_widths.h"

namespace octavo {
namespace {

// How far below the lowest score a masked position is kept: exp(-12) = 6e-6 of the weight of that lowest one.
constexpr float kMaskDepth = 12.0f;
// A mask of -FLT_MAX is as good as one of this size, and a device's rescaling takes no step of 1e36.
constexpr float kMaskBound = 1000.0f;

// Errors of weights are the same at every position: they do not average out as the rounding of activations does, by
// which sensitivity is measured.
constexpr double kCoherent = 4;
// Weights get a scale a channel, where that is to be had, until they make at most this share of the target.
constexpr double kWeightShare = 0.25;
constexpr int kMostChecks = 4;
constexpr double kFewestRuns = 32, kProbeSeconds = 4;

DType Wide(DType narrow) { return IsSignedInteger(narrow) ? DType::kS16 : DType::kU16; }

class WholeGraph {
 public:
  WholeGraph(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
             const ResolvedPrecision& precision, const Statistics& statistics, std::optional<Calibration>& calibration,
             const std::unordered_map<std::string, std::size_t>& spec_of, int threads, QuantizeResult& result)
      : graph_(*model.graph),
        config_(config),
        device_(device),
        precision_(precision),
        statistics_(statistics),
        calibration_(calibration),
        spec_of_(spec_of),
        threads_(threads),
        result_(result),
        plan_(model, config, precision, device) {}

  void Run() {
    result_.nodes_total = plan_.nodes_total;
    result_.nodes_skipped = plan_.skipped;
    if (plan_.taken.empty()) {
      LogWarning("no node of this model can be quantized for " + std::string(device_.name));
      return;
    }
    DecideWidths();
    QuantizeWeights();
    Apply();
    result_.nodes_quantized = static_cast<std::int64_t>(plan_.taken.size());
  }

 private:
  struct Weights {
    QuantizedWeight weight;
    std::vector<double> bias;
    std::vector<double> bias_scales;
  };

  // --- widths: of nodes, and from those of tensors

  void DecideWidths() {
    for (const Node* node : plan_.taken) {
      DType type = precision_.activation;
      for (const Value* v : node->outputs()) {
        if (v == nullptr) continue;
        const DType wanted = OverrideOf(config_, v->name());
        if (wanted != DType::kUndefined && wanted != DType::kF32) {
          type = wanted;
          fixed_.insert(node);
        }
      }
      type_of_node_[node] = type;
    }
    const bool narrow = BitWidth(precision_.activation) == 8 || BitWidth(precision_.weight) == 8;
    if (config_.keep_float_auto && narrow) ReachTarget();
    calibration_.reset();
    // What only moves is as wide as what it moves; what nobody here made, as its widest user.
    for (const Node* node : plan_.taken) {
      if (plan_.Moves(*node)) continue;
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        const auto it = plan_.tensor_of.find(node->output(i));
        if (it != plan_.tensor_of.end() && plan_.absorbed.count(node) == 0) SetType(it->second, type_of_node_[node]);
      }
    }
    for (const Node* node : plan_.taken) {
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        const Value* v = node->input(i);
        if (RoleOf(*node, i) != Role::kData || v->is_constant() || plan_.Produced(*v)) continue;
        DType& type = Type_(plan_.tensor_of.at(v));
        if (type == DType::kUndefined || BitWidth(type) < BitWidth(type_of_node_[node])) type = type_of_node_[node];
      }
    }
    for (const auto& [node, type] : type_of_node_) {
      if (!plan_.Moves(*node)) continue;
      const auto it = plan_.tensor_of.find(node->output());
      if (it != plan_.tensor_of.end() && plan_.tensors[it->second].constant != nullptr) {
        Type_(it->second) = BitWidth(precision_.weight) == 16 ? Wide(precision_.activation) : DType::kU8;
      }
    }
  }

  // An operator with a constant weight, while widths are looked for.
  struct Weighed {
    std::size_t index = 0;  // among the nodes that ChooseWidths sees
    const Node* node = nullptr;
    const Value* weight = nullptr;
    std::size_t tensor = 0;  // that it writes
    double noise = 0;        // at its output, of its weight as the precision says
    double by_channel = -1;  // the same of s8 with a scale a channel; negative: not to be had
  };

  // Predicted noise at the outputs against a target: what misses it goes to 16 bits, by what it costs.
  void ReachTarget() {
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
      const PlannedTensor narrow = ParamsOf(t, Narrow(precision_.activation));
      step_noise[t] = static_cast<double>(narrow.params.scale) * narrow.params.scale / 12;
      const auto spec = spec_of_.find(observed->name());
      if (spec == spec_of_.end()) ThrowInternal("a tensor was not calibrated", observed->name());
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
      entry.fixed = fixed_.count(node) > 0;
      entry.wide = BitWidth(type_of_node_.at(node)) == 16;
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
    ParallelFor(weights.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      Weigh(weights[i]);
    });

    // A run costs what its products take on a nominal core. Beside the device's compiler seconds are cheap.
    const double run_seconds = macs / 3e10 + static_cast<double>(plan_.nodes_total) * 5e-6;
    ProbeOptions probe_options;
    probe_options.max_runs = static_cast<int>(std::clamp(kProbeSeconds / run_seconds, kFewestRuns, 4000.0));
    probe_options.allowance = options.target / 16;
    probe_options.threads = threads_;
    Probe probe(*calibration_, probes, statistics_.kept, probe_options);
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
      by_channel_.clear();
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
      const bool more = found > std::max(1.25 * predicted, 0.5 * options.target);
      const bool less = found < 0.5 * predicted && predicted > 0.5 * options.target;
      if (!more && !less) break;
      const double others = less && all > predicted ? (all - found) / (all - predicted) : 1;
      for (std::size_t s = 0; s < sites.size(); ++s) sites[s].noise *= left[s] ? found / predicted : others;
    }
    std::snprintf(text, sizeof text, "widths: predicted %.2f dB (%.2f dB in 8 bits), %.1f %% of the work in 16 bits",
                  -10 * std::log10(std::max(widths.noise_left, 1e-30)),
                  -10 * std::log10(std::max(widths.noise_all, 1e-30)), 100 * widths.cost_share);
    LogDebug(text);
    if (widths.noise_left > 0) result_.predicted_sqnr_db = -10 * std::log10(widths.noise_left);
    TakeOver(widths, nodes, node_of, tensor_of_site);
  }

  static DType Narrow(DType type) { return IsSignedInteger(type) ? DType::kS8 : DType::kU8; }

  // Mean square of a tensor; where that was not gathered, of a bell that reaches the range's ends at three sigma.
  double PowerOf(const Value& value) const {
    const TensorStatistics& stats = StatsOf(value);
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
    const TensorStatistics* t = statistics_.Find(value.name());
    if (t == nullptr && plan_.tensor_of.count(&value) > 0) {
      const Value* observed = plan_.tensors[plan_.tensor_of.at(&value)].observed;
      if (observed != nullptr) t = statistics_.Find(observed->name());
    }
    if (t == nullptr) return 0;
    return static_cast<double>(t->range.elements) /
           std::max<double>(1, static_cast<double>(statistics_.samples.size()));
  }

  void Weigh(Weighed& w) const {
    if (BitWidth(precision_.weight) != 8 || OverrideOf(config_, w.weight->name()) != DType::kUndefined) return;
    const Node& node = *w.node;
    const OpSupport& row = *device_.Row(node.op(), node.domain());
    const std::size_t rank = w.weight->data->dims.size();
    const std::int64_t axis = ResolveAxis(FindOp(node).channel_axis, node, rank).value_or(0);
    WeightOptions options = OptionsOf(node, row);
    w.noise = NoiseOf(node, *w.weight->data, QuantizeWeight(*w.weight->data, axis, options));
    if (!row.per_channel || options.per_channel || config_.per_channel || row.unsigned_weight) return;
    options = {.storage = DType::kS8, .per_channel = true, .symmetric = true};
    w.by_channel = NoiseOf(node, *w.weight->data, QuantizeWeight(*w.weight->data, axis, options));
  }

  WeightOptions OptionsOf(const Node& node, const OpSupport& row) const {
    WeightOptions options;
    options.storage = row.unsigned_weight ? DType::kU8 : precision_.weight;
    options.symmetric = !row.unsigned_weight && precision_.weight_symmetric;
    options.per_channel = precision_.per_channel && row.per_channel;
    if (device_.symmetric_weights16 && !row.unsigned_weight && BitWidth(type_of_node_.at(&node)) == 16) {
      options.symmetric = true;
      if (!config_.weight_type && options.storage == DType::kU8) {
        options.storage = DType::kS8;
        options.per_channel = row.per_channel && config_.per_channel.value_or(true);
      }
    }
    if (by_channel_.count(&node) > 0) options = {.storage = DType::kS8, .per_channel = true, .symmetric = true};
    if (wide_weights_.count(&node) > 0) {
      options.storage = DType::kS16;  // 16-bit products are of s16 weights
      options.symmetric = true;
    }
    return options;
  }

  // Power of what the rounding of a weight leaves at one element of the output.
  double NoiseOf(const Node& node, const TensorRef& weight, const QuantizedWeight& codes) const {
    ChannelMoments moments = MomentsOf(node);
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

  // Whether AnalyzeWeight knows how this weight meets its input.
  static bool AnalyzesWeight(const Node& node, const TensorRef& weight) {
    if (node.Is("Conv")) return weight.dims.size() >= 3;
    return (node.Is("Gemm") || node.Is("MatMul")) && weight.dims.size() == 2;
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
      by_channel_.insert(weights[i].node);
    }
  }

  void TakeOver(const Widths& widths, std::span<const WidthNode> nodes, std::span<const Node* const> node_of,
                std::span<const std::size_t> tensor_of_site) {
    std::size_t wide = 0, wide_weights = 0;
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      if (widths.weight[n]) {
        wide_weights_.insert(node_of[n]);
        ++wide_weights;
      }
      if (!widths.node[n] || nodes[n].wide) continue;
      DType& type = type_of_node_[node_of[n]];
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
    if (!by_channel_.empty()) {
      result_.effective_weights +=
          ", s8 per channel at " + std::to_string(by_channel_.size()) + " operators that one scale serves badly";
    }
    if (wide_weights > 0) {
      result_.effective_weights += ", s16 at " + std::to_string(wide_weights) + " matrices";
    }
    if (wide > 0) {
      result_.effective_activations += ", " + std::string(Name(Wide(precision_.activation))) + " at " +
                                       std::to_string(wide) + " operators by what 8 bits cost at the outputs";
    }
  }

  DType& Type_(std::size_t tensor) {
    if (types_.size() < plan_.tensors.size()) types_.resize(plan_.tensors.size(), DType::kUndefined);
    return types_[tensor];
  }
  void SetType(std::size_t tensor, DType type) { Type_(tensor) = type; }

  // --- parameters

  const TensorStatistics& StatsOf(const Value& value) const {
    const TensorStatistics* t = statistics_.Find(value.name());
    if (t == nullptr) ThrowInternal("a tensor was not calibrated", value.name());
    return *t;
  }

  // Parameters of a tensor at a width; the same whoever asks.
  PlannedTensor ParamsOf(std::size_t tensor, DType storage) {
    const auto key = std::make_pair(tensor, storage);
    if (const auto it = params_.find(key); it != params_.end()) return it->second;
    const WholeGraphTensor& t = plan_.tensors[tensor];
    PlannedTensor out;
    out.storage = storage;
    const bool weight = storage == DType::kS16 && !IsSignedInteger(precision_.activation);
    const bool symmetric = precision_.activation_symmetric || weight;
    if (t.constant != nullptr) {
      const auto [low, high] = RangeOfConstant(*t.constant);
      out.params = ChooseParams(low, high, storage, symmetric);
    } else {
      const Node* maker = t.observed->producer();
      const ParamFlow flow = maker == nullptr ? ParamFlow::kOwn : FindOp(*maker).flow;
      ValueRange used;
      if (flow == ParamFlow::kUnitRange) {
        used = {0, 1};
      } else if (flow == ParamFlow::kSymmetricUnitRange) {
        used = {-1, 1};
      } else {
        const QuantRange range =
            ChooseRange(StatsOf(*t.observed), config_.calibration, config_.percentile, storage, symmetric);
        used = {range.min, range.max};
        if (const auto mask = plan_.mask_sums.find(t.observed); mask != plan_.mask_sums.end()) {
          const QuantRange scores =
              ChooseRange(StatsOf(*mask->second), config_.calibration, config_.percentile, storage, symmetric);
          used.min = std::max(used.min, scores.min - kMaskDepth);
          used.max = std::min(used.max, std::max(scores.max, 0.0f));
        } else if (!symmetric && BitWidth(storage) == 8) {
          used = CutDeadZone(*t.observed, used);
        }
      }
      if (plan_.mask_values.count(t.observed) > 0) {
        used.min = std::max(used.min, -kMaskBound);
        used.max = std::min(used.max, kMaskBound);
      }
      out.params = ChooseParams(used.min, used.max, storage, symmetric);
    }
    params_[key] = out;
    return out;
  }

  static std::pair<float, float> RangeOfConstant(const Value& constant) {
    std::vector<float> storage;
    float low = 0, high = 0;
    for (const float f : FloatView(*constant.data, storage)) {
      low = std::min(low, f);
      high = std::max(high, f);
    }
    return {low, high};
  }

  // The type that a node reads its data input in.
  DType InputType(const Node& node) const { return type_of_node_.at(&node); }

  PlannedTensor InputParams(const Node& node, std::size_t index) {
    const Value* v = node.input(index);
    const std::size_t tensor = plan_.tensor_of.at(v);
    if (plan_.Moves(node)) return ParamsOf(tensor, Type_(tensor));
    const DType type = InputType(node);
    // The second operand of a product is its weight, computed or not.
    const bool weight = device_.symmetric_weights16 && type == DType::kU16 && index == 1 && node.Is("MatMul");
    return ParamsOf(tensor, weight ? DType::kS16 : type);
  }

  // --- weights

  struct WeightJob {
    Node* node;
    std::size_t weight_index = 0, bias_index = 0;  // bias_index is read where the operator has one
    bool has_bias = false;                         // the operator can have a bias
    float least_scale = 0;                         // of the weight, as the device's rescaling needs it
    QuantizedWeight weight;
    std::vector<double> bias;
    std::string failure;
  };

  void QuantizeWeights() {
    for (Node* node : plan_.taken) {
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (RoleOf(*node, i) != Role::kWeight) continue;
        WeightJob job;
        job.node = node;
        job.weight_index = i;
        const OpInfo& info = FindOp(*node);
        if (NormalizesWithScale(*node)) {
          job.bias_index = 2;
          job.has_bias = true;
        } else if (info.bias_input >= 0) {
          job.bias_index = static_cast<std::size_t>(info.bias_input);
          job.has_bias = true;
        }
        x_params_[node] = InputParams(*node, 0);
        const std::size_t y = plan_.tensor_of.at(node->output());
        job.least_scale = device_.least_rescale * ParamsOf(y, Type_(y)).params.scale / x_params_[node].params.scale;
        jobs_.push_back(std::move(job));
      }
    }
    ParallelFor(jobs_.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      QuantizeOne(jobs_[i]);
    });
    const auto signed_ones = std::count_if(jobs_.begin(), jobs_.end(), [&](const WeightJob& job) {
      return job.weight.storage == DType::kS8 && by_channel_.count(job.node) == 0;
    });
    if (precision_.weight == DType::kU8 && signed_ones > 0) {
      result_.effective_weights += ", s8 symmetric at " + std::to_string(signed_ones) + " operators with 16-bit inputs";
    }
  }

  ChannelMoments MomentsOf(const Node& node) const {
    ChannelMoments m;
    const TensorStatistics* stats = statistics_.Find(node.input(0)->name());
    if (stats == nullptr || !stats->channels || !stats->channels->finite) return m;
    for (std::size_t c = 0; c < stats->channels->sums.size(); ++c) {
      m.mean.push_back(stats->ChannelMean(c));
      m.mean_square.push_back(stats->ChannelMeanSquare(c));
    }
    return m;
  }

  void QuantizeOne(WeightJob& job) const {
    const Node& node = *job.node;
    const Value& weight = *node.input(job.weight_index);
    const OpSupport& row = *device_.Row(node.op(), node.domain());
    WeightOptions options = OptionsOf(node, row);
    const DType override_type = OverrideOf(config_, weight.name());
    if (override_type != DType::kUndefined) {
      options.storage = override_type;
      options.symmetric = IsSignedInteger(override_type);
    }
    const std::size_t rank = weight.data->dims.size();
    const std::int64_t axis =
        NormalizesWithScale(node) ? 0 : ResolveAxis(FindOp(node).channel_axis, node, rank).value_or(0);
    const PlannedTensor& x = x_params_.at(&node);
    const ChannelMoments moments = AnalyzesWeight(node, *weight.data) ? MomentsOf(node) : ChannelMoments{};
    const bool corrected = job.has_bias && !moments.mean.empty();
    // A channel of tiny weights takes a scale too big for it rather than one that the device cannot rescale by.
    const std::size_t channels = options.per_channel ? static_cast<std::size_t>(weight.data->dims[axis]) : 1;
    std::vector<float> floor(NormalizesWithScale(node) ? 0 : channels, job.least_scale);
    // The correction grows with the scales that it makes grow: the last attempt goes without.
    constexpr int kAttempts = 4;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      job.weight = QuantizeWeight(*weight.data, axis, options, floor);
      if (!job.has_bias) return;
      const Value* bias = node.input(job.bias_index);
      std::vector<double> shift;
      if (corrected && attempt + 1 < kAttempts) {
        shift = AnalyzeWeight(node, *weight.data, job.weight, moments, true).bias_shift;
      }
      job.bias.clear();
      if (bias == nullptr && shift.empty()) return;
      if (bias != nullptr) {
        for (const float f : bias->data->ToFloats()) job.bias.push_back(f);
      } else {
        job.bias.assign(shift.size(), 0.0);
      }
      if (shift.size() == job.bias.size()) {
        for (std::size_t c = 0; c < shift.size(); ++c) job.bias[c] -= shift[c];
      }
      if (BiasFits(job.bias, x.params.scale, job.weight)) return;
      floor = BiasScaleFloor(job.bias, x.params.scale);
      // Dead channels: the product of the scales must be a normal number too.
      const float least = std::numeric_limits<float>::min() / std::min(x.params.scale, 1.0f);
      for (float& f : floor) f = 1.01f * std::max({f, least, job.least_scale});
    }
    job.failure = "its bias does not fit in int32 at the scale of its products";
  }

  // --- the graph

  // A constant with quantized codes; equal ones are shared.
  Value* QuantizedConstant(Value* source, DType storage) {
    const auto key = std::make_pair(static_cast<const Value*>(source), storage);
    if (const auto it = constants_.find(key); it != constants_.end()) return it->second;
    auto [low, high] = RangeOfConstant(*source);
    if (plan_.mask_values.count(source) > 0) {
      low = std::max(low, -kMaskBound);
      high = std::min(high, kMaskBound);
    }
    PlannedTensor t;
    t.storage = storage;
    t.params = ChooseParams(low, high, storage, precision_.activation_symmetric);
    Value* made = ConstantWith(source, t);
    constants_[key] = made;
    return made;
  }

  Value* ConstantWith(Value* source, const PlannedTensor& t) {
    std::vector<float> storage;
    const std::span<const float> values = FloatView(*source->data, storage);
    SpillBuffer codes(values.size() * CodeBytes(t.storage));
    QuantizeRun(values, t.params, t.storage, reinterpret_cast<std::byte*>(codes.data()));
    return graph_.AddConstant(source->name() + "_codes",
                              TensorRef::FromBuffer(t.storage, source->data->dims, std::move(codes)),
                              TypeOfCodes(*source, TypeOf(t)));
  }

  void Replace(Node& node, std::size_t index, Value* fresh) {
    Value* old = node.input(index);
    node.SetInput(index, fresh);
    if (old != nullptr && old->is_constant() && old->graph() == &graph_ && old->dead()) {
      const std::string name = old->name();
      graph_.Erase(old);
      graph_.Rename(fresh, name);
    }
  }

  void ApplyWeights(WeightJob& job) {
    Node& node = *job.node;
    Value* old = node.input(job.weight_index);
    Type type = TypeOfCodes(*old, TypeOf(job.weight));
    Value* fresh = graph_.AddConstant(
        old->name(), TensorRef::FromBuffer(job.weight.storage, old->data->dims, std::move(job.weight.codes)),
        std::move(type));
    Replace(node, job.weight_index, fresh);
    if (job.bias.empty()) return;
    const auto channels = static_cast<std::int64_t>(job.bias.size());
    const QuantizedBias q = QuantizeBias(job.bias, x_params_.at(&node).params.scale, job.weight);
    const Value* old_bias = node.input(job.bias_index);
    const std::string name = old_bias != nullptr ? old_bias->name() : node.output()->name() + "_bias";
    Type bias_type;
    bias_type.dtype = DType::kF32;
    bias_type.shape.emplace();
    bias_type.shape->push_back({channels, {}});
    bias_type.quant.emplace();
    bias_type.quant->affine.storage = DType::kS32;
    if (job.weight.axis) {
      bias_type.quant->affine.axis = 0;
      bias_type.quant->affine.scale = TensorRef::FromFloats({channels}, q.scales);
    } else {
      bias_type.quant->affine.scale = TensorRef::Scalar(q.scales[0]);
    }
    // A Gemm's C may be [1, N].
    Replace(node, job.bias_index,
            graph_.AddConstant(name, TensorRef::FromInts(DType::kS32, {channels}, q.codes), std::move(bias_type)));
  }

  // `v` as codes of `wanted`: itself, or behind a Quantize (it is float) or a Requantize (of another width).
  Value* AsCodes(Value* v, const PlannedTensor& wanted, bool produced) {
    if (produced && Type_(plan_.tensor_of.at(v)) == wanted.storage) return v;
    Value*& made = made_[{v, wanted.storage}];
    if (made != nullptr) return made;
    Type t = v->type;
    t.dtype = DType::kF32;
    t.quant = TypeOf(wanted);
    Node* before = v->producer() != nullptr ? v->producer()->next() : graph_.first();
    Node* node = graph_.AddNode(std::string(produced ? kRequantize : kQuantize), std::string(kIrDomain), {v},
                                {{v->name() + (produced ? "_rq" : "_q"), t}}, before);
    node->name = node->output()->name();
    made = node->output();
    return made;
  }

  void Apply() {
    for (WeightJob& job : jobs_) {
      if (!job.failure.empty()) {
        ThrowUnsupported(job.failure, NodeName(*job.node), "exclude the node, or give --per-channel");
      }
      ApplyWeights(job);
    }
    struct Edge {
      Node* node;
      std::size_t index;
      Value* value;
    };
    // Decided before anything is retyped.
    std::vector<Edge> edges;
    std::vector<std::pair<Value*, QuantType>> retyped;
    for (Node* node : plan_.taken) {
      if (plan_.absorbed.count(node) > 0) continue;
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (RoleOf(*node, i) != Role::kData) continue;
        Value* v = node->input(i);
        if (v->is_constant()) {
          Value* made = nullptr;
          if (plan_.Moves(*node)) {
            const std::size_t tensor = plan_.tensor_of.at(node->output());
            made = ConstantWith(v, ParamsOf(tensor, Type_(tensor)));
          } else {
            made = QuantizedConstant(v, InputType(*node));
          }
          edges.push_back({node, i, made});
        } else {
          edges.push_back({node, i, AsCodes(v, InputParams(*node, i), plan_.Produced(*v))});
        }
      }
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        if (!CarriesData(*node, i)) continue;
        const std::size_t tensor = plan_.tensor_of.at(node->output(i));
        const PlannedTensor params = ParamsOf(tensor, Type_(tensor));
        retyped.emplace_back(node->output(i), TypeOf(params));
      }
    }
    for (const Edge& edge : edges) edge.node->SetInput(edge.index, edge.value);
    for (auto& [value, type] : retyped) value->type.quant = std::move(type);
    for (const auto& [node, relu] : plan_.absorbs) Absorb(const_cast<Node&>(*node), *relu);
    graph_.EraseDead();
    for (Node* node : graph_.nodes()) {
      bool any = false;
      for (const Value* v : node->inputs()) any = any || (v != nullptr && v->type.quant);
      for (const Value* v : node->outputs()) any = any || (v != nullptr && v->type.quant);
      if (any && node->form == QuantForm::kNone) node->form = QuantForm::kQdq;
    }
  }

  // Before:  %c = Conv ...; %y = Relu %c        After:  %y : # u8 = Conv ...
  void Absorb(Node& node, Node& relu) {
    Value* direct = node.output();
    Value* y = relu.output();
    graph_.SwapNames(direct, y);
    std::swap(direct->extras, y->extras);
    graph_.ReplaceAllUses(y, direct, &relu);
    graph_.Erase(&relu);
  }

  Graph& graph_;
  const QuantizationConfig& config_;
  const DeviceDescriptor& device_;
  const ResolvedPrecision& precision_;
  const Statistics& statistics_;
  std::optional<Calibration>& calibration_;
  const std::unordered_map<std::string, std::size_t>& spec_of_;  // of the calibration, by value
  int threads_;
  QuantizeResult& result_;
  WholeGraphPlan plan_;
  std::unordered_map<const Node*, DType> type_of_node_;
  std::unordered_set<const Node*> fixed_;         // their type is the user's
  std::unordered_set<const Node*> wide_weights_;  // their weight gets 16 bits
  std::unordered_set<const Node*> by_channel_;    // their weight gets a scale a channel, whatever the precision says
  std::vector<DType> types_;                      // of plan_.tensors
  std::map<std::pair<std::size_t, DType>, PlannedTensor> params_;
  std::unordered_map<const Node*, PlannedTensor> x_params_;
  std::vector<WeightJob> jobs_;
  std::map<std::pair<const Value*, DType>, Value*> constants_;
  std::map<std::pair<Value*, DType>, Value*> made_;
};

}  // namespace

std::vector<ObserveSpec> WholeGraphSpecs(const Model& prepared, const QuantizationConfig& config,
                                         const ResolvedPrecision& precision, const DeviceDescriptor& device) {
  const WholeGraphPlan plan(prepared, config, precision, device);
  const bool histogram = NeedsHistogram(config.calibration);
  std::map<std::string, ObserveSpec> specs;
  const auto add = [&](const Value& value) -> ObserveSpec& {
    ObserveSpec& spec = specs[value.name()];
    spec.value = value.name();
    spec.histogram = histogram;
    return spec;
  };
  for (const WholeGraphTensor& t : plan.tensors) {
    if (t.observed != nullptr) add(*t.observed);
  }
  for (const auto& [sum, score] : plan.mask_sums) add(*score);
  // Moments for the bias correction, of what is observed anyway or of what is moved from it.
  std::map<std::string, int> axes;
  std::set<std::string> conflicts;
  for (const Node* node : plan.taken) {
    const OpInfo& info = FindOp(*node);
    if (info.weight_input < 0 || info.bias_input < 0) continue;
    const Value* x = node->input(0);
    if (x->is_constant()) continue;
    const int axis = node->Is("Gemm") ? -1 : 1;
    add(*x).channel_axis = axis;
    const auto [it, fresh] = axes.emplace(x->name(), axis);
    if (!fresh && it->second != axis) conflicts.insert(x->name());
  }
  for (const std::string& name : conflicts) specs[name].channel_axis.reset();
  // The power of every tensor; and its rounding, whose cost at the outputs is measured.
  for (const WholeGraphTensor& t : plan.tensors) {
    if (t.observed == nullptr) continue;
    ObserveSpec& spec = add(*t.observed);
    spec.rounds = config.keep_float_auto;
    if (!t.observed->type.shape || t.observed->type.shape->empty()) continue;
    if (!spec.channel_axis && conflicts.count(t.observed->name()) == 0) spec.channel_axis = -1;
  }
  std::vector<ObserveSpec> list;
  for (auto& [name, spec] : specs) list.push_back(std::move(spec));
  return list;
}

void WholeGraphQuantize(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                        const ResolvedPrecision& precision, const Statistics& statistics,
                        std::optional<Calibration>& calibration,
                        const std::unordered_map<std::string, std::size_t>& spec_of, int threads,
                        QuantizeResult& result) {
  WholeGraph(model, config, device, precision, statistics, calibration, spec_of, threads, result).Run();
}

}  // namespace octavo
