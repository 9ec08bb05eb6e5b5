#include "octavo/quantize/probe.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "octavo/base/interrupt.h"
#include "octavo/base/thread_pool.h"
#include "octavo/numerics/error_stats.h"

namespace octavo {
namespace {

constexpr std::size_t kMostSamples = 4;
constexpr std::size_t kWave = 4;    // groups split at once, whatever the number of threads
constexpr double kResolved = 0.05;  // a group below this share of all noise is not split

struct Group {
  std::size_t first = 0, count = 0;
  double noise = 0;
};

using Outputs = std::vector<std::vector<float>>;

}  // namespace

class Probe::Impl {
 public:
  Impl(Calibration& calibration, std::span<const ProbeSite> sites, std::span<const KeptSample> samples,
       const ProbeOptions& options)
      : calibration_(calibration), sites_(sites), samples_(samples), options_(options) {
    for (const ProbeSite& site : sites) specs_ = std::max(specs_, site.spec + 1);
  }

  ProbeResult Run() {
    ProbeResult result;
    result.noise.assign(sites_.size(), 0.0);
    if (sites_.empty() || samples_.empty() || options_.max_runs < 2) return result;
    ChooseSamples();
    if (reference_.empty() || reference_[0].empty()) return result;
    std::vector<Group> groups{{0, sites_.size(), all_noise_}};
    if (!all_measured_ || all_noise_ > options_.allowance) groups = Resolve(groups[0]);
    if (all_measured_) {
      result.all = all_noise_;
    } else {
      for (const Group& g : groups) result.all += g.noise;
    }
    for (const Group& g : groups) {
      double prior = 0;
      for (std::size_t i = 0; i < g.count; ++i) prior += sites_[g.first + i].prior;
      for (std::size_t i = g.first; i < g.first + g.count; ++i) {
        const double even = 1.0 / static_cast<double>(g.count);
        result.noise[i] = g.noise * (prior > 0 ? sites_[i].prior / prior : even);
      }
    }
    result.groups = static_cast<int>(groups.size());
    result.runs = runs_;
    return result;
  }

  double Noise(const std::vector<bool>& rounded) const {
    std::vector<std::vector<ErrorStats>> stats(used_.size());
    ParallelFor(stats.size(), options_.threads, [&](std::size_t i) {
      CheckInterrupt();
      stats[i] = Compare(reference_[i], RunOne(*used_[i], rounded));
    });
    return Pooled(stats);
  }

 private:
  // Finds the samples that decide a pooled SQNR: those with the most noise when every site is rounded. Where there are
  // few runs to spend, the first: what all sites do is then the sum of what groups of them do.
  void ChooseSamples() {
    const std::size_t candidates = std::min(samples_.size(), options_.max_runs >= 44  ? kMostSamples
                                                             : options_.max_runs >= 8 ? std::size_t{2}
                                                                                      : std::size_t{1});
    const auto sample = [&](std::size_t c) -> const KeptSample& { return samples_[c * samples_.size() / candidates]; };
    if (candidates == 1) {
      used_.push_back(&sample(0));
      reference_.push_back(calibration_.Reference(sample(0)));
      return;
    }
    std::vector<Outputs> outputs(2 * candidates);
    ParallelFor(outputs.size(), options_.threads, [&](std::size_t i) {
      CheckInterrupt();
      outputs[i] = i % 2 == 0 ? calibration_.Reference(sample(i / 2))
                              : RunOne(sample(i / 2), std::vector<bool>(sites_.size(), true));
    });
    runs_ = static_cast<int>(candidates);
    std::vector<double> noise(candidates);
    std::vector<std::vector<ErrorStats>> stats(candidates);
    for (std::size_t c = 0; c < candidates; ++c) {
      stats[c] = Compare(outputs[2 * c], outputs[2 * c + 1]);
      for (const ErrorStats& s : stats[c]) noise[c] += s.noise;
    }
    std::vector<std::size_t> order(candidates);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return noise[a] > noise[b]; });
    order.resize((candidates + 1) / 2);
    std::vector<std::vector<ErrorStats>> chosen;
    for (const std::size_t c : order) {
      used_.push_back(&sample(c));
      reference_.push_back(std::move(outputs[2 * c]));
      chosen.push_back(std::move(stats[c]));
    }
    all_noise_ = Pooled(chosen);
    all_measured_ = true;
  }

  std::vector<Group> Resolve(const Group& all) {
    const auto left = [&] { return (options_.max_runs - runs_) / static_cast<int>(used_.size()); };
    // Half of the runs go to groups of equal size, the other half to splitting; all of them where they suffice for
    // every site.
    const auto n = static_cast<int>(all.count);
    int pieces = left() >= n ? n : std::min(n, std::max(left() / 2, std::min(left(), 4)));
    std::vector<Group> groups;
    if (pieces < 2) {
      groups.push_back(all);
      if (!all_measured_) Measure(groups);
      return groups;
    }
    for (int p = 0; p < pieces; ++p) {
      const auto begin = static_cast<std::size_t>(p) * all.count / static_cast<std::size_t>(pieces);
      const auto end = static_cast<std::size_t>(p + 1) * all.count / static_cast<std::size_t>(pieces);
      groups.push_back({begin, end - begin, 0});
    }
    Measure(groups);
    while (left() >= 2) {
      std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.noise > b.noise; });
      double total = 0;
      for (const Group& g : groups) total += g.noise;
      std::vector<Group> halves, rest;
      for (const Group& g : groups) {
        const bool room = halves.size() < 2 * kWave && static_cast<int>(halves.size()) + 2 <= left();
        if (g.count < 2 || !room || g.noise < kResolved * total) {
          rest.push_back(g);
          continue;
        }
        const std::size_t middle = Middle(g);
        halves.push_back({g.first, middle, 0});
        halves.push_back({g.first + middle, g.count - middle, 0});
      }
      if (halves.empty()) break;
      Measure(halves);
      groups = std::move(rest);
      groups.insert(groups.end(), halves.begin(), halves.end());
    }
    return groups;
  }

  // Where half of what is expected of a group lies.
  std::size_t Middle(const Group& g) const {
    double total = 0, sum = 0;
    for (std::size_t i = 0; i < g.count; ++i) total += sites_[g.first + i].prior;
    for (std::size_t i = 0; i + 1 < g.count; ++i) {
      sum += sites_[g.first + i].prior;
      if (2 * sum >= total) return std::max<std::size_t>(i + (2 * sum > total && i > 0 ? 0 : 1), 1);
    }
    return g.count / 2;
  }

  void Measure(std::vector<Group>& groups) {
    const std::size_t per = used_.size();
    std::vector<std::vector<ErrorStats>> stats(groups.size() * per);
    ParallelFor(stats.size(), options_.threads, [&](std::size_t i) {
      CheckInterrupt();
      stats[i] = Compare(reference_[i % per], RunOne(*used_[i % per], Members(groups[i / per])));
    });
    runs_ += static_cast<int>(stats.size());
    for (std::size_t g = 0; g < groups.size(); ++g) {
      groups[g].noise = Pooled(std::span(stats).subspan(g * per, per));
    }
  }

  std::vector<bool> Members(const Group& g) const {
    std::vector<bool> rounded(sites_.size());
    std::fill_n(rounded.begin() + static_cast<std::ptrdiff_t>(g.first), g.count, true);
    return rounded;
  }

  Outputs RunOne(const KeptSample& sample, const std::vector<bool>& rounded) const {
    std::vector<std::optional<Rounding>> rounding(specs_);
    for (std::size_t i = 0; i < sites_.size(); ++i) {
      if (rounded[i]) rounding[sites_[i].spec] = sites_[i].rounding;
    }
    return calibration_.RunRounded(sample, rounding);
  }

  static std::vector<ErrorStats> Compare(const Outputs& reference, const Outputs& got) {
    std::vector<ErrorStats> stats(reference.size());
    for (std::size_t o = 0; o < reference.size(); ++o) {
      if (o < got.size() && got[o].size() == reference[o].size()) stats[o].Add(reference[o], got[o]);
    }
    return stats;
  }

  // Noise over signal, summed over samples, averaged over outputs.
  static double Pooled(std::span<const std::vector<ErrorStats>> samples) {
    double noise = 0;
    const std::size_t outputs = samples[0].size();
    for (std::size_t o = 0; o < outputs; ++o) {
      ErrorStats sum;
      for (const std::vector<ErrorStats>& s : samples) sum.Merge(s[o]);
      if (sum.signal > 0) noise += sum.noise / sum.signal / static_cast<double>(outputs);
    }
    return noise;
  }

  Calibration& calibration_;
  std::span<const ProbeSite> sites_;
  std::span<const KeptSample> samples_;
  const ProbeOptions& options_;
  std::size_t specs_ = 0;
  std::vector<const KeptSample*> used_;
  std::vector<Outputs> reference_;
  double all_noise_ = 0;
  bool all_measured_ = false;
  int runs_ = 0;
};

std::optional<NoiseCorrection> CorrectionOf(double found, double predicted, double all, double target) {
  const bool more = found > std::max(1.25 * predicted, 0.5 * target);
  const bool less = found < 0.5 * predicted && predicted > 0.5 * target;
  if (!more && !less) return std::nullopt;
  return NoiseCorrection{found / predicted, less && all > predicted ? (all - found) / (all - predicted) : 1};
}

Probe::Probe(Calibration& calibration, std::span<const ProbeSite> sites, std::span<const KeptSample> samples,
             const ProbeOptions& options)
    : impl_(std::make_unique<Impl>(calibration, sites, samples, options)) {}
Probe::~Probe() = default;
ProbeResult Probe::Run() { return impl_->Run(); }
double Probe::Noise(const std::vector<bool>& rounded) const { return impl_->Noise(rounded); }

}  // namespace octavo
