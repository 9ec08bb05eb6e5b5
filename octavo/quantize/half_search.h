// Which of many things can stay as noisy as they are, found with few measurements.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace octavo {

struct NoisySearch {
  // Noise at the outputs with exactly these items noisy, the others not.
  std::function<double(const std::vector<bool>& noisy)> measure;
  double target = 0;  // of the noise
  int budget = 0;     // measurements that may be spent
  double most = 0;    // of the cost of what is not noisy in the end
};

struct NoisyChoice {
  std::vector<bool> noisy;  // the items that stay noisy
  double noise = 0;         // measured with these
  int measured = 0;
};

// Finds items of little `cost` without which the noise is at most the target. Groups of neighbours are measured alone;
// their noises add up. Groups that must go are split while there is budget for it: of a group of many items often one
// makes the noise. What is left is measured; where that is too much, more goes. The result is the last that was
// measured: it misses the target only where no noisy item is left, or where the budget is spent.
NoisyChoice ChooseNoisy(std::span<const double> cost, const NoisySearch& search);

}  // namespace octavo
