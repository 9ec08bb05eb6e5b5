// Mixed precision: which nodes are worth their integers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace octavo {

// What is known of one node that could run in integers.
struct SelectNode {
  double macs = 0;
  double weight_noise = 0;  // at the outputs, noise over signal, from rounding its weights
  int x_site = -1;          // the tensor it reads
  int y_site = -1;          // the tensor that it must write in 8 bits; -1: it writes float
};

struct SelectOptions {
  // Nodes kept in float hold at most this share of all multiply-accumulates: the rest is the point of quantizing.
  double float_mac_budget = 0.3;
  // Where everything left is predicted to be below this (noise over signal), nothing more is kept: 3e-4 is 35 dB.
  double good_enough = 3e-4;
  // A node is kept only if its share of the noise is at least this many times its share of the work.
  double worth = 0.02;
};

struct Selection {
  std::vector<bool> keep_float;     // one a node
  std::vector<double> noise_share;  // of the nodes kept: their share of all predicted noise when everything is integer
  double noise_all = 0;             // predicted noise over signal, everything in integers
  double noise_left = 0;            // after the selection
};

// Noise of independent roundings adds up at the outputs: sum of site_noise over the tensors that some integer node
// reads or writes, and of weight_noise over the integer nodes. Greedily keeps the node that takes away most noise for
// its work.
Selection SelectFloatNodes(std::span<const SelectNode> nodes, std::span<const double> site_noise,
                           const SelectOptions& options = {});

}  // namespace octavo
