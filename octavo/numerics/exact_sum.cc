#include "octavo/numerics/exact_sum.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/numerics/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/numerics/exact_sum.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace octavo {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// sums[i] += x[i], squares[i] += x[i]^2 (squares may be null): lane by lane, so independent of the vector length.
void AddElementwise(const float* x, size_t n, double* sums, double* squares) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::PromoteTo(d, hn::LoadU(df, x + i));
    hn::StoreU(hn::Add(hn::LoadU(d, sums + i), v), d, sums + i);
    if (squares != nullptr) hn::StoreU(hn::Add(hn::LoadU(d, squares + i), hn::Mul(v, v)), d, squares + i);
  }
  for (; i < n; ++i) {
    const double v = x[i];
    sums[i] += v;
    if (squares != nullptr) squares[i] += v * v;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace octavo
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo {
HWY_EXPORT(AddElementwise);

namespace {

using Limbs = std::array<std::uint64_t, 11>;

bool IsNegative(const Limbs& v) { return (v.back() >> 63) != 0; }

void Negate(Limbs& v) {
  std::uint64_t carry = 1;
  for (std::uint64_t& limb : v) {
    limb = ~limb + carry;
    carry = carry != 0 && limb == 0 ? 1 : 0;
  }
}

// Index of the highest bit set, -1 for zero.
int TopBit(const Limbs& v) {
  for (std::size_t i = v.size(); i-- > 0;) {
    if (v[i] != 0) return static_cast<int>(i) * 64 + 63 - std::countl_zero(v[i]);
  }
  return -1;
}

int LowBit(const Limbs& v) {
  for (std::size_t i = 0; i < v.size(); ++i) {
    if (v[i] != 0) return static_cast<int>(i) * 64 + std::countr_zero(v[i]);
  }
  return -1;
}

bool Bit(const Limbs& v, int i) { return ((v[static_cast<std::size_t>(i) / 64] >> (i % 64)) & 1) != 0; }

// Shifts by `bits` (right when negative); bits shifted out are lost.
Limbs Shift(const Limbs& v, int bits) {
  Limbs out{};
  for (int i = 0; i < static_cast<int>(v.size()) * 64; i += 64) {
    // Bit i of the result is bit i - bits of v.
    const int from = i - bits;
    const int limb = from >= 0 ? from / 64 : -((63 - from) / 64);
    const int rest = from - limb * 64;
    const auto get = [&](int k) {
      return k >= 0 && k < static_cast<int>(v.size()) ? v[static_cast<std::size_t>(k)] : std::uint64_t{0};
    };
    out[static_cast<std::size_t>(i) / 64] = (get(limb) >> rest) | (rest == 0 ? 0 : get(limb + 1) << (64 - rest));
  }
  return out;
}

}  // namespace

void ExactSum::Add(double v) {
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(v);
  const int biased = static_cast<int>((bits >> 52) & 0x7ff);
  if (biased - 1023 >= kMaxAddBits) {
    ThrowBadInput("a value is not finite or too large for an exact sum", {},
                  "check the data and the model for NaN and Inf");
  }
  std::uint64_t mantissa = (bits & ((std::uint64_t{1} << 52) - 1)) | (biased == 0 ? 0 : std::uint64_t{1} << 52);
  int position = std::max(biased, 1) - 1075 - kLeastBit;
  if (position < 0) {
    mantissa = position <= -64 ? 0 : mantissa >> -position;
    position = 0;
  }
  if (mantissa == 0) return;
  std::size_t k = static_cast<std::size_t>(position) / 64;
  const int shift = position % 64;
  const std::uint64_t parts[2] = {mantissa << shift, shift == 0 ? 0 : mantissa >> (64 - shift)};
  if ((bits >> 63) == 0) {
    bool carry = __builtin_add_overflow(limbs_[k], parts[0], &limbs_[k]);
    ++k;
    const bool carry_in = carry;
    carry = __builtin_add_overflow(limbs_[k], parts[1], &limbs_[k]);
    carry |= __builtin_add_overflow(limbs_[k], std::uint64_t{carry_in}, &limbs_[k]);
    while (carry && ++k < kLimbs) carry = ++limbs_[k] == 0;
  } else {
    bool borrow = __builtin_sub_overflow(limbs_[k], parts[0], &limbs_[k]);
    ++k;
    const bool borrow_in = borrow;
    borrow = __builtin_sub_overflow(limbs_[k], parts[1], &limbs_[k]);
    borrow |= __builtin_sub_overflow(limbs_[k], std::uint64_t{borrow_in}, &limbs_[k]);
    while (borrow && ++k < kLimbs) borrow = limbs_[k]-- == 0;
  }
}

void ExactSum::Merge(const ExactSum& other) {
  Limbs sum{};
  bool carry = false;
  for (std::size_t i = 0; i < kLimbs; ++i) {
    bool out = __builtin_add_overflow(limbs_[i], other.limbs_[i], &sum[i]);
    out |= __builtin_add_overflow(sum[i], std::uint64_t{carry}, &sum[i]);
    carry = out;
  }
  if (IsNegative(limbs_) == IsNegative(other.limbs_) && IsNegative(sum) != IsNegative(limbs_)) {
    ThrowBadInput("an exact sum overflows");
  }
  limbs_ = sum;
}

bool ExactSum::IsZero() const { return TopBit(limbs_) < 0; }

double ExactSum::ToDouble() const {
  Limbs magnitude = limbs_;
  const bool negative = IsNegative(magnitude);
  if (negative) Negate(magnitude);
  const int top = TopBit(magnitude);
  if (top < 0) return 0;
  const int low = std::max(top - 52, 0);
  std::uint64_t mantissa = Shift(magnitude, -low)[0];
  if (low > 0 && Bit(magnitude, low - 1) && (LowBit(magnitude) < low - 1 || (mantissa & 1) != 0)) ++mantissa;
  const double value = std::ldexp(static_cast<double>(mantissa), low + kLeastBit);
  return negative ? -value : value;
}

std::string ExactSum::ToText() const {
  Limbs magnitude = limbs_;
  const bool negative = IsNegative(magnitude);
  if (negative) Negate(magnitude);
  const int low = LowBit(magnitude);
  if (low < 0) return "0x0p0";
  const Limbs digits = Shift(magnitude, -low);
  std::string text = negative ? "-0x" : "0x";
  for (int i = TopBit(digits) / 4; i >= 0; --i) {
    text += "0123456789abcdef"[(digits[static_cast<std::size_t>(i) / 16] >> (i % 16 * 4)) & 15];
  }
  return text + "p" + std::to_string(low + kLeastBit);
}

ExactSum ExactSum::FromText(std::string_view text) {
  const auto bad = [&](const char* why) { ThrowBadInput("malformed exact sum", std::string(text.substr(0, 40)), why); };
  std::string_view rest = text;
  const bool negative = rest.starts_with('-');
  if (negative) rest.remove_prefix(1);
  if (!rest.starts_with("0x")) bad("it must look like -0x1a3fp-149");
  rest.remove_prefix(2);
  const std::size_t p = rest.find('p');
  if (p == 0 || p == std::string_view::npos) bad("it must look like -0x1a3fp-149");
  if (p > kLimbs * 16) bad("it has too many digits");
  Limbs value{};
  for (const char c : rest.substr(0, p)) {
    int digit = 0;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else {
      bad("it holds a character that is no hexadecimal digit");
    }
    value = Shift(value, 4);
    value[0] |= static_cast<std::uint64_t>(digit);
  }
  const std::string_view power = rest.substr(p + 1);
  int exponent = 0;
  const auto [end, error] = std::from_chars(power.data(), power.data() + power.size(), exponent);
  if (error != std::errc() || end != power.data() + power.size()) bad("its exponent is no integer");
  const int top = TopBit(value);
  if (top >= 0) {
    if (exponent < -2000 || exponent > 2000) bad("it is out of range");
    const int shift = exponent - kLeastBit;
    if (top + shift >= kLimbs * 64 - 1) bad("it is out of range");
    if (LowBit(value) + shift < 0) bad("it is finer than 2^-320");
    value = Shift(value, shift);
    if (negative) Negate(value);
  }
  ExactSum sum;
  sum.limbs_ = value;
  return sum;
}

void AddChannelSums(std::span<const float> x, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                    std::span<ExactSum> sums, std::span<ExactSum> squares) {
  std::int64_t volume = 0;
  if (outer < 0 || channels < 0 || inner < 0 || __builtin_mul_overflow(outer, channels, &volume) ||
      __builtin_mul_overflow(volume, inner, &volume) || static_cast<std::uint64_t>(volume) != x.size() ||
      sums.size() != static_cast<std::uint64_t>(channels) || (!squares.empty() && squares.size() != sums.size())) {
    ThrowInternal("the [outer, channels, inner] view does not match the tensor or the sums");
  }
  if (volume == 0) return;
  const std::size_t rows = static_cast<std::size_t>(outer), width = static_cast<std::size_t>(channels);
  const std::size_t run = static_cast<std::size_t>(inner);
  if (run >= kSumLanes) {
    for (std::size_t r = 0; r < rows * width; ++r) {
      const std::span<const float> row = x.subspan(r * run, run);
      sums[r % width].Add(LaneSum(row));
      if (!squares.empty()) squares[r % width].Add(LaneSumSquares(row));
    }
    return;
  }
  constexpr std::size_t kRows = 256;
  const std::size_t period = width * run;
  std::vector<double> sum(period), square(squares.empty() ? 0 : period);
  const auto add = [&](std::span<const double> partial, std::span<ExactSum> to) {
    for (std::size_t c = 0; c < width; ++c) {
      double total = partial[c * run];
      for (std::size_t j = 1; j < run; ++j) total += partial[c * run + j];
      to[c].Add(total);
    }
  };
  for (std::size_t first = 0; first < rows; first += kRows) {
    std::fill(sum.begin(), sum.end(), 0.0);
    std::fill(square.begin(), square.end(), 0.0);
    for (std::size_t o = first; o < std::min(rows, first + kRows); ++o) {
      HWY_DYNAMIC_DISPATCH(AddElementwise)
      (x.data() + o * period, period, sum.data(), squares.empty() ? nullptr : square.data());
    }
    add(sum, sums);
    if (!squares.empty()) add(square, squares);
  }
}

}  // namespace octavo
#endif  // HWY_ONCE
