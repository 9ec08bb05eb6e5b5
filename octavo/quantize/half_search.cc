#include "octavo/quantize/half_search.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace octavo {
namespace {

constexpr std::size_t kFirstGroups = 8;

class Searcher {
 public:
  Searcher(std::span<const double> cost, const NoisySearch& search) : cost_(cost), search_(search) {}

  NoisyChoice Run() {
    const std::size_t n = cost_.size();
    base_ = Measure(std::vector<bool>(n, false));
    const std::size_t first = std::min(n, kFirstGroups);
    for (std::size_t g = 0; g < first; ++g) Add(g * n / first, (g + 1) * n / first);
    double wanted = search_.target;
    for (;;) {
      // The last measurement is for what is chosen.
      while (Split(wanted)) {
      }
      const std::vector<std::size_t> out = Leaving(wanted, search_.most);
      NoisyChoice choice{std::vector<bool>(n, true), 0, 0};
      for (const std::size_t g : out) {
        std::fill(choice.noisy.begin() + At(groups_[g].begin), choice.noisy.begin() + At(groups_[g].end), false);
      }
      choice.noise = Measure(choice.noisy);
      choice.measured = measured_;
      const bool done = choice.noise <= search_.target || out.size() == groups_.size() || (full_ && out == last_);
      if (done || measured_ >= search_.budget) return choice;
      last_ = out;
      wanted = base_ + (wanted - base_) / 2;
    }
  }

 private:
  struct Group {
    std::size_t begin = 0, end = 0;
    double noise = 0, cost = 0;
  };

  static std::ptrdiff_t At(std::size_t i) { return static_cast<std::ptrdiff_t>(i); }

  double Measure(const std::vector<bool>& noisy) {
    ++measured_;
    return search_.measure(noisy);
  }

  void Add(std::size_t begin, std::size_t end) {
    Group group{begin, end, 0, 0};
    std::vector<bool> noisy(cost_.size(), false);
    std::fill(noisy.begin() + At(begin), noisy.begin() + At(end), true);
    group.noise = std::max(Measure(noisy) - base_, 0.0);
    for (std::size_t i = begin; i < end; ++i) group.cost += cost_[i];
    groups_.push_back(group);
  }

  // The groups that must go for this much noise, as far as they cost no more than `most`: most noise for their cost
  // first.
  std::vector<std::size_t> Leaving(double wanted, double most) {
    std::vector<std::size_t> order(groups_.size());
    double noise = base_, cost = 0;
    full_ = false;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      order[g] = g;
      noise += groups_[g].noise;
    }
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const double left = groups_[a].noise * groups_[b].cost, right = groups_[b].noise * groups_[a].cost;
      return left != right ? left > right : groups_[a].begin < groups_[b].begin;
    });
    std::vector<std::size_t> out;
    for (const std::size_t g : order) {
      if (noise <= wanted) break;
      full_ = full_ || cost + groups_[g].cost > most;
      if (cost + groups_[g].cost > most) continue;
      cost += groups_[g].cost;
      noise -= groups_[g].noise;
      out.push_back(g);
    }
    return out;
  }

  // Splits the noisiest of the groups that would go and have more than one item; false if there is none, or no budget.
  bool Split(double wanted) {
    if (measured_ + 3 > search_.budget) return false;
    std::size_t widest = groups_.size();
    for (const std::size_t g : Leaving(wanted, std::numeric_limits<double>::infinity())) {
      if (groups_[g].end - groups_[g].begin < 2) continue;
      if (widest == groups_.size() || groups_[g].noise > groups_[widest].noise) widest = g;
    }
    if (widest == groups_.size()) return false;
    const Group group = groups_[widest];
    last_.clear();
    groups_.erase(groups_.begin() + At(widest));
    const std::size_t middle = group.begin + (group.end - group.begin) / 2;
    Add(group.begin, middle);
    Add(middle, group.end);
    return true;
  }

  std::span<const double> cost_;
  const NoisySearch& search_;
  std::vector<Group> groups_;
  double base_ = 0;
  int measured_ = 0;
  bool full_ = false;  // something was too expensive to go
  std::vector<std::size_t> last_;
};

}  // namespace

NoisyChoice ChooseNoisy(std::span<const double> cost, const NoisySearch& search) {
  return Searcher(cost, search).Run();
}

}  // namespace octavo
