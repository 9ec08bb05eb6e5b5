#include "octavo/quantize/quantize.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/thread_pool.h"
#include "octavo/calibrate/ranges.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/dead_zone.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/probe.h"
#include "octavo/quantize/select.h"
#include "octavo/quantize/weight_only.h"
#include "octavo/quantize/weights.h"
#include "octavo/quantize/whole_graph.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

RangeMethod MethodOf(CalibrationMethod method) {
  switch (method) {
    case CalibrationMethod::kMinMax:
      return RangeMethod::kMinMax;
    case CalibrationMethod::kPercentile:
      return RangeMethod::kPercentile;
    case CalibrationMethod::kEntropy:
      return RangeMethod::kEntropy;
    case CalibrationMethod::kMse:
      return RangeMethod::kMse;
  }
  return RangeMethod::kMinMax;
}

// --requantize: what was quantized becomes float again, constants dequantized. Q/DQ that are no types stay an error.
void DropQuantization(Model& model) {
  FoldQdq(model);
  VisitNodes(*model.graph, [&](Node& node) {
    if (node.Is(kStorageCast, kIrDomain)) {
      ThrowUnsupported("the codes of a quantized value are used as integers: it cannot be made float again",
                       NodeName(node), "quantize the float model it was made from");
    }
  });
  std::vector<Graph*> graphs{model.graph.get()};
  VisitNodes(*model.graph, [&](Node& node) {
    for (Graph* sub : node.subgraphs()) graphs.push_back(sub);
  });
  for (Graph* graph : graphs) {
    for (Value* constant : graph->constants()) {
      if (!constant->type.quant) continue;
      if (constant->type.quant->kind != QuantType::Kind::kAffine || constant->type.quant->affine.block != 0) {
        ThrowUnsupported("block formats cannot be quantized anew", "constant '" + constant->name() + "'");
      }
      const Affine& affine = constant->type.quant->affine;
      const std::vector<std::int64_t> codes = constant->data->ToInts();
      const std::vector<float> scales = affine.scale.ToFloats();
      std::vector<std::int64_t> zeros(scales.size(), 0);
      if (affine.zero_point) zeros = affine.zero_point->ToInts();
      std::uint64_t inner = 1;
      for (std::size_t i = affine.axis ? static_cast<std::size_t>(*affine.axis) + 1 : 0;
           i < constant->data->dims.size(); ++i) {
        inner *= static_cast<std::uint64_t>(constant->data->dims[i]);
      }
      std::vector<float> values(codes.size());
      for (std::size_t i = 0; i < codes.size(); ++i) {
        const std::size_t c = scales.size() == 1 ? 0 : i / std::max<std::uint64_t>(inner, 1) % scales.size();
        values[i] = static_cast<float>(codes[i] - zeros[c]) * scales[c];
      }
      constant->data = TensorRef::FromFloats(constant->data->dims, values);
      constant->type.quant.reset();
      constant->type.dtype = DType::kF32;
    }
    for (Node* node : graph->nodes()) {
      for (Value* v : node->outputs()) {
        if (v != nullptr) v->type.quant.reset();
      }
      node->form = QuantForm::kNone;
      if (node->Is(kQuantize, kIrDomain) || node->Is(kDequantize, kIrDomain) || node->Is(kRequantize, kIrDomain)) {
        Value* out = node->output();
        if (out->is_graph_output()) {
          node->SetOp("Identity");
        } else {
          graph->ReplaceAllUses(out, node->input(0));
          graph->Erase(node);
        }
      }
    }
  }
  if (IsQuantized(model)) {
    ThrowUnsupported("the model holds quantized operators that cannot be made float again", model.source,
                     "quantize the float model it was made from");
  }
}

class Quantizer {
 public:
  Quantizer(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
            const ResolvedPrecision& precision, const DataSource* data, int threads, StatisticsCache* cache,
            QuantizeResult& result)
      : model_(model),
        config_(config),
        device_(device),
        precision_(precision),
        data_(data),
        threads_(threads > 0 ? threads : HardwareThreads()),
        cache_(cache),
        result_(result) {}

  void Run() {
    if (device_.whole_graph) {
      GetStatistics();
      const Clock::time_point begin = Clock::now();
      WholeGraphQuantize(model_, config_, device_, precision_, statistics_, threads_, result_);
      RaiseOpsetForQuantization(model_);
      result_.insertion_seconds = Seconds(begin);
      return;
    }
    placement_ = PlaceNodes(model_, config_, precision_, device_);
    result_.nodes_total = placement_.nodes_total;
    result_.nodes_skipped = placement_.skipped;
    if (placement_.nodes.empty()) {
      LogWarning("no node of this model can be quantized for " + std::string(device_.name));
      return;
    }
    LogDebug("quantize: nodes placed");
    GetStatistics();
    LogDebug("quantize: statistics are there");
    const Clock::time_point start = Clock::now();
    BuildSites();
    LogDebug("quantize: parameters chosen");
    QuantizeWeights();
    LogDebug("quantize: weights have codes");
    if (config_.keep_float_auto && BitWidth(precision_.activation) == 8) Select();
    LogDebug("quantize: nodes selected");
    Apply();
    LogDebug("quantize: types written");
    result_.insertion_seconds = Seconds(start);
  }

 private:
  struct Site {
    Value* value = nullptr;
    PlannedTensor tensor;
    double mean_square = 0;
    std::vector<std::size_t> readers;  // indices of nodes
    int writer = -1;
    double noise = 0;  // at the outputs, over signal
  };
  struct Work {  // beside placement_.nodes
    std::size_t x_site = 0;
    int y_site = -1;
    double macs = 0;
    QuantizedWeight weight;
    WeightNoise noise;
    std::vector<double> bias;
    bool corrected = false;
    bool integer_bias = false;
    std::string keep_float;  // the reason, if it stays in float
  };

  // Whether the cache's statistics are this model's and have all that is needed; they are then taken over.
  bool TakeCached(const std::vector<ObserveSpec>& specs) {
    if (cache_ == nullptr || !cache_->found || cache_->found->model_sha256 != ModelFingerprint(model_)) return false;
    for (const ObserveSpec& spec : specs) {
      const TensorStatistics* t = cache_->found->Find(spec.value);
      if (t == nullptr || (spec.histogram && !t->histogram)) return false;
    }
    statistics_ = *std::move(cache_->found);
    cache_->found.reset();
    return cache_->used = true;
  }

  void GetStatistics() {
    const std::vector<ObserveSpec> specs = CalibrationSpecs(model_, config_, device_);
    if (!config_.load_path.empty()) {
      statistics_ = LoadStatistics(config_.load_path);
      if (statistics_.model_sha256 != ModelFingerprint(model_)) {
        ThrowUsage("the statistics belong to another model, or to the same one prepared for another precision",
                   config_.load_path, "calibrate this model");
      }
      for (const ObserveSpec& spec : specs) {
        const TensorStatistics* t = statistics_.Find(spec.value);
        if (t == nullptr || (spec.histogram && !t->histogram)) {
          ThrowUsage("the statistics lack what this configuration needs of tensor '" + spec.value + "'",
                     config_.load_path, "calibrate with the same options");
        }
      }
      result_.calibration_source = "loaded";
    } else if (TakeCached(specs)) {
      result_.calibration_source = "data";
    } else {
      if (data_ == nullptr) {
        ThrowUsage("precision '" + config_.precision + "' needs calibration data", "--data",
                   "give --data, or --load-statistics");
      }
      const Clock::time_point start = Clock::now();
      const std::size_t count = std::min<std::size_t>(data_->size(), static_cast<std::size_t>(config_.samples));
      CalibrateOptions options;
      options.threads = threads_;
      options.method = MethodName(config_.calibration);
      statistics_ = Calibrate(model_, *data_, 0, count, specs, options);
      result_.calibration_seconds = Seconds(start);
      result_.calibration_source = "data";
      if (cache_ != nullptr && cache_->keep) cache_->keep(statistics_);
    }
    result_.calibration_samples = static_cast<std::int64_t>(statistics_.samples.size());
    if (!config_.save_path.empty()) SaveStatistics(statistics_, config_.save_path);
  }

  const TensorStatistics& StatsOf(const Value& value) const {
    const TensorStatistics* t = statistics_.Find(value.name());
    if (t == nullptr) ThrowInternal("a tensor was not calibrated", value.name());
    return *t;
  }

  std::size_t SiteOf(Value* value) {
    const auto [it, fresh] = site_of_.emplace(value, sites_.size());
    if (!fresh) return it->second;
    Site site;
    site.value = value;
    const TensorStatistics& stats = StatsOf(*value);
    const DType override_type = OverrideOf(config_, value->name());
    const bool overridden = override_type != DType::kUndefined && override_type != DType::kF32;
    site.tensor.storage = overridden ? override_type : precision_.activation;
    const QuantRange range = ChooseRange(stats, MethodOf(config_.calibration), config_.percentile, site.tensor.storage,
                                         precision_.activation_symmetric);
    // The cut is exact to half a step of 8 bits; finer codes would show it.
    ValueRange used{range.min, range.max};
    if (!precision_.activation_symmetric && BitWidth(site.tensor.storage) == 8) used = CutDeadZone(*value, used);
    site.tensor.params = ChooseParams(used.min, used.max, site.tensor.storage, precision_.activation_symmetric);
    if (stats.channels && stats.channels->finite && !stats.channels->squares.empty() && stats.range.elements > 0) {
      const std::size_t channels = stats.channels->squares.size();
      for (std::size_t c = 0; c < channels; ++c) {
        site.mean_square += stats.ChannelMeanSquare(c) / static_cast<double>(channels);
      }
    } else {
      const double span = static_cast<double>(used.max) - used.min;
      site.mean_square = span * span / 36;  // a bell that reaches the range's ends at three sigma
    }
    sites_.push_back(std::move(site));
    return it->second;
  }

  void BuildSites() {
    std::unordered_map<const Value*, int> writers;
    for (std::size_t i = 0; i < placement_.nodes.size(); ++i) {
      if (placement_.nodes[i].y != nullptr) writers[placement_.nodes[i].y] = static_cast<int>(i);
    }
    work_.resize(placement_.nodes.size());
    for (std::size_t i = 0; i < placement_.nodes.size(); ++i) {
      const PlacedNode& p = placement_.nodes[i];
      Work& w = work_[i];
      w.x_site = SiteOf(p.x_root);
      sites_[w.x_site].readers.push_back(i);
      if (const auto it = writers.find(p.x_root); it != writers.end()) sites_[w.x_site].writer = it->second;
      if (p.y != nullptr) {
        w.y_site = static_cast<int>(SiteOf(p.y));
        sites_[static_cast<std::size_t>(w.y_site)].writer = static_cast<int>(i);
      }
      w.macs = Macs(p);
    }
  }

  // From what the samples showed, where shapes are not static.
  double Macs(const PlacedNode& p) const {
    const double samples = std::max<double>(1, static_cast<double>(statistics_.samples.size()));
    const auto per_sample = [&](const Value& v) {
      const TensorStatistics* t = statistics_.Find(v.name());
      return t == nullptr ? 0.0 : static_cast<double>(t->range.elements) / samples;
    };
    const Dims& dims = p.weight->data->dims;
    const double in = per_sample(*p.x_root);
    double out = 0;
    if (p.y != nullptr) {
      out = per_sample(*p.y);
    } else {
      const auto outputs = static_cast<double>(dims[static_cast<std::size_t>(p.channel_axis)]);
      const auto inputs = static_cast<double>(dims[p.channel_axis == 0 ? 1 : 0]);
      out = in / std::max(inputs, 1.0) * outputs;
    }
    return static_cast<double>(
        MultiplyAccumulates(*p.node, static_cast<std::uint64_t>(in), static_cast<std::uint64_t>(out)));
  }

  ChannelMoments MomentsOf(const PlacedNode& p) const {
    ChannelMoments m;
    const TensorStatistics* stats = statistics_.Find(p.x->name());
    if (stats == nullptr || !stats->channels || !stats->channels->finite) return m;
    for (std::size_t c = 0; c < stats->channels->sums.size(); ++c) {
      m.mean.push_back(stats->ChannelMean(c));
      m.mean_square.push_back(stats->ChannelMeanSquare(c));
    }
    return m;
  }

  void QuantizeWeights() {
    ParallelFor(work_.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      QuantizeOneWeight(placement_.nodes[i], work_[i]);
    });
  }

  void QuantizeOneWeight(const PlacedNode& p, Work& w) const {
    WeightOptions options;
    options.storage = precision_.weight;
    options.per_channel = precision_.per_channel;
    options.symmetric = precision_.weight_symmetric;
    const DType override_type = OverrideOf(config_, p.weight->name());
    if (override_type != DType::kUndefined && override_type != DType::kF32) {
      options.storage = override_type;
      options.symmetric = options.symmetric || IsSignedInteger(override_type);
    }
    const Site& x = sites_[w.x_site];
    const ChannelMoments moments = MomentsOf(p);
    const bool has_bias_input = FindOp(*p.node).bias_input >= 0;
    w.corrected = !moments.mean.empty() && (has_bias_input || p.bias_add != nullptr);
    // 16-bit tensors are computed in float behind their DQ, where an int32 bias would only round.
    w.integer_bias = has_bias_input && BitWidth(x.tensor.storage) == 8 && BitWidth(options.storage) == 8;

    std::vector<float> floor;
    for (int attempt = 0; attempt < 3; ++attempt) {
      w.weight = QuantizeWeight(*p.weight->data, p.channel_axis, options, floor);
      w.noise = AnalyzeWeight(*p.node, *p.weight->data, w.weight, moments, w.corrected);
      if (!has_bias_input) return;
      w.bias.clear();
      if (p.bias == nullptr && !w.corrected) return;
      w.bias.assign(w.noise.bias_shift.size(), 0.0);
      if (p.bias != nullptr) {
        const std::vector<float> old = p.bias->data->ToFloats();
        for (std::size_t c = 0; c < old.size(); ++c) w.bias[c] = old[c];
      }
      if (w.corrected) {
        for (std::size_t c = 0; c < w.bias.size(); ++c) w.bias[c] -= w.noise.bias_shift[c];
      }
      if (!w.integer_bias || BiasFits(w.bias, x.tensor.params.scale, w.weight)) return;
      floor = BiasScaleFloor(w.bias, x.tensor.params.scale);
    }
    w.keep_float = "its bias does not fit in int32 at the scale of its products";
  }

  double InputNoise(const Work& w) const {
    const double scale = sites_[w.x_site].tensor.params.scale;
    return scale * scale / 12 * w.noise.square_sum;
  }

  void Select() {
    double total_macs = 0;
    for (const Work& w : work_) total_macs += w.macs;
    std::vector<double> local(sites_.size());  // noise over signal at the tensor itself
    for (std::size_t s = 0; s < sites_.size(); ++s) {
      const double scale = sites_[s].tensor.params.scale;
      local[s] = sites_[s].mean_square > 0 ? scale * scale / 12 / sites_[s].mean_square : 0;
      sites_[s].noise = local[s];
    }
    Probe(total_macs, local);

    std::vector<SelectNode> nodes(work_.size());
    std::vector<double> site_noise;
    for (const Site& s : sites_) site_noise.push_back(s.noise);
    for (std::size_t i = 0; i < work_.size(); ++i) {
      const Work& w = work_[i];
      nodes[i].macs = w.macs;
      nodes[i].x_site = static_cast<int>(w.x_site);
      nodes[i].y_site = w.y_site;
      // How much noise of unit power on this node's output shows at the model's outputs: known from the rounding of
      // the output itself, or from that of the input, whose power behind the weights is known.
      if (w.y_site >= 0) {
        const Site& y = sites_[static_cast<std::size_t>(w.y_site)];
        const double power = static_cast<double>(y.tensor.params.scale) * y.tensor.params.scale / 12;
        nodes[i].weight_noise = w.noise.noise * y.noise / power;
      } else {
        double power = 0;
        for (const std::size_t r : sites_[w.x_site].readers) power += InputNoise(work_[r]);
        if (power > 0) nodes[i].weight_noise = w.noise.noise * sites_[w.x_site].noise / power;
      }
    }
    const Selection selection = SelectFloatNodes(nodes, site_noise);
    if (selection.noise_left > 0) result_.predicted_sqnr_db = -10 * std::log10(selection.noise_left);
    for (std::size_t i = 0; i < work_.size(); ++i) {
      if (!selection.keep_float[i] || !work_[i].keep_float.empty()) continue;
      char text[200];
      std::snprintf(text, sizeof text,
                    "kept in float: %.1f %% of the predicted output noise for %.2f %% of the multiply-accumulates",
                    100 * selection.noise_share[i], total_macs > 0 ? 100 * work_[i].macs / total_macs : 0.0);
      work_[i].keep_float = text;
    }
  }

  // Replaces the sites' local noise by what was measured at the outputs.
  void Probe(double total_macs, const std::vector<double>& local) {
    // The budget is in runs, from the model's size, never from a clock: an eighth of the calibration itself and what a
    // nominal core does in half a second.
    const double run_seconds = total_macs / 3e10 + static_cast<double>(placement_.nodes_total) * 5e-6;
    const double runs = 0.125 * static_cast<double>(statistics_.samples.size()) + 0.5 / run_seconds;
    std::vector<ProbeSite> probes;
    std::vector<std::size_t> which;
    for (std::size_t s = 0; s < sites_.size(); ++s) {
      if (BitWidth(sites_[s].tensor.storage) != 8) continue;
      ProbeSite probe;
      probe.value = sites_[s].value;
      probe.params = sites_[s].tensor.params;
      if (IsSignedInteger(sites_[s].tensor.storage)) probe.params.zero_point += 128;
      if (sites_[s].writer < 0) {
        for (const std::size_t r : sites_[s].readers) probe.users.push_back(placement_.nodes[r].node);
      }
      probes.push_back(std::move(probe));
      which.push_back(s);
    }
    const ProbeResult measured =
        ProbeSites(model_, probes, statistics_.kept, static_cast<int>(std::min(runs, 100000.0)), threads_);
    if (measured.groups == 0) return;
    LogDebug("sensitivity: " + std::to_string(which.size()) + " tensors in " + std::to_string(measured.groups) +
             " groups, " + std::to_string(measured.runs) + " runs");
    std::vector<double> group_local(static_cast<std::size_t>(measured.groups));
    for (std::size_t i = 0; i < which.size(); ++i) {
      group_local[static_cast<std::size_t>(measured.group[i])] += local[which[i]];
    }
    for (std::size_t i = 0; i < which.size(); ++i) {
      const double sum = group_local[static_cast<std::size_t>(measured.group[i])];
      sites_[which[i]].noise = sum > 0 ? measured.noise[i] * local[which[i]] / sum : 0;
    }
  }

  void Apply() {
    std::unordered_set<const Value*> integer_outputs;
    double macs = 0, integer_macs = 0;
    for (std::size_t i = 0; i < work_.size(); ++i) {
      macs += work_[i].macs;
      if (!work_[i].keep_float.empty()) {
        result_.nodes_skipped.push_back(
            {NodeName(*placement_.nodes[i].node), placement_.nodes[i].node->op(), work_[i].keep_float});
        continue;
      }
      integer_macs += work_[i].macs;
      if (placement_.nodes[i].y != nullptr) integer_outputs.insert(placement_.nodes[i].y);
    }
    result_.integer_mac_share = macs > 0 ? integer_macs / macs : 0;
    std::vector<PlannedNode> plan;
    for (std::size_t i = 0; i < work_.size(); ++i) {
      Work& w = work_[i];
      if (!w.keep_float.empty()) continue;
      PlannedNode p;
      p.placed = &placement_.nodes[i];
      p.x = sites_[w.x_site].tensor;
      if (w.y_site >= 0) p.y = sites_[static_cast<std::size_t>(w.y_site)].tensor;
      p.root_is_integer = integer_outputs.count(p.placed->x_root) > 0;
      p.weight = std::move(w.weight);
      p.bias = std::move(w.bias);
      p.integer_bias = w.integer_bias;
      if (w.corrected && p.placed->bias_add != nullptr) p.add_shift = std::move(w.noise.bias_shift);
      plan.push_back(std::move(p));
    }
    result_.nodes_quantized = static_cast<std::int64_t>(plan.size());
    ApplyPlan(model_, plan);
    model_.graph->EraseDead();
    RaiseOpsetForQuantization(model_);
  }

  Model& model_;
  const QuantizationConfig& config_;
  const DeviceDescriptor& device_;
  const ResolvedPrecision& precision_;
  const DataSource* data_;
  int threads_;
  StatisticsCache* cache_;
  QuantizeResult& result_;
  Placement placement_;
  Statistics statistics_;
  std::vector<Site> sites_;
  std::unordered_map<const Value*, std::size_t> site_of_;
  std::vector<Work> work_;
};

}  // namespace

std::string MethodName(CalibrationMethod method) {
  switch (method) {
    case CalibrationMethod::kMinMax:
      return "minmax";
    case CalibrationMethod::kPercentile:
      return "percentile";
    case CalibrationMethod::kEntropy:
      return "entropy";
    case CalibrationMethod::kMse:
      return "mse";
  }
  return "minmax";
}

namespace {

// Weights that are graph inputs with a default (exports of old tools list every initializer as an input): quantizing
// changes them, so they cannot be overridden any more and become constants.
void FreezeDefaults(Model& model) {
  Graph& graph = *model.graph;
  std::size_t frozen = 0;
  const std::vector<Value*> inputs(graph.inputs().begin(), graph.inputs().end());
  for (Value* input : inputs) {
    if (!input->data || input->is_graph_output()) continue;
    const std::string name = input->name();
    Value* constant = graph.AddConstant(name, *input->data, input->type);
    graph.ReplaceAllUses(input, constant);
    graph.EraseInput(input);
    graph.Rename(constant, name);
    ++frozen;
  }
  if (frozen > 0) {
    LogWarning(
        std::to_string(frozen) +
        " graph inputs have default values (weights listed as inputs): they become constants and cannot be overridden");
  }
}

}  // namespace

void PrepareFloat(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                  std::vector<std::pair<std::string, std::int64_t>>* applied) {
  if (HasEpContext(model)) {
    ThrowUnsupported("the model is compiled for a device already (EPContext)", model.source,
                     "quantize the model it was compiled from");
  }
  const ResolvedPrecision precision = ResolvePrecision(config, device);
  FreezeDefaults(model);
  for (const PassCount& pass : SimplifyFloat(model)) {
    if (applied != nullptr && pass.applied > 0) applied->emplace_back(pass.rule, pass.applied);
  }
  if (device.whole_graph && precision.kind == ResolvedPrecision::Kind::kStatic) {
    for (const PassCount& pass : FusePatterns(model)) {
      if (applied != nullptr && pass.applied > 0) applied->emplace_back(pass.rule, pass.applied);
    }
  }
  // Per-channel weights have a scale for every channel: there is nothing to equalize.
  if (precision.kind == ResolvedPrecision::Kind::kStatic && !precision.per_channel && BitWidth(precision.weight) == 8) {
    const std::int64_t pairs = EqualizeLayers(model);
    if (applied != nullptr && pairs > 0) applied->emplace_back("equalize-layers", pairs);
  }
}

std::vector<ObserveSpec> CalibrationSpecs(const Model& prepared, const QuantizationConfig& config,
                                          const DeviceDescriptor& device) {
  const ResolvedPrecision precision = ResolvePrecision(config, device);
  if (device.whole_graph) return WholeGraphSpecs(prepared, config, precision, device);
  const Placement placement = PlaceNodes(prepared, config, precision, device);
  std::map<std::string, ObserveSpec> specs;  // by name: the order is the same for every build of the library
  const bool histogram = NeedsHistogram(MethodOf(config.calibration));
  // A value that nodes read along different axes has no moments: those of one axis would be wrong for the other.
  std::map<std::string, int> axes;
  std::set<std::string> conflicts;
  const auto add = [&](const Value& value, bool range, std::optional<int> channel_axis) {
    ObserveSpec& spec = specs[value.name()];
    spec.value = value.name();
    spec.histogram = spec.histogram || (range && histogram);
    if (!channel_axis) return;
    const auto [wanted, fresh] = axes.emplace(value.name(), *channel_axis);
    if (!fresh && wanted->second != *channel_axis) conflicts.insert(value.name());
    spec.channel_axis = channel_axis;
  };
  for (const PlacedNode& p : placement.nodes) {
    const int axis = FindOp(*p.node).category == OpCategory::kWeighted ? 1 : -1;
    add(*p.x, p.x == p.x_root, axis);
    if (p.x_root != p.x) add(*p.x_root, true, std::nullopt);
    // Moments of the output too: its noise is weighed by its power.
    if (p.y != nullptr) {
      add(*p.y, true, std::nullopt);
      if (!specs[p.y->name()].channel_axis) specs[p.y->name()].channel_axis = 1;
    }
  }
  for (const std::string& name : conflicts) specs[name].channel_axis.reset();
  std::vector<ObserveSpec> list;
  for (auto& [name, spec] : specs) list.push_back(std::move(spec));
  return list;
}

QuantizeResult Quantize(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                        const DataSource* data, int threads, StatisticsCache* cache) {
  Validate(config);
  const ResolvedPrecision precision = ResolvePrecision(config, device);
  QuantizeResult result;
  result.calibration_source = "none";
  result.effective_weights = precision.weight_text;
  result.effective_activations = precision.activation_text;
  if (HasEpContext(model)) {
    ThrowUnsupported("the model is compiled for a device already (EPContext)", model.source,
                     "quantize the model it was compiled from");
  }
  if (IsQuantized(model)) {
    if (!config.requantize) {
      result.skipped = true;
      result.effective_weights = result.effective_activations = "as in the input";
      VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node&) { ++result.nodes_total; });
      return result;
    }
    DropQuantization(model);
  }
  PrepareFloat(model, config, device, &result.rewrites);
  switch (precision.kind) {
    case ResolvedPrecision::Kind::kFloat:
      VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node&) { ++result.nodes_total; });
      return result;
    case ResolvedPrecision::Kind::kHalf: {
      VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node&) { ++result.nodes_total; });
      const Clock::time_point start = Clock::now();
      CheckSelectors(model, config);
      HalfResult half =
          ConvertToHalf(model, precision.half, [&config](const Node& node) { return KeptByUser(node, config); });
      result.insertion_seconds = Seconds(start);
      result.fp16_overflows = half.overflows;
      result.nodes_quantized = result.nodes_total - static_cast<std::int64_t>(half.kept_float.size());
      for (KeptNode& kept : half.kept_float) {
        result.nodes_skipped.push_back({std::move(kept.node), std::move(kept.op), std::move(kept.reason)});
      }
      if (half.overflows > 0) {
        LogWarning(std::to_string(half.overflows) + " weights are beyond the range of " +
                   std::string(Name(precision.half)) + " and were clamped");
      }
      return result;
    }
    case ResolvedPrecision::Kind::kWeightOnly: {
      const Clock::time_point start = Clock::now();
      QuantizeWeightsOnly(model, config, *FindWeightOnlyFormat(config), threads > 0 ? threads : HardwareThreads(),
                          result);
      result.insertion_seconds = Seconds(start);
      model.graph->EraseDead();
      RaiseOpsetForQuantization(model);
      return result;
    }
    case ResolvedPrecision::Kind::kStatic:
      break;
  }
  if (data != nullptr && config.load_path.empty()) result.data_sha256 = data->ContentHash();
  Quantizer(model, config, device, precision, data, threads, cache, result).Run();
  return result;
}

}  // namespace octavo
