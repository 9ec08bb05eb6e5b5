// Quantizing for an NPU: which operators and weights are worth 16 bits.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace octavo {

// A tensor that would be rounded to 8 bits.
struct WidthSite {
  double noise = 0;                // at the outputs, noise over signal
  std::vector<std::size_t> nodes;  // that make or read it: all of them must be wide for its noise to go
};

struct WidthNode {
  double cost = 0;             // multiply-accumulates, or elements written where there are none
  bool fixed = false;          // stays as narrow as it is
  bool wide = false;           // is wide already
  double weight_noise = 0;     // at the outputs, noise over signal, from the rounding of its weights to 8 bits
  bool weight_widens = false;  // its weights can have 16 bits, where the node itself has
};

struct WidthOptions {
  double target = 2.5e-3;  // noise over signal at the outputs, as predicted; 26 dB
  // Nodes in 16 bits hold at most this share of all cost, target reached or not: the rest is the point of 8 bits.
  double budget = 0.4;
};

struct Widths {
  std::vector<bool> node;         // runs in 16 bits
  std::vector<bool> weight;       // its weights have 16 bits
  std::vector<double> site_gone;  // of the sites whose noise is gone: their share of noise_all; else 0
  double noise_all = 0, noise_left = 0;
  double cost_share = 0;  // of what became 16 bits wide
};

// Noise of independent roundings adds up at the outputs. While the prediction misses the target, the site or weight
// that takes away most noise for what it costs goes to 16 bits, with the nodes that need it; what the target does not
// need in the end comes back, the most expensive first. Where weights that cannot be wide make more than half of what
// the target allows, the tensors may make the other half beside them. A wide weight costs its node once more.
Widths ChooseWidths(std::span<const WidthNode> nodes, std::span<const WidthSite> sites,
                    const WidthOptions& options = {});

}  // namespace octavo
