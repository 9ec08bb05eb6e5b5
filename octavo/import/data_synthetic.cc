#include <algorithm>
#include <cstring>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/sha256.h"
#include "octavo/import/data.h"
#include "octavo/import/data_check.h"
#include "octavo/numerics/half.h"

namespace octavo {
namespace {

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014), in its public-domain
// form by Vigna. A stream is started from mixed coordinates, so that samples are independent of each other.
class Random {
 public:
  explicit Random(std::uint64_t state) : state_(state) {}
  std::uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15u;
    return Mix(state_);
  }
  static std::uint64_t Mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

constexpr float kStep = 1.0f / (1 << 24);

float Uniform(Random& random) { return static_cast<float>(random.Next() >> 40) * kStep; }

// Sums of integers: exact, and free of the library's log and cos, which differ between machines.
float Normal(Random& random) {
  std::int64_t sum = 0;
  for (int i = 0; i < 6; ++i) {
    const std::uint64_t bits = random.Next();
    sum += static_cast<std::int64_t>(bits >> 40) + static_cast<std::int64_t>(bits & 0xffffff);
  }
  return static_cast<float>(sum - (std::int64_t{6} << 24)) * kStep;
}

template <typename T>
void Put(std::vector<std::byte>& out, std::size_t i, T value) {
  std::memcpy(out.data() + i * sizeof value, &value, sizeof value);
}

class Synthetic : public DataSource {
 public:
  Synthetic(std::vector<InputSpec> inputs, Distribution distribution, std::uint64_t seed, std::size_t samples)
      : inputs_(std::move(inputs)), distribution_(distribution), seed_(seed), samples_(samples) {}

  std::size_t size() const override { return samples_; }

  Sample Read(std::size_t i) const override {
    if (i >= samples_) ThrowInternal("sample index out of range");
    Sample sample{"synthetic sample " + std::to_string(i), {}};
    for (std::size_t j = 0; j < inputs_.size(); ++j) {
      Random random(Random::Mix(Random::Mix(Random::Mix(seed_ + 1) ^ i) ^ (std::uint64_t{j} << 32)));
      sample.tensors.push_back(Make(inputs_[j], random));
    }
    return sample;
  }

  std::string ContentHash() const override {
    std::string text = "octavo synthetic 1\n" + DistributionName() + "\n" + std::to_string(seed_) + "\n" +
                       std::to_string(samples_) + "\n";
    for (const InputSpec& input : inputs_) text += input.name + " " + ToString(input) + "\n";
    return Sha256::OfText(text);
  }

  std::string Describe() const override {
    return std::to_string(samples_) + " synthetic samples (" + DistributionName() + ", seed " + std::to_string(seed_) +
           ")";
  }

 private:
  std::string DistributionName() const { return distribution_ == Distribution::kUniform ? "uniform" : "normal"; }

  TensorRef Make(const InputSpec& input, Random& random) const {
    Dims dims;
    for (const Dim& dim : input.dims) dims.push_back(dim.value);
    const std::size_t n = static_cast<std::size_t>(ElementCount(dims, input.name));
    const std::size_t width = static_cast<std::size_t>(BitWidth(input.dtype)) / 8;
    std::vector<std::byte> data(n * width);
    for (std::size_t k = 0; k < n; ++k) {
      if (!IsFloat(input.dtype)) {
        data[k * width] = static_cast<std::byte>(random.Next() >> 63);
        continue;
      }
      const float value = distribution_ == Distribution::kUniform ? Uniform(random) : Normal(random);
      switch (input.dtype) {
        case DType::kF32:
          Put(data, k, value);
          break;
        case DType::kF64:
          Put(data, k, static_cast<double>(value));
          break;
        case DType::kF16:
          Put(data, k, FloatToHalf(value));
          break;
        default:
          Put(data, k, FloatToBf16(value));
      }
    }
    return TensorRef::FromBytes(input.dtype, std::move(dims), std::move(data));
  }

  std::vector<InputSpec> inputs_;
  Distribution distribution_;
  std::uint64_t seed_;
  std::size_t samples_;
};

}  // namespace

Distribution ParseDistribution(std::string_view name) {
  if (name == "uniform") return Distribution::kUniform;
  if (name == "normal") return Distribution::kNormal;
  ThrowUsage("unknown distribution", std::string(name), "it is uniform or normal");
}

std::string DimName(const InputSpec& input, std::size_t axis) {
  const std::string& symbol = input.dims.at(axis).symbol;
  return symbol.empty() ? input.name + ":" + std::to_string(axis) : symbol;
}

std::unique_ptr<DataSource> SyntheticData(std::span<const InputSpec> inputs, Distribution distribution,
                                          std::uint64_t seed, std::size_t samples) {
  for (const InputSpec& input : inputs) {
    const bool supported = input.dtype == DType::kBool || (IsInteger(input.dtype) && BitWidth(input.dtype) >= 8) ||
                           input.dtype == DType::kF32 || input.dtype == DType::kF64 || input.dtype == DType::kF16 ||
                           input.dtype == DType::kBF16;
    if (!supported) {
      ThrowUnsupported("no synthetic data of type " + std::string(Name(input.dtype)), "input '" + input.name + "'",
                       "give real data with --data");
    }
    if (input.any_rank) {
      ThrowUnsupported("no synthetic data for an input of unknown rank", "input '" + input.name + "'",
                       "give real data with --data");
    }
    Dims dims;
    for (std::size_t d = 0; d < input.dims.size(); ++d) {
      if (!input.dims[d].known()) {
        const std::string name = DimName(input, d);
        ThrowUsage("dimension " + std::to_string(d) + " ('" + name + "') has no fixed size, which synthetic data need",
                   "input '" + input.name + "' " + ToString(input),
                   "give --dim " + name + "=VALUE, or real data with --data");
      }
      dims.push_back(input.dims[d].value);
    }
    const auto bytes = ByteSize(input.dtype, ElementCount(dims, "input '" + input.name + "'"));
    if (!bytes || *bytes > (std::uint64_t{1} << 40)) {
      ThrowUsage("input too large for synthetic data", "input '" + input.name + "' " + ToString(input));
    }
  }
  return std::make_unique<Synthetic>(std::vector<InputSpec>(inputs.begin(), inputs.end()), distribution, seed, samples);
}

}  // namespace octavo
