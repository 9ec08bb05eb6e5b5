#include "octavo/quantize/quantize_half.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/thread_pool.h"
#include "octavo/calibrate/calibrate.h"
#include "octavo/emit/onnx.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/half_rounding.h"
#include "octavo/quantize/half_search.h"
#include "octavo/quantize/placement.h"
#include "octavo/rewrite/passes.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

// Means need no more: each sample has many positions.
constexpr std::size_t kMostSamples = 16;
// Of these, the worst are those with which nodes are looked for. All are in memory while they are measured.
constexpr std::size_t kMostTried = 2, kMostSampleBytes = std::size_t{64} << 20;
// Of the bytes of large weights: what may stay f32, whatever is promised.
constexpr double kMostFloatWeights = 0.2;
// What is promised, and what the measured samples must have so that others do: 3 dB more.
constexpr double kPromised = 55, kTarget = 58;
// What moving weights to their other neighbours must take away: a dB.
constexpr double kWorthMoving = 1.25;
// Models with more weights are not measured: each time would load all of them.
constexpr std::uint64_t kMostMeasuredBytes = std::uint64_t{1} << 30;

double Noise(double db) { return std::pow(10, -db / 10); }
double Decibel(double noise) { return -10 * std::log10(std::max(noise, 1e-30)); }

// Whether the node reads or writes a tensor of this type.
bool TouchesType(const Node& node, DType type) {
  const auto is = [type](const Value* v) { return v != nullptr && v->type.dtype == type; };
  return std::any_of(node.inputs().begin(), node.inputs().end(), is) ||
         std::any_of(node.outputs().begin(), node.outputs().end(), is);
}

std::uint64_t ConstantBytes(const Graph& graph) {
  std::uint64_t bytes = 0;
  for (const Value* constant : graph.constants()) {
    if (constant->data) bytes += constant->data->bytes.size();
  }
  return bytes;
}

// How much of a node is 16-bit: all of it; its large constants as they are stored; nothing.
enum class Form : std::uint8_t { kHalf, kStored, kFloat };

constexpr const char* kNoisy = "measured: in 16 bits it adds too much noise at the outputs";

class HalfQuantizer {
 public:
  HalfQuantizer(Model& model, const QuantizationConfig& config, DType half, const DataSource* data, int threads,
                QuantizeResult& result)
      : model_(model), config_(config), half_(half), data_(data), threads_(threads), result_(result) {
    std::size_t count = 0;
    for (const Node* node = model.graph->first(); node != nullptr; node = node->next()) ++count;
    forms_.assign(count, Form::kHalf);
  }

  void Run() {
    if (half_ == DType::kF16 && data_ != nullptr && data_->size() > 0) {
      Observe();
      Measure();
    }
    const Clock::time_point start = Clock::now();
    HalfResult converted = Convert(model_, forms_);
    rounded_.clear();
    result_.insertion_seconds = Seconds(start);
    Report(std::move(converted));
  }

 private:
  using Outputs = std::vector<std::vector<float>>;

  std::size_t Samples() const {
    return std::min({data_->size(), static_cast<std::size_t>(config_.samples), kMostSamples});
  }

  void Observe() {
    const std::vector<ObserveSpec> specs = HalfRounder::Specs(model_);
    if (specs.empty()) return;
    const Clock::time_point start = Clock::now();
    CalibrateOptions options;
    options.threads = threads_;
    options.method = MethodName(config_.calibration);
    const Statistics statistics = Calibrate(model_, *data_, 0, Samples(), specs, options);
    rounder_.emplace(model_, statistics, threads_);
    result_.calibration_seconds = Seconds(start);
    result_.calibration_source = "data";
    result_.calibration_samples = static_cast<std::int64_t>(statistics.samples.size());
  }

  HalfResult Convert(Model& model, const std::vector<Form>& forms) {
    std::unordered_map<const Node*, std::size_t> index;
    for (const Node* node = model.graph->first(); node != nullptr; node = node->next()) {
      index.emplace(node, index.size());
    }
    const auto form = [&](const Node& node) {
      const auto at = index.find(&node);
      return at == index.end() ? Form::kHalf : forms[at->second];
    };
    HalfOptions options;
    options.keep = [&](const Node& node) {
      std::string reason = KeptByUser(node, config_);
      if (reason.empty() && form(node) == Form::kFloat) {
        reason = std::string(kNoisy) + ", and so do its weights";
      }
      return reason;
    };
    options.store = [&](const Node& node) { return form(node) == Form::kStored ? kNoisy : std::string(); };
    if (rounder_) {
      options.round = [&](const Value& constant, std::span<const float> values, std::span<std::uint16_t> halves) {
        const auto uses = constant.uses();
        const bool stored = uses.size() == 1 && form(*uses[0].node) == Form::kStored;
        auto& known = rounded_[{constant.name(), stored}];
        if (known.size() != halves.size()) {
          rounder_->Round(constant, values, halves, stored);
          if (searches_) known.assign(halves.begin(), halves.end());
        } else {
          std::copy(known.begin(), known.end(), halves.begin());
        }
      };
    }
    options.types_known = types_known_;
    return ConvertToHalf(model, half_, options);
  }

  std::vector<Outputs> RunAll(const Model& model) const {
    OnnxSkeleton skeleton = SerializeSkeleton(model);
    SessionOptions options;
    options.intra_op_threads = 1;  // samples run in parallel: results do not depend on the number of threads
    options.memory_pattern = false;
    options.run_arenas = true;
    const Session session(skeleton.bytes, std::move(skeleton.externals), options);
    const std::vector<std::string> wanted = session.TensorOutputs();
    std::vector<Outputs> all(samples_.size());
    ParallelFor(samples_.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      for (const TensorRef& tensor : session.Run(samples_[i].tensors, wanted)) {
        if (tensor.dtype == DType::kF32) all[i].push_back(tensor.ToFloats());
      }
    });
    return all;
  }

  // Noise over signal of the worst output, and the noise of each sample (over the signal of all, of its worst output).
  double NoiseOf(const Model& model, std::vector<double>* of_samples = nullptr) const {
    const std::vector<Outputs> got = RunAll(model);
    if (of_samples != nullptr) of_samples->assign(got.size(), 0.0);
    double worst = 0;
    for (std::size_t o = 0; o < reference_[0].size(); ++o) {
      ErrorStats all;
      std::vector<double> noise(got.size());
      for (std::size_t i = 0; i < got.size(); ++i) {
        ErrorStats stats;
        if (o < got[i].size() && got[i][o].size() == reference_[i][o].size()) stats.Add(reference_[i][o], got[i][o]);
        noise[i] = stats.noise;
        all.Merge(stats);
      }
      if (all.non_finite > 0) return 1;
      if (!(all.signal > 0)) continue;
      worst = std::max(worst, all.noise / all.signal);
      for (std::size_t i = 0; of_samples != nullptr && i < got.size(); ++i) {
        (*of_samples)[i] = std::max((*of_samples)[i], noise[i] / all.signal);
      }
    }
    return worst;
  }

  double Try(const std::vector<Form>& forms) {
    Model trial = Clone(model_);
    Convert(trial, forms);
    return NoiseOf(trial) * scale_;
  }

  // Whether it computes in 16 bits where every node may, for each node; and the bytes of its large constants.
  void FindItems(const Model& converted, const std::unordered_map<const Node*, std::size_t>& index) {
    for (const Node* node = converted.graph->first(); node != nullptr; node = node->next()) {
      const auto at = index.find(node);
      if (at == index.end() || node->Is("Cast") || !TouchesType(*node, half_)) continue;
      items_.push_back(at->second);
      double bytes = 0;
      for (const Value* input : node->inputs()) {
        if (input != nullptr && input->is_constant() && input->data && input->data->elements() > 4096) {
          bytes += static_cast<double>(input->data->bytes.size());
        }
      }
      if (bytes > 0) {
        weights_.push_back(at->second);
        weight_bytes_.push_back(bytes);
      }
    }
  }

  void Measure() {
    const std::uint64_t bytes = ConstantBytes(*model_.graph);
    if (bytes > kMostMeasuredBytes) {
      LogInfo("the model is too big to be measured in 16 bits while it is converted");
      return;
    }
    const std::size_t count = Samples();
    std::size_t sample_bytes = 0;
    for (std::size_t i = 0; i < count && sample_bytes < kMostSampleBytes; ++i) {
      samples_.push_back(data_->Read(i));
      for (const TensorRef& tensor : samples_.back().tensors) sample_bytes += tensor.bytes.size();
    }
    reference_ = RunAll(model_);
    if (reference_.empty() || reference_[0].empty()) return;
    double noise = 0;
    std::vector<double> of_samples;
    InferTypes(model_);
    types_known_ = true;
    {
      Model trial = Clone(model_);
      std::unordered_map<const Node*, std::size_t> index;
      for (const Node* node = trial.graph->first(); node != nullptr; node = node->next()) {
        index.emplace(node, index.size());
      }
      searches_ = true;
      Convert(trial, forms_);
      FindItems(trial, index);
      noise = NoiseOf(trial, &of_samples);
    }
    // Where no shift stands out, roundings to nearest are as good, and owe nothing to these samples.
    if (rounder_) {
      std::optional<HalfRounder> rounder = std::exchange(rounder_, std::nullopt);
      Model trial = Clone(model_);
      Convert(trial, forms_);
      std::vector<double> nearest_of_samples;
      const double nearest = NoiseOf(trial, &nearest_of_samples);
      if (nearest < kWorthMoving * noise) {
        noise = nearest;
        of_samples = std::move(nearest_of_samples);
        rounded_.clear();
      } else {
        rounder_ = std::move(rounder);
      }
    }
    if (noise > Noise(kTarget) && !items_.empty()) noise = Search(noise, of_samples, bytes);
    result_.predicted_sqnr_db = noise > 0 ? Decibel(noise) : 0;
    if (noise > Noise(kPromised)) {
      char text[160];
      std::snprintf(text, sizeof text, "16-bit floats leave %.1f dB of this model's outputs, less than %.0f",
                    Decibel(noise), kPromised);
      LogWarning(text);
    }
    ::malloc_trim(0);
  }

  // A few samples decide a pooled noise: the others are taken to follow them.
  void KeepWorst(const std::vector<double>& of_samples) {
    std::vector<std::size_t> order(of_samples.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return of_samples[a] > of_samples[b]; });
    order.resize(std::min(order.size(), kMostTried));
    std::vector<Sample> samples;
    std::vector<Outputs> reference;
    for (const std::size_t i : order) {
      samples.push_back(std::move(samples_[i]));
      reference.push_back(std::move(reference_[i]));
    }
    samples_ = std::move(samples);
    reference_ = std::move(reference);
  }

  // Finds the nodes that compute in f32, and of these the weights that stay f32. Returns the noise that is left.
  double Search(double all, const std::vector<double>& of_samples, std::uint64_t bytes) {
    KeepWorst(of_samples);
    scale_ = all / std::max(Try(forms_), 1e-30);
    const int budget = static_cast<int>(std::clamp<std::uint64_t>((std::uint64_t{2} << 30) / (bytes + 1), 16, 48));
    const double target = Noise(kTarget);
    const auto with = [&](const std::vector<std::size_t>& which, const std::vector<bool>& noisy, Form quiet,
                          std::vector<Form> forms) {
      for (std::size_t i = 0; i < which.size(); ++i) {
        if (!noisy[i]) forms[which[i]] = quiet;
      }
      return forms;
    };
    int spent = 1;
    // Weights first: what they do does not change with what computes in 16 bits.
    const std::vector<Form> stored = with(items_, std::vector<bool>(items_.size(), false), Form::kStored, forms_);
    const double base = Try(stored);
    ++spent;
    if (base > target / 2 && !weights_.empty()) {
      NoisySearch search;
      search.measure = [&](const std::vector<bool>& noisy) { return Try(with(weights_, noisy, Form::kFloat, stored)); };
      search.target = target / 2;
      search.budget = budget / 2;
      search.most = kMostFloatWeights * std::accumulate(weight_bytes_.begin(), weight_bytes_.end(), 0.0);
      const NoisyChoice choice = ChooseNoisy(weight_bytes_, search);
      spent += choice.measured;
      forms_ = with(weights_, choice.noisy, Form::kFloat, forms_);
    }
    std::vector<std::size_t> left;
    for (const std::size_t item : items_) {
      if (forms_[item] == Form::kHalf) left.push_back(item);
    }
    const std::vector<Form> before = forms_;
    NoisySearch search;
    search.measure = [&](const std::vector<bool>& noisy) { return Try(with(left, noisy, Form::kStored, before)); };
    search.target = target;
    search.budget = budget - std::min(spent, budget / 2);
    search.most = static_cast<double>(left.size());
    const NoisyChoice choice = ChooseNoisy(std::vector<double>(left.size(), 1), search);
    spent += choice.measured;
    forms_ = with(left, choice.noisy, Form::kStored, before);
    std::size_t computes = 0, stays = 0;
    for (const Form form : forms_) {
      computes += form == Form::kStored ? 1 : 0;
      stays += form == Form::kFloat ? 1 : 0;
    }
    char text[256];
    std::snprintf(text, sizeof text,
                  "16-bit floats left %.1f dB of the outputs; %zu nodes compute in f32 for that, %zu of them with f32 "
                  "weights: %.1f dB (%d trials)",
                  Decibel(all), computes + stays, stays, Decibel(choice.noise), spent);
    LogInfo(text);
    return choice.noise;
  }

  void Report(HalfResult converted) {
    result_.fp16_overflows = converted.overflows;
    for (KeptNode& kept : converted.kept_float) {
      result_.nodes_skipped.push_back({std::move(kept.node), std::move(kept.op), std::move(kept.reason)});
    }
    VisitNodes(*static_cast<const Graph*>(model_.graph.get()), [&](const Node& node) {
      if (node.graph() != model_.graph.get()) {
        if (FindOp(node).category != OpCategory::kShape && !node.Is("Constant")) {
          result_.nodes_skipped.push_back(
              {NodeName(node), node.op(), "it stands in a subgraph, which computes in f32"});
        }
      } else if (!node.Is("Cast") && TouchesType(node, half_)) {
        ++result_.nodes_quantized;
      }
    });
    if (converted.overflows > 0) {
      LogWarning(std::to_string(converted.overflows) + " weights are beyond the range of " + std::string(Name(half_)) +
                 " and were clamped");
    }
  }

  Model& model_;
  const QuantizationConfig& config_;
  DType half_;
  const DataSource* data_;
  int threads_;
  QuantizeResult& result_;
  std::vector<Form> forms_;  // of the main graph's nodes, in their order
  std::optional<HalfRounder> rounder_;
  bool searches_ = false, types_known_ = false;
  std::map<std::pair<std::string, bool>, std::vector<std::uint16_t>> rounded_;  // by weight and whether it is stored
  std::vector<Sample> samples_;
  std::vector<Outputs> reference_;
  double scale_ = 1;                          // from the noise of the samples that are tried to that of all
  std::vector<std::size_t> items_, weights_;  // nodes that compute in 16 bits; those of them with large constants
  std::vector<double> weight_bytes_;
};

}  // namespace

void QuantizeHalf(Model& model, const QuantizationConfig& config, DType half, const DataSource* data, int threads,
                  QuantizeResult& result) {
  CheckSelectors(model, config);
  VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node&) { ++result.nodes_total; });
  HalfQuantizer(model, config, half, data, threads > 0 ? threads : HardwareThreads(), result).Run();
}

}  // namespace octavo
