// What the rounding of one tensor costs at the outputs, measured on a few calibration samples.
#pragma once

#include <span>
#include <vector>

#include "octavo/calibrate/statistics.h"
#include "octavo/ir/graph.h"
#include "octavo/numerics/affine.h"

namespace octavo {

// A tensor that placement gives 8-bit parameters to.
struct ProbeSite {
  Value* value = nullptr;
  AffineParams params;             // of its u8 codes (s8: with 128 added to the zero point)
  std::vector<const Node*> users;  // whose reading of the value is rounded; empty: all of them
};

struct ProbeResult {
  // For each site: noise at the float outputs over their signal (averaged over outputs) when only the sites of its
  // group are rounded to 8 bits. Sites of one group have equal `group` and the group's whole noise in each of its
  // sites.
  std::vector<double> noise;
  std::vector<int> group;
  int groups = 0;
  int runs = 0;  // sample runs that were spent
};

// Builds ONE session in which every site is rounded by a 16-bit QuantizeLinear/DequantizeLinear pair whose scale is a
// graph input: 257 times finer than the site's own scale, or that scale itself, so that each site can be switched on
// without another session. Spends at most `max_runs` runs on `samples` (of the calibration): up to four of them, those
// with the most noise when all is rounded; where the runs do not suffice for every site, neighbours in execution order
// are rounded together. Each run is one thread, so the result does not depend on `threads`. Too few runs for five
// groups: groups == 0.
ProbeResult ProbeSites(const Model& model, std::span<const ProbeSite> sites, std::span<const KeptSample> data,
                       int max_runs, int threads);

}  // namespace octavo
