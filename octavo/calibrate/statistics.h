// What calibration knows of a tensor, and of a whole model. Everything here merges exactly: the order of samples, the
// number of threads and the way data are cut into shards leave no trace in the result, nor in the saved file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/numerics/exact_sum.h"
#include "octavo/numerics/reduce.h"

namespace octavo {

// Exact sums of x and of x^2 for every index along `axis` (non-negative; -1 before the first sample).
struct ChannelSums {
  std::int64_t axis = -1;
  // A tensor that held an infinity (a mask), or whose channels differ from sample to sample, has no sums: they are
  // given up, whatever the other samples held.
  bool finite = true;
  std::vector<ExactSum> sums, squares;  // one a channel; empty before the first sample and when not finite

  void Merge(const ChannelSums& other);
  bool operator==(const ChannelSums&) const = default;
};

struct TensorStatistics {
  MinMax range;                             // of the finite values, and counts; elements == 0: never computed
  std::optional<RangeHistogram> histogram;  // range equals histogram->range
  std::optional<ChannelSums> channels;

  // Mean of channel c, and of its squares. Precondition: channels are there, finite and not empty.
  double ChannelMean(std::size_t c) const;
  double ChannelMeanSquare(std::size_t c) const;

  void Merge(const TensorStatistics& other);
  bool operator==(const TensorStatistics&) const = default;
};

// A calibration sample that is kept whole, so that later stages can run the model on real data without the data set.
struct KeptSample {
  std::string sha256;              // SampleDigest of tensors
  std::vector<TensorRef> tensors;  // in the order of the model's inputs
  bool operator==(const KeptSample& other) const { return sha256 == other.sha256; }
};
// Kept are the samples of the smallest digests: a random choice that merges exactly. Eight of up to 4 MiB and two of up
// to 16 MiB, each size counted by itself (else a shard could drop what the whole keeps). Samples of more bytes, and
// samples that hold strings, are never kept.
inline constexpr std::size_t kKeptSamples = 8, kKeptLargeSamples = 2;
inline constexpr std::size_t kLargeBytes = std::size_t{4} << 20, kMostKeptBytes = std::size_t{16} << 20;

// SHA-256 of a sample's tensors: by content, not by name or place.
std::string SampleDigest(std::span<const TensorRef> tensors);

struct Statistics {
  std::string model_sha256;          // ModelFingerprint of the model that ran
  std::string method;                // what they were gathered for: "minmax", "entropy", ...
  std::vector<std::string> samples;  // SHA-256 of each sample's tensors, sorted; a sample that came twice is here twice
  std::map<std::string, TensorStatistics> tensors;  // by the value's name
  std::vector<KeptSample> kept;                     // sorted by digest, each once

  // Offers a sample to `kept`; the tensors are copied if they stay.
  void Keep(std::string_view sha256, std::span<const TensorRef> tensors);
  const TensorStatistics* Find(std::string_view name) const;
  // Order-independent. kBadInput, naming what differs, unless both come from the same model, method and tensors. Warns
  // when a sample is in both.
  void Merge(const Statistics& other);
  bool operator==(const Statistics&) const = default;
};

// SHA-256 over the structure of the graph (names, operators, types and shapes of inputs, constants and nodes, subgraphs
// included) and over the first 64 bytes of each constant, so that another training of the same network is noticed
// without reading all of its weights.
std::string ModelFingerprint(const Model& model);

// JSON, schema_version 1. Canonical: equal statistics give equal bytes. Floats are written so that they read back
// bit-equal.
inline constexpr int kStatisticsSchemaVersion = 1;
std::string ToJson(const Statistics& statistics);
// Errors: kBadInput naming `where` and the key; kUnsupported for another schema_version. Safe on hostile text: at most
// 256 MiB, nesting and number of values bounded, every number checked.
Statistics StatisticsFromJson(std::string_view text, const std::string& where);

void SaveStatistics(const Statistics& statistics, const std::filesystem::path& path);
Statistics LoadStatistics(const std::filesystem::path& path);

}  // namespace octavo
