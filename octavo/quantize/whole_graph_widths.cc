#include "octavo/quantize/whole_graph_widths.h"

#include <algorithm>
#include <numeric>

namespace octavo {
namespace {

class Chooser {
 public:
  Chooser(std::span<const WidthNode> nodes, std::span<const WidthSite> sites, const WidthOptions& options)
      : nodes_(nodes), sites_(sites), options_(options), sites_of_(nodes.size()), narrow_(sites.size()) {
    for (const WidthNode& node : nodes) total_ += node.cost;
    total_ = std::max(total_, 1.0);
    w_.node.assign(nodes.size(), false);
    w_.weight.assign(nodes.size(), false);
    for (std::size_t n = 0; n < nodes.size(); ++n) w_.node[n] = nodes[n].wide;
    for (std::size_t s = 0; s < sites.size(); ++s) {
      for (const std::size_t n : sites[s].nodes) {
        sites_of_[n].push_back(s);
        narrow_[s] += w_.node[n] ? 0 : 1;
      }
    }
    for (std::size_t s = 0; s < sites.size(); ++s) w_.noise_all += narrow_[s] > 0 ? sites[s].noise : 0;
    for (const WidthNode& node : nodes) w_.noise_all += node.weight_noise;
    noise_ = w_.noise_all;
    double remains = 0;
    for (const WidthNode& node : nodes) remains += node.weight_widens ? 0 : node.weight_noise;
    target_ = std::max(options.target, remains + options.target / 2);
  }

  Widths Run() {
    const double least = total_ * 1e-4;  // a node of no work still costs something to run in another width
    // Of a great many candidates several are taken at once.
    const std::size_t batch = 1 + (sites_.size() + nodes_.size()) / 512;
    while (noise_ > target_) {
      std::vector<Candidate> candidates;
      for (std::size_t s = 0; s < sites_.size(); ++s) {
        if (narrow_[s] > 0 && sites_[s].noise > 0) Weigh(s, false, least, candidates);
      }
      for (std::size_t n = 0; n < nodes_.size(); ++n) {
        if (nodes_[n].weight_widens && !w_.weight[n] && nodes_[n].weight_noise > 0) Weigh(n, true, least, candidates);
      }
      if (candidates.empty()) break;
      const std::size_t take = std::min(batch, candidates.size());
      std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(take), candidates.end(),
                        [](const Candidate& a, const Candidate& b) {
                          return a.ratio != b.ratio ? a.ratio > b.ratio : a.order < b.order;
                        });
      for (std::size_t i = 0; i < take && noise_ > target_; ++i) Take(candidates[i]);
    }
    GiveBack();
    w_.site_gone.assign(sites_.size(), 0.0);
    for (std::size_t s = 0; s < sites_.size(); ++s) {
      if (narrow_[s] == 0 && w_.noise_all > 0) w_.site_gone[s] = sites_[s].noise / w_.noise_all;
    }
    w_.noise_left = std::max(noise_, 0.0);
    w_.cost_share = Share();
    return std::move(w_);
  }

 private:
  struct Candidate {
    std::size_t index = 0;
    bool weight = false;
    double ratio = 0;
    std::size_t order = 0;
  };

  // The nodes that are to be widened for a site, or for the weight of a node.
  std::vector<std::size_t> Needed(std::size_t index, bool weight) const {
    std::vector<std::size_t> needed;
    const std::span<const std::size_t> all = weight ? std::span(&index, 1) : std::span(sites_[index].nodes);
    for (const std::size_t n : all) {
      if (!w_.node[n] && std::find(needed.begin(), needed.end(), n) == needed.end()) needed.push_back(n);
    }
    return needed;
  }

  void Weigh(std::size_t index, bool weight, double least, std::vector<Candidate>& candidates) {
    const std::vector<std::size_t> needed = Needed(index, weight);
    double cost = weight ? nodes_[index].cost : 0;
    for (const std::size_t n : needed) {
      if (nodes_[n].fixed) return;
      cost += nodes_[n].cost;
    }
    if (spent_ + cost > options_.budget * total_) return;
    const double before = noise_;
    for (const std::size_t n : needed) Set(n, true);
    const double gain = before - noise_ + (weight ? nodes_[index].weight_noise : 0);
    for (const std::size_t n : needed) Set(n, false);
    noise_ = before;
    if (gain > 0) candidates.push_back({index, weight, gain / (cost + least), candidates.size()});
  }

  void Take(const Candidate& c) {
    const std::vector<std::size_t> needed = Needed(c.index, c.weight);
    double cost = c.weight ? nodes_[c.index].cost : 0;
    for (const std::size_t n : needed) cost += nodes_[n].cost;
    if (spent_ + cost > options_.budget * total_) return;
    for (const std::size_t n : needed) Set(n, true);
    if (c.weight) SetWeight(c.index, true);
    spent_ += cost;
  }

  void Set(std::size_t n, bool wide) {
    w_.node[n] = wide;
    for (const std::size_t s : sites_of_[n]) {
      if (wide && --narrow_[s] == 0) noise_ -= sites_[s].noise;
      if (!wide && narrow_[s]++ == 0) noise_ += sites_[s].noise;
    }
  }

  void SetWeight(std::size_t n, bool wide) {
    w_.weight[n] = wide;
    noise_ += wide ? -nodes_[n].weight_noise : nodes_[n].weight_noise;
  }

  double Share() const {
    double cost = 0;
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
      cost += ((w_.node[n] && !nodes_[n].wide ? 1 : 0) + (w_.weight[n] ? 1 : 0)) * nodes_[n].cost;
    }
    return cost / total_;
  }

  void GiveBack() {
    std::vector<std::size_t> order(nodes_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return nodes_[a].cost > nodes_[b].cost; });
    for (const std::size_t n : order) {
      if (w_.weight[n]) {
        SetWeight(n, false);
        if (noise_ > target_) SetWeight(n, true);
      }
      if (!w_.node[n] || nodes_[n].wide || w_.weight[n]) continue;
      const double before = noise_;
      Set(n, false);
      // A node that widens nothing goes whether the target was reached or not.
      if (noise_ > target_ && noise_ > before) Set(n, true);
    }
  }

  std::span<const WidthNode> nodes_;
  std::span<const WidthSite> sites_;
  const WidthOptions& options_;
  std::vector<std::vector<std::size_t>> sites_of_;  // a site as often as the node stands in its list
  std::vector<std::size_t> narrow_;                 // nodes of the site that are not wide
  double total_ = 0, spent_ = 0, noise_ = 0, target_ = 0;
  Widths w_;
};

}  // namespace

Widths ChooseWidths(std::span<const WidthNode> nodes, std::span<const WidthSite> sites, const WidthOptions& options) {
  return Chooser(nodes, sites, options).Run();
}

}  // namespace octavo
