// Mixed precision: which nodes are worth their integers.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace octavo {

// What is known of one node that could run in integers.
struct SelectNode {
  double macs = 0;
  bool depthwise = false;   // its integer form multiplies no faster than its float form
  double weight_noise = 0;  // at the outputs, noise over signal, from rounding its weights as its integer form does
  double stored_noise = 0;  // the same from storing its weights in 8 bits, one scale a channel, for a float node
  bool faithful = false;    // 8 bits keep its weights so well that they are stored whatever the prediction says
  int x_site = -1;          // the tensor it reads
  int y_site = -1;          // the tensor that it must write in 8 bits; -1: it writes float
};

// A tensor that would be rounded.
struct SelectSite {
  double noise = 0;          // at the outputs, noise over signal
  double elements = 0;       // of one sample
  bool float_users = false;  // something that is no candidate reads it, in float
};

struct SelectOptions {
  // What is promised: noise over signal at the outputs, as predicted; 2.5e-3 is 26 dB. As few multiply-accumulates stay
  // in float as reach it.
  double target = 2.5e-3;
  // Nodes kept for accuracy hold at most this share of all multiply-accumulates, target reached or not: the rest is the
  // point of quantizing.
  double float_mac_budget = 0.4;
  // A node is kept for accuracy only if its share of the noise is at least this many times its share of the work.
  double worth = 0.02;
  // Weights of float nodes are stored in 8 bits where all of them together add at most this share of the target, or
  // where they are faithful.
  double stored_share = 0.1;
  // Cost of a boundary in multiply-accumulates saved by integers: quantizing one element, dequantizing one, and the
  // node that does it. (u8.u8 products of AVX2 save 0.024 ns a product; QuantizeLinear and DequantizeLinear take about
  // 0.25 ns an element and 2 us a call.)
  double quantize_cost = 10, dequantize_cost = 10;
  double node_cost = 1e5;
};

struct Selection {
  enum class Choice { kInteger, kNoisy, kSlow };
  std::vector<Choice> choice;       // one a node: in integers, in float for its noise, or in float for its boundaries
  std::vector<bool> stored;         // of the nodes in float: its weights are stored in 8 bits
  std::vector<double> noise_share;  // of the nodes kept for noise: their share of what was predicted at that moment
  double noise_all = 0;             // predicted noise over signal, everything in integers
  double noise_left = 0;            // after the selection
};

// Noise of independent roundings adds up at the outputs: sum of site noise over the tensors that some integer node
// reads or writes, of weight_noise over the integer nodes, and of stored_noise over the float nodes that are stored.
// 1. Nodes whose integers cost more at their boundaries than they save stay in float (an island of integers between
//    float neighbours quantizes its input and dequantizes its output), unless that leaves no integers at all.
// 2. While the prediction misses the target, the node that takes away most noise for its work stays in float.
// 3. What became an island in step 2 goes too; nodes that step 2 took and that the target does not need come back.
Selection SelectFloatNodes(std::span<const SelectNode> nodes, std::span<const SelectSite> sites,
                           const SelectOptions& options = {});

}  // namespace octavo
