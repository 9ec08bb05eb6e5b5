#include "octavo/quantize/select.h"

#include <algorithm>
#include <numeric>

namespace octavo {
namespace {

using Choice = Selection::Choice;

class Selector {
 public:
  Selector(std::span<const SelectNode> nodes, std::span<const SelectSite> sites, const SelectOptions& options)
      : nodes_(nodes), sites_(sites), options_(options), users_(sites.size()), readers_(sites.size()) {
    writer_.assign(sites.size(), -1);
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      total_macs_ += nodes[i].macs;
      if (nodes[i].x_site >= 0) readers_[At(nodes[i].x_site)].push_back(i);
      if (nodes[i].y_site >= 0) writer_[At(nodes[i].y_site)] = static_cast<int>(i);
    }
    total_macs_ = std::max(total_macs_, 1.0);
    s_.choice.assign(nodes.size(), Choice::kInteger);
    s_.stored.assign(nodes.size(), false);
    s_.noise_share.assign(nodes.size(), 0.0);
    for (std::size_t i = 0; i < nodes.size(); ++i) Count(i, 1);
    s_.noise_all = Noise();
  }

  Selection Run() {
    DropIslands();
    KeepNoisy();
    GiveBack();
    DropIslands();
    StoreWeights();
    s_.noise_left = Noise();
    return std::move(s_);
  }

 private:
  static std::size_t At(int i) { return static_cast<std::size_t>(i); }
  bool Integer(std::size_t i) const { return s_.choice[i] == Choice::kInteger; }

  void Count(std::size_t i, int by) {
    for (const int site : {nodes_[i].x_site, nodes_[i].y_site}) {
      if (site >= 0) users_[At(site)] += by;
    }
  }

  void Set(std::size_t i, Choice choice) {
    const bool was = Integer(i);
    s_.choice[i] = choice;
    if (was != Integer(i)) Count(i, was ? -1 : 1);
  }

  double Noise() const {
    double noise = 0;
    for (std::size_t s = 0; s < sites_.size(); ++s) noise += users_[s] > 0 ? sites_[s].noise : 0;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      noise += Integer(i) ? nodes_[i].weight_noise : s_.stored[i] ? nodes_[i].stored_noise : 0;
    }
    return noise;
  }

  // What the boundaries at a site cost, in multiply-accumulates: a Quantize where integer nodes read what no integer
  // node wrote, a Dequantize where something in float reads what an integer node wrote.
  double Boundary(int site) const {
    if (site < 0) return 0;
    bool integer_reader = false, float_reader = sites_[At(site)].float_users;
    for (const std::size_t r : readers_[At(site)]) (Integer(r) ? integer_reader : float_reader) = true;
    const bool written = writer_[At(site)] >= 0 && Integer(At(writer_[At(site)]));
    double cost = 0;
    if (!written && integer_reader) cost += options_.node_cost + options_.quantize_cost * sites_[At(site)].elements;
    if (written && float_reader) cost += options_.node_cost + options_.dequantize_cost * sites_[At(site)].elements;
    return cost;
  }

  double Saved(std::size_t i) const { return nodes_[i].depthwise ? 0 : nodes_[i].macs; }

  void DropIslands() {
    const std::vector<Choice> before = s_.choice;
    Drop();
    // Integers were asked for: a model that is too small to gain from any of them gets them all the same.
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (Integer(i)) return;
    }
    for (std::size_t i = 0; i < nodes_.size(); ++i) Set(i, before[i]);
  }

  void Drop() {
    for (bool changed = true; changed;) {
      changed = false;
      for (std::size_t i = 0; i < nodes_.size(); ++i) {
        if (!Integer(i)) continue;
        const double before = Boundary(nodes_[i].x_site) + Boundary(nodes_[i].y_site);
        Set(i, Choice::kSlow);
        const double after = Boundary(nodes_[i].x_site) + Boundary(nodes_[i].y_site);
        if (before - after > Saved(i)) {
          changed = true;
        } else {
          Set(i, Choice::kInteger);
        }
      }
      changed = DropGroups() || changed;
    }
  }

  // Of a row of small nodes none goes alone, for its boundary would only move to its neighbour: groups of integer nodes
  // that share tensors are weighed as a whole.
  bool DropGroups() {
    std::vector<bool> seen(nodes_.size());
    bool dropped = false;
    for (std::size_t first = 0; first < nodes_.size(); ++first) {
      if (seen[first] || !Integer(first)) continue;
      std::vector<std::size_t> group = {first};
      std::vector<int> sites;
      seen[first] = true;
      for (std::size_t at = 0; at < group.size(); ++at) {
        for (const int site : {nodes_[group[at]].x_site, nodes_[group[at]].y_site}) {
          if (site < 0 || std::find(sites.begin(), sites.end(), site) != sites.end()) continue;
          sites.push_back(site);
          const auto visit = [&](std::size_t n) {
            if (seen[n] || !Integer(n)) return;
            seen[n] = true;
            group.push_back(n);
          };
          for (const std::size_t r : readers_[At(site)]) visit(r);
          if (writer_[At(site)] >= 0) visit(At(writer_[At(site)]));
        }
      }
      double before = 0, after = 0, saved = 0;
      for (const int site : sites) before += Boundary(site);
      for (const std::size_t n : group) {
        saved += Saved(n);
        Set(n, Choice::kSlow);
      }
      for (const int site : sites) after += Boundary(site);
      if (before - after > saved) {
        dropped = true;
      } else {
        for (const std::size_t n : group) Set(n, Choice::kInteger);
      }
    }
    return dropped;
  }

  void KeepNoisy() {
    // A node without work of its own (unknown shapes) still costs something to run in two types.
    const double least = total_macs_ * 5e-4;
    double noise = Noise();
    while (noise > options_.target) {
      std::size_t best = nodes_.size();
      double best_ratio = 0, best_saving = 0;
      for (std::size_t i = 0; i < nodes_.size(); ++i) {
        const SelectNode& n = nodes_[i];
        if (!Integer(i) || kept_macs_ + n.macs > options_.float_mac_budget * total_macs_) continue;
        double saving = n.weight_noise;
        for (const int site : {n.x_site, n.y_site}) {
          // A site that others need as well is partly this node's: else a tensor read by several nodes is never given
          // up.
          if (site >= 0) saving += sites_[At(site)].noise / users_[At(site)];
        }
        const double ratio = saving / (n.macs + least);
        if (ratio > best_ratio) {
          best = i;
          best_ratio = ratio;
          best_saving = saving;
        }
      }
      if (best == nodes_.size()) break;
      const double share = best_saving / noise;
      if (share < options_.worth * (nodes_[best].macs + least) / total_macs_) break;
      Set(best, Choice::kNoisy);
      s_.noise_share[best] = share;
      kept_macs_ += nodes_[best].macs;
      noise = Noise();
    }
  }

  // The largest first: the greedy choice may have taken a node early that later ones made unnecessary.
  void GiveBack() {
    if (Noise() > options_.target) return;
    std::vector<std::size_t> kept;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (s_.choice[i] == Choice::kNoisy) kept.push_back(i);
    }
    std::stable_sort(kept.begin(), kept.end(),
                     [&](std::size_t a, std::size_t b) { return nodes_[a].macs > nodes_[b].macs; });
    for (const std::size_t i : kept) {
      Set(i, Choice::kInteger);
      if (Noise() > options_.target) Set(i, Choice::kNoisy);
    }
  }

  void StoreWeights() {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (!Integer(i)) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return nodes_[a].stored_noise < nodes_[b].stored_noise; });
    double sum = 0;
    for (const std::size_t i : order) {
      sum += nodes_[i].stored_noise;
      s_.stored[i] = nodes_[i].faithful || sum <= options_.stored_share * options_.target;
    }
  }

  std::span<const SelectNode> nodes_;
  std::span<const SelectSite> sites_;
  const SelectOptions& options_;
  Selection s_;
  std::vector<int> users_;  // integer nodes that read or write the site
  std::vector<std::vector<std::size_t>> readers_;
  std::vector<int> writer_;
  double total_macs_ = 0, kept_macs_ = 0;
};

}  // namespace

Selection SelectFloatNodes(std::span<const SelectNode> nodes, std::span<const SelectSite> sites,
                           const SelectOptions& options) {
  return Selector(nodes, sites, options).Run();
}

}  // namespace octavo
