#include "octavo/build/circle_select.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/build/load_check.h"
#include "octavo/emit/onnx.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

constexpr int kSelectionRuns = 32;
constexpr std::size_t kFirstGroups = 8;
constexpr std::size_t kMostSamples = 16, kKeptForRuns = 4;
constexpr int kMostChecks = 6;

// Without optimizations, as the law runs it.
Session SessionOf(const Model& model, int threads) { return OpenModel(model, GraphOptimization::kNone, threads); }

bool Has8Bits(const Value* v) {
  return v != nullptr && v->type.quant && v->type.quant->kind == QuantType::Kind::kAffine &&
         BitWidth(v->type.quant->affine.storage) == 8;
}

class Selector {
 public:
  Selector(const Model& model, const Model& reference, const DataSource& data, std::size_t samples, int threads,
           const std::function<void(Model&, const std::unordered_set<const Value*>&)>& to_float)
      : model_(model), threads_(threads), to_float_(to_float) {
    FindGroups();
    if (groups_.empty()) return;
    const Session session = SessionOf(reference, threads);
    wanted_ = session.TensorOutputs();
    samples = std::min(samples, data.size());
    const std::size_t count = std::min(samples, kMostSamples);
    for (std::size_t i = 0; i < count; ++i) {
      inputs_.push_back(data.Read(i * samples / count).tensors);
      expected_.push_back(session.Run(inputs_.back(), wanted_));
      for (std::size_t o = 0; o < wanted_.size(); ++o) {
        ErrorStats stats;
        if (expected_.back()[o].dtype == DType::kF32)
          stats.Add(expected_.back()[o].ToFloats(), expected_.back()[o].ToFloats());
        signal_.resize(wanted_.size());
        signal_[o] += stats.signal;
      }
    }
  }

  CircleSelection Run(double target) {
    CircleSelection result;
    result.tensors = groups_.size();
    if (groups_.empty() || inputs_.empty()) return result;
    std::vector<bool> all(groups_.size(), true), none(groups_.size(), false);
    std::vector<double> by_sample;
    double left = Noise(all, &by_sample);
    result.before_db = result.after_db = Db(left);
    if (left <= target) return result;
    KeepNoisy(by_sample);
    left = Noise(all);
    const double base = Noise(none);  // of the weights
    if (base >= left) return result;
    std::vector<Range> ranges;
    const std::size_t first = std::min(kFirstGroups, groups_.size());
    for (std::size_t i = 0; i < first; ++i) {
      ranges.push_back(Measure({i * groups_.size() / first, (i + 1) * groups_.size() / first, 0}, base));
    }
    while (runs_ + 1 < kSelectionRuns) {
      const auto worst = std::max_element(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
        return (a.size() > 1 ? a.noise : -1) < (b.size() > 1 ? b.noise : -1);
      });
      if (worst->size() < 2 || worst->noise <= 0.05 * target) break;
      const std::size_t middle = worst->begin + worst->size() / 2;
      const Range low = Measure({worst->begin, middle, 0}, base), high = Measure({middle, worst->end, 0}, base);
      *worst = low;
      ranges.push_back(high);
    }
    // Most noise a tensor first; what is left is measured, because roundings behind one another do not quite add up.
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
      return std::make_pair(-a.Each(), a.begin) < std::make_pair(-b.Each(), b.begin);
    });
    double predicted = base;
    for (const Range& r : ranges) predicted += r.noise;
    std::vector<bool> kept = all;
    std::size_t next = 0;
    double goal = target;
    for (int check = 0; check < kMostChecks && next < ranges.size(); ++check) {
      do {
        const Range& r = ranges[next++];
        std::fill(kept.begin() + static_cast<std::ptrdiff_t>(r.begin),
                  kept.begin() + static_cast<std::ptrdiff_t>(r.end), false);
        predicted -= r.noise;
      } while (next < ranges.size() && predicted > goal);
      left = Noise(kept);
      if (left <= target) break;
      goal *= 0.6;  // more was left than the sum says
    }
    if (left >= Inverse(result.before_db)) return result;  // nothing helped
    result.after_db = Db(left);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (kept[g]) continue;
      ++result.float_tensors;
      result.floats.insert(groups_[g].begin(), groups_[g].end());
    }
    return result;
  }

 private:
  struct Range {  // of groups
    std::size_t begin = 0, end = 0;
    double noise = 0;
    std::size_t size() const { return end - begin; }
    double Each() const { return noise / static_cast<double>(size()); }
  };

  static double Db(double noise) { return -10 * std::log10(std::max(noise, 1e-30)); }
  static double Inverse(double db) { return std::pow(10.0, -db / 10); }

  // Computed values with 8 bits, in the order of execution; data movement hands on its input's codes.
  void FindGroups() {
    std::unordered_map<const Value*, std::size_t> group_of;
    for (const Node* node = model_.graph->first(); node != nullptr; node = node->next()) {
      for (const Value* v : node->outputs()) {
        if (!Has8Bits(v)) continue;
        const Value* x = node->input(0);
        const auto source = group_of.find(x);
        if (source != group_of.end() && SameParams(*x->type.quant, *v->type.quant)) {
          groups_[source->second].push_back(v);
          group_of[v] = source->second;
        } else {
          group_of[v] = groups_.size();
          groups_.push_back({v});
        }
      }
    }
  }

  Range Measure(Range range, double base) {
    std::vector<bool> rounded(groups_.size(), false);
    std::fill(rounded.begin() + static_cast<std::ptrdiff_t>(range.begin),
              rounded.begin() + static_cast<std::ptrdiff_t>(range.end), true);
    range.noise = std::max(Noise(rounded) - base, 0.0);
    return range;
  }

  // The samples that make most of the noise stand for all: noise is counted on them, the signal on all.
  void KeepNoisy(const std::vector<double>& by_sample) {
    std::vector<std::size_t> order(by_sample.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return by_sample[a] > by_sample[b]; });
    order.resize(std::min(order.size(), kKeptForRuns));
    std::vector<std::vector<TensorRef>> inputs, expected;
    for (const std::size_t i : order) {
      inputs.push_back(std::move(inputs_[i]));
      expected.push_back(std::move(expected_[i]));
    }
    inputs_ = std::move(inputs);
    expected_ = std::move(expected);
  }

  // Noise over signal at the outputs with these groups in 8 bits and the others in float; `by_sample`: what each adds.
  double Noise(const std::vector<bool>& rounded, std::vector<double>* by_sample = nullptr) {
    CheckInterrupt();
    ++runs_;
    std::unordered_set<const Value*> floats;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (!rounded[g]) floats.insert(groups_[g].begin(), groups_[g].end());
    }
    Model copy = Clone(model_);
    std::unordered_set<const Value*> in_copy;
    for (const Value* v : floats) in_copy.insert(copy.graph->FindValue(v->name()));
    to_float_(copy, in_copy);
    LowerToQdq(copy);
    const Session session = SessionOf(copy, threads_);
    const auto outputs =
        static_cast<double>(std::count_if(signal_.begin(), signal_.end(), [](double signal) { return signal > 0; }));
    double noise = 0;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const std::vector<TensorRef> got = session.Run(inputs_[i], wanted_);
      double here = 0;
      for (std::size_t o = 0; o < wanted_.size(); ++o) {
        if (signal_[o] <= 0) continue;
        if (got[o].elements() != expected_[i][o].elements()) ThrowInternal("an output changed its size", wanted_[o]);
        ErrorStats stats;
        stats.Add(expected_[i][o].ToFloats(), got[o].ToFloats());
        here += (stats.non_finite > 0 ? 1 : stats.noise / signal_[o]) / outputs;
      }
      if (by_sample != nullptr) by_sample->push_back(here);
      noise += here;
    }
    return noise;
  }

  const Model& model_;
  int threads_;
  const std::function<void(Model&, const std::unordered_set<const Value*>&)>& to_float_;
  std::vector<std::string> wanted_;
  std::vector<std::vector<TensorRef>> inputs_, expected_;
  std::vector<std::vector<const Value*>> groups_;
  std::vector<double> signal_;  // of all samples, for each output; 0 where it is not float
  int runs_ = 0;
};

}  // namespace

CircleSelection SelectCircleFloats(
    const Model& model, const Model& reference, const DataSource& data, std::size_t samples, double target, int threads,
    const std::function<void(Model&, const std::unordered_set<const Value*>&)>& to_float) {
  return Selector(model, reference, data, samples, threads, to_float).Run(target);
}

}  // namespace octavo
