#include "octavo/quantize/quantize_static.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/thread_pool.h"
#include "octavo/calibrate/ranges.h"
#include "octavo/emit/onnx.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/dead_zone.h"
#include "octavo/quantize/early_weights.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/probe.h"
#include "octavo/quantize/recurrent.h"
#include "octavo/quantize/select.h"
#include "octavo/quantize/tables.h"
#include "octavo/quantize/weights.h"
#include "octavo/quantize/whole_graph.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

class Quantizer {
 public:
  Quantizer(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
            const ResolvedPrecision& precision, const DataSource* data, int threads, StatisticsCache* cache,
            EarlyWeights* early, QuantizeResult& result)
      : model_(model),
        config_(config),
        device_(device),
        precision_(precision),
        data_(data),
        threads_(threads > 0 ? threads : HardwareThreads()),
        cache_(cache),
        early_(early),
        result_(result) {}

  void Run() {
    if (device_.whole_graph) {
      GetStatistics();
      const Clock::time_point begin = Clock::now();
      WholeGraphQuantize(model_, config_, device_, precision_, statistics_, calibration_, spec_of_, threads_, result_);
      RaiseOpsetForQuantization(model_);
      result_.insertion_seconds = Seconds(begin);
      return;
    }
    const ResolvedPrecision wanted = precision_;
    if (config_.keep_float_auto) precision_ = SelectionPrecision(config_, device_, wanted);
    stores_tables_ = config_.keep_float_auto && BitWidth(wanted.weight) == 8;
    placement_ = PlaceNodes(model_, config_, precision_, device_);
    result_.nodes_total = placement_.nodes_total;
    result_.nodes_skipped = placement_.skipped;
    if (placement_.nodes.empty()) {
      precision_ = wanted;
      if (StoreRecurrent()) return;
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
    // Selecting waits for runs of samples one after another; tables are none of its business.
    ParallelFor(2, threads_, [&](std::size_t i) {
      if (i == 0 && Selects()) Select();
      if (i == 1 && !prepared_) FindStoredTables();
    });
    calibration_.reset();
    LogDebug("quantize: nodes selected");
    if (BitWidth(precision_.activation) != BitWidth(wanted.activation)) Widen(wanted);
    Apply();
    LogDebug("quantize: types written");
    result_.insertion_seconds = Seconds(start);
  }

 private:
  // Errors of weights are the same at every position: they do not average out as the rounding of activations does, by
  // which sensitivity is measured.
  static constexpr double kCoherent = 4;
  // Weights of which rounding leaves 38 dB at the node's own output.
  static constexpr double kFaithful = 1.6e-4;
  static constexpr int kMostChecks = 4;
  static constexpr double kFewestRuns = 2;

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
    std::vector<float> largest;  // of the weight's channels
    bool stored = false;         // in float, but its weights are stored in 8 bits
    std::string keep_float;      // the reason, if it stays in float
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
    for (std::size_t i = 0; i < specs.size(); ++i) spec_of_[specs[i].value] = i;
    // Looking at the weights has made them resident, and the session keeps its own packed copy.
    for (const Value* constant : model_.graph->constants()) DropPages(*constant);
    ::malloc_trim(0);  // what the float passes' sessions have freed
    CalibrateOptions options;
    options.threads = threads_;
    options.method = MethodName(config_.calibration);
    calibration_.emplace(model_, specs, options);
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
      Prepare();
      statistics_ = calibration_->Gather(*data_, 0, count);
      result_.calibration_seconds = Seconds(start);
      result_.calibration_source = "data";
      if (cache_ != nullptr && cache_->keep) cache_->keep(statistics_);
    }
    result_.calibration_samples = static_cast<std::int64_t>(statistics_.samples.size());
    if (!config_.save_path.empty()) SaveStatistics(statistics_, config_.save_path);
  }

  // The parameters once more, in the precision that was asked for; what the 8-bit one leaves in float stays there.
  void Widen(const ResolvedPrecision& wanted) {
    std::unordered_map<const Node*, Work> selected;
    for (std::size_t i = 0; i < work_.size(); ++i) selected[placement_.nodes[i].node] = std::move(work_[i]);
    precision_ = wanted;
    result_.predicted_sqnr_db = 0;  // that was of 8 bits
    placement_ = PlaceNodes(model_, config_, precision_, device_);
    sites_.clear();
    site_of_.clear();
    work_.clear();
    studies_.clear();
    BuildSites();
    QuantizeWeights();
    for (std::size_t i = 0; i < work_.size(); ++i) {
      Work& before = selected[placement_.nodes[i].node];
      if (before.keep_float.empty()) continue;
      work_[i].keep_float = std::move(before.keep_float);
      // 16 bits keep any weight well.
      work_[i].stored = before.stored || BitWidth(precision_.weight) == 16;
    }
  }

  DType StoredType() const { return BitWidth(precision_.weight) == 16 ? DType::kS16 : DType::kS8; }

  // While one thread loads the session, the others look at the weights, as far as they have not been looked at.
  void Prepare() {
    studies_.resize(placement_.nodes.size());
    ParallelFor(studies_.size() + 2, threads_, [&](std::size_t i) {
      CheckInterrupt();
      if (i == 0) return calibration_->Load();
      if (i == studies_.size() + 1) return FindStoredTables();
      const PlacedNode& p = placement_.nodes[i - 1];
      const WeightOptions options = OptionsOf(*p.weight);
      if (early_ != nullptr) {
        if (auto study = early_->TakeWeight(*p.weight->data, p.channel_axis, options)) {
          studies_[i - 1] = *std::move(study);
          return;
        }
      }
      studies_[i - 1] = StudyWeight(*p.weight->data, p.channel_axis, options);
    });
    prepared_ = true;
  }

  WeightOptions OptionsOf(const Value& weight) const { return WeightOptionsOf(config_, precision_, weight.name()); }

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
    const QuantRange range = ChooseRange(stats, config_.calibration, config_.percentile, site.tensor.storage,
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

  double PerSample(const Value& v) const {
    const TensorStatistics* t = statistics_.Find(v.name());
    if (t == nullptr) return 0;
    return static_cast<double>(t->range.elements) /
           std::max<double>(1, static_cast<double>(statistics_.samples.size()));
  }

  // From what the samples showed, where shapes are not static.
  double Macs(const PlacedNode& p) const {
    const Dims& dims = p.weight->data->dims;
    const double in = PerSample(*p.x_root);
    double out = 0;
    if (p.y != nullptr) {
      out = PerSample(*p.y);
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
      std::vector<AffineParams>* chosen = nullptr;
      if (i < studies_.size()) {
        chosen = &studies_[i].params;
        work_[i].largest = std::move(studies_[i].largest);
      }
      QuantizeOneWeight(placement_.nodes[i], work_[i], chosen);
      DropPages(*placement_.nodes[i].weight);
    });
  }

  // While nodes are selected, the session is there too: codes are made again for those that need them.
  bool Selects() const { return config_.keep_float_auto && BitWidth(precision_.activation) == 8; }

  // Weights in a file are read again when they are needed again.
  static void DropPages(const Value& constant) {
    if (constant.data && constant.data->file != nullptr) constant.data->file->DropPages(constant.data->bytes);
  }

  void QuantizeOneWeight(const PlacedNode& p, Work& w, std::vector<AffineParams>* chosen) const {
    const WeightOptions options = OptionsOf(*p.weight);
    const Site& x = sites_[w.x_site];
    const ChannelMoments moments = MomentsOf(p);
    const bool has_bias_input = FindOp(*p.node).bias_input >= 0;
    w.corrected = !moments.mean.empty() && (has_bias_input || p.bias_add != nullptr);
    // 16-bit tensors are computed in float behind their DQ, where an int32 bias would only round.
    w.integer_bias = has_bias_input && BitWidth(x.tensor.storage) == 8 && BitWidth(options.storage) == 8;

    std::vector<float> floor;
    for (int attempt = 0; attempt < 3; ++attempt) {
      w.weight = attempt == 0 && chosen != nullptr
                     ? QuantizeWeightWith(*p.weight->data, p.channel_axis, options, std::move(*chosen))
                     : QuantizeWeight(*p.weight->data, p.channel_axis, options, floor);
      w.noise = AnalyzeWeight(*p.node, *p.weight->data, w.weight, moments, w.corrected);
      if (Selects()) w.weight.codes = SpillBuffer();
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
      // A float bias too: ONNX Runtime makes it int32 at that scale where the weight has codes, and clips what does not
      // fit.
      if (BiasFits(w.bias, x.tensor.params.scale, w.weight)) return;
      floor = BiasScaleFloor(w.bias, x.tensor.params.scale);
    }
    w.keep_float = "its bias does not fit in int32 at the scale of its products";
  }

  double InputNoise(const Work& w) const {
    const double scale = sites_[w.x_site].tensor.params.scale;
    return scale * scale / 12 * w.noise.square_sum;
  }

  // What stays at most behind of a weight's noise when it is stored with a scale a channel instead: from the ranges.
  double StoredNoise(const PlacedNode& p, const Work& w) const {
    if (precision_.per_channel && precision_.weight_symmetric && BitWidth(w.weight.storage) == 8) return w.noise.noise;
    const std::vector<float> largest =
        w.largest.empty() ? LargestOfChannels(*p.weight->data, p.channel_axis) : w.largest;
    double per_channel = 0, now = 0;
    for (std::size_t c = 0; c < largest.size(); ++c) {
      const double scale = largest[c] / 127.0, have = w.weight.params[w.weight.params.size() == 1 ? 0 : c].scale;
      per_channel += scale * scale;
      now += have * have;
    }
    return now > 0 ? w.noise.noise * per_channel / now : w.noise.noise;
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
    const SelectOptions options;

    std::unordered_set<const Node*> placed;
    for (const PlacedNode& p : placement_.nodes) {
      placed.insert(p.node);
      placed.insert(p.carriers.begin(), p.carriers.end());
    }
    std::vector<SelectSite> sites;
    for (const Site& s : sites_) {
      SelectSite site;
      site.noise = s.noise;
      site.elements = PerSample(*s.value);
      site.float_users = s.value->is_graph_output();
      for (const Use& use : s.value->uses()) site.float_users = site.float_users || placed.count(use.node) == 0;
      sites.push_back(site);
    }
    std::vector<SelectNode> nodes(work_.size());
    std::vector<double> stored(work_.size());
    ParallelFor(work_.size(), threads_, [&](std::size_t i) {
      stored[i] = StoredNoise(placement_.nodes[i], work_[i]);
      DropPages(*placement_.nodes[i].weight);
    });
    for (std::size_t i = 0; i < work_.size(); ++i) {
      const Work& w = work_[i];
      const PlacedNode& p = placement_.nodes[i];
      nodes[i].macs = w.macs;
      nodes[i].depthwise = p.node->IntAttribute("group", 1) > 1 && p.weight->data->dims[1] == 1;
      nodes[i].x_site = static_cast<int>(w.x_site);
      nodes[i].y_site = w.y_site;
      const double power = w.noise.square_sum * sites_[w.x_site].mean_square;
      nodes[i].faithful =
          stored[i] <= kFaithful * power && (p.node->Is("Gemm") || FindOp(*p.node).category == OpCategory::kMatMul);
    }
    // How much noise of unit power on a node's output shows at the model's outputs: known from the rounding of the
    // output itself, or from that of the input, whose power behind the weights is known.
    const auto weigh = [&] {
      for (std::size_t i = 0; i < work_.size(); ++i) {
        const Work& w = work_[i];
        double sensitivity = 0;
        if (w.y_site >= 0) {
          const auto y = static_cast<std::size_t>(w.y_site);
          const double scale = sites_[y].tensor.params.scale;
          sensitivity = sites[y].noise / (scale * scale / 12);
        } else {
          double power = 0;
          for (const std::size_t r : sites_[w.x_site].readers) power += InputNoise(work_[r]);
          if (power > 0) sensitivity = sites[w.x_site].noise / power;
        }
        nodes[i].weight_noise = kCoherent * w.noise.noise * sensitivity;
        nodes[i].stored_noise = kCoherent * stored[i] * sensitivity;
      }
    };
    const Selection selection = Decide(total_macs, local, nodes, sites, weigh, options);
    if (selection.noise_left > 0) result_.predicted_sqnr_db = -10 * std::log10(selection.noise_left);
    double integer_macs = 0;
    for (std::size_t i = 0; i < work_.size(); ++i) {
      if (selection.choice[i] == Selection::Choice::kInteger) integer_macs += work_[i].macs;
    }
    char summary[160];
    std::snprintf(summary, sizeof summary,
                  "selection: predicted %.2f dB, all in integers %.2f dB, %.1f %% of %.3g products in integers",
                  result_.predicted_sqnr_db, -10 * std::log10(std::max(selection.noise_all, 1e-30)),
                  total_macs > 0 ? 100 * integer_macs / total_macs : 0.0, total_macs);
    LogDebug(summary);
    for (std::size_t i = 0; i < work_.size(); ++i) {
      if (selection.choice[i] == Selection::Choice::kInteger || !work_[i].keep_float.empty()) continue;
      const double work = total_macs > 0 ? 100 * work_[i].macs / total_macs : 0.0;
      char text[200];
      if (selection.choice[i] == Selection::Choice::kNoisy) {
        std::snprintf(text, sizeof text,
                      "kept in float: %.1f %% of the predicted output noise for %.2f %% of the multiply-accumulates",
                      100 * selection.noise_share[i], work);
      } else {
        std::snprintf(
            text, sizeof text,
            "kept in float: quantizing and dequantizing at its boundaries would cost more than its %.2f %% of "
            "the multiply-accumulates save",
            work);
      }
      work_[i].keep_float = text;
      work_[i].stored = selection.stored[i];
    }
  }

  // Selects with the noise that was measured at the outputs in place of the tensors' own.
  Selection Decide(double total_macs, const std::vector<double>& local, std::span<const SelectNode> nodes,
                   std::vector<SelectSite>& sites, const std::function<void()>& weigh, const SelectOptions& select) {
    // The budget is in runs, from the model's size, never from a clock: a sixteenth of the calibration itself and what
    // a nominal core does in 0.15 seconds, less four for the checks of what is selected: one core runs them, the others
    // wait.
    const double run_seconds = total_macs / 3e10 + static_cast<double>(placement_.nodes_total) * 5e-6;
    const double runs =
        std::max(kFewestRuns, 0.0625 * static_cast<double>(statistics_.samples.size()) + 0.15 / run_seconds - 4);
    std::vector<ProbeSite> probes;
    std::vector<std::size_t> which;
    for (std::size_t s = 0; s < sites_.size(); ++s) {
      if (BitWidth(sites_[s].tensor.storage) != 8) continue;
      const auto spec = spec_of_.find(sites_[s].value->name());
      if (spec == spec_of_.end()) ThrowInternal("a tensor was not calibrated", sites_[s].value->name());
      probes.push_back({spec->second, {sites_[s].tensor.params, sites_[s].tensor.storage}, local[s]});
      which.push_back(s);
    }
    ProbeOptions options;
    options.max_runs = static_cast<int>(std::min(runs, 100000.0));
    options.allowance = select.target;
    options.threads = threads_;
    Probe probe(*calibration_, probes, statistics_.kept, options);
    const ProbeResult measured = probe.Run();
    if (measured.groups == 0) {
      if (statistics_.kept.empty() && !probes.empty()) {
        LogWarning(
            "no calibration sample is small enough to be kept (16 MiB): what stays in float was chosen from each "
            "tensor's "
            "own rounding noise, not from what it does to the outputs");
      }
      weigh();
      return SelectFloatNodes(nodes, sites, select);
    }
    char text[160];
    std::snprintf(text, sizeof text, "sensitivity: %zu tensors in %d groups, %d runs, %.2f dB with all of them rounded",
                  which.size(), measured.groups, measured.runs, -10 * std::log10(std::max(measured.all, 1e-30)));
    LogDebug(text);
    for (std::size_t i = 0; i < which.size(); ++i) sites[which[i]].noise = measured.noise[i];
    // Within a group the noise was shared out by guess, and a selection takes the guesses at their word: what it leaves
    // is measured.
    for (int check = 0;; ++check) {
      weigh();
      Selection selection = SelectFloatNodes(nodes, sites, select);
      std::vector<bool> left(which.size());
      double predicted = 0;
      for (std::size_t i = 0; i < which.size(); ++i) {
        for (std::size_t n = 0; n < nodes.size() && !left[i]; ++n) {
          const auto site = static_cast<int>(which[i]);
          left[i] = selection.choice[n] == Selection::Choice::kInteger &&
                    (nodes[n].x_site == site || nodes[n].y_site == site);
        }
        if (left[i]) predicted += sites[which[i]].noise;
      }
      // A model with few runs to spend has one check.
      const bool enough = check == kMostChecks || (check > 0 && measured.runs + check > options.max_runs);
      if (enough || predicted <= 0) return selection;
      const double found = probe.Noise(left);
      std::snprintf(text, sizeof text, "sensitivity: %.2f dB left, %.2f dB predicted",
                    -10 * std::log10(std::max(found, 1e-30)), -10 * std::log10(predicted));
      LogDebug(text);
      double all = 0;
      for (const std::size_t s : which) all += sites[s].noise;
      const std::optional<NoiseCorrection> correction = CorrectionOf(found, predicted, all, select.target);
      if (!correction) return selection;
      for (std::size_t i = 0; i < which.size(); ++i) {
        sites[which[i]].noise *= left[i] ? correction->left : correction->others;
      }
    }
  }

  void Apply() {
    std::unordered_set<const Value*> integer_outputs;
    double macs = 0, integer_macs = 0;
    for (std::size_t i = 0; i < work_.size(); ++i) {
      macs += work_[i].macs;
      if (!work_[i].keep_float.empty()) {
        if (work_[i].stored) {
          work_[i].keep_float +=
              StoredType() == DType::kS8 ? "; its weights are stored in 8 bits" : "; its weights are stored in 16 bits";
        }
        result_.nodes_skipped.push_back(
            {NodeName(*placement_.nodes[i].node), placement_.nodes[i].node->op(), work_[i].keep_float});
        continue;
      }
      integer_macs += work_[i].macs;
      if (placement_.nodes[i].y != nullptr) integer_outputs.insert(placement_.nodes[i].y);
    }
    result_.integer_mac_share = macs > 0 ? integer_macs / macs : 0;
    ParallelFor(work_.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      Work& w = work_[i];
      const PlacedNode& p = placement_.nodes[i];
      if (!w.keep_float.empty() || w.weight.codes.size() > 0) return;
      w.weight = QuantizeWeightWith(*p.weight->data, p.channel_axis, OptionsOf(*p.weight), std::move(w.weight.params));
      DropPages(*p.weight);
    });
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
    std::vector<StoredWeight> stored = StoredWeights();
    if (!stored.empty()) {
      result_.effective_weights +=
          "; " + std::string(Name(StoredType())) + " per channel, symmetric where a float node reads them";
    }
    ApplyPlan(model_, plan, stored);
    const std::vector<std::string> tables = StoreTables(model_, tables_);
    if (!tables.empty()) result_.effective_weights += "; tables s8 with a scale a row";
    for (const std::string& name : tables) {
      result_.nodes_skipped.push_back({name, "Gather", "its table is stored in 8 bits, its rows are read as floats"});
    }
    StoreRecurrent();
    model_.graph->EraseDead();
    RaiseOpsetForQuantization(model_);
  }

  // Whether there were any.
  bool StoreRecurrent() {
    const std::vector<const Node*> stored = StoreRecurrentWeights(model_, config_, StoredType(), kFaithful, threads_);
    const std::string bits = StoredType() == DType::kS8 ? "8" : "16";
    for (const Node* node : stored) {
      result_.nodes_skipped.push_back(
          {NodeName(*node), node->op(), "it computes in float; its weights are stored in " + bits + " bits"});
    }
    if (!stored.empty()) {
      result_.effective_weights += "; " + std::string(Name(StoredType())) + " of recurrent operators, a scale a row";
    }
    return !stored.empty();
  }

  void FindStoredTables() {
    if (!stores_tables_) return;
    const SelectOptions options;
    const auto encode = [&](const TensorRef& table) {
      std::optional<EncodedTable> encoded = early_ == nullptr ? std::nullopt : early_->TakeTable(table);
      return encoded ? *std::move(encoded) : EncodeTable(table, threads_);
    };
    tables_ = FindTables(model_, options.stored_share * options.target, encode, [&](const Value& table) {
      if (OverrideOf(config_, table.name()) == DType::kF32) return false;
      return std::all_of(table.uses().begin(), table.uses().end(),
                         [&](const Use& use) { return KeptByUser(*use.node, config_).empty(); });
    });
  }

  // Weights of nodes that compute in float, stored as symmetric codes with a scale a channel.
  std::vector<StoredWeight> StoredWeights() const {
    std::vector<StoredWeight> stored;
    for (std::size_t i = 0; i < work_.size(); ++i) {
      if (work_[i].keep_float.empty() || !work_[i].stored) continue;
      const PlacedNode& p = placement_.nodes[i];
      StoredWeight s;
      s.node = p.node;
      s.input = static_cast<std::size_t>(FindOp(*p.node).weight_input);
      s.axis = p.channel_axis;
      stored.push_back(std::move(s));
    }
    ParallelFor(stored.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      StoredWeight& s = stored[i];
      s.weight = QuantizeWeight(*s.node->input(s.input)->data, s.axis,
                                {.storage = StoredType(), .per_channel = true, .symmetric = true});
    });
    return stored;
  }

  Model& model_;
  const QuantizationConfig& config_;
  const DeviceDescriptor& device_;
  ResolvedPrecision precision_;  // while nodes are selected, the 8-bit one that selects them
  const DataSource* data_;
  int threads_;
  StatisticsCache* cache_;
  EarlyWeights* early_;
  QuantizeResult& result_;
  Placement placement_;
  std::optional<Calibration> calibration_;
  std::unordered_map<std::string, std::size_t> spec_of_;  // index among the calibration's, by value
  Statistics statistics_;
  std::vector<Site> sites_;
  std::unordered_map<const Value*, std::size_t> site_of_;
  std::vector<Work> work_;
  std::vector<StoredTable> tables_;
  std::vector<WeightStudy> studies_;  // of the weights of placement_.nodes, where there was time for it
  bool stores_tables_ = false;
  bool prepared_ = false;  // the session was loaded, and weights and tables were looked at meanwhile
};
}  // namespace

void QuantizeStatic(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                    const ResolvedPrecision& precision, const DataSource* data, int threads, StatisticsCache* cache,
                    EarlyWeights* early, QuantizeResult& result) {
  Quantizer(model, config, device, precision, data, threads, cache, early, result).Run();
}

}  // namespace octavo
