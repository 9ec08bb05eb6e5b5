// How far a quantized output is from the float one.
#pragma once

#include <cstdint>
#include <span>

namespace octavo {

// Accumulates over samples. f64 sums; SQNR = 10 log10(sum ref^2 / sum (ref-got)^2) in dB.
// Positions where either value is NaN/Inf are left out of the sums (a masked -Inf in the reference is no error).
// Vectorized; the sums of one Add are formed in the lane order of LaneSum (reduce.h): the same on every machine.
struct ErrorStats {
  double signal = 0, noise = 0, dot = 0, got_energy = 0;
  double max_abs = 0;
  std::uint64_t elements = 0;
  std::uint64_t non_finite = 0;  // positions where `got` is NaN/Inf and `ref` is not

  void Add(std::span<const float> ref, std::span<const float> got);  // same length
  void Merge(const ErrorStats& other);
  double SqnrDb() const;  // +inf when noise is 0; -inf when non_finite > 0
  double Cosine() const;  // 1 when both are zero
  double Mse() const;
};

}  // namespace octavo
