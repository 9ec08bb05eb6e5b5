// How fast a model runs here: latency, throughput, memory; alone or in turn with another.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "octavo/import/data.h"
#include "octavo/runtime/plugin.h"

namespace octavo {

struct PerfOptions {
  int threads = 0;              // 0: all cores
  std::int64_t warmup = 5;      // runs that are not counted
  std::int64_t iterations = 0;  // counted runs; 0: as many as fit in `seconds`, at least 10
  double seconds = 3.0;
  // Execution providers of plugins: that side then runs in a process of its own, timed there.
  std::optional<EpSpec> ep, against_ep;
};

// Latencies are wall time of one run of the session, in milliseconds. Percentiles are nearest-rank.
struct LatencyStats {
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, std = 0, min = 0, max = 0;
  double throughput = 0;  // runs per second of time spent in runs
  std::uint64_t runs = 0;
};
LatencyStats Summarize(std::vector<double> latencies_ms);

struct PerfSide {
  std::string model;
  std::uint64_t bytes = 0;  // of the file
  double load_seconds = 0;
  std::string provider = "CPUExecutionProvider";
  LatencyStats latency;
  std::vector<double> raw_ms;  // in order
};

struct PairedRatio {
  double median = 0, p10 = 0, p90 = 0;  // of the pairs' ratios, this model's latency / the other's
};

struct PerfResult {
  PerfSide model;
  std::optional<PerfSide> against;
  std::optional<PairedRatio> ratio;
  std::uint64_t peak_rss_bytes = 0;      // of the process while the model was loaded and warmed up, alone
  std::uint64_t baseline_rss_bytes = 0;  // before it was loaded
};

// Runs the default session on the samples in turn. With `against` the two run alternately (A B, B A, ...) on the same
// sample, so that a machine that changes its speed changes it for both. Errors: as Session.
PerfResult MeasurePerf(const std::filesystem::path& model, const std::optional<std::filesystem::path>& against,
                       const DataSource& data, const PerfOptions& options);

std::string ToJson(const PerfResult& result);
std::string ToTable(const PerfResult& result);

}  // namespace octavo
