// Sums that merge exactly: any order and any sharding give the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace octavo {

// A wide fixed-point accumulator (after Kulisch, "Computer Arithmetic and Validity", chapter 8): two's complement,
// least bit 2^-320, 704 bits. Holds without rounding every f32, every square of an f32 (multiples of 2^-298 below
// 2^256) and 2^63 sums of such numbers.
class ExactSum {
 public:
  static constexpr int kLeastBit = -320;
  static constexpr int kMaxAddBits = 320;  // |v| of one Add is below 2^320

  // Bits of v below 2^-320 are cut off (never the case for sums of f32 or of their squares).
  // Throws Error(kBadInput) when v is NaN, infinite or |v| >= 2^320.
  void Add(double v);
  // Throws Error(kBadInput) on overflow, which needs more than 2^62 additions or a forged text.
  void Merge(const ExactSum& other);

  double ToDouble() const;  // nearest, ties to even
  bool IsZero() const;

  // Exact text "[-]0x<hex>p<exponent>": value = hex * 2^exponent, hex odd and in lower case; zero is "0x0p0".
  // What C's strtod and Python's float.fromhex read, too.
  std::string ToText() const;
  // Throws Error(kBadInput) when malformed, out of range or finer than 2^-320.
  static ExactSum FromText(std::string_view text);

  bool operator==(const ExactSum&) const = default;

 private:
  static constexpr int kLimbs = 11;
  std::array<std::uint64_t, kLimbs> limbs_{};  // little endian
};

// Adds, for every channel of x viewed as [outer, channels, inner], the sum of its values to sums[c] and, where
// `squares` is not empty, the sum of their squares to squares[c]. Each ExactSum receives f64 partial sums formed in an
// order that depends on the shape only:
//  - inner >= 16: one partial for each (outer, channel) row, by LaneSum / LaneSumSquares;
//  - inner < 16: one partial for each block of 256 consecutive outer indices; element (o, c, j) is added to accumulator
//    [c, j] in order of o, then the accumulators of a channel are added in order of j.
// Throws Error(kInternal) when sizes disagree, Error(kBadInput) when x holds NaN/Inf (some sums are then updated
// already).
void AddChannelSums(std::span<const float> x, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                    std::span<ExactSum> sums, std::span<ExactSum> squares = {});

}  // namespace octavo
