// What the rounding of tensors costs at the outputs, measured on a few calibration samples.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "octavo/calibrate/calibrate.h"

namespace octavo {

// A tensor that placement gives 8-bit parameters to.
struct ProbeSite {
  std::size_t spec = 0;  // which of the calibration's ObserveSpecs it is
  Rounding rounding;
  double prior = 0;  // expected noise, in any unit: how the noise of a group is shared out among its sites
};

struct ProbeOptions {
  int max_runs = 0;      // sample runs with something rounded that may be spent
  double allowance = 0;  // where all sites together make no more noise than this, no single one is looked at
  int threads = 1;       // decides speed only
};

struct ProbeResult {
  std::vector<double> noise;  // for each site: noise at the float outputs over their signal (averaged over outputs)
  double all = 0;             // when every site is rounded
  int groups = 0;             // sites of one group were measured together; 0: nothing was measured
  int runs = 0;               // sample runs with something rounded that were spent
};

// What the noises that a choice of sites rests on are to be multiplied by once its own noise was measured.
struct NoiseCorrection {
  double left = 1;    // sites that the choice rounds
  double others = 1;  // the rest
};
// `found`: measured with the sites that are left, `predicted`: the sum of their noises, positive; `all`: that of all
// sites. Where that is more than was thought, the rest is to blame; where it is less, what was taken out. Nothing when
// the prediction was close enough, for a choice that may make `target`.
std::optional<NoiseCorrection> CorrectionOf(double found, double predicted, double all, double target);

class Probe {
 public:
  // All four must outlive this object.
  Probe(Calibration& calibration, std::span<const ProbeSite> sites, std::span<const KeptSample> samples,
        const ProbeOptions& options);
  ~Probe();

  // Rounds sites in groups of neighbours (in the order given) and splits the groups with most noise until the runs are
  // spent. Looks at up to four of the samples, and then at those of them with the most noise; at one where few runs may
  // be spent, and there not at all sites together: they make what two groups of them do.
  ProbeResult Run();
  // Noise over signal with exactly these sites rounded, on the samples that Run chose; one run a sample, outside of
  // max_runs. Precondition: Run measured something (groups > 0).
  double Noise(const std::vector<bool>& rounded) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
