#include "octavo/quantize/select.h"

#include <algorithm>

namespace octavo {

Selection SelectFloatNodes(std::span<const SelectNode> nodes, std::span<const double> site_noise,
                           const SelectOptions& options) {
  Selection s;
  s.keep_float.assign(nodes.size(), false);
  s.noise_share.assign(nodes.size(), 0.0);
  std::vector<int> users(site_noise.size());  // integer nodes that read or write the site
  double total_macs = 0;
  for (const SelectNode& n : nodes) {
    total_macs += n.macs;
    s.noise_all += n.weight_noise;
    for (const int site : {n.x_site, n.y_site}) {
      if (site >= 0 && users[static_cast<std::size_t>(site)]++ == 0) {
        s.noise_all += site_noise[static_cast<std::size_t>(site)];
      }
    }
  }
  s.noise_left = s.noise_all;
  // A node without work of its own (unknown shapes) still costs something to run in two types.
  const double least = std::max(total_macs, 1.0) * 5e-4;
  double kept_macs = 0;
  while (s.noise_left > options.good_enough) {
    int best = -1;
    double best_ratio = 0, best_saving = 0;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      const SelectNode& n = nodes[i];
      if (s.keep_float[i] || kept_macs + n.macs > options.float_mac_budget * total_macs) continue;
      double saving = n.weight_noise;
      for (const int site : {n.x_site, n.y_site}) {
        // A site that others need as well is partly this node's: else a tensor read by several nodes is never given up.
        if (site >= 0) saving += site_noise[static_cast<std::size_t>(site)] / users[static_cast<std::size_t>(site)];
      }
      const double ratio = saving / (n.macs + least);
      if (ratio > best_ratio) {
        best = static_cast<int>(i);
        best_ratio = ratio;
        best_saving = saving;
      }
    }
    if (best < 0) break;
    const SelectNode& n = nodes[static_cast<std::size_t>(best)];
    const double share = best_saving / s.noise_all;
    if (share < options.worth * (n.macs + least) / std::max(total_macs, 1.0)) break;
    s.keep_float[static_cast<std::size_t>(best)] = true;
    s.noise_share[static_cast<std::size_t>(best)] = share;
    kept_macs += n.macs;
    s.noise_left -= n.weight_noise;
    for (const int site : {n.x_site, n.y_site}) {
      if (site >= 0 && --users[static_cast<std::size_t>(site)] == 0) {
        s.noise_left -= site_noise[static_cast<std::size_t>(site)];
      }
    }
  }
  s.noise_left = std::max(s.noise_left, 0.0);
  return s;
}

}  // namespace octavo
