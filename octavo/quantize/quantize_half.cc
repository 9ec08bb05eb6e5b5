#include "octavo/quantize/quantize_half.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
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

// Means need no more: each sample has many positions. All are in memory while they are measured.
constexpr std::size_t kMostSamples = 16;
constexpr std::size_t kFewSamples = 4;
// Of these, the worst are those with which nodes are looked for; where the others then turn out to be worse, some more.
constexpr int kMostRounds = 2;
constexpr std::size_t kMostTried = 2, kMostSampleBytes = std::size_t{64} << 20;
// Of the bytes of large weights: what may stay f32, whatever is promised.
constexpr double kMostFloatWeights = 0.2;
// What is promised, and what the measured samples must have so that others do: 3 dB more.
constexpr double kPromised = 55, kTarget = 58;
// Weights stay rounded to nearest where that leaves so much; where few samples have it, the others are not looked at.
constexpr double kEnough = 65;
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

// Whether the node reads a constant of 16 bits behind a Cast.
bool ReadsStored(const Node& node) {
  return std::any_of(node.inputs().begin(), node.inputs().end(), [](const Value* v) {
    const Node* cast = v == nullptr ? nullptr : v->producer();
    return cast != nullptr && cast->Is("Cast") && cast->input(0) != nullptr && cast->input(0)->is_constant();
  });
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
  HalfQuantizer(Model& model, const QuantizationConfig& config, DType half, const DeviceDescriptor& device,
                const DataSource* data, int threads, QuantizeResult& result)
      : model_(model), config_(config), half_(half), device_(device), data_(data), threads_(threads), result_(result) {
    std::size_t count = 0;
    for (const Node* node = model.graph->first(); node != nullptr; node = node->next()) ++count;
    forms_.assign(count, Form::kHalf);
  }

  void Run() {
    if (half_ == DType::kF16 && data_ != nullptr && data_->size() > 0) {
      const Clock::time_point begin = Clock::now();
      Measure();
      result_.calibration_seconds = Seconds(begin);
    }
    const Clock::time_point start = Clock::now();
    HalfResult converted = Convert(model_, forms_);
    rounded_.clear();
    result_.insertion_seconds = Seconds(start);
    Report(std::move(converted));
  }

 private:
  using Outputs = std::vector<std::vector<float>>;
  struct Measured {
    double noise = 0;                // over the signal of the worst output
    std::vector<double> of_samples;  // over the signal of all, of the sample's worst output
  };

  // Roundings that keep the layers' means, where that takes away enough of what is measured.
  void RoundTowardsMeans(std::span<const std::size_t> all, Measured& measured) {
    const std::vector<ObserveSpec> specs = HalfRounder::Specs(model_);
    if (specs.empty()) return;
    CalibrateOptions options;
    options.threads = threads_;
    options.method = MethodName(config_.calibration);
    rounder_.emplace(model_, Calibrate(model_, *data_, 0, samples_.size(), specs, options), threads_);
    Measured rounded = Try(forms_, all);
    if (measured.noise < kWorthMoving * rounded.noise) {
      rounder_.reset();
      rounded_.clear();
    } else {
      measured = std::move(rounded);
    }
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

  // The outputs of these samples.
  std::vector<Outputs> RunAll(const Model& model, std::span<const std::size_t> which) const {
    OnnxSkeleton skeleton = SerializeSkeleton(model);
    SessionOptions options;
    options.intra_op_threads = 1;  // samples run in parallel: results do not depend on the number of threads
    options.memory_pattern = false;
    options.run_arenas = true;
    options.disable_prepacking = true;  // a copy more of every weight
    const Session session(skeleton.bytes, std::move(skeleton.externals), options);
    const std::vector<std::string> wanted = session.TensorOutputs();
    std::vector<Outputs> all(which.size());
    ParallelFor(which.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      const Sample& sample = samples_[which[i]];
      try {
        for (const TensorRef& tensor : session.Run(sample.tensors, wanted)) {
          if (tensor.dtype == DType::kF32) all[i].push_back(tensor.ToFloats());
        }
      } catch (const Error& e) {
        if (e.code() != ExitCode::kBadInput) throw;
        throw Error(e.code(), e.reason(), "sample " + sample.name + ": " + e.where(), e.how());
      }
    });
    return all;
  }

  Measured NoiseOf(const Model& model, std::span<const std::size_t> which) const {
    const std::vector<Outputs> got = RunAll(model, which);
    Measured result;
    result.of_samples.assign(which.size(), 0.0);
    for (std::size_t o = 0; o < reference_[0].size(); ++o) {
      ErrorStats all;
      std::vector<double> noise(which.size());
      for (std::size_t i = 0; i < which.size(); ++i) {
        const std::vector<float>& reference = reference_[which[i]][o];
        ErrorStats stats;
        if (o < got[i].size() && got[i][o].size() == reference.size()) stats.Add(reference, got[i][o]);
        noise[i] = stats.non_finite > 0 ? std::numeric_limits<double>::infinity() : stats.noise;
        all.Merge(stats);
      }
      if (!(all.signal > 0)) continue;
      result.noise = std::max(result.noise, all.non_finite > 0 ? 1.0 : all.noise / all.signal);
      for (std::size_t i = 0; i < which.size(); ++i) {
        result.of_samples[i] = std::max(result.of_samples[i], noise[i] / all.signal);
      }
    }
    return result;
  }

  Measured Try(const std::vector<Form>& forms, std::span<const std::size_t> which) {
    Model trial = Clone(model_);
    Convert(trial, forms);
    return NoiseOf(trial, which);
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
      LogInfo("the model is too big to be measured: weights are rounded to nearest");
      return;
    }
    const std::size_t count = std::min({data_->size(), static_cast<std::size_t>(config_.samples), kMostSamples});
    std::size_t sample_bytes = 0;
    for (std::size_t i = 0; i < count && sample_bytes < kMostSampleBytes; ++i) {
      samples_.push_back(data_->Read(i));
      for (const TensorRef& tensor : samples_.back().tensors) sample_bytes += tensor.bytes.size();
    }
    result_.calibration_source = "data";
    result_.calibration_samples = static_cast<std::int64_t>(samples_.size());
    std::vector<std::size_t> all(samples_.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    const std::size_t few = std::min(all.size(), kFewSamples);
    InferTypes(model_);
    types_known_ = true;
    reference_ = RunAll(model_, std::span(all).first(few));
    if (reference_.empty() || reference_[0].empty()) return;
    Measured measured;
    bool enough = false;
    {
      Model trial = Clone(model_);
      std::unordered_map<const Node*, std::size_t> index;
      for (const Node* node = trial.graph->first(); node != nullptr; node = node->next()) {
        index.emplace(node, index.size());
      }
      Convert(trial, forms_);
      FindItems(trial, index);
      measured = NoiseOf(trial, std::span(all).first(few));
      enough = measured.noise <= Noise(kEnough);
      if (enough) {
        result_.calibration_samples = static_cast<std::int64_t>(few);
      } else if (few < all.size()) {
        for (Outputs& outputs : RunAll(model_, std::span(all).subspan(few))) reference_.push_back(std::move(outputs));
        measured = NoiseOf(trial, all);
      }
    }
    if (!enough) Improve(all, bytes, measured);
    result_.predicted_sqnr_db = measured.noise > 0 ? Decibel(measured.noise) : 0;
    if (measured.noise > Noise(kPromised)) {
      char text[160];
      std::snprintf(text, sizeof text, "16-bit floats leave %.1f dB of this model's outputs, less than %.0f",
                    Decibel(measured.noise), kPromised);
      LogWarning(text);
    }
    ::malloc_trim(0);
  }

  // Chooses roundings and forms; `measured` is what all samples say.
  void Improve(std::span<const std::size_t> all, std::uint64_t bytes, Measured& measured) {
    searches_ = true;
    if (measured.noise > Noise(kEnough)) RoundTowardsMeans(all, measured);
    const double before = measured.noise;
    std::vector<std::size_t> tried;
    int spent = 0;
    const int rounds = device_.whole_graph || items_.empty() ? 0 : kMostRounds;
    for (int round = 0; round < rounds && measured.noise > Noise(kTarget); ++round) {
      // A few samples decide a pooled noise: the others are taken to follow them, until they are measured again.
      if (!AddWorst(measured.of_samples, tried)) break;
      forms_ = Search(before, tried, bytes, spent);
      measured = Try(forms_, all);
    }
    if (spent > 0) SayWhatComputesInFloat(before, measured.noise, spent);
  }

  // The samples with most noise that were not tried yet; false if there are none.
  static bool AddWorst(const std::vector<double>& of_samples, std::vector<std::size_t>& tried) {
    std::vector<std::size_t> order(of_samples.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::erase_if(order, [&](std::size_t i) { return std::find(tried.begin(), tried.end(), i) != tried.end(); });
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return of_samples[a] > of_samples[b]; });
    order.resize(std::min(order.size(), kMostTried));
    tried.insert(tried.end(), order.begin(), order.end());
    return !order.empty();
  }

  // `forms`, but what is not noisy has the form `quiet`.
  static std::vector<Form> With(const std::vector<std::size_t>& which, const std::vector<bool>& noisy, Form quiet,
                                std::vector<Form> forms) {
    for (std::size_t i = 0; i < which.size(); ++i) {
      if (!noisy[i]) forms[which[i]] = quiet;
    }
    return forms;
  }

  // Finds the nodes that compute in f32, and of these the weights that stay f32. `before` is the noise of all samples
  // while everything is 16-bit. What cannot be reached is not pursued: twice the least noise is then enough.
  std::vector<Form> Search(double before, const std::vector<std::size_t>& tried, std::uint64_t bytes, int& spent) {
    const int budget = static_cast<int>(std::clamp<std::uint64_t>((std::uint64_t{2} << 30) / (bytes + 1), 16, 48));
    const int begin = spent;
    const std::vector<Form> half(forms_.size(), Form::kHalf);
    const double scale = before / std::max(Try(half, tried).noise, 1e-30);
    const auto noise = [&](const std::vector<Form>& forms) {
      ++spent;
      return Try(forms, tried).noise * scale;
    };
    // Weights first: what they do does not change with what computes in 16 bits.
    const std::vector<Form> stored = With(items_, std::vector<bool>(items_.size(), false), Form::kStored, half);
    double base = noise(stored);
    std::vector<Form> forms = half;
    if (base > Noise(kTarget) / 2 && !weights_.empty()) {
      NoisySearch search;
      search.measure = [&](const std::vector<bool>& noisy) {
        return noise(With(weights_, noisy, Form::kFloat, stored));
      };
      search.target = Noise(kTarget) / 2;
      search.budget = budget / 2;
      search.most = kMostFloatWeights * std::accumulate(weight_bytes_.begin(), weight_bytes_.end(), 0.0);
      const NoisyChoice choice = ChooseNoisy(weight_bytes_, search);
      forms = With(weights_, choice.noisy, Form::kFloat, half);
      base = choice.noise;
    }
    std::vector<std::size_t> left;
    for (const std::size_t item : items_) {
      if (forms[item] == Form::kHalf) left.push_back(item);
    }
    NoisySearch search;
    search.measure = [&](const std::vector<bool>& noisy) { return noise(With(left, noisy, Form::kStored, forms)); };
    search.target = std::max(Noise(kTarget), 2 * base);
    search.budget = std::max(budget - (spent - begin), budget / 2);
    search.most = static_cast<double>(left.size());
    const NoisyChoice choice = ChooseNoisy(std::vector<double>(left.size(), 1), search);
    return With(left, choice.noisy, Form::kStored, forms);
  }

  void SayWhatComputesInFloat(double before, double after, int spent) const {
    std::size_t computes = 0, stays = 0;
    for (const Form form : forms_) {
      computes += form != Form::kHalf ? 1 : 0;
      stays += form == Form::kFloat ? 1 : 0;
    }
    char text[256];
    std::snprintf(text, sizeof text,
                  "16-bit floats left %.1f dB of the outputs; %zu nodes compute in f32 for that, %zu of them with f32 "
                  "weights: %.1f dB (%d trials)",
                  Decibel(before), computes, stays, Decibel(after), spent);
    LogInfo(text);
  }

  void Report(HalfResult converted) {
    result_.fp16_overflows = converted.overflows;
    for (KeptNode& kept : converted.kept_float) {
      result_.nodes_skipped.push_back({std::move(kept.node), std::move(kept.op), std::move(kept.reason)});
    }
    VisitNodes(*static_cast<const Graph*>(model_.graph.get()), [&](const Node& node) {
      if (node.graph() != model_.graph.get()) {
        if (ReadsStored(node)) ++result_.nodes_quantized;
        if (FindOp(node).category != OpCategory::kShape && !node.Is("Constant")) {
          result_.nodes_skipped.push_back(
              {NodeName(node), node.op(), "it stands in a subgraph, which computes in f32"});
        }
      } else if (!node.Is("Cast") && (TouchesType(node, half_) || ReadsStored(node))) {
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
  const DeviceDescriptor& device_;
  const DataSource* data_;
  int threads_;
  QuantizeResult& result_;
  std::vector<Form> forms_;  // of the main graph's nodes, in their order
  std::optional<HalfRounder> rounder_;
  bool searches_ = false, types_known_ = false;
  std::map<std::pair<std::string, bool>, std::vector<std::uint16_t>> rounded_;  // by weight and whether it is stored
  std::vector<Sample> samples_;
  std::vector<Outputs> reference_;
  std::vector<std::size_t> items_, weights_;  // nodes that compute in 16 bits; those of them with large constants
  std::vector<double> weight_bytes_;
};

}  // namespace

void QuantizeHalf(Model& model, const QuantizationConfig& config, DType half, const DeviceDescriptor& device,
                  const DataSource* data, int threads, QuantizeResult& result) {
  CheckSelectors(model, config);
  VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node&) { ++result.nodes_total; });
  HalfQuantizer(model, config, half, device, data, threads > 0 ? threads : HardwareThreads(), result).Run();
}

}  // namespace octavo
